"""Which stored tokens a compaction copies, per head, and their starting values."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastgen_vllm.geometry import HeadField, StoreRule
from fastgen_vllm.pages.plan import StreamPlan
from fastgen_vllm.policy.base import Choice
from fastgen_vllm.profile.prompt import PromptProfile

_TIER = 2.0**40  # above every position and average; sums are exact


class CompactionCopy(NamedTuple):
    """Arguments of the ``compact`` op for one request, all layers and heads."""

    kept: Tensor  # [K] int32, token positions, ascending per head, heads in (l, h) order
    kept_start: Tensor  # [L*H + 1] int64, where each head's tokens start in `kept`
    kept_value: Tensor  # [K] float32, accumulated attention or energy; +inf = protected
    records: Tensor  # [L, H, len(HeadField)] int32, LENGTH set


class PreparedCompaction(NamedTuple):
    """All that compacting a request takes: 8 bytes for each kept token of each head.

    A plan may wait for long until its request is compacted. The profile that it was made from has
    25 bytes for each token of the prompt and head, and need not wait with it.
    """

    stream: StreamPlan
    num_prompt: int  # N
    kept: Tensor  # [K] int32, positions of the prompt, ascending per head, heads in (l, h) order;
    #             without those on blocks that stay
    kept_count: Tensor  # [L*H] int64, how many of them each head has
    seen: Tensor  # [K] float32, accumulated attention, or energy where the head values by it
    average: Tensor  # [L*H] float32, of those of all tokens of the prompt, of one query

    @classmethod
    def make(
        cls, choice: Choice, stream: StreamPlan, profile: PromptProfile
    ) -> "PreparedCompaction":
        """Take from a prompt's profile what the kept tokens start with."""
        heads = (choice.index.numel(), profile.num_tokens)
        keep = choice.keep.reshape(heads).clone()
        keep[:, : stream.num_stock] = False
        by_energy = stream.records[..., HeadField.RULE, None] == StoreRule.BY_ENERGY
        seen = torch.where(by_energy, profile.energy, profile.attention).view(heads)
        head, position = keep.nonzero(as_tuple=True)
        return cls(
            stream=stream,
            num_prompt=profile.num_tokens,
            kept=position.int(),
            kept_count=keep.sum(-1),
            seen=seen[head, position],
            average=seen.sum(-1) / (profile.num_tokens * profile.num_observed),
        )

    def copy(self, token_class: Tensor) -> CompactionCopy:
        """Decide what to copy when the request holds ``T >= N`` stored tokens.

        Tokens ``N .. T-1`` were generated while the request still decoded through the stock path
        (a step or two with async scheduling, more when blocks were short, all that it had before
        a preemption). They enter every head as if ``store`` had met them, with the attention of
        an average token, since nobody watched theirs. What then exceeds a head's capacity goes
        by the head's own rule.

        Args:
            token_class: [T] int32 TokenClass bits of all stored tokens.
        """
        num_heads, num_stored = len(self.average), len(token_class)
        records = self.stream.records.clone().view(num_heads, len(HeadField))
        head = torch.arange(num_heads).repeat_interleave(self.kept_count)
        prompt = (head, self.kept.long())
        keep = torch.zeros(num_heads, num_stored, dtype=torch.bool)
        keep[prompt] = True
        keep[:, self.num_prompt :] = True
        num_stock = self.stream.num_stock

        position = torch.arange(num_stored)
        value = torch.zeros(num_heads, num_stored)
        value[prompt] = self.seen
        later = num_stored - position[self.num_prompt :]
        value[:, self.num_prompt :] = later * self.average[:, None]
        protected = (records[:, HeadField.PROTECTS, None] & token_class) != 0
        value.masked_fill_(protected, math.inf)

        capacity = self.stream.capacity(num_stored).flatten() - num_stock
        free_excess(keep, value, position, capacity, records)
        kept_count = keep.sum(-1)
        records[:, HeadField.LENGTH] = num_stock + kept_count.int()
        kept_start = torch.zeros(num_heads + 1, dtype=torch.int64)
        torch.cumsum(kept_count, 0, out=kept_start[1:])
        head, kept = keep.nonzero(as_tuple=True)
        return CompactionCopy(
            kept=kept.int(),
            kept_start=kept_start,
            kept_value=value[head, kept],
            records=records.view_as(self.stream.records),
        )


def free_excess(
    keep: Tensor, value: Tensor, position: Tensor, capacity: Tensor, records: Tensor
) -> None:
    """Drop from `keep`, in place, what exceeds the capacity of its head.

    The order is that of the ``store`` op: unprotected tokens outside the window first, least
    average attention (or oldest) first; then unprotected ones in the window, oldest first;
    then protected ones, oldest first.

    Args:
        keep: [heads, T] bool.
        value: [heads, T] float32, as `CompactionCopy.kept_value`.
        position: [T] int64, from 0.
        capacity: [heads] int64, tokens that fit.
        records: [heads, len(HeadField)] int32.
    """
    excess = keep.sum(-1) - capacity
    over = (excess > 0).nonzero()[:, 0]
    if len(over) == 0:
        return
    rank = _rank(value[over], position, records[over])
    rank.masked_fill_(~keep[over], math.inf)
    excess = excess[over, None]
    least = rank.topk(int(excess.max()), largest=False).values
    last = least.gather(1, excess - 1)  # of those that go
    goes, may_go = rank < last, rank == last
    goes |= may_go & (may_go.cumsum(-1) <= excess - goes.sum(-1, keepdim=True))  # oldest first
    keep[over] &= ~goes


def _rank(value: Tensor, position: Tensor, records: Tensor) -> Tensor:
    """Return [heads, T] float64 numbers, least for what goes first; equal ones go by age."""
    viewers = len(position) - torch.maximum(position, records[:, HeadField.OBSERVED_FROM, None])
    average = value / viewers
    is_protected = average == math.inf
    in_window = position >= len(position) - records[:, HeadField.WINDOW, None]
    tier = is_protected * 2 + (in_window & ~is_protected)
    valued = torch.tensor([rule for rule in StoreRule if rule.values_tokens], dtype=torch.int32)
    by_value = (tier == 0) & torch.isin(records[:, HeadField.RULE, None], valued)
    return tier * _TIER + torch.where(by_value, average.double(), position.double())
