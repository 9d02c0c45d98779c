"""Verdicts on made-up scores: outcomes, directions, refusals, and the rate of false passes."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import InputError, UsageError
from quantize.gate import can_pass, judge
from quantize.intervals import paired_bounds
from quantize.tolerance import Tolerance
from tests.scored import POINT, continuous, counted, evaluation

# --- 0/1 scores ---


@pytest.mark.parametrize(
    ("n", "losses", "gains", "outcome"),
    [
        (299, 0, 0, "pass"),
        (298, 0, 0, "inconclusive"),
        (1450, 36, 36, "pass"),
        (1300, 35, 35, "inconclusive"),
        (1000, 50, 10, "refuse"),
        (1000, 20, 10, "inconclusive"),
        (1000, 25, 10, "inconclusive"),
        (100, 2, 4, "inconclusive"),
        (100, 0, 60, "pass"),
        (5, 5, 0, "refuse"),
        (4, 4, 0, "inconclusive"),
        (5000, 60, 40, "pass"),
    ],
)
def test_binary_outcomes(n, losses, gains, outcome):
    verdict = judge(*counted(n, losses, gains), POINT)
    assert verdict.outcome == outcome
    assert (verdict.losses, verdict.gains, verdict.n) == (losses, gains, n)
    assert verdict.drop == pytest.approx((losses - gains) / n)
    assert verdict.low <= verdict.drop <= verdict.high
    assert verdict.limit == pytest.approx(0.01)


def test_an_inconclusive_verdict_asks_for_the_samples_that_settle_it():
    verdict = judge(*counted(500, 5, 5), POINT)
    assert verdict.outcome == "inconclusive"
    assert verdict.samples_needed is not None
    assert f"{verdict.samples_needed:,}" in verdict.reason
    factor = math.ceil(verdict.samples_needed / 500)
    assert judge(*counted(500 * factor, 5 * factor, 5 * factor), POINT).outcome == "pass"


def test_without_a_loss_the_samples_needed_are_those_of_the_zero_loss_rule():
    assert judge(*counted(50, 0, 0), POINT).samples_needed == 299


def test_a_drop_at_the_limit_asks_for_no_more_samples():
    verdict = judge(*counted(1000, 20, 10), POINT)
    assert verdict.samples_needed is None
    assert verdict.reason.endswith("unlikely to make it pass, a larger limit may.")


def test_a_tolerance_of_next_to_nothing_asks_for_no_number_of_samples():
    drops = continuous([-0.1, 0.1])
    assert judge(*drops, Tolerance(1e-160, "abs")).samples_needed is None


def test_no_tolerance_at_all_is_never_certified_by_equality():
    verdict = judge(*counted(100_000, 0, 0), Tolerance(0, "pt"))
    assert verdict.outcome == "inconclusive"
    assert verdict.samples_needed is None
    assert "exactly the limit of 0" in verdict.reason


@pytest.mark.parametrize(("n", "gains", "outcome"), [(4, 4, "inconclusive"), (5, 5, "pass")])
def test_no_tolerance_is_met_by_gains_that_chance_makes_in_one_case_of_twenty(n, gains, outcome):
    verdict = judge(*counted(n, 0, gains), Tolerance(0, "pt"))
    assert verdict.outcome == outcome
    if outcome == "inconclusive":
        assert verdict.samples_needed == 5
        assert "too often" in verdict.reason


def test_more_gains_than_losses_ask_for_the_samples_that_show_no_loss():
    verdict = judge(*counted(100, 4, 6), Tolerance(0, "pt"))
    assert verdict.outcome == "inconclusive"
    factor = math.ceil(verdict.samples_needed / 100)
    more = counted(100 * factor, 4 * factor, 6 * factor)
    assert judge(*more, Tolerance(0, "pt")).outcome == "pass"


def test_equal_units_never_certify_that_nothing_is_lost():
    pair = counted(600, 0, 0)
    verdict = judge(*pair, Tolerance(0, "pt"), units=[i // 2 for i in range(600)])
    assert verdict.outcome == "inconclusive"
    assert verdict.samples_needed is None


def test_no_tolerance_is_met_by_a_model_that_is_surely_better():
    verdict = judge(*counted(1000, 1, 30), Tolerance(0, "pt"))
    assert verdict.outcome == "pass"
    assert verdict.suspicious


def test_more_confidence_asks_for_more():
    pair = counted(1400, 35, 35)
    assert judge(*pair, POINT, confidence=0.99).outcome == "inconclusive"


@pytest.mark.parametrize("confidence", [0.5, 1.0, -1, math.nan])
def test_confidence_out_of_range_is_refused(confidence):
    with pytest.raises(UsageError, match="confidence"):
        judge(*counted(1000, 0, 0), POINT, confidence=confidence)


@pytest.mark.parametrize(("n", "gain_rate"), [(300, 0.01), (1000, 0.01), (1000, 0.05)])
def test_models_at_the_limit_pass_in_five_percent_of_cases(n, gain_rate):
    trials = 20_000
    rates = [0.01 + gain_rate, gain_rate, 0.99 - 2 * gain_rate]
    cells = np.random.default_rng(7).multinomial(n, rates, size=trials)
    unique, counts = np.unique(cells[:, :2], axis=0, return_counts=True)
    passed = sum(
        int(count)
        for (losses, gains), count in zip(unique, counts, strict=True)
        if paired_bounds(int(losses), int(gains), n)[1] < 0.01
    )
    assert passed / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


# --- other scores ---


def test_a_small_certain_drop_passes():
    drops = np.random.default_rng(0).normal(0.002, 0.01, 200)
    verdict = judge(*continuous(drops), POINT)
    assert verdict.outcome == "pass"
    assert verdict.low < 0.002 + 0.002
    assert "bootstrap" in verdict.method


@pytest.mark.parametrize(("samples", "possible"), [(64, True), (9, False)])
def test_scores_with_a_spread_can_pass_where_unchanged_ones_cannot(samples, possible):
    fp32, int8 = continuous(np.random.default_rng(0).normal(0, 1e-4, samples))
    itself = judge(fp32, fp32, POINT)
    assert itself.outcome == "inconclusive"
    assert can_pass(fp32, itself) == possible
    if possible:
        assert judge(fp32, int8, POINT).outcome == "pass"


@pytest.mark.parametrize(("samples", "possible"), [(298, False), (299, True)])
def test_right_or_wrong_scores_can_pass_where_unchanged_ones_do(samples, possible):
    fp32 = evaluation([1, 0] * samples)
    fp32 = replace(fp32, scores=fp32.scores[:samples])
    assert can_pass(fp32, judge(fp32, fp32, POINT)) == possible


def test_a_model_that_is_better_is_said_to_be_better():
    verdict = judge(*counted(5000, 0, 2), POINT)
    assert verdict.reason == (
        "INT8 scores 0.04 pt better over 5,000 samples; at 95 % confidence the drop is below the "
        "limit of 1 pt."
    )


def test_a_large_certain_drop_is_refused():
    drops = np.random.default_rng(0).normal(0.05, 0.05, 100)
    assert judge(*continuous(drops), POINT).outcome == "refuse"


def test_an_uncertain_drop_is_inconclusive_and_says_how_many_samples_it_takes():
    drops = np.random.default_rng(0).normal(0.0, 0.1, 100)
    verdict = judge(*continuous(drops), POINT)
    assert verdict.outcome == "inconclusive"
    spread = drops.std(ddof=1)
    expected = (1.6449 * spread / (0.01 - drops.mean())) ** 2
    assert verdict.samples_needed == pytest.approx(expected, rel=0.01)


def test_few_changed_scores_ask_for_the_samples_in_which_enough_change():
    few = [0.05, -0.02, 0.02] + [0.0] * 57
    verdict = judge(*continuous(few), POINT)
    assert verdict.outcome == "inconclusive"
    assert verdict.samples_needed == 200
    assert judge(*continuous(few * 4), POINT).outcome == "pass"


def test_identical_scores_pass_where_they_are_enough_to_see_a_change():
    verdict = judge(*continuous(np.zeros(299)), POINT)
    assert verdict.outcome == "pass"
    assert "exactly" in verdict.reason
    assert (verdict.low, verdict.drop) == (0, 0)
    few = judge(*continuous(np.zeros(298)), POINT)
    assert (few.outcome, few.samples_needed) == ("inconclusive", 299)


def test_identical_scores_do_not_show_that_nothing_is_ever_lost():
    verdict = judge(*continuous(np.zeros(1000)), Tolerance(0, "abs"))
    assert verdict.outcome == "inconclusive"
    assert "Allow a small drop" in verdict.reason


def test_scores_without_a_range_are_measured_by_their_value():
    facts = {"binary": False, "bounded": False}
    pair = [evaluation(np.full(400, 50.0), **facts)] * 2
    assert judge(*pair, Tolerance(1, "%")).outcome == "pass"
    assert judge(*pair, Tolerance(0.1, "%")).outcome == "inconclusive"


@pytest.mark.parametrize("n", [1, 4])
def test_a_handful_of_samples_never_passes(n):
    verdict = judge(*continuous(np.zeros(n)), POINT)
    assert verdict.outcome == "inconclusive"
    assert verdict.samples_needed == 299


def test_one_sample_never_refuses():
    assert judge(*continuous([0.5]), POINT).outcome == "inconclusive"


@pytest.mark.parametrize(("n", "outcome"), [(4, "inconclusive"), (5, "pass")])
def test_fewer_than_five_scores_certify_nothing_whatever_they_gain(n, outcome):
    verdict = judge(*continuous(-np.linspace(0.5, 0.6, n)), POINT)
    assert verdict.high < 0
    assert verdict.outcome == outcome


def test_a_few_clear_samples_refuse():
    assert judge(*continuous([0.5, 0.51, 0.49]), POINT).outcome == "refuse"


def test_scores_that_are_binary_in_one_model_only_are_bootstrapped():
    baseline = evaluation([1] * 50)
    candidate = evaluation([0.99] * 25 + [1] * 25)
    assert "bootstrap" in judge(baseline, candidate, POINT).method


def test_a_mean_error_is_judged_in_its_own_unit():
    rng = np.random.default_rng(0)
    errors = rng.exponential(10, 400)
    worse = errors + rng.normal(0.05, 0.1, 400)
    facts = {"higher_is_better": False, "bounded": False, "metric": "mse", "binary": False}
    pair = evaluation(errors, **facts), evaluation(worse, **facts)
    assert judge(*pair, Tolerance(0.1, "abs")).outcome == "pass"
    assert judge(*pair, Tolerance(0.01, "abs")).outcome == "refuse"
    assert judge(*pair, Tolerance(0.01, "abs")).drop == pytest.approx(0.05, abs=0.02)
    with pytest.raises(UsageError, match="points"):
        judge(*pair, POINT)


# --- what is refused or remarked on ---


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"samples_sha256": "e" * 64}, "samples.*dddd.*eeee"),
        ({"metric": "top5"}, "metric.*'top1'.*'top5'"),
        ({"output": "z"}, "output.*None.*'z'"),
        ({"higher_is_better": False}, "direction"),
        ({"scores": (1.0,) * 9}, "number of scores.*1000.*9"),
    ],
)
def test_unlike_evaluations_are_not_paired(changes, words):
    baseline, candidate = counted(1000, 0, 0)
    with pytest.raises(UsageError, match=words):
        judge(baseline, replace(candidate, **changes), POINT)


def test_empty_evaluations_are_not_paired():
    with pytest.raises(UsageError, match="no scores"):
        judge(evaluation([]), evaluation([]), POINT)


def test_nonfinite_outputs_are_refused_however_good_the_scores():
    baseline, candidate = counted(5000, 0, 0)
    broken = replace(candidate, nonfinite=1, first_nonfinite="sample 3, output 'y'")
    verdict = judge(baseline, broken, POINT)
    assert verdict.outcome == "refuse"
    assert "sample 3, output 'y'" in verdict.reason


def test_a_nonfinite_baseline_is_an_error_and_not_a_verdict():
    baseline, candidate = counted(5000, 0, 0)
    with pytest.raises(InputError, match="baseline is broken"):
        judge(replace(baseline, nonfinite=2, first_nonfinite="sample 0"), candidate, POINT)


def test_a_baseline_that_guesses_is_an_error_and_not_a_pass():
    scores = [1] * 12 + [0] * 88
    pair = evaluation(scores, chance=0.1), evaluation(scores, chance=0.1)
    with pytest.raises(InputError, match=r"baseline is broken: FP32 has 12 of 100 right"):
        judge(*pair, POINT)


def test_a_baseline_above_chance_is_judged():
    scores = [1] * 20 + [0] * 80
    pair = evaluation(scores, chance=0.1), evaluation(scores, chance=0.1)
    assert judge(*pair, POINT).outcome == "inconclusive"


def test_too_few_samples_to_tell_a_guess_are_not_called_a_broken_baseline():
    pair = evaluation([1, 1, 1], chance=0.5), evaluation([1, 1, 1], chance=0.5)
    assert judge(*pair, POINT).outcome == "inconclusive"


def test_a_large_improvement_passes_and_is_remarked_on():
    verdict = judge(*counted(2000, 10, 200), POINT)
    assert verdict.outcome == "pass"
    assert "preprocessing" in verdict.suspicious[0]


def test_a_normal_verdict_has_nothing_suspicious():
    assert judge(*counted(1400, 35, 35), POINT).suspicious == ()
    # Better by more than a point, but not surely so.
    assert judge(*counted(1400, 35, 55), POINT).suspicious == ()


# --- properties ---

pairs_of_scores = st.lists(
    st.tuples(st.floats(0, 1, width=32), st.floats(0, 1, width=32)), min_size=1, max_size=30
)


@settings(max_examples=40)
@given(pairs_of_scores, st.floats(0, 0.5))
def test_negated_scores_of_a_metric_turned_round_give_the_same_verdict(pairs, limit):
    ours, theirs = zip(*pairs, strict=True)
    facts = {"binary": False, "bounded": False}
    up = judge(evaluation(ours, **facts), evaluation(theirs, **facts), Tolerance(limit, "abs"))
    facts["higher_is_better"] = False
    down = judge(
        evaluation([-s for s in ours], **facts),
        evaluation([-s for s in theirs], **facts),
        Tolerance(limit, "abs"),
    )
    assert (up.outcome, up.drop, up.low, up.high) == (down.outcome, down.drop, down.low, down.high)
    assert up.low <= up.drop <= up.high
    assert up.samples_needed is None or up.samples_needed > up.n


@settings(max_examples=40)
@given(pairs_of_scores, st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(pairs, random):
    shuffled = list(pairs)
    random.shuffle(shuffled)
    verdicts = [
        judge(*(evaluation(s, binary=False) for s in zip(*p, strict=True)), Tolerance(0.1, "abs"))
        for p in (pairs, shuffled)
    ]
    assert verdicts[0].outcome == verdicts[1].outcome
    assert verdicts[0].low == pytest.approx(verdicts[1].low, abs=1e-12)
    assert verdicts[0].high == pytest.approx(verdicts[1].high, abs=1e-12)


RANK = {"refuse": 0, "inconclusive": 1, "pass": 2}


@settings(max_examples=60)
@given(st.integers(1, 3000), st.data(), st.floats(0, 0.2))
def test_one_more_loss_never_improves_the_verdict(n, data, limit):
    losses = data.draw(st.integers(0, min(n - 1, 200)))
    gains = data.draw(st.integers(0, min(n - 1 - losses, 200)))
    tolerance = Tolerance(limit, "abs")
    before = judge(*counted(n, losses, gains), tolerance)
    after = judge(*counted(n, losses + 1, gains), tolerance)
    assert RANK[after.outcome] <= RANK[before.outcome]


@settings(max_examples=60)
@given(st.integers(1, 3000), st.data(), st.just(0.0) | st.floats(0, 0.2), st.floats(0, 0.2))
def test_a_wider_tolerance_never_worsens_the_verdict(n, data, limit, more):
    losses = data.draw(st.integers(0, min(n, 200)))
    gains = data.draw(st.integers(0, min(n - losses, 200)))
    pair = counted(n, losses, gains)
    strict = judge(*pair, Tolerance(limit, "abs"))
    lax = judge(*pair, Tolerance(limit + more, "abs"))
    assert RANK[lax.outcome] >= RANK[strict.outcome]
