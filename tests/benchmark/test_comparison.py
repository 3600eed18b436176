"""Turns, and what is left when a side fails or Ctrl-C is pressed."""

import argparse
import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fastgen_vllm.benchmark.comparison import Comparison, run
from fastgen_vllm.benchmark.engines import Engine
from fastgen_vllm.benchmark.process import MeasurementFailed, stoppable
from fastgen_vllm.benchmark.results import Sample
from fastgen_vllm.benchmark.table import Column

STOCK, OURS = Engine(name="stock"), Engine(name="fastgen", fastgen="balanced")


class Sides:
    """Stands for the engines; the third measurement is where something may happen."""

    def __init__(self, third: Callable[[], object] = lambda: None) -> None:
        self.order: list[str] = []
        self._third = third

    def measure(self, engine: Engine) -> Sequence[Sample]:
        self.order.append(engine.name)
        if len(self.order) == 3:
            self._third()
        return [Sample(metrics={"speed": 2.0 if engine.fastgen else 1.0, "threads": 1})]


def compare(sides: Sides, json_path: Path | None, rounds: int = 2) -> int:
    options = argparse.Namespace(command="offline", rounds=rounds, json=json_path, plot=None)
    made = Comparison((STOCK, OURS), {"engines": ["stock", "fastgen"]},
                      [Column("speed", "speed")], sides.measure)  # fmt: skip
    return run(made, options)


def fail() -> None:
    raise MeasurementFailed("  ValueError: out of paper")


def test_sides_take_turns_and_alternate_who_goes_first(tmp_path: Path) -> None:
    sides = Sides()
    assert compare(sides, tmp_path / "out.json", rounds=3) == 0
    assert sides.order == ["stock", "fastgen", "fastgen", "stock", "stock", "fastgen"]
    rows = json.loads((tmp_path / "out.json").read_text())["rounds"]
    assert [row["round"] for row in rows] == [1, 1, 2, 2, 3, 3]


def test_the_table_follows_the_circumstances(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(Sides(), None) == 0
    out = capsys.readouterr().out
    assert out.index('- threads: {"stock": 1, "fastgen": 1}') < out.index("| engine")
    assert "2 (2.00x)" in out
    assert "Not comparable" not in out


def test_finished_rounds_survive_a_side_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.json"
    assert compare(Sides(fail), path, rounds=3) == 1
    found = json.loads(path.read_text())
    assert [row["engine"] for row in found["rounds"]] == ["stock", "fastgen"]
    assert found["ratio"]["fastgen"]["speed"] == 2
    captured = capsys.readouterr()
    assert "benchmark.py offline: error: engine fastgen failed:\n  ValueError: out of paper\n" in (
        captured.err
    )
    assert f"Finished rounds: 1 of 3; what follows is of those and is in {path}." in captured.err
    assert "2 (2.00x)" in captured.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_finished_rounds_survive_an_interruption(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    terminate = signal.getsignal(signal.SIGTERM)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with stoppable():
            code = compare(Sides(lambda: os.kill(os.getpid(), number)), tmp_path / "out.json")
        assert signal.getsignal(signal.SIGTERM) == terminate, "the handler was left behind"
    finally:
        signal.signal(signal.SIGINT, interrupt)
    assert code == 130
    assert "offline: error: interrupted\nFinished rounds: 1 of 2" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "out.json").read_text())["rounds"]) == 2


def test_nothing_is_written_without_a_finished_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = Sides(fail)
    sides.order = ["earlier"] * 2
    assert compare(sides, tmp_path / "out.json") == 1
    captured = capsys.readouterr()
    assert captured.err.endswith("No round was finished.\n") and captured.out == ""
    assert list(tmp_path.iterdir()) == []
