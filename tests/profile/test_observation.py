"""What is asked of a prompt."""

import math
from typing import Any

import pytest

from fastgen_vllm.config import FastGenConfig, parse_config
from fastgen_vllm.profile.observation import Observation, entropy_sharpness, may_replay
from fastgen_vllm.request import RequestOptions

AT_0_9 = RequestOptions.parse({"fastgen_recovery": 0.9})


def observation_of(observe: object, num_tokens: int) -> Observation:
    return Observation.of(parse_config({"observe": observe}), RequestOptions(), num_tokens)


@pytest.mark.parametrize(
    ("observe", "num_tokens", "observed", "asked_from"),
    [
        ("last 64", 1000, 64, 936),
        ("last 64", 10, 10, 0),
        ("all", 1000, 1000, 0),
        ("replay", 1000, 128, 0),
        ("replay", 100, 100, 0),
        ("exact replay", 1000, 128, 0),
    ],
)
def test_observed_queries(observe: str, num_tokens: int, observed: int, asked_from: int) -> None:
    found = observation_of(observe, num_tokens)
    assert (found.num_observed, found.first_asked) == (observed, asked_from)
    assert found.first_observed == num_tokens - observed
    assert found.is_replay == ("replay" in observe)


@pytest.mark.parametrize(("observe", "sample"), [("replay", 16), ("exact replay", 1)])
def test_replay_sums_over_a_sample_unless_asked_for_exact_sums(observe: str, sample: int) -> None:
    assert observation_of(observe, 1000).sample == sample


@pytest.mark.parametrize("observe", ["replay", "all", 64])
@pytest.mark.parametrize(
    ("num_tokens", "observed", "visible"), [(1000, 32, 984.5), (32, 32, 16.5), (20, 20, 10.5)]
)
def test_ahakv_sharpens_the_last_queries_of_its_own(
    observe: Any, num_tokens: int, observed: int, visible: float
) -> None:
    config = FastGenConfig(policy="ahakv", keep_tokens=10, observe=observe)
    found = Observation.of(config, RequestOptions(), num_tokens)
    sharpness = math.sqrt(2 * math.log(visible / 10))
    assert found == Observation(num_tokens, observed, sharpness=pytest.approx(sharpness))


def test_a_request_has_its_own() -> None:
    config = FastGenConfig(observe="replay")
    asked = RequestOptions.parse({"fastgen_policy": "ahakv", "fastgen_keep": 0.25})
    found = Observation.of(config, asked, 1000)
    assert not found.is_replay and found.sharpness == pytest.approx(math.sqrt(2 * math.log(3.938)))
    other = Observation.of(FastGenConfig(policy="ahakv", keep=0.25, observe="replay"), AT_0_9, 1000)
    assert other == Observation.of(config, RequestOptions(), 1000)


def test_all_that_is_kept_is_not_sharpened() -> None:
    assert entropy_sharpness(100, 100) == entropy_sharpness(90, 100) == 0


def test_only_replay_may_replay() -> None:
    assert may_replay(FastGenConfig(observe="replay"))
    assert not may_replay(FastGenConfig(observe="all"))
