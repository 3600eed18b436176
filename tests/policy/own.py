"""Policies as users write them, good and bad."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen_vllm.policy import Choice, Full, Policy, Selector
from fastgen_vllm.profile import PromptProfile

MODULE = __name__


@dataclass(frozen=True)
class Every(Policy):
    """Keeps every third token, the first among them."""

    stride: int = 3

    @property
    def name(self) -> str:
        return "every"

    def keep(self, profile: PromptProfile) -> Tensor:
        return torch.arange(profile.num_tokens) % self.stride == 0


class Alternating(Selector):
    """Every third token in heads of even number, everything in the others."""

    def choose(self, profile: PromptProfile, recovery: float) -> Choice:
        layers, heads, num_tokens = profile.attention.shape
        index = (torch.arange(heads) % 2).expand(layers, heads)
        keep = Every().keep(profile) | (index[..., None] == 1)
        return Choice((Every(), Full()), index, keep.expand(layers, heads, num_tokens))


class Nameless(Policy):
    """Lacks what its base class declares."""


@dataclass(frozen=True)
class Demanding(Every):
    """Wants an argument."""

    @property
    def name(self) -> str:
        return "demanding"

    def __init__(self, stride: int) -> None:
        object.__setattr__(self, "stride", stride)


class Raising(Every):
    """Cannot be made."""

    def __init__(self) -> None:
        raise OSError("no file")


class Stranger:
    """No policy at all."""


an_instance = Every()
