"""Bounds of a drop where few samples changed, or none; verdicts on them stand in test_gate.py."""

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.errors import UsageError
from quantize.evidence import Evidence, Rows
from quantize.intervals import clopper_pearson_upper
from quantize.pairing import own_bounds, pair, whole_bounds
from tests.scored import counted, evaluation

CONFIDENCE = 0.95


def right(rows: Rows) -> float:
    return float(np.mean(np.asarray(rows)))


def evidence(wrong: int, count: int = 100) -> Evidence:
    """Of a metric that is the share of rows that are right; spoiled, they are wrong."""
    rows = np.ones(count)
    rows[:wrong] = 0
    return Evidence(rows, right, "share", lambda r: np.zeros(len(r)))


def each(count: int = 100) -> list[NDArray[np.intp]]:
    return list(np.arange(count)[:, None])


def test_where_nothing_changed_the_bound_is_what_unseen_changes_may_cost() -> None:
    bounds, changed = whole_bounds(evidence(0), evidence(0), each(), CONFIDENCE, 1.0)
    assert changed == 0
    assert (bounds.value, bounds.low) == (0.0, 0.0)
    # One sample costs a hundredth, and so many of a hundred may change.
    assert bounds.high == pytest.approx(clopper_pearson_upper(0, 100, CONFIDENCE))


def test_where_few_changed_the_bound_covers_what_as_many_as_may_change_would_cost() -> None:
    for wrong in range(1, 10):
        first, second = evidence(0), evidence(wrong)
        bounds, changed = whole_bounds(first, second, each(), CONFIDENCE, 1.0)
        assert changed == wrong
        assert bounds.value == pytest.approx(wrong / 100)
        # Each costs a hundredth. By chance, resamples may reach as far or not.
        assert bounds.high >= clopper_pearson_upper(wrong, 100, CONFIDENCE) - 1e-12


def test_where_many_changed_resampling_alone_says_it() -> None:
    first, second = evidence(0), evidence(30)
    bounds, _ = whole_bounds(first, second, each(), CONFIDENCE, 1.0)
    assert 0.3 < bounds.high < 0.4
    assert 0.2 < bounds.low < 0.3


def test_equal_units_may_still_change_unless_scores_are_right_or_wrong() -> None:
    units = [i // 2 for i in range(100)]
    plain = evaluation([0.5] * 100, binary=False)
    found = pair(plain, plain, CONFIDENCE, units)
    assert (found.n, found.unchanged) == (50, True)
    assert found.high == pytest.approx(clopper_pearson_upper(0, 50, CONFIDENCE))
    # Their limit comes from the rule for units without a loss, in the gate.
    binary = pair(*counted(100, 0, 0), CONFIDENCE, units)
    assert (binary.high, binary.unchanged, binary.right_or_wrong) == (0.0, True, True)


@pytest.mark.parametrize("after", [0.25, 0.75])
def test_units_that_lost_or_gained_are_not_unchanged(after: float) -> None:
    units = [i // 2 for i in range(100)]
    before = evaluation([0.5] * 100, binary=False)
    found = pair(before, evaluation([after] + [0.5] * 99, binary=False), CONFIDENCE, units)
    assert not found.unchanged
    assert (found.losses, found.gains) == ((1, 0) if after < 0.5 else (0, 1))


@pytest.mark.parametrize("swapped", [False, True])
def test_only_where_all_scores_are_right_or_wrong_are_they_tested_as_such(*, swapped: bool) -> None:
    # Scores between 0 and 1 of which one model happens to have ends alone.
    two = evaluation([1.0] * 20), evaluation([0.5] * 4 + [1.0] * 16)
    found = pair(*(reversed(two) if swapped else two), CONFIDENCE, None)
    assert (found.binary, found.right_or_wrong) == (False, False)
    assert abs(found.drop) == pytest.approx(0.1)


def test_no_drop_has_no_sign_where_lower_is_better() -> None:
    plain = evaluation([0.5] * 20, binary=False, higher_is_better=False)
    assert math.copysign(1, pair(plain, plain, CONFIDENCE, None).drop) == 1


@pytest.mark.parametrize(("metric", "told"), [("agreement", "Clopper-Pearson"), ("top1", "Tango")])
def test_right_or_wrong_scores_have_the_test_of_their_metric(metric: str, told: str) -> None:
    before, after = (replace(e, metric=metric) for e in counted(100, 3, 0))
    assert pair(before, after, CONFIDENCE, None).method.startswith(told)


def test_a_score_without_a_range_is_measured_by_its_value() -> None:
    plain = evaluation([40.0] * 100, binary=False, bounded=False)
    found = pair(plain, plain, CONFIDENCE, None)
    assert found.high == pytest.approx(40 * clopper_pearson_upper(0, 100, CONFIDENCE))


def test_one_sample_has_no_interval() -> None:
    assert own_bounds(evaluation([0.5]), CONFIDENCE).high == 0.5
    many = own_bounds(evaluation([0.0, 1.0] * 50), CONFIDENCE)
    assert many.low < 0.5 < many.high


def test_samples_of_a_unit_are_drawn_together_wherever_they_stand() -> None:
    # What one half of each unit loses the other gains.
    after = evaluation([0.4] * 20 + [0.6] * 20, binary=False)
    found = pair(evaluation([0.5] * 40, binary=False), after, CONFIDENCE, [*range(20), *range(20)])
    assert found.n == 20
    assert (found.low, found.high) == pytest.approx((0.0, 0.0), abs=1e-12)


def test_units_are_named_for_every_sample() -> None:
    with pytest.raises(UsageError, match="units: 3 samples have one, 4 were scored"):
        pair(*counted(4, 0, 0), CONFIDENCE, [0, 0, 1])
