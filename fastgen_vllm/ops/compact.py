"""Copying a request's kept tokens from its blocks into fresh ones."""

from torch import Tensor

from fastgen_vllm.ops.compiled import compiled


@compiled
def compact(
    arena: Tensor,
    old_row: Tensor,
    old_heads: Tensor,
    saved: Tensor,
    new_row: Tensor,
    kept: Tensor,
    kept_position: Tensor,
    kept_start: Tensor,
    kept_value: Tensor,
    heads: Tensor,
    positions: Tensor,
    values: Tensor,
) -> None:
    """Move the kept tokens of one request, all layers, from its pages to a page stream.

    What is in slot ``kept[kept_start[l*H+h] + i]`` of head ``(l, h)`` comes into slot
    ``STOCK_PAGES * S + i`` of the new head; its position and starting value become that slot's
    metadata. What lies on the new head's first ``STOCK_PAGES`` pages stays as it is.

    Args:
        arena: ``[L, B, H, 2*S, D]`` KV cache, float32, float16 or bfloat16; the last two
            dimensions contiguous, ``S`` and ``D`` multiples of 32. On the CPU it may be bfloat16 in
            pairs, ``[L, B, H, 2*S, D/2, 2]`` (``fastgen_vllm.ops.layout``). Changed in place.
        old_row: int32 ``[M]``, the request's blocks in order: ``b < B`` is ``arena[:, b]``,
            ``B + i`` is ``saved[:, i]``.
        old_heads: int32 ``[L, H, 16]``, the request's head records (``HeadField``); of a stock row,
            ``stock_records``. ``LENGTH`` is not read.
        saved: ``[L, C, H, 2*S, D]``, copies of the blocks that are in both rows, dtype and order
            like ``arena``; ``C`` is mostly 0. Only read.
        new_row: int32, the blocks of the page stream in order; none of them is in ``old_row``.
        kept: int32 ``[K]`` slots of the old heads, head after head in ``(l, h)`` order.
        kept_position: int32 ``[K]`` token positions; of a stock row, equal to ``kept``.
        kept_start: int64 ``[L*H + 1]``, half-open bounds of each head in ``kept``.
        kept_value: float32 ``[K]`` accumulated attention mass; ``+inf`` marks a protected token.
        heads: int32 ``[L, H, 16]``, the records of the new heads, ``LENGTH`` = tokens kept, those
            on stock pages among them.
        positions: int32 ``[B, L*H, S]`` token position of each slot. Changed in place.
        values: float32 ``[B, L*H, S]`` value of each slot. Changed in place.

    Raises:
        ValueError: an argument has another shape, dtype or layout than stated. On the CPU also
            where ``kept_start`` disagrees with ``kept`` or with a ``LENGTH``, where a slot is not
            on the old row, and where a head record, a block or its row's length cannot be.
    """
