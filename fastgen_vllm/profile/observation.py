"""Which of a prompt's queries are profiled, and how: for scheduler and worker alike."""

import math
from dataclasses import dataclass
from typing import Final

from fastgen_vllm.config import FastGenConfig
from fastgen_vllm.goal import Goal
from fastgen_vllm.profile.replay import LAST, SAMPLE
from fastgen_vllm.request import RequestOptions

#: Last queries of a prompt that policy ahakv goes by.
AHAKV_QUERIES: Final = 32


@dataclass(frozen=True)
class Observation:
    """What is asked of one prompt."""

    num_tokens: int  # N
    num_observed: int  # W, last queries whose attention to all tokens is summed
    is_replay: bool = False  # all queries are asked again, the last W from behind the prompt
    sample: int = 1  # of a replay: keys, one of so many, that stand for all in a row's sum
    sharpness: float = 1.0  # factor of the model's own scale of scores

    @classmethod
    def of(cls, config: FastGenConfig, request: RequestOptions, num_tokens: int) -> "Observation":
        """Return what is asked of a request's prompt of ``num_tokens``."""
        goal = Goal.of(config, request, num_tokens)
        if goal.policy == "ahakv":
            assert goal.share is not None, "ahakv without a budget"
            num_observed = min(AHAKV_QUERIES, num_tokens)
            visible = num_tokens - (num_observed - 1) / 2  # to the average query
            sharpness = entropy_sharpness(visible, goal.share * num_tokens)
            return cls(num_tokens, num_observed, sharpness=sharpness)
        if isinstance(config.observe, int):
            return cls(num_tokens, min(config.observe, num_tokens))
        if config.observe == "all":
            return cls(num_tokens, num_tokens)
        sample = 1 if config.observe == "exact replay" else SAMPLE
        return cls(num_tokens, min(LAST, num_tokens), is_replay=True, sample=sample)

    def __str__(self) -> str:
        """For the start-up line."""
        return "replay" if self.is_replay else f"last {self.num_observed}"

    @property
    def first_observed(self) -> int:
        """Position of the first of the ``W`` queries."""
        return self.num_tokens - self.num_observed

    @property
    def first_asked(self) -> int:
        """Position of the first query that anything is asked of."""
        return 0 if self.is_replay else self.first_observed


def entropy_sharpness(visible: float, budget: float) -> float:
    """Factor of scores that gives their softmax the entropy of ``budget`` equal tokens.

    For scores of ``visible`` tokens that are normally distributed with variance 1, as products of
    random vectors are when scaled by ``1 / sqrt(D)``. Source: arXiv 2506.03762, whose lambda is of
    products that are not scaled.
    """
    return math.sqrt(2 * math.log(max(1.0, visible / budget)))


def may_replay(config: FastGenConfig) -> bool:
    """Whether there are prompts that are replayed."""
    return not isinstance(config.observe, int) and config.observe != "all"
