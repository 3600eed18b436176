"""A real server, spoken to over HTTP with the `openai` client."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

MODEL = "smollm2-135m-instruct"
START_SECONDS = 300
LONG = "The quick brown fox jumps over the lazy dog, again and again. " * 40


class Server:
    """A `fastgen-vllm serve` process."""

    def __init__(self, log: Path, *flags: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = log
        command = [sys.executable, "-m", "fastgen_vllm", "serve", "--port", str(self.port), *flags]
        environment = {**os.environ, "VLLM_LOGGING_LEVEL": "INFO"}
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment
            )

    def wait(self) -> None:
        """Return when the server answers; fail with its log if it ends before."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5)
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        pytest.fail(f"no answer in {START_SECONDS} s:\n{self.log.read_text()}")

    def stop(self) -> None:
        """Stop the server by its pid."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def metrics(self) -> dict[str, float]:
        """Return our metrics, by name and labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as response:
            lines = response.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("fastgen_"))
        return {name: float(value) for name, value in pairs}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, default_model: Path) -> Iterator[Server]:
    flags = ("--enforce-eager", "--max-model-len", "2048", "--kv-cache-memory-bytes", "134217728")
    server = Server(tmp_path_factory.mktemp("server") / "log", *flags)
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none")


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
    assert re.search(r"preset balanced, policy \w+, (recovery|keep) [\d.]+, observed queries", line)
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
    ],
)
def test_per_request_options(client: openai.OpenAI, extra: dict[str, object]) -> None:
    assert chat(client, **extra)


@pytest.mark.parametrize(
    ("extra", "parameter"),
    [
        ({"fastgen": "sometimes"}, "fastgen"),
        ({"fastgen_recovery": 1.5}, "fastgen_recovery"),
        ({"fastgen_keep": 0}, "fastgen_keep"),
        ({"fastgen_keep": 0.3, "fastgen_recovery": 0.9}, "fastgen_keep"),
        ({"fastgen_generated": "drop"}, "fastgen_generated"),
        ({"fastgen_policy": "best"}, "fastgen_policy"),
        ({"fastgen_window": 3}, "fastgen_window"),
    ],
)
def test_bad_option_is_a_400(
    client: openai.OpenAI, extra: dict[str, object], parameter: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, **extra)
    assert caught.value.status_code == 400
    assert caught.value.param == parameter
    assert parameter in caught.value.message
    assert chat(client, "Hello")


def test_metrics(server: Server, client: openai.OpenAI) -> None:
    before = server.metrics()
    chat(client)
    chat(client, fastgen="off")
    deadline = time.monotonic() + 30
    names = {
        "compacted": 'fastgen_compactions_total{engine="0"}',
        "blocks": 'fastgen_blocks_given_back_total{engine="0"}',
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


def test_a_client_that_goes_away_harms_nobody(server: Server, client: openai.OpenAI) -> None:
    for _ in range(3):
        stream = client.completions.create(model=MODEL, prompt=LONG, max_tokens=900, stream=True)
        next(iter(stream))
        stream.close()
    assert chat(client)
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/health") as response:
        assert response.status == 200
