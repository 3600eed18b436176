"""A real server, spoken to over HTTP with the `openai` client."""

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.server.running import FLAGS, Server, served

MODEL = "smollm2-135m-instruct"
LONG = "The quick brown fox jumps over the lazy dog, again and again. " * 40


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, default_model: Path) -> Iterator[Server]:
    flags = (*FLAGS, "--enable-scale-out")
    with served(tmp_path_factory.mktemp("server") / "log", *flags) as server:
        yield server


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")


def chat(client: openai.OpenAI, prompt: str = LONG, **extra: object) -> str:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=16,
        temperature=0,
        extra_body={"vllm_xargs": extra} if extra else None,
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 16
    return answer.choices[0].message.content or ""


def test_start_line(server: Server) -> None:
    (line,) = [row for row in server.log.read_text().splitlines() if "FastGen is on" in row]
    assert re.search(
        r"preset balanced, policy \w+, (recovery|keep) [\d.]+, compacting when room is short, "
        "observed queries replay",
        line,
    )
    for fact in ("kernels fastgen/", "page 32 slots", "blocks", "pages"):
        assert fact in line


def test_chat(client: openai.OpenAI) -> None:
    assert chat(client, "What is the capital of France?")
    assert chat(client)


def test_usage_counts_logical_tokens(client: openai.OpenAI) -> None:
    """A compacted prompt still counts all its tokens."""
    answer = client.completions.create(model=MODEL, prompt=[500] * 700, max_tokens=5)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 700


def test_streaming(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": LONG}],
        max_tokens=16,
        temperature=0,
        stream=True,
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert len(pieces) > 5
    assert "".join(pieces) == chat(client)


def test_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=LONG, max_tokens=8)
    assert answer.choices[0].text


@pytest.mark.parametrize(
    "extra",
    [
        {"fastgen": "off"},
        {"fastgen_recovery": 0.97},
        {"fastgen_policy": "paper"},
        {"fastgen_policy": "coverage", "fastgen_recovery": 0.5},
        {"fastgen_keep": 0.3},
        {"fastgen_keep": 0.3, "fastgen_generated": "keep"},
        {"fastgen_keep_tokens": 300},
        {"fastgen_when": "always"},
        {"fastgen_keep_tokens": 300, "fastgen_policy": "ahakv"},
    ],
)
def test_per_request_options(client: openai.OpenAI, extra: dict[str, object]) -> None:
    assert chat(client, **extra)


BAD_OPTIONS: list[tuple[dict[str, object], str, str]] = [
    ({"fastgen": "sometimes"}, "fastgen", 'use "on" or "off"'),
    ({"fastgen": True}, "fastgen", 'use "on" or "off"'),
    ({"fastgen": 0}, "fastgen", 'use "on" or "off"'),
    ({"fastgen": ["off"]}, "fastgen", 'use "on" or "off"'),
    ({"fastgen_recovery": 1.5}, "fastgen_recovery", "above 0 and at most 1"),
    ({"fastgen_recovery": "0.9"}, "fastgen_recovery", "above 0 and at most 1"),
    ({"fastgen_recovery": True}, "fastgen_recovery", "above 0 and at most 1"),
    ({"fastgen_recovery": -1}, "fastgen_recovery", "above 0 and at most 1"),
    ({"fastgen_keep": 0}, "fastgen_keep", "above 0 and at most 1"),
    ({"fastgen_keep": 10**400}, "fastgen_keep", "above 0 and at most 1"),
    ({"fastgen_keep": 0.3, "fastgen_recovery": 0.9}, "fastgen_keep", "not both"),
    ({"fastgen_keep": 0.3, "fastgen_policy": "paper"}, "fastgen_keep", "must be coverage"),
    ({"fastgen_keep_tokens": 0.5}, "fastgen_keep_tokens", "a whole number, at least 1"),
    ({"fastgen_keep_tokens": 9, "fastgen_keep": 0.3}, "fastgen_keep_tokens", "not both"),
    ({"fastgen_generated": "drop"}, "fastgen_generated", "one of keep, replace, or a number"),
    ({"fastgen_generated": 1.5}, "fastgen_generated", "from 0 to 1"),
    ({"fastgen_policy": "best"}, "fastgen_policy", "one of paper, coverage, full"),
    ({"fastgen_policy": "ahakv"}, "fastgen_policy", "give fastgen_keep or fastgen_keep_tokens"),
    ({"fastgen_when": "now"}, "fastgen_when", "one of short, always"),
    ({"fastgen_policy": 1}, "fastgen_policy", "one of paper, coverage, full"),
    ({"fastgen_policy": {"a": 1}}, "fastgen_policy", "one of paper, coverage, full"),
    ({"fastgen_window": 3}, "fastgen_window", "known are fastgen, fastgen_recovery"),
]


def ask(client: openai.OpenAI, endpoint: str, stream: bool, arguments: object) -> None:
    """Send a request with these arguments, and read the answer."""
    extra = {"vllm_xargs": arguments}
    common = {"model": MODEL, "max_tokens": 2, "stream": stream, "extra_body": extra}
    if endpoint == "chat":
        messages = [{"role": "user", "content": "Hello"}]
        answer = client.chat.completions.create(messages=messages, **common)  # type: ignore
    else:
        answer = client.completions.create(prompt="Hello", **common)  # type: ignore
    if stream:
        list(answer)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize(("extra", "parameter", "legal"), BAD_OPTIONS)
def test_bad_option_is_a_400(
    client: openai.OpenAI,
    extra: dict[str, object],
    parameter: str,
    legal: str,
    endpoint: str,
    stream: bool,
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, endpoint, stream, extra)
    assert (caught.value.status_code, caught.value.param) == (400, parameter)
    body = caught.value.body
    assert isinstance(body, dict)
    assert (body["type"], body["code"]) == ("BadRequestError", 400)
    assert f"{parameter}={extra[parameter]!r} is not allowed" in body["message"]
    assert legal in body["message"]


BAD = {"fastgen_window": 3}
#: every other endpoint that generates, with arguments where it has them
OTHERS: dict[str, dict[str, object]] = {
    "/v1/chat/completions/batch": {"messages": [[{"role": "user", "content": "a"}]]},
    "/v1/responses": {"input": "a"},
    "/v1/messages": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
    "/invocations": {"prompt": "a"},
    "/inference/v1/generate": {"token_ids": [1], "sampling_params": {"extra_args": BAD}},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", OTHERS)
def test_bad_option_of_other_endpoints_is_a_400(server: Server, path: str, stream: bool) -> None:
    body = {"model": MODEL, "stream": stream, "vllm_xargs": BAD} | OTHERS[path]
    if "sampling_params" in body:
        del body["vllm_xargs"]
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code == 400
    assert json.loads(caught.value.read())["error"]["param"] == "fastgen_window"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("arguments", [{"fastgen_keep": None}, "fastgen", ["fastgen"], 3])
def test_what_is_no_argument_at_all_is_a_400_of_vllm(
    client: openai.OpenAI, arguments: object, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "chat", stream, arguments)
    assert "vllm_xargs" in caught.value.message


def test_after_bad_options_the_server_goes_on(client: openai.OpenAI) -> None:
    assert chat(client, "Hello")


def test_metrics(server: Server, client: openai.OpenAI) -> None:
    before = server.metrics()
    chat(client)
    chat(client, fastgen_when="always")
    chat(client, fastgen="off")
    deadline = time.monotonic() + 30
    names = {
        "compacted": 'fastgen_compactions_total{engine="0"}',
        "blocks": 'fastgen_blocks_given_back_total{engine="0"}',
        "room": 'fastgen_uncompacted_requests_total{engine="0",reason="room"}',
        "shares": 'fastgen_kept_share_count{engine="0"}',
        "heads": 'fastgen_heads_total{engine="0",policy="coverage"}',
        "off": 'fastgen_uncompacted_requests_total{engine="0",reason="off"}',
        "profiling": 'fastgen_profiling_seconds_total{engine="0"}',
        "compaction": 'fastgen_compaction_seconds_total{engine="0"}',
    }

    def grown() -> set[str]:
        after = server.metrics()
        return {key for key, n in names.items() if after.get(n, 0) > before.get(n, 0)}

    while grown() != set(names) and time.monotonic() < deadline:
        chat(client, "Hi")
    assert grown() == set(names)


def test_endpoints_show_what_the_server_does(server: Server, client: openai.OpenAI) -> None:
    chat(client)
    status = server.ask("status")
    assert status["active"] and status["preset"] == "balanced" and status["model"] == MODEL
    assert status["pool"]["blocks"] > 10 and status["versions"]["vllm"].startswith("0.32")
    heads = server.ask("heads")
    assert heads["prompts"] >= 1
    assert [len(layer) for layer in heads["kept_share"]] == [3] * 30
    stream = client.completions.create(
        model=MODEL,
        prompt=LONG,
        max_tokens=900,
        stream=True,
        extra_body={"vllm_xargs": {"fastgen_when": "always"}},
    )
    pieces = iter(stream)
    for _ in range(5):
        next(pieces)
    (shown,) = server.ask("requests")["requests"]
    stream.close()
    assert shown["compacted"] and shown["blocks"] < shown["blocks_uncompressed"]
    assert shown["id"].startswith("cmpl-")


def test_a_prompt_is_profiled_as_a_request_would_be(server: Server) -> None:
    found = server.ask("profile", {"prompt": LONG, "arguments": {"fastgen_keep": 0.5}})
    assert found["uncompressed_because"] is None
    assert found["prompt_tokens"] == len(found["tokens"]) > 512
    assert found["kept_share"] == pytest.approx(0.5, abs=0.01)
    assert "".join(found["tokens"]) == LONG
    for layer in found["heads"]:
        for head in layer:
            assert 0 < head["recovery"] <= 1 and head["kept"][:4] == [0, 1, 2, 3]
    assert found["kept_by"][0] == 90
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.ask("profile", {"prompt": LONG * 10})
    assert caught.value.code == 400
    assert "2048" in json.loads(caught.value.read())["error"]["message"]


def test_a_profiled_prompt_is_that_of_a_request(server: Server, client: openai.OpenAI) -> None:
    """As many tokens, also of a chat in parts; and its characters are whole."""
    text = LONG + "Émile 🌶🪐 said: 今日は寒い。 ภาษาไทย ที่บ้าน 👩\u200d🚀"
    found = server.ask("profile", {"prompt": text})
    answer = client.completions.create(model=MODEL, prompt=text, max_tokens=1)
    assert answer.usage is not None
    assert found["prompt_tokens"] == answer.usage.prompt_tokens
    assert "".join(found["tokens"]) == text
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": text}]},
    ]
    found = server.ask("profile", {"messages": messages})
    chat = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=1)  # type: ignore
    assert chat.usage is not None
    assert found["prompt_tokens"] == chat.usage.prompt_tokens
    assert text in "".join(found["tokens"])


def test_a_client_that_goes_away_harms_nobody(server: Server, client: openai.OpenAI) -> None:
    for _ in range(3):
        stream = client.completions.create(model=MODEL, prompt=LONG, max_tokens=900, stream=True)
        next(iter(stream))
        stream.close()
    assert chat(client)
    with urllib.request.urlopen(f"{server.url}/health") as response:
        assert response.status == 200
