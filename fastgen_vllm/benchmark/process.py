"""Processes that measure: started in a session of their own, stopped with all they started."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from pydantic import BaseModel

from fastgen_vllm.benchmark.results import SAMPLES, Sample

_STOP_SECONDS = 30
_LAST_LINES = 6
#: What vLLM's logging puts before a message.
_PREFIX = re.compile(r"^(\([\w\s]+(pid=\d+)?\)\s*)?((DEBUG|INFO|WARNING|ERROR)\s.*?\[[^\]]*\]\s?)?")

_NOISE = re.compile(r"^\s|^Traceback |^During handling|^The above exception|^$|/s\]|/it\]|%\|")


class MeasurementFailed(Exception):
    """A side could not be measured; the message is for people."""


class Process:
    """A running command; leaving the context stops it and all that it started.

    It gets no Ctrl-C from the terminal: the command line does, and stops it.

    Args:
        command: the program and its arguments.
        environment: variables to add to ours; an empty value is set too.
        without: variables of ours that it does not get.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], without: Sequence[str] = ()
    ) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 closed with the process
        inherited = {name: value for name, value in os.environ.items() if name not in without}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**inherited, **environment},
            start_new_session=True,
        )

    def __enter__(self) -> "Process":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self._log.close()

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Wait for its end and return the exit code."""
        return self._process.wait()

    def stop(self) -> None:
        """Stop it and what it started: by SIGTERM, what does not obey by SIGKILL."""
        if self.poll() is None:
            self._signal(signal.SIGTERM, self._process.pid)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
        with suppress(ProcessLookupError):  # the usual case: the group has ended
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def log(self) -> str:
        """Everything it has written so far."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode("utf-8", "replace")

    def last_lines(self) -> str:
        """The end of what it has written, without tracebacks and progress bars."""
        return "\n".join(f"  {line}" for line in readable(self.log())[-_LAST_LINES:])

    @staticmethod
    def _signal(number: signal.Signals, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def readable(log: str) -> list[str]:
    """The lines of a log that tell people something: no tracebacks, prefixes and repetitions."""
    lines = [_PREFIX.sub("", line, count=1) for line in re.split(r"[\r\n]+", log)]
    return list(dict.fromkeys(line.rstrip() for line in lines if not _NOISE.search(line)))


def run_worker(name: str, settings: BaseModel, environment: Mapping[str, str]) -> list[Sample]:
    """Run a worker of :mod:`fastgen_vllm.benchmark.worker` and return its samples.

    Raises:
        MeasurementFailed: it ended with an error; the message holds its last lines.
    """
    with tempfile.TemporaryDirectory(prefix="fastgen-benchmark-") as directory:
        result = Path(directory) / "result.json"
        command = [sys.executable, "-m", "fastgen_vllm.benchmark.worker", name]
        command += [settings.model_dump_json(), str(result)]
        with Process(command, environment) as process:
            if process.wait() != 0 or not result.exists():
                raise MeasurementFailed(process.last_lines())
        return SAMPLES.validate_json(result.read_bytes())


def in_process_environment(threads: int) -> dict[str, str]:
    """Variables of a worker that runs an engine in its own process, on ``threads`` threads.

    vLLM binds threads only in workers of its own; here OpenMP's number is PyTorch's and that of
    both sides' kernels.
    """
    return {
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        **compiler_environment(),
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }


def compiler_environment() -> dict[str, str]:
    """Variables that give every side the compiler that FastGen's has on a CPU (`keep_compiled`)."""
    return {"VLLM_USE_AOT_COMPILE": os.environ.get("VLLM_USE_AOT_COMPILE", "0")}


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a run as Ctrl-C does, so that no engine is left behind."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as under nohup
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
