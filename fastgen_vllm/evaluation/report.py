"""The report of an evaluation: one HTML file with tables and plots that loads nothing else."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import style

from fastgen_vllm.evaluation.comparison import compare, comparison_table
from fastgen_vllm.evaluation.estimates import Estimate, interval
from fastgen_vllm.evaluation.plots import (
    RC,
    answers_by_share,
    benchmarks,
    head_policies,
    head_shares,
    kl_by_position,
    kl_by_share,
    layer_shares,
    memory,
    method_strokes,
    nll_by_share,
    retrieval_by_share,
)
from fastgen_vllm.evaluation.results import Results
from fastgen_vllm.evaluation.statistics import (
    Summary,
    Table,
    able_tasks,
    is_ours,
    summarize,
    summary_table,
    tasks_beyond,
)


class Section(NamedTuple):
    """A table with its caption."""

    title: str
    caption: str
    table: Table
    ours: Sequence[bool]  # by row: whether it is about a method of ours


def write_report(results: Results, path: Path) -> None:
    """Write the report. The same results give the same bytes.

    Afterwards ``path`` holds the whole report or, after an error, what it held before.

    Raises:
        OSError: the file cannot be written, for instance on a full disk.
    """
    page = _page(results)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(page, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _page(results: Results) -> str:
    summaries = summarize(results)
    strokes = method_strokes(dict.fromkeys(summary.method for summary in summaries))
    with style.context(RC, after_reset=True):
        plots = (
            kl_by_share(results, strokes),
            nll_by_share(summaries, strokes),
            kl_by_position(results.divergence, strokes),
            answers_by_share(summaries, strokes),
            retrieval_by_share(summaries, able_tasks(results.retrieval), strokes),
            benchmarks(summaries, strokes),
            head_shares(results.heads),
            head_policies(results.heads),
            layer_shares(results.heads),
            memory(results.memory),
        )
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        facts=[(name, _fact(value)) for name, value in results.facts.items()],
        first=_shown(_first_sections(results, summaries)),
        last=_shown(_last_sections(summaries)),
        plots=[plot for plot in plots if plot.panels],
    )


def _fact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _shown(sections: Sequence[Section]) -> list[Section]:
    return [s for s in sections if s.table.rows and len(s.table.header) > 1]


def _first_sections(results: Results, summaries: Sequence[Summary]) -> list[Section]:
    comparisons = compare(results)
    return [
        Section(
            "Summary",
            "Kept share of the prompt, averaged over heads. KL(full || method), nats per position, "
            "arithmetic and geometric mean. Increase of the negative log-likelihood of real text. "
            "Positions with the same most likely token. KL on the answers to questions that the "
            "prompt holds (seen), that come after it (unseen) and in the next turn (turns), and "
            "right answers. In brackets: 95 % intervals over texts. Left out of the right answers, "
            "because the uncompressed model gives fewer than half of them: "
            f"{tasks_beyond(results.retrieval) or 'nothing'}.",
            summary_table(summaries),
            [is_ours(summary.method) for summary in summaries],
        ),
        Section(
            "Beside the best peer",
            "KL(full || method) in nats beside that of the peer with the smallest mean at the same "
            "kept share, upper bounds left out. Ratio of means with a paired bootstrap over texts "
            "or prompts, and on how many of them ours is smaller.",
            comparison_table(comparisons),
            [True for _ in comparisons],
        ),
    ]


def _last_sections(summaries: Sequence[Summary]) -> list[Section]:
    ours = [is_ours(summary.method) for summary in summaries]
    kinds: list[dict[tuple[str, ...], str]] = [
        {
            (
                k.kind,
            ): f"{100 * k.kept_share:.1f}; {interval(k.kl)}; {100 * k.nll_increase.mean:+.2f}"
            for k in (s.divergence.by_kind if s.divergence else ())
        }
        for s in summaries
    ]
    lengths = [
        {
            (r.protocol, r.task, r.prompt_tokens): (
                f"{_accuracy(r.accuracy)}; {interval(r.kl)}; {r.nll_change:+.3g}"
            )
            for r in s.retrieval
            if r.prompt_tokens is not None
        }
        for s in summaries
    ]
    tasks = [{(t.task,): _accuracy(t.accuracy) for t in s.tasks} for s in summaries]
    return [
        Section(
            "Divergence by kind of text",
            "Kept share, %; KL(full || method), nats per position, mean over texts and its 95 % "
            "interval; increase of the negative log-likelihood, %.",
            _by_column(summaries, kinds),
            ours,
        ),
        Section(
            "Retrieval by prompt length",
            "Protocol, task and prompt length in tokens. Right answers, %, with their 95 % "
            "interval; KL(full || method) on the true answer, nats per token, with its 95 % "
            "interval over prompts; change of its negative log-likelihood, nats per token.",
            _by_column(summaries, lengths),
            ours,
        ),
        Section(
            "Benchmark accuracy",
            "Correct answers, %, with their 95 % interval.",
            _by_column(summaries, tasks),
            ours,
        ),
    ]


def _accuracy(share: Estimate) -> str:
    return f"{100 * share.mean:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def _by_column(
    summaries: Sequence[Summary], cells: Sequence[Mapping[tuple[Any, ...], str]]
) -> Table:
    """A table of the cells of each summary, a column for every key that occurs."""
    columns = sorted({key for by_key in cells for key in by_key})
    return Table(
        ("method", *(", ".join(map(str, key)) for key in columns)),
        tuple(
            (s.label, *(by_key.get(key, "") for key in columns))
            for s, by_key in zip(summaries, cells, strict=True)
        ),
    )
