"""What a self-check found: one JSON document."""

from typing import Any

from pydantic import BaseModel


class OpCheck(BaseModel):
    """One op against its reference, over all cases of a dtype."""

    op: str
    dtype: str
    cases: int
    worst_error: float  # norm of the difference over the norm of the reference; 0: equal bits
    allowed_error: float

    @property
    def passed(self) -> bool:
        """Whether the op is right."""
        return self.worst_error <= self.allowed_error  # false for NaN


class Timing(BaseModel):
    """One kernel on one shape."""

    kernel: str
    shape: str
    microseconds: float
    gigabytes: float  # per second
    of_read: float  # share of the rate at which the device reads memory in the same run
    others: dict[str, float] = {}  # microseconds of others on the same numbers, by name

    @property
    def ratios(self) -> dict[str, float]:
        """The others' times over ours."""
        return {name: theirs / self.microseconds for name, theirs in self.others.items()}


class Difference(BaseModel):
    """Where an answer departs from stock vLLM's."""

    prompt: int
    token: int
    gap: float  # between stock's two likeliest tokens there, in nats


class EndToEnd(BaseModel):
    """Greedy answers of an engine with all heads full, beside stock's."""

    decode_kernel: str
    tokens: int
    differences: list[Difference]
    allowed_gap: float
    error: str | None = None

    @property
    def passed(self) -> bool:
        """Whether answers are equal but for ties."""
        return self.error is None and all(d.gap <= self.allowed_gap for d in self.differences)


class Report(BaseModel):
    """A whole self-check."""

    machine: dict[str, Any]
    device: str
    ops: list[OpCheck]
    timings: list[Timing]
    engines: list[EndToEnd]

    @property
    def passed(self) -> bool:
        """Whether everything that was checked is right."""
        return all(op.passed for op in self.ops) and all(e.passed for e in self.engines)
