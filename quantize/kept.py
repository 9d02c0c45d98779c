"""Values of FP32's tensors, kept while samples run, for graphs in which they are divided.

    samples ─▶ FP32 ─▶ of each tensor: the values that are binned, extremes by channel ─▶ file
    ─▶ divided by a factor per channel ─▶ the statistics of x / factor, to the last bit

A graph with evened-out channels (`quantize.equalize`) feeds its layers what FP32 does, divided. So
no sample has to run again for its statistics, unless so much was seen that it was not kept.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bench.models import Array
from quantize.histograms import TensorStatistics, binned

# Of one tensor, and of all.
_TENSOR_BYTES = 24 << 20
_TOTAL_BYTES = 768 << 20

Seen: TypeAlias = list[tuple[str, tuple[int, ...], NDArray[np.float32]]]
"""Of one sample: names of tensors, their shapes, and what is kept of each."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """Tensors that are kept while samples run: read by many threads, written in order by one.

    Attributes:
        axes: Of the channels, by name.
        files: Where the values go.
        room: Bytes that one tensor may take; one that needs more is not kept at all.
        shapes: Of what was written.
        sizes: Bytes of what was written.
    """

    axes: dict[str, int]
    files: Mapping[str, Path]
    room: int
    shapes: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def of(self, name: str, values: Array) -> Seen:
        """What is kept of one tensor of one sample; nothing of those that are not kept."""
        axis = self.axes.get(name)
        if axis is None or values.dtype != np.float32:
            return []
        if not values.size:
            return [(name, values.shape, np.zeros(0, np.float32))]
        rest = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
        parts = [binned(values)[0], values.min(axis=rest), values.max(axis=rest)]
        return [(name, values.shape, np.concatenate(parts))]

    def write(self, seen: Seen) -> None:
        """Put what was seen behind that of the samples before."""
        for name, shape, values in seen:
            size = self.sizes.get(name, 0) + values.nbytes
            if size > self.room:
                self.axes.pop(name, None)
            if name in self.axes:
                with self.files[name].open("ab") as out:
                    out.write(values.data)
                self.sizes[name] = size
                self.shapes.setdefault(name, []).append(shape)


@dataclass(frozen=True, slots=True)
class _Kept:
    """Of one tensor: a file with what `Keeping.of` gives for each sample; shapes of the samples."""

    file: Path
    shapes: list[tuple[int, ...]]


@dataclass(slots=True)
class ValueStore:
    """What is kept of tensors, in files.

    Attributes:
        axes: Of the channels, 1 or -1, by name of every tensor that a graph may divide.
        scratch: Where the files go.
    """

    axes: Mapping[str, int]
    scratch: Path
    _kept: dict[str, _Kept | None] = field(default_factory=dict)

    @contextmanager
    def keeping(self, wanted: Iterable[str]) -> Iterator[Keeping]:
        """Keep those of `wanted` that were not seen before, of samples that run in the block."""
        new = {n: self.axes[n] for n in wanted if n not in self._kept}
        files = {n: self.scratch / f"kept-{i}.raw" for i, n in enumerate(self.axes) if n in new}
        for file in files.values():
            file.unlink(missing_ok=True)
        room = min(_TENSOR_BYTES, _TOTAL_BYTES // max(len(self.axes), 1))
        keeping = Keeping(dict(new), files, room)
        yield keeping
        for name, file in files.items():
            whole = name in keeping.axes and name in keeping.shapes
            self._kept[name] = _Kept(file, keeping.shapes[name]) if whole else None
            if not whole:
                file.unlink(missing_ok=True)

    def divided(self, tensor: str, factors: NDArray[np.float32]) -> TensorStatistics | None:
        """Statistics of a tensor divided by a factor per channel; None where it was not kept.

        Args:
            tensor: Its name.
            factors: float32 [channels], positive.
        """
        kept = self._kept.get(tensor)
        if kept is None:
            return None
        found = TensorStatistics()
        by, every, last, start = factors, 1, None, 0
        values = np.fromfile(kept.file, np.float32)
        for shape in kept.shapes:
            if not math.prod(shape):
                found.add(np.zeros(shape, np.float32))
                continue
            if shape != last:
                by, every = binned(_spread(factors, self.axes[tensor], shape))
                last = shape
            stop = start + len(by) + 2 * len(factors)
            of_bins, low, high = np.split(values[start:stop], [len(by), len(by) + len(factors)])
            # What leaves float32 counts as not finite, as it does where it is computed.
            with np.errstate(over="ignore"):
                low, high, of_bins = low / factors, high / factors, of_bins / by
            found.add_binned(float(low.min()), float(high.max()), of_bins, every)
            start = stop
        return found


def _spread(factors: NDArray[np.float32], axis: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Factors as what a tensor of this shape is divided by."""
    after = len(shape) - 1 - axis % len(shape)
    return np.broadcast_to(factors.reshape(-1, *[1] * after), shape)
