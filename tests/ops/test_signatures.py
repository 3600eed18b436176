"""Who has an op's signature has it as its schema says; the schemas are in csrc/ops."""

import inspect
import re
from collections.abc import Callable

import pytest

from fastgen_vllm import ops
from fastgen_vllm.integration.folded import FoldedDecode
from fastgen_vllm.ops import reference
from tests.cuda import toolkit
from tests.cuda.emulated import EmulatedOps
from tests.cuda.structs import CALLS


def parameters(function: Callable[..., None]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.mark.parametrize("op", [*CALLS, "replay", "replayed_mass"])
def test_references_and_emulated_ops(op: str) -> None:
    schema = parameters(getattr(ops, op))  # importing them compares them with the schemas
    assert parameters(getattr(reference, op)) == schema
    if op in CALLS:
        assert parameters(getattr(EmulatedOps, op)) == schema


def test_every_op_is_launched_where_its_cache_is() -> None:
    """Nothing here calls an op on a GPU, so an op that only knows the CPU would not be found."""
    for source in (toolkit.CSRC / "ops").glob("*.cpp"):
        text = source.read_text()
        assert set(re.findall(r"FASTGEN_LAUNCH\((\w+),", text)) == set(
            re.findall(r"FASTGEN_OP\((\w+),", text)
        ), source


def test_other_decode_kernels() -> None:
    assert parameters(FoldedDecode.__call__) == parameters(ops.decode_attention)
