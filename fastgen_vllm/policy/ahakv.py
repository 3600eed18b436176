"""AhaKV: every head keeps as many tokens, by sharpened attention and the size of values."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from fastgen_vllm.geometry import StoreRule
from fastgen_vllm.policy.base import Choice, Policy, Selector
from fastgen_vllm.policy.full import Full
from fastgen_vllm.profile.observation import AHAKV_QUERIES
from fastgen_vllm.profile.prompt import PromptProfile

#: Tokens over which sizes of values are averaged; the paper does not say.
POOLING = 5


@dataclass(frozen=True)
class AhaKV(Policy, Selector):
    """Keeps the last 32 tokens and those that they attend to most, times the size of their values.

    Attention is summed over the last 32 queries, whose softmax was sharpened so that its entropy is
    that of as many tokens as are kept (:class:`fastgen_vllm.profile.observation.Observation`). The
    size of a value is its squared norm, averaged over neighbours, over the head's greatest. A
    generated token takes the place of the least attended one: the budget is fixed.

    Source: arXiv 2506.03762, from its description; there is no public code. Ours: one sharpness
    for the 32 queries of a prompt, which see almost as many tokens, where evaluation/ahakv.py has
    one for each; and attention of generated tokens is added as it is, not sharpened.

    Attributes:
        share: kept share of the prompt, in (0, 1].
    """

    share: float

    @property
    def name(self) -> str:
        return "ahakv"

    def keep(self, profile: PromptProfile) -> Tensor:
        num_tokens, recent = profile.num_tokens, self.window(profile.num_tokens)
        sizes = avg_pool1d(
            # Neighbours beyond an end are no tokens: they do not count.
            *(profile.value_norm.square(), POOLING, 1, POOLING // 2),
            count_include_pad=False,
        )
        sizes /= sizes.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        score = (profile.attention * sizes)[..., : num_tokens - recent]
        order = torch.sort(score, dim=-1, descending=True, stable=True).indices
        keep = torch.zeros(profile.attention.shape, dtype=torch.bool)
        keep[..., num_tokens - recent :] = True
        return keep.scatter_(-1, order[..., : self._count(num_tokens) - recent], True)

    def choose(self, profile: PromptProfile, recovery: float) -> Choice:
        keep = self.keep(profile)
        return Choice(policies=(self, Full()), index=keep.all(-1).to(torch.int64), keep=keep)

    @property
    def rule(self) -> StoreRule:
        return StoreRule.BY_VALUE

    def window(self, num_tokens: int) -> int:
        return min(AHAKV_QUERIES, self._count(num_tokens))

    def _count(self, num_tokens: int) -> int:
        return max(1, round(self.share * num_tokens))
