"""What FP32 feeds the layers, as rows: every row times the weights is one output position.

    calibration samples ─▶ FP32 graph with the layers' inputs as outputs
        ─▶ some positions of each: patches of a convolution, rows of a product ─▶ file on disk

A quantized layer can be tried on its rows alone, in milliseconds and without a runtime. The padding
of a convolution stands in them as zeros, as often as it does in its outputs.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

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
    return found[np.isfinite(found).all(axis=(1, 2))]


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
    found = np.where(inside[:, :, None], flat[sample[:, None], :, index], np.float32(0))
    return found.transpose(0, 2, 1).reshape(len(chosen), window.groups, -1)


@dataclass(slots=True)
class RowStore:
    """Rows of every layer, in files that it owns, and what was worked out from them.

    Attributes:
        model: The FP32 model.
        samples: That calibrated.
        states: Output to input names that carry state from one sample to the next.
        threads: Of one inference.
        scratch: Where the files go.
    """

    model: Model
    samples: Samples
    states: Mapping[str, str]
    threads: int
    scratch: Path
    _files: dict[Window, tuple[Path, tuple[int, ...]]] = field(default_factory=dict)
    _memo: dict[object, object] = field(default_factory=dict)

    def of(self, model: Model) -> "RowStore":
        """The same for another graph of this model, whose layers read other tensors."""
        if model.sha256 == self.model.sha256:
            return self
        folder = self.scratch / f"rows-{model.sha256[:16]}"

        def make() -> RowStore:
            folder.mkdir(exist_ok=True)
            return RowStore(model, self.samples, self.states, self.threads, folder)

        return self.once(model.sha256, make)

    def capture(self, windows: Iterable[Window]) -> None:
        """Run some samples through FP32 and keep rows of these windows; once for each."""
        new = [w for w in dict.fromkeys(windows) if w not in self._files]
        if not new:
            return
        some = self._some()
        per_sample = _per_sample(new, len(some))
        parts: dict[Window, tuple[Path, list[tuple[int, ...]]]] = {}
        for number, window in enumerate(new, start=len(self._files)):
            file = self.scratch / f"rows-{number}.raw"
            file.unlink(missing_ok=True)
            parts[window] = (file, [])
        readers: dict[str, list[Window]] = {}
        for window in new:
            readers.setdefault(window.tensor, []).append(window)
        for found in self._rows(readers, per_sample, some):
            for window, rows in found:
                file, shapes = parts[window]
                with file.open("ab") as out:
                    out.write(rows.tobytes())
                shapes.append(rows.shape)
        for window, (file, shapes) in parts.items():
            total = (sum(s[0] for s in shapes), *(shapes[-1][1:] if shapes else (1, 0)))
            self._files[window] = (file, total)

    def rows(self, window: Window) -> NDArray[np.float32]:
        """float32 [rows, groups, channels / groups * taps]; no rows where none were finite."""
        file, shape = self._files[window]
        if not math.prod(shape):
            return np.zeros(shape, np.float32)
        return np.fromfile(file, np.float32).reshape(shape)

    def once(self, key: object, make: Callable[[], R]) -> R:
        """What `make` returned the first time that this key was asked for."""
        if key not in self._memo:
            self._memo[key] = make()
        found: R = self._memo[key]  # type: ignore[assignment]
        return found

    def _some(self) -> Samples:
        total = len(self.samples)
        count = min(_SAMPLES, total)
        # With state, one sample needs the one before it.
        chosen = range(count) if self.states else (i * total // count for i in range(count))
        return self.samples.subset(list(chosen))

    def _rows(
        self, readers: Mapping[str, list[Window]], per_sample: Mapping[Window, int], some: Samples
    ) -> Iterator[list[tuple[Window, NDArray[np.float32]]]]:
        """Rows of each sample and pass."""

        def take(
            number: int, values: Iterator[tuple[str, Array]]
        ) -> list[tuple[Window, NDArray[np.float32]]]:
            found = []
            for name, array in values:
                for window in readers[name] if array.dtype == np.float32 else ():
                    random = np.random.default_rng(number)
                    rows = rows_of(array, window, per_sample[window], random)
                    found.append((window, np.ascontiguousarray(rows, np.float32)))
            return found

        every = (self.model, sorted(readers), some, self.threads, self.scratch, self.states)
        for watched in passes(*every):
            yield from watched.over(some, take)


def _per_sample(windows: Sequence[Window], samples: int) -> dict[Window, int]:
    """Rows that one sample gives, so that all of them fit on the disk."""
    room = min(_LAYER_BYTES, _TOTAL_BYTES // len(windows))
    rows = {w: min(MAX_ROWS, room // (4 * max(w.width, 1))) for w in windows}
    return {w: max(1, n // samples) for w, n in rows.items()}
