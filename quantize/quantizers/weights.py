"""Weights and biases as integers: scales per output channel, and narrowing."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantize.quantizers.rounding import S8_MAX, Rounder
from quantize.targets import SAFE_PAIR_SUM, pair_sums

INT32_MAX = (1 << 31) - 1
# Half of int32 is left to the products that the bias is added to.
_BIAS_ROOM = INT32_MAX // 2
# A channel's clipped range is tried down to this share of its largest weight.
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)
# Weights looked at together; 256 kB of float32.
_BLOCK = 1 << 16
_MIN_SCALE = np.float32(1e-12)


@dataclass(frozen=True, slots=True)
class Codes:
    """Weights as signed 8-bit codes, symmetric, one scale per output channel.

    Attributes:
        codes: int8 [out channels, in channels, *taps].
        scales: float32 [out channels]; weight = code * scale.
        narrowed: bool [out channels], where codes use less than 8 bits so as not to saturate.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    narrowed: NDArray[np.bool_]

    def values(self) -> NDArray[np.float32]:
        """The weights that the codes stand for, float32, shaped as `codes`."""
        return self.codes.astype(np.float32) * _along_first(self.scales, self.codes.ndim)


def quantize_weights(
    weights: NDArray[np.float32],
    *,
    narrow: bool,
    least_scales: NDArray[np.float32] | None = None,
    rounder: Rounder | None = None,
) -> Codes:
    """Round weights to signed 8 bits, per output channel.

    The scale of a channel is the one of five clipped ranges that rounds it with the least squared
    error; with a rounder, squares count by how large the inputs are.

    Args:
        weights: float32 [out channels, in channels, *taps], finite.
        narrow: Widen scales until no pair of neighbours can saturate 16 bits.
        least_scales: float32 [out channels]; scales are at least these, so that biases fit int32.
        rounder: Rounds the weights; to the nearest where None.
    """
    flat = weights.reshape(weights.shape[0], -1)
    largest = np.maximum(flat.max(axis=1, initial=0.0), -flat.min(axis=1, initial=0.0))
    importance = None if rounder is None else rounder.importance
    scales = np.maximum(_least_error_scales(flat, largest, importance), _MIN_SCALE)
    scales = np.where(largest > 0, scales, np.float32(1.0 / S8_MAX)).astype(np.float32)
    if least_scales is not None:
        scales = np.maximum(scales, least_scales.astype(np.float32))
    codes = _round(weights, scales)
    narrowed = np.zeros(len(scales), np.bool_)
    if narrow:
        _narrow(weights, codes, scales, narrowed, _round)
    if rounder is not None:
        codes = rounder.codes(weights, scales)
        if narrow:
            # Learned codes differ by a step or two, so few channels have to give way again.
            _narrow(weights, codes, scales, narrowed, rounder.codes, whole=len(rounder.order) > 1)
    return Codes(codes, scales, narrowed)


def _narrow(
    weights: NDArray[np.float32],
    codes: NDArray[np.int8],
    scales: NDArray[np.float32],
    narrowed: NDArray[np.bool_],
    rounded: Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.int8]],
    *,
    whole: bool = False,
) -> None:
    """Widen scales, in place, until no pair of neighbours can saturate.

    Args:
        weights: float32 [out channels, in channels, *taps].
        codes: int8, of the same shape.
        scales: float32 [out channels].
        narrowed: bool [out channels].
        rounded: Weights and scales to codes.
        whole: Whether `rounded` takes all channels only.
    """
    rows = np.arange(len(scales))
    while rows.size:
        sums = pair_sums(codes[rows])
        rows, sums = rows[sums > SAFE_PAIR_SUM], sums[sums > SAFE_PAIR_SUM]
        narrowed[rows] = True
        # Slightly more than needed: rounding may lift a pair back over the limit.
        scales[rows] *= (sums / SAFE_PAIR_SUM * 1.002).astype(np.float32)
        if rows.size:
            again = (
                rounded(weights, scales)[rows] if whole else rounded(weights[rows], scales[rows])
            )
            codes[rows] = again


def _least_error_scales(
    flat: NDArray[np.float32],
    largest: NDArray[np.float32],
    importance: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Scale per row with the least squared rounding error; rows in blocks that stay in cache.

    Args:
        flat: float32 [out channels, inputs].
        largest: float32 [out channels], the largest magnitude of each row.
        importance: float32 [groups, inputs], what a square counts; all the same where None.
    """
    chosen = (largest / S8_MAX).astype(np.float32)
    rows = max(1, _BLOCK // max(flat.shape[1], 1))
    for start in range(0, len(flat), rows):
        block = flat[start : start + rows]
        weight = None
        if importance is not None:
            channels = np.arange(start, start + len(block))
            weight = importance[channels * len(importance) // len(flat)]
        best = np.full(len(block), np.inf, np.float32)
        for shrink in _SHRINKS:
            part = largest[start : start + rows] * np.float32(shrink / S8_MAX)
            scale = np.maximum(part, _MIN_SCALE)[:, None]
            rounded = block / scale
            np.rint(rounded, out=rounded)
            np.clip(rounded, -S8_MAX, S8_MAX, out=rounded)
            rounded *= scale
            rounded -= block
            if weight is None:
                error = np.einsum("ij,ij->i", rounded, rounded)
            else:
                error = np.einsum("ij,ij,ij->i", rounded, rounded, weight)
            better = error < best
            best = np.where(better, error, best)
            chosen[start : start + rows] = np.where(
                better, scale[:, 0], chosen[start : start + rows]
            )
    return chosen


def _round(weights: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.int8]:
    """Codes to the nearest; channels in blocks that stay in cache."""
    codes = np.empty(weights.shape, np.int8)
    rows = max(1, _BLOCK // max(math.prod(weights.shape[1:]), 1))
    for start in range(0, len(weights), rows):
        part = slice(start, start + rows)
        scaled = weights[part] / _along_first(scales[part], weights.ndim)
        np.rint(scaled, out=scaled)
        codes[part] = np.clip(scaled, -S8_MAX, S8_MAX, out=scaled)
    return codes


def least_scales(bias: NDArray[np.float32], input_scale: np.float32) -> NDArray[np.float32]:
    """Weight scales below which a bias would overflow int32.

    A bias is stored as round(bias / (input scale * weight scale)). Where a channel's weights are
    tiny that overflows; this is how MobileNetV3 collapses per channel (onnxruntime issue 22020).

    Args:
        bias: float32 [out channels].
        input_scale: Of the activations.
    """
    return (np.abs(bias) / (np.float64(input_scale) * _BIAS_ROOM)).astype(np.float32)


def quantize_bias(
    bias: NDArray[np.float64], input_scale: np.float32, scales: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """A bias as int32 in units of input scale times weight scale, and those units.

    Args:
        bias: float64 [out channels].
        input_scale: Of the activations.
        scales: float32 [out channels], of the weights.
    """
    units = (np.float32(input_scale) * scales).astype(np.float32)
    codes = np.rint(bias / units.astype(np.float64))
    return np.clip(codes, -INT32_MAX, INT32_MAX).astype(np.int32), units


def _along_first(values: NDArray[np.float32], ndim: int) -> NDArray[np.float32]:
    return values.reshape(-1, *([1] * (ndim - 1)))
