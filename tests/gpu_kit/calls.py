"""Every op beside its reference, a line of JSON each: ``python -m tests.gpu_kit.calls few``.

``few`` calls on small requests in every dtype are the first that a device sees, and what sanitizers
look at; the name of a dtype stands for all that the self-check does in it.
"""

import sys
from collections.abc import Iterator

import torch

from fastgen_vllm.selfcheck.correctness import (
    DTYPES,
    HEADS_FIRST,
    PRESETS,
    SHAPES,
    SLOTS_FIRST,
    Shape,
    check,
)
from fastgen_vllm.selfcheck.report import OpCheck
from tests.gpu.device import DEVICE, DRY, stand_in

FEW = Shape(num_layers=1, num_kv_heads=2, group_size=4, head_size=128, block_size=16)


def checks(what: str) -> Iterator[OpCheck]:
    """Check a few calls, or all of a dtype."""
    if what == "few":
        for dtype in DTYPES:
            yield from check(DEVICE, dtype, HEADS_FIRST, [FEW], ["balanced"])
    else:
        shapes, presets = ([FEW], ["paper"]) if DRY else (SHAPES["cuda"], PRESETS)
        for order in (HEADS_FIRST, SLOTS_FIRST):
            yield from check(DEVICE, getattr(torch, what), order, shapes, presets)


def main(what: str) -> int:
    """1 if a result is wrong."""
    stand_in()
    passed = True
    for each in checks(what):
        print(each.model_dump_json(), flush=True)
        passed &= each.passed
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
