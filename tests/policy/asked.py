"""What chooses for a request."""

from typing import Any

from fastgen_vllm.config import FastGenConfig
from fastgen_vllm.goal import Goal
from fastgen_vllm.policy import Selector, selector_for
from fastgen_vllm.request import RequestOptions


def selector_of(config: FastGenConfig, num_tokens: int = 1000, **request: Any) -> Selector:
    """The selector for a prompt of a request that gives these options."""
    return selector_for(config, Goal.of(config, RequestOptions.parse(request), num_tokens))
