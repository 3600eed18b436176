"""Coverage: one budget over all layers and heads, by share or by recovery."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgen_vllm.geometry import StoreRule
from fastgen_vllm.policy import Coverage, Important
from tests.profiles import make_profile, random_profile

SHARES = st.floats(0.001, 1.0)
RECOVERIES = st.floats(0.05, 0.999)
SHAPES = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 50))
#: recent, sinks
FIXED = st.tuples(st.floats(0.0, 1.0), st.integers(0, 6))
#: Of sums over 300 tokens in float32.
ROUNDING = 1e-5
property_test = settings(max_examples=150, deadline=None)


def positions(keep: Tensor) -> list[list[int]]:
    """Kept positions of every head of the only layer."""
    return [head.nonzero()[:, 0].tolist() for head in keep[0]]


# -- which tokens -----------------------------------------------------------------------


def test_important_keeps_first_and_recent_tokens_of_every_head() -> None:
    profile = make_profile(torch.zeros(1, 2, 10))
    policy = Important(total=0, recent=2, sinks=3, generated=0.0)
    assert positions(policy.keep(profile)) == [[0, 1, 2, 8, 9]] * 2


def test_important_spends_the_rest_on_the_most_important_of_all_heads() -> None:
    first = [0.0, 9.0, 0.0, 8.0, 7.0, 0.0]
    second = [0.0, 0.0, 6.0, 5.0, 5.0, 9.9]
    policy = Important(total=5, recent=1, sinks=0, generated=0.0)
    # Two are recent; the other three are 9, 8 and 7, all of the first head.
    assert positions(policy.keep(make_profile(torch.tensor([[first, second]])))) == [
        [1, 3, 4, 5],
        [5],
    ]


@given(SHAPES, FIXED, st.floats(0, 1), st.integers(0, 99))
@property_test
def test_recovery_is_the_mass_of_what_is_kept(
    shape: tuple[int, int, int], fixed: tuple[float, int], share: float, seed: int
) -> None:
    profile = random_profile(*shape, seed=seed)
    total, recent = round(share * profile.attention.numel()), round(fixed[0] * shape[2])
    policy = Important(total, recent, fixed[1], generated=0.0)
    expected = profile.recovery(policy.keep(profile)).mean()
    assert policy.recovery(profile) == pytest.approx(float(expected), abs=ROUNDING)


@given(SHAPES, FIXED, st.floats(0, 1), st.integers(0, 99))
@property_test
def test_total_is_spent_unless_fixed_tokens_are_more(
    shape: tuple[int, int, int], fixed: tuple[float, int], share: float, seed: int
) -> None:
    profile = random_profile(*shape, seed=seed)
    position = torch.arange(shape[2])
    total, recent = round(share * profile.attention.numel()), round(fixed[0] * shape[2])
    is_fixed = (position < fixed[1]) | (position >= shape[2] - recent)
    num_fixed = int(is_fixed.sum()) * shape[0] * shape[1]
    keep = Important(total, recent, fixed[1], generated=0.0).keep(profile)
    assert bool(keep[..., is_fixed].all())
    assert int(keep.sum()) == max(total, num_fixed)


def test_budget_follows_the_head() -> None:
    focused = [5.0] + [0.0] * 9
    spread = [1.0] * 10
    profile = make_profile(torch.tensor([[focused, spread]]))
    choice = Coverage(recent=0.1, sinks=0).choose(profile, recovery=0.74)
    # Wanted: 1.48 of 2. The most recent hold 0 + 0.1; then come 1.0 and tenths. The budget goes
    # up by one token a head: 6 tokens hold 1.4, 8 hold 1.6.
    assert positions(choice.keep) == [[0, 9], [0, 1, 2, 3, 4, 9]]


def test_values_decide_between_equally_read_tokens() -> None:
    value_norm = torch.ones(1, 1, 20)
    value_norm[..., 11] = 2.0
    profile = make_profile(torch.ones(1, 1, 20), value_norm=value_norm)
    choice = Coverage(recent=0.0, sinks=0, share=0.1).choose(profile, recovery=0.5)
    assert positions(choice.keep) == [[11, 19]]


@pytest.mark.parametrize(("least", "kept"), [(0.0, 2), (0.5, 5), (0.55, 6), (1.0, 10)])
def test_recovery_does_not_go_below_the_least_share(least: float, kept: int) -> None:
    profile = make_profile(torch.tensor([[[9.0] + [0.0] * 9]]))
    choice = Coverage(recent=0.0, sinks=0, least=least).choose(profile, recovery=0.9)
    assert int(choice.keep.sum()) == kept


def test_a_share_may_be_below_the_least() -> None:
    choice = Coverage(recent=0.0, sinks=0, least=0.5, share=0.2).choose(
        random_profile(1, 1, 10), recovery=0.9
    )
    assert int(choice.keep.sum()) == 2


def test_recent_is_a_share_of_what_is_kept() -> None:
    attention = torch.arange(100, 0, -1.0)[None, None]  # the earlier the heavier
    choice = Coverage(recent=0.25, sinks=0, share=0.4).choose(make_profile(attention), 0.5)
    assert positions(choice.keep) == [[*range(30), *range(90, 100)]]


def test_window_of_decode_is_the_recent_tokens() -> None:
    choice = Coverage(recent=0.25, sinks=0, share=0.4).choose(random_profile(1, 1, 100), 0.5)
    assert choice.policies[0].window(100) == 10


def test_the_most_recent_token_is_always_kept() -> None:
    choice = Coverage(recent=0.0, sinks=0, share=0.001).choose(random_profile(1, 3, 50), 0.5)
    assert positions(choice.keep) == [[49]] * 3


# -- how generated tokens are stored ------------------------------------------------------


@pytest.mark.parametrize(
    ("generated", "rule"),
    [(1.0, StoreRule.APPEND), (0.5, StoreRule.BY_ENERGY), (0.0, StoreRule.BY_ENERGY)],
)
def test_rule_of_partly_kept_heads(generated: float, rule: StoreRule) -> None:
    coverage = Coverage(recent=0.5, sinks=0, generated=generated, share=0.5)
    choice = coverage.choose(random_profile(1, 2, 40), 0.5)
    assert not choice.keep.all(-1).any()
    policies = [choice.policies[i] for i in choice.index.flatten()]
    assert [policy.rule for policy in policies] == [rule] * 2
    assert [policy.growth for policy in policies] == [generated] * 2


def test_a_head_that_keeps_everything_is_full() -> None:
    profile = make_profile(torch.tensor([[[4.0] * 10, [1.0] * 10]]))
    choice = Coverage(recent=0.0, sinks=0, share=0.8).choose(profile, 0.5)
    assert choice.keep.sum(-1).tolist() == [[10, 6]]
    assert choice.index.tolist() == [[1, 0]]
    assert choice.counts() == {"coverage": 1, "full": 1}


# -- a share of the prompt ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "kept"), [(0.05, 3), (0.35, 21), (0.342, 21), (0.5, 30), (0.99, 59), (1.0, 60)]
)
def test_share_by_hand(share: float, kept: int) -> None:
    profile = random_profile(1, 3, 20)  # 60 tokens
    keep = Coverage(recent=0.2, sinks=0, share=share).choose(profile, 0.5).keep
    assert int(keep.sum()) == kept


def test_fixed_tokens_are_kept_beyond_the_share() -> None:
    # A tenth of 20 tokens is 2, of which 1 per head is recent; 4 sinks per head come on top.
    keep = Coverage(recent=0.5, sinks=4, share=0.1).choose(random_profile(1, 2, 10), 0.5).keep
    assert positions(keep) == [[0, 1, 2, 3, 9]] * 2


@property_test
@given(shape=SHAPES, fixed=FIXED, share=SHARES, seed=st.integers(0, 99))
def test_share_is_exact_unless_fixed_tokens_need_more(
    shape: tuple[int, int, int], fixed: tuple[float, int], share: float, seed: int
) -> None:
    layers, heads, num_tokens = shape
    recent, sinks = fixed
    keep = Coverage(recent, sinks, share=share).choose(random_profile(*shape, seed), 0.5).keep
    wanted = round(share * (layers * heads * num_tokens))
    num_recent = max(1, math.ceil(recent * wanted / (layers * heads)))
    needed = layers * heads * min(num_tokens, sinks + num_recent)
    assert int(keep.sum()) == max(wanted, needed)


@property_test
@given(
    shape=SHAPES,
    fixed=FIXED,
    share=SHARES,
    portion=st.floats(0.0, 1.0),
    seed=st.integers(0, 99),
)
def test_more_tokens_per_head_keep_a_superset(
    shape: tuple[int, int, int],
    fixed: tuple[float, int],
    share: float,
    portion: float,
    seed: int,
) -> None:
    """Holds for whole tokens per head: a new recent token takes one from every head."""
    profile = random_profile(*shape, seed)
    everything, num_heads = profile.attention.numel(), shape[0] * shape[1]
    total = round(share * everything)
    more = round(portion * ((everything - total) // num_heads)) * num_heads
    small, large = (
        Coverage(*fixed, share=tokens / everything).choose(profile, 0.5).keep
        for tokens in (total, total + more)
    )
    assert not (small & ~large).any()


# -- a recovery ---------------------------------------------------------------------------


@property_test
@given(shape=SHAPES, fixed=FIXED, recovery=RECOVERIES, seed=st.integers(0, 99))
def test_recovery_is_reached_and_not_with_one_token_a_head_fewer(
    shape: tuple[int, int, int], fixed: tuple[float, int], recovery: float, seed: int
) -> None:
    profile = random_profile(*shape, seed)
    choice = Coverage(*fixed).choose(profile, recovery)
    assert float(profile.recovery(choice.keep).mean()) >= recovery - ROUNDING
    (policy, _) = choice.policies
    assert isinstance(policy, Important)
    fewer = policy.total - shape[0] * shape[1]
    assume(fewer >= 0)  # else sinks and the most recent token are enough
    smaller = Coverage(*fixed, share=fewer / choice.keep.numel()).choose(profile, recovery).keep
    assert float(profile.recovery(smaller).mean()) < recovery + ROUNDING


def test_fewest_tokens_by_hand() -> None:
    # Each token holds a tenth of its head's mass, 0.05 of the mean: 12 of 20 are enough.
    attention = torch.tensor([[[1.0] * 10, [2.0] * 10]])
    keep = Coverage(recent=0.0, sinks=0).choose(make_profile(attention), recovery=0.59).keep
    assert positions(keep) == [[0, 9], list(range(10))]


@property_test
@given(
    shape=SHAPES,
    fixed=FIXED,
    recoveries=st.tuples(RECOVERIES, RECOVERIES),
    seed=st.integers(0, 99),
)
def test_more_recovery_never_keeps_fewer_tokens(
    shape: tuple[int, int, int],
    fixed: tuple[float, int],
    recoveries: tuple[float, float],
    seed: int,
) -> None:
    profile = random_profile(*shape, seed)
    low, high = (
        int(Coverage(*fixed).choose(profile, recovery).keep.sum())
        for recovery in sorted(recoveries)
    )
    assert low <= high


@pytest.mark.parametrize("recent", [0.0, 0.3, 1.0])
def test_recovery_one_keeps_everything(recent: float) -> None:
    profile = make_profile(torch.tensor([[[1.0] * 10, [1.0] + [0.0] * 9]]))
    choice = Coverage(recent, 0).choose(profile, recovery=1.0)
    assert choice.keep.all()
    assert choice.counts() == {"coverage": 0, "full": 2}
