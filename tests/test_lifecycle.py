"""From a profile to a plan: thresholds, per-request options, observed queries."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from fastgen_vllm.config import CoverageOptions, FastGenConfig
from fastgen_vllm.geometry import CacheGeometry
from fastgen_vllm.lifecycle import (
    PROFILE_BYTES,
    head_weights,
    plan_compaction,
    try_policy,
)
from fastgen_vllm.profile import PromptProfile
from fastgen_vllm.request import RequestOptions
from tests.policy import own
from tests.profiles import random_profile

GEOMETRY = CacheGeometry(2, 2, 1, 64, 32, 10)


@pytest.fixture
def profile() -> PromptProfile:
    return random_profile(2, 2, 300, observed=64)


def kept_share(
    profile: PromptProfile, config: FastGenConfig, options: RequestOptions | None = None
) -> float:
    return plan_compaction(profile, config, options or RequestOptions(), GEOMETRY).kept_share


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


def test_a_requests_recovery_goes_before_a_configured_keep(profile: PromptProfile) -> None:
    by_share = FastGenConfig(policy="coverage", keep=0.25, recovery=0.8)
    assert kept_share(profile, by_share) == 0.25
    by_recovery = kept_share(profile, FastGenConfig(policy="coverage", recovery=0.9))
    assert by_recovery != 0.25
    assert kept_share(profile, by_share, RequestOptions(recovery=0.9)) == by_recovery


def test_a_requests_keep_is_the_share_that_is_kept(profile: PromptProfile) -> None:
    options = RequestOptions.parse({"fastgen_keep": 0.5})
    assert kept_share(profile, FastGenConfig(policy="paper"), options) == 0.5


def test_tokens_are_kept_on_average_over_heads(profile: PromptProfile) -> None:
    config = FastGenConfig(keep_tokens=75)
    keep = plan_compaction(profile, config, RequestOptions(), GEOMETRY).choice.keep
    assert int(keep.sum()) == 75 * 4 and len(set(keep.sum(-1).flatten().tolist())) > 1


@pytest.mark.parametrize("tokens", [300, 301, 10_000])
def test_a_prompt_that_is_no_longer_is_not_worth_compacting(
    profile: PromptProfile, tokens: int
) -> None:
    plan = plan_compaction(profile, FastGenConfig(keep_tokens=tokens), RequestOptions(), GEOMETRY)
    assert plan.kept_share == 1.0
    for length in (300, 320, 321, 5_000):
        assert plan.stream.size.blocks(length) == -(-length // GEOMETRY.block_size)


def weighted(profile: PromptProfile, *rows: tuple[float, ...]) -> PromptProfile:
    config = FastGenConfig(head_weights=rows)
    return replace(profile, head_weight=head_weights(config, GEOMETRY))


@pytest.mark.parametrize("weight", [1.0, 0.3, 1e300, 1e-300])
def test_equal_head_weights_change_nothing(profile: PromptProfile, weight: float) -> None:
    assert head_weights(FastGenConfig(), GEOMETRY) is None
    same = weighted(profile, (weight, weight), (weight, weight))
    assert torch.equal(same.by_importance, profile.by_importance)


@pytest.mark.parametrize("config", [FastGenConfig(keep=0.25), FastGenConfig(recovery=0.8)])
def test_a_heavy_head_keeps_what_others_do_not(
    profile: PromptProfile, config: FastGenConfig
) -> None:
    before, after = (
        plan_compaction(seen, config, RequestOptions(), GEOMETRY).choice.keep.sum(-1)
        for seen in (profile, weighted(profile, (1.0, 1.0), (100.0, 1.0)))
    )
    assert after[1, 0] > before[1, 0]
    if config.keep is not None:
        assert after.sum() == before.sum()
        assert bool((after <= before).flatten()[[0, 1, 3]].all())


def test_head_weights_of_another_model_are_refused() -> None:
    config = FastGenConfig(head_weights=((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)))
    with pytest.raises(ValueError, match=r"2 rows of 3 numbers, .* 2 layers .* of 2 KV heads each"):
        try_policy(config, GEOMETRY, 4096)


def test_size_says_what_a_capped_plan_needs(profile: PromptProfile) -> None:
    config = FastGenConfig(policy="coverage", recovery=0.8)
    plan = plan_compaction(profile, config, RequestOptions(), GEOMETRY)
    assert plan.stream.size.num_appending == plan.stream.size.num_slow == 0
    copy = plan.prepare().copy(profile.token_class)
    assert copy.kept_start[-1] == plan.choice.keep.sum()
    pages = -(-(plan.choice.keep.sum(-1) + 1) // 32)
    assert plan.stream.size.fixed_pages == int(pages.sum())
    for length in (300, 1000):
        assert plan.stream.size.blocks(length) == -(-int(pages.sum()) // 4)


def test_size_says_what_a_plan_needs_that_keeps_generated_tokens(profile: PromptProfile) -> None:
    config = FastGenConfig(keep=0.25, coverage=CoverageOptions(generated="keep"))
    plan = plan_compaction(profile, config, RequestOptions(), GEOMETRY)
    assert plan.stream.size.num_appending == plan.choice.index.numel()
    kept = plan.choice.keep.sum(-1)
    pages = -(-kept // 32)
    assert plan.stream.size.fixed_pages == int(pages.sum())
    # Each of the four heads has a further page, so the request a further block, as soon as
    # one of them is full and then every 32 tokens.
    blocks, room = -(-int(pages.sum()) // 4), 300 + int((pages * 32 - kept).min())
    assert plan.stream.size.blocks(room) == blocks
    for more in (1, 32):
        assert plan.stream.size.blocks(room + more) == blocks + 1
    assert plan.stream.size.blocks(room + 33) == blocks + 2


def test_choosing_takes_no_more_memory_than_stated() -> None:
    """In a process of its own: Linux's high-water mark, before and after a long prompt."""
    source = """
import re
import torch
from fastgen_vllm.config import load_config
from fastgen_vllm.geometry import CacheGeometry
from fastgen_vllm.lifecycle import (
    PROFILE_BYTES,
    plan_compaction,
)
from fastgen_vllm.request import RequestOptions
from tests.profiles import make_profile

def highest():
    status = open("/proc/self/status").read()
    return int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) << 10

def plan(num_tokens):
    before = highest()
    attention, energy, norm = torch.rand(3, 30, 3, num_tokens)
    profile = make_profile(attention, energy=energy, value_norm=norm, observed=256)
    geometry = CacheGeometry(30, 3, 3, 64, 32, 1)
    plan_compaction(profile, load_config("balanced"), RequestOptions(), geometry)
    return highest() - before

plan(64)
print(plan(8192) / (30 * 3 * 8192))
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 10 < float(done.stdout) <= PROFILE_BYTES


@pytest.mark.parametrize("policy", ["full", "coverage", "paper", f"{own.MODULE}:Alternating"])
@pytest.mark.parametrize("max_tokens", [1, 100, 4096])
def test_policies_are_tried(policy: str, max_tokens: int) -> None:
    try_policy(FastGenConfig(policy=policy), GEOMETRY, max_tokens)


def test_ahakv_is_tried() -> None:
    try_policy(FastGenConfig(policy="ahakv", keep_tokens=100), GEOMETRY, 4096)


def test_a_policy_that_fails_is_refused() -> None:
    config = FastGenConfig(policy=f"{own.MODULE}:OneTooFew", min_prompt=600)
    with pytest.raises(ValueError, match=r"^fastgen option policy='.+': it fails .+ 600 tokens \("):
        try_policy(config, GEOMETRY, 4096)
