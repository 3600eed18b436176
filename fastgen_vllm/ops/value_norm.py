"""Norms of the value vectors of a prompt."""

from torch import Tensor

from fastgen_vllm.ops.compiled import compiled


@compiled
def value_norm(arena: Tensor, block_row: Tensor, norm: Tensor) -> None:
    """Write the Euclidean norm of every prompt token's value vector, all layers and heads.

    Args:
        arena: ``[L, B, H, 2*S, D]`` KV cache, float32, float16 or bfloat16; the last two
            dimensions contiguous, ``S`` and ``D`` multiples of 32. On the CPU it may be bfloat16 in
            pairs, ``[L, B, H, 2*S, D/2, 2]`` (``fastgen_vllm.ops.layout``).
        block_row: int32 ``[>= ceil(N / S)]``, the prompt's stock blocks in order.
        norm: float32 ``[L, H, N]``, contiguous. Overwritten.

    Raises:
        ValueError: an argument has another shape, dtype or layout than stated. On the CPU
            also where a block is none of the arena's.
    """
