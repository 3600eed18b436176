"""From kept tokens per head to intervals of the page stream."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen_vllm.geometry import CacheGeometry, HeadField, StoreRule
from fastgen_vllm.pages.size import StreamSize, cdiv
from fastgen_vllm.policy.base import Choice, Policy

#: Steps after which any head that grows has grown: longer than any request, small in an int32.
_LONGEST_PERIOD = 1 << 16


@dataclass(frozen=True)
class StreamPlan:
    """Intervals of one request's page stream; drawn in :mod:`fastgen_vllm.pages`."""

    size: StreamSize
    records: Tensor  # [L, H, len(HeadField)] int32, LENGTH = 0 until compaction

    @classmethod
    def make(
        cls, choice: Choice, num_observed: int, geometry: CacheGeometry, stock_blocks: int = 0
    ) -> "StreamPlan":
        """Lay out the heads of one request, beyond its first ``stock_blocks``, which stay.

        A head that appends gets room for its kept tokens; all such heads grow when the first of
        them is full. Any other gets room for its kept tokens and one more, but no more than the
        prompt's pages: replacing in place needs no spare slot.
        """
        num_tokens = choice.keep.shape[-1]
        block_size = geometry.block_size
        prompt_pages = cdiv(num_tokens, block_size) - stock_blocks

        rule = torch.tensor([policy.rule for policy in choice.policies])[choice.index]
        protects = torch.tensor([policy.protects for policy in choice.policies])[choice.index]
        windows = torch.tensor([policy.window(num_tokens) for policy in choice.policies])
        period = torch.tensor([growth_period(policy) for policy in choice.policies])[choice.index]
        appending, slow = period == 1, period > 1
        assert bool(appending[rule == StoreRule.APPEND].all()), "a head appends but has no growth"

        num_stock = stock_blocks * block_size
        assert bool(choice.keep[..., :num_stock].all()), "a token of a shared block is not kept"
        kept = choice.keep[..., num_stock:].sum(-1)
        num_pages = ((kept + block_size) // block_size).clamp(max=prompt_pages)
        num_pages[appending] = -(-kept[appending] // block_size)
        slack = num_pages[appending] * block_size - kept[appending]
        flat = num_pages.flatten()
        stock_pages = stock_blocks * geometry.pages_per_block
        size = StreamSize(
            fixed_pages=stock_pages + int(flat.sum()),
            num_appending=int(appending.sum()),
            num_slow=int(slow.sum()),
            slow_period=int(period[slow].min()) if slow.any() else 1,
            room=num_tokens + (int(slack.min()) if appending.any() else 0),
            pages_per_block=geometry.pages_per_block,
            block_size=block_size,
            stock_blocks=stock_blocks,
        )

        records = torch.zeros(*num_pages.shape, len(HeadField), dtype=torch.int32)
        records[..., HeadField.STOCK_PAGES] = records[..., HeadField.READ_ONLY] = stock_blocks
        records[..., HeadField.STOCK_PAGE] = torch.arange(len(flat)).view_as(num_pages)
        first_page = stock_pages + flat.cumsum(0) - flat
        records[..., HeadField.FIRST_PAGE] = first_page.view_as(num_pages).int()
        records[..., HeadField.NUM_PAGES] = num_pages.int()
        _lay_out_growth(records, appending, slow, size)
        records[..., HeadField.RULE] = rule.int()
        records[..., HeadField.PROTECTS] = protects.int()
        records[..., HeadField.WINDOW] = windows[choice.index].int()
        records[..., HeadField.OBSERVED_FROM] = num_tokens - num_observed
        return cls(size, records)

    def capacity(self, num_tokens: int) -> Tensor:
        """[L, H] int64, slots that each head may use when the request stores so many tokens."""
        period = self.records[..., HeadField.GROWTH_PERIOD].long()
        steps = self.size.steps(num_tokens)
        grown = torch.where(period > 0, steps // period.clamp(min=1), 0)
        pages = self.records[..., HeadField.NUM_PAGES] + self.size.stock_blocks + grown
        return pages * self.size.block_size

    @property
    def num_stock(self) -> int:
        """Tokens on the blocks that stay."""
        return self.size.stock_blocks * self.size.block_size


def growth_period(policy: Policy) -> int:
    """Steps of growth in which a head of the policy gains a page: 0 never, 1 with every step.

    Rounded down, so that a head gains no less than ``policy.growth`` slots per token.
    """
    if policy.growth <= 0:
        return 0
    return int(min(1 / policy.growth, _LONGEST_PERIOD) + 1e-6)


def _lay_out_growth(records: Tensor, appending: Tensor, slow: Tensor, size: StreamSize) -> None:
    """Fill in where the heads' growth pages lie. Masks are [L, H] bool."""

    def rank(among: Tensor) -> Tensor:
        return (among.flatten().cumsum(0) - 1).view_as(among)[among].int()

    records[..., HeadField.SKIP_PERIOD] = size.slow_period
    records[..., HeadField.ROOM] = size.room

    first = size.fixed_pages + rank(appending)
    records[..., HeadField.GROWTH_PAGE][appending] = first
    records[..., HeadField.GROWTH_STRIDE][appending] = size.num_appending
    records[..., HeadField.GROWTH_PERIOD][appending] = 1
    records[..., HeadField.SKIP_PAGES][appending] = size.num_slow

    between = size.slow_period * size.num_appending
    records[..., HeadField.GROWTH_PAGE][slow] = size.fixed_pages + between + rank(slow)
    records[..., HeadField.GROWTH_STRIDE][slow] = between + size.num_slow
    records[..., HeadField.GROWTH_PERIOD][slow] = size.slow_period
