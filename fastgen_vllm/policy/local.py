"""The local window: the most recent tokens."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen_vllm.policy.base import Policy
from fastgen_vllm.profile.prompt import PromptProfile


@dataclass(frozen=True)
class Local(Policy):
    """Keeps the most recent ``ratio * N`` tokens; the window slides in decode.

    Source: arXiv 2310.01801 section 3.2.

    Attributes:
        ratio: ``r_l``, share of the prompt, in (0, 1].
    """

    ratio: float

    @property
    def name(self) -> str:
        return "local"

    def keep(self, profile: PromptProfile) -> Tensor:
        oldest = profile.num_tokens - self.window(profile.num_tokens)
        return torch.arange(profile.num_tokens) >= oldest

    def window(self, num_tokens: int) -> int:
        return math.ceil(self.ratio * num_tokens)
