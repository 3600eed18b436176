"""Copying a request's kept tokens from its prompt's blocks into fresh ones."""

from torch import Tensor

from fastgen_vllm.ops.compiled import compiled


@compiled
def compact(
    source: Tensor,
    old_row: Tensor,
    arena: Tensor,
    new_row: Tensor,
    kept: Tensor,
    kept_start: Tensor,
    kept_value: Tensor,
    heads: Tensor,
    positions: Tensor,
    values: Tensor,
) -> None:
    """Move the kept tokens of one request, all layers, from stock pages to its page stream.

    Token ``kept[kept_start[l*H+h] + i]`` of head ``(l, h)`` becomes slot ``i`` of that head; its
    position and starting value become that slot's metadata. ``source`` is only read.

    Args:
        source: ``[L, B', H, 2*S, D]``, the cache that holds the stock pages: ``arena`` itself
            if no block is in both rows, else a copy of the old blocks.
        old_row: int32 ``[ceil(N / S)]``, the stock blocks in order, as numbered in ``source``.
        arena: ``[L, B, H, 2*S, D]`` KV cache, float32, float16 or bfloat16; the last two
            dimensions contiguous, ``S`` and ``D`` multiples of 32. On the CPU it may be bfloat16 in
            pairs, ``[L, B, H, 2*S, D/2, 2]`` (``fastgen_vllm.ops.layout``). Changed in place.
        new_row: int32, the blocks of the page stream in order.
        kept: int32 ``[K]`` token positions, head after head in ``(l, h)`` order.
        kept_start: int64 ``[L*H + 1]``, half-open bounds of each head in ``kept``.
        kept_value: float32 ``[K]`` accumulated attention mass; ``+inf`` marks a protected token.
        heads: int32 ``[L, H, 13]`` head records (``HeadField``), ``LENGTH`` = tokens kept.
        positions: int32 ``[B, L*H, S]`` token position of each slot. Changed in place.
        values: float32 ``[B, L*H, S]`` value of each slot. Changed in place.

    Raises:
        ValueError: an argument has another shape, dtype or layout than stated. On the CPU also
            where ``kept_start`` disagrees with ``kept`` or with a ``LENGTH``, where a token is not
            of the prompt, and where a head record, a block or its row's length cannot be.
    """
