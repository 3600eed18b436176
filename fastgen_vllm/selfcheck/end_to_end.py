"""Greedy answers of stock vLLM and of FastGen with all heads full, each in its own process."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from fastgen_vllm.selfcheck.report import Difference, EndToEnd

#: Nats between stock's two likeliest tokens up to which another choice is a tie: bfloat16 logits
#: from 16 to 32 lie an eighth apart, and both may move by two of these.
ALLOWED_GAP = 0.5
TIMEOUT = 900  # seconds, for one engine


def check_engine(model: str, decode_kernels: list[str]) -> list[EndToEnd]:
    """Compare an engine with every decode kernel to stock."""
    stock = _answers(model, "off")
    return [_compare(kernel, stock, _answers(model, kernel)) for kernel in decode_kernels]


def _answers(model: str, kernel: str) -> list[dict[str, list[float]]] | str:
    """Tokens and gaps of every answer, or what went wrong in a line."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "answers.json")
        module = "fastgen_vllm.selfcheck.generate"
        command = [sys.executable, "-m", module, model, kernel, str(file)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return f"no answer in {TIMEOUT} s"
        if done.returncode != 0:
            return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        answers: list[dict[str, list[float]]] = json.loads(file.read_text())
        return answers


def _compare(
    kernel: str,
    stock: list[dict[str, list[float]]] | str,
    ours: list[dict[str, list[float]]] | str,
) -> EndToEnd:
    for side, answers in (("stock vLLM", stock), (f"decode_kernel {kernel}", ours)):
        if isinstance(answers, str):
            return EndToEnd(
                decode_kernel=kernel,
                tokens=0,
                differences=[],
                allowed_gap=ALLOWED_GAP,
                error=f"{side}: {answers}",
            )
    assert not isinstance(stock, str) and not isinstance(ours, str)
    differences = []
    for prompt, (expected, actual) in enumerate(zip(stock, ours, strict=True)):
        pairs = zip(expected["tokens"], actual["tokens"], strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if at is not None:  # what follows another token may be anything
            differences.append(Difference(prompt=prompt, token=at, gap=expected["gaps"][at]))
    return EndToEnd(
        decode_kernel=kernel,
        tokens=sum(len(answer["tokens"]) for answer in stock),
        differences=differences,
        allowed_gap=ALLOWED_GAP,
    )
