"""The arithmetic of CPUs that saturate, against the arithmetic of those that do not."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bench.errors import UsageError
from quantize.targets import (
    SAFE_PAIR_SUM,
    TARGETS,
    can_saturate,
    exact_matmul,
    find_target,
    pair_sums,
    saturating_matmul,
)

S8 = arrays.arrays(
    np.int8,
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    elements=st.integers(-127, 127),
)


def both_orders(codes: np.ndarray) -> list[np.ndarray]:
    """[k, out] as kernels see it: taps side by side, then input channels side by side."""
    by_taps = codes.reshape(len(codes), -1)
    by_channels = np.moveaxis(codes, 1, -1).reshape(len(codes), -1)
    return [by_taps.T, by_channels.T]


def worst_activations(column: np.ndarray) -> np.ndarray:
    """Rows of full activations where a column is positive, then where it is negative."""
    return np.stack([column > 0, column < 0]).astype(np.uint8) * 255


@given(S8, st.integers(0, 2**32 - 1))
def test_codes_without_heavy_pairs_never_saturate(codes: np.ndarray, seed: int) -> None:
    # Shrunk until no two neighbours of either order weigh more than 16 bits take.
    while can_saturate(codes).any():
        codes = (codes * 0.9).astype(np.int8)
    random = np.random.default_rng(seed)
    for matrix in both_orders(codes):
        for channel in matrix.T:
            rows = np.concatenate(
                [worst_activations(channel), random.integers(0, 256, (3, len(channel)), np.uint8)]
            )
            wide = channel[:, None]
            np.testing.assert_array_equal(saturating_matmul(rows, wide), exact_matmul(rows, wide))
            # A block that starts one place further pairs other neighbours.
            shifted, rest = rows[:, 1:], wide[1:]
            np.testing.assert_array_equal(
                saturating_matmul(shifted, rest), exact_matmul(shifted, rest)
            )


@given(S8)
def test_a_channel_is_called_safe_only_by_what_its_worst_pair_weighs(codes: np.ndarray) -> None:
    # Every pair of every order, one by one.
    for sums, channel in zip(pair_sums(codes), codes.astype(int), strict=True):
        pairs = [np.abs(channel).max()]
        for row in (channel.reshape(-1), np.moveaxis(channel, 0, -1).reshape(-1)):
            pairs += [abs(a + b) for a, b in pairwise(row)]
        assert sums == max(pairs)


@pytest.mark.parametrize("sign", [1, -1])
def test_pairs_of_129_saturate_and_of_128_do_not(sign: int) -> None:
    full = np.full((1, 2), 255, np.uint8)
    safe = np.array([[64 * sign], [64 * sign]], np.int8)
    heavy = np.array([[65 * sign], [64 * sign]], np.int8)
    assert saturating_matmul(full, safe) == exact_matmul(full, safe) == sign * 255 * 128
    assert exact_matmul(full, heavy) == sign * 255 * 129
    assert saturating_matmul(full, heavy) == (32767 if sign > 0 else -32768)
    assert SAFE_PAIR_SUM == 128
    assert not can_saturate(safe.T)[0]
    assert can_saturate(heavy.T)[0]


def test_neighbours_along_input_channels_count_too() -> None:
    codes = np.zeros((2, 2, 1, 2), np.int8)
    codes[0, :, 0, 0] = 100  # channels 0 and 1 of one tap: neighbours in NHWC alone
    codes[1, 0, 0, :] = 100  # two taps of one channel: neighbours in NCHW alone
    np.testing.assert_array_equal(pair_sums(codes), [200, 200])
    assert can_saturate(codes).all()


def test_odd_lengths_and_empty_channels() -> None:
    rows = np.array([[255, 255, 255]], np.uint8)
    column = np.array([[127], [-127], [127]], np.int8)
    assert saturating_matmul(rows, column) == 255 * 127
    np.testing.assert_array_equal(pair_sums(np.zeros((3, 0), np.int8)), [0, 0, 0])
    np.testing.assert_array_equal(pair_sums(np.array([[-127]], np.int8)), [127])


def test_targets_are_known_by_name() -> None:
    assert {n for n, t in TARGETS.items() if t.narrow} == {"portable", "avx2"}
    assert {n for n, t in TARGETS.items() if not t.narrow} == {"vnni", "amx"}
    for name, target in TARGETS.items():
        assert find_target(name) is target
        assert target.name == name
    with pytest.raises(UsageError, match=r"'sse'.*auto, portable, vnni, amx, avx2"):
        find_target("sse")
