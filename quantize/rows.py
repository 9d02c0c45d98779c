"""What FP32 feeds the layers, as rows: every row times the weights is one output position.

    calibration samples ─▶ FP32 graph with the layers' inputs as outputs
        ─▶ some positions of each: patches of a convolution, rows of a product ─▶ file on disk

A quantized layer can be tried on its rows alone, in milliseconds and without a runtime. The padding
of a convolution stands in them as zeros, as often as it does in its outputs.

A replay takes them while the samples calibrate, a search when its first candidate asks for them.
Graphs with evened-out channels are fed the same rows, divided.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bench.models import Array, Model
from quantize.anchors import Anchor, integer_of
from quantize.data import Samples
from quantize.watching import passes

# Rows of one layer, and bytes of its rows; fewer rows where they are long.
MAX_ROWS = 2048
_LAYER_BYTES = 24 << 20
_TOTAL_BYTES = 768 << 20
# Samples that the rows come from.
_SAMPLES = 64
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Window:
    """How a layer reads its input.

    Attributes:
        tensor: The input's name.
        width: Values of one row, all groups together.
        kernel: Taps per spatial axis of a convolution; empty for Gemm and MatMul.
        strides: Per spatial axis.
        dilations: Per spatial axis.
        pads: Before and after, per spatial axis; None where `auto_pad` is SAME.
        same_lower: Of auto_pad SAME, where the odd one goes.
        groups: Of a convolution; 1 otherwise.
    """

    tensor: str
    width: int
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[tuple[int, int], ...] | None = ()
    same_lower: bool = False
    groups: int = 1


def window_of(node: ir.Node, anchor: Anchor) -> Window:
    """How an anchor reads its input."""
    weights = node.inputs[1]
    assert weights is not None
    assert weights.const_value is not None
    shape = [int(d) for d in weights.const_value.shape.numpy()]
    width = math.prod(shape) // max(shape[anchor.out_axis], 1)
    if anchor.op != "Conv":
        return Window(anchor.data, width)
    kernel, groups = tuple(shape[2:]), integer_of(node, "group", 1)
    ones = (1,) * len(kernel)
    pads = _integers(node, "pads", (0,) * (2 * len(kernel)))
    auto = node.attributes.get("auto_pad")
    kind = auto.as_string() if auto is not None else "NOTSET"
    fixed = tuple(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True))
    return Window(
        anchor.data,
        width * groups,
        kernel,
        _integers(node, "strides", ones),
        _integers(node, "dilations", ones),
        None if kind.startswith("SAME") else fixed,
        kind == "SAME_LOWER",
        groups,
    )


def windows_of(nodes: Mapping[str, ir.Node], anchors: Iterable[Anchor]) -> dict[str, Window]:
    """How every anchor that reads rows reads them, by name."""
    flat = (a for a in anchors if a.op != "LSTM" and not a.nested)
    return {a.name: window_of(nodes[a.name], a) for a in flat}


def by_channel(rows: NDArray[np.float32], window: Window) -> NDArray[np.float32]:
    """Rows of a layer as a view of float32 [rows, channels, taps]."""
    taps = math.prod(window.kernel)
    return rows.reshape(len(rows), window.width // taps, taps)


def _integers(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    return default if attribute is None else tuple(attribute.as_ints())


def rows_of(
    values: Array, window: Window, count: int, random: np.random.Generator
) -> NDArray[np.float32]:
    """Rows at random positions of one tensor, all of them where there are no more than `count`.

    Args:
        values: float32 [batch, channels, *spatial] for a convolution, else [..., width].
        window: How the layer reads it.
        count: How many rows at most.
        random: Draws the positions.

    Returns:
        float32 [rows, groups, channels / groups * taps], finite.
    """
    if not window.kernel:
        flat = values.reshape(-1, values.shape[-1])
        found = flat[_draw(len(flat), count, random)][:, None, :]
    else:
        found = _patches(values, window, count, random)
    finite = np.isfinite(found).all(axis=(1, 2))
    return found if finite.all() else found[finite]


def _draw(total: int, count: int, random: np.random.Generator) -> NDArray[np.intp]:
    if total <= count:
        return np.arange(total)
    return np.sort(random.choice(total, count, replace=False))


def _patches(
    values: Array, window: Window, count: int, random: np.random.Generator
) -> NDArray[np.float32]:
    batch, channels, *spatial = values.shape
    starts, outputs = [], []
    for axis, size in enumerate(spatial):
        reach = (window.kernel[axis] - 1) * window.dilations[axis] + 1
        stride = window.strides[axis]
        if window.pads is None:
            out = -(-size // stride)
            padding = max((out - 1) * stride + reach - size, 0)
            before = (padding + 1) // 2 if window.same_lower else padding // 2
        else:
            before, after = window.pads[axis]
            out = (size + before + after - reach) // stride + 1
        starts.append(before)
        outputs.append(out)
    chosen = _draw(batch * math.prod(outputs), count, random)
    sample, *at = np.unravel_index(chosen, (batch, *outputs))
    index = np.zeros((len(chosen), 1), np.intp)
    inside = np.ones((len(chosen), 1), np.bool_)
    for axis, size in enumerate(spatial):
        taps = np.arange(window.kernel[axis]) * window.dilations[axis] - starts[axis]
        place = at[axis][:, None] * window.strides[axis] + taps
        valid = (place >= 0) & (place < size)
        place = np.where(valid, place, 0)
        index = (index[:, :, None] * size + place[:, None, :]).reshape(len(chosen), -1)
        inside = (inside[:, :, None] & valid[:, None, :]).reshape(len(chosen), -1)
    flat = values.reshape(batch, channels, -1)
    # Advanced indices on both sides of a slice: [rows, taps, channels].
    found = flat[sample[:, None], :, index]
    found[~inside] = 0
    return found.transpose(0, 2, 1).reshape(len(chosen), window.groups, -1)


Found: TypeAlias = list[tuple[Window, NDArray[np.float32]]]
"""Rows that one sample gives, by layer."""


@dataclass(frozen=True, slots=True)
class Taking:
    """Rows of some layers while samples run: cut out by many threads, written in order by one.

    Attributes:
        readers: How layers read it, by tensor.
        per_sample: Rows of one sample at most.
        numbers: Of the samples that give rows, by their index.
        files: Where the rows go.
        shapes: Of what was written.
    """

    readers: Mapping[str, list[Window]]
    per_sample: Mapping[Window, int]
    numbers: Mapping[int, int]
    files: Mapping[Window, Path]
    shapes: dict[Window, list[tuple[int, ...]]]

    def rows(self, index: int, tensor: str, values: Array) -> Found:
        """What layers read of one tensor of one sample; nothing where that is no float32."""
        number = self.numbers.get(index)
        if number is None or values.dtype != np.float32:
            return []
        found = []
        for window in self.readers.get(tensor, ()):
            random = np.random.default_rng(number)
            rows = rows_of(values, window, self.per_sample[window], random)
            found.append((window, np.ascontiguousarray(rows, np.float32)))
        return found

    def write(self, found: Found) -> None:
        """Put rows behind those of the samples before."""
        for window, rows in found:
            with self.files[window].open("ab") as out:
                out.write(rows.data)
            self.shapes[window].append(rows.shape)


@dataclass(frozen=True, slots=True)
class Divided:
    """A tensor of a graph with evened-out channels.

    Attributes:
        tensor: What it is in FP32.
        factors: float32 [channels], what that is divided by.
    """

    tensor: str
    factors: NDArray[np.float32]


@dataclass(slots=True)
class RowStore:
    """Rows of every layer, in files, and what was worked out from them.

    Attributes:
        model: The FP32 model.
        samples: That calibrated.
        states: Output to input names that carry state from one sample to the next.
        threads: Of one inference.
        scratch: Where the files go.
        tensors: That were watched while they calibrated. Rows taken later are the same as those
            that are taken meanwhile: where other tensors are watched, other nodes are fused, and
            sums are rounded otherwise.
        divided: Tensors that the layers read instead, in a graph with evened-out channels.
    """

    model: Model
    samples: Samples
    states: Mapping[str, str]
    threads: int
    scratch: Path
    tensors: tuple[str, ...] = ()
    divided: Mapping[str, Divided] = field(default_factory=dict)
    _files: dict[Window, tuple[Path, tuple[int, ...]]] = field(default_factory=dict)
    _memo: dict[object, object] = field(default_factory=dict)

    def evened(self, divided: Mapping[str, Divided]) -> "RowStore":
        """The same for a graph in which these tensors are divided; the files belong to both."""
        return replace(self, divided=divided, _memo={})

    def capture(self, windows: Iterable[Window]) -> None:
        """Run some samples through FP32 and keep rows of these windows; once for each."""
        with self.taking(windows) as taking:
            if not taking.readers:
                return
            chosen = list(taking.numbers)
            some = self.samples.subset(chosen)

            def take(number: int, values: Iterator[tuple[str, Array]]) -> Found:
                return [f for n, array in values for f in taking.rows(chosen[number], n, array)]

            tensors = sorted({*self.tensors, *taking.readers})
            every = (self.model, tensors, self.samples, self.threads, self.scratch, self.states)
            for watched in passes(*every):
                for found in watched.over(some, take):
                    taking.write(found)

    @contextmanager
    def taking(self, windows: Iterable[Window]) -> Iterator[Taking]:
        """Take rows of these windows from samples that run in the block; once for each window."""
        new = [w for w in dict.fromkeys(map(self._of_fp32, windows)) if w not in self._files]
        readers: dict[str, list[Window]] = {}
        for window in new:
            readers.setdefault(window.tensor, []).append(window)
        numbers = {index: number for number, index in enumerate(self._chosen())}
        files = {
            window: self.scratch / f"rows-{number}.raw"
            for number, window in enumerate(new, start=len(self._files))
        }
        for file in files.values():
            file.unlink(missing_ok=True)
        shapes: dict[Window, list[tuple[int, ...]]] = {w: [] for w in new}
        yield Taking(readers, _per_sample(new, len(numbers)), numbers, files, shapes)
        for window, found in shapes.items():
            total = (sum(s[0] for s in found), *(found[-1][1:] if found else (1, 0)))
            self._files[window] = (files[window], total)

    def rows(self, window: Window) -> NDArray[np.float32]:
        """float32 [rows, groups, channels / groups * taps]; no rows where none were finite."""
        file, shape = self._files[self._of_fp32(window)]
        if not math.prod(shape):
            return np.zeros(shape, np.float32)
        rows = np.fromfile(file, np.float32).reshape(shape)
        if (found := self.divided.get(window.tensor)) is not None:
            channels = by_channel(rows, window)
            channels /= found.factors[:, None]
        return rows

    def _of_fp32(self, window: Window) -> Window:
        found = self.divided.get(window.tensor)
        return window if found is None else replace(window, tensor=found.tensor)

    def once(self, key: object, make: Callable[[], R]) -> R:
        """What `make` returned the first time that this key was asked for."""
        if key not in self._memo:
            self._memo[key] = make()
        found: R = self._memo[key]  # type: ignore[assignment]
        return found

    def _chosen(self) -> Iterable[int]:
        """Samples that give rows."""
        total = len(self.samples)
        count = min(_SAMPLES, total)
        # With state, one sample needs the one before it.
        return range(count) if self.states else (i * total // count for i in range(count))


def _per_sample(windows: Sequence[Window], samples: int) -> dict[Window, int]:
    """Rows that one sample gives, so that all of them fit on the disk."""
    room = min(_LAYER_BYTES, _TOTAL_BYTES // max(len(windows), 1))
    rows = {w: min(MAX_ROWS, room // (4 * max(w.width, 1))) for w in windows}
    return {w: max(1, n // samples) for w, n in rows.items()}
