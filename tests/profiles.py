"""Profiles of prompts for tests that do not run a model."""

import torch
from torch import Tensor

from fastgen_vllm.geometry import TokenClass
from fastgen_vllm.profile import PromptProfile


def make_profile(
    attention: Tensor,
    *,
    energy: Tensor | None = None,
    value_norm: Tensor | None = None,
    token_class: Tensor | None = None,
    observed: int = 1,
) -> PromptProfile:
    """A profile of attention [L, H, N].

    Unless given, a token's energy is its attention and all values are of norm 1, so that the
    most important tokens are those of most attention, and all tokens are plain.
    """
    num_tokens = attention.shape[-1]
    return PromptProfile(
        attention=attention,
        energy=attention if energy is None else energy,
        value_norm=torch.ones_like(attention) if value_norm is None else value_norm,
        token_class=torch.full((num_tokens,), TokenClass.PLAIN, dtype=torch.int32)
        if token_class is None
        else token_class,
        num_observed=observed,
    )


def random_profile(
    layers: int, heads: int, num_tokens: int, seed: int = 0, observed: int = 1
) -> PromptProfile:
    """A profile of few heavy and many light tokens, with values of different norms."""
    generator = torch.Generator().manual_seed(seed)
    attention, value_norm = torch.rand(2, layers, heads, num_tokens, generator=generator)
    return make_profile(
        attention**8, energy=attention**16, value_norm=1 + value_norm, observed=observed
    )
