"""Bounds of means and of whole statistics by resampling: pure functions of numbers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from bench.distributions import student_quantile
from quantize.intervals import clopper_pearson_upper

_NORMAL = NormalDist()
_CHUNK_DRAWS = 1 << 21
_JACKKNIFE_GROUPS = 200
# The bootstrap-t still errs by a fifth too often on 100 exponential scores, whose acceleration is
# this; so a fifth of the error is set aside there, and less where scores are less skewed.
_SET_ASIDE, _SKEWED = 0.2, 1 / 30
# Of the observed standard error: a draw of equal scores has none, and would have no bound.
_LEAST_ERROR = 0.3
# Fewer changed samples than this do not tell how large a change can be.
FEW_CHANGES = 10
# What resampling may cost: draws times samples. Never fewer draws than make a quantile of 5 %.
_MOST_DRAWN, _FEWEST_RESAMPLES = 3 * 10**7, 500


@dataclass(frozen=True, slots=True)
class Bounds:
    """A statistic with its one-sided bounds.

    Attributes:
        value: Observed.
        low: The true value is above this.
        high: The true value is below this.
        spread: Standard error times the root of the number of units, to plan a sample size.
    """

    value: float
    low: float
    high: float
    spread: float


def mean_bounds(
    values: NDArray[np.float64], confidence: float = 0.95, *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Lower and upper bound of a mean: the most careful of three on each side, or four.

    The bootstrap (bias-corrected and accelerated: Efron, JASA 82 (1987) 171-185) follows skewness,
    which Student's t does not; below some twenty samples it is too narrow, which Student's t is
    not. Both are too narrow on the long side of very skewed scores, where most are zero, say; the
    bootstrap-t (Hall, Annals of Statistics 16 (1988) 927-953) is not. Where fewer than ten scores
    are not zero, the bound is no less than twice the largest of them times the exact upper bound
    of their share.

    Args:
        values: float64 [n], one per independent sample, n >= 2. Their order does not matter.
        confidence: Of each bound.
        resamples: How often to resample; fewer above 3,000 samples, to bound the time.
        seed: Of the resampling, so that the same scores give the same verdict.
    """
    values = np.sort(values)
    n = values.size
    mean = float(values.mean())
    if values[0] == values[-1]:
        return mean, mean
    resamples = min(resamples, max(_FEWEST_RESAMPLES, _MOST_DRAWN // n))
    # Centred first: means of large numbers with tiny spread would lose the spread to rounding.
    centred = values - mean
    error = float(values.std(ddof=1)) / math.sqrt(n)
    half = student_quantile(confidence, n - 1) * error
    means, errors = _resampled(centred, resamples, seed)
    # The jackknife's influence on a mean is proportional to the distance from it.
    low, high = _bca(means, centred, confidence)
    down, up = _studentized(means, errors, error, _error_used(centred) * (1 - confidence))
    low, high = mean + min(low, down, -half), mean + max(high, up, half)
    changed = int(np.count_nonzero(values))
    if changed < FEW_CHANGES:
        # Twice, because the largest of so few is seldom the largest there is.
        share = 2 * clopper_pearson_upper(changed, n, confidence)
        high = max(high, share * float(values[-1])) if values[-1] > 0 else high
        low = min(low, share * float(values[0])) if values[0] < 0 else low
    return low, high


def statistic_bounds(
    statistic: Callable[[NDArray[np.intp]], float],
    units: Sequence[NDArray[np.intp]],
    confidence: float = 0.95,
    *,
    resamples: int = 2_000,
    seed: int = 0,
) -> Bounds:
    """Bounds of any statistic of a sample: BCa bootstrap, never narrower than the jackknife's t.

    Whole units are drawn, so samples of one unit may depend on each other. Acceleration and
    standard error come from the jackknife over at most 200 groups of units (Efron, Tibshirani: An
    Introduction to the Bootstrap, 1993, chapters 11 and 14). Its pseudo-values stand for scores in
    the bootstrap-t of `mean_bounds`.

    Args:
        statistic: Value over the samples at these indices, repeated ones included.
        units: Indices of the samples of each independent unit.
        confidence: Of each bound.
        resamples: How often to resample.
        seed: Of the resampling, so that the same scores give the same verdict.
    """
    everything = np.concatenate(units)
    observed = statistic(everything)
    n = len(units)
    if n < 2:
        return Bounds(observed, observed, observed, 0.0)
    left_out = _jackknife(statistic, units)
    influences = left_out.mean() - left_out
    groups = left_out.size
    error = math.sqrt((groups - 1) / groups * float((influences**2).sum()))
    rng = np.random.default_rng(seed)
    single = len(everything) == n
    draws = np.empty(resamples)
    for i in range(resamples):
        picks = rng.integers(0, n, size=n)
        chosen = everything[picks] if single else np.concatenate([units[p] for p in picks])
        draws[i] = statistic(chosen)
    low, high = _bca(draws - observed, influences, confidence)
    half = student_quantile(confidence, groups - 1) * error
    pseudo = _resampled((groups - 1) * influences, resamples, seed)
    down, up = _studentized(*pseudo, error, _error_used(influences) * (1 - confidence))
    low, high = observed + min(low, down, -half), observed + max(high, up, half)
    return Bounds(observed, low, high, error * math.sqrt(n))


def _jackknife(
    statistic: Callable[[NDArray[np.intp]], float], units: Sequence[NDArray[np.intp]]
) -> NDArray[np.float64]:
    """The statistic without each of at most 200 groups of units in turn."""
    # Every so-many-th unit: neighbours in the data, which may resemble each other, spread out.
    groups = min(len(units), _JACKKNIFE_GROUPS)
    everything = np.concatenate(units)
    group = np.repeat(np.arange(len(units)) % groups, [u.size for u in units])
    return np.array([statistic(everything[group != g]) for g in range(groups)])


def _bca(
    draws: NDArray[np.float64], influences: NDArray[np.float64], confidence: float
) -> tuple[float, float]:
    """Lower and upper BCa bound from draws around the observed value, relative to it."""
    below = float(np.mean(draws < 0) + 0.5 * np.mean(draws == 0))
    edge = 1 / (draws.size + 1)
    bias = _NORMAL.inv_cdf(min(max(below, edge), 1 - edge))
    acceleration = _acceleration(influences)
    bounds = []
    for z in (-_NORMAL.inv_cdf(confidence), _NORMAL.inv_cdf(confidence)):
        shifted = bias + z
        scale = 1 - acceleration * shifted
        share = _NORMAL.cdf(bias + shifted / scale) if scale > 0 else float(z > 0)
        bounds.append(float(np.quantile(draws, share)))
    return bounds[0], bounds[1]


def _acceleration(influences: NDArray[np.float64]) -> float:
    # Scaled first, since the cube of a small spread would vanish.
    largest = float(np.abs(influences).max())
    if not largest:
        return 0.0
    unit: NDArray[np.float64] = influences / largest
    return float((unit**3).sum() / (6 * (unit**2).sum() ** 1.5))


def _error_used(influences: NDArray[np.float64]) -> float:
    """Share of the error that the bootstrap-t may spend."""
    skewed = min(1.0, abs(_acceleration(influences)) / _SKEWED)
    return 1 - _SET_ASIDE * skewed


def _studentized(
    means: NDArray[np.float64], errors: NDArray[np.float64], error: float, tail: float
) -> tuple[float, float]:
    """Lower and upper bootstrap-t bound, relative to the observed mean.

    Args:
        means: Of the draws, around the observed mean.
        errors: Standard error of each.
        error: Observed standard error.
        tail: Probability beyond each bound.
    """
    if error == 0:
        return 0.0, 0.0
    ratios = means / np.maximum(errors, _LEAST_ERROR * error)
    below, above = np.quantile(ratios, [tail, 1 - tail])
    return float(-above * error), float(-below * error)


def _resampled(
    values: NDArray[np.float64], resamples: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard error of each draw of so many values with repetition."""
    rng = np.random.default_rng(seed)
    n = values.size
    rows = max(1, _CHUNK_DRAWS // n)
    means, errors = np.empty(resamples), np.empty(resamples)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        drawn = values[rng.integers(0, n, size=(stop - start, n), dtype=np.int32)]
        means[start:stop] = drawn.mean(axis=1)
        squares = np.einsum("ij,ij->i", drawn, drawn) / n - means[start:stop] ** 2
        errors[start:stop] = np.sqrt(np.maximum(squares, 0.0) / (n - 1))
    return means, errors
