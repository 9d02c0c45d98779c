"""What is kept of a tensor while samples stream through: extremes and a histogram that merges.

A histogram has bins whose width is a power of two and whose edges are multiples of it. When a value
does not fit, the width doubles and neighbours merge, which loses nothing: floor(x / 2w) equals
floor(floor(x / w) / 2). The result therefore depends on the data alone, never on how it was cut up.

Extremes are those of every value. Of a row (what one index of the first axis holds) that is longer
than `ROW_VALUES`, every k-th value is binned and counts k times: neighbours in an image say the
same, and binning would take several times as long as the model.
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bench.models import Array

# Bins on either side of zero. 2,048 in all at most when a tensor has both signs.
HALF_BINS = 1024
# Values of one row that are binned, about; all of them where there are no more.
ROW_VALUES = 1 << 14
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
        count: Values that the bins stand for.
        zeros: Those of them that were exactly zero, which 8 bits hold without error.
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
        """Take in one tensor of any shape; samples may be stacked on its first axis."""
        if values.size == 0:
            self.samples += 1
            return
        self.add_binned(float(values.min()), float(values.max()), *binned(values))

    def add_binned(self, low: float, high: float, values: NDArray[np.float32], every: int) -> None:
        """Take in one tensor of which no more than this is known.

        Args:
            low: Smallest of its values.
            high: Largest of them.
            values: float32 [values], those that `binned` gives.
            every: What each of these counts for.
        """
        self.samples += 1
        if not math.isfinite(low) or not math.isfinite(high):
            self.nonfinite += 1
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(-low, high))
        for start in range(0, values.size, _CHUNK):
            self.bins += every * self._counted(values[start : start + _CHUNK])
        self.count += every * values.size
        self.zeros += every * int(np.count_nonzero(values == 0))

    def _counted(self, part: NDArray[np.float32]) -> NDArray[np.intp]:
        # Scaling by a power of two is exact, so the bin of a value never depends on rounding. Only
        # scaled down, in float32, a tiny negative value would become -0 and change sides.
        kind = np.float32 if self.exponent <= 0 else np.float64
        scaled = part * kind(2.0**-self.exponent)
        np.floor(scaled, out=scaled)
        scaled += kind(HALF_BINS)
        return np.bincount(scaled.astype(np.intp), minlength=2 * HALF_BINS)

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
        _, e = math.frexp(magnitude)
        needed = e - HALF_BINS.bit_length() + 1
        if needed > self.exponent:
            self._coarsen(needed)

    def _coarsen(self, exponent: int) -> None:
        self.bins = _coarser(self.bins, exponent - self.exponent)
        self.exponent = exponent


def binned(values: Array) -> tuple[NDArray[np.float32], int]:
    """Those values of a tensor, not empty, that are binned, and what each of them counts for."""
    every = stride_of(values.shape[1:])
    rows = values.reshape(len(values) if values.ndim else 1, -1)[:, ::every]
    return rows.astype(np.float32).reshape(-1), every


def _coarser(bins: NDArray[np.int64], steps: int) -> NDArray[np.int64]:
    """Merge 2**steps neighbours; bin i goes to floor(i / 2**steps)."""
    if steps <= 0:
        return bins.copy()
    index = (np.arange(-HALF_BINS, HALF_BINS) >> min(steps, 31)) + HALF_BINS
    out = np.zeros_like(bins)
    np.add.at(out, index, bins)
    return out


@lru_cache(maxsize=256)
def stride_of(row: tuple[int, ...]) -> int:
    """Every how many values of a row of this shape one is binned.

    It shares no factor with any axis, so that every column and channel gets its turn.
    """
    every = -(-math.prod(row) // ROW_VALUES)
    while any(math.gcd(every, size) > 1 for size in row):
        every += 1
    return max(every, 1)
