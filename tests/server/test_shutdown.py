"""A server that is told to stop while it answers."""

import json
import signal
import threading
import urllib.error
from pathlib import Path

import httpx
import openai
import pytest

from tests.server.running import FLAGS, served
from tests.server.test_http import MODEL

STREAMS, TOKENS = 8, 150


def test_running_streams_finish(tmp_path: Path, default_model: Path) -> None:
    with served(tmp_path / "log", *FLAGS) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        begun = threading.Barrier(STREAMS + 1)
        finished: list[int] = []

        def stream(number: int) -> None:
            chunks = client.completions.create(
                model=MODEL,
                prompt=f"{number}. The quick brown fox",
                max_tokens=TOKENS,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
            pieces = iter(chunks)
            next(pieces)
            begun.wait(120)
            for chunk in pieces:
                usage = chunk.usage
            finished.append(0 if usage is None else usage.completion_tokens)

        threads = [threading.Thread(target=stream, args=(n,)) for n in range(STREAMS)]
        for thread in threads:
            thread.start()
        begun.wait(120)
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(120)
        assert finished == [TOKENS] * STREAMS, server.log.read_text()
        assert server.process.wait(60) == 0, server.log.read_text()


def test_an_end_that_is_too_short_is_an_end(tmp_path: Path, default_model: Path) -> None:
    """A full server and one that drains take no request; streams that hang on do not keep it."""
    limits = ("--shutdown-timeout", "3", "--max-num-queued-reqs", "1")
    with served(tmp_path / "log", *FLAGS, *limits) as server:
        assert server.ask("ready") == {"ready": True}
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        stream = client.completions.create(
            model=MODEL, prompt="1", max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
        )
        pieces = iter(stream)
        next(pieces)
        with pytest.raises(openai.InternalServerError, match="try again later") as full:
            client.completions.create(model=MODEL, prompt="2", max_tokens=1)
        assert full.value.status_code == 503
        assert int(full.value.response.headers["Retry-After"]) > 0
        server.process.send_signal(signal.SIGTERM)
        while "shutdown triggered" not in server.log.read_text():
            next(pieces)
        with pytest.raises(urllib.error.HTTPError) as refused:
            while True:  # the engine learns of it a moment later
                server.ask("ready")
        assert refused.value.code == 503 and refused.value.headers["Retry-After"]
        assert "shutting down" in json.load(refused.value)["error"]["message"]
        with pytest.raises((openai.APIError, httpx.TransportError)):
            for _ in pieces:
                pass
        assert server.process.wait(60) == 0, server.log.read_text()


def test_a_server_that_is_asked_while_it_stops_stops(tmp_path: Path, default_model: Path) -> None:
    """Calls of the engine are answered, if by an error, when it has gone."""
    with served(tmp_path / "log", *FLAGS) as server:
        begun = threading.Event()

        def ask_on() -> None:
            while True:
                try:
                    server.ask("profile", {"prompt": "The quick brown fox " * 150})
                    server.ask("requests")
                    begun.set()
                except (urllib.error.URLError, OSError):
                    return

        threads = [threading.Thread(target=ask_on) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert begun.wait(120)
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(120)
        assert server.process.wait(60) == 0, server.log.read_text()
