"""From a tensor's statistics to where its 8-bit codes begin and end.

TensorStatistics ─▶ RANGE_METHODS[minmax | percentile | mse | entropy] ─▶ Range
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantize.histograms import HALF_BINS, TensorStatistics


@dataclass(frozen=True, slots=True)
class Range:
    """Where a tensor's 8-bit codes begin and end; always holds zero.

    Attributes:
        low: Value of code 0, at most 0.
        high: Value of code 255, at least 0.
    """

    low: float
    high: float

    @property
    def scale(self) -> np.float32:
        """Step between two codes."""
        width = self.high - self.low
        if width <= 0:
            # Always zero so far (a dead Relu): a step of 1e-14 would clip whatever comes later.
            width = 1.0
        # Above the denormals, so that a product of two scales does not vanish.
        return np.float32(max(width / 255.0, 1e-14))

    @property
    def zero_point(self) -> int:
        """Code of the value zero, 0..255."""
        return int(np.clip(round(-self.low / float(self.scale)), 0, 255))


def minmax_range(stats: TensorStatistics) -> Range:
    """The whole range that was seen."""
    return Range(min(stats.low, 0.0), max(stats.high, 0.0))


def percentile_range(stats: TensorStatistics, percent: float = 99.99) -> Range:
    """The range that holds `percent` of the values, the rest cut off alike on both sides.

    Args:
        stats: Of the tensor.
        percent: 50 < percent <= 100.
    """
    edges = np.ldexp(np.arange(-HALF_BINS, HALF_BINS + 1, dtype=np.float64), stats.exponent)
    below = np.concatenate([[0], np.cumsum(stats.bins)]) / max(stats.count, 1)
    tail = (100.0 - percent) / 200.0
    low = edges[max(int(np.searchsorted(below, tail, side="right")) - 1, 0)]
    high = edges[min(int(np.searchsorted(below, 1.0 - tail, side="left")), len(edges) - 1)]
    whole = minmax_range(stats)
    return Range(max(min(low, 0.0), whole.low), min(max(high, 0.0), whole.high))


def mse_range(stats: TensorStatistics) -> Range:
    """The range with the smallest expected (x - Q(x))**2, from the histogram.

    Every pair of cuts on a grid is tried: 24 high ends and, where the tensor is negative too, 24
    low ends. The rounding error inside the range is step**2 / 12 (Widrow, 1961), except that exact
    zeros, most of what a Relu leaves, have none; every value outside pays its distance to the end.

    Args:
        stats: Of the tensor.
    """
    whole = minmax_range(stats)
    centres, counts = _occupied(stats)
    if not counts.size or whole.high - whole.low <= 0:
        return whole
    cuts = np.geomspace(1.0, 0.1, 24)
    highs = whole.high * cuts if whole.high > 0 else np.zeros(1)
    lows = whole.low * cuts if whole.low < 0 else np.zeros(1)
    over = np.maximum(centres[None, :] - highs[:, None], 0.0)
    under = np.maximum(lows[:, None] - centres[None, :], 0.0)
    clipped = (np.square(over) @ counts)[:, None] + (np.square(under) @ counts)[None, :]
    step = (highs[:, None] - lows[None, :]) / 255.0
    rounding = np.square(step) / 12.0 * (counts.sum() - stats.zeros)
    i, j = np.unravel_index(int(np.argmin(clipped + rounding)), clipped.shape)
    return Range(float(min(lows[j], 0.0)), float(max(highs[i], 0.0)))


def entropy_range(stats: TensorStatistics) -> Range:
    """The range whose 256 levels lose the least information (KL divergence), symmetric cuts.

    S. Migacz, "8-bit Inference with TensorRT", GTC 2017: the clipped distribution is compared with
    its own quantized form for every cut. A cut is one distance from zero to both sides, so that an
    outlier on one side does not cost the other its tail.
    """
    whole = minmax_range(stats)
    centres, counts = _occupied(stats)
    if not counts.size:
        return whole
    best, chosen = np.inf, whole
    farthest = max(-whole.low, whole.high)
    for cut in farthest * np.geomspace(1.0, 0.03, 60):
        low, high = max(whole.low, -cut), min(whole.high, cut)
        loss = _divergence(centres, counts, low, high)
        if loss < best:
            best, chosen = loss, Range(float(low), float(high))
    return chosen


def _divergence(
    centres: NDArray[np.float64], counts: NDArray[np.float64], low: float, high: float
) -> float:
    clipped = np.clip(centres, low, high)
    level = np.clip(
        ((clipped - low) / max(high - low, 1e-30) * 255).round().astype(np.int64), 0, 255
    )
    inside = (centres >= low) & (centres <= high)
    mass = np.bincount(level, weights=counts, minlength=256)
    kept = np.bincount(level, weights=np.where(inside, counts, 0.0), minlength=256)
    width = np.bincount(level, weights=inside.astype(np.float64), minlength=256)
    total = counts.sum()
    p = np.where(inside, counts, 0.0)
    # What lies outside is counted in the outermost bins, as the runtime's clipping does.
    p[np.argmax(inside)] += counts[centres < low].sum()
    p[len(p) - 1 - np.argmax(inside[::-1])] += counts[centres > high].sum()
    q = np.where(inside & (width[level] > 0), kept[level] / np.maximum(width[level], 1.0), 0.0)
    q_total = q.sum()
    if q_total <= 0 or mass.sum() <= 0:
        return float("inf")
    p, q = p / total, q / q_total
    used = p > 0
    return float(np.sum(p[used] * np.log(p[used] / np.maximum(q[used], 1e-12))))


def _occupied(stats: TensorStatistics) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres and counts of the bins that hold anything."""
    index = np.flatnonzero(stats.bins)
    centres = np.ldexp(index.astype(np.float64) - HALF_BINS + 0.5, stats.exponent)
    return np.clip(centres, stats.low, stats.high), stats.bins[index].astype(np.float64)


RANGE_METHODS: dict[str, Callable[[TensorStatistics], Range]] = {
    "minmax": minmax_range,
    "percentile": percentile_range,
    "mse": mse_range,
    "entropy": entropy_range,
}
