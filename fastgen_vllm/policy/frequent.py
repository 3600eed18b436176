"""Heavy hitters: the tokens with the most accumulated attention."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen_vllm.geometry import StoreRule
from fastgen_vllm.policy.base import Policy
from fastgen_vllm.profile.prompt import PromptProfile


@dataclass(frozen=True)
class Frequent(Policy):
    """Keeps the ``ratio * N`` tokens with the most attention per query that saw them.

    ``N`` is the current length: in decode a head gains ``ratio`` slots for every token, rounded up
    to 1, 1/2, 1/3, ...

    Source: arXiv 2310.01801 section 3.2, after H2O (arXiv 2306.14048). The average
    instead of the sum, because a sum favours early tokens. Ties keep the earlier token.

    Attributes:
        ratio: ``r_f``, share of the tokens, in (0, 1].
    """

    ratio: float

    @property
    def name(self) -> str:
        return "frequent"

    def keep(self, profile: PromptProfile) -> Tensor:
        count = math.ceil(self.ratio * profile.num_tokens)
        order = torch.sort(profile.average, dim=-1, descending=True, stable=True).indices
        keep = torch.zeros(profile.attention.shape, dtype=torch.bool)
        return keep.scatter_(-1, order[..., :count], True)

    @property
    def rule(self) -> StoreRule:
        return StoreRule.BY_VALUE

    @property
    def growth(self) -> float:
        return self.ratio
