"""The soak: rounds of load, after each of which an idle server is looked at."""

import asyncio
import time
from collections.abc import Callable, Iterator

from tests.soak.client import Client, Lost
from tests.soak.controls import Controls
from tests.soak.growth import Growth
from tests.soak.requests import Request
from tests.soak.tally import Fault, Tally, kinds
from tests.soak.traffic import Load
from tests.soak.watch import Metrics, Peak, memory, metrics, wait_until_idle

#: Requests at a time: more than fit.
CLIENTS = 24
#: Of load in a round. Its last answers, and the checks, take up to a minute.
LOAD_SECONDS = 45.0


class Soak:
    """One run.

    Args:
        client: of the server.
        load: what to ask.
        say: what to do with a line.
    """

    def __init__(self, client: Client, load: Load, say: Callable[[str], None]) -> None:
        self._client = client
        self._requests: Iterator[Request] = load.requests()
        self._fastgen = load.fastgen
        self._say = say
        self._controls = Controls()
        self._began = time.monotonic()
        self._minutes: list[float] = []
        self._memory: list[dict[str, float]] = []
        self._preempted = self._compacted = 0
        self.faults: list[Fault] = []
        self.answered = 0

    async def run(self, minutes: float) -> None:
        """Go on for so long, at least for a round, or until the server is gone."""
        try:
            await self._look()
            await self._round()
            while self._minute() < minutes:
                await self._round()
        except Lost as lost:
            self._fault("server", f"gone: {lost}")
        self._judge()

    def _minute(self) -> float:
        return (time.monotonic() - self._began) / 60

    def _fault(self, kind: str, what: str) -> None:
        self.faults.append(Fault(self._minute(), kind, what))

    async def _round(self) -> None:
        known, tally = len(self.faults), Tally()
        before = await metrics(self._client)
        async with Peak(self._client) as peak:
            until = time.monotonic() + LOAD_SECONDS
            await asyncio.gather(*(self._ask_until(until, tally) for _ in range(CLIENTS)))
        self.faults += tally.faults
        self.answered += tally.answered
        now = await wait_until_idle(self._client)
        self._compare(before, now, tally)
        await self._look()
        preempted = now.preemptions - before.preemptions
        compacted = now.compactions - before.compactions
        self._preempted += preempted
        self._compacted += compacted
        self._say(
            f"{self._minutes[-1]:5.1f} min: {tally.answered} answered, {tally.hung_up} hung up, "
            f"at most {peak.running} running and {peak.waiting} waiting, {preempted} preempted, "
            f"{compacted} compacted; {sum(self._memory[-1].values()):,.0f} MiB; "
            f"faults: {kinds(self.faults[known:])}"
        )

    async def _ask_until(self, until: float, tally: Tally) -> None:
        while True:
            request = next(self._requests)
            try:
                tally.count(request, await self._client.ask(request), self._minute())
            except Lost as lost:
                tally.fault(request, str(lost), self._minute())
                return
            if time.monotonic() > until:
                return

    def _compare(self, before: Metrics, now: Metrics, tally: Tally) -> None:
        """What the idle server says of the round, with what clients saw of it."""
        if not now.idle:
            self._fault("not idle", str(now))
        if now.failed > before.failed:
            self._fault("counted as failed", f"{now.failed - before.failed} requests")
        counted = now.finished - before.finished
        if not tally.finished <= counted <= tally.finished + tally.uncertain:
            legal = f"from {tally.finished} to {tally.finished + tally.uncertain}"
            self._fault("counted", f"{counted} requests, clients saw {legal}")

    async def _look(self) -> None:
        """Ask what must be as it was at first, and read memory."""
        running = (await self._client.get("/fastgen/requests")).json()["requests"]
        if running:
            self._fault("listed", f"/fastgen/requests of an idle server: {running}")
        for request, wrong in await self._controls.faults(self._client):
            self._fault(f"control {request.kind}", wrong)
        self._minutes.append(self._minute())
        self._memory.append(memory())

    def _judge(self) -> None:
        """What only the whole run shows."""
        if not self._preempted or (self._fastgen and not self._compacted):
            did = f"{self._preempted} preempted, {self._compacted} compacted"
            self._fault("no soak", f"the load was too light for this pool: {did}")
        if not any(self._memory):
            self._say("memory: not watched, the server is not ours")
            return
        for name in sorted(set().union(*self._memory)):
            sizes = [reading.get(name, 0.0) for reading in self._memory]
            self._say(f"memory: {name}: {Growth.of(self._minutes, sizes)}")
        growth = Growth.of(self._minutes, [sum(reading.values()) for reading in self._memory])
        self._say(f"memory: {growth}")
        if (wrong := growth.fault()) is not None:
            self._fault("memory", wrong)
