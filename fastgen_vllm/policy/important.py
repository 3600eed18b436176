"""The tokens that matter most in the whole model, and the most recent ones."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen_vllm.geometry import StoreRule
from fastgen_vllm.policy.base import Policy
from fastgen_vllm.profile.importance import ascending
from fastgen_vllm.profile.prompt import PromptProfile


@dataclass(frozen=True)
class Important(Policy):
    """Keeps first and recent tokens, then the most important of all layers and heads.

    Tokens of all heads compete in one list, by :mod:`fastgen_vllm.profile.importance`: a head
    that reads much and in many places gets many slots, another few.

    Source: ours. The shared budget is AdaKV's (arXiv 2407.11550) taken over all layers, recent
    tokens and sinks are StreamingLLM's (arXiv 2309.17453). docs/fidelity.md says what each gains.

    Attributes:
        total: tokens to keep, summed over layers and heads; at most all.
        recent: most recent tokens, kept by every head.
        sinks: first tokens, kept by every head.
        generated: slots that a head gains for every generated token, from 0 to 1, rounded up to
            1, 1/2, 1/3, ... At 1 all generated tokens stay; below, they replace the least valued
            tokens once slots are full.
    """

    total: int
    recent: int
    sinks: int
    generated: float

    @property
    def name(self) -> str:
        return "coverage"

    def keep(self, profile: PromptProfile) -> Tensor:
        num_ranked, _ = self._divide(profile)
        keep = profile.rank < num_ranked
        for tokens in self._fixed(profile):
            keep[..., tokens] = True
        return keep

    def recovery(self, profile: PromptProfile) -> float:
        """Share of attention mass on the kept tokens, averaged over heads."""
        num_ranked, others = self._divide(profile)
        before = profile.mass_before
        mass = before[num_ranked] + (before[others + 1] - before[others]).sum()
        return float(mass) / profile.attention[..., 0].numel()

    def _fixed(self, profile: PromptProfile) -> tuple[slice, slice]:
        """Positions that every head keeps."""
        recent = max(self.sinks, profile.num_tokens - self.recent)
        return slice(self.sinks), slice(recent, None)

    def _divide(self, profile: PromptProfile) -> tuple[int, Tensor]:
        """How many of the highest ranks are kept, and the lower ranks of first and recent tokens.

        Returns:
            (number, [F] int64)
        """
        fixed = [profile.rank[..., tokens].flatten() for tokens in self._fixed(profile)]
        ranks = ascending(torch.cat(fixed)).long()
        left = self.total - len(ranks)
        competing = ranks - torch.arange(len(ranks))  # tokens above each that are not fixed
        above = int(torch.searchsorted(competing, left))
        return max(0, left) + above, ranks[above:]

    @property
    def rule(self) -> StoreRule:
        return StoreRule.APPEND if self.generated > 0.5 else StoreRule.BY_ENERGY

    @property
    def growth(self) -> float:
        return self.generated

    def window(self, num_tokens: int) -> int:
        return self.recent
