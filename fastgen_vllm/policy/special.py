"""Special tokens: begin of sequence, instruction and role markers."""

from dataclasses import dataclass

from torch import Tensor

from fastgen_vllm.geometry import TokenClass
from fastgen_vllm.policy.base import Policy
from fastgen_vllm.profile.prompt import PromptProfile


@dataclass(frozen=True)
class Special(Policy):
    """Keeps special tokens, prompt and generated (arXiv 2310.01801, section 3.2).

    In every rung of the paper's ladder, because they carry much mass and are few.
    """

    @property
    def name(self) -> str:
        return "special"

    def keep(self, profile: PromptProfile) -> Tensor:
        return (profile.token_class & TokenClass.SPECIAL) != 0

    @property
    def protects(self) -> TokenClass:
        return TokenClass.SPECIAL
