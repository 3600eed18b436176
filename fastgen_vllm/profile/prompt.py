"""The profile of one prompt, from which every head's policy is chosen."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastgen_vllm.profile.importance import importance, largest_first


@dataclass(frozen=True)
class PromptProfile:
    """Attention that a prompt's observed queries paid to its tokens, and what they read there.

    The observed queries are the last ``W`` of the prompt (all ``N`` with
    ``observe: all``). Profiling sums, per KV head, each query's softmax probabilities,
    pooled over the head's ``G`` query heads (mean by default). The paper
    (arXiv 2310.01801) defines neither the norm of its recovery nor GQA; these are ours.
    """

    attention: Tensor  # [L, H, N] float32, sum of pooled probabilities over W queries
    energy: Tensor  # [L, H, N] float32, sum of pooled squared probabilities over W queries
    value_norm: Tensor  # [L, H, N] float32, Euclidean norm of each token's value vector
    token_class: Tensor  # [N] int32, TokenClass bits
    num_observed: int  # W
    is_replay: bool = False  # queries were replayed: all of them saw all tokens
    head_weight: Tensor | None = None  # [L, H] float32, factors of importance

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt, ``N``."""
        return self.attention.shape[-1]

    def after(self, num_tokens: int) -> "PromptProfile":
        """The profile of what follows the first tokens."""
        return replace(
            self,
            attention=self.attention[..., num_tokens:],
            energy=self.energy[..., num_tokens:],
            value_norm=self.value_norm[..., num_tokens:],
            token_class=self.token_class[num_tokens:],
        )

    @property
    def mass(self) -> Tensor:
        """[L, H, N] float32, attention mass per token; sums to 1 over N."""
        total = self.attention.sum(-1, keepdim=True)
        return self.attention / total.clamp_min(torch.finfo(torch.float32).tiny)

    @property
    def average(self) -> Tensor:
        """[L, H, N] float32, attention per query that could see the token.

        A raw sum favours early tokens, which more queries can see.
        """
        return self.attention / self.num_viewers()

    @cached_property
    def by_importance(self) -> Tensor:
        """[L*H*N] int64, flat indices of all tokens, the most important first."""
        rated = importance(self.energy, self.value_norm, with_followers=not self.is_replay)
        if self.head_weight is not None:
            rated *= self.head_weight[..., None]
        return largest_first(rated.flatten())

    @cached_property
    def rank(self) -> Tensor:
        """[L, H, N] int32, where each token stands in :attr:`by_importance`."""
        rank = torch.empty(self.attention.numel(), dtype=torch.int32)
        rank[self.by_importance] = torch.arange(len(rank), dtype=torch.int32)
        return rank.view(self.attention.shape)

    @cached_property
    def mass_before(self) -> Tensor:
        """[L*H*N + 1] float64, mass of the first so many tokens of :attr:`by_importance`."""
        ranked = self.mass.flatten()[self.by_importance]
        return pad(ranked.cumsum(0, dtype=torch.float64), (1, 0))

    def num_viewers(self) -> Tensor:
        """[N] int64, how many observed queries could see each token."""
        if self.is_replay:
            return torch.full((self.num_tokens,), self.num_observed)
        position = torch.arange(self.num_tokens)
        return (self.num_tokens - position).clamp(max=self.num_observed)

    def recovery(self, keep: Tensor) -> Tensor:
        """[L, H] float32, share of attention mass on kept tokens.

        Args:
            keep: [L, H, N] or [N] bool, kept tokens.
        """
        return (self.mass * keep).sum(-1)
