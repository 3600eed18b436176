"""Replays prompts' queries; what tokens got of it lies in ``values``, beside their K and V."""

from collections.abc import Hashable

import torch
from torch import Tensor

from fastgen_vllm import ops
from fastgen_vllm.config import Pool
from fastgen_vllm.pages.size import cdiv
from fastgen_vllm.profile.replay import LAST, Rotation, whole_blocks
from fastgen_vllm.runtime.replayed import replayed
from fastgen_vllm.runtime.step import ObservedRows
from fastgen_vllm.runtime.tracked import TrackedRequest


class Replayer:
    """The replay of prompts on stock blocks.

    Args:
        arena: the KV cache, as ops take it.
        heads: [L, H, 16] int32, records of a stock row.
        values: [B, L*H, S] float32, changed in place.
        pool: how query heads of one KV head are pooled.
        rotation: how queries are turned.
    """

    def __init__(
        self, arena: Tensor, heads: Tensor, values: Tensor, pool: Pool, rotation: Rotation
    ) -> None:
        self._arena = arena
        self._heads = heads
        self._values = values
        self._pool = pool
        self._rotation = rotation

    def clear(self, request: TrackedRequest, block_row: Tensor, low: int, high: int) -> None:
        """Forget what the slots were worth of tokens that computing ``low .. high - 1`` replays."""
        first = max(whole_blocks(low), request.begin)
        end = high if high == request.num_prompt else whole_blocks(high)
        block, slot = self._slots(block_row, first, end)
        self._values[block, :, slot] = 0

    def replay(
        self, layer: int, query: Tensor, scale: float, rows: ObservedRows, reader: Hashable
    ) -> None:
        """Replay what is whole with these queries of one layer, [T, H*G, D]."""
        num_prompt = rows.observation.num_tokens
        for asked in replayed(query, rows.first_position, num_prompt, reader, rows.waiting):
            turn = self._rotation.table[len(asked.query)]
            arguments = (
                *(asked.query, self._arena, layer, rows.block_row, self._heads),
                *(asked.first_position, scale, self._pool, turn, self._rotation.interleaved),
            )
            if asked.is_last:
                ops.replayed_mass(*arguments, rows.attention[layer], rows.energy[layer])
            else:
                ops.replay(*arguments, rows.observation.sample, self._values)

    def energy(self, request: TrackedRequest) -> Tensor:
        """[L, H, N] float32: of the last queries over all tokens, and of blocks' own queries.

        The latter are scaled from ``N`` queries to :data:`LAST`. If the prefix cache left fewer
        last ones, they weigh the less; the sum is always that of ``2 * W`` queries. A token whose
        block was computed without a replay got of it what the median token of its head got.
        """
        assert request.energy is not None and request.prompt_row is not None
        num_tokens, last = request.num_prompt, request.num_observed
        block, slot = self._slots(request.prompt_row, 0, num_tokens)
        of_blocks = self._values[block, :, slot].T  # [L*H, N]
        if request.unasked:
            of_blocks = _fill(of_blocks, self._is_asked(request))
        weight = min(LAST, num_tokens)
        of_blocks = of_blocks.reshape(request.energy.shape) * (weight / num_tokens)
        return (request.energy + of_blocks) * (2 * last / (last + weight))

    def _is_asked(self, request: TrackedRequest) -> Tensor:
        """[N] bool, tokens on blocks whose own queries have been replayed."""
        page_slots = self._values.shape[-1]
        asked = torch.ones(cdiv(request.num_prompt, page_slots), dtype=torch.bool)
        asked[list(request.unasked)] = False
        asked = asked.to(self._values.device, non_blocking=True)
        return asked.repeat_interleave(page_slots)[: request.num_prompt]

    def _slots(self, block_row: Tensor, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Block and slot of a prompt's tokens ``first .. end - 1``, on its stock blocks."""
        token = torch.arange(first, max(first, end), device=self._values.device)
        page_slots = self._values.shape[-1]
        return block_row[token // page_slots].long(), token % page_slots


def _fill(energy: Tensor, is_known: Tensor) -> Tensor:
    """Give [heads, N] tokens that are not known the median of their head's others."""
    return energy.where(is_known, energy[:, is_known].median(-1, keepdim=True).values)
