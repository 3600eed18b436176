"""Which tokens a head would miss, on numbers that can be checked by hand."""

import math

import pytest
import torch

from fastgen_vllm.profile.importance import (
    FOLLOWER_WEIGHT,
    FOLLOWERS,
    importance,
    largest_first,
)
from tests.profiles import make_profile


def of_one_head(energy: list[float], value_norm: list[float] | None = None) -> list[float]:
    """The importance of the tokens of a single head."""
    norm = value_norm or [1.0] * len(energy)
    return importance(torch.tensor([[energy]]), torch.tensor([[norm]]))[0, 0].tolist()


def test_importance_is_energy_times_squared_value_norm() -> None:
    assert of_one_head([4.0, 2.0, 1.0], [1.0, 3.0, 5.0]) == [4.0, 18.0, 25.0]


def test_a_token_that_is_never_read_is_worth_nothing() -> None:
    assert of_one_head([0.0, 0.0], [7.0, 9.0]) == [0.0, 0.0]


def test_followers_have_a_share_of_what_they_follow() -> None:
    spike = [0.0] * 2 + [10.0] + [0.0] * (FOLLOWERS + 3)
    share = 10.0 * FOLLOWER_WEIGHT
    expected = [0.0] * 2 + [10.0] + [share] * FOLLOWERS + [0.0] * 3
    assert of_one_head(spike) == pytest.approx(expected)


def test_a_follower_keeps_its_own_importance_if_that_is_more() -> None:
    assert 10.0 * FOLLOWER_WEIGHT < 5.0
    assert of_one_head([10.0, 5.0])[1] == 5.0


def test_a_follower_goes_by_the_most_important_token_before_it() -> None:
    followed = of_one_head([20.0, 30.0, 10.0, 0.0])[3]
    assert followed == pytest.approx(30.0 * FOLLOWER_WEIGHT)


def test_followers_do_not_cross_heads() -> None:
    energy = torch.zeros(2, 2, 3)
    energy[0, 0, 2] = 10.0  # the last token of one head: nothing follows it
    assert torch.equal(importance(energy, torch.ones(2, 2, 3)), energy)


def test_one_strong_look_beats_many_faint_ones() -> None:
    # Of ten queries one gives all it has to token 0, the others a fifth each to token 1.
    probability = torch.zeros(10, 2)
    probability[0, 0] = 1.0
    probability[1:, 1] = 0.2
    attention = probability.sum(0)
    energy = probability.square().sum(0)
    assert attention.tolist() == pytest.approx([1.0, 1.8])
    assert energy.tolist() == pytest.approx([1.0, 0.36])
    profile = make_profile(attention[None, None], energy=energy[None, None], observed=10)
    assert profile.by_importance.tolist() == [0, 1]


def test_of_equally_read_tokens_the_larger_value_comes_first() -> None:
    profile = make_profile(torch.ones(1, 1, 3), value_norm=torch.tensor([[[2.0, 3.0, 1.0]]]))
    assert profile.by_importance.tolist() == [1, 0, 2]


def test_tokens_of_all_heads_are_in_one_order() -> None:
    energy = torch.tensor([[[5.0, 8.0], [9.0, 2.0]], [[1.0, 6.0], [7.0, 3.0]]])
    profile = make_profile(energy)
    assert profile.by_importance.tolist() == [2, 1, 6, 5, 0, 7, 3, 4]


def test_of_equally_important_tokens_the_earlier_comes_first() -> None:
    profile = make_profile(torch.tensor([[[1.0, 2.0, 2.0], [2.0, 1.0, 1.0]]]))
    assert profile.by_importance.tolist() == [1, 2, 3, 0, 4, 5]


def test_order_of_many_equals_is_that_of_tokens() -> None:
    profile = make_profile(torch.ones(2, 3, 100))
    assert profile.by_importance.tolist() == list(range(600))


@pytest.mark.parametrize("count", [1, 2, 1000, 70_000])
def test_largest_first_is_a_stable_descending_sort(count: int) -> None:
    """Few different values, the extreme ones among them: ties are many."""
    generator = torch.Generator().manual_seed(count)
    tiny = torch.finfo(torch.float32).smallest_normal / 4  # subnormal
    legal = torch.tensor([0.0, tiny, 1e-30, 0.5, 1.0, 1e30, math.inf])
    values = legal[torch.randint(0, len(legal), (count,), generator=generator)]
    expected = torch.sort(values, descending=True, stable=True).indices
    assert torch.equal(largest_first(values), expected)
