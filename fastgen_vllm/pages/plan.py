"""From kept tokens per head to intervals of the page stream."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen_vllm.geometry import CacheGeometry, HeadField, StoreRule
from fastgen_vllm.pages.size import StreamSize, cdiv
from fastgen_vllm.policy.base import Choice


@dataclass(frozen=True)
class StreamPlan:
    """Intervals of one request's page stream; drawn in :mod:`fastgen_vllm.pages`."""

    size: StreamSize
    records: Tensor  # [L, H, len(HeadField)] int32, LENGTH = 0 until compaction

    @classmethod
    def make(cls, choice: Choice, num_observed: int, geometry: CacheGeometry) -> "StreamPlan":
        """Lay out the heads of one request.

        A capped head gets room for its kept tokens and one more, but no more than the prompt's
        pages: replacing in place needs no spare slot. A head that appends gets room for its
        kept tokens; all such heads grow when the first of them is full.
        """
        num_tokens = choice.keep.shape[-1]
        block_size = geometry.block_size
        prompt_pages = cdiv(num_tokens, block_size)

        rule = torch.tensor([policy.rule for policy in choice.policies])[choice.index]
        protects = torch.tensor([policy.protects for policy in choice.policies])[choice.index]
        windows = torch.tensor([policy.window(num_tokens) for policy in choice.policies])
        growing = rule == StoreRule.APPEND
        num_growing = int(growing.sum())

        kept = choice.keep.sum(-1)
        num_pages = ((kept + block_size) // block_size).clamp(max=prompt_pages)
        num_pages[growing] = -(-kept[growing] // block_size)
        slack = num_pages[growing] * block_size - kept[growing]
        room = num_tokens + int(slack.min()) if num_growing else 0

        flat = num_pages.flatten()
        first_page = (flat.cumsum(0) - flat).view_as(num_pages)
        rank = (growing.flatten().cumsum(0) - 1).view_as(num_pages)
        fixed_pages = int(flat.sum())

        records = torch.zeros(*num_pages.shape, len(HeadField), dtype=torch.int32)
        records[..., HeadField.FIRST_PAGE] = first_page.int()
        records[..., HeadField.NUM_PAGES] = num_pages.int()
        records[..., HeadField.GROWTH_PAGE] = (fixed_pages + rank).int()
        records[..., HeadField.GROWTH_STRIDE] = num_growing
        records[..., HeadField.RULE] = rule.int()
        records[..., HeadField.PROTECTS] = protects.int()
        records[..., HeadField.WINDOW] = windows[choice.index].int()
        records[..., HeadField.OBSERVED_FROM] = num_tokens - num_observed
        size = StreamSize(
            fixed_pages=fixed_pages,
            num_growing=num_growing,
            room=room,
            pages_per_block=geometry.pages_per_block,
            block_size=block_size,
        )
        return cls(size, records)

    def capacity(self) -> Tensor:
        """[L, H] int64, slots of each head's fixed interval."""
        return self.records[..., HeadField.NUM_PAGES].long() * self.size.block_size

    def growing(self) -> Tensor:
        """[L, H] bool, heads that append."""
        return self.records[..., HeadField.RULE] == StoreRule.APPEND
