"""Ranges out of statistics."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize.histograms import TensorStatistics
from quantize.ranges import (
    RANGE_METHODS,
    Range,
    entropy_range,
    minmax_range,
    mse_range,
    percentile_range,
)
from tests.streams import streamed, values


@given(values(), st.sampled_from(sorted(RANGE_METHODS)))
def test_ranges_hold_zero_and_stay_inside_what_was_seen(array: np.ndarray, method: str) -> None:
    chosen = RANGE_METHODS[method](streamed(array))
    low, high = min(array.min(), 0), max(array.max(), 0)
    assert low <= chosen.low <= 0 <= chosen.high <= high
    assert chosen.scale > 0
    assert np.isfinite(chosen.scale)
    assert 0 <= chosen.zero_point <= 255
    # The zero of the codes is the zero of the values, and no end is farther off than one step.
    step = float(chosen.scale)
    assert abs((0 - chosen.zero_point) * step - chosen.low) <= step
    assert abs((255 - chosen.zero_point) * step - max(chosen.high, 255 * step + chosen.low)) <= step


def test_minmax_is_exact_and_reaches_down_to_zero() -> None:
    assert minmax_range(streamed(np.float32([-0.7, 0.1, 2.3]))) == Range(
        float(np.float32(-0.7)), float(np.float32(2.3))
    )
    assert minmax_range(streamed(np.float32([3, 5]))) == Range(0.0, 5.0)
    assert minmax_range(streamed(np.float32([-3, -5]))) == Range(-5.0, 0.0)


@given(values())
def test_a_percentile_of_100_is_the_whole_range(array: np.ndarray) -> None:
    stats = streamed(array)
    assert percentile_range(stats, 100.0) == minmax_range(stats)


def test_percentiles_cut_both_tails_alike() -> None:
    random = np.random.default_rng(0)
    array = random.standard_normal(200_000).astype(np.float32)
    stats = streamed(array)
    for percent in (90.0, 99.0, 99.9):
        chosen = percentile_range(stats, percent)
        tail = (100 - percent) / 2
        width = 2.0**stats.exponent
        assert abs(chosen.low - np.percentile(array, tail)) <= width
        assert abs(chosen.high - np.percentile(array, 100 - tail)) <= width
    assert percentile_range(stats, 99.0).high < percentile_range(stats).high < stats.high


def rounding_error(array: np.ndarray, chosen: Range) -> float:
    scale, zero = float(chosen.scale), chosen.zero_point
    codes = np.clip(np.rint(array / scale) + zero, 0, 255)
    return float((((codes - zero) * scale - array) ** 2).mean())


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["normal", "laplace", "relu", "sparse", "outlier", "uniform", "bimodal"]),
    st.integers(-20, 20),
)
def test_the_mse_range_is_never_worse_than_minmax(seed: int, kind: str, exponent: int) -> None:
    random = np.random.default_rng(seed)
    array = {
        "normal": lambda: random.standard_normal(5000),
        "laplace": lambda: random.laplace(size=5000),
        "relu": lambda: np.maximum(random.standard_normal(5000), 0),
        # What a Relu leaves: exact zeros, which no step rounds, and a few values.
        "sparse": lambda: np.maximum(random.laplace(size=20000) - random.uniform(3, 7), 0),
        "outlier": lambda: np.append(random.standard_normal(5000), 10.0 ** random.uniform(0, 3)),
        "uniform": lambda: random.uniform(-1, 3, 5000),
        "bimodal": lambda: np.append(random.normal(-5, 0.1, 2500), random.normal(9, 1, 2500)),
    }[kind]()
    array = (array * 2.0**exponent).astype(np.float32)
    stats = streamed(array)
    found, plain = mse_range(stats), minmax_range(stats)
    assert rounding_error(array, found) <= rounding_error(array, plain) * 1.02


def test_the_mse_range_is_close_to_the_best_of_a_fine_grid() -> None:
    random = np.random.default_rng(1)
    array = np.append(random.standard_normal(200_000), [60.0, -30.0]).astype(np.float32)
    found = rounding_error(array, mse_range(streamed(array)))
    best = min(
        rounding_error(array, Range(float(array.min() * a), float(array.max() * b)))
        for a in np.linspace(0.1, 1, 10)
        for b in np.linspace(0.1, 1, 10)
    )
    assert found <= best * 1.1
    assert found < 0.75 * rounding_error(array, minmax_range(streamed(array)))


def test_exact_zeros_do_not_pull_the_range_in() -> None:
    # 8 bits hold zero exactly, so 99 % of zeros are no reason to clip the rest harder.
    random = np.random.default_rng(3)
    alive = np.abs(random.standard_normal(2000)).astype(np.float32)
    alone, diluted = streamed(alive), streamed(alive, np.zeros(200_000, np.float32))
    assert mse_range(diluted) == mse_range(alone)


def test_entropy_clips_an_outlier() -> None:
    # onnxruntime's own search, at its default of 128 bins, returns (-126, 500) here.
    random = np.random.default_rng(0)
    array = np.append(random.normal(0, 8, 100_000), [500.0]).astype(np.float32)
    chosen = entropy_range(streamed(array))
    assert chosen.low == array.min()
    assert 20 < chosen.high < 120
    mirrored = entropy_range(streamed(-array))
    assert (mirrored.low, mirrored.high) == (-chosen.high, -chosen.low)
    assert rounding_error(array[:-1], chosen) < 0.3 * rounding_error(
        array[:-1], minmax_range(streamed(array))
    )


def test_entropy_keeps_a_full_range_that_is_used() -> None:
    array = np.random.default_rng(0).uniform(-1, 1, 100_000).astype(np.float32)
    chosen = entropy_range(streamed(array))
    assert chosen.high > 0.9
    few = np.float32([1, 2, 3, 500])
    assert entropy_range(streamed(few)) == minmax_range(streamed(few))


@pytest.mark.parametrize("method", sorted(RANGE_METHODS))
def test_dead_and_unseen_tensors_get_a_step_that_clips_nothing_ordinary(method: str) -> None:
    for stats in (streamed(np.zeros(100, np.float32)), TensorStatistics()):
        chosen = RANGE_METHODS[method](stats)
        assert (chosen.low, chosen.high, chosen.zero_point) == (0, 0, 0)
        assert chosen.scale == np.float32(1 / 255)


def test_scales_stay_above_the_denormals() -> None:
    chosen = minmax_range(streamed(np.float32([1e-40])))
    assert chosen.scale == np.float32(1e-14)
    assert Range(-1.0, 4.1).zero_point == 50
    assert Range(-3.0, 0.0).zero_point == 255
