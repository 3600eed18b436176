"""The life of a request's cache, in the order it happens.

    profile   the last W prompt queries pass every layer     -> PromptProfile
    choose    per head the cheapest policy that recovers T   -> Choice
    plan      intervals of the page stream                   -> StreamPlan with its size
    prepare   keep of the plan what waits for its turn       -> PreparedCompaction
    compact   copy kept tokens into fresh blocks             -> CompactionCopy

Decode then stores each new token by the head's rule (the ``store`` op) and attends to the
head's own pages (``decode_attention``). Nothing here knows vLLM.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastgen_vllm.compaction import PreparedCompaction
from fastgen_vllm.config import FastGenConfig
from fastgen_vllm.geometry import CacheGeometry, TokenClass
from fastgen_vllm.goal import Goal
from fastgen_vllm.pages.plan import StreamPlan
from fastgen_vllm.policy.base import Choice
from fastgen_vllm.policy.checked import PolicyError
from fastgen_vllm.policy.select import selector_for
from fastgen_vllm.profile.observation import Observation
from fastgen_vllm.profile.prompt import PromptProfile
from fastgen_vllm.request import RequestOptions


@dataclass(frozen=True)
class CompactionPlan:
    """Everything decided about a prompt when its prefill ends."""

    profile: PromptProfile
    choice: Choice
    stream: StreamPlan

    @property
    def kept_share(self) -> float:
        """Kept tokens over all tokens of the prompt, averaged over heads."""
        return float(self.choice.keep.float().mean())

    def prepare(self) -> PreparedCompaction:
        """Leave behind what compacting does not need."""
        return PreparedCompaction.make(self.choice, self.stream, self.profile)


#: Most memory that a prompt's profile and choosing from it take for a moment, per token and head.
PROFILE_BYTES = 96


def head_weights(config: FastGenConfig, geometry: CacheGeometry) -> Tensor | None:
    """Return [L, H] float32, by which the importance of tokens is multiplied, at most 1.

    Only how they compare matters, so the greatest is 1. None if all heads are alike.

    Raises:
        ValueError: they are not those of this model's layers and KV heads.
    """
    if config.head_weights is None:
        return None
    weights = torch.tensor(config.head_weights, dtype=torch.float64)
    needed = (geometry.num_layers, geometry.num_kv_heads)
    if weights.shape != needed:
        raise ValueError(
            f"fastgen option head_weights: {len(weights)} rows of {weights.shape[1]} numbers, but "
            f"this model has {needed[0]} layers with a KV cache, of {needed[1]} KV heads each. "
            "Give a row for each layer, a number for each head."
        )
    return (weights / weights.max()).float()


def plan_compaction(
    profile: PromptProfile,
    config: FastGenConfig,
    options: RequestOptions,
    geometry: CacheGeometry,
    stock_blocks: int = 0,
) -> CompactionPlan:
    """Choose a policy for every head of a profiled prompt and lay out its page stream.

    Args:
        stock_blocks: first blocks of the prompt that others read, too: they stay where they are,
            and the budget is spent on what follows.

    Raises:
        PolicyError: a policy of the user's own fails on it.
    """
    goal = Goal.of(config, options, profile.num_tokens)
    shared = stock_blocks * geometry.block_size
    choice = selector_for(config, goal).choose(profile.after(shared), goal.recovery)
    choice = replace(choice, keep=pad(choice.keep, (shared, 0), value=True))
    stream = StreamPlan.make(choice, profile.num_observed, geometry, stock_blocks)
    return CompactionPlan(profile, choice, stream)


#: Tokens of the prompt that is made up to try a policy, if the options serve prompts so short.
_TRIAL_TOKENS = 512


def try_policy(config: FastGenConfig, geometry: CacheGeometry, max_tokens: int) -> None:
    """Plan for a made-up prompt, so that options that do not fit or fail show at start.

    Args:
        max_tokens: most tokens of a prompt.

    Raises:
        ValueError: a policy of the user's own fails, or weights are of other heads; says how.
    """
    num_tokens = min(max(config.min_prompt, _TRIAL_TOKENS), max_tokens)
    shape = (geometry.num_layers, geometry.num_kv_heads, num_tokens)
    token_class = torch.full((num_tokens,), TokenClass.PLAIN, dtype=torch.int32)
    token_class[0], token_class[-1] = TokenClass.SPECIAL, TokenClass.PUNCTUATION
    attention = torch.arange(1, geometry.pages_per_block * num_tokens + 1).reciprocal().view(shape)
    observation = Observation.of(config, RequestOptions(), num_tokens)
    profile = PromptProfile(
        attention,
        attention.square(),
        torch.ones(shape),
        token_class,
        observation.num_observed,
        observation.is_replay,
        head_weight=head_weights(config, geometry),
    )
    try:
        plan_compaction(profile, config, RequestOptions(), geometry)
    except PolicyError as error:
        raise ValueError(f"fastgen option {error}.") from error
