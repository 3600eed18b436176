"""Summaries of an evaluation: means with 95 % confidence intervals, and tables of them."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastgen_vllm.evaluation.results import Divergence, Results, Retrieval, Task

FULL = "full"  # the method that all others are compared with
_KVPRESS = "kvpress "

_RESAMPLES = 2000
_PERCENTILES = (2.5, 97.5)
_WILSON_Z = 1.959964  # the normal quantile of 97.5 %


@dataclass(frozen=True)
class Estimate:
    """A mean or a ratio with its 95 % confidence interval."""

    mean: float
    low: float
    high: float
    count: int  # independent samples behind it


class KindScore(NamedTuple):
    """Divergence on the texts of one kind."""

    kind: str
    kept_share: float  # on these rows
    kl: Estimate  # nats per position
    nll_increase: Estimate  # NLL over that of the uncompressed prompt, minus 1


class DivergenceScore(NamedTuple):
    """Forced continuations of real texts against the uncompressed ones; samples are texts."""

    kept_share: float  # on these rows
    kl: Estimate  # nats per position, KL(full || this)
    by_kind: tuple[KindScore, ...]
    nll_increase: Estimate  # NLL over that of the uncompressed prompt, minus 1
    agreement: Estimate  # share of positions with the same most likely token


class RetrievalScore(NamedTuple):
    """Answers to the questions of one retrieval task."""

    task: str
    prompt_tokens: int | None  # None: all lengths together
    kept_share: float  # on these rows
    accuracy: Estimate
    answer_nll: float  # nats per token of the true answer


class TaskScore(NamedTuple):
    """Answers to one public benchmark."""

    task: str
    kept_share: float  # on these rows
    accuracy: Estimate


class Summary(NamedTuple):
    """All that was measured of one method at one target."""

    method: str
    target: float | None
    kept_share: float  # mean over all rows
    divergence: DivergenceScore | None  # None without texts
    retrieval: tuple[RetrievalScore, ...]  # by task, all lengths together first
    tasks: tuple[TaskScore, ...]

    @property
    def label(self) -> str:
        """Method and target, for people."""
        return label(self.method, self.target)


class Table(NamedTuple):
    """Cells as people read them."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def is_ours(method: str) -> bool:
    """Whether a method is FastGen's, neither the reference nor of another library."""
    return method != FULL and not method.startswith(_KVPRESS)


def label(method: str, target: float | None) -> str:
    """Return method and target as one name, for people."""
    return method if target is None else f"{method} at {100 * target:g} %"


def rank(method: str, target: float | None) -> tuple[bool, bool, str, float]:
    """Sort key: full, ours, kvpress; by name; no target first, then large targets before small."""
    theirs = method.startswith(_KVPRESS)
    return method != FULL, theirs, method, -math.inf if target is None else -target


def interval(estimate: Estimate) -> str:
    """Return mean and interval, for people."""
    return f"{estimate.mean:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"


def mean_interval(values: Sequence[float], seed: int = 0) -> Estimate:
    """Mean with a percentile bootstrap interval.

    Args:
        values: one value per independent sample. Positions of a text are correlated, so a
            measurement per position is averaged over its text first.
        seed: of the resampling.

    Raises:
        ValueError: there is no value.
    """
    if not len(values):
        raise ValueError("the mean of no values has no interval; leave the row out instead")
    array = np.asarray(values, dtype=np.float64)
    means = array[_resamples(len(array), seed)].mean(axis=1)
    low, high = np.percentile(means, _PERCENTILES)
    return Estimate(float(array.mean()), float(low), float(high), len(array))


def share_interval(successes: int, count: int) -> Estimate:
    """Share of successes with Wilson's interval, which is honest near 0 and 1.

    Raises:
        ValueError: not ``0 <= successes <= count`` with at least one trial.
    """
    if count < 1 or not 0 <= successes <= count:
        raise ValueError(f"{successes} successes of {count} trials are not a share")
    share = successes / count
    square = _WILSON_Z**2 / count
    centre = share + square / 2
    spread = math.sqrt(square * (share * (1 - share) + square / 4))
    low = max(0.0, (centre - spread) / (1 + square))
    high = min(1.0, (centre + spread) / (1 + square))
    # At the ends rounding may leave the share itself just outside.
    return Estimate(share, min(low, share), max(high, share), count)


def paired_ratio(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Estimate:
    """Mean of ``ours`` over mean of ``theirs``, with a bootstrap over pairs.

    Both sides of a pair are drawn together, so what makes a text hard for both cancels.

    Args:
        ours: one value per text.
        theirs: those of the same texts in the same order; none is negative.
        seed: of the resampling.

    Raises:
        ValueError: the lengths differ, or ``theirs`` holds no positive or a negative value.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} values cannot be paired with {len(theirs)}")
    if not len(theirs) or min(theirs) < 0 or max(theirs) == 0:
        raise ValueError("a ratio needs denominators that are not negative and not all zero")
    above = np.asarray(ours, dtype=np.float64)
    below = np.asarray(theirs, dtype=np.float64)
    drawn = _resamples(len(above), seed)
    numerators, denominators = above[drawn].mean(axis=1), below[drawn].mean(axis=1)
    defined = denominators > 0
    low, high = np.percentile(numerators[defined] / denominators[defined], _PERCENTILES)
    return Estimate(float(above.mean() / below.mean()), float(low), float(high), len(above))


def summarize(results: Results) -> list[Summary]:
    """Return one summary per method and target, by rank."""
    rows = (results.divergence, results.retrieval, results.tasks, results.memory, results.heads)
    kept: dict[tuple[str, float | None], list[float]] = defaultdict(list)
    for row in (row for part in rows for row in part):
        kept[row.method, row.target].append(row.kept_share)
    return [
        Summary(
            method=key[0],
            target=key[1],
            kept_share=float(np.mean(kept[key])),
            divergence=_divergence([r for r in results.divergence if _key(r) == key]),
            retrieval=tuple(_retrieval([r for r in results.retrieval if _key(r) == key])),
            tasks=tuple(_tasks([r for r in results.tasks if _key(r) == key])),
        )
        for key in sorted(kept, key=lambda key: rank(*key))
    ]


def summary_table(summaries: Sequence[Summary]) -> Table:
    """One row per summary; columns that would be empty are left out."""
    columns: list[tuple[str, list[str]]] = [
        ("method", [s.label for s in summaries]),
        ("kept %", [_percent(s.kept_share) for s in summaries]),
    ]
    scores = [s.divergence for s in summaries]
    if any(scores):
        columns += [
            ("KL, nats", [interval(d.kl) if d else "" for d in scores]),
            ("NLL +%", [f"{100 * d.nll_increase.mean:+.2f}" if d else "" for d in scores]),
            ("same top-1 %", [_percent(d.agreement.mean) if d else "" for d in scores]),
        ]
    pooled = [
        {r.task: r.accuracy for r in s.retrieval if r.prompt_tokens is None} for s in summaries
    ]
    tasks = [{t.task: t.accuracy for t in s.tasks} for s in summaries]
    for accuracies in (pooled, tasks):
        for task in sorted({task for by_task in accuracies for task in by_task}):
            cells = [_percent(by[task].mean) if task in by else "" for by in accuracies]
            columns.append((f"{task} %", cells))
    header, cells_by_column = zip(*columns, strict=True)
    return Table(header, tuple(zip(*cells_by_column, strict=True)))


def table(summaries: Sequence[Summary]) -> str:
    """Return the summary table as aligned Markdown, for the terminal."""
    header, rows = summary_table(summaries)
    lines = [[cell.replace("|", r"\|") for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join(
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |"
        for line in lines
    )


def _key(row: Divergence | Retrieval | Task) -> tuple[str, float | None]:
    return row.method, row.target


def _divergence(rows: Sequence[Divergence]) -> DivergenceScore | None:
    rows = [row for row in rows if row.kl]
    if not rows:
        return None
    kinds = sorted({row.kind for row in rows})
    return DivergenceScore(
        kept_share=float(np.mean([row.kept_share for row in rows])),
        kl=_kl(rows),
        by_kind=tuple(_kind(kind, [row for row in rows if row.kind == kind]) for kind in kinds),
        nll_increase=_nll_increase(rows),
        agreement=mean_interval(_text_means((row.text, row.agree) for row in rows)),
    )


def _kind(kind: str, rows: Sequence[Divergence]) -> KindScore:
    kept_share = float(np.mean([row.kept_share for row in rows]))
    return KindScore(kind, kept_share, _kl(rows), _nll_increase(rows))


def _kl(rows: Sequence[Divergence]) -> Estimate:
    return mean_interval(_text_means((row.text, row.kl) for row in rows))


def _nll_increase(rows: Sequence[Divergence]) -> Estimate:
    nll = _text_means((row.text, row.nll) for row in rows)
    full_nll = _text_means((row.text, row.full_nll) for row in rows)
    ratio = paired_ratio(nll, full_nll)
    return Estimate(ratio.mean - 1, ratio.low - 1, ratio.high - 1, ratio.count)


def _retrieval(rows: Sequence[Retrieval]) -> Iterable[RetrievalScore]:
    for task in sorted({row.task for row in rows}):
        of_task = [row for row in rows if row.task == task]
        for length in (None, *sorted({row.prompt_tokens for row in of_task})):
            chosen = [row for row in of_task if length in (None, row.prompt_tokens)]
            yield RetrievalScore(
                task=task,
                prompt_tokens=length,
                kept_share=float(np.mean([row.kept_share for row in chosen])),
                accuracy=_accuracy(chosen),
                answer_nll=float(np.mean([row.answer_nll for row in chosen])),
            )


def _tasks(rows: Sequence[Task]) -> Iterable[TaskScore]:
    for task in sorted({row.task for row in rows}):
        chosen = [row for row in rows if row.task == task]
        kept_share = float(np.mean([row.kept_share for row in chosen]))
        yield TaskScore(task, kept_share, _accuracy(chosen))


def _accuracy(rows: Sequence[Retrieval] | Sequence[Task]) -> Estimate:
    return share_interval(sum(row.correct for row in rows), len(rows))


def _text_means(values: Iterable[tuple[str, Sequence[float]]]) -> list[float]:
    """Mean over all positions of each text, texts in order of appearance."""
    by_text: dict[str, list[float]] = defaultdict(list)
    for text, positions in values:
        by_text[text].extend(positions)
    return [float(np.mean(positions)) for positions in by_text.values()]


def _resamples(count: int, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """[R, count] indices in [0, count), drawn with replacement."""
    return np.random.default_rng(seed).integers(count, size=(_RESAMPLES, count))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
