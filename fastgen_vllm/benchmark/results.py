"""What was measured, and the medians, ratios and spreads of it."""

import json
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, TypeAdapter

#: Metrics by name; the client of ``serve`` has more of them the more flags it gets.
Metrics = dict[str, float]


class Load(BaseModel):
    """What a sample was measured under, where a command varies it."""

    model_config = ConfigDict(frozen=True)

    concurrency: int | None = None  # most requests that the client has open
    context: int | None = None  # tokens of each request when its last step is measured
    running: int | None = None  # requests in each step

    @property
    def label(self) -> str:
        """The load as one name, empty if nothing was varied."""
        return ",".join(f"{name}={value}" for name, value in self.varied().items())

    def varied(self) -> dict[str, int]:
        """What was varied."""
        return self.model_dump(exclude_none=True)


class Timeline(BaseModel):
    """The state of an engine over time; lists of one length, or empty if it was not seen."""

    seconds: list[float]  # since the load began
    running: list[int]  # requests
    blocks: list[int] = []  # in use


class Sample(BaseModel):
    """What one engine did under one load, once."""

    load: Load = Load()
    metrics: Metrics
    timeline: Timeline | None = None


SAMPLES = TypeAdapter(list[Sample])


class Row(NamedTuple):
    """A sample and where it is from."""

    engine: str
    round: int  # counted from 1
    sample: Sample

    def to_dict(self) -> dict[str, Any]:
        """The row in the JSON file."""
        load, timeline = self.sample.load.varied(), self.sample.timeline
        row = {"engine": self.engine, "round": self.round, **load, **self.sample.metrics}
        return row if timeline is None else {**row, "timeline": timeline.model_dump()}


class Results(NamedTuple):
    """All finished rounds."""

    facts: dict[str, Any]
    rows: Sequence[Row]
    baseline: str  # name of the engine that ratios compare with

    @property
    def engines(self) -> list[str]:
        """Names of all engines: the baseline first, then as they were given."""
        names = dict.fromkeys(row.engine for row in self.rows if row.engine != self.baseline)
        return [self.baseline, *sorted(names, key=self._given)]

    @property
    def loads(self) -> list[Load]:
        """All loads, in the order in which they were applied."""
        return list(dict.fromkeys(row.sample.load for row in self.rows))

    def of(self, engine: str, load: Load) -> list[Metrics]:
        """The samples of one engine under one load."""
        return [
            row.sample.metrics
            for row in self.rows
            if (row.engine, row.sample.load) == (engine, load)
        ]

    def median(self, engine: str, load: Load) -> Metrics:
        """Median over rounds of every metric."""
        return _over(self.of(engine, load), statistics.median)

    def lowest(self, engine: str, load: Load) -> Metrics:
        """Minimum over rounds of every metric."""
        return _over(self.of(engine, load), min)

    def highest(self, engine: str, load: Load) -> Metrics:
        """Maximum over rounds of every metric."""
        return _over(self.of(engine, load), max)

    def ratio(self, engine: str, load: Load) -> dict[str, float | None]:
        """Medians over those of the baseline; None where that is 0."""
        theirs = self.median(self.baseline, load)
        return {
            name: value / theirs[name] if theirs[name] else None
            for name, value in self.median(engine, load).items()
            if name in theirs
        }

    def to_dict(self) -> dict[str, Any]:
        """The content of the JSON file."""
        return {
            "facts": self.facts,
            "rounds": [row.to_dict() for row in self.rows],
            "median": self._by_engine(self.median),
            "ratio": self._by_engine(self.ratio),
            "lowest": self._by_engine(self.lowest),
            "highest": self._by_engine(self.highest),
        }

    def _by_engine(self, of: Callable[[str, Load], Any]) -> dict[str, Any]:
        """By engine, and by load if there are several."""
        loads = self.loads
        if not self.rows:
            return {}
        if len(loads) == 1:
            return {engine: of(engine, loads[0]) for engine in self.engines}
        return {engine: {load.label: of(engine, load) for load in loads} for engine in self.engines}

    def _given(self, engine: str) -> int:
        given = self.facts.get("engines", [])
        return given.index(engine) if engine in given else len(given)


def write_json(results: Results, path: Path) -> None:
    """Write the JSON file: afterwards it holds these results, or after an error what it held."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(results.to_dict(), indent=1, allow_nan=False), "utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _over(samples: Sequence[Metrics], summary: Callable[[list[float]], float]) -> Metrics:
    names = dict.fromkeys(name for metrics in samples for name in metrics)
    return {name: summary([m[name] for m in samples if name in m]) for name in names}
