"""Attention of one query per request over the ragged pages of its heads."""

from torch import Tensor

from fastgen_vllm.ops.compiled import compiled


@compiled
def decode_attention(
    query: Tensor,
    token_index: Tensor,
    lanes: Tensor,
    block_rows: Tensor,
    layer: int,
    scale: float,
    pool: str,
    arena: Tensor,
    heads: Tensor,
    values: Tensor,
    output: Tensor,
) -> None:
    """Attend from one query of each of ``R`` requests to all slots of each head of one layer.

    Accumulates in float32. The slots of ``BY_VALUE`` heads gain the probability that the query gave
    them, pooled over the head's ``G`` query heads, those of ``BY_ENERGY`` heads its square, pooled;
    ``+inf`` stays ``+inf``. The result
    depends neither on the number of threads nor on the other requests.

    Args:
        query: ``[T, H*G, D]`` of the arena's dtype; last dimension contiguous.
        token_index: int64 ``[R]``, row of ``query`` and ``output`` of each request.
        lanes: int32 ``[R]``, row of ``heads`` of each request; no lane twice.
        block_rows: int32 ``[R, M]``, the blocks of each page stream; last dimension contiguous.
        layer: in ``[0, L)``.
        scale: factor of the scores, usually ``D**-0.5``.
        pool: ``"mean"``, ``"max"`` or ``"min"`` over the ``G`` query heads of a head.
        arena: ``[L, B, H, 2*S, D]`` KV cache, float32, float16 or bfloat16; the last two
            dimensions contiguous, ``S`` and ``D`` multiples of 32. On the CPU it may be bfloat16 in
            pairs, ``[L, B, H, 2*S, D/2, 2]`` (``fastgen_vllm.ops.layout``).
        heads: int32 ``[lanes, L, H, 16]`` head records (``HeadField``), every ``LENGTH >= 1``.
        values: float32 ``[B, L*H, S]`` value of each slot. Changed in place.
        output: ``[T, H*G, D]`` of the arena's dtype; last dimension contiguous. The rows of
            ``token_index`` are overwritten, others are left alone.

    Raises:
        ValueError: an argument has another shape, dtype, layout or range than stated. On the CPU
            also where a token, a lane, a head record, a block or its row's length cannot be, or a
            head is empty; on CUDA the output of such a head is NaN.
    """
