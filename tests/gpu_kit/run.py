"""Processes side by side, each with its time; their output goes to one log as it comes."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from tests.gpu_kit.results import Ran
from tests.gpu_kit.steps import Step

#: Steps share the cores of the host, which only compares.
ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


class Log:
    """A file of lines, each with the name of its step."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w")
        self._lock = threading.Lock()

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, step: str, line: str) -> None:
        """Add a line, to the file at once."""
        with self._lock:
            print(f"[{step}] {line}", file=self._file, flush=True)


class _Running:
    """A step's process, in a group of its own, which ends with it."""

    def __init__(self, step: Step, log: Log, end: float, dry: bool) -> None:
        self.step = step
        self.lines: list[str] = []
        self._begun = self._last = time.monotonic()
        self._end = min(end, self._begun + step.limit)
        self._process = subprocess.Popen(
            step.command(sys.executable, dry),
            env={**os.environ, **ENVIRONMENT, **step.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(log,), daemon=True)
        self._reader.start()

    def _read(self, log: Log) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))
            log.write(self.step.name, self.lines[-1])
        self._last = time.monotonic()

    def wait(self) -> Ran:
        """Wait for its end, or bring it about."""
        try:
            code = self._process.wait(max(self._end - time.monotonic(), 0))
            end = "passed" if code == 0 else "failed"
        except subprocess.TimeoutExpired:
            end = "out of time"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # what it left behind, too
        self._process.wait()
        self._reader.join(5)
        return Ran(step=self.step.name, seconds=self._last - self._begun, end=end)


def run_stage(
    steps: Sequence[Step], log: Log, end: float, *, dry: bool
) -> Iterator[tuple[Ran, Sequence[str]]]:
    """Run steps at once; yield how each ended, and what it printed.

    Args:
        end: of all time, by ``time.monotonic``: no step goes on after it.
    """
    running = []
    for step in steps:
        tool = "" if dry or not step.under else step.under[0]
        if time.monotonic() >= end:
            yield Ran(step=step.name, seconds=0, end="not begun"), ()
        elif tool and shutil.which(tool) is None:
            yield Ran(step=step.name, seconds=0, end=f"no {tool}"), ()
        else:
            running.append(_Running(step, log, end, dry))
    for each in running:
        ran = each.wait()
        print(f"{ran.seconds:4.0f} s  {ran.step}: {ran.end}", flush=True)
        yield ran, each.lines
