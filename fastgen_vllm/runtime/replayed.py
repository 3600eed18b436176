"""A prompt's queries on their way to being replayed: those whose block is not whole yet wait."""

from collections.abc import Hashable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastgen_vllm.profile.replay import BLOCK, LAST, whole_blocks

#: Queries that wait, [w, H*G, D], of the layer that has them: w < BLOCK + LAST.
Waiting = dict[Hashable, Tensor]


class Replayed(NamedTuple):
    """Queries that are replayed from behind the last of them."""

    query: Tensor  # [W, H*G, D]
    first_position: int
    is_last: bool  # the prompt's last ones, over all tokens


def replayed(
    query: Tensor, first_position: int, num_prompt: int, reader: Hashable, waiting: Waiting
) -> Iterator[Replayed]:
    """Yield the blocks that are whole now, and the last queries when the prompt is; keep the rest.

    What is yielded does not depend on how the prompt's queries are split over calls. Those before
    the first call's are not computed: their K and V were found in the prefix cache.

    Args:
        query: [T, H*G, D], those of positions ``first_position ..``, the next ones of the prompt.
        num_prompt: tokens of the prompt.
        reader: the layer whose queries they are.
        waiting: of the prompt, changed in place.
    """
    end = first_position + len(query)
    if (before := waiting.pop(reader, None)) is not None:
        query = torch.cat([before, query])
    start = end - len(query)
    for block in range(whole_blocks(first_position), end, BLOCK):
        first, last = max(block, start), min(block + BLOCK, num_prompt)
        if last <= end:
            yield Replayed(query[first - start : last - start], first, False)
    last_rows = max(start, num_prompt - LAST)
    if end == num_prompt:
        yield Replayed(query[last_rows - start :], last_rows, True)
    else:
        kept = max(start, min(whole_blocks(end), last_rows))
        if kept < end:
            waiting[reader] = query[kept - start :].clone()
