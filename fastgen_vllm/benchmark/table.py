"""Results as people read them: circumstances and a table in Markdown."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from fastgen_vllm.benchmark.results import Load, Results


class Column(NamedTuple):
    """A metric to show."""

    metric: str
    title: str
    compared: bool = True  # whether its ratio to the baseline says anything


class Table(NamedTuple):
    """Cells as text."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def make_table(results: Results, columns: Sequence[Column]) -> Table:
    """A row for every load and engine.

    A cell is the median, its ratio to the baseline, and the range over rounds that differ.
    """
    loads = results.loads
    shown = [c for c in columns if any(c.metric in row.sample.metrics for row in results.rows)]
    names = list(loads[0].varied()) if loads else []
    rows = tuple(
        (
            engine,
            *(str(value) for value in load.varied().values()),
            *(_cell(results, engine, load, column) for column in shown),
        )
        for load in loads
        for engine in results.engines
    )
    return Table(("engine", *names, *(column.title for column in shown)), rows)


def markdown(table: Table) -> str:
    """The table, aligned."""
    lines = [[cell.replace("|", r"\|") for cell in line] for line in (table.header, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join(
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |"
        for line in lines
    )


def facts_text(facts: dict[str, Any]) -> str:
    """Circumstances, one a line."""
    return "\n".join(f"- {name}: {fact_text(fact)}" for name, fact in facts.items())


def fact_text(fact: Any) -> str:
    """One circumstance."""
    return fact if isinstance(fact, str) else json.dumps(fact, ensure_ascii=False)


def _cell(results: Results, engine: str, load: Load, column: Column) -> str:
    median = results.median(engine, load).get(column.metric)
    if median is None:
        return ""
    text = number(median)
    ratio = results.ratio(engine, load).get(column.metric)
    if column.compared and engine != results.baseline and ratio is not None:
        text += f" ({ratio:.2f}x)"
    low, high = (of(engine, load)[column.metric] for of in (results.lowest, results.highest))
    if low < high:
        text += f" [{number(low)} to {number(high)}]"
    return text


def number(value: float) -> str:
    """Three digits, or all of a larger number's before the point."""
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
