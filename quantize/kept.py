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
from quantize.histograms import TensorStatistics, binned, stride_of

# Of one tensor, and of all.
_TENSOR_BYTES = 24 << 20
_TOTAL_BYTES = 768 << 20
# After so many samples it is foreseen whether all of them fit.
_FORESEEN = 16

Seen: TypeAlias = list[tuple[str, tuple[int, ...], NDArray[np.float32]]]
"""Of one sample: names of tensors, their shapes, and what is kept of each."""


@dataclass(slots=True)
class Keeping:
    """Tensors that are kept while samples run: read by many threads, written in order by one.

    Attributes:
        axes: Of the channels, by name; one that takes too much is not kept at all, and leaves.
        files: Where the values go.
        room: Bytes that one tensor may take.
        samples: How many will run.
        shapes: Of what was written.
        sizes: Bytes of what was written.
    """

    axes: dict[str, int]
    files: Mapping[str, Path]
    room: int
    samples: int
    shapes: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def nothing(cls) -> "Keeping":
        """Keeps no tensor."""
        return cls({}, {}, 0, 0)

    def of(self, name: str, values: Array) -> Seen:
        """What is kept of one tensor of one sample; nothing of those that are not kept."""
        axis = self.axes.get(name)
        if axis is None or values.dtype != np.float32:
            return []
        if not values.size:
            return [(name, values.shape, np.zeros(0, np.float32))]
        if 4 * values.size > self.room * stride_of(values.shape[1:]):
            # Known before a copy of it is made.
            self.axes.pop(name, None)
            return []
        rest = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
        parts = [binned(values)[0], values.min(axis=rest), values.max(axis=rest)]
        return [(name, values.shape, np.concatenate(parts))]

    def write(self, seen: Seen) -> None:
        """Put what was seen behind that of the samples before."""
        for name, shape, values in seen:
            if name not in self.axes:
                continue
            size, shapes = self.sizes.get(name, 0), self.shapes.setdefault(name, [])
            shapes.append(shape)
            self.sizes[name] = size + values.nbytes
            # No more than its share of the room so far: what is known early costs no runs.
            due = max(len(shapes), min(_FORESEEN, self.samples))
            if self.sizes[name] * self.samples > self.room * due:
                self.axes.pop(name, None)
                continue
            with self.files[name].open("ab") as out:
                out.write(values.data)


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
        scratch: Where the files go; of one store.
    """

    axes: Mapping[str, int]
    scratch: Path
    # None of a tensor that was seen and took too much.
    _kept: dict[str, _Kept | None] = field(default_factory=dict)

    @contextmanager
    def keeping(self, wanted: Iterable[str], samples: int) -> Iterator[Keeping]:
        """Keep those of `wanted` that have an axis and were not seen, of samples that run in it.

        Args:
            wanted: Names of tensors.
            samples: How many will run.
        """
        new = {n: self.axes[n] for n in wanted if n in self.axes and n not in self._kept}
        files = {n: self.scratch / f"kept-{i}.raw" for i, n in enumerate(self.axes) if n in new}
        for file in files.values():
            file.unlink(missing_ok=True)
        room = min(_TENSOR_BYTES, _TOTAL_BYTES // max(len(self.axes), 1))
        keeping = Keeping(dict(new), files, room, samples)
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
        found, values, start = TensorStatistics(), np.fromfile(kept.file, np.float32), 0
        for shape in kept.shapes:
            if not math.prod(shape):
                found.add(np.zeros(shape, np.float32))
                continue
            by = _binned_factors(factors, self.axes[tensor], shape)
            stop = start + len(by) + 2 * len(factors)
            of_bins, low, high = np.split(values[start:stop], [len(by), len(by) + len(factors)])
            # What leaves float32 counts as not finite, as it does where it is computed.
            with np.errstate(over="ignore"):
                low, high, of_bins = low / factors, high / factors, of_bins / by
            every = stride_of(shape[1:])
            found.add_binned(float(low.min()), float(high.max()), of_bins, every)
            start = stop
        return found


def _binned_factors(
    factors: NDArray[np.float32], axis: int, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """What those values of a tensor of this shape are divided by that `binned` gives."""
    if len(shape) == 1:
        # Its channels stand where others have rows.
        return factors
    row, after = shape[1:], math.prod(shape[axis % len(shape) + 1 :])
    places = np.arange(0, math.prod(row), stride_of(row))
    return np.tile(factors[places // after % len(factors)], shape[0])
