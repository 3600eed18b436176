"""Decode kernels that are not ours, beside the reference: outputs and values."""

from typing import Any

import pytest
import torch
from torch import Tensor
from xformers.ops import fmha

from fastgen_vllm.geometry import StoreRule
from fastgen_vllm.integration.cpu import StockCPUDecode
from fastgen_vllm.integration.cuda import StockFlashDecode, XformersDecode
from fastgen_vllm.integration.folded import FoldedDecode
from fastgen_vllm.ops import reference
from fastgen_vllm.ops.layout import to_cuda_layout
from tests.integration import flash
from tests.ops.cases import DTYPES, POOLS, Cache, relative_error
from tests.ops.test_decode_attention import Step

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
LENGTHS = [1, 70, 33, 200, 32, 31]


def contiguous(cache: Cache) -> Cache:
    """The same cache as vLLM lays it out, without NaN in what nobody wrote."""
    return Cache(cache.arena.nan_to_num().contiguous(), cache.positions, cache.values)


def check(step: Step, kernel: FoldedDecode, pool: str) -> None:
    dtype = step.query.dtype
    expected_values = torch.rand_like(step.cache.values)
    expected_values[::3] = float("inf")
    actual_values = expected_values.clone()
    expected = step.run(pool, expected_values, reference.decode_attention)
    actual = step.run(pool, actual_values, kernel)
    assert relative_error(actual, expected.double()) <= TOLERANCE[dtype]
    finite = expected_values.isfinite()
    assert torch.equal(finite, actual_values.isfinite())
    assert torch.allclose(actual_values[finite], expected_values[finite], atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("rule", [StoreRule.APPEND, StoreRule.BY_VALUE, StoreRule.BY_ENERGY])
def test_stock_on_the_cpu(rule: StoreRule, pool: str, dtype: torch.dtype) -> None:
    step = Step(LENGTHS, dtype, 32, 64, 3, rule)
    step.cache = contiguous(step.cache)
    check(step, StockCPUDecode(step.cache.arena), pool)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", [StoreRule.APPEND, StoreRule.BY_VALUE, StoreRule.BY_ENERGY])
def test_stock_on_cuda(
    rule: StoreRule, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flash.fa_utils, "get_flash_attn_version", flash.flash_version)
    name = "flash_attn_varlen_func"
    monkeypatch.setattr(flash.fa_utils, name, flash.flash_attention, raising=False)
    step = Step(LENGTHS, dtype, 32, 64, 3, rule)
    check(step, StockFlashDecode(to_cuda_layout(contiguous(step.cache).arena)), "mean")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", [StoreRule.APPEND, StoreRule.BY_ENERGY])
def test_xformers(rule: StoreRule, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fmha, "memory_efficient_attention_forward", materialized_attention)
    step = Step(LENGTHS, dtype, 32, 64, 3, rule)
    leave_block_zero(step)
    check(step, XformersDecode(to_cuda_layout(contiguous(step.cache).arena)), "mean")


def leave_block_zero(step: Step) -> None:
    """Use another block: the dense mask is wrong for a page 0 that also fills up a table."""
    unused = min(set(range(step.cache.arena.shape[1])) - set(step.rows.flatten().tolist()) - {0})
    for tensor, dim in ((step.cache.arena, 1), (step.cache.values, 0)):
        tensor.select(dim, unused).copy_(tensor.select(dim, 0).clone())
    step.rows[step.rows == 0] = unused


def materialized_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_bias: Any, scale: float
) -> Tensor:
    """What xformers computes on a GPU, by the dense mask that its bias stands for."""
    q, k, v = (part[0].float() for part in (query, key, value))  # [J, 1, G, D], [N, 1, G, D]
    mask = attn_bias.materialize((len(q), attn_bias.k_seqinfo.seqstart_py[-1]))
    seen = mask.shape[1]
    scores = torch.einsum("qhgd,khgd->hgqk", q, k[:seen]) * scale + mask
    result = torch.einsum("hgqk,khgd->qhgd", scores.softmax(-1), v[:seen])
    return result.to(query.dtype)[None]
