"""The kit's report: a JSON document and a page of Markdown, written anew after every stage."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, computed_field

from fastgen_vllm.selfcheck.report import Timing
from tests.gpu_kit.questions import QUESTIONS, Answer, Results
from tests.gpu_kit.results import Ran


class Report(BaseModel):
    """Everything that was found so far."""

    machine: dict[str, Any]
    dry: bool
    steps: list[Ran]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def answers(self) -> list[Answer]:
        """To all questions."""
        results = Results(self.steps, str(self.machine.get("gpu", "")))
        return [question.answer(results) for question in QUESTIONS]

    def write(self, folder: Path) -> None:
        """Leave ``report.json`` and ``report.md`` there."""
        (folder / "report.json").write_text(self.model_dump_json(indent=1) + "\n")
        (folder / "report.md").write_text("\n".join(self._page()) + "\n")

    def _page(self) -> Iterator[str]:
        yield "# What a GPU answered"
        yield ""
        if self.dry:
            yield "Dry run: PyTorch's references on the CPU, so that no time and no verdict counts."
            yield ""
        yield ", ".join(f"{name} {value}" for name, value in self.machine.items())
        yield from _table(
            ("question", "expected", "found", ""),
            [(a.question, a.expected, a.found, self._verdict(a)) for a in self.answers],
        )
        yield from _table(
            ("step", "seconds", "end", "found"),
            [(ran.step, f"{ran.seconds:.0f}", ran.end, ran.found) for ran in self.steps],
        )
        yield from _table(
            ("kernel", "shape", "µs", "GB/s", "of read", "others, times as fast is ours"),
            [_row(timing) for ran in self.steps for timing in ran.timings],
        )
        metrics = sorted({m for ran in self.steps for each in ran.launches for m in each.metrics})
        yield from _table(
            ("launch", *metrics),
            [
                (each.kernel, *(f"{each.metrics.get(metric, 0):,.1f}" for metric in metrics))
                for ran in self.steps
                for each in ran.launches
            ],
        )
        for ran in self.steps:
            for name in ran.failed_tests:
                yield f"- {ran.step}: {name} failed"

    def _verdict(self, answer: Answer) -> str:
        if answer.right is None:
            return "no answer"
        return "dry" if self.dry else "right" if answer.right else "**wrong**"


def _row(timing: Timing) -> tuple[str, ...]:
    others = ", ".join(f"{name} {ratio:.2f}" for name, ratio in timing.ratios.items())
    return (
        *(timing.kernel, timing.shape, f"{timing.microseconds:,.1f}", f"{timing.gigabytes:,.0f}"),
        *(f"{timing.of_read:.0%}", others),
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if not rows:
        return
    yield ""
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"
