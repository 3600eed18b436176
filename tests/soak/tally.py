"""What became of the requests."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.soak.answers import Answer
from tests.soak.requests import Request

_SHOWN, _WIDTH = 3, 400


class Fault(NamedTuple):
    """Something that must not be."""

    minute: float
    kind: str
    what: str
    example: str = ""


def example(request: Request) -> str:
    """A request as text, cut where it is long."""
    text = request.content.decode("utf-8", "replace")
    cut = f"{text[: _WIDTH // 2]} ... {text[-_WIDTH // 2 :]}" if len(text) > _WIDTH else text
    return f"POST {request.path} {cut}"


@dataclass
class Tally:
    """Counts of some requests.

    Attributes:
        answered: as they should be, bad ones too.
        hung_up: by the client.
        finished: requests of the engine that the answers took.
        uncertain: requests of the engine that hung-up or faulty ones may have finished.
        faults: what was wrong with the others.
    """

    answered: int = 0
    hung_up: int = 0
    finished: int = 0
    uncertain: int = 0
    faults: list[Fault] = field(default_factory=list)

    def count(self, request: Request, answer: Answer | None, minute: float) -> None:
        """Count a request by its answer."""
        if answer is None:
            self.hung_up += 1
            self.uncertain += request.runs
        elif (wrong := request.judge(answer)) is not None:
            self.fault(request, wrong, minute)
        else:
            self.answered += 1
            self.finished += request.runs if answer.error is None else 0

    def fault(self, request: Request, wrong: str, minute: float) -> None:
        """Count a request that something was wrong with."""
        self.uncertain += request.runs
        self.faults.append(Fault(minute, request.kind, wrong, example(request)))


def kinds(faults: Sequence[Fault]) -> str:
    """How many of each kind."""
    numbers = Counter(fault.kind for fault in faults)
    return ", ".join(f"{number} x {kind}" for kind, number in numbers.items()) or "none"


def lines(faults: Sequence[Fault]) -> Iterator[str]:
    """The first faults of each kind, with a request that shows the first."""
    by_kind: dict[str, list[Fault]] = defaultdict(list)
    for found in faults:
        by_kind[found.kind].append(found)
    for some in by_kind.values():
        for one in some[:_SHOWN]:
            yield f"fault after {one.minute:.1f} min: {one.kind}: {one.what}"
        if some[0].example:
            yield f"  {some[0].example}"
