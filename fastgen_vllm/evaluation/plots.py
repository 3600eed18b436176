"""The plots of an evaluation's report, as inline SVG."""

import hashlib
import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

from fastgen_vllm.evaluation.estimates import Estimate
from fastgen_vllm.evaluation.results import Divergence, Heads, Memory, Results
from fastgen_vllm.evaluation.statistics import FULL, Summary, is_ours, label, rank, summarize

#: Paul Tol's "muted" scheme, told apart by the colour-blind; most distinct first.
_COLOURS = (
    *("#332288", "#CC6677", "#117733", "#88CCEE", "#DDCC77"),
    *("#882255", "#44AA99", "#AA4499", "#999933"),
)
_GREY = "#777777"
_DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))

_SHARE_LEVELS = 10  # colours of a heat map
_MAX_LENGTH_PANELS = 4  # more prompt lengths than that are drawn together
_MAX_BAR_LABEL = 36  # characters
_PANEL_SIZE = (4.2, 2.9)  # inches
_PERCENT = "{x:.0%}"

RC = {
    "svg.fonttype": "none",  # text stays text: small, and found by the browser's search
    "svg.hashsalt": "fastgen-vllm",  # the same figure gets the same ids
    "text.parse_math": False,  # names may hold dollar signs
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
}

_Row = TypeVar("_Row", Divergence, Heads, Memory)


class Stroke(NamedTuple):
    """How a line looks."""

    colour: str
    dash: tuple[float, ...]  # on and off, in line widths; empty is solid
    width: float  # points


class Key(NamedTuple):
    """One entry of a legend."""

    label: str
    stroke: Stroke

    @property
    def dashes(self) -> str:
        """SVG's ``stroke-dasharray``."""
        return " ".join(f"{length * self.stroke.width:g}" for length in self.stroke.dash)


class Panel(NamedTuple):
    """One drawing."""

    title: str
    svg: Markup


class Plot(NamedTuple):
    """Drawings with one caption and one legend."""

    title: str
    caption: str  # what is plotted, and its unit
    keys: Sequence[Key]
    panels: Sequence[Panel]


def kl_by_share(results: Results, strokes: Mapping[str, Stroke]) -> Plot:
    """Mean KL against kept share, a line for every method, a panel for every length."""
    lengths = sorted({row.prompt_tokens for row in results.divergence})
    parts = {"All prompt lengths": results.divergence}
    if len(lengths) <= _MAX_LENGTH_PANELS:
        parts = {
            f"{length} prompt tokens": [r for r in results.divergence if r.prompt_tokens == length]
            for length in lengths
        }
    scored = {
        title: [
            (s.method, s.divergence.kept_share, s.divergence.kl)
            for s in summarize(Results(divergence=rows))
            if s.divergence
        ]
        for title, rows in parts.items()
    }
    return _kl_plot(
        "Divergence against memory",
        "KL(full || method) of the next token, in nats per position on a log scale, against the "
        "kept share of the prompt. Mean over texts; bars are 95 % intervals over texts. Lower is "
        "better.",
        scored,
        strokes,
    )


def answers_by_share(summaries: Sequence[Summary], strokes: Mapping[str, Stroke]) -> Plot:
    """Mean KL of answers against kept share, a panel for every protocol."""
    scored = {
        name: [
            (s.method, p.kept_share, p.kl)
            for s in summaries
            for p in s.protocols
            if p.protocol == name
        ]
        for name in dict.fromkeys(p.protocol for s in summaries for p in s.protocols)
    }
    return _kl_plot(
        "Divergence of answers against memory",
        "KL(full || method) on the true answer, in nats per token on a log scale, against the kept "
        "share of the prompt: questions in the prompt (seen), after it (unseen), in the next turn "
        "(turns). Mean over prompts; bars are 95 % intervals over prompts. Lower is better.",
        scored,
        strokes,
    )


def _kl_plot(
    title: str,
    caption: str,
    scored: Mapping[str, Sequence[tuple[str, float, Estimate]]],
    strokes: Mapping[str, Stroke],
) -> Plot:
    """A panel for every title: methods, kept shares and KL; what is zero has no place."""
    drawn = {
        panel: [point for point in points if point[0] != FULL and point[2].mean > 0]
        for panel, points in scored.items()
    }
    estimates = [kl for points in drawn.values() for _, _, kl in points]
    panels = []
    for panel, points in drawn.items():
        if points:
            figure, axes = _canvas("kept share of the prompt", "KL, nats")
            _draw_points(axes, points, strokes)
            _log_scale(axes)
            axes.set_ylim(min(e.mean for e in estimates) / 2, 1.5 * max(e.high for e in estimates))
            panels.append(_panel(panel, figure))
    shown = (method for points in drawn.values() for method, _, _ in points)
    return Plot(title, caption, _keys(strokes, shown), panels)


def nll_by_share(summaries: Sequence[Summary], strokes: Mapping[str, Stroke]) -> Plot:
    """Increase of NLL against kept share."""
    points = [
        (s.method, s.divergence.kept_share, s.divergence.nll_increase)
        for s in summaries
        if s.divergence and s.method != FULL
    ]
    panels = []
    if points:
        figure, axes = _canvas("kept share of the prompt", "NLL increase")
        axes.axhline(0, color=_GREY, linewidth=1)
        _draw_points(axes, points, strokes)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        panels.append(_panel("All texts", figure))
    return Plot(
        "Likelihood of real text against memory",
        "Increase of the negative log-likelihood of the text's own next tokens over that with the "
        "uncompressed prompt, in %, against the kept share of the prompt. Bars are 95 % intervals "
        "over texts. Lower is better.",
        _keys(strokes, (method for method, _, _ in points)),
        panels,
    )


def kl_by_position(rows: Sequence[Divergence], strokes: Mapping[str, Stroke]) -> Plot:
    """KL along the continuation, a panel for every target."""
    panels, shown = [], set()
    targets = sorted({row.target for row in rows}, key=lambda target: rank("", target))
    for target in targets:
        figure, axes = _canvas("position in the continuation, tokens", "KL, nats")
        for method, stroke in strokes.items():
            curves = [r.kl for r in rows if (r.method, r.target) == (method, target) and r.kl]
            shortest = min(map(len, curves), default=0)
            if method == FULL or shortest < 2:
                continue
            mean = np.mean([kl[:shortest] for kl in curves], axis=0)
            if mean.max() > 0:
                axes.plot(range(1, shortest + 1), _smooth(mean), **_look(stroke))
                shown.add(method)
        if axes.lines:
            _log_scale(axes)
            title = "No target" if target is None else f"Target: {100 * target:g} % kept"
            panels.append(_panel(title, figure))
    return Plot(
        "Divergence over the continuation",
        "KL(full || method) in nats on a log scale, against the position after the compressed "
        "prompt. Mean over texts and prompt lengths as far as the shortest goes, smoothed over a "
        "sixteenth of it.",
        _keys(strokes, shown),
        panels,
    )


def retrieval_by_share(
    summaries: Sequence[Summary], able: Collection[tuple[str, str]], strokes: Mapping[str, Stroke]
) -> Plot:
    """Accuracy against kept share, a panel for every task that the model can do."""
    pooled = [
        (s.method, r)
        for s in summaries
        for r in s.retrieval
        if r.prompt_tokens is None and (r.protocol, r.task) in able
    ]
    panels = []
    for key in sorted({(score.protocol, score.task) for _, score in pooled}):
        points = [(m, r.kept_share, r.accuracy) for m, r in pooled if (r.protocol, r.task) == key]
        figure, axes = _canvas("kept share of the prompt", "correct answers")
        for method, _, accuracy in points:
            if method == FULL:
                axes.axhline(accuracy.mean, **_look(strokes[FULL]))
        _draw_points(axes, [point for point in points if point[0] != FULL], strokes)
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(_PERCENT)
        panels.append(_panel(", ".join(key), figure))
    return Plot(
        "Retrieval against memory",
        "Questions about a long prompt answered correctly, in %, against the kept share of the "
        "prompt; all prompt lengths together. Tasks are left out of which the uncompressed model "
        "answers fewer than half. Bars are Wilson's 95 % intervals. Higher is better.",
        _keys(strokes, (method for method, _ in pooled)),
        panels,
    )


def benchmarks(summaries: Sequence[Summary], strokes: Mapping[str, Stroke]) -> Plot:
    """Accuracy on public benchmarks, as bars."""
    scored = [(s, t) for s in summaries for t in s.tasks]
    panels = []
    for task in sorted({score.task for _, score in scored}):
        bars = [(s, t.accuracy) for s, t in scored if t.task == task]
        figure, axes = _canvas("correct answers", "", height=0.8 + 0.24 * len(bars))
        for place, (summary, share) in enumerate(bars):
            axes.barh(place, share.mean, 0.7, color=strokes[summary.method].colour, alpha=0.75)
            axes.hlines(place, share.low, share.high, color="#222222", linewidth=1.2)
        axes.set_yticks(range(len(bars)), [_shortened(summary.label) for summary, _ in bars])
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        axes.set_xticks((0, 0.25, 0.5, 0.75, 1))
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(_PERCENT)
        panels.append(_panel(task, figure))
    return Plot(
        "Benchmarks",
        "Problems solved by free generation, in %. Bars are Wilson's 95 % intervals. Higher is "
        "better.",
        (),
        panels,
    )


def head_shares(rows: Sequence[Heads]) -> Plot:
    """Kept share of every layer and head, as heat maps."""
    panels = []
    for title, group in _groups(rows):
        kept = np.mean([row.kept for row in group], axis=0)  # [L, H]
        figure, axes, cells = _heat_map(kept, colormaps["cividis"].resampled(_SHARE_LEVELS), 1)
        figure.colorbar(cells, ax=axes, format=_PERCENT, pad=0.02)
        panels.append(_panel(title, figure))
    return Plot(
        "What every head kept",
        "Kept share of the prompt, in %, of each KV head in each layer; mean over prompts.",
        (),
        panels,
    )


def head_policies(rows: Sequence[Heads]) -> Plot:
    """The policy most often chosen for every layer and head."""
    groups = _groups(rows)
    policies = [np.array([row.policy for row in group]) for _, group in groups]  # each [P, L, H]
    names = sorted({str(name) for policy in policies for name in policy.flat})
    keys = _indexed_keys(names, width=10)
    panels = []
    if len(names) > 1:
        for (title, _), policy in zip(groups, policies, strict=True):
            usual = np.argmax([(policy == name).sum(axis=0) for name in names], axis=0)  # [L, H]
            colours = ListedColormap([key.stroke.colour for key in keys])
            figure, _, _ = _heat_map(usual, colours, len(names) - 1)
            panels.append(_panel(title, figure))
    return Plot(
        "Policy of every head",
        "Policy chosen for each KV head in each layer; where prompts differ, the one chosen most "
        "often.",
        keys,
        panels,
    )


def layer_shares(rows: Sequence[Heads]) -> Plot:
    """Kept share of every layer."""
    groups = _groups(rows)
    keys = _indexed_keys(title for title, _ in groups)
    panels = []
    if groups:
        figure, axes = _canvas("layer", "kept share of the prompt")
        for (_, group), key in zip(groups, keys, strict=True):
            layers = np.mean([row.kept for row in group], axis=(0, 2))
            axes.plot(layers, **_look(key.stroke))
        axes.set_ylim(0, 1.03)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(_PERCENT)
        panels.append(_panel("All heads of a layer", figure))
    return Plot(
        "What every layer kept",
        "Kept share of the prompt, in %, per layer; mean over heads and prompts.",
        keys,
        panels,
    )


def memory(rows: Sequence[Memory]) -> Plot:
    """Slots, pages and blocks over the generation, as shares of what stock vLLM holds."""
    keys = _indexed_keys(("slots", "pages", "blocks"))
    panels = []
    for name, group in _groups(rows):
        for length in sorted({row.prompt_tokens for row in group if row.series}):
            figure, axes = _canvas("tokens generated", "share of stock vLLM")
            axes.axhline(1, color=_GREY, linewidth=1)
            for series in (r.series for r in group if r.prompt_tokens == length and r.series):
                generated = [point.generated for point in series]
                for key in keys:
                    values = [getattr(point, key.label) for point in series]
                    axes.plot(generated, values, **_look(key.stroke))
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(_PERCENT)
            panels.append(_panel(f"{name}, {length} prompt tokens", figure))
    return Plot(
        "Memory over generation",
        "Memory of a request in % of what stock vLLM would hold at the same length, against tokens "
        "generated; one line per request. Slots are kept tokens, pages are what heads hold, blocks "
        "are what the allocator counts.",
        keys,
        panels,
    )


def method_strokes(methods: Iterable[str]) -> dict[str, Stroke]:
    """Ours are thick and come first, so they get the most distinct colours."""
    strokes: dict[str, Stroke] = {}
    for method in methods:
        if method == FULL:
            strokes[method] = Stroke(_GREY, (4, 2), 1.2)
        else:
            index = len(strokes) - (FULL in strokes)
            strokes[method] = _indexed_stroke(index, 2.6 if is_ours(method) else 1.2)
    return strokes


def _indexed_stroke(index: int, width: float) -> Stroke:
    turn, colour = divmod(index, len(_COLOURS))
    return Stroke(_COLOURS[colour], _DASHES[turn % len(_DASHES)], width)


def _indexed_keys(labels: Iterable[str], width: float = 1.8) -> list[Key]:
    return [Key(label, _indexed_stroke(index, width)) for index, label in enumerate(labels)]


def _keys(strokes: Mapping[str, Stroke], methods: Iterable[str]) -> list[Key]:
    shown = set(methods)
    return [Key(method, stroke) for method, stroke in strokes.items() if method in shown]


def _groups(rows: Sequence[_Row]) -> list[tuple[str, list[_Row]]]:
    """Our methods' rows by method and target, in order of rank."""
    keys = {(row.method, row.target) for row in rows if is_ours(row.method)}
    return [
        (label(*key), [row for row in rows if (row.method, row.target) == key])
        for key in sorted(keys, key=lambda key: rank(*key))
    ]


def _canvas(x: str, y: str, height: float = _PANEL_SIZE[1]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_PANEL_SIZE[0], height), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    return figure, axes


def _heat_map(
    values: NDArray[Any], colours: Colormap, largest: float
) -> tuple[Figure, Axes, QuadMesh]:
    """Draw ``[L, H]`` values in [0, largest], layers to the right and heads downwards."""
    layers, heads = values.shape
    figure, axes = _canvas("layer", "KV head", height=min(4.5, 1.0 + 0.16 * heads))
    cells = axes.pcolormesh(
        values.T, cmap=colours, vmin=0, vmax=largest, edgecolors="white", linewidth=0.4
    )
    for axis, count in ((axes.xaxis, layers), (axes.yaxis, heads)):
        shown = range(0, count, -(-count // 8))
        axis.set_ticks([index + 0.5 for index in shown], [str(index) for index in shown])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return figure, axes, cells


def _log_scale(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_points(
    axes: Axes, points: Iterable[tuple[str, float, Estimate]], strokes: Mapping[str, Stroke]
) -> None:
    """Draw estimates over kept shares, a line per method."""
    points = sorted(points, key=lambda point: point[1])
    for method, stroke in strokes.items():
        line = [(share, estimate) for name, share, estimate in points if name == method]
        for share, estimate in line:
            axes.plot(
                (share, share),
                (estimate.low, estimate.high),
                color=stroke.colour,
                linewidth=0.6 * stroke.width,
                alpha=0.6,
            )
        shares, means = [share for share, _ in line], [estimate.mean for _, estimate in line]
        axes.plot(shares, means, marker="o", ms=2 + 1.5 * stroke.width, **_look(stroke))
    axes.xaxis.set_major_formatter(_PERCENT)


def _look(stroke: Stroke) -> dict[str, Any]:
    """Matplotlib's arguments for a line; thick ones lie above thin ones."""
    return {
        "color": stroke.colour,
        "linewidth": stroke.width,
        "linestyle": (0, stroke.dash) if stroke.dash else "solid",
        "zorder": 2 + stroke.width,
    }


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Moving average over a sixteenth of the length, over what there is at the ends."""
    window = np.ones(max(1, len(values) // 16))
    there = np.convolve(np.ones(len(values)), window, "same")
    smoothed: NDArray[np.float64] = np.convolve(values, window, "same") / there
    return smoothed


def _shortened(text: str) -> str:
    """The text without its middle if that is needed beside a bar; the target is at its end."""
    half = _MAX_BAR_LABEL // 2
    return text if len(text) <= _MAX_BAR_LABEL else f"{text[: half - 1]}…{text[-half:]}"


def _panel(title: str, figure: Figure) -> Panel:
    """The drawing as an element for HTML, with ids that no other drawing of the page has."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    drawing = buffer.getvalue()
    prefix = f"d{hashlib.sha256((title + drawing).encode()).hexdigest()[:12]}-"
    element = drawing[drawing.index("<svg") :]
    return Panel(title, Markup(re.sub(r'(\bid="|href="#|url\(#)', rf"\1{prefix}", element)))
