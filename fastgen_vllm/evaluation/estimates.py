"""Means, shares and ratios with 95 % confidence intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_LEAST = 1e-9  # nats: below it, float32 tells nothing apart
_RESAMPLES = 2000
_PERCENTILES = (2.5, 97.5)
_WILSON_Z = 1.959964  # the normal quantile of 97.5 %


@dataclass(frozen=True)
class Estimate:
    """A mean or a ratio with its 95 % confidence interval."""

    mean: float
    low: float
    high: float
    count: int  # independent samples behind it


def interval(estimate: Estimate) -> str:
    """Return mean and interval, for people."""
    return f"{estimate.mean:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"


def mean_interval(values: Sequence[float], seed: int = 0) -> Estimate:
    """Mean with a percentile bootstrap interval.

    Args:
        values: one value per independent sample. Positions of a text are correlated, so a
            measurement per position is averaged over its text first.
        seed: of the resampling.

    Raises:
        ValueError: there is no value.
    """
    if not len(values):
        raise ValueError("the mean of no values has no interval; leave the row out instead")
    array = np.asarray(values, dtype=np.float64)
    means = array[_resamples(len(array), seed)].mean(axis=1)
    low, high = np.percentile(means, _PERCENTILES)
    return Estimate(float(array.mean()), float(low), float(high), len(array))


def geometric_mean(values: Sequence[float]) -> float:
    """Geometric mean of values that are not negative; next to nothing counts as 1e-9."""
    return float(np.exp(np.log(np.maximum(values, _LEAST)).mean()))


def share_interval(successes: int, count: int) -> Estimate:
    """Share of successes with Wilson's interval, which is honest near 0 and 1.

    Raises:
        ValueError: not ``0 <= successes <= count`` with at least one trial.
    """
    if count < 1 or not 0 <= successes <= count:
        raise ValueError(f"{successes} successes of {count} trials are not a share")
    share = successes / count
    square = _WILSON_Z**2 / count
    centre = share + square / 2
    spread = math.sqrt(square * (share * (1 - share) + square / 4))
    low = max(0.0, (centre - spread) / (1 + square))
    high = min(1.0, (centre + spread) / (1 + square))
    # At the ends rounding may leave the share itself just outside.
    return Estimate(share, min(low, share), max(high, share), count)


def paired_ratio(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Estimate:
    """Mean of ``ours`` over mean of ``theirs``, with a bootstrap over pairs.

    Both sides of a pair are drawn together, so what makes a text hard for both cancels.

    Args:
        ours: one value per text.
        theirs: those of the same texts in the same order; none is negative.
        seed: of the resampling.

    Raises:
        ValueError: the lengths differ, or ``theirs`` holds no positive or a negative value.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} values cannot be paired with {len(theirs)}")
    if not len(theirs) or min(theirs) < 0 or max(theirs) == 0:
        raise ValueError("a ratio needs denominators that are not negative and not all zero")
    above = np.asarray(ours, dtype=np.float64)
    below = np.asarray(theirs, dtype=np.float64)
    drawn = _resamples(len(above), seed)
    numerators, denominators = above[drawn].mean(axis=1), below[drawn].mean(axis=1)
    defined = denominators > 0
    low, high = np.percentile(numerators[defined] / denominators[defined], _PERCENTILES)
    return Estimate(float(above.mean() / below.mean()), float(low), float(high), len(above))


def _resamples(count: int, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """[R, count] indices in [0, count), drawn with replacement."""
    return np.random.default_rng(seed).integers(count, size=(_RESAMPLES, count))
