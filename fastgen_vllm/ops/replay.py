"""What a block of a prompt's queries would read if they were asked again from behind it."""

from torch import Tensor

from fastgen_vllm.ops.compiled import compiled


@compiled
def replay(
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
    sample: int,
    values: Tensor,
) -> None:
    """Add the energy that a block's tokens get from its ``W`` queries, turned behind them.

    Let ``e = first_position + W``, and ``tile(n) = n // 32``. For the query ``q`` at position ``i``
    of each query head, ``q'`` being ``q`` turned, and each token ``n`` of the tiles ``tile(i)`` and
    ``tile(i) + 1``, as far as ``n < e``::

        near  = sum of exp(scale * q . key of n) over n in (i - 32, i]
        exact = sum of exp(scale * q' . key of n) over the tokens of those two tiles below e
        rest  = sum of w(n) * exp(scale * q' . key of n) over all others below e
        p     = exp(scale * q' . key of n) / (near + exact + rest)
        values[token n] += pool over g of p[g]**2

    where ``w`` is 1 if ``sample`` is 1, and otherwise 1 for the first four tokens, ``sample`` for
    the last one of every ``sample``, and 0 for the others. All queries see all keys: it is as if
    they came after them. The sum of the rest is an estimate, whose terms are small each: what a
    query finds lies beside it, as the row that looks for a token is mostly the one before it.

    Args:
        query: ``[W, H*G, D]``, after rotary embedding, of the arena's dtype; last dimension
            contiguous.
        arena: as in ``attention_mass``.
        layer: in ``[0, L)``.
        block_row: as in ``attention_mass``.
        heads: as in ``attention_mass``.
        first_position: position of the first query, a multiple of 32.
        scale: factor of the scores, usually ``D**-0.5``.
        pool: ``"mean"``, ``"max"`` or ``"min"`` over the ``G`` query heads of a head.
        turn: float32 ``[2, P]``, cosines and sines of the angles by which ``P`` pairs of columns
            are turned; other columns stay.
        interleaved: pairs are columns ``2*i`` and ``2*i + 1``, not ``i`` and ``i + P``.
        sample: 1, 8, 16 or 32.
        values: float32 ``[B, L*H, S]``, changed in place where K and V of the block's tokens lie,
            but for a head's first ``READ_ONLY`` pages.

    Raises:
        ValueError: an argument has another shape, dtype, layout or range than stated.
    """
