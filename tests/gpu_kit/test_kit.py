"""The kit for a machine with a GPU, on one without."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastgen_vllm.selfcheck.report import Timing
from tests.gpu_kit import pack
from tests.gpu_kit.questions import QUESTIONS, Results
from tests.gpu_kit.results import Launch, Ran, read
from tests.gpu_kit.run import Log, run_stage
from tests.gpu_kit.sizes import USUAL
from tests.gpu_kit.steps import BUDGET, METRICS, STAGES, Step

STEPS = [step for stage in STAGES for step in stage]
PROFILED = [q.text for q in QUESTIONS[-5:]]
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, object]]]:
    """Of a dry run of what is carried, beside this machine's build."""
    kit = tmp_path_factory.mktemp("kit")
    pack.copy(kit)
    (built,) = (pack.ROOT / "fastgen_vllm").glob("_C*.so")
    shutil.copy(built, kit / "fastgen_vllm")
    done = subprocess.run(
        [kit / "run.sh"],
        env={**os.environ, "FASTGEN_GPU_DRY": "1", "PYTHON": sys.executable, "OUT": str(kit)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    assert (kit / "report.md").read_text() in done.stdout
    read_back: dict[str, list[dict[str, object]]] = json.loads((kit / "report.json").read_text())
    return read_back


def test_every_step_runs_without_a_gpu(report: dict[str, list[dict[str, object]]]) -> None:
    assert [ran["step"] for ran in report["steps"]] == [step.name for step in STEPS]
    for ran in report["steps"]:
        assert ran["end"] == "passed"
        assert ran["passed_tests"] or ran["checks"] or ran["timings"] or ran["step"] == "profile"


def test_every_question_is_answered(report: dict[str, list[dict[str, object]]]) -> None:
    """But those to which a tool or a GPU's name belongs."""
    answers = report["answers"]
    assert [answer["question"] for answer in answers] == [q.text for q in QUESTIONS]
    open_questions = {str(answer["found"]) for answer in answers if answer["right"] is None}
    assert all(
        re.search(r"profile|a kernel in Triton: no time|no data sheet|15 ops checked", found)
        for found in open_questions
    )
    assert sum(answer["right"] is None for answer in answers) == 2 + len(SANITIZERS) + len(PROFILED)


def test_a_profile_answers() -> None:
    metrics = dict.fromkeys(METRICS, 50.0)
    kernels = ("decode_pieces<4>", "decode_pieces<8>", "mass_add")
    launches = [Launch(kernel=kernel, metrics=metrics) for kernel in kernels]
    results = Results([Ran(step="profile", seconds=1, end="passed", launches=launches)], "")
    answers = [question.answer(results) for question in QUESTIONS]
    assert [a.question for a in answers if a.right is not None] == PROFILED


def test_nothing_is_answered_by_nothing() -> None:
    for question in QUESTIONS:
        assert question.answer(Results([], "")).right is None


def _usual(share: float) -> Results:
    timing = Timing(
        kernel="decode_attention", shape=USUAL, microseconds=1, gigabytes=1, of_read=share
    )
    return Results([Ran(step="times", seconds=1, end="passed", timings=[timing])], "")


def test_an_answer_is_right_or_wrong() -> None:
    (question,) = (q for q in QUESTIONS if "64 requests of 2,048 tokens: what share" in q.text)
    assert question.answer(_usual(0.9)).right is True
    assert question.answer(_usual(0.4)).right is False
    (question,) = (q for q in QUESTIONS if "memcheck" in q.text)
    for faults in (0, 3):
        ran = Ran(step="memcheck", seconds=1, end="passed", faults=faults)
        assert question.answer(Results([ran], "")).right is (faults == 0)
    (question,) = (q for q in QUESTIONS if "own stream" in q.text)
    ran = Ran(step="tests", seconds=1, end="out of time", failed_tests=["test_another_stream"])
    assert question.answer(Results([ran], "")).right is False


def test_the_limits_leave_time_to_come_and_go() -> None:
    assert sum(max(step.limit for step in stage) for stage in STAGES) <= BUDGET < 600


def test_a_step_that_dies_or_hangs_takes_nothing_with_it(tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text("print('{\"op\": 1}'); import os; os.abort()")
    (tmp_path / "hangs.py").write_text(
        "import subprocess, sys, time; print('a line');"
        "subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    )
    (tmp_path / "works.py").write_text("print('works')")
    where = {"PYTHONPATH": str(tmp_path)}
    steps = (
        Step("dies", 60, ("dies",), environment=where),
        Step("hangs", 3, ("hangs",), environment=where),
        Step("works", 60, ("works",), environment=where),
        Step("tool", 60, ("works",), under=("no-such-tool",), environment=where),
    )
    with Log(tmp_path / "log.txt") as log:
        begun = time.monotonic()
        ended = [(r.step, r.end, list(n)) for r, n in run_stage(steps, log, begun + 60, dry=False)]
        late = [ran.end for ran, _ in run_stage(steps[2:3], log, begun, dry=False)]
    assert sorted(ended, key=lambda each: [step.name for step in steps].index(each[0])) == [
        ("dies", "failed", ['{"op": 1}']),
        ("hangs", "out of time", ["a line"]),
        ("works", "passed", ["works"]),
        ("tool", "no no-such-tool", []),
    ]
    assert late == ["not begun"]
    assert "[hangs] a line" in (tmp_path / "log.txt").read_text().splitlines()


def test_what_steps_print_is_read() -> None:
    lines = [
        "[gw0] [  1%] PASSED tests/gpu/test_store.py::test_grows[heads-first] ",
        "[gw1] [  2%] FAILED tests/gpu/test_store.py::test_grows[graph] ",
        "tests/gpu/test_runtime.py::test_life[full] PASSED          [ 25%]",
        "tests/gpu/test_runtime.py::test_life[paper] ERROR          [ 50%]",
        '{"kernel":"store","shape":"1x1","microseconds":2.0,"gigabytes":1.0,"of_read":0.5}',
        '{"op":"store","dtype":"float32","cases":2,"worst_error":0.0,"allowed_error":0.0}',
        '{"op":"store","dty',
        "========= RACECHECK SUMMARY: 2 hazards displayed (0 errors, 2 warnings)",
        "========= ERROR SUMMARY: 1 error",
        f'"ID","Kernel Name","{METRICS[1]}","x.sum"',
        '"","","%",""',
        '"0","decode_pieces","91.5","1,024"',
        '"1","mass_add","n/a","2"',
        "",
    ]
    ran = read(Ran(step="all", seconds=1, end="failed"), lines)
    assert ran.passed_tests == [
        "tests/gpu/test_store.py::test_grows[heads-first]",
        "tests/gpu/test_runtime.py::test_life[full]",
    ]
    assert len(ran.failed_tests) == 2
    assert [t.kernel for t in ran.timings] == ["store"]
    assert [c.op for c in ran.checks] == ["store"]
    assert ran.faults == 3
    assert [(each.kernel, each.metrics) for each in ran.launches] == [
        (
            "decode_pieces",
            {"dram__throughput.avg.pct_of_peak_sustained_elapsed": 91.5, "x.sum": 1024},
        ),
        ("mass_add", {"x.sum": 2}),
    ]
    assert ran.last == '"1","mass_add","n/a","2"'
    assert ran.found.startswith("2 tests passed, 2 failed; 1 ops checked, 0 wrong; 1 times")


def test_no_gpu_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.gpu_kit", "--out", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=pack.ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "there is no GPU; FASTGEN_GPU_DRY=1 runs without" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_page_lists_every_question() -> None:
    page = (pack.ROOT / "docs/cuda.md").read_text()
    for question in QUESTIONS:
        assert f"| {question.text} | {question.expected} |" in page
