"""Distribution functions and quantiles, written out because numpy has none."""

import functools
import math
from collections.abc import Callable


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


@functools.cache
def student_quantile(confidence: float, degrees: int) -> float:
    """The `confidence` quantile (above 0.5) of Student's t with `degrees` degrees of freedom."""
    # P(T <= t) = 1 - I_x(v/2, 1/2) / 2 with x = v / (v + t^2), so solve for x and turn it back.
    x = root(lambda x: beta_cdf(x, degrees / 2, 0.5) - 2 * (1 - confidence), 0.0, 1.0)
    return math.sqrt(degrees * (1 - x) / x)


def root(rising: Callable[[float], float], low: float, high: float) -> float:
    """Where a rising function reaches 0 between `low` and `high`."""
    # Bisection: what it is used for is monotone but not smooth; 100 halvings are below rounding.
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
