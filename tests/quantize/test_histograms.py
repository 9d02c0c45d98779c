"""Histograms that do not depend on batches."""

import numpy as np
from hypothesis import given
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
