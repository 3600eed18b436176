"""Plots of a comparison, as PNG, or as HTML with the circumstances and the table."""

import html
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastgen_vllm.benchmark.results import Load, Results
from fastgen_vllm.benchmark.table import Column, fact_text, make_table
from fastgen_vllm.evaluation.plots import RC

#: Paul Tol's "muted" scheme, as in the evaluation; the baseline is grey and dashed.
_COLOURS = ("#332288", "#CC6677", "#117733", "#88CCEE", "#DDCC77", "#882255", "#44AA99")
_BASELINE = {"color": "#777777", "linestyle": (0, (4, 2))}
_PANEL_SIZE = (4.6, 3.2)  # inches
_DOTS_PER_INCH = 150


class Panel(NamedTuple):
    """One drawing."""

    title: str
    x: str
    y: str
    draw: Callable[[Axes], None]


def write_plot(results: Results, columns: Sequence[Column], path: Path) -> None:
    """Write the plot; afterwards ``path`` holds all of it, or after an error what it held."""
    with style.context(RC, after_reset=True):
        figure = _figure(_panels(results), results)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            if path.suffix == ".html":
                part.write_text(_page(results, columns, figure), "utf-8")
            else:
                figure.savefig(part, format="png", dpi=_DOTS_PER_INCH)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def _panels(results: Results) -> list[Panel]:
    loads = results.loads
    if any(load.context is not None for load in loads):
        return _step_panels(results)
    panels = []
    if any(load.concurrency is not None for load in loads):
        for metric, title, y in (
            ("output_throughput", "Throughput", "output tokens/s"),
            ("ttft_ms", "Time to first token", "median, ms"),
            ("tpot_ms", "Time per further token", "median, ms"),
        ):
            draw = _curves(results, loads, metric, lambda load: load.concurrency)
            panels.append(Panel(title, "open requests", y, draw))
        return panels
    if any(row.sample.timeline and row.sample.timeline.blocks for row in results.rows):
        panels.append(Panel("Memory", "seconds", "blocks in use", _over_time(results, "blocks")))
    panels.append(Panel("Batch", "seconds", "running requests", _over_time(results, "running")))
    return panels


def _step_panels(results: Results) -> list[Panel]:
    """Both sweeps share their first point."""
    first = results.loads[0]
    contexts = [load for load in results.loads if load.running == first.running]
    running = [load for load in results.loads if load.context == first.context]
    sweeps = (
        (f"{first.running} running", "context, tokens", contexts, lambda load: load.context),
        (f"{first.context} tokens each", "running requests", running, lambda load: load.running),
    )
    return [
        Panel(f"{name}, {title}", x, y, _curves(results, loads, metric, place))
        for metric, name, y in (
            ("decode_step_ms", "Decode step", "median, ms"),
            ("blocks", "Memory", "blocks per request"),
        )
        for title, x, loads, place in sweeps
        if len(loads) > 1 or len(results.loads) == 1
    ]


def _curves(
    results: Results, loads: Sequence[Load], metric: str, place: Callable[[Load], int | None]
) -> Callable[[Axes], None]:
    """Medians as lines, ranges over rounds as bars."""

    def draw(axes: Axes) -> None:
        for engine, look in _looks(results).items():
            xs = [float(place(load) or 0) for load in loads]
            ys = [results.median(engine, load).get(metric, 0.0) for load in loads]
            axes.plot(xs, ys, marker="o", markersize=4, label=engine, **look)
            for x, load in zip(xs, loads, strict=True):
                low = results.lowest(engine, load).get(metric, 0.0)
                high = results.highest(engine, load).get(metric, 0.0)
                axes.plot((x, x), (low, high), color=look["color"], linewidth=0.8, alpha=0.6)
        axes.set_xlim(left=0)

    return draw


def _over_time(results: Results, name: str) -> Callable[[Axes], None]:
    """A line for every engine and round; one engine's look the same."""

    def draw(axes: Axes) -> None:
        looks, labelled = _looks(results), set()
        for row in results.rows:
            timeline = row.sample.timeline
            if timeline is None:
                continue
            label = None if row.engine in labelled else row.engine
            labelled.add(row.engine)
            values = getattr(timeline, name)
            axes.plot(timeline.seconds, values, label=label, linewidth=1.2, **looks[row.engine])
        axes.set_xlim(left=0)

    return draw


def _looks(results: Results) -> dict[str, dict[str, Any]]:
    others = [engine for engine in results.engines if engine != results.baseline]
    looks: dict[str, dict[str, Any]] = {results.baseline: _BASELINE}
    for index, engine in enumerate(others):
        looks[engine] = {"color": _COLOURS[index % len(_COLOURS)], "linestyle": "solid"}
    return looks


def _figure(panels: Sequence[Panel], results: Results) -> Figure:
    across = min(len(panels), 2 if len(panels) == 4 else 3)
    down = -(-len(panels) // across)
    size = (_PANEL_SIZE[0] * across, _PANEL_SIZE[1] * down + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    for panel, axes in zip(panels, grid.flat, strict=False):
        panel.draw(axes)
        axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
        axes.set_ylim(bottom=0)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False)
    facts = results.facts
    figure.suptitle(f"{facts.get('model')}, {facts.get('cpu')}, {facts.get('date')}", fontsize=8)
    return figure


def _page(results: Results, columns: Sequence[Column], figure: Figure) -> str:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    drawing = buffer.getvalue()
    table = make_table(results, columns)
    facts = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(fact_text(fact))}</dd>\n"
        for name, fact in results.facts.items()
    )
    return _PAGE.format(
        facts=facts,
        header=_cells(table.header, "th"),
        rows="\n".join(f"<tr>{_cells(row, 'td')}</tr>" for row in table.rows),
        drawing=drawing[drawing.index("<svg") :],
    )


def _cells(cells: Sequence[str], tag: str) -> str:
    return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Load test of KV-cache compression</title>
<style>
body {{ margin: 0 auto; max-width: 84rem; padding: 1rem; color: #1c1c1c; background: #fff;
  font: 16px/1.5 system-ui, sans-serif; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.3rem 0.7rem; border-bottom: 1px solid #d9d9d6; text-align: right; }}
td {{ white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: 0.2rem 1rem;
  font-size: 0.875rem; }}
dt {{ color: #5c5c5c; }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
svg {{ max-width: 100%; height: auto; }}
</style>
</head>
<body>
<h1>Load test of KV-cache compression</h1>
<p>Medians over rounds; in brackets ratios to the first engine, and ranges over rounds.</p>
<div class="scroll"><table>
<thead><tr>{header}</tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
{drawing}
<h2>Circumstances</h2>
<dl>
{facts}</dl>
</body>
</html>
"""
