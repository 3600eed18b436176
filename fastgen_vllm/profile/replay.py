"""Replay: a prompt's own queries, asked again from behind it, stand for those that may come.

Rows are replayed from behind the block of :data:`BLOCK` tokens that they are in, so that what a
block's tokens get depends on nothing that follows it, and the prompt's last :data:`LAST` rows from
behind the prompt once more. KVzip (arXiv 2505.23416) reads a prompt twice to the same end; here it
is the queries that are moved, not the text that is repeated.
"""

from typing import NamedTuple

import torch
from torch import Tensor

#: Tokens from behind which their own queries are replayed.
BLOCK = 512
#: Queries are replayed from a multiple of so many tokens on.
TILE = 32
#: Last queries of a prompt that are replayed from behind it, over all of its tokens.
LAST = 128
#: Keys, one of so many, that stand for all in the sums of a block's rows.
SAMPLE = 16


def whole_blocks(num_tokens: int) -> int:
    """How many of a prompt's first tokens are in blocks that are whole."""
    return num_tokens // BLOCK * BLOCK


class Rotation(NamedTuple):
    """By which angles a query is turned to lie some positions further on."""

    table: Tensor  # [BLOCK + 1, 2, P] float32, cosines and sines by number of positions
    interleaved: bool  # pairs of columns are neighbours

    @classmethod
    def none(cls, device: torch.device) -> "Rotation":
        """Of a model without rotary embedding: queries say nothing of where they are."""
        return cls(torch.zeros(BLOCK + 1, 2, 0, device=device), False)

    @classmethod
    def of(cls, cos: Tensor, sin: Tensor, interleaved: bool) -> "Rotation":
        """Take from a rotary embedding's own table what turns: scaling of its length is left out.

        Args:
            cos, sin: [>= BLOCK + 1, P] by position, from 0.
        """
        table = torch.stack([cos, sin], dim=1)[: BLOCK + 1].float()
        return cls((table / table.norm(dim=1, keepdim=True)).contiguous(), interleaved)
