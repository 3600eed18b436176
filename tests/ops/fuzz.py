"""Random calls of the ops: each must end in the right result or in a clear error.

`python -m tests.ops.fuzz --cases 1000 --seed 7` makes calls of the CPU's ops; test_fuzz.py has them
made by a build with sanitizers, in which a wild read ends the process. Before every call its number
is written, and `--only NUMBER` repeats it.
"""

import argparse
import inspect
import random
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from fastgen_vllm import ops
from fastgen_vllm.ops import reference
from fastgen_vllm.ops.layout import from_pairs, to_pairs
from tests.ops.calls import Case, make
from tests.ops.meaning import Expected


def call(op: Callable[..., None], case: Case) -> None:
    """Call an op with the case's arguments."""
    names = inspect.signature(op).parameters
    op(*(case.arguments[name] for name in names))


def assert_same(actual: Case, expected: Case) -> None:
    """Compare all tensors of two cases, after their calls."""
    exact = actual.op in ("store", "compact")
    error = 0.0 if exact else 2e-2 if actual.arena.dtype != torch.float32 else 1e-4
    for name, tensor in expected.arguments.items():
        if isinstance(tensor, Tensor):
            torch.testing.assert_close(
                actual.arguments[name],
                tensor,
                rtol=error,
                atol=error,
                equal_nan=True,
                msg=lambda text, name=name: f"{name}: {text}",
            )


def check_on_cpu(case: Case, pairs: bool) -> None:
    """Call an op of the CPU; a case that is not legal must be refused, with nothing written."""
    expected = Expected(case)
    before, actual = case.clone(), case.clone()
    pairs = pairs and case.arena.dtype == torch.bfloat16
    caches = {"arena", "saved"} & actual.arguments.keys() if pairs else set()
    for name in caches:
        actual.arguments[name] = to_pairs(actual.arguments[name])
    refused = None
    try:
        call(getattr(ops, case.op), actual)
    except ValueError as error:
        refused = error
        assert str(error).startswith(f"{case.op}: "), error
    assert (refused is None) == expected.is_legal, refused or "not refused"
    for name in caches:
        actual.arguments[name] = from_pairs(actual.arguments[name])
    if expected.is_legal:
        if not expected.is_defined:
            return
        call(getattr(reference, case.op), before)
    assert_same(actual, before)


def main() -> int:
    """Make calls until there are enough, or one fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.ops.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="make this one case, and show it")
    options = parser.parse_args()
    torch.set_num_threads(2)
    numbers = range(options.seed, options.seed + options.cases)
    if options.only is not None:
        numbers = range(options.only, options.only + 1)
    legal = 0
    for number in numbers:
        case = make(number)
        print(f"case {number}: {case.op}, {'; '.join(case.wrong)}", file=sys.stderr, flush=True)
        if options.only is not None:
            print(case, file=sys.stderr)
        set_isa(random.Random(number))
        check_on_cpu(case, pairs=number % 2 == 0)
        legal += Expected(case).is_legal
    print(f"{len(numbers)} cases, {legal} legal")
    return 0


def set_isa(rng: random.Random) -> None:
    """Take any instruction set of this processor."""
    names = ["baseline", "avx2", "avx512", "avx512bf16", "amx"]
    rng.shuffle(names)
    for name in names:
        try:
            return torch.ops.fastgen.set_isa(name)
        except ValueError:
            continue


if __name__ == "__main__":
    sys.exit(main())
