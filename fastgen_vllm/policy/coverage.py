"""Coverage: recent tokens plus the tokens of largest mass, one budget over all heads."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen_vllm.geometry import StoreRule
from fastgen_vllm.policy.base import Choice, Policy, Selector
from fastgen_vllm.policy.full import Full
from fastgen_vllm.profile.prompt import PromptProfile


@dataclass(frozen=True)
class Coverage(Policy, Selector):
    """Keeps first and recent tokens, and then the heaviest tokens of the whole model.

    Tokens of all layers and heads compete in one list, heaviest first, until kept tokens
    hold the wanted share of attention mass averaged over heads. So a head with spread-out
    attention gets many slots and a head that looks at few tokens gets few: budgets follow
    the head. With the wanted share as constraint no other set of equal recency is smaller.

    Source: ours; the pooled budget is the idea of AdaKV (arXiv 2407.11550) taken over
    all layers.

    Attributes:
        recent: share of the prompt that is kept for being recent, in [0, 1].
        sinks: first tokens that are kept (attention sinks, arXiv 2309.17453).
    """

    recent: float
    sinks: int

    @property
    def name(self) -> str:
        return "coverage"

    def keep(self, profile: PromptProfile) -> Tensor:
        """[N] bool, the tokens kept regardless of mass."""
        position = torch.arange(profile.num_tokens)
        oldest = profile.num_tokens - self.window(profile.num_tokens)
        return (position >= oldest) | (position < self.sinks)

    @property
    def rule(self) -> StoreRule:
        return StoreRule.BY_VALUE

    def window(self, num_tokens: int) -> int:
        return max(1, math.ceil(self.recent * num_tokens))

    @property
    def policies(self) -> tuple[Policy, ...]:
        return (self, Full())

    def choose(self, profile: PromptProfile, recovery: float) -> Choice:
        mass = profile.mass
        always = self.keep(profile)
        wanted = recovery * mass[..., 0].numel()
        missing = wanted - float((mass * always).sum(dtype=torch.float64))
        rest = mass.masked_fill(always, -1.0).flatten()
        heaviest = torch.sort(rest, descending=True, stable=True)
        held = heaviest.values.clamp_min(0).cumsum(0, dtype=torch.float64)
        # The fewest heaviest tokens whose mass fills what the fixed ones leave missing.
        count = int(torch.searchsorted(held, missing)) + 1 if missing > 0 else 0
        count = min(count, int((~always).sum()) * mass[..., 0].numel())
        keep = always.expand(mass.shape).flatten().clone()
        keep[heaviest.indices[:count]] = True
        keep = keep.view(mass.shape)
        return Choice(policies=self.policies, index=keep.all(-1).to(torch.int64), keep=keep)
