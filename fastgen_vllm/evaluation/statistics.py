"""Summaries of an evaluation, and tables of them."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fastgen_vllm.evaluation.estimates import (
    Estimate,
    geometric_mean,
    interval,
    mean_interval,
    paired_ratio,
    share_interval,
)
from fastgen_vllm.evaluation.results import Divergence, Results, Retrieval, Task

FULL = "full"  # the method that all others are compared with
#: What names of others' methods begin with: code of kvpress, written here after a paper, and an
#: upper bound that is allowed more than the others.
KVPRESS, PEER, BOUND = "kvpress ", "peer ", "bound "

_ABLE = 0.5  # share of right answers from which on a model can do a task


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
    kl_geometric: float  # the same, geometric mean over texts
    by_kind: tuple[KindScore, ...]
    nll_increase: Estimate  # NLL over that of the uncompressed prompt, minus 1
    agreement: Estimate  # share of positions with the same most likely token


class RetrievalScore(NamedTuple):
    """Answers to the questions of one retrieval task in one protocol."""

    protocol: str
    task: str
    prompt_tokens: int | None  # None: all lengths together
    kept_share: float  # on these rows
    accuracy: Estimate
    kl: Estimate  # nats per token of the true answer; samples are prompts
    nll_change: float  # nats per token, to the uncompressed prompt


class ProtocolScore(NamedTuple):
    """Answers to all questions of one protocol; samples are prompts."""

    protocol: str
    kept_share: float  # on these rows
    kl: Estimate  # nats per token, of the mean over a prompt's tasks
    accuracy: Estimate | None  # of tasks that the uncompressed model can do; None without any


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
    retrieval: tuple[RetrievalScore, ...]  # by protocol and task, all lengths together first
    protocols: tuple[ProtocolScore, ...]  # of questions, in the order of appearance
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
    """Whether a method is FastGen's, neither the reference nor another's."""
    return method != FULL and not method.startswith((KVPRESS, PEER, BOUND))


def label(method: str, target: float | None) -> str:
    """Return method and target as one name, for people."""
    return method if target is None else f"{method} at {100 * target:g} %"


def rank(method: str, target: float | None) -> tuple[bool, bool, str, float]:
    """Sort key: full, ours, theirs; by name; no target first, then large targets before small."""
    return method != FULL, not is_ours(method), method, -math.inf if target is None else -target


def summarize(results: Results) -> list[Summary]:
    """Return one summary per method and target, by rank."""
    rows = (results.divergence, results.retrieval, results.tasks, results.memory, results.heads)
    kept: dict[tuple[str, float | None], list[float]] = defaultdict(list)
    for row in (row for part in rows for row in part):
        kept[row.method, row.target].append(row.kept_share)
    able = able_tasks(results.retrieval)
    answers: dict[tuple[str, float | None], list[Retrieval]] = defaultdict(list)
    for answer in results.retrieval:
        answers[_key(answer)].append(answer)
    return [
        Summary(
            method=key[0],
            target=key[1],
            kept_share=float(np.mean(kept[key])),
            divergence=_divergence([r for r in results.divergence if _key(r) == key]),
            retrieval=tuple(_retrieval(answers[key])),
            protocols=tuple(_protocols(answers[key], able)),
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
            ("geometric", [f"{d.kl_geometric:.3g}" if d else "" for d in scores]),
            ("NLL +%", [f"{100 * d.nll_increase.mean:+.2f}" if d else "" for d in scores]),
            ("same top-1 %", [_percent(d.agreement.mean) if d else "" for d in scores]),
        ]
    for name in dict.fromkeys(p.protocol for s in summaries for p in s.protocols):
        found = [{p.protocol: p for p in s.protocols}.get(name) for s in summaries]
        right = [p.accuracy if p else None for p in found]
        columns.append((f"{name} KL", [interval(p.kl) if p else "" for p in found]))
        if any(right):
            columns.append((f"{name} right %", [_percent(r.mean) if r else "" for r in right]))
    tasks = [{t.task: t.accuracy for t in s.tasks} for s in summaries]
    for task in sorted({task for by_task in tasks for task in by_task}):
        cells = [_percent(by[task].mean) if task in by else "" for by in tasks]
        columns.append((f"{task} %", cells))
    header, cells_by_column = zip(*columns, strict=True)
    return Table(header, tuple(zip(*cells_by_column, strict=True)))


def markdown(table: Table) -> str:
    """Return a table as aligned Markdown, for the terminal."""
    header, rows = table
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
        kl_geometric=geometric_mean(_text_means((row.text, row.kl) for row in rows)),
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


def able_tasks(rows: Sequence[Retrieval]) -> set[tuple[str, str]]:
    """Protocol and task of what the uncompressed model answers rightly half of the time.

    The others say nothing of compression by right answers, but by KL they do. Without the
    uncompressed model's own rows, everything.
    """
    by_task: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for row in rows:
        if row.method == FULL:
            by_task[row.protocol, row.task].append(row.correct)
    every = {(row.protocol, row.task) for row in rows}
    return {key for key in every if key not in by_task or float(np.mean(by_task[key])) >= _ABLE}


def tasks_beyond(rows: Sequence[Retrieval]) -> str:
    """What the uncompressed model cannot do, for people; empty if there is nothing."""
    beyond = {(row.protocol, row.task) for row in rows} - able_tasks(rows)
    return "; ".join(f"{protocol} {task}" for protocol, task in sorted(beyond))


def _retrieval(rows: Sequence[Retrieval]) -> Iterable[RetrievalScore]:
    for protocol, task in sorted({(row.protocol, row.task) for row in rows}):
        of_task = [row for row in rows if (row.protocol, row.task) == (protocol, task)]
        for length in (None, *sorted({row.prompt_tokens for row in of_task})):
            chosen = [row for row in of_task if length in (None, row.prompt_tokens)]
            changes = [float(np.mean(row.nll) - np.mean(row.full_nll)) for row in chosen]
            yield RetrievalScore(
                protocol=protocol,
                task=task,
                prompt_tokens=length,
                kept_share=float(np.mean([row.kept_share for row in chosen])),
                accuracy=_accuracy(chosen),
                kl=mean_interval(list(kl_by_prompt(chosen).values())),
                nll_change=float(np.mean(changes)),
            )


def _protocols(rows: Sequence[Retrieval], able: set[tuple[str, str]]) -> Iterable[ProtocolScore]:
    for protocol in dict.fromkeys(row.protocol for row in rows):
        chosen = [row for row in rows if row.protocol == protocol]
        scored = [row for row in chosen if (protocol, row.task) in able]
        yield ProtocolScore(
            protocol=protocol,
            kept_share=float(np.mean([row.kept_share for row in chosen])),
            kl=mean_interval(list(kl_by_prompt(chosen).values())),
            accuracy=_accuracy(scored) if scored else None,
        )


def kl_by_prompt(rows: Iterable[Retrieval]) -> dict[str, float]:
    """Mean KL of each prompt's tasks, each the mean of its questions, by the prompt's name."""
    by_task: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_task[row.context][row.task].append(float(np.mean(row.kl)))
    return {
        context: float(np.mean([np.mean(values) for values in tasks.values()]))
        for context, tasks in by_task.items()
    }


def _tasks(rows: Sequence[Task]) -> Iterable[TaskScore]:
    for task in sorted({row.task for row in rows}):
        chosen = [row for row in rows if row.task == task]
        kept_share = float(np.mean([row.kept_share for row in chosen]))
        yield TaskScore(task, kept_share, _accuracy(chosen))


def _accuracy(rows: Sequence[Retrieval] | Sequence[Task]) -> Estimate:
    return share_interval(sum(row.correct for row in rows), len(rows))


def text_means(values: Iterable[tuple[str, Sequence[float]]]) -> dict[str, float]:
    """Mean over all positions of each text, texts in order of appearance."""
    by_text: dict[str, list[float]] = defaultdict(list)
    for text, positions in values:
        by_text[text].extend(positions)
    return {text: float(np.mean(positions)) for text, positions in by_text.items()}


def _text_means(values: Iterable[tuple[str, Sequence[float]]]) -> list[float]:
    return list(text_means(values).values())


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
