"""Faults that only a server shows: a seeded prompt in chunks over HTTP, and a worker that dies."""

import urllib.error
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from tests.server.running import FLAGS, served
from tests.server.test_http import MODEL

CHUNK = 256
PROMPT = "The ferryman left forty brass keys behind the weir. " * 60


def test_seeds_in_chunks_then_a_worker_that_dies(tmp_path: Path, default_model: Path) -> None:
    """On one server: the second fault ends it."""
    chunks = ("--max-num-batched-tokens", str(CHUNK), "--max-num-seqs", "16")
    with served(tmp_path / "log", *FLAGS, *chunks) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)

        # vLLM's CPU engine ends with "CPU Generator does not use offset".
        answers = [
            client.completions.create(
                model=MODEL, prompt=PROMPT, max_tokens=12, temperature=1.0, seed=seed
            )
            for seed in (7, 7, 8)
        ]
        usage = answers[0].usage
        assert usage is not None and usage.prompt_tokens > 2 * CHUNK
        first, again, other = (answer.choices[0].text for answer in answers)
        assert first == again != other

        stream = client.completions.create(
            model=MODEL, prompt="1", max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
        )
        pieces = iter(stream)
        next(pieces)
        *_, worker = psutil.Process(server.process.pid).children(recursive=True)
        worker.kill()
        with pytest.raises((openai.APIError, httpx.TransportError)):
            for _ in pieces:
                pass
        server.process.wait(60)  # by itself
        with pytest.raises((urllib.error.URLError, OSError)):
            server.ask("ready")
