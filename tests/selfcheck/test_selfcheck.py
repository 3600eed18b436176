import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fastgen_vllm import ops
from fastgen_vllm.benchmark import kernels
from fastgen_vllm.selfcheck import __main__ as command
from fastgen_vllm.selfcheck import correctness, end_to_end, speed
from fastgen_vllm.selfcheck.report import OpCheck, Report
from tests.ops.layouts import relaid

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correctness, "DTYPES", (torch.float32, torch.bfloat16))
    monkeypatch.setitem(correctness.SHAPES, "cpu", correctness.SHAPES["cpu"][:1])
    monkeypatch.setattr(correctness, "PRESETS", ("balanced",))


def test_right_ops_pass() -> None:
    checks = list(correctness.check_ops(CPU))
    assert {check.op for check in checks} == set(correctness.STATE)
    assert all(check.passed and check.cases > 0 for check in checks)


@pytest.mark.parametrize("op", correctness.STATE)
def test_a_wrong_op_is_found(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each op forgets a part of its work."""
    right = getattr(ops, op)
    changed = {
        "attention_mass": "mass",
        "value_norm": "norm",
        "compact": "values",
        "store": "heads",
        "decode_attention": "values",
    }[op]

    def wrong(**arguments: Any) -> None:
        before = arguments[changed].clone()
        right(**arguments)
        arguments[changed].copy_(before)

    monkeypatch.setattr(ops, op, wrong)
    failed = [check.op for check in correctness.check_ops(CPU) if not check.passed]
    assert failed == [op] * 3  # float32, bfloat16 in columns and in pairs


@pytest.mark.parametrize("order", [correctness.HEADS_FIRST, correctness.SLOTS_FIRST])
def test_the_orders_of_a_gpu(order: correctness.Order, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache in CUDA's layout, for which the CPU's ops are called."""
    for name in correctness.STATE:
        monkeypatch.setattr(ops, name, relaid(getattr(ops, name)))
    shape, dtype = correctness.SHAPES["cpu"][0], torch.float32
    errors = list(correctness.Life(CPU, shape, dtype, "balanced", order).errors())
    assert {name for name, _ in errors} == set(correctness.STATE)
    assert max(error for _, error in errors) <= correctness.ALLOWED[dtype]


def test_every_op_is_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(speed, "CALLS", 2)
    monkeypatch.setattr(speed, "CALLS_OF_A_SAMPLE", 1)
    monkeypatch.setitem(speed.SHAPES, "cpu", ("2x64x2x2x32",))
    monkeypatch.setattr(kernels, "ROTATED_BYTES", 1e6)
    report = tmp_path / "report.json"
    assert command.main(["--device", "cpu", "--parts", "speed", "--json", str(report)]) == 0
    timings = Report.model_validate(json.loads(report.read_text())).timings
    assert {t.kernel.split(",")[0] for t in timings} == set(correctness.STATE)
    assert all(t.microseconds > 0 and t.gigabytes > 0 for t in timings)
    assert timings[0].ratios.keys() == {speed.VLLM, speed.SDPA}


def test_error_of_protected_and_missing_numbers() -> None:
    a = torch.tensor([1.0, math.inf])
    assert correctness.error(a, a.clone()) == 0
    assert correctness.error(a, torch.tensor([1.0, 2.0])) == math.inf
    assert correctness.error(a, torch.tensor([2.0, math.inf])) == 1
    assert correctness.error(torch.tensor([1]), torch.tensor([2])) == math.inf
    nan = OpCheck(op="store", dtype="float32", cases=1, worst_error=math.nan, allowed_error=1)
    assert not nan.passed


@pytest.mark.parametrize(
    ("ours", "passed", "says"),
    [
        ([5, 6, 7], True, "depart from stock's: 0"),
        ([5, 9, 9], True, "at token 1, a gap of 0.100"),
        ([9, 6, 7], False, "at token 0, a gap of 3.000"),
        ("CUDA error: misaligned address", False, "decode_kernel fastgen: CUDA error"),
    ],
)
def test_answers_may_depart_at_ties_only(
    ours: Any,
    passed: bool,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    gaps = [3.0, 0.1, 2.0]
    stock = [{"tokens": [5, 6, 7], "gaps": gaps}]
    other = ours if isinstance(ours, str) else [{"tokens": ours, "gaps": gaps}]
    answers = {"off": stock, "fastgen": other, "stock": stock}
    monkeypatch.setattr(end_to_end, "_answers", lambda model, kernel: answers[kernel])
    report = tmp_path / "report.json"
    code = command.main(
        ["--device", "cpu", "--parts", "engine", "--model", "m", "--json", str(report)]
    )
    assert code == (0 if passed else 1)
    assert says in capsys.readouterr().out
    written = Report.model_validate(json.loads(report.read_text()))
    assert written.passed == passed
    assert written.machine["isa"] == ops.isa()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--parts", "ops,colour"], "'colour' is none of ops, speed, engine"),
        (["--device", "cuda"], "torch sees no GPU; use --device cpu"),
    ],
)
def test_mistakes(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available() and "cuda" in arguments:
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    assert problem in capsys.readouterr().err
