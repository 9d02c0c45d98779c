"""What a model has to compute and to move, counted from its graph, and how fast that could be.

Every product of a weight or an activation counts as two operations. What has to be moved at least
is every weight, every input and every output, once: what lies between may stay in a cache. The
time that neither the arithmetic nor the memory of the machine can beat is the larger of both
quotients (Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from bench.models import Feeds
from bench.peaks import Peaks

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Mapping[str, Shape]

_INTEGER = ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")
_NESTED = ("If", "Loop", "Scan")


@dataclass(frozen=True, slots=True)
class Work:
    """One inference.

    Attributes:
        sha256: Of the model.
        batch: Samples in it.
        float_ops: Operations on floats.
        int8_ops: Operations on 8-bit integers: integer operators, and those between Q and DQ.
        bytes: To move at least.
        uncounted: Kinds of operators with products that could not be counted.
    """

    sha256: str
    batch: int
    float_ops: int
    int8_ops: int
    bytes: int
    uncounted: tuple[str, ...]

    @property
    def ops_per_byte(self) -> float:
        """Arithmetic intensity."""
        return (self.float_ops + self.int8_ops) / max(self.bytes, 1)


def shortest_ms(work: Work, peaks: Peaks) -> float:
    """The time in which this machine could do it at best."""
    computing = work.float_ops / peaks.fp32_per_second + work.int8_ops / peaks.int8_per_second
    return 1000 * max(computing, work.bytes / peaks.bytes_per_second)


def bound_by(work: Work, peaks: Peaks) -> str:
    """Whether "arithmetic" or "memory" sets that time."""
    moving = work.bytes / peaks.bytes_per_second
    return "memory" if shortest_ms(work, peaks) <= 1000 * moving else "arithmetic"


def count_work(path: Path, feeds: Feeds, *, sha256: str, batch: int) -> Work:
    """Count what one inference takes.

    Args:
        path: An ONNX file that was found sound.
        feeds: The inputs of one inference: they give free axes their sizes.
        sha256: Of the model.
        batch: Samples in `feeds`.
    """
    import onnx

    proto = onnx.load(str(path), load_external_data=False)
    constants = {t.name for t in proto.graph.initializer}
    for value in proto.graph.input:
        if value.name in feeds:
            _fix(value, feeds[value.name].shape)
    del proto.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    graph = inferred.graph
    shapes = _shapes(graph)
    makers = {name: node.op_type for node in graph.node for name in node.output}
    kinds = {t.name: t.data_type for t in graph.initializer}
    float_ops = int8_ops = 0
    uncounted = []
    for node in graph.node:
        count = _COUNTERS.get(node.op_type)
        if node.op_type in _NESTED:
            uncounted.append(node.op_type)
        if count is None:
            continue
        try:
            ops = 2 * count(node, shapes)
        except KeyError:  # A shape that inference does not know.
            uncounted.append(node.op_type)
            continue
        if _is_integer(node, makers, kinds):
            int8_ops += ops
        else:
            float_ops += ops
    outputs = [_size(shapes.get(o.name, ()), o.type.tensor_type.elem_type) for o in graph.output]
    weights = [_size(tuple(t.dims), t.data_type) for t in graph.initializer]
    inputs = [a.nbytes for n, a in feeds.items() if n not in constants]
    return Work(
        sha256,
        batch,
        float_ops,
        int8_ops,
        sum(weights) + sum(inputs) + sum(outputs),
        tuple(sorted(set(uncounted))),
    )


def _fix(value: Any, shape: Shape) -> None:
    dims = value.type.tensor_type.shape.dim
    del dims[:]
    for size in shape:
        dims.add().dim_value = size


def _shapes(graph: Any) -> dict[str, Shape]:
    found: dict[str, Shape] = {t.name: tuple(t.dims) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            dims = [tuple(a.t.dims) for a in node.attribute if a.name == "value"]
            found |= dict(zip(node.output, dims, strict=False))
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        known = value.type.tensor_type.HasField("shape")
        if known and all(d.HasField("dim_value") for d in dims):
            found[value.name] = tuple(d.dim_value for d in dims)
    return found


def _is_integer(node: Any, makers: Mapping[str, str], kinds: Mapping[str, int]) -> bool:
    """Whether a runtime may compute it on 8-bit integers: both factors come out of 8 bits."""
    if node.op_type in _INTEGER:
        return True
    return all(makers.get(n) == "DequantizeLinear" for n in node.input[:2]) and not (
        set(node.input[:2]) & kinds.keys()
    )


def _size(shape: Shape, elem_type: int) -> int:
    import onnx

    if elem_type in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
        return 0
    bits = 4 if elem_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4) else 0
    width = bits / 8 or onnx.helper.tensor_dtype_to_np_dtype(elem_type).itemsize
    return int(math.prod(shape) * width)


def _attribute(node: Any, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _convolution(node: Any, shapes: Shapes) -> int:
    weight = shapes[node.input[3 if node.op_type == "QLinearConv" else 1]]
    # [out, in / group, kernel …]: each output is a product over all but the first axis.
    return math.prod(shapes[node.output[0]]) * math.prod(weight[1:])


def _transposed(node: Any, shapes: Shapes) -> int:
    # [in, out / group, kernel …]: each input goes into a product over all but the first axis.
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _product(node: Any, shapes: Shapes) -> int:
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


def _gemm(node: Any, shapes: Shapes) -> int:
    a = shapes[node.input[0]]
    return math.prod(shapes[node.output[0]]) * a[0 if _attribute(node, "transA", 0) else 1]


def _recurrent(node: Any, shapes: Shapes) -> int:
    # X [steps, batch, inputs], W [directions, gates · hidden, inputs], R likewise with hidden.
    steps, batch, _ = shapes[node.input[0]]
    return steps * batch * (math.prod(shapes[node.input[1]]) + math.prod(shapes[node.input[2]]))


_COUNTERS: dict[str, Callable[[Any, Shapes], int]] = {
    "Conv": _convolution,
    "ConvInteger": _convolution,
    "QLinearConv": _convolution,
    "ConvTranspose": _transposed,
    "MatMul": _product,
    "MatMulInteger": _product,
    "QLinearMatMul": _product,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
