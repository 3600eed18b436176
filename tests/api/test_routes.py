"""The endpoints over HTTP, with an engine client that answers from memory."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from fastgen_vllm.api import engine as api_engine
from fastgen_vllm.api import plugin
from fastgen_vllm.api.operations import CLOSING_SECONDS
from tests.api.fake import HEADS, REQUEST, Client, make_app


def serve(client: Client, **args: Any) -> TestClient:
    return TestClient(make_app(client, **args), raise_server_exceptions=False)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> CollectorRegistry:
    made = CollectorRegistry()
    monkeypatch.setattr(api_engine, "get_prometheus_registry", lambda: made)
    return made


@pytest.fixture
def server(registry: CollectorRegistry) -> Iterator[TestClient]:
    with serve(Client("full")) as client:
        yield client


def test_status_tells_configuration_and_totals(
    registry: CollectorRegistry, server: TestClient
) -> None:
    Gauge("vllm:kv_cache_usage_perc", "", registry=registry).set(0.25)
    Gauge("vllm:num_requests_running", "", registry=registry).set(3)
    heads = Counter("fastgen_heads", "", ["engine", "policy"], registry=registry)
    for engine in ("0", "1"):
        heads.labels(engine, "coverage").inc(90)
    kept = Histogram("fastgen_kept_share", "", registry=registry)
    kept.observe(0.2)
    kept.observe(0.4)
    found = server.get("/fastgen/status").json()
    assert found["active"] and found["preset"] == "full"
    assert found["options"]["policy"] == "full"
    assert found["model"] == "path/of/model"
    assert found["pool"] == {
        "blocks": 100, "block_size": 32, "used_share": 0.25, "running": 3, "waiting": 0
    }  # fmt: skip
    assert found["totals"]["kept_share"] == pytest.approx(0.3)
    assert found["totals"]["heads_by_policy"] == {"coverage": 180}
    assert found["totals"]["compactions"] == 0


@pytest.mark.parametrize(
    ("paused", "errored", "status"),
    [
        (False, False, 200),
        (None, False, 200),
        (None, True, 503),
        (True, False, 503),
        (RuntimeError("Server shutting down"), False, 503),
    ],
)
def test_ready_if_requests_are_computed(
    monkeypatch: pytest.MonkeyPatch, paused: Any, errored: bool, status: int
) -> None:
    monkeypatch.setattr(api_engine, "READY_SECONDS", 0.01)
    client = Client("full")
    client.paused, client.errored = paused, errored
    with serve(client, api_key=["secret"]) as server:
        answer = server.get("/fastgen/ready")
    assert answer.status_code == status
    if status == 200:
        assert answer.json() == {"ready": True}
        assert "Retry-After" not in answer.headers
    else:
        assert answer.json()["error"]["code"] == 503
        assert int(answer.headers["Retry-After"]) > 0


def test_connections_get_an_end() -> None:
    """Once the engine has stopped; a limit that somebody set stays."""
    for given, then in ((None, CLOSING_SECONDS), (77, 77)):
        app = make_app(Client("full"))
        config = SimpleNamespace(timeout_graceful_shutdown=given)
        app.state.server = SimpleNamespace(config=config)
        with TestClient(app):
            assert config.timeout_graceful_shutdown == then


def test_requests_and_heads_come_from_the_worker(server: TestClient) -> None:
    assert server.get("/fastgen/requests").json() == {"requests": [REQUEST]}
    assert server.get("/fastgen/heads").json() == HEADS


def test_off_is_told_and_nobody_is_asked(registry: CollectorRegistry) -> None:
    with serve(Client(None), served_model_name=["mine"]) as server:
        status = server.get("/fastgen/status").json()
        assert (status["active"], status["preset"], status["model"]) == (False, None, "mine")
        assert status["totals"]["kept_share"] is None
        assert server.get("/fastgen/requests").json() == {"requests": []}
        assert server.get("/fastgen/heads").json()["prompts"] == 0
        found = server.post("/fastgen/profile", json={"prompt": "The quick brown fox"}).json()
        assert "FastGen is off" in found["uncompressed_because"]


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "The quick brown fox", "arguments": {"fastgen_recovery": 0.5}},
        {"messages": [{"role": "user", "content": "The quick brown fox"}]},
    ],
)
def test_a_prompt_is_profiled(body: dict[str, Any], registry: CollectorRegistry) -> None:
    client = Client("full")
    with serve(client) as server:
        found = server.post("/fastgen/profile", json=body).json()
    ((tokens, params),) = client.generated
    assert params.max_tokens == 1 and params.extra_args == body.get("arguments", {})
    assert found["uncompressed_because"] is None
    assert found["prompt_tokens"] == len(tokens) == len(found["tokens"])
    assert "fox" in "".join(found["tokens"])
    assert found["kept_by"] == [6, 3] + [0] * (len(tokens) - 2)
    assert found["kept_share"] == pytest.approx(9 / (6 * len(tokens)))
    assert found["heads"][2][1] == {"policy": "full", "recovery": 0.5, "kept": [0]}
    assert client.expected == [], "nobody takes the plan"


@pytest.mark.parametrize(
    "content", ["Hello 🪐", [{"type": "text", "text": "Hello"}, {"type": "text", "text": "🪐"}]]
)
def test_a_chat_is_put_through_the_servers_template(
    content: Any, registry: CollectorRegistry
) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    with serve(Client("full"), chat_template=template) as server:
        body = {"messages": [{"role": "user", "content": content}]}
        found = server.post("/fastgen/profile", json=body).json()
    text = content if isinstance(content, str) else "Hello\n🪐"
    assert "".join(found["tokens"]) == f"user: {text}\nassistant:"


def test_a_client_that_hangs_up_is_not_computed_for(registry: CollectorRegistry) -> None:
    client = Client("full")
    app = make_app(client)
    body = json.dumps({"prompt": "The quick brown fox"}).encode()
    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/fastgen/profile", "headers": headers}
    sent: list[Any] = []

    async def hang_up_while_it_computes() -> None:
        client.computes = asyncio.Event()
        messages = [{"type": "http.request", "body": body}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            assert client.computes is not None
            await client.computes.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await asyncio.wait_for(app(scope | {"query_string": b""}, receive, send), 60)

    asyncio.run(hang_up_while_it_computes())
    assert len(client.generated) == 1
    assert client.expected == [], "its plan is waited for"
    assert sent[0]["status"] == 499


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({}, "give prompt or messages, one of the two"),
        (
            {"prompt": "a", "messages": [{"role": "user", "content": "b"}]},
            "give prompt or messages, one of the two",
        ),
        ({"prompt": ""}, "at least 1 character"),
        ({"messages": []}, "at least 1 item"),
        ({"messages": [{"role": "user"}]}, "content"),
        ({"messages": [{"role": "user", "content": [{"type": "sound"}]}]}, "text"),
        ({"prompt": "many words " * 4096}, "4096"),
        ({"prompt": "a", "max_tokens": 5}, "max_tokens"),
        ({"prompt": "a", "arguments": {"temperature": 1}}, "'temperature' is not one of"),
        ({"prompt": "a", "arguments": {"fastgen_recover": 1}}, "fastgen_recover=1 is not allowed"),
        ({"prompt": "a", "arguments": {"fastgen_generated": False}}, "fastgen_generated"),
        ({"prompt": "a", "arguments": {"fastgen_recovery": 2}}, "above 0 and at most 1"),
    ],
)
def test_mistakes_are_told_in_openais_shape(
    body: dict[str, Any], problem: str, server: TestClient
) -> None:
    answer = server.post("/fastgen/profile", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert problem in error["message"]
    assert error["code"] == 400 and error["type"]


@pytest.mark.parametrize("body", [b"", b"{", b"\x00", b"l\xee\x97J", b"[" * 100_000])
def test_bodies_that_are_no_json_are_told_in_openais_shape(body: bytes, server: TestClient) -> None:
    headers = {"Content-Type": "application/json"}
    answer = server.post("/fastgen/profile", content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == 400


def test_what_the_engine_refuses_is_told_and_forgotten(registry: CollectorRegistry) -> None:
    client = Client("full")
    client.fails = True
    with serve(client) as server:
        answer = server.post("/fastgen/profile", json={"prompt": "The quick brown fox"})
    assert answer.status_code == 400
    assert "at most 16 tokens" in answer.json()["error"]["message"]
    assert client.expected == []


@pytest.mark.parametrize("path", ["requests", "heads"])
def test_an_engine_that_stops_leaves_nobody_waiting(path: str, registry: CollectorRegistry) -> None:
    client = Client("full")
    client.stops = True
    with serve(client) as server:
        answer = server.get(f"/fastgen/{path}")
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == "the engine has stopped"


def test_short_prompts_and_off_are_explained(registry: CollectorRegistry) -> None:
    client = Client("balanced")
    with serve(client) as server:
        short = server.post("/fastgen/profile", json={"prompt": "Hello"}).json()
        body = {"prompt": "Hello " * 600, "arguments": {"fastgen": "off"}}
        off = server.post("/fastgen/profile", json=body).json()
    assert "fewer than 512 tokens" in short["uncompressed_because"]
    assert off["uncompressed_because"] == 'the argument fastgen="off" says so'
    assert (short["kept_share"], short["kept_by"], short["heads"]) == (1.0, [], [])
    assert client.generated == []


def test_data_need_the_api_key_and_the_page_does_not(registry: CollectorRegistry) -> None:
    with serve(Client("full"), api_key=["secret"]) as server:
        for path in ("status", "requests", "heads"):
            answer = server.get(f"/fastgen/{path}")
            assert answer.status_code == 401
            assert "Authorization: Bearer" in answer.json()["error"]["message"]
            good = {"Authorization": "Bearer secret"}
            assert server.get(f"/fastgen/{path}", headers=good).status_code == 200
        assert server.post("/fastgen/profile", json={"prompt": "a"}).status_code == 401
        page = server.get("/fastgen/")
    assert page.status_code == 200 and "<title>FastGen</title>" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_the_page_fetches_nothing_from_elsewhere(server: TestClient) -> None:
    text = server.get("/fastgen/").text
    assert "http:" not in text and "https:" not in text and "//" not in text.replace("/**", "")


def test_all_is_typed(server: TestClient) -> None:
    schema = server.get("/openapi.json").json()
    paths = [path for path in schema["paths"] if path.startswith("/fastgen")]
    assert sorted(paths) == [
        f"/fastgen/{n}" for n in ("heads", "profile", "ready", "requests", "status")
    ]
    for path in paths:
        for operation in schema["paths"][path].values():
            content = operation["responses"]["200"]["content"]["application/json"]
            assert "$ref" in content["schema"]
            # A probe has no key, and is told by the status.
            assert ("503" if path.endswith("/ready") else "401") in operation["responses"]


def test_names_of_the_schema_are_not_those_of_vllm(server: TestClient) -> None:
    """FastAPI would rename both, and stock's schema would not be in ours."""
    from vllm.entrypoints.serve.engine import protocol

    names = server.get("/openapi.json").json()["components"]["schemas"]
    assert not {name for name in names if "__" in name or hasattr(protocol, name)}


def test_our_endpoints_are_allowed_beside_all_other_plugins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(plugin.VARIABLE, "")  # so that it is put back
    monkeypatch.delenv(plugin.VARIABLE)
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[vllm.general_plugins]\ntheirs = other:register\n"
        "[vllm.endpoint_plugins]\nroutes = other:Routes\n"
        "[console_scripts]\nother = other:main\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    plugin.allow_endpoints()
    names = os.environ[plugin.VARIABLE].split(",")
    assert {"fastgen", "theirs"} <= set(names)
    assert not {"routes", "other"} & set(names)


def test_a_choice_of_plugins_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugin.VARIABLE, "theirs")
    plugin.allow_endpoints()
    assert os.environ[plugin.VARIABLE] == "theirs"
