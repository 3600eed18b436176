"""Norms of the value vectors of a request."""

from torch import Tensor

from fastgen_vllm.ops.compiled import compiled


@compiled
def value_norm(arena: Tensor, block_row: Tensor, heads: Tensor, norm: Tensor) -> None:
    """Write the Euclidean norm of the value vector in each head's first ``N`` slots, in order.

    Args:
        arena: ``[L, B, H, 2*S, D]`` KV cache, float32, float16 or bfloat16; the last two
            dimensions contiguous, ``S`` and ``D`` multiples of 32. On the CPU it may be bfloat16 in
            pairs, ``[L, B, H, 2*S, D/2, 2]`` (``fastgen_vllm.ops.layout``).
        block_row: int32 ``[M]``, the request's blocks in order.
        heads: int32 ``[L, H, 16]``, the request's head records (``HeadField``); of a stock row,
            ``stock_records``. ``LENGTH`` is not read.
        norm: float32 ``[L, H, N]``, contiguous. Overwritten.

    Raises:
        ValueError: an argument has another shape, dtype or layout than stated. On the CPU
            also where a head record, a block or the row's length cannot be.
    """
