"""Everything."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen_vllm.geometry import StoreRule
from fastgen_vllm.policy.base import Choice, Policy, Selector
from fastgen_vllm.profile.prompt import PromptProfile


@dataclass(frozen=True)
class Full(Policy, Selector):
    """Keeps every token. As a selector: every head is full (the control)."""

    @property
    def name(self) -> str:
        return "full"

    def keep(self, profile: PromptProfile) -> Tensor:
        return torch.ones(profile.num_tokens, dtype=torch.bool)

    @property
    def rule(self) -> StoreRule:
        return StoreRule.APPEND

    @property
    def growth(self) -> float:
        return 1.0

    def choose(self, profile: PromptProfile, recovery: float) -> Choice:
        heads = profile.attention.shape[:2]
        return Choice(
            policies=(self,),
            index=torch.zeros(heads, dtype=torch.int64),
            keep=self.keep(profile).expand(profile.attention.shape),
        )
