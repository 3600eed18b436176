"""From a profile to a plan: thresholds, per-request options, observed queries."""

import pytest
import torch

from fastgen_vllm.config import FastGenConfig
from fastgen_vllm.geometry import CacheGeometry
from fastgen_vllm.lifecycle import observed_queries, plan_compaction
from fastgen_vllm.profile import PromptProfile
from fastgen_vllm.request import RequestOptions

GEOMETRY = CacheGeometry(2, 2, 1, 64, 32, 10)


@pytest.fixture
def profile() -> PromptProfile:
    attention = torch.rand(2, 2, 300, generator=torch.Generator().manual_seed(0)) ** 8
    return PromptProfile(attention, torch.zeros(300, dtype=torch.int32), 64)


def kept_share(
    profile: PromptProfile, config: FastGenConfig, options: RequestOptions | None = None
) -> float:
    return plan_compaction(profile, config, options or RequestOptions(), GEOMETRY).kept_share


def test_observed_queries() -> None:
    assert observed_queries(FastGenConfig(observe=64), 1000) == 64
    assert observed_queries(FastGenConfig(observe=64), 10) == 10
    assert observed_queries(FastGenConfig(observe="all"), 1000) == 1000


def test_l1_bound_is_stricter(profile: PromptProfile) -> None:
    """Recovery of at least (1 + T) / 2: T = 0.8 read as L1 is T = 0.9 read as mass."""
    as_l1 = kept_share(profile, FastGenConfig(recovery=0.8, recovery_norm="l1"))
    assert as_l1 == kept_share(profile, FastGenConfig(recovery=0.9))
    assert as_l1 > kept_share(profile, FastGenConfig(recovery=0.8))


def test_a_request_has_the_last_word(profile: PromptProfile) -> None:
    config = FastGenConfig(policy="coverage", recovery=0.8)
    assert kept_share(profile, config, RequestOptions(policy="full")) == 1.0
    low = kept_share(profile, config, RequestOptions(recovery=0.5))
    assert low == kept_share(profile, FastGenConfig(policy="coverage", recovery=0.5))
    assert low < kept_share(profile, config)


def test_two_integers_say_what_a_plan_needs(profile: PromptProfile) -> None:
    config = FastGenConfig(policy="coverage", recovery=0.8)
    plan = plan_compaction(profile, config, RequestOptions(), GEOMETRY)
    copy = plan.compact(profile.token_class)
    assert copy.kept_start[-1] == plan.choice.keep.sum()
    pages = -(-(plan.choice.keep.sum(-1) + 1) // 32)
    assert plan.stream.size.fixed_pages == int(pages.sum())
    assert plan.stream.size.blocks(300) == -(-int(pages.sum()) // 4)
