"""What a policy is, how policies unite, and what choosing one per head yields."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from fastgen_vllm.geometry import StoreRule, TokenClass
from fastgen_vllm.profile.prompt import PromptProfile


class Policy(ABC):
    """Which prompt tokens a head keeps, and how it stores generated ones."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name for logs and metrics."""

    @abstractmethod
    def keep(self, profile: PromptProfile) -> Tensor:
        """Return kept prompt tokens, bool [L, H, N] or, if alike for all heads, [N]."""

    @property
    def rule(self) -> StoreRule:
        """Where a head with this policy stores a generated token."""
        return StoreRule.BY_AGE

    @property
    def growth(self) -> float:
        """Slots that a head gains for every generated token, from 0 to 1.

        Pages make it coarse: it is rounded up to 1, 1/2, 1/3, ... Heads that append have 1.
        """
        return 0.0

    @property
    def protects(self) -> TokenClass:
        """Token classes that stay when they are generated."""
        return TokenClass.PLAIN

    def window(self, num_tokens: int) -> int:
        """Most recent tokens that are never freed, given the prompt's length."""
        return 0

    def __or__(self, other: "Policy") -> "Policy":
        return Union(self, other)


@dataclass(frozen=True)
class Union(Policy):
    """Keeps what either of two policies keeps.

    A token that leaves the local window of a union competes by accumulated attention if
    one side values tokens by it, else by age.
    """

    first: Policy
    second: Policy

    @property
    def name(self) -> str:
        return f"{self.first.name}+{self.second.name}"

    def keep(self, profile: PromptProfile) -> Tensor:
        return self.first.keep(profile) | self.second.keep(profile)

    @property
    def rule(self) -> StoreRule:
        rules = (self.first.rule, self.second.rule)
        return next((rule for rule in rules if rule.values_tokens), StoreRule.BY_AGE)

    @property
    def growth(self) -> float:
        return max(self.first.growth, self.second.growth)

    @property
    def protects(self) -> TokenClass:
        return self.first.protects | self.second.protects

    def window(self, num_tokens: int) -> int:
        return max(self.first.window(num_tokens), self.second.window(num_tokens))


@dataclass(frozen=True)
class Choice:
    """The policy of every head of one prompt."""

    policies: tuple[Policy, ...]
    index: Tensor  # [L, H] int64, which of `policies`
    keep: Tensor  # [L, H, N] bool, kept prompt tokens

    def counts(self) -> dict[str, int]:
        """Heads per policy name."""
        heads = self.index.flatten().bincount(minlength=len(self.policies)).tolist()
        return {policy.name: count for policy, count in zip(self.policies, heads, strict=True)}


class Selector(ABC):
    """Chooses a policy for every head from a prompt's profile."""

    @abstractmethod
    def choose(self, profile: PromptProfile, recovery: float) -> Choice:
        """Choose so that kept tokens hold at least ``recovery`` of the attention mass."""
