"""Limits with their units: read, and turned into the metric's own."""

import pytest

from bench.errors import UsageError
from quantize.tolerance import Tolerance, default_tolerance, exactly, parse_tolerance
from tests.scored import evaluation


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("1pt", 1.0, "pt"),
        ("0.5 PT", 0.5, "pt"),
        ("1%", 1.0, "%"),
        (".1abs", 0.1, "abs"),
        ("1e-3Abs", 0.001, "abs"),
        ("0pt", 0.0, "pt"),
    ],
)
def test_tolerances_are_read_with_their_unit(text, value, unit):
    assert parse_tolerance(text) == Tolerance(value, unit)
    assert parse_tolerance(str(parse_tolerance(text))) == parse_tolerance(text)


@pytest.mark.parametrize("text", ["1", "0.01", "", "pt", "1 point", "1,5pt", "nanpt", "1pt2"])
def test_tolerances_without_a_known_unit_are_refused_with_the_three_spellings(text):
    with pytest.raises(UsageError, match=r"1pt .*1% .*0\.1abs"):
        parse_tolerance(text)


@pytest.mark.parametrize("text", ["-1pt", "-0.1abs", "1e999%"])
def test_tolerances_out_of_range_are_refused(text):
    with pytest.raises(UsageError, match="out of range"):
        parse_tolerance(text)


def test_tolerance_units_mean_what_they_say():
    assert Tolerance(1, "pt").absolute(0.8, bounded=True) == pytest.approx(0.01)
    assert Tolerance(1, "%").absolute(0.8, bounded=True) == pytest.approx(0.008)
    assert Tolerance(1, "%").absolute(-50.0, bounded=False) == pytest.approx(0.5)
    assert Tolerance(0.1, "abs").absolute(50.0, bounded=False) == 0.1


def test_points_of_an_unbounded_metric_are_refused():
    with pytest.raises(UsageError, match=r"hundredths of a metric in 0..1"):
        Tolerance(1, "pt").absolute(3.0, bounded=False)


def test_a_share_of_zero_is_refused():
    with pytest.raises(UsageError, match="which is 0"):
        Tolerance(1, "%").absolute(0.0, bounded=True)


def test_a_tolerance_that_passes_anything_is_refused():
    with pytest.raises(UsageError, match="would pass any model"):
        Tolerance(1, "abs").absolute(0.8, bounded=True)
    assert Tolerance(99, "pt").absolute(0.8, bounded=True) == 0.99


def test_decibels_are_the_least_ratio_and_of_such_a_metric_alone() -> None:
    assert Tolerance(30.0, "dB").absolute(50.0, bounded=False, decibels=True) == 20.0
    for tolerance, decibels in ((Tolerance(30.0, "dB"), False), (Tolerance(1.0, "abs"), True)):
        with pytest.raises(UsageError, match="as in 40dB, and only theirs"):
            tolerance.absolute(50.0, bounded=False, decibels=decibels)


@pytest.mark.parametrize("decibels", [False, True])
def test_a_limit_comes_back_from_its_tolerance(*, decibels: bool) -> None:
    baseline = evaluation([40.0, 50.0], decibels=decibels)
    found = exactly(2.5, baseline)
    assert found.absolute(baseline.value, bounded=False, decibels=decibels) == 2.5


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"bounded": True, "binary": False}, "1pt"),
        ({"bounded": False, "binary": True}, "1pt"),
        ({"bounded": False, "binary": False}, "1%"),
        ({"bounded": False, "binary": False, "decibels": True}, "30dB"),
    ],
)
def test_without_a_limit_the_metric_says_which(facts: dict[str, bool], text: str) -> None:
    assert str(default_tolerance(evaluation([0.5], **facts))) == text
