"""What a step printed, read: one JSON document of all steps."""

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress

from pydantic import BaseModel

from fastgen_vllm.selfcheck.report import OpCheck, Timing


class Launch(BaseModel):
    """A kernel under the profiler."""

    kernel: str
    metrics: dict[str, float]


class Ran(BaseModel):
    """A step that ended."""

    step: str
    seconds: float
    end: str  # passed, failed, out of time, not begun, or which tool is not there
    passed_tests: list[str] = []
    failed_tests: list[str] = []
    checks: list[OpCheck] = []
    timings: list[Timing] = []
    launches: list[Launch] = []
    faults: int | None = None  # that a sanitizer counted
    last: str = ""  # line that it printed

    @property
    def found(self) -> str:
        """In a few words."""
        parts = []
        if self.passed_tests or self.failed_tests:
            parts.append(f"{len(self.passed_tests)} tests passed, {len(self.failed_tests)} failed")
        if self.checks:
            wrong = sum(not check.passed for check in self.checks)
            parts.append(f"{len(self.checks)} ops checked, {wrong} wrong")
        if self.timings:
            parts.append(f"{len(self.timings)} times")
        if self.launches:
            parts.append(f"{len(self.launches)} launches")
        if self.faults is not None:
            parts.append(f"{self.faults} faults")
        if self.end == "failed" and not self.failed_tests:
            parts.append(self.last)
        return "; ".join(parts)


_TEST = re.compile(
    r"^(?:\[gw\d+\] \[ *\d+%\] (PASSED|FAILED|ERROR) (\S.*)|"
    r"(tests/\S.*?) (PASSED|FAILED|ERROR)\b.*)$"
)
_FAULTS = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?)")


def read(ran: Ran, lines: Sequence[str]) -> Ran:
    """Add to a step what its lines say."""
    for line in lines:
        with suppress(ValueError):  # a line that was cut off
            _read_line(ran, line)
    ran.launches += _launches(lines)
    ran.last = next((line.strip() for line in reversed(lines) if line.strip()), "")[:200]
    return ran


def _read_line(ran: Ran, line: str) -> None:
    if line.startswith('{"op"'):
        ran.checks.append(OpCheck.model_validate_json(line))
    elif line.startswith('{"kernel"'):
        ran.timings.append(Timing.model_validate_json(line))
    elif match := _TEST.match(line):
        outcome, name = match[1] or match[4], match[2] or match[3]
        (ran.passed_tests if outcome == "PASSED" else ran.failed_tests).append(name.strip())
    elif match := _FAULTS.search(line):
        ran.faults = (ran.faults or 0) + int(match[1])


def _launches(lines: Sequence[str]) -> Iterator[Launch]:
    """Rows of Nsight Compute's raw page; the row below the names holds units."""
    table = [line for line in lines if line.startswith('"')]
    for row in csv.DictReader(table):
        if not row.get("ID"):
            continue
        metrics = {}
        for name, text in row.items():
            with suppress(ValueError, AttributeError):  # what is no number
                if "." in name:
                    metrics[name] = float(text.replace(",", ""))
        yield Launch(kernel=row["Kernel Name"], metrics=metrics)
