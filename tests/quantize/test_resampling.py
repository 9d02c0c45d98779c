"""Known values, simulated error rates, and properties of bounds that come from resampling."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize import resampling
from quantize.intervals import clopper_pearson_upper
from quantize.resampling import mean_bounds
from tests.benchmarks.gate import bootstrap_errors, corpus_errors

Z95 = 1.6448536269514722


def test_mean_bounds_of_equal_values_are_that_value():
    assert mean_bounds(np.full(7, 0.25)) == (0.25, 0.25)


def test_mean_bounds_of_normal_values_are_those_of_student():
    values = np.random.default_rng(0).normal(3.0, 2.0, 4000)
    half = Z95 * values.std(ddof=1) / math.sqrt(4000)
    low, high = mean_bounds(values)
    assert low == pytest.approx(values.mean() - half, abs=0.03 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.03 * half)


def test_mean_bounds_follow_skewness():
    # The exact bounds of an exponential mean, from chi-squared: 2 n mean / theta ~ chi2(2 n). For
    # n = 40 and mean 1 the upper bound is 80 / chi2(0.05; 80) = 80 / 60.3915.
    quantiles = (np.arange(40) + 0.5) / 40
    values = -np.log1p(-quantiles)
    values /= values.mean()
    low, high = mean_bounds(values)
    assert high - 1 > 1.15 * (1 - low)
    assert high == pytest.approx(80 / 60.3915, abs=0.04)


def test_mean_bounds_repeat_and_ignore_order():
    values = np.random.default_rng(1).exponential(size=100)
    shuffled = np.random.default_rng(2).permutation(values)
    assert mean_bounds(values) == mean_bounds(values) == mean_bounds(shuffled)


@pytest.mark.parametrize(("n", "draw"), [(8, "normal"), (25, "normal"), (50, "exponential")])
def test_mean_bounds_cover_the_truth(n, draw):
    rng = np.random.default_rng(5)
    truth = {"normal": 0.0, "exponential": 1.0}[draw]
    trials = 400
    above = below = 0
    for _ in range(trials):
        low, high = mean_bounds(getattr(rng, draw)(size=n), resamples=1000)
        above += high < truth
        below += low > truth
    # 5 % each, plus three standard errors of the simulation and the skewed case's known bias.
    assert above / trials <= 0.05 + 0.033 + (0.02 if draw == "exponential" else 0)
    assert below / trials <= 0.05 + 0.033


@settings(max_examples=40)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40),
    st.sampled_from([1.0, 1e-9, 1e9]),
)
def test_mean_bounds_enclose_the_mean(values, scale):
    low, high = mean_bounds(np.array(values) * scale, resamples=200)
    mean = np.sort(np.array(values) * scale).mean()
    assert low <= mean <= high
    assert math.isfinite(low)
    assert math.isfinite(high)


def test_skewed_scores_do_not_pass_too_often() -> None:
    # BCa and Student's t alone let 7 to 13 % pass where most scores are zero.
    for name, (passes, refusals) in bootstrap_errors(100, 150).items():
        assert max(passes, refusals) < 0.09, name


def test_a_metric_of_the_whole_data_set_does_not_pass_too_often() -> None:
    for name, (passes, refusals) in corpus_errors(200, 40).items():
        assert max(passes, refusals) < 0.13, name


def test_few_changed_scores_are_bounded_by_how_often_samples_may_change() -> None:
    values = np.zeros(400)
    values[3] = 0.5
    assert mean_bounds(values)[1] >= 2 * 0.5 * clopper_pearson_upper(1, 400)
    assert mean_bounds(-values)[0] <= -2 * 0.5 * clopper_pearson_upper(1, 400)


def test_many_samples_are_resampled_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    real = resampling._resampled

    def counted(values: Any, resamples: int, seed: int) -> Any:
        drawn.append(values.size * resamples)
        return real(values, resamples, seed)

    monkeypatch.setattr(resampling, "_resampled", counted)
    for n in (1_000, 50_000):
        mean_bounds(np.random.default_rng(0).normal(size=n))
    assert drawn == [10_000_000, 30_000_000]
