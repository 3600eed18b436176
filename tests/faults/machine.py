"""Faults in any order, in a pool that is too small: hypothesis looks for the order that hurts."""

from pathlib import Path
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tests.faults.faults import bad_arguments, preempt, sleep
from tests.faults.requests import KINDS, Moody, Served, stock_answers

#: Requests at once.
MOST = 7


class Engines:
    """One engine for all runs of the machine: each run leaves it idle."""

    served: ClassVar[Served | None] = None
    answers: ClassVar[dict[int, list[int]]] = {}
    is_async: ClassVar[bool] = False

    @classmethod
    def start(cls, model: Path, *, is_async: bool) -> None:
        """Start the engine, once stock has answered."""
        if not cls.answers:
            cls.answers = stock_answers(model)
        cls.served = Served(model, is_async=is_async, blocks=48)
        cls.is_async = is_async

    @classmethod
    def stop(cls) -> None:
        """Give back its memory."""
        if cls.served is not None:
            cls.served.close()
        cls.served = None


class Faults(RuleBasedStateMachine):
    """Arrivals, steps and faults; lossless requests answer as in stock, and nothing leaks."""

    def __init__(self) -> None:
        super().__init__()
        assert Engines.served is not None
        self.served = Engines.served
        self.kinds: dict[str, int] = {}
        self._unknown: set[str] = set()  # requests that answer other tokens, in stock too

    @precondition(lambda self: len(self.served.alive) < MOST)
    @rule(number=st.integers(0, len(KINDS) - 1), priority=st.integers(0, 2))
    def arrive(self, number: int, priority: int) -> None:
        self.kinds[self.served.add(KINDS[number], priority)] = number

    @rule(count=st.integers(1, 12))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.served.step()

    @precondition(lambda self: self.served.alive)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.served.alive)))
        if self.served.request(request_id) is not None:
            self.served.abort(request_id)
            del self.kinds[request_id]

    @precondition(lambda self: self.served.alive)
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.served.alive)))
        if self.served.request(request_id) is not None:
            preempt(self.served, request_id)

    @rule(running=st.booleans())
    def reset(self, running: bool) -> None:
        self.served.engine.core.reset_prefix_cache(reset_running_requests=running)
        self.served.engine.check()
        if running:
            self._lose_draws()

    @rule(clear=st.booleans(), steps=st.integers(0, 3))
    def pause(self, clear: bool, steps: int) -> None:
        core = self.served.engine.core
        core.pause_scheduler(mode="keep", clear_cache=clear)
        for _ in range(steps):
            self.served.step()
        core.resume_scheduler()
        if clear:
            self._lose_draws()

    @rule()
    def sleep(self) -> None:
        sleep(self.served, "")
        self._lose_draws()

    @rule(is_bad=st.booleans())
    def mood(self, is_bad: bool) -> None:
        Moody.is_bad = is_bad

    @rule()
    def bad_arguments(self) -> None:
        bad_arguments(self.served, "")

    def _lose_draws(self) -> None:
        """Expect nothing of seeded requests whose tokens in flight were dropped.

        With async scheduling, and then in stock vLLM too, their generators are not set back.
        """
        if Engines.is_async:
            for request_id in self.served.alive:
                if "seed" in KINDS[self.kinds[request_id]].params:
                    self._unknown.add(request_id)

    def teardown(self) -> None:
        """Whoever is left answers; then everything is as it was before the first request."""
        Moody.is_bad = False
        self.served.drain()
        for request_id, number in self.kinds.items():
            if KINDS[number].is_lossless and request_id not in self._unknown:
                assert self.served.answer(request_id) == Engines.answers[number], KINDS[number]
