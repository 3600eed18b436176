"""Punctuation tokens."""

from dataclasses import dataclass

from torch import Tensor

from fastgen_vllm.geometry import TokenClass
from fastgen_vllm.policy.base import Policy
from fastgen_vllm.profile.prompt import PromptProfile


@dataclass(frozen=True)
class Punctuation(Policy):
    """Keeps punctuation, prompt and generated (arXiv 2310.01801, section 3.2)."""

    @property
    def name(self) -> str:
        return "punctuation"

    def keep(self, profile: PromptProfile) -> Tensor:
        return (profile.token_class & TokenClass.PUNCTUATION) != 0

    @property
    def protects(self) -> TokenClass:
        return TokenClass.PUNCTUATION
