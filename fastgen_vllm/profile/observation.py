"""Which of a prompt's queries are profiled, and how: for scheduler and worker alike."""

from dataclasses import dataclass

from fastgen_vllm.config import FastGenConfig
from fastgen_vllm.profile.replay import LAST
from fastgen_vllm.request import RequestOptions


@dataclass(frozen=True)
class Observation:
    """What is asked of one prompt."""

    num_tokens: int  # N
    num_observed: int  # W, last queries whose attention to all tokens is summed
    is_replay: bool  # all queries are asked again, the last W from behind the prompt

    @classmethod
    def of(cls, config: FastGenConfig, request: RequestOptions, num_tokens: int) -> "Observation":
        """Return what is asked of a request's prompt of ``num_tokens``."""
        if config.observe == "all":
            return cls(num_tokens, num_tokens, is_replay=False)
        if config.observe == "replay":
            return cls(num_tokens, min(LAST, num_tokens), is_replay=True)
        return cls(num_tokens, min(config.observe, num_tokens), is_replay=False)

    @property
    def first_observed(self) -> int:
        """Position of the first of the ``W`` queries."""
        return self.num_tokens - self.num_observed

    @property
    def first_asked(self) -> int:
        """Position of the first query that anything is asked of."""
        return 0 if self.is_replay else self.first_observed


def may_replay(config: FastGenConfig) -> bool:
    """Whether there are prompts that are replayed."""
    return config.observe == "replay"
