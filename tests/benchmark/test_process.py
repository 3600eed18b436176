"""Processes that are stopped with what they started, and what is told of their end."""

import sys
import time

import pytest
from pydantic import BaseModel

from fastgen_vllm.benchmark.process import (
    MeasurementFailed,
    Process,
    in_process_environment,
    readable,
    run_worker,
)

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def wait_for_line(process: Process) -> str:
    deadline = time.monotonic() + 60
    while not process.log().endswith("\n"):
        assert time.monotonic() < deadline, process.log()
        time.sleep(0.02)
    return process.log().strip()


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_an_error_stops_a_process_and_its_children() -> None:
    with pytest.raises(KeyboardInterrupt), Process([sys.executable, "-c", PARENT], {}) as process:
        child = int(wait_for_line(process))
        assert is_running(child)
        raise KeyboardInterrupt
    assert process.poll() is not None
    deadline = time.monotonic() + 10
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(child)


def test_the_environment_is_ours_with_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "1")
    monkeypatch.setenv("LEFT_OUT", "1")
    code = "import os; print(*(os.environ.get(n) for n in ('KEPT', 'LEFT_OUT', 'NEW', 'EMPTY')))"
    new = {"NEW": "2", "EMPTY": ""}
    with Process([sys.executable, "-c", code], new, ["LEFT_OUT"]) as process:
        assert process.wait() == 0
        assert process.log() == "1 None 2 \n"


def test_the_end_of_a_log_is_told_without_tracebacks() -> None:
    log = """\
INFO 11-23 07:00:00 [core.py:1] starting
Loading:  10%|#   | 1/10 [00:00<00:01,  9.5it/s]\rLoading: 100%|####| 10/10
(EngineCore pid=77) ERROR 11-23 07:00:01 [core.py:9] Traceback (most recent call last):
(EngineCore pid=77) ERROR 11-23 07:00:01 [core.py:9]   File "core.py", line 9, in run
(EngineCore pid=77) ERROR 11-23 07:00:01 [core.py:9] ValueError: no room
Traceback (most recent call last):
  File "server.py", line 1, in <module>
RuntimeError: Engine core initialization failed.
"""
    assert readable(log) == [
        "starting",
        "ValueError: no room",
        "RuntimeError: Engine core initialization failed.",
    ]


def test_a_worker_that_fails_tells_why_in_a_line() -> None:
    """These settings are none: the worker's own check speaks."""

    class Nothing(BaseModel):
        pass

    with pytest.raises(MeasurementFailed) as caught:
        run_worker("batch", Nothing(), in_process_environment(1))
    (line,) = str(caught.value).splitlines()
    assert line.startswith("  ValidationError: ") and "engine" in line
    assert "Traceback" not in line


def test_threads_reach_the_engine_in_a_worker() -> None:
    environment = in_process_environment(3)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_all_sides_have_one_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_USE_AOT_COMPILE", raising=False)
    assert in_process_environment(1)["VLLM_USE_AOT_COMPILE"] == "0"
    monkeypatch.setenv("VLLM_USE_AOT_COMPILE", "1")
    assert in_process_environment(1)["VLLM_USE_AOT_COMPILE"] == "1"
