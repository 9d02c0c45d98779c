"""What is kept of a tensor while samples stream through: extremes and a histogram that merges.

A histogram has bins whose width is a power of two and whose edges are multiples of it. When a value
does not fit, the width doubles and neighbours merge, which loses nothing: floor(x / 2w) equals
floor(floor(x / w) / 2). The result therefore depends on the data alone, never on how it was cut up.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bench.models import Array

# Bins on either side of zero. 2,048 in all at most when a tensor has both signs.
HALF_BINS = 1024
# Values binned together: their copies stay in cache, and memory does not grow with the tensor.
_CHUNK = 1 << 15
# 2**110 still fits a float32, so that scaling by it stays exact.
_SMALLEST_EXPONENT = -110


@dataclass(slots=True)
class TensorStatistics:
    """What one pass learns of one tensor; grows as samples stream through.

    Attributes:
        low: Smallest value seen.
        high: Largest value seen.
        count: Values seen.
        zeros: Values that were exactly zero, which 8 bits hold without error.
        exponent: Bins are 2**exponent wide; bin i covers [i, i + 1) * 2**exponent.
        bins: int64 [2 * HALF_BINS]; entry HALF_BINS + i is the count of bin i.
        samples: Samples seen.
        nonfinite: Samples in which it held NaN or infinity (a mask, say); these left no other
            trace.
    """

    low: float = np.inf
    high: float = -np.inf
    count: int = 0
    zeros: int = 0
    exponent: int = _SMALLEST_EXPONENT
    bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2 * HALF_BINS, np.int64))
    samples: int = 0
    nonfinite: int = 0

    def add(self, values: Array) -> None:
        """Take in one tensor of any shape."""
        self.samples += 1
        if values.size == 0:
            return
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        low, high = float(flat.min()), float(flat.max())
        if not np.isfinite(low) or not np.isfinite(high):
            self.nonfinite += 1
            return
        self._widen(max(-low, high))
        for start in range(0, flat.size, _CHUNK):
            self._count(flat[start : start + _CHUNK], negative=low < 0)
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += flat.size
        self.zeros += flat.size - int(np.count_nonzero(flat))

    def _count(self, part: NDArray[np.float32], *, negative: bool) -> None:
        # Scaling by a power of two is exact, so the bin of a value never depends on rounding.
        scaled = part * np.float32(2.0**-self.exponent)
        np.floor(scaled, out=scaled)
        if negative:
            # A tiny negative value scales to -0, and would move to the other side of zero.
            np.minimum(scaled, -1, out=scaled, where=part < 0)
        scaled += HALF_BINS
        self.bins += np.bincount(scaled.astype(np.intp), minlength=2 * HALF_BINS)

    def merge(self, other: "TensorStatistics") -> None:
        """Take in what another pass over other samples learned; order does not matter."""
        exponent = max(self.exponent, other.exponent)
        self._coarsen(exponent)
        self.bins += _coarser(other.bins, exponent - other.exponent)
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.count += other.count
        self.zeros += other.zeros
        self.samples += other.samples
        self.nonfinite += other.nonfinite

    def _widen(self, magnitude: float) -> None:
        """Make sure that `magnitude` falls into a bin."""
        if magnitude <= 0:
            return
        # frexp: magnitude = m * 2**e with m in [0.5, 1), so magnitude < 2**e.
        _, e = np.frexp(magnitude)
        needed = int(e) - int(np.log2(HALF_BINS))
        if needed > self.exponent:
            self._coarsen(needed)

    def _coarsen(self, exponent: int) -> None:
        self.bins = _coarser(self.bins, exponent - self.exponent)
        self.exponent = exponent


def _coarser(bins: NDArray[np.int64], steps: int) -> NDArray[np.int64]:
    """Merge 2**steps neighbours; bin i goes to floor(i / 2**steps)."""
    if steps <= 0:
        return bins.copy()
    index = (np.arange(-HALF_BINS, HALF_BINS) >> min(steps, 31)) + HALF_BINS
    out = np.zeros_like(bins)
    np.add.at(out, index, bins)
    return out
