"""Policies as users write them, good and bad."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen_vllm.geometry import StoreRule
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


class Choosy(Every):
    """Fails on prompts of an odd number of tokens."""

    def keep(self, profile: PromptProfile) -> Tensor:
        assert profile.num_tokens % 2 == 0, "an odd prompt"
        return super().keep(profile)


class OneTooFew(Every):
    """Forgets the last token."""

    def keep(self, profile: PromptProfile) -> Tensor:
        return super().keep(profile)[:-1]


class Floats(Every):
    """Says how much of each token it keeps."""

    def keep(self, profile: PromptProfile) -> Tensor:
        return super().keep(profile).float()


class Greedy(Every):
    """Gains two slots for every token."""

    @property
    def growth(self) -> float:
        return 2.0


class Appending(Every):
    """Appends without a place to append to."""

    @property
    def rule(self) -> StoreRule:
        return StoreRule.APPEND


class Windowed(Every):
    """Has half a token too many in its window."""

    def window(self, num_tokens: int) -> int:
        return num_tokens / 2  # type: ignore[return-value]


class Boundless(Selector):
    """Names a policy that it does not list."""

    def choose(self, profile: PromptProfile, recovery: float) -> Choice:
        shape = profile.attention.shape
        return Choice((Full(),), torch.ones(shape[:-1], dtype=torch.int64), torch.ones(shape) > 0)


class Short(Selector):
    """Returns the kept tokens alone."""

    def choose(self, profile: PromptProfile, recovery: float) -> Choice:
        return Every().keep(profile)  # type: ignore[return-value]


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
