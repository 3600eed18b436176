"""Means, shares and ratios, and their intervals."""

import numpy as np
import pytest

from fastgen_vllm.evaluation.estimates import (
    Estimate,
    geometric_mean,
    mean_interval,
    paired_ratio,
    share_interval,
)


def test_interval_of_one_value_is_the_value() -> None:
    assert mean_interval([0.25]) == Estimate(0.25, 0.25, 0.25, 1)


def test_interval_of_two_values_spans_them() -> None:
    # A quarter of the resamples holds the first twice, a quarter the second.
    assert mean_interval([0.0, 1.0]) == Estimate(0.5, 0.0, 1.0, 2)


def test_no_values_have_no_interval() -> None:
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_interval_follows_the_seed() -> None:
    values = list(np.random.default_rng(0).normal(size=12))
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_interval_covers_the_true_mean(draw: str) -> None:
    random = np.random.default_rng(7)
    trials, true_mean, covered = 300, (0.0 if draw == "normal" else 1.0), 0
    for trial in range(trials):
        estimate = mean_interval(list(getattr(random, draw)(size=30)), seed=trial)
        covered += estimate.low <= true_mean <= estimate.high
    # The percentile bootstrap of 30 samples covers a little less than 95 %.
    assert 0.88 <= covered / trials <= 0.98


def test_interval_narrows_with_the_root_of_the_count() -> None:
    random = np.random.default_rng(5)
    few, many = (mean_interval(list(random.normal(size=n))) for n in (25, 2500))
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(10, rel=0.3)


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962),
        (1, 1, 0.2065, 1.0),
    ],
)
def test_wilson_interval(successes: int, count: int, low: float, high: float) -> None:
    estimate = share_interval(successes, count)
    assert estimate.mean == successes / count
    assert estimate.low == pytest.approx(low, abs=5e-5)
    assert estimate.high == pytest.approx(high, abs=5e-5)
    assert estimate.count == count


def test_wilson_interval_holds_the_share_and_stays_in_the_unit_range() -> None:
    for count in range(1, 60):
        for successes in range(count + 1):
            estimate = share_interval(successes, count)
            assert 0 <= estimate.low <= estimate.mean <= estimate.high <= 1


@pytest.mark.parametrize(("successes", "count"), [(0, 0), (-1, 3), (4, 3)])
def test_impossible_shares_are_refused(successes: int, count: int) -> None:
    with pytest.raises(ValueError, match="not a share"):
        share_interval(successes, count)


def test_ratio_is_of_means_not_a_mean_of_ratios() -> None:
    assert paired_ratio([1.0, 6.0], [1.0, 2.0]).mean == pytest.approx(7 / 3)


def test_pairing_removes_what_both_share() -> None:
    theirs = [0.01, 1.0, 100.0, 5.0]
    estimate = paired_ratio([2 * value for value in theirs], theirs)
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((2, 2, 2))
    unpaired = paired_ratio([2 * value for value in theirs[1:] + theirs[:1]], theirs)
    assert unpaired.mean == pytest.approx(2)
    assert unpaired.high > 4


def test_ratio_leaves_out_resamples_without_denominator() -> None:
    estimate = paired_ratio([1.0, 1.0], [0.0, 1.0])
    assert estimate.mean == 2
    assert (estimate.low, estimate.high) == (1, 2)


@pytest.mark.parametrize(
    ("ours", "theirs"), [([1.0], [1.0, 2.0]), ([], []), ([1.0], [0.0]), ([1.0, 2.0], [2.0, -1.0])]
)
def test_ratio_refuses_bad_denominators(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match=r"paired|denominators"):
        paired_ratio(ours, theirs)


@pytest.mark.parametrize(
    ("values", "mean"), [([4.0, 9.0], 6.0), ([2.0], 2.0), ([0.0, 1.0], 10**-4.5)]
)
def test_geometric_mean(values: list[float], mean: float) -> None:
    assert geometric_mean(values) == pytest.approx(mean)
