"""What is asked of a prompt."""

import pytest

from fastgen_vllm.config import FastGenConfig, parse_config
from fastgen_vllm.profile.observation import Observation, may_replay
from fastgen_vllm.request import RequestOptions


def observation_of(observe: object, num_tokens: int) -> Observation:
    return Observation.of(parse_config({"observe": observe}), RequestOptions(), num_tokens)


@pytest.mark.parametrize(
    ("observe", "num_tokens", "observed", "asked_from"),
    [
        ("last 64", 1000, 64, 936),
        ("last 64", 10, 10, 0),
        ("all", 1000, 1000, 0),
        ("replay", 1000, 256, 0),
        ("replay", 100, 100, 0),
    ],
)
def test_observed_queries(observe: str, num_tokens: int, observed: int, asked_from: int) -> None:
    found = observation_of(observe, num_tokens)
    assert (found.num_observed, found.first_asked) == (observed, asked_from)
    assert found.first_observed == num_tokens - observed
    assert found.is_replay == (observe == "replay")


def test_only_replay_may_replay() -> None:
    assert may_replay(FastGenConfig(observe="replay"))
    assert not may_replay(FastGenConfig(observe="all"))
