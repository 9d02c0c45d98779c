"""The strength with which channels are evened out that leaves the least noise of INT8.

    rows of a tensor + weights of its readers ─▶ noise by strength ─▶ strength, factor per channel

A factor is largest activation ** strength / largest weight ** (1 - strength), per channel (Xiao et
al., "SmoothQuant", 2022, eq. 4). All anchors that read one tensor share it. 1 makes all channels of
the activation alike, which is best for their rounding; less leaves more levels to the weights.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.anchors import Anchor, integer_of
from quantize.equalize import Factors, Group
from quantize.quantizers.fitting import as_read
from quantize.quantizers.reading import channels_first, constant_of
from quantize.ranges import Range
from quantize.rows import Window, by_channel

# Tried first; then what lies between the best and its neighbours.
_STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
_BETWEEN = 0.1
# A group has to lose this share of its noise; less is within what the estimate is worth.
_WORTH = 0.85
# Rows that noise is reckoned with.
_ROWS = 512
# No channel is scaled by more, so that FP32 keeps its precision.
_MOST = 1e3


@dataclass(frozen=True, slots=True)
class Captured:
    """What a few samples show of one tensor.

    Attributes:
        rows: float32 [rows, channels], some of those seen.
        largest: float32 [channels], largest absolute values of all that were seen.
    """

    rows: NDArray[np.float32]
    largest: NDArray[np.float32]


def captured_by(rows: NDArray[np.float32], window: Window) -> Captured:
    """The same, of the rows that one layer reads of it."""
    channels = by_channel(rows, window)
    # In the middle of a kernel stands the least padding.
    middle = channels[:: max(len(rows) // _ROWS, 1), :, channels.shape[2] // 2]
    return Captured(np.ascontiguousarray(middle), np.abs(channels).max(axis=(0, 2)))


@dataclass(frozen=True, slots=True)
class Reader:
    """What of an anchor's weights tells how much its input channels weigh.

    Attributes:
        heights: float32 [groups, out channels / groups, in channels / groups], largest magnitudes.
        powers: float32 [groups, in channels / groups], sums of squares.
        taps: Of the kernel.
    """

    heights: NDArray[np.float32]
    powers: NDArray[np.float32]
    taps: int


Readers: TypeAlias = Mapping[str, Reader]
"""By name of the anchor."""


class Weights:
    """Weights of anchors, their input channels on the second axis."""

    def __init__(self, model: ir.Model, anchors: Iterable[Anchor]) -> None:
        self.nodes = {str(n.name): n for n in model.graph}
        self.anchors = {a.name: a for a in anchors}

    def of(self, name: str) -> Reader:
        """What an anchor's weights tell."""
        node, axis = self.nodes[name], self.anchors[name].out_axis
        groups = integer_of(node, "group", 1) if node.op_type == "Conv" else 1
        first = channels_first(constant_of(node.inputs[1]), axis)
        weights = first.reshape(groups, len(first) // groups, first.shape[1], -1)
        powers = np.einsum("goit,goit->gi", weights, weights)
        return Reader(np.abs(weights).max(axis=3), powers, weights.shape[3])


def best_strength(group: Group, captured: Mapping[str, Captured], weights: Readers) -> float | None:
    """The strength with the least noise at the readers; None where 1 everywhere is as good."""
    readers = [(tensor, weights[name]) for tensor, name in group.reads]

    def noise(strength: float) -> float:
        return _noise(readers, captured, factors_of(group, strength, captured, weights))

    found = {s: noise(s) for s in _STRENGTHS}
    best = min(found, key=found.__getitem__)
    found |= {
        s: noise(s) for s in (round(best - _BETWEEN, 1), round(best + _BETWEEN, 1)) if s <= 1.0
    }
    best = min(found, key=found.__getitem__)
    plain = _noise(readers, captured, np.ones(group.channels, np.float32))
    return best if found[best] < _WORTH * plain else None


def factors_of(
    group: Group, strength: float, captured: Mapping[str, Captured], weights: Readers
) -> Factors:
    """One factor per channel, geometric mean 1; 1 for channels that are always zero."""
    heights = [weights[name].heights.max(axis=1).reshape(-1) for _, name in group.reads]
    heaviest = np.max(heights, axis=0).astype(np.float64)
    largest = np.max([captured[t].largest for t, _ in group.reads], axis=0).astype(np.float64)
    live = (largest > 0) & (heaviest > 0)
    factors = np.ones(group.channels)
    if live.any():
        raw = strength * np.log(largest[live]) - (1 - strength) * np.log(heaviest[live])
        factors[live] = np.exp(raw - raw.mean())
    return np.clip(factors, 1 / _MOST, _MOST).astype(np.float32)


def _noise(
    readers: Sequence[tuple[str, Reader]],
    captured: Mapping[str, Captured],
    factors: Factors,
) -> float:
    """Noise over signal at the output of the readers, mean over them.

    Errors of different channels and weights are taken to be independent, so their powers add up: a
    channel's rounding error times its weights, and the rounding of weights (step**2 / 12 each)
    times the power of what they multiply.
    """
    total = 0.0
    for tensor, weights in readers:
        rows = captured[tensor].rows / factors
        groups, _, inner = weights.heights.shape
        scale = factors.reshape(groups, 1, inner)
        # All of it: what a range may leave out, these few rows do not tell.
        whole = Range(min(float(rows.min()), 0.0), max(float(rows.max()), 0.0))
        error = np.square(rows - as_read(rows, whole)).mean(axis=0).reshape(groups, inner)
        power = np.square(rows).mean(axis=0).reshape(groups, inner)
        gain = weights.powers * np.square(scale[:, 0])
        steps = (weights.heights * scale).max(axis=2) / 127
        rounding = power.sum(axis=1) * weights.taps * np.square(steps).sum(axis=1) / 12
        signal = max(float((power * gain).sum()), 1e-30)
        total += float((error * gain).sum() + rounding.sum()) / signal
    return total / len(readers)
