"""Histograms that do not depend on batches."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.histograms import HALF_BINS, TensorStatistics
from tests.streams import CUTS, parts, same, streamed, values


@given(values(), CUTS, st.randoms(use_true_random=False))
def test_batches_and_order_leave_no_trace(array: np.ndarray, cuts: list[int], shuffle) -> None:
    whole = streamed(array)
    order = list(range(len(array)))
    shuffle.shuffle(order)
    cut = streamed(*parts(array[order], cuts))
    cut.samples = whole.samples
    same(cut, whole)


@given(values(), CUTS, st.randoms(use_true_random=False))
def test_merging_equals_streaming(array: np.ndarray, cuts: list[int], shuffle) -> None:
    pieces = [streamed(p) for p in parts(array, cuts)]
    count = len(pieces)
    while len(pieces) > 1:
        one, other = pieces.pop(shuffle.randrange(len(pieces))), pieces.pop()
        one.merge(other)
        pieces.append(one)
    expected = streamed(array)
    expected.samples = count
    same(pieces[0], expected)
    pieces[0].merge(TensorStatistics())
    same(pieces[0], expected)


@given(values())
def test_every_value_stands_in_its_bin(array: np.ndarray) -> None:
    stats = streamed(array)
    assert (stats.low, stats.high) == (array.min(), array.max())
    assert stats.count == stats.bins.sum() == array.size
    width = 2.0**stats.exponent
    expected = np.zeros(2 * HALF_BINS, np.int64)
    for value in array.astype(np.float64):
        expected[HALF_BINS + int(np.floor(value / width))] += 1
    np.testing.assert_array_equal(stats.bins, expected)
    # No coarser than it has to be: the outermost half is used, unless everything is tiny.
    magnitude = np.abs(array).max()
    if magnitude >= 2.0**-99:
        assert magnitude >= width * HALF_BINS / 2


def test_nonfinite_samples_are_counted_and_leave_no_other_trace() -> None:
    clean = streamed(np.float32([1, -2, 3]))
    for bad in (np.nan, np.inf, -np.inf):
        stats = streamed(np.float32([1, -2, 3]), np.float32([5, bad, -9]))
        assert (stats.samples, stats.nonfinite) == (2, 1)
        assert (stats.low, stats.high, stats.count) == (-2, 3, 3)
        np.testing.assert_array_equal(stats.bins, clean.bins)
    clean.merge(streamed(np.float32([np.nan])))
    assert (clean.samples, clean.nonfinite, clean.count) == (2, 1, 3)


def test_empty_tensors_count_as_samples_only() -> None:
    stats = streamed(np.zeros((0, 4), np.float32))
    assert (stats.samples, stats.count, stats.nonfinite) == (1, 0, 0)


@settings(max_examples=20)
@given(
    st.integers(1, 4),
    st.sampled_from([(7,), (16384,), (16385,), (16, 24, 50), (3, 16384), (64, 30, 31)]),
    CUTS,
)
def test_long_rows_are_thinned_alike_however_samples_are_stacked(
    count: int, row: tuple[int, ...], cuts: list[int]
) -> None:
    shape = (count, *row)
    array = np.random.default_rng(count).standard_normal(shape).astype(np.float32)
    whole, cut = streamed(array), streamed(*parts(array, cuts))
    cut.samples = whole.samples
    same(cut, whole)
    assert (whole.low, whole.high) == (array.min(), array.max())
    assert whole.count == whole.bins.sum()
    # Every value counts for its neighbours, so that rows of all lengths weigh what they hold.
    assert array.size <= whole.count <= 1.001 * array.size


def test_thinning_gives_every_column_and_channel_its_turn() -> None:
    row = np.zeros((1, 32, 64, 64), np.float32)
    for axis in (1, 2, 3):
        shape = [1, 1, 1, 1]
        shape[axis] = row.shape[axis]
        stats = streamed(row + np.arange(row.shape[axis], dtype=np.float32).reshape(shape) + 0.5)
        occupied = stats.bins[stats.bins > 0]
        assert len(occupied) == row.shape[axis]
        np.testing.assert_allclose(occupied / occupied.mean(), 1, atol=0.1)


def test_zeros_of_a_thinned_row_keep_their_share() -> None:
    row = np.maximum(np.random.default_rng(0).standard_normal((1, 16, 64, 64)), 0)
    stats = streamed(row.astype(np.float32))
    assert abs(stats.zeros / stats.count - 0.5) < 0.02
