"""What is refused before vLLM is imported."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastgen_vllm.server import preflight

#: of the whole command, on a machine that does other things too
MOST_SECONDS = 5.0


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def test_a_taken_port(taken_port: int) -> None:
    problem = f"--port {taken_port}: something listens on 127.0.0.1:{taken_port}"
    for arguments in (["--port", str(taken_port)], ["some/model", f"--port={taken_port}"]):
        with pytest.raises(ValueError, match=problem):
            preflight.check(arguments)


def test_a_taken_port_in_a_config_file(taken_port: int, free_port: int, tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(f"port: {taken_port}\nmodel: some/model\n")
    with pytest.raises(ValueError, match=f"--port {taken_port}"):
        preflight.check(["--config", str(file)])
    preflight.check(["--config", str(file), "--port", str(free_port)])


def test_a_server_without_http_needs_no_port(taken_port: int) -> None:
    preflight.check(["some/model", "--headless", "--port", str(taken_port)])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--host", "192.0.2.1"], "--host 192.0.2.1 --port .*: Cannot assign"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
        (["--port", "70000"], "--port 70000: give a port from 1 to 65535"),
        (["--config", "none.yaml"], "--config none.yaml: No such file"),
    ],
)
def test_addresses_that_cannot_be(arguments: list[str], problem: str, free_port: int) -> None:
    with pytest.raises(ValueError, match=problem):
        preflight.check(["some/model", "--port", str(free_port), *arguments])


def test_sockets(tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    preflight.check(["some/model", "--uds", str(path)])
    assert not path.exists(), "it was only tried"
    for where, problem in (
        (tmp_path / "no" / "server.sock", "No such file or directory"),
        (tmp_path / ("long" * 40), "path too long"),
    ):
        with pytest.raises(ValueError, match=problem):
            preflight.check(["some/model", "--uds", str(where)])
    path.write_text("something")
    with pytest.raises(ValueError, match="it exists"):
        preflight.check(["some/model", "--uds", str(path)])
    assert path.read_text() == "something"


def test_mistakes_are_left_to_vllms_parser(taken_port: int) -> None:
    for arguments in (["--port"], ["--port", "http"], ["--headless=3"]):
        preflight.check(["some/model", *arguments])


@pytest.mark.parametrize("arguments", [[], ["--max-model-len", "1k"], ["--enforce-eager"]])
def test_a_default_model_without_a_place(
    arguments: list[str], free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    with pytest.raises(OSError, match=f"into {file}/fastgen_vllm: Not a directory"):
        preflight.check(["--port", str(free_port), *arguments])


@pytest.mark.parametrize("model", [["org/model"], ["--model", "m"], ["--enforce-eager", "m"]])
def test_another_model_needs_no_place(
    model: list[str], free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    preflight.check(["--port", str(free_port), *model])
    assert not (tmp_path / "none").exists()


def test_the_command_ends_at_once_in_one_line(taken_port: int) -> None:
    command = [sys.executable, "-m", "fastgen_vllm", "serve", "--port", str(taken_port)]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert time.monotonic() - start < MOST_SECONDS
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"fastgen-vllm: error: --port {taken_port}: something listens")
