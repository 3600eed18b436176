"""Storing a new token in every head of compacted requests."""

from torch import Tensor

from fastgen_vllm.ops.compiled import compiled


@compiled
def store(
    key: Tensor,
    value: Tensor,
    token_index: Tensor,
    lanes: Tensor,
    block_rows: Tensor,
    token_position: Tensor,
    token_class: Tensor,
    layer: int,
    arena: Tensor,
    heads: Tensor,
    positions: Tensor,
    values: Tensor,
) -> None:
    """Write one new token of each of ``R`` requests into each head of one layer.

    A head that appends, or whose pages have room, takes its next slot and grows ``LENGTH`` by one.
    Its pages are ``NUM_PAGES`` and, unless ``GROWTH_PERIOD`` is 0, one more for every
    ``GROWTH_PERIOD * S`` of the ``token_position + 1 - ROOM`` last tokens, whose number is rounded
    up to whole ``S``. Any other head replaces a token:

    - among slots at ``position <= token_position - WINDOW`` whose value is below ``+inf``: under
      ``BY_VALUE`` and ``BY_ENERGY`` the least value per query, ``value / max(1, token_position -
      max(position, OBSERVED_FROM))``, of equals the older; under ``BY_AGE`` the oldest;
    - if there are none, the oldest whose value is below ``+inf``; if there are none, the oldest.

    The slot's new value is ``+inf`` if ``token_class & PROTECTS``, else 0.

    Args:
        key: ``[T, H, D]`` of the arena's dtype; last dimension contiguous.
        value: like ``key``.
        token_index: int64 ``[R]``, row of ``key`` and ``value`` of each request.
        lanes: int32 ``[R]``, row of ``heads`` of each request; no lane twice.
        block_rows: int32 ``[R, M]``, the blocks of each page stream; last dimension contiguous.
        token_position: int32 ``[R]``, position of the new token.
        token_class: int32 ``[R]``, ``TokenClass`` bits of the new token.
        layer: in ``[0, L)``.
        arena: ``[L, B, H, 2*S, D]`` KV cache, float32, float16 or bfloat16; the last two
            dimensions contiguous, ``S`` and ``D`` multiples of 32. On the CPU it may be bfloat16 in
            pairs, ``[L, B, H, 2*S, D/2, 2]`` (``fastgen_vllm.ops.layout``). Changed in place.
        heads: int32 ``[lanes, L, H, 16]`` head records (``HeadField``). Changed in place.
        positions: int32 ``[B, L*H, S]`` token position of each slot. Changed in place.
        values: float32 ``[B, L*H, S]`` value of each slot. Changed in place.

    Raises:
        ValueError: an argument has another shape, dtype, layout or range than stated. On the CPU
            also where a token, a lane, a head record, a block or its row's length cannot be.
    """
