"""Weights as integers: error, safety on CPUs that saturate, and biases."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize.quantizers.weights import (
    INT32_MAX,
    Codes,
    least_scales,
    quantize_bias,
    quantize_weights,
)
from quantize.targets import SAFE_PAIR_SUM, exact_matmul, pair_sums, saturating_matmul


@st.composite
def weights(draw: st.DrawFn) -> np.ndarray:
    """Float32 [out, in, *taps]: flat, heavy-tailed, zero or alike, at any scale."""
    shape = draw(
        st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple)
        | st.tuples(st.integers(1, 4), st.integers(1, 40))
    )
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["normal", "heavy", "alike", "sparse"]))
    found = random.standard_normal(shape)
    if kind == "heavy":
        found = random.standard_cauchy(shape).clip(-1e3, 1e3)
    elif kind == "alike":
        found = np.full(shape, random.choice([-1.0, 1.0]))
    elif kind == "sparse":
        found = found * (random.random(shape) < 0.2)
    scale = 10.0 ** draw(st.integers(-8, 4))
    return (found * scale).astype(np.float32)


def per_channel(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    return values.reshape(-1, *[1] * (like.ndim - 1))


@given(weights())
def test_narrowed_codes_never_saturate(w: np.ndarray) -> None:
    found = quantize_weights(w, narrow=True)
    assert (pair_sums(found.codes) <= SAFE_PAIR_SUM).all()
    for matrix in (
        found.codes.reshape(len(w), -1).T,
        np.moveaxis(found.codes, 1, -1).reshape(len(w), -1).T,
    ):
        rows = np.concatenate(
            [(matrix > 0).T * np.uint8(255), (matrix < 0).T * np.uint8(255)]
        ).astype(np.uint8)
        np.testing.assert_array_equal(saturating_matmul(rows, matrix), exact_matmul(rows, matrix))


@given(weights())
def test_only_channels_that_need_it_are_narrowed(w: np.ndarray) -> None:
    wide, narrow = quantize_weights(w, narrow=False), quantize_weights(w, narrow=True)
    np.testing.assert_array_equal(narrow.narrowed, pair_sums(wide.codes) > SAFE_PAIR_SUM)
    assert not wide.narrowed.any()
    kept = ~narrow.narrowed
    np.testing.assert_array_equal(narrow.codes[kept], wide.codes[kept])
    np.testing.assert_array_equal(narrow.scales[kept], wide.scales[kept])
    # No more is given up than the worst pair asks for.
    lost = narrow.scales[~kept] / wide.scales[~kept]
    assert (lost <= 2.0 * 1.03).all()


@given(weights())
def test_eight_bits_are_used_and_the_error_is_half_a_step(w: np.ndarray) -> None:
    found = quantize_weights(w, narrow=False)
    largest = np.abs(w).reshape(len(w), -1).max(axis=1)
    alive = largest > 1e-9
    assert (np.abs(found.codes.astype(int)).reshape(len(w), -1).max(axis=1)[alive] == 127).all()
    assert found.codes.min() >= -127

    step = per_channel(found.scales, w).astype(np.float64)
    inside = np.abs(w) <= step * 127
    error = np.abs(found.values() - w.astype(np.float64))
    assert (error <= step * 0.5 * (1 + 1e-4))[inside].all()
    # What is clipped keeps the sign and the largest code.
    np.testing.assert_array_equal(found.codes[~inside], 127 * np.sign(w[~inside]))


@given(weights())
def test_clipping_is_chosen_only_where_it_lowers_the_squared_error(w: np.ndarray) -> None:
    found = quantize_weights(w, narrow=False)
    flat = w.reshape(len(w), -1).astype(np.float64)
    plain = np.maximum(np.abs(flat).max(axis=1), 1e-10) / 127
    rounded = np.rint(flat / plain[:, None]) * plain[:, None]
    chosen = found.values().reshape(len(w), -1)
    unit = np.square(plain) * flat.shape[1]
    ours = np.square(chosen - flat).sum(axis=1) / unit
    assert (ours <= np.square(rounded - flat).sum(axis=1) / unit + 1e-4).all()


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    w = np.random.default_rng(4).standard_cauchy((7, 11)).astype(np.float32)
    whole = quantize_weights(w, narrow=True)
    monkeypatch.setattr("quantize.quantizers.weights._BLOCK", 23)
    parts = quantize_weights(w, narrow=True)
    np.testing.assert_array_equal(whole.codes, parts.codes)
    np.testing.assert_array_equal(whole.scales, parts.scales)


def test_clipping_is_chosen_where_it_helps() -> None:
    # Everything but one value falls between two codes of the plain scale.
    flat = np.full(400, 63.5 / 127, np.float32)
    flat[0] = -1.0
    found = quantize_weights(flat[None, :], narrow=False)
    assert found.scales[0] < 1 / 127
    assert found.codes[0, 0] == -127
    plain = 400 * (0.5 / 127) ** 2
    assert np.square(found.values() - flat).sum() < 0.8 * plain


def test_zero_channels_stay_zero_with_a_sane_scale() -> None:
    w = np.zeros((2, 3, 3, 3), np.float32)
    w[1] = 0.5
    found = quantize_weights(w, narrow=True)
    assert not found.codes[0].any()
    assert found.scales[0] == np.float32(1 / 127)
    np.testing.assert_allclose(found.values()[1], 0.5, rtol=1e-2)


def test_values_follow_the_channel_of_the_first_axis() -> None:
    codes = Codes(
        np.full((2, 1, 3), 10, np.int8), np.array([0.5, 2], np.float32), np.zeros(2, np.bool_)
    )
    np.testing.assert_array_equal(codes.values()[:, 0, 0], [5, 20])
    assert codes.values().shape == (2, 1, 3)


@given(
    magnitude=st.floats(1e-12, 1e-3),
    bias=st.floats(-100, 100),
    input_scale=st.floats(1e-6, 1.0),
)
def test_a_large_bias_on_tiny_weights_survives(
    magnitude: float, bias: float, input_scale: float
) -> None:
    # MobileNetV3: one channel of nearly dead weights and a bias of normal size. Without a lower
    # limit of the scale its int32 bias overflows, and the channel collapses.
    w = np.full((1, 8), magnitude, np.float32)
    scale = np.float32(input_scale)
    biases = np.array([bias], np.float32)
    found = quantize_weights(w, narrow=False, least_scales=least_scales(biases, scale))
    codes, units = quantize_bias(biases.astype(np.float64), scale, found.scales)
    assert abs(float(codes[0]) * float(units[0]) - float(biases[0])) <= float(units[0])
    # Half of the accumulator is left for the products.
    assert abs(int(codes[0])) <= INT32_MAX // 2 * 1.001


def test_a_bias_that_overflows_without_the_limit() -> None:
    w, bias, scale = np.full((1, 8), 1e-9, np.float32), np.array([5.0]), np.float32(0.01)
    plain = quantize_weights(w, narrow=False)
    codes, units = quantize_bias(bias, scale, plain.scales)
    assert codes[0] == INT32_MAX  # clipped, not wrapped
    assert codes[0] * float(units[0]) < 1.0


def test_least_scales_do_not_touch_channels_with_room() -> None:
    w = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)
    limit = least_scales(np.array([1, -2, 0], np.float32), np.float32(0.02))
    assert limit[2] == 0
    plain, limited = (
        quantize_weights(w, narrow=False),
        quantize_weights(w, narrow=False, least_scales=limit),
    )
    np.testing.assert_array_equal(plain.codes, limited.codes)


def test_bias_codes_are_rounded_in_units_of_both_scales() -> None:
    codes, units = quantize_bias(
        np.array([1.0, -0.26]), np.float32(0.5), np.array([0.25, 0.5], np.float32)
    )
    np.testing.assert_array_equal(units, np.float32([0.125, 0.25]))
    np.testing.assert_array_equal(codes, [8, -1])
    assert codes.dtype == np.int32
