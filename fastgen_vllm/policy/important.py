"""The tokens that matter most in the whole model, and the most recent ones."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen_vllm.geometry import StoreRule
from fastgen_vllm.policy.base import Policy
from fastgen_vllm.profile.prompt import PromptProfile


@dataclass(frozen=True)
class Important(Policy):
    """Keeps first and recent tokens, then the most important of all layers and heads.

    Tokens of all heads compete in one list, by :mod:`fastgen_vllm.profile.importance`: a head
    that reads much and in many places gets many slots, another few.

    Source: ours. The shared budget is AdaKV's (arXiv 2407.11550) taken over all layers, recent
    tokens and sinks are StreamingLLM's (arXiv 2309.17453). docs/fidelity.md says what each gains.

    Attributes:
        total: tokens to keep, summed over layers and heads.
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
        keep = torch.empty(profile.attention.numel(), dtype=torch.bool)
        keep[profile.by_importance] = self.keep_ranked(profile)
        return keep.view(profile.attention.shape)

    def keep_ranked(self, profile: PromptProfile) -> Tensor:
        """[L*H*N] bool, the same in the order of :attr:`PromptProfile.by_importance`."""
        position = profile.position_by_importance
        fixed = (position < self.sinks) | (position >= profile.num_tokens - self.recent)
        left = self.total - int(fixed.sum())
        return fixed | ((~fixed).cumsum(0, dtype=torch.int32) <= left)

    @property
    def rule(self) -> StoreRule:
        return StoreRule.APPEND if self.generated > 0.5 else StoreRule.BY_ENERGY

    @property
    def growth(self) -> float:
        return self.generated

    def window(self, num_tokens: int) -> int:
        return self.recent
