"""Which pass of a step runs, for attention layers that a step passes several times."""

from collections.abc import Iterator


class Passes:
    """Shared by a model and its attention layers."""

    #: whether the pass that runs is the last of its step: the one whose K, V and output count
    is_last = True

    def run(self, count: int) -> Iterator[bool]:
        """Yield once for every pass, whether it is the last."""
        for number in range(count):
            self.is_last = number == count - 1
            yield self.is_last
