"""Paged decode attention in Triton: what is written in an afternoon, to stand beside ours.

The tokens of a head are split over programs, and their parts merged; its query heads, padded to 16,
are rows of a tensor core's tile. Every head has as many tokens.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton compiles the kernels: types of their parameters are constants.

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16  # of a tile, the least that a tensor core takes: query heads beyond G are nobody's
BLOCK = 64  # tokens of a tile


class PagedAttention:
    """The attention of R requests of as many tokens; memory for its parts is set apart once.

    Args:
        cache: [B, H, S, 2*D], K and V of a slot side by side, strided.
        table: [R, M] int32
        tokens: of every request.
        group: query heads of a KV head, G.
        splits: programs that share a head's tokens, a power of two.
    """

    def __init__(self, cache: Tensor, table: Tensor, tokens: int, group: int, splits: int) -> None:
        self._cache, self._table, self._tokens = cache, table, tokens
        self._group, self._splits = group, splits
        rows = len(table) * cache.shape[1] * group
        size = cache.shape[3] // 2
        self._states = torch.empty(rows * splits * size, device=cache.device)
        self._weights = torch.empty(rows * splits * 2, device=cache.device)

    def __call__(self, query: Tensor, output: Tensor) -> None:
        """Attend: query and output are [R, H*G, D], contiguous."""
        _, H, S, width = self._cache.shape
        D, G = width // 2, self._group
        scale = D**-0.5 * math.log2(math.e)
        _attend[(len(query) * H, self._splits)](
            *(query, self._cache, self._table, self._states, self._weights),
            *(scale, self._tokens, self._table.shape[1], *self._cache.stride()[:3]),
            *(self._splits, G, H, D, S, ROWS, BLOCK),
        )
        _merge[(query.shape[0] * query.shape[1],)](
            *(self._states, self._weights, output, self._splits, G, D)
        )


@triton.jit
def _attend(
    query, cache, table, states, weights, scale, tokens, table_width,
    block_stride, head_stride, slot_stride,
    SPLITS: tl.constexpr, G: tl.constexpr, H: tl.constexpr, D: tl.constexpr,
    SLOTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A part of the tokens of one head: its weighted values, maximum and sum of weights."""
    job, split = tl.program_id(0), tl.program_id(1)
    share = tl.cdiv(tl.cdiv(tokens, SPLITS), BLOCK) * BLOCK
    begin = split * share
    end = tl.minimum(begin + share, tokens)
    row, column = tl.arange(0, ROWS), tl.arange(0, D)
    there = row[:, None] < G
    place = (job * G + row[:, None]) * D + column[None, :]
    q = tl.load(query + place, mask=there, other=0.0)
    most = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, D], tl.float32)
    for first in range(begin, end, BLOCK):
        token = first + tl.arange(0, BLOCK)
        inside = token < end
        block = tl.load(table + job // H * table_width + token // SLOTS, mask=inside, other=0)
        slot = block.to(tl.int64) * block_stride + job % H * head_stride
        slot += token % SLOTS * slot_stride
        key = tl.load(cache + slot[None, :] + column[:, None], mask=inside[None, :], other=0.0)
        value = tl.load(
            cache + slot[:, None] + D + column[None, :], mask=inside[:, None], other=0.0
        )
        score = tl.where(inside[None, :], tl.dot(q, key) * scale, float("-inf"))
        higher = tl.maximum(most, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        shrunk = tl.exp2(most - higher)
        total = total * shrunk + tl.sum(weight, 1)
        sums = sums * shrunk[:, None] + tl.dot(weight.to(value.dtype), value)
        most = higher
    state = (job * SPLITS + split) * G + row
    tl.store(states + state[:, None] * D + column[None, :], sums, mask=there)
    tl.store(weights + state * 2, most, mask=row < G)
    tl.store(weights + state * 2 + 1, total, mask=row < G)


@triton.jit
def _merge(states, weights, output, SPLITS: tl.constexpr, G: tl.constexpr, D: tl.constexpr):
    """An output row of its parts."""
    row = tl.program_id(0)
    split, column = tl.arange(0, SPLITS), tl.arange(0, D)
    state = (row // G * SPLITS + split) * G + row % G
    most = tl.load(weights + state * 2)
    total = tl.load(weights + state * 2 + 1)
    factor = tl.where(total > 0, tl.exp2(most - tl.max(most, 0)), 0.0)
    sums = tl.load(states + state[:, None] * D + column[None, :])
    result = tl.sum(sums * factor[:, None], 0) / tl.sum(total * factor, 0)
    tl.store(output + row * D + column, result.to(output.dtype.element_ty))
