"""Plots: a file of the right kind, with what was measured in it."""

from pathlib import Path

import pytest

from fastgen_vllm.benchmark.plots import write_plot
from fastgen_vllm.benchmark.results import Load, Results
from fastgen_vllm.benchmark.table import Column
from tests.benchmark.handmade import row, sweep, two_sides

COLUMNS = [Column("output_throughput", "tokens/s")]


def step_times() -> Results:
    rows = [
        row(engine, 1, Load(context=c, running=r), decode_step_ms=speed * c, blocks=c / 32)
        for engine, speed in (("fastgen:<b>", 0.5), ("stock", 1.0))
        for c, r in ((64, 1), (128, 1), (64, 4))
    ]
    return Results({"model": "tiny"}, rows, "stock")


@pytest.mark.parametrize(
    ("results", "titles"),
    [
        (two_sides(), ["Memory", "Batch"]),
        (sweep(), ["Throughput", "Time to first token", "Time per further token"]),
        (step_times(), ["Decode step, 1 running", "Decode step, 64 tokens each",
                        "Memory, 1 running", "Memory, 64 tokens each"]),
    ],
    ids=["timeline", "concurrency", "steps"],
)  # fmt: skip
def test_html_holds_the_plots_and_the_table(
    results: Results, titles: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "a.html"
    write_plot(results, COLUMNS, path)
    page = path.read_text("utf-8")
    for title in titles:
        assert f">{title}<" in page
    assert page.count("<svg") == 1 and page.rstrip().endswith("</html>")
    assert page.count("<tr>") == 1 + len(results.loads) * len(results.engines)
    assert "<b>" not in page, "names are not markup"
    assert list(tmp_path.iterdir()) == [path]


def test_png(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_plot(sweep(), COLUMNS, path)
    assert path.read_bytes().startswith(b"\x89PNG")
