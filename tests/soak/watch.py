"""What is seen of a server from outside: its metrics, and the memory of its processes."""

import asyncio
from collections import Counter
from typing import NamedTuple

import psutil
from prometheus_client.parser import text_string_to_metric_families

from fastgen_vllm.api.counters import Counters
from tests.soak.client import Client

MIB = 2**20
IDLE_SECONDS = 120.0
POLL_SECONDS = 1.0


class Metrics(NamedTuple):
    """Of `/metrics`: what is now, and what was counted since the start."""

    running: int
    waiting: int
    used: float
    finished: int
    failed: int
    preemptions: int
    compactions: int

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do and nothing is kept."""
        return (self.running, self.waiting, self.used) == (0, 0, 0)


async def metrics(client: Client) -> Metrics:
    """Ask for them.

    Raises:
        Lost: no answer, or an error.
    """
    text = (await client.get("/metrics")).text
    found = Counters(text_string_to_metric_families(text))
    by_reason = found.by_label("vllm:request_success_total", "finished_reason")
    by_status = found.by_label("http_requests_total", "status")
    return Metrics(
        running=int(found.total("vllm:num_requests_running")),
        waiting=int(found.total("vllm:num_requests_waiting")),
        used=found.largest("vllm:kv_cache_usage_perc"),
        finished=sum(by_reason.values()),
        failed=by_reason.get("error", 0) + by_status.get("5xx", 0),
        preemptions=int(found.total("vllm:num_preemptions_total")),
        compactions=int(found.total("fastgen_compactions_total")),
    )


async def wait_until_idle(client: Client) -> Metrics:
    """The metrics of a server that is idle, or that is not though it had the time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + IDLE_SECONDS
    before = now = await metrics(client)
    # Twice: a client that hung up may not have been noticed the first time.
    while not (before.idle and now.idle and before.finished == now.finished):
        if loop.time() > deadline:
            break
        await asyncio.sleep(POLL_SECONDS)
        before, now = now, await metrics(client)
    return now


class Peak:
    """The most that ran and waited at a time, while the context is open."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.running = self.waiting = 0

    async def __aenter__(self) -> "Peak":
        self._task = asyncio.create_task(self._poll())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _poll(self) -> None:
        while True:
            seen = await metrics(self._client)
            self.running = max(self.running, seen.running)
            self.waiting = max(self.waiting, seen.waiting)
            await asyncio.sleep(POLL_SECONDS)


def memory() -> dict[str, float]:
    """MiB of what this process started, by name of process; pages in common are shared out."""
    sizes: Counter[str] = Counter()
    for process in psutil.Process().children(recursive=True):
        try:
            sizes[process.name()] += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return {name: size / MIB for name, size in sizes.items()}
