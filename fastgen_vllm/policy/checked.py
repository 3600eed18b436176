"""A policy of the user's own, held against what policies promise, prompt by prompt."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen_vllm.errors import one_line
from fastgen_vllm.geometry import StoreRule, TokenClass
from fastgen_vllm.policy.base import Choice, Policy, Selector
from fastgen_vllm.profile.prompt import PromptProfile


class PolicyError(Exception):
    """A policy of the user's own failed on a prompt, or chose what has no meaning."""


@dataclass(frozen=True)
class Checked(Selector):
    """Chooses as another selector does, and fails by :class:`PolicyError` alone.

    Attributes:
        path: ``package.module:Class``, for messages.
        selector: the class, or a ladder with it.
    """

    path: str
    selector: Selector

    def choose(self, profile: PromptProfile, recovery: float) -> Choice:
        try:
            choice = self.selector.choose(profile, recovery)
            _check(choice, profile)
        except Exception as error:  # whatever code of the user's own does
            raise PolicyError(
                f"policy={self.path!r}: it fails on a prompt of {profile.num_tokens} tokens "
                f"({one_line(error)})"
            ) from error
        return choice


def _check(choice: Choice, profile: PromptProfile) -> None:
    """Raise ValueError if pages cannot be laid out by a choice."""
    if not isinstance(choice, Choice):
        raise ValueError(f"choose() returns a {type(choice).__name__}, not a Choice")
    shape = profile.attention.shape
    _check_tensor("keep", choice.keep, torch.bool, shape)
    _check_tensor("index", choice.index, torch.int64, shape[:-1])
    lowest, highest = choice.index.min(), choice.index.max()
    if lowest < 0 or highest >= len(choice.policies):
        raise ValueError(f"index is {lowest} to {highest}, of {len(choice.policies)} policies")
    for policy in choice.policies:
        _check_policy(policy, profile.num_tokens)


def _check_tensor(name: str, found: Tensor, dtype: torch.dtype, shape: torch.Size) -> None:
    wanted = f"{name} is not a {dtype} tensor of shape {list(shape)}"
    if not isinstance(found, Tensor):
        raise ValueError(f"{wanted}, but a {type(found).__name__}")
    if (found.dtype, found.shape) != (dtype, shape):
        raise ValueError(f"{wanted}, but {found.dtype} of shape {list(found.shape)}")


def _check_policy(policy: Policy, num_tokens: int) -> None:
    name = policy.name
    rule, growth = StoreRule(policy.rule), policy.growth
    TokenClass(policy.protects)
    if not 0 <= growth <= 1:
        raise ValueError(f"growth of {name} is {growth}, not from 0 to 1")
    if rule == StoreRule.APPEND and growth != 1:
        raise ValueError(f"{name} appends generated tokens, but its growth is {growth}, not 1")
    window = policy.window(num_tokens)
    if not isinstance(window, int) or window < 0:
        raise ValueError(f"window of {name} is {window!r}, not a number of tokens")
