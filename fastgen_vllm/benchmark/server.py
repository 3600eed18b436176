"""A server to put load on, and what its ``/metrics`` say meanwhile."""

import json
import re
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from fastgen_vllm.benchmark.engines import Engine
from fastgen_vllm.benchmark.process import MeasurementFailed, Process
from fastgen_vllm.benchmark.results import Timeline

HOST = "127.0.0.1"
_START_SECONDS = 900
_POLL_SECONDS = 0.5
_PREEMPTIONS = "vllm:num_preemptions_total"
_RUNNING = "vllm:num_requests_running"
_KEPT_SUM, _KEPT_COUNT = "fastgen_kept_share_sum", "fastgen_kept_share_count"
_PROFILING = "fastgen_profiling_seconds_total"
_COMPACTION = "fastgen_compaction_seconds_total"


class Server:
    """One side's server in a process of its own; leaving the context stops it.

    Args:
        engine: whose server. That of `bare` is vLLM's own.
        model: directory or hub name.
        port: to listen on.
        flags: vLLM's, the same for every side.
        environment: variables, the same for every side.
    """

    def __init__(
        self,
        engine: Engine,
        model: str,
        port: int,
        flags: Sequence[str],
        environment: Mapping[str, str],
    ) -> None:
        if engine.plugin:
            command = ["fastgen_vllm", "serve", model, "--fastgen", engine.fastgen or "off"]
            if engine.changes:
                command += ["--additional-config", json.dumps(engine.changes)]
        else:
            command = ["vllm.entrypoints.openai.api_server", "--model", model]
        command = [sys.executable, "-m", *command, "--host", HOST, "--port", str(port), *flags]
        # vLLM sets the number of threads by its binding, and leaves one that is set alone.
        without = ("OMP_NUM_THREADS", "VLLM_ENABLE_V1_MULTIPROCESSING")
        self._url = f"http://{HOST}:{port}"
        self._process = Process(command, {**environment, **engine.environment}, without)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.__exit__(None, None, None)

    def wait(self) -> None:
        """Return when the server answers.

        Raises:
            MeasurementFailed: it ended before, or does not answer in time.
        """
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise MeasurementFailed(self._process.last_lines())
            with suppress(urllib.error.URLError, OSError):
                self._get("/health")
                return
            time.sleep(_POLL_SECONDS)
        raise MeasurementFailed(f"  no answer in {_START_SECONDS} s\n{self._process.last_lines()}")

    def last_lines(self) -> str:
        """The end of its log."""
        return self._process.last_lines()

    @property
    def threads(self) -> int | None:
        """Threads that the worker computes with, as it logged; None if it did not."""
        found = re.search(r"local_rank=0, core ids=\[([^\]]*)\]", self._process.log())
        return None if found is None else len(found[1].split(","))

    def counters(self) -> "Counters":
        """What the server has counted."""
        return Counters.parse(self._get("/metrics"))

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(self._url + path, timeout=10) as response:
            text: str = response.read().decode()
        return text


class Counters(NamedTuple):
    """The metrics that matter here; those of FastGen are 0 without it."""

    running: float
    preemptions: float
    kept_sum: float
    kept_count: float
    profiling_seconds: float
    compaction_seconds: float

    @classmethod
    def parse(cls, text: str) -> "Counters":
        """Read the text of ``/metrics``."""
        names = (_RUNNING, _PREEMPTIONS, _KEPT_SUM, _KEPT_COUNT, _PROFILING, _COMPACTION)
        totals = dict.fromkeys(names, 0.0)
        for line in text.splitlines():
            name = re.split(r"[{\s]", line, maxsplit=1)[0]
            if name in totals:
                totals[name] += float(line.rsplit(" ", 1)[1])
        return cls(*totals.values())


class Watch:
    """Asks a server again and again how many requests are running, while a load is on it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self.seconds: list[float] = []
        self.running: list[int] = []

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def busy(self) -> Timeline:
        """From the first answer in which requests ran to the last."""
        seen = [index for index, running in enumerate(self.running) if running]
        if not seen:
            return Timeline(seconds=[], running=[])
        span = slice(seen[0], seen[-1] + 1)
        start = self.seconds[seen[0]]
        return Timeline(
            seconds=[round(moment - start, 3) for moment in self.seconds[span]],
            running=self.running[span],
        )

    def _poll(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            with suppress(urllib.error.URLError, OSError):
                running = self._server.counters().running
                self.seconds.append(time.perf_counter())
                self.running.append(int(running))
