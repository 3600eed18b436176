"""The attention that a prompt's last queries would pay to its tokens from behind them."""

from torch import Tensor

from fastgen_vllm.ops.compiled import compiled


@compiled
def replayed_mass(
    query: Tensor,
    arena: Tensor,
    layer: int,
    block_row: Tensor,
    heads: Tensor,
    first_position: int,
    scale: float,
    pool: str,
    turn: Tensor,
    interleaved: bool,
    mass: Tensor,
    energy: Tensor,
) -> None:
    """Add the attention of a prompt's last ``W`` queries, turned behind it.

    As ``attention_mass``, but with ``N = first_position + W``, the query ``q`` at position ``i`` of
    each query head, ``q'`` being ``q`` turned, and each token ``n < N``::

        near = sum of exp(scale * q . key of n) over n in (i - 32, i]
        p[g] = exp(scale * q' . key of n) / (near + sum of that over all n < N)

    Args:
        query: ``[W, H*G, D]``, the prompt's last queries: all in one call.
        turn: as in ``replay``.
        interleaved: as in ``replay``.
        mass: float32 ``[H, >= N]``, changed in place.
        energy: as ``mass``.

    Others are as in ``attention_mass``.

    Raises:
        ValueError: an argument has another shape, dtype, layout or range than stated.
    """
