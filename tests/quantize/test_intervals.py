"""Known values, exact error rates by enumeration, and properties of the bounds."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.intervals import (
    binomial_tail,
    clopper_pearson_lower,
    clopper_pearson_upper,
    is_surely_better,
    paired_bounds,
    samples_to_certify,
    score_quantile,
    tango_z,
    wilson,
    zero_loss_samples,
)
from tests.benchmarks.gate import false_passes, false_refusals

Z95 = 1.6448536269514722


def test_wilson_matches_published_values():
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_wilson_stays_within_what_a_rate_can_be():
    assert all(wilson(0, n)[0] >= 0 and wilson(n, n)[1] <= 1 for n in range(1, 100))


def test_clopper_pearson_of_zero_losses_has_its_closed_form():
    for n in (1, 10, 299, 50_000):
        assert clopper_pearson_upper(0, n) == pytest.approx(1 - 0.05 ** (1 / n), rel=1e-9)


def test_clopper_pearson_of_all_is_one():
    assert clopper_pearson_upper(7, 7) == 1.0


@given(st.integers(1, 300), st.data())
def test_clopper_pearson_leaves_five_percent_below(n, data):
    k = data.draw(st.integers(0, n - 1))
    bound = clopper_pearson_upper(k, n)
    below = sum(math.comb(n, i) * bound**i * (1 - bound) ** (n - i) for i in range(k + 1))
    assert below == pytest.approx(0.05, rel=1e-6)


@given(st.integers(1, 60), st.data(), st.floats(0.01, 0.99))
def test_binomial_tail_is_the_sum_of_its_terms(n, data, rate):
    k = data.draw(st.integers(0, n))
    terms = [math.comb(n, i) * rate**i * (1 - rate) ** (n - i) for i in range(k, n + 1)]
    assert binomial_tail(k, n, rate) == pytest.approx(math.fsum(terms), rel=1e-9, abs=1e-14)


@settings(max_examples=50)
@given(st.integers(5, 400), st.data(), st.integers(-900, 900))
def test_tango_is_the_score_statistic_at_the_most_likely_rates(n, data, drop):
    drop /= 1000
    losses = data.draw(st.integers(0, n))
    gains = data.draw(st.integers(0, n - losses))
    # The oracle: the likelihood of (losses, gains) under the hypothesis, maximized by brute force.
    lowest, highest = max(0.0, -drop), (1 - drop) / 2
    rates = np.linspace(lowest, highest, 50_003)[1:-1]
    terms = [(losses, rates + drop), (gains, rates), (n - losses - gains, 1 - drop - 2 * rates)]
    rate = rates[np.argmax(sum(count * np.log(p) for count, p in terms))]
    variance = n * (2 * rate + drop - drop**2)
    expected = (losses - gains - n * drop) / math.sqrt(variance)
    assert tango_z(losses, gains, n, drop) == pytest.approx(expected, rel=5e-3, abs=5e-3)


def test_paired_bounds_are_where_the_test_turns():
    low, high = paired_bounds(35, 20, 1000)
    assert tango_z(35, 20, 1000, high) == pytest.approx(-score_quantile(0.95), abs=1e-9)
    assert tango_z(35, 20, 1000, low) == pytest.approx(score_quantile(0.95), abs=1e-9)


@pytest.mark.parametrize(
    ("discordant", "certify"),
    [
        (0.01, (1302, 434, 170)),
        (0.02, (2288, 649, 215)),
        (0.03, (3330, 889, 267)),
        (0.05, (5460, 1400, 381)),
        (0.08, (8687, 2193, 568)),
        (0.10, (10844, 2727, 698)),
        (0.15, (16246, 4071, 1027)),
        (0.20, (21653, 5420, 1361)),
    ],
)
def test_samples_to_certify_no_drop(discordant, certify):
    found = tuple(
        samples_to_certify(discordant / 2, discordant / 2, limit, 0.95)
        for limit in (0.005, 0.01, 0.02)
    )
    # The test alone; 3 % of its error are set aside (`score_quantile`), which asks for more.
    assert all(c <= f <= 1.03 * c + 2 for f, c in zip(found, certify, strict=True))


def test_samples_to_certify_a_small_drop_grows_as_wald_says():
    # n = z² (psi - d²) / (limit - d)², for psi 20 %, drop 0.25 pt, limit 1 pt.
    assert samples_to_certify(0.10125, 0.09875, 0.01, 0.95) == pytest.approx(9620, rel=0.03)


def test_what_whole_numbers_of_samples_claim_exactly_is_not_rounded_up():
    counts = range(1, 60)
    assert [zero_loss_samples(0.1, 1 - 0.9**n) for n in counts] == list(counts)


def test_changes_one_way_are_bounded_no_tighter_than_their_rate():
    # Tango's test alone would say -0.318 and 0.318.
    exact = clopper_pearson_lower(10, 20, 0.95)
    assert paired_bounds(0, 10, 20)[1] == -exact == pytest.approx(-0.302, abs=5e-4)
    assert paired_bounds(10, 0, 20)[0] == exact


def test_without_a_variance_the_score_is_zero_or_endless():
    assert tango_z(0, 0, 10, 0.0) == 0.0
    # No drop but -1 is left to explain gains in all pairs, and here were half of them.
    assert tango_z(0, 50, 100, -1 + 3 * 2**-53) == math.inf


@pytest.mark.parametrize(("limit", "samples"), [(0.01, 299), (0.005, 598), (0.02, 149)])
def test_zero_loss_rule(limit, samples):
    assert zero_loss_samples(limit, 0.95) == samples
    assert samples_to_certify(0.0, 0.0, limit, 0.95) == samples
    assert paired_bounds(0, 0, samples)[1] < limit <= paired_bounds(0, 0, samples - 1)[1]


@settings(max_examples=60)
@given(st.integers(1, 3000), st.data())
def test_paired_bounds_are_ordered_and_mirrored(n, data):
    losses = data.draw(st.integers(0, n))
    gains = data.draw(st.integers(0, n - losses))
    low, high = paired_bounds(losses, gains, n)
    assert -1 <= low <= (losses - gains) / n <= high <= 1
    assert paired_bounds(gains, losses, n) == (-high, -low)


@settings(max_examples=60)
@given(st.integers(2, 2000), st.data())
def test_more_losses_never_lower_the_bounds(n, data):
    losses = data.draw(st.integers(0, n - 1))
    gains = data.draw(st.integers(0, n - 1 - losses))
    before, after = paired_bounds(losses, gains, n), paired_bounds(losses + 1, gains, n)
    assert after[0] >= before[0] - 1e-9
    assert after[1] >= before[1] - 1e-9


@pytest.mark.parametrize("limit", [0.005, 0.01, 0.02, 0.05])
def test_a_model_at_the_limit_passes_in_five_percent_at_most(limit):
    rates = [
        false_passes(n, limit, d)
        for n in (100, 200, 250, 300, 350, 500, 700, 1000, 2000, 10_000)
        for d in (0.01, 0.02, 0.03, 0.05, 0.06, 0.1, 0.15, 0.2)
        if d >= limit
    ]
    assert max(rates) <= 0.05
    # Nor is it so careful that it tells nothing.
    assert max(rates) > 0.045


@pytest.mark.parametrize("limit", [0.0, 0.01])
def test_few_samples_err_as_rarely_however_many_of_them_differ(limit):
    sizes, shares = (1, 3, 4, 5, 7, 10, 20, 50, 100, 200), (0.05, 0.1, 0.2, 0.5, 1.0)
    passes = [false_passes(n, limit, d) for n in sizes for d in shares]
    refusals = [false_refusals(n, limit, d) for n in sizes for d in shares]
    assert 0.03 < max(passes) <= 0.05
    assert 0.03 < max(refusals) < 0.06


def test_a_model_at_the_limit_is_refused_about_as_rarely():
    rates = [false_refusals(n, 0.01, d) for n in (100, 500, 2000) for d in (0.01, 0.05, 0.2)]
    assert max(rates) < 0.06


@pytest.mark.parametrize(
    ("losses", "gains", "surely"),
    # 1/16, 1/32, 9/128 and 10/256: binomial tails by hand.
    [(0, 0, False), (0, 4, False), (0, 5, True), (1, 6, False), (1, 7, True), (5, 0, False)],
)
def test_the_sign_test_is_the_binomial_tail(losses, gains, surely):
    assert is_surely_better(losses, gains, 0.95) is surely


def test_a_worse_model_passes_more_rarely_and_a_better_one_more_often():
    rates = [false_passes(1000, 0.01, 0.05, drop) for drop in (0.02, 0.01, 0.005, 0.0, -0.01)]
    assert rates == sorted(rates)
    assert rates[0] < 0.002
    assert rates[-1] > 0.85


def test_the_sums_are_those_of_the_gate_itself():
    # A simulation of the same, through the verdict's own bounds.
    cells = np.random.default_rng(7).multinomial(500, [0.03, 0.02, 0.95], size=20_000)
    unique, counts = np.unique(cells[:, :2], axis=0, return_counts=True)
    passed = sum(
        int(c)
        for (b, g), c in zip(unique, counts, strict=True)
        if paired_bounds(int(b), int(g), 500)[1] < 0.01
    )
    exact = false_passes(500, 0.01, 0.05)
    assert passed / 20_000 == pytest.approx(exact, abs=3 * math.sqrt(exact / 20_000))
