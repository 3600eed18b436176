"""Medians, ratios, the JSON file and the table, on rounds made by hand."""

import json
from pathlib import Path

import pytest

from fastgen_vllm.benchmark.results import Load, Results, write_json
from fastgen_vllm.benchmark.table import Column, facts_text, make_table, markdown
from tests.benchmark.handmade import row, sweep, two_sides


def test_medians_and_ratios() -> None:
    results = two_sides()
    assert results.median("stock", Load())["output_throughput"] == 90
    assert results.median("fastgen", Load())["output_throughput"] == 150
    assert results.ratio("fastgen", Load())["output_throughput"] == pytest.approx(150 / 90)
    assert results.ratio("stock", Load())["output_throughput"] == 1
    assert results.lowest("fastgen", Load())["output_throughput"] == 135
    assert results.highest("fastgen", Load())["output_throughput"] == 180


def test_nothing_is_a_multiple_of_zero() -> None:
    assert two_sides().ratio("fastgen", Load())["preemptions"] is None


def test_an_even_number_of_rounds_has_a_median_between_two() -> None:
    results = Results({}, [row("stock", 1, x=1.0), row("stock", 2, x=4.0)], "stock")
    assert results.median("stock", Load()) == {"x": 2.5}


def test_json_of_a_single_load(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_json(two_sides(), path)
    found = json.loads(path.read_text())
    assert found["facts"] == {"engines": ["stock", "fastgen"]}
    assert list(found["median"]) == ["stock", "fastgen"], "the baseline comes first"
    assert found["median"]["fastgen"] == {
        "output_throughput": 150,
        "preemptions": 4,
        "threads": 1,
    }
    assert found["ratio"]["fastgen"]["preemptions"] is None
    assert found["lowest"]["stock"]["output_throughput"] == 80
    assert found["rounds"][0] == {
        "engine": "fastgen",
        "round": 1,
        "output_throughput": 150,
        "preemptions": 4,
        "threads": 1,
        "timeline": {"seconds": [0, 1], "running": [1, 2], "blocks": [3, 4]},
    }
    assert len(found["rounds"]) == 6
    assert list(tmp_path.iterdir()) == [path]


def test_json_of_several_loads() -> None:
    found = sweep().to_dict()
    assert list(found["median"]["stock"]) == ["concurrency=1", "concurrency=4"]
    assert found["median"]["fastgen"]["concurrency=4"]["output_throughput"] == 60
    assert found["ratio"]["fastgen"]["concurrency=4"]["output_throughput"] == 1.5
    assert found["rounds"][1]["concurrency"] == 4


def test_a_file_stays_whole_if_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_json(two_sides(), path)
    before = path.read_text()
    with pytest.raises(ValueError, match="nan"):
        write_json(Results({}, [row("stock", 1, x=float("nan"))], "stock"), path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_table_shows_median_ratio_and_range() -> None:
    columns = [Column("output_throughput", "tokens/s"), Column("nothing", "not measured"),
               Column("preemptions", "preemptions", compared=False)]  # fmt: skip
    table = make_table(two_sides(), columns)
    assert table.header == ("engine", "tokens/s", "preemptions")
    assert table.rows == (
        ("stock", "90 [80 to 100]", "0"),
        ("fastgen", "150 (1.67x) [135 to 180]", "4"),
    )


def test_a_sweep_has_a_row_for_every_load() -> None:
    table = make_table(sweep(), [Column("output_throughput", "tokens/s")])
    assert table.header == ("engine", "concurrency", "tokens/s")
    assert [line[:2] for line in table.rows] == [
        ("stock", "1"), ("fastgen", "1"), ("stock", "4"), ("fastgen", "4"),
    ]  # fmt: skip
    assert table.rows[3][2] == "60 (1.50x)"


def test_markdown_lines_are_aligned() -> None:
    lines = markdown(make_table(sweep(), [Column("ttft_ms", "a|b")])).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert r"a\|b" in lines[0] and set(lines[1]) <= set("|-: ")


def test_facts_are_a_list() -> None:
    assert facts_text({"cpu": "a", "commit": None}) == "- cpu: a\n- commit: null"
