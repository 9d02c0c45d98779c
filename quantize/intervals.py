"""Confidence bounds and tests behind the gate: pure functions of counts and score differences.

Notation of the paired tests: `n` paired samples, `losses` = FP32 right and INT8 wrong, `gains` =
FP32 wrong and INT8 right, drop = (losses - gains) / n. All bounds are one-sided at `confidence`
each, unless a function says otherwise. Written out because numpy has no distribution functions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_NORMAL = NormalDist()
_CHUNK_DRAWS = 1 << 21
_MAX_SAMPLES = 1 << 40
_JACKKNIFE_GROUPS = 200
_ERROR_USED = 0.97
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


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval of one success rate (Wilson 1927).

    Args:
        successes: How many of `n` succeeded.
        n: Trials, at least 1.
        confidence: Of the interval as a whole.
    """
    z = _NORMAL.inv_cdf(0.5 + confidence / 2)
    rate = successes / n
    scale = 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / scale
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def clopper_pearson_upper(k: int, n: int, confidence: float = 0.95) -> float:
    """Exact upper bound of a rate of which `k` of `n` were seen (Clopper, Pearson 1934)."""
    if k >= n:
        return 1.0
    # P(X <= k | p) = 1 - I_p(k + 1, n - k); the bound is where that falls to 1 - confidence.
    return _root(lambda p: beta_cdf(p, k + 1, n - k) - confidence, 0.0, 1.0)


def clopper_pearson_lower(k: int, n: int, confidence: float = 0.95) -> float:
    """Exact lower bound of a rate of which `k` of `n` were seen (Clopper, Pearson 1934)."""
    return 1 - clopper_pearson_upper(n - k, n, confidence)


def binomial_tail(k: int, n: int, rate: float) -> float:
    """P(X >= k) for X ~ Binomial(n, rate): the one-sided p-value of `k` successes."""
    if k <= 0:
        return 1.0
    return beta_cdf(rate, k, n - k + 1)


def beta_cdf(x: float, a: float, b: float) -> float:
    """Regularized incomplete beta function I_x(a, b), for a, b > 0.

    The continued fraction DLMF 8.17.22, evaluated by Lentz's method (DLMF 3.10).
    """
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    # The fraction converges fast only below the mean; the other side by symmetry (DLMF 8.17.4).
    if x > (a + 1) / (a + b + 2):
        return 1.0 - beta_cdf(1.0 - x, b, a)
    log_front = (
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    tiny = 1e-300
    d = 1.0 / _away_from_zero(1 - (a + b) * x / (a + 1), tiny)
    c, fraction = 1.0, d
    for m in range(1, 100_000):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / _away_from_zero(1 + step * d, tiny)
            c = _away_from_zero(1 + step / c, tiny)
            fraction *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return math.exp(log_front) * fraction / a


def student_quantile(confidence: float, degrees: int) -> float:
    """The `confidence` quantile (above 0.5) of Student's t with `degrees` degrees of freedom."""
    # P(T <= t) = 1 - I_x(v/2, 1/2) / 2 with x = v / (v + t^2), so solve for x and turn it back.
    x = _root(lambda x: beta_cdf(x, degrees / 2, 0.5) - 2 * (1 - confidence), 0.0, 1.0)
    return math.sqrt(degrees * (1 - x) / x)


def tango_z(losses: float, gains: float, n: float, drop: float) -> float:
    """Score statistic of the hypothesis that the true paired drop is `drop`.

    Negative when the observed drop is smaller. From Tango, Statistics in Medicine 17 (1998)
    891-908; unlike Wald's it keeps its error rate where discordant pairs are few.

    Args:
        losses: Pairs that only the first has right; fractions are allowed, to plan a sample size.
        gains: Pairs that only the second has right.
        n: All pairs.
        drop: Strictly between -1 and 1.
    """
    a = 2 * n
    b = -losses - gains + (2 * n - losses + gains) * drop
    c = -gains * drop * (1 - drop)
    # Of the two roots, the larger one is the maximum-likelihood rate of gains under the hypothesis.
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    rate = (root - b) / (2 * a) if b <= 0 else -2 * c / (b + root)
    variance = n * (2 * rate + drop * (1 - drop))
    difference = losses - gains - n * drop
    if variance <= 0:
        return 0.0 if difference == 0 else math.copysign(math.inf, difference)
    return difference / math.sqrt(variance)


def paired_bounds(losses: int, gains: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Lower and upper bound of the drop of a 0/1 score: Tango's test, inverted.

    Where nothing was gained the drop is a plain rate of losses, and the bounds are never tighter
    than its exact ones (Clopper-Pearson): with no loss either that is the zero-loss rule
    n >= ln(1 - confidence) / ln(1 - drop), 299 samples for 1 pt at 95 %, where the score test
    alone would ask for 268.
    """
    return -_paired_upper(gains, losses, n, confidence), _paired_upper(losses, gains, n, confidence)


def samples_to_certify(loss_rate: float, gain_rate: float, limit: float, confidence: float) -> int:
    """Fewest samples that would certify drop < `limit`, if these rates were seen in them too.

    Args:
        loss_rate: Losses per sample.
        gain_rate: Gains per sample; loss_rate - gain_rate has to be below `limit`.
        limit: The tolerated drop, 0 <= limit < 1.
        confidence: Of the one-sided test.
    """
    z = score_quantile(confidence)

    def certified(n: int) -> bool:
        losses, gains = loss_rate * n, gain_rate * n
        if limit == 0 and not is_surely_better(losses, gains, confidence):
            return False
        if gains == 0 and beta_cdf(limit, losses + 1, n - losses) < confidence:
            return False  # the exact rule of `paired_bounds`
        return tango_z(losses, gains, n, limit) < -z

    return _fewest(certified)


def is_surely_better(losses: float, gains: float, confidence: float = 0.95) -> bool:
    """Whether gains outnumber losses so much that the true drop is below 0.

    The exact sign test: were the drop 0 or more, each pair that differs would be a gain with a
    probability of at most one half. It errs in at most 1 - confidence of all cases, however few
    the samples (exact McNemar test, one-sided).

    Args:
        losses: Pairs that only the first has right; fractions are allowed, to plan a sample size.
        gains: Pairs that only the second has right.
        confidence: Of the one-sided test.
    """
    # P(X >= gains) for X ~ Binomial(losses + gains, 1/2).
    return gains > 0 and beta_cdf(0.5, gains, losses + 1) <= 1 - confidence


def score_quantile(confidence: float) -> float:
    """The normal quantile that Tango's statistic is held against.

    Counts are whole numbers, so the test's error rate wavers around the nominal one: up to 5.1 % at
    95 %. With 3 % of it set aside it stays below, for 100 to 10,000 samples of which 1 to 20 %
    differ (enumerated in tests/benchmarks/gate.py).
    """
    return _NORMAL.inv_cdf(1 - _ERROR_USED * (1 - confidence))


def zero_loss_samples(limit: float, confidence: float) -> int:
    """Samples without one loss that it takes to claim a loss rate below `limit` (0 < limit < 1)."""
    exact = math.log(1 - confidence) / math.log1p(-limit)
    return math.ceil(min(exact - 1e-9, _MAX_SAMPLES))


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


def _paired_upper(losses: int, gains: int, n: int, confidence: float) -> float:
    z = score_quantile(confidence)
    observed = (losses - gains) / n
    # The statistic falls as the hypothesis rises, from +inf at -1 to -inf at 1.
    high = (
        1.0
        if losses == n
        else _root(lambda drop: -z - tango_z(losses, gains, n, drop), observed, 1.0)
    )
    if gains == 0:
        high = max(high, clopper_pearson_upper(losses, n, confidence))
    elif losses == 0:
        high = max(high, -clopper_pearson_lower(gains, n, confidence))
    return high


def _fewest(enough: Callable[[int], bool]) -> int:
    high = 1
    while not enough(high) and high < _MAX_SAMPLES:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


def _root(rising: Callable[[float], float], low: float, high: float) -> float:
    # Bisection: the functions here are monotone but not smooth; 100 halvings are below rounding.
    for _ in range(100):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if rising(middle) < 0:
            low = middle
        else:
            high = middle
    return high


def _away_from_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
