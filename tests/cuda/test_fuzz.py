"""Random calls of the CUDA ops in the emulator, under AddressSanitizer and UBSan.

The host cannot refuse what only the device knows. What must come of it is in csrc/cuda/found.h: a
head that is not there is left as it is, and its output is NaN.
"""

from pathlib import Path

import pytest
import torch

from fastgen_vllm.ops import reference
from fastgen_vllm.ops.layout import Layout
from tests.cuda.build import Mode, Order
from tests.cuda.emulated import EmulatedOps
from tests.ops import fuzz
from tests.ops.calls import Case, make
from tests.ops.meaning import Expected


def check(ops: EmulatedOps, case: Case) -> None:
    """Make a call. The buffers that the kernel gets have exactly their sizes."""
    expected = Expected(case)
    before, actual = case.clone(), case.clone()
    fuzz.call(getattr(ops, case.op), actual)
    if expected.is_legal and expected.is_defined:
        fuzz.call(getattr(reference, case.op), before)
        fuzz.assert_same(actual, before)
    elif case.op == "decode_attention" and expected.is_defined:
        check_output(actual, before, expected)
    elif case.op == "store" and all(head.pages is None for head in expected.heads):
        fuzz.assert_same(actual, before)


def check_output(actual: Case, before: Case, expected: Expected) -> None:
    """Heads that are there have their output, others NaN; nobody's rows are left alone."""
    a = before.arguments
    rows = torch.zeros_like(a["output"])
    H = actual.arena.shape[2]
    group = rows.shape[1] // H
    for i, head in enumerate(expected.heads):
        token, of_head = expected.tokens[i // H], slice(i % H * group, (i % H + 1) * group)
        if not head.is_there(expected.per_block, expected.num_blocks):
            rows[token, of_head] = float("nan")
            continue
        rows[token, of_head] = reference.attend_to_head(
            head.record,
            head.row,
            a["query"][token, of_head],
            a["scale"],
            a["pool"],
            before.arena,
            a["values"],
        )
    error = 1e-4 if rows.dtype == torch.float32 else 2e-2
    output = actual.arguments["output"]
    torch.testing.assert_close(output, rows, rtol=error, atol=error, equal_nan=True)


def run(built: Path, numbers: range) -> None:
    for number in numbers:
        layout = list(Layout)[number % 2]
        ops = EmulatedOps(built, Mode.ADDRESS, Order.RANDOM, layout, seed=number)
        ops.num_blocks, ops.scored_pages = 1 + number % 5, number % 7
        case = make(number, slots=(16, 32))
        try:
            check(ops, case)
        except Exception as error:
            error.add_note(f"case {number}: {case.op}, {'; '.join(case.wrong)}")
            raise


def test_random_calls(built: Path) -> None:
    run(built, range(150))


@pytest.mark.slow
def test_many_random_calls(built: Path) -> None:
    run(built, range(1_000_000, 1_005_000))
