"""The attention that a prompt's last queries pay to each of its tokens."""

from torch import Tensor

from fastgen_vllm.ops.compiled import compiled


@compiled
def attention_mass(
    query: Tensor,
    arena: Tensor,
    layer: int,
    block_row: Tensor,
    heads: Tensor,
    first_position: int,
    scale: float,
    pool: str,
    mass: Tensor,
    energy: Tensor,
) -> None:
    """Add the attention of ``W`` consecutive queries of one layer to ``mass`` and ``energy``.

    For each query at position ``i``, each head ``h`` and each token ``n <= i``::

        p[g] = softmax over tokens 0..i of scale * (query head h*G+g . key of n)
        mass[h, n] += pool over g of p[g]
        energy[h, n] += pool over g of p[g]**2

    Slot ``n`` of a head is taken for the token at position ``n``. Queries are added in ascending
    order, each independent of the others, so splitting them over several calls gives the same
    bits.

    Args:
        query: ``[W, H*G, D]`` queries at positions ``first_position .. first_position+W-1``, of
            the arena's dtype; last dimension contiguous.
        arena: ``[L, B, H, 2*S, D]`` KV cache, float32, float16 or bfloat16; the last two
            dimensions contiguous, ``S`` and ``D`` multiples of 32. On the CPU it may be bfloat16 in
            pairs, ``[L, B, H, 2*S, D/2, 2]`` (``fastgen_vllm.ops.layout``).
        layer: in ``[0, L)``.
        block_row: int32 ``[M]``, the request's blocks in order.
        heads: int32 ``[L, H, 16]``, the request's head records (``HeadField``); of a stock row,
            ``stock_records``. ``LENGTH`` is not read.
        first_position: position of the first query, in tokens.
        scale: factor of the scores, usually ``D**-0.5``.
        pool: ``"mean"``, ``"max"`` or ``"min"`` over the ``G`` query heads of a head.
        mass: float32 ``[H, >= first_position+W]``, last dimension contiguous. Changed in place;
            later tokens are left alone.
        energy: as ``mass``.

    Raises:
        ValueError: an argument has another shape, dtype, layout or range than stated. On the CPU
            also where a head record of the layer, a block or the row's length cannot be.
    """
