"""Decode attention by kernels that are not ours: (request, head) is their batch.

A head's pages are a sequence of their own once the cache is seen as pages with one head each, so
that any paged attention kernel can run them. Cross-checks for our kernel, and a way out where it
misbehaves; slower than it, because values are added up in a pass of its own over K.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fastgen_vllm.geometry import HeadField, StoreRule
from fastgen_vllm.ops.reference import pooled
from fastgen_vllm.pages.fold import fold_heads

#: Elements of K that one pass of adding up values gathers at a time.
GATHERED = 1 << 24


class FoldedDecode(ABC):
    """Called like ``fastgen_vllm.ops.decode_attention``, with the same effects.

    Args:
        cache: ``[L, B, H, ...]``, as the ops take it; layers, blocks and heads evenly spaced.
    """

    def __init__(self, cache: Tensor) -> None:
        num_layers, num_blocks, num_heads = cache.shape[:3]
        self._shape = (num_layers, num_blocks, num_heads)
        #: [L*B*H, ...], one head's page after another
        self.pages = cache.view(-1, *cache.shape[3:])

    @abstractmethod
    def attend(self, query: Tensor, table: Tensor, lengths: Tensor, scale: float) -> Tensor:
        """Attention of one query per head.

        Args:
            query: [J, G, D].
            table: [J, P] int32, rows of :attr:`pages`.
            lengths: [J] int32, slots in use.

        Returns:
            [J, G, D], of the query's dtype.
        """

    @abstractmethod
    def keys(self, pages: Tensor) -> Tensor:
        """Keys [..., S, D] of rows [...] of :attr:`pages`."""

    def __call__(
        self,
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
        """See ``fastgen_vllm.ops.decode_attention``."""
        records = heads[lanes.long(), layer]  # [R, H, 16]
        where = fold_heads(records, block_rows, values.shape[2], self._shape)
        jobs = query[token_index].view(-1, query.shape[1] // self._shape[2], query.shape[2])
        lengths = records[..., HeadField.LENGTH].flatten().contiguous()
        result = self.attend(jobs.contiguous(), where.pages, lengths, scale)
        output[token_index] = result.reshape(len(token_index), *query.shape[1:])

        rule = records[..., HeadField.RULE].flatten()
        squared = rule == StoreRule.BY_ENERGY
        fixed = records[..., HeadField.READ_ONLY].flatten() * values.shape[2]
        valued = (squared | (rule == StoreRule.BY_VALUE)).nonzero()[:, 0]
        slots = where.pages.shape[1] * values.shape[2]
        at_once = max(1, GATHERED // (slots * query.shape[2]))
        for begin in range(0, len(valued), at_once):
            job = valued[begin : begin + at_once]
            rows = where.metadata[job]
            keys = self.keys(where.pages[job].long()).flatten(1, 2).float()  # [V, P * S, D]
            scores = jobs[job].float() @ keys.transpose(1, 2) * scale  # [V, G, P * S]
            slot = torch.arange(scores.shape[2], device=scores.device)
            unused = slot >= lengths[job, None]
            probability = scores.masked_fill(unused[:, None], float("-inf")).softmax(-1)
            gained = torch.where(squared[job, None, None], probability.square(), probability)
            added = pooled(gained, pool).masked_fill(slot < fixed[job, None], 0)
            # No page that gains belongs to two heads; others gain 0.
            values.view(-1, values.shape[2]).index_add_(
                0, rows.flatten(), added.view(-1, values.shape[2])
            )
