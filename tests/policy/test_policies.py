"""Policies on small profiles whose right answer is known by hand."""

import math

import pytest
import torch

from fastgen_vllm.geometry import StoreRule, TokenClass
from fastgen_vllm.policy import Frequent, Full, Ladder, Local, Punctuation, Special
from fastgen_vllm.profile import PromptProfile
from tests.profiles import make_profile


def profile_of(rows: list[list[float]], classes: str = "", observed: int = 1) -> PromptProfile:
    """One layer; a row of attention per head. Classes: s special, p punctuation, . plain."""
    attention = torch.tensor([rows], dtype=torch.float32)
    codes = {"s": TokenClass.SPECIAL, "p": TokenClass.PUNCTUATION, ".": TokenClass.PLAIN}
    letters = classes or "." * attention.shape[-1]
    token_class = torch.tensor([codes[letter] for letter in letters], dtype=torch.int32)
    return make_profile(attention, token_class=token_class, observed=observed)


def positions(keep: torch.Tensor) -> list[int]:
    return keep.nonzero()[:, -1].tolist()


def test_special_and_punctuation() -> None:
    profile = profile_of([[1, 1, 1, 1, 1]], "s.p.s")
    assert positions(Special().keep(profile)) == [0, 4]
    assert positions(Punctuation().keep(profile)) == [2]
    both = Special() | Punctuation()
    assert positions(both.keep(profile)) == [0, 2, 4]
    assert both.protects == TokenClass.SPECIAL | TokenClass.PUNCTUATION
    assert both.rule == StoreRule.BY_AGE


def test_frequent_keeps_the_earlier_of_equals() -> None:
    profile = profile_of([[3, 1, 3, 1, 2, 3, 1, 0, 0, 0]])
    assert positions(Frequent(0.3).keep(profile)) == [0, 2, 5]
    assert positions(Frequent(0.2).keep(profile)) == [0, 2]


def test_frequent_averages_over_queries_that_could_see_the_token() -> None:
    # Four observed queries saw tokens 0..4; the last token was seen by one of them only.
    profile = profile_of([[4.0, 4.0, 4.0, 4.0, 4.0, 3.0, 1.5, 1.6]], observed=4)
    assert profile.num_viewers().tolist() == [4, 4, 4, 4, 4, 3, 2, 1]
    assert positions(Frequent(1 / 8).keep(profile)) == [7]


def test_local_rounds_up_and_gives_the_window() -> None:
    profile = profile_of([[1] * 10])
    assert positions(Local(0.25).keep(profile)) == [7, 8, 9]
    assert Local(0.25).window(10) == 3
    assert (Special() | Local(0.25)).window(10) == 3


def test_union_with_frequent_stores_by_value() -> None:
    assert (Special() | Frequent(0.1) | Local(0.1)).rule == StoreRule.BY_VALUE


def test_ladder_takes_the_cheapest_rung_that_recovers_enough() -> None:
    ladder = Ladder((Special(), Special() | Frequent(0.4), Full()))
    heads = [
        [9.0, 0.2, 0.2, 0.2, 0.4],  # the special token alone holds 90 %
        [1.0, 4.0, 4.0, 0.5, 0.5],  # special and heavy tokens hold 90 %
        [1.0, 1.0, 1.0, 1.0, 1.0],  # nothing but everything
    ]
    choice = ladder.choose(profile_of(heads, "s...."), recovery=0.85)
    assert choice.index.tolist() == [[0, 1, 2]]
    assert choice.keep[0].sum(-1).tolist() == [1, 3, 5]
    assert choice.counts() == {"special": 1, "special+frequent": 1, "full": 1}


def test_ladder_goes_by_kept_tokens_not_by_order() -> None:
    ladder = Ladder((Local(0.8), Local(0.4), Full()))
    choice = ladder.choose(profile_of([[0, 0, 0, 1, 1]]), recovery=0.9)
    assert choice.index.tolist() == [[1]]


def test_ladder_must_end_with_full() -> None:
    with pytest.raises(ValueError, match="last rung"):
        Ladder((Special(),))


def test_mass_of_max_pooling_is_normalised() -> None:
    # Pooled over query heads by max, a query's shares sum to more than one.
    profile = profile_of([[1.5, 0.5, 0.5]])
    assert math.isclose(float(profile.mass.sum()), 1.0, rel_tol=1e-6)
    assert float(profile.recovery(torch.tensor([True, False, False]))) == pytest.approx(0.6)
