"""What the times of a round tell: of inputs that are alike, and of those that are not."""

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.models import Feeds
from bench.rounds import (
    ONE_SHAPE,
    Round,
    Shapes,
    fewest_to_tell,
    is_stable,
    relative,
    shapes_of,
    typical_ns,
)

UNLIKE: Shapes = (0, 1, 2, 1)
# Of each shape.
NS = (1_000, 4_000, 2_000, 3_000)


def in_rotation(count: int, start: int, shapes: Shapes = UNLIKE) -> list[int]:
    """Times of inputs that take what their shape takes."""
    return [NS[shapes[i % len(shapes)]] for i in range(start, start + count)]


def a_round(warmup: list[int], samples: list[int], shapes: Shapes) -> Round:
    return Round(1, 1, tuple(warmup), tuple(samples), 1, 0.0, 0.0, 0, shapes=shapes)


def test_inputs_of_one_shape_are_alike_whatever_they_hold() -> None:
    def feed(*sizes: int) -> Feeds:
        return {f"x{i}": np.full((1, n), n, np.float32) for i, n in enumerate(sizes)}

    assert shapes_of([feed(3, 4), feed(3, 4)]) == ONE_SHAPE
    assert shapes_of([feed(3, 4), feed(4, 3), feed(3, 4), feed(5)]) == (0, 1, 0, 2)


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=50), st.integers(0, 99))
def test_of_inputs_that_are_alike_the_median_counts(times: list[int], start: int) -> None:
    assert typical_ns(times, ONE_SHAPE, start) == statistics.median(times)
    found = a_round([], times, ONE_SHAPE)
    assert found.median_ns == statistics.median(times)
    low, high = np.percentile(times, (25, 75))
    assert found.spread == pytest.approx((high - low) / statistics.median(times), abs=1e-9)


@given(st.integers(4, 60), st.integers(0, 60))
def test_unlike_inputs_count_in_equal_parts_however_often_each_was_timed(
    count: int, start: int
) -> None:
    times = in_rotation(count, start)
    assert typical_ns(times, UNLIKE, start) == (1_000 + 4_000 + 2_000 + 4_000) / 4
    assert relative(times, UNLIKE, start) == [1.0] * count


def test_a_slow_moment_moves_one_input_alone() -> None:
    times = in_rotation(40, 0)
    times[2] *= 100
    assert typical_ns(times, UNLIKE, 0) == 2750


def test_inputs_that_were_never_timed_do_not_count() -> None:
    assert typical_ns(in_rotation(2, 0), UNLIKE, 0) == (1_000 + 4_000 + 4_000) / 3


def test_a_round_starts_to_count_where_its_warmup_ended() -> None:
    for warm in range(8):
        found = a_round(in_rotation(warm, 1), in_rotation(9, 1 + warm), UNLIKE)
        assert found.median_ns == 2750
        assert found.spread == 0


def test_unlike_inputs_settle_when_each_of_them_does() -> None:
    shapes = (0, 2, 3, 1)
    fewest = fewest_to_tell(shapes)
    times = in_rotation(fewest + 7, 1, shapes)
    assert is_stable(times, shapes)
    assert not is_stable(times)
    assert not is_stable(times[: fewest - 1], shapes)
    assert a_round(times, times, shapes).settled
    assert not a_round(times, times, ONE_SHAPE).settled


def test_a_warmup_of_unlike_inputs_goes_on_while_all_get_faster() -> None:
    times = [round(t * (3 - 0.01 * i)) for i, t in enumerate(in_rotation(100, 1))]
    assert not is_stable(times, UNLIKE)
    assert not a_round(times, times, UNLIKE).settled
    assert a_round(times[:5], times, UNLIKE).settled  # Too short to tell.


@given(st.integers(1, 64))
def test_every_window_of_a_warmup_holds_each_input_a_few_times(inputs: int) -> None:
    shapes = tuple(range(inputs)) if inputs > 1 else ONE_SHAPE
    assert fewest_to_tell(shapes) + 1 >= 6 * inputs
    assert fewest_to_tell(shapes) >= 19
