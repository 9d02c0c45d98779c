import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.compare import (
    Comparison,
    compare,
    doubt_lines,
    interval_text,
    ratio_text,
    too_busy,
)
from bench.errors import UsageError
from bench.latency import Latency, Variant
from bench.models import Model
from bench.rounds import Round
from tests.fakes import MS

MODEL = Model(Path("m.onnx"), (), (), 17, "0" * 64, 1)


def _latency(name: str, *medians_ms: float, **changes: Any) -> Latency:
    rounds = tuple(
        Round(MS, MS, (MS,) * 19, (round(m * MS),) * 64, 1, 0.0, 0.0, 0) for m in medians_ms
    )
    return Latency(Variant(name, MODEL, "onnxruntime", "cpu", 2, 1, **changes), "1", "abc", rounds)


def test_above_one_the_candidate_is_faster() -> None:
    found = compare(_latency("a", 4, 4), _latency("b", 2, 2))
    assert (found.baseline, found.candidate) == ("a", "b")
    assert found.ratio == pytest.approx(2)
    assert found.confidence == 0.95
    assert found.doubts == ()


def test_the_ratio_is_the_median_of_paired_rounds() -> None:
    # A machine that is twice as slow in the second round changes nothing.
    found = compare(_latency("a", 4, 8), _latency("b", 2, 4))
    assert found.ratio == pytest.approx(2)
    assert found.low == pytest.approx(2)
    mixed = compare(_latency("a", 1, 1, 1), _latency("b", 0.5, 2, 2))
    assert mixed.ratio == pytest.approx(0.5)


def test_the_interval_reaches_to_the_median_from_where_the_mean_is() -> None:
    # Most rounds are alike; the others pull the mean, and Student's interval with it.
    fast, slow = [1.0] * 16 + [4.0] * 14, [1.0] * 30
    for a, b in ((fast, slow), (slow, fast)):
        found = compare(_latency("a", *a), _latency("b", *b))
        assert found.ratio == pytest.approx(1)
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.ratio <= found.high


def test_few_rounds_get_students_interval() -> None:
    found = compare(_latency("a", 1, 1, 1), _latency("b", 1, 0.9, 0.8))
    logs = [0.0, -math.log(0.9), -math.log(0.8)]
    mean = sum(logs) / 3
    deviation = math.sqrt(sum((x - mean) ** 2 for x in logs) / 2)
    half = 4.302653 * deviation / math.sqrt(3)
    assert found.low == pytest.approx(math.exp(mean - half), rel=1e-4)
    assert found.high == pytest.approx(math.exp(mean + half), rel=1e-4)


def test_a_look_that_may_err_less_is_wider() -> None:
    a, b = _latency("a", 1, 1, 1), _latency("b", 1, 0.9, 0.8)
    whole, one = compare(a, b), compare(a, b, error=0.01)
    assert one.ratio == whole.ratio
    assert one.low is not None
    assert whole.low is not None
    assert one.low < whole.low
    assert one.confidence == whole.confidence == 0.95


@pytest.mark.parametrize(
    ("ratio", "limit", "told"),
    [
        (2.2649, 1.0, "2.26"),
        (1.0, 1.0, "1.00"),
        (0.998, 1.0, "0.998"),
        (1.0004, 1.0, "1.0004"),
        (math.nextafter(1, 0), 1.0, "0.9999999999999999"),
        (1.1962, 1.2, "1.196"),
        (1.0004, 1.2, "1.00"),
        (math.inf, 1.0, "inf"),
    ],
)
def test_a_ratio_says_on_which_side_of_the_limit_it_lies(
    ratio: float, limit: float, told: str
) -> None:
    assert ratio_text(ratio, limit) == told


@given(ratio=st.floats(1e-3, 1e3), limit=st.sampled_from([0.9, 1.0, 1.05, 1.2, 2.0]))
def test_no_ratio_is_rounded_to_the_limit_or_across_it(ratio: float, limit: float) -> None:
    shown = float(ratio_text(ratio, limit))
    assert (shown > limit) - (shown < limit) == (ratio > limit) - (ratio < limit)
    assert abs(shown - ratio) <= 0.005 + 1e-9


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (0.9979, 1.0031, "0.998 to 1.003"),
        (1.79, 1234.5, "1.79 to over 1,000"),
        (None, None, "no interval"),
    ],
)
def test_an_interval_says_whether_it_holds_one(
    low: float | None, high: float | None, told: str
) -> None:
    assert interval_text(low, high) == told


def test_many_rounds_get_an_interval_that_repeats() -> None:
    a = _latency("a", *[1.0] * 12)
    b = _latency("b", *[0.5 + 0.01 * i for i in range(12)])
    found = compare(a, b)
    assert found == compare(a, b)
    assert found.low is not None
    assert found.high is not None
    assert 1 / 0.61 < found.low < found.ratio < found.high < 1 / 0.5


def test_one_round_has_no_interval_and_says_so() -> None:
    found = compare(_latency("a", 4), _latency("b", 2))
    assert (found.low, found.high) == (None, None)
    assert found.holds_one
    assert any("one round" in d for d in found.doubts)


MEDIANS = st.lists(st.floats(0.5, 50), min_size=2, max_size=15)


@given(MEDIANS, st.floats(0.1, 10))
def test_swapping_the_two_inverts_ratio_and_interval(medians: list[float], factor: float) -> None:
    a = _latency("a", *medians)
    b = _latency("b", *[m * factor * (1 + 0.01 * (i % 3)) for i, m in enumerate(medians)])
    there, back = compare(a, b), compare(b, a)
    assert there.low is not None
    assert there.high is not None
    assert back.high is not None
    assert there.low <= there.ratio * (1 + 1e-9)
    assert there.ratio <= there.high * (1 + 1e-9)
    assert there.ratio == pytest.approx(1 / back.ratio)
    assert there.low == pytest.approx(1 / back.high, rel=0.01)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch": 8}, r"batch is 1 there and 8 here"),
        ({"threads": 4}, r"threads is 2 there and 4 here"),
    ],
)
def test_unlike_variants_are_refused(change: dict[str, Any], says: str) -> None:
    a = _latency("a", 1, 1)
    b = dataclasses.replace(a, variant=dataclasses.replace(a.variant, name="b", **change))
    with pytest.raises(UsageError, match=says):
        compare(a, b)


def test_other_inputs_or_other_rounds_are_refused() -> None:
    a = _latency("a", 1, 1)
    with pytest.raises(UsageError, match="inputs"):
        compare(a, dataclasses.replace(a, feeds_sha256="other"))
    with pytest.raises(UsageError, match="rounds is 2 there and 1 here"):
        compare(a, _latency("b", 1))


def test_threads_may_differ_between_cpu_and_gpu() -> None:
    a = _latency("a", 2, 2)
    gpu = dataclasses.replace(a.variant, name="g", device="cuda", threads=1)
    assert compare(a, dataclasses.replace(a, variant=gpu)).ratio == pytest.approx(1)


def _control(low: float, high: float) -> Comparison:
    return Comparison("a", "a (control)", 1.05, low, high, 0.95, ())


def test_a_control_that_excludes_one_is_a_doubt() -> None:
    a, b = _latency("a", 1, 1), _latency("b", 1, 1)
    assert compare(a, b, control=_control(0.98, 1.1)).doubts == ()
    found = compare(a, b, control=_control(1.01, 1.1))
    assert any("noisy" in d for d in found.doubts)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"samples_ns": (MS,) * 63}, "63 samples"),
        ({"steal_share": 0.02}, "guests took 2.0%"),
        ({"others_share": 0.11}, "processes took 11%"),
        ({"throttled_periods": 4}, "8 times"),
        ({"held_up_share": 0.26}, "others had its CPU in 26% of its time"),
        ({"samples_ns": (MS,) * 40 + (2 * MS,) * 40}, "spans"),
    ],
)
def test_disturbed_measurements_are_doubted(change: dict[str, Any], says: str) -> None:
    a = _latency("a", 1, 1)
    rounds = tuple(dataclasses.replace(r, **change) for r in a.rounds)
    b = dataclasses.replace(_latency("b", 1, 1), rounds=rounds)
    found = compare(a, b)
    assert len(found.doubts) == 1
    assert found.doubts[0].startswith("b: ")
    assert says in found.doubts[0]


def _held_up(found: Latency, share: float) -> Latency:
    rounds = tuple(dataclasses.replace(r, held_up_share=share) for r in found.rounds)
    return dataclasses.replace(found, rounds=rounds)


def test_an_interval_allows_for_what_held_each_of_the_two_up() -> None:
    a, b = _latency("a", 4, 4.2, 4.1), _latency("b", 2, 2.1, 2.2)
    alone = compare(a, b)
    assert alone.low is not None
    assert alone.high is not None
    found = compare(_held_up(a, 0.6), _held_up(b, 0.5))
    assert found.ratio == alone.ratio
    # Had nobody else been there, `a` would have taken 40 % of its time or more, and `b` half.
    assert found.low == pytest.approx(0.4 * alone.low)
    assert found.high == pytest.approx(2 * alone.high)
    assert (found.held_up, found.is_disturbed) == ((0.6, 0.5), True)
    assert found.of_rounds == pytest.approx((alone.low, alone.high))
    assert too_busy(found).startswith(
        "the machine is too busy to tell: others had the CPU in 60% of the time in which a was"
    )


def test_what_a_little_other_work_holds_up_changes_nothing() -> None:
    a, b = _latency("a", 4, 4.2, 4.1), _latency("b", 2, 2.1, 2.2)
    assert compare(_held_up(a, 0.25), _held_up(b, 0.15)) == compare(a, b)
    assert compare(a, b).of_rounds == (compare(a, b).low, compare(a, b).high)


def test_of_two_that_hardly_ran_nothing_is_known() -> None:
    a, b = _held_up(_latency("a", 4, 4), 1.0), _held_up(_latency("b", 2, 2), 1.0)
    found = compare(a, b)
    assert found.low == pytest.approx(0.02)
    assert found.high == pytest.approx(200)
    alone = compare(_held_up(_latency("a", 4), 1.0), _held_up(_latency("b", 2), 1.0))
    assert (alone.low, alone.of_rounds) == (None, (None, None))


def test_a_warmup_that_ran_out_of_time_is_a_doubt() -> None:
    restless = _latency("b", 1, 1)
    rounds = tuple(
        dataclasses.replace(r, warmup_ns=tuple(i * MS for i in range(1, 30)))
        for r in restless.rounds
    )
    found = compare(_latency("a", 1, 1), dataclasses.replace(restless, rounds=rounds))
    assert found.doubts == ("b: the warm-up did not settle in 2 of 2 rounds",)
    # Half of the rounds may do that.
    rounds = (rounds[0], restless.rounds[1])
    assert compare(_latency("a", 1, 1), dataclasses.replace(restless, rounds=rounds)).doubts == ()


def test_the_round_with_the_fewest_samples_is_doubted() -> None:
    short = _latency("b", 1, 1)
    rounds = (dataclasses.replace(short.rounds[0], samples_ns=(MS,) * 63), short.rounds[1])
    found = compare(_latency("a", 1, 1), dataclasses.replace(short, rounds=rounds))
    assert found.doubts == ("b: 63 samples in a round, better 64 or more",)


def test_doubts_are_one_line_for_each_of_the_two_and_one_for_both() -> None:
    doubts = ("one round only", "a: it was loud", "b: it was loud", "a: it was hot")
    found = Comparison("a", "b", 1.0, None, None, 0.95, doubts)
    assert doubt_lines(found) == [
        "Doubts about the speed: one round only.",
        "Doubts about the speed of a: it was loud; it was hot.",
        "Doubts about the speed of b: it was loud.",
    ]
    assert doubt_lines(dataclasses.replace(found, doubts=())) == []
