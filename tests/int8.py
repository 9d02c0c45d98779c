"""From a tiny FP32 model to its INT8 file in one call, and what integer arithmetic says of it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper, numpy_helper

from bench.models import Feeds, TensorSpec, read_model
from bench.runtimes.onnxruntime import OnnxRuntime
from bench.runtimes.seam import Settings
from quantize.anchors import Anchor, Mode, find_anchors
from quantize.calibrate import Calibration, calibrate
from quantize.data import Samples
from quantize.placement import watch_list
from quantize.prepare import prepare
from quantize.quantizers import QuantizedModel, quantize
from quantize.recipe import Recipe
from quantize.rows import RowStore
from tests import tiny


def samples_of(feeds: Sequence[Feeds], inputs: Sequence[TensorSpec]) -> Samples:
    """Samples in memory, without labels."""
    return Samples(
        source="memory",
        inputs=tuple(inputs),
        labelled=False,
        digests=tuple(hashlib.sha256(str(i).encode()).hexdigest() for i in range(len(feeds))),
        _load=lambda i: dict(feeds[i]),
        _label=None,
        _where=str,
        _indices=tuple(range(len(feeds))),
    )


@dataclass(frozen=True, slots=True)
class Made:
    """An INT8 model beside the FP32 one that it was made of."""

    fp32: Path
    anchors: tuple[Anchor, ...]
    calibration: Calibration
    quantized: QuantizedModel

    @property
    def path(self) -> Path:
        """The INT8 file."""
        return self.quantized.model.path

    @property
    def file(self) -> "File":
        """The INT8 graph."""
        return File.read(self.path)

    @property
    def modes(self) -> list[str]:
        """Mode of every anchor, in graph order."""
        return [x.mode for x in self.quantized.layers]


def make(
    source: Path,
    feeds: Sequence[Feeds],
    *,
    mode: Mode | None = None,
    modes: Mapping[str, Mode] | None = None,
    target: str = "vnni",
    ranges: str = "minmax",
    correct_bias: bool = True,
    fused_for: Any = "onnxruntime",
) -> Made:
    """Prepare, calibrate and quantize a model.

    Args:
        source: An ONNX file; the others are written beside it.
        feeds: Calibrate on these.
        mode: Of every anchor that can have it; each anchor's fastest where None.
        modes: By name, for anchors that differ.
    """
    fp32 = prepare(read_model(source), source.with_name(f"{source.stem}_fp32.onnx")).model
    graph = ir.load(fp32.path)
    anchors, _ = find_anchors(graph)
    found = calibrate(
        fp32,
        watch_list(graph, anchors),
        samples_of(feeds, fp32.inputs),
        threads=1,
        scratch=source.parent,
        states={},
    )

    def chosen(anchor: Anchor) -> Mode:
        wanted = (modes or {}).get(anchor.name, mode)
        return wanted if wanted in anchor.modes else anchor.modes[0]

    recipe = Recipe(target, ranges, correct_bias, {a.name: chosen(a) for a in anchors}, fused_for)
    out = source.with_name(f"{source.stem}_int8.onnx")
    return Made(fp32.path, anchors, found, quantize(fp32, anchors, found, recipe, out))


def run(path: Path, feeds: Feeds, *, optimize: Any = "all") -> Feeds:
    """Outputs in ONNX Runtime, with exact arithmetic."""
    session = OnnxRuntime().open(path, Settings(threads=1, exact=True, optimize=optimize))
    try:
        return session.run(feeds)
    finally:
        session.close()


def fused(path: Path) -> list[str]:
    """Operators that ONNX Runtime really runs, in its order."""
    import onnxruntime as ort

    from bench.runtimes.onnxruntime import session_options

    options = session_options(Settings(threads=1))
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    out = path.with_name(f"{path.stem}_fused.onnx")
    options.optimized_model_filepath = str(out)
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [n.op_type for n in onnx.load(str(out)).graph.node]


@dataclass(frozen=True, slots=True)
class Codes:
    """Integers with their scale and zero point."""

    codes: np.ndarray[Any, Any]
    scale: np.ndarray[Any, Any]
    zero: np.ndarray[Any, Any]

    @property
    def centred(self) -> np.ndarray[Any, Any]:
        """Int64 codes without the zero point, one per tensor."""
        return self.codes.astype(np.int64) - int(self.zero)


@dataclass(frozen=True, slots=True)
class File:
    """The graph of a file with its constants."""

    graph: onnx.GraphProto
    constants: dict[str, np.ndarray[Any, Any]]

    @classmethod
    def read(cls, path: Path) -> "File":
        """Load and check a file."""
        proto = onnx.load(str(path))
        onnx.checker.check_model(proto, full_check=True)
        constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        return cls(proto.graph, constants)

    def nodes(self, op: str) -> list[onnx.NodeProto]:
        """Nodes of an operator, in order."""
        return [n for n in self.graph.node if n.op_type == op]

    def maker(self, tensor: str) -> onnx.NodeProto:
        """The node that makes a tensor."""
        return next(n for n in self.graph.node if tensor in n.output)

    def held(self, tensor: str) -> Codes:
        """Constant integers behind a tensor that DequantizeLinear makes."""
        pair = self.maker(tensor)
        assert pair.op_type == "DequantizeLinear"
        codes, scale, zero = (self.constants[n] for n in pair.input)
        return Codes(codes, scale, zero)

    def grid(self, tensor: str) -> tuple[np.float32, int]:
        """Scale and zero point of the Q/DQ pair that makes `tensor` or reads it."""
        for node in self.graph.node:
            if node.op_type == "QuantizeLinear" and node.input[0] == tensor:
                return self.constants[node.input[1]][()], int(self.constants[node.input[2]])
        pair = self.maker(tensor)
        assert pair.op_type == "DequantizeLinear"
        return self.constants[pair.input[1]][()], int(self.constants[pair.input[2]])


def to_codes(values: np.ndarray[Any, Any], scale: np.float32, zero: int) -> Codes:
    """QuantizeLinear to u8: divided in float32, ties to even."""
    codes = np.clip(np.rint(values.astype(np.float32) / np.float32(scale)) + zero, 0, 255)
    return Codes(codes.astype(np.uint8), np.float32(scale), np.uint8(zero))


def convolve(
    data: np.ndarray[Any, Any],
    weights: np.ndarray[Any, Any],
    *,
    strides: Sequence[int],
    pads: Sequence[int],
    groups: int,
) -> np.ndarray[Any, Any]:
    """Integer or float64 convolution of any rank: [n, c, *size] with [o, c / groups, *taps]."""
    rank = data.ndim - 2
    data = np.pad(data, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    windows = sliding_window_view(data, weights.shape[2:], axis=tuple(range(2, 2 + rank)))
    windows = windows[(slice(None), slice(None), *(slice(None, None, s) for s in strides))]
    parts = []
    for g, kernel in enumerate(np.split(weights, groups)):
        width = weights.shape[1]
        part = windows[:, g * width : (g + 1) * width]
        taps = tuple(range(2 + rank, 2 + 2 * rank))
        parts.append(np.tensordot(part, kernel, axes=[(1, *taps), (1, *range(2, 2 + rank))]))
    return np.moveaxis(np.concatenate(parts, axis=-1), -1, 1)


def residual(path: Path) -> RowStore:
    """80 samples of a sum that is fused into the convolution before it, unless that is watched."""
    random = np.random.default_rng(0)
    kernels = {n: random.normal(0, 0.05, (32, 32, 3, 3)).astype(np.float32) for n in "abc"}
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["u"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["u", "b"], ["v"], "second", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["u", "v"], ["w"], "sum"),
        helper.make_node("Relu", ["w"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "c"], ["y"], "third", pads=[1, 1, 1, 1]),
    ]
    shape = [1, 32, 16, 16]
    tiny.save(
        path, nodes, [("x", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, shape)], kernels
    )
    model, graph = read_model(path), ir.load(path)
    feeds = [{"x": random.standard_normal(shape).astype(np.float32)} for _ in range(80)]
    samples = samples_of(feeds, model.inputs)
    watched = watch_list(graph, find_anchors(graph)[0])
    return RowStore(model, samples, {}, 2, path.parent, watched)
