"""Confidence bounds and tests of counts, behind the gate; `quantize.resampling` has those of means.

Notation of the paired tests: `n` paired samples, `losses` = FP32 right and INT8 wrong, `gains` =
FP32 wrong and INT8 right, drop = (losses - gains) / n. All bounds are one-sided at `confidence`
each, unless a function says otherwise.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

from bench.distributions import beta_cdf, root

_NORMAL = NormalDist()
_MAX_SAMPLES = 1 << 40
_ERROR_USED = 0.97


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
    return root(lambda p: beta_cdf(p, k + 1, n - k) - confidence, 0.0, 1.0)


def clopper_pearson_lower(k: int, n: int, confidence: float = 0.95) -> float:
    """Exact lower bound of a rate of which `k` of `n` were seen (Clopper, Pearson 1934)."""
    return 1 - clopper_pearson_upper(n - k, n, confidence)


def binomial_tail(k: int, n: int, rate: float) -> float:
    """P(X >= k) for X ~ Binomial(n, rate): the one-sided p-value of `k` successes."""
    if k <= 0:
        return 1.0
    return beta_cdf(rate, k, n - k + 1)


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


def _paired_upper(losses: int, gains: int, n: int, confidence: float) -> float:
    z = score_quantile(confidence)
    observed = (losses - gains) / n
    # The statistic falls as the hypothesis rises, from +inf at -1 to -inf at 1.
    high = (
        1.0
        if losses == n
        else root(lambda drop: -z - tango_z(losses, gains, n, drop), observed, 1.0)
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
