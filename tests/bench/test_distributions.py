"""Quantiles against tables, and against the density that they come from."""

import math

import pytest

from bench.distributions import beta_cdf, student_quantile


def test_beta_cdf_at_its_ends_and_middle() -> None:
    assert beta_cdf(0.0, 2, 3) == 0.0
    assert beta_cdf(1.0, 2, 3) == 1.0
    assert beta_cdf(0.5, 1e5, 1e5) == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize(
    ("confidence", "degrees", "quantile"),
    [
        (0.95, 1, 6.313752),
        (0.95, 2, 2.919986),
        (0.95, 10, 1.812461),
        (0.95, 30, 1.697261),
        (0.95, 1_000_000, 1.644855),
        (0.975, 1, 12.706205),
        (0.975, 2, 4.302653),
        (0.975, 4, 2.776445),
        (0.99, 4, 3.746947),
        (0.995, 9, 3.249836),
    ],
)
def test_student_quantiles_are_those_of_tables(
    confidence: float, degrees: int, quantile: float
) -> None:
    """NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2."""
    assert student_quantile(confidence, degrees) == pytest.approx(quantile, abs=2e-6)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 9, 30])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.98])
def test_student_quantiles_bound_their_share(freedom: int, confidence: float) -> None:
    """Integrates the density (Abramowitz and Stegun 26.7.1) by Simpson's rule."""
    t = student_quantile(0.5 + confidence / 2, freedom)
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    n = 20_000
    step = t / n
    weights = [1 if i in (0, n) else 4 if i % 2 else 2 for i in range(n + 1)]
    area = sum(
        w * scale * (1 + (i * step) ** 2 / freedom) ** (-(freedom + 1) / 2)
        for i, w in enumerate(weights)
    )
    assert 2 * area * step / 3 == pytest.approx(confidence, abs=1e-6)
