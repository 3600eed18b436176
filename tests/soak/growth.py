"""Whether memory settles."""

from collections.abc import Sequence
from typing import NamedTuple

#: MiB that the last reading may be above the first, which is before any load.
MOST_GROWN = 1000.0
#: MiB a minute by which the second half of so many readings may grow. Before, a worker learns the
#: sizes of steps: oneDNN keeps what it made for each.
MOST_SLOPE, ENOUGH = 10.0, 20


class Growth(NamedTuple):
    """How memory went, in MiB.

    Attributes:
        first: before any load.
        last: at the end.
        slope: a minute over the second half, by least squares; None if there are few readings.
    """

    first: float
    last: float
    slope: float | None

    @classmethod
    def of(cls, minutes: Sequence[float], sizes: Sequence[float]) -> "Growth":
        """Of readings, the first of which is before any load."""
        slope = None
        if len(sizes) >= ENOUGH:
            half = slice(len(sizes) // 2, None)
            slope = _slope(minutes[half], sizes[half])
        return cls(sizes[0], sizes[-1], slope)

    def fault(self) -> str | None:
        """What is too much."""
        if (grown := self.last - self.first) > MOST_GROWN:
            return f"grew by {grown:.0f} MiB, more than {MOST_GROWN:.0f}"
        if self.slope is not None and self.slope > MOST_SLOPE:
            return f"does not settle: {self.slope:+.1f} MiB/min in the second half"
        return None

    def __str__(self) -> str:
        slope = "" if self.slope is None else f", {self.slope:+.1f} MiB/min in the second half"
        return f"{self.first:,.0f} MiB before any load, {self.last:,.0f} at the end{slope}"


def _slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    squares = sum((x - mean_x) ** 2 for x in xs)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / squares
