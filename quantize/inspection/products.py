"""Products in a graph, in whatever form a tool wrote them: Q/DQ pairs or integer operators.

A product is a node that multiplies: Conv, Gemm, MatMul, LSTM, …, and the integer forms of each. Of
every one it is found out what its activations and weights are made of.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common as passes

from quantize.anchors import integer_of
from quantize.inspection.constants import (
    Weights,
    array_of,
    held_weights,
    input_of,
    shape_of,
    together,
    weights_of,
)

Mode: TypeAlias = Literal["static", "dynamic", "weight-only", "float"]

_MICROSOFT = "com.microsoft"
_FLOAT_PRODUCTS = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"}
    | {"FusedConv", "FusedMatMul", "FusedGemm", "Attention", "MultiHeadAttention"}
)
# Through these an activation keeps its codes.
_MOVES = frozenset(
    {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "MaxPool", "Slice"}
)
_SHORT = {
    ir.DataType.UINT8: "u8",
    ir.DataType.INT8: "s8",
    ir.DataType.UINT16: "u16",
    ir.DataType.INT16: "s16",
    ir.DataType.UINT4: "u4",
    ir.DataType.INT4: "s4",
    ir.DataType.INT32: "s32",
    ir.DataType.FLOAT8E4M3FN: "f8",
    ir.DataType.FLOAT8E5M2: "f8",
}


@dataclass(frozen=True, slots=True)
class _Slots:
    """Positions of an integer operator's inputs; None where it has none of the kind."""

    data: int
    weights: int
    data_scale: int | None = None
    data_zero: int | None = None
    scale: int | None = None
    zero: int | None = None
    out_scale: int | None = None


_INTEGER = {
    "QLinearConv": _Slots(0, 3, 1, 2, 4, 5, 6),
    "QLinearMatMul": _Slots(0, 3, 1, 2, 4, 5, 6),
    "QGemm": _Slots(0, 3, 1, 2, 4, 5, 7),
    "ConvInteger": _Slots(0, 1, data_zero=2, zero=3),
    "MatMulInteger": _Slots(0, 1, data_zero=2, zero=3),
    "MatMulIntegerToFloat": _Slots(0, 1, 2, 4, 3, 5),
    "DynamicQuantizeMatMul": _Slots(0, 1, scale=2, zero=3),
    "QAttention": _Slots(0, 1, 3, 6, 4, 7),
    "DynamicQuantizeLSTM": _Slots(0, 1, scale=8, zero=9),
}
_WEIGHT_ONLY = frozenset({"MatMulNBits", "MatMulBnb4", "MatMulFpQ4"})


@dataclass(frozen=True, slots=True)
class Activation:
    """What a product reads.

    Attributes:
        dtype: "u8", "s8", …
        scale: Of its codes; None where it is found at run time.
        zero: Its zero point; None likewise.
        tensor: Name of the tensor that holds the codes; of the float tensor where the operator
            quantizes by itself.
        inside: Whether the operator quantizes by itself.
        per_channel: Whether it has several constant scales.
        found_late: Whether its scale is computed while the model runs.
    """

    dtype: str
    scale: float | None
    zero: int | None
    tensor: str
    inside: bool = False
    per_channel: bool = False
    found_late: bool = False


@dataclass(frozen=True, slots=True)
class Product:
    """One product of a graph.

    Attributes:
        name: Of its node.
        op: Of its node, without Q/DQ around it.
        output: Its first output's name.
        mode: "static" has both factors in integers with known scales, "dynamic" finds the
            activations' scale at run time, "weight-only" stores integers and multiplies floats.
        activation: What it reads, or None in float.
        weights: Its weights in integers; None in float, or where both factors are activations.
        weight_count: Elements of its constant weights, integers or not.
        channels: Output channels, 0 where nothing is constant.
        out_range: Span that its quantized output can hold, in its unit; None where it has none.
        depthwise: Whether it is a convolution of one input and one output channel per group.
    """

    name: str
    op: str
    output: str
    mode: Mode
    activation: Activation | None
    weights: Weights | None
    weight_count: int
    channels: int
    out_range: float | None
    depthwise: bool


def lifted(model: ir.Model) -> ir.Model:
    """The same graph with functions inlined, Constant nodes as initializers and named nodes."""
    model = passes.InlinePass()(model).model
    model = passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(
        model
    ).model
    for i, node in enumerate(model.graph.all_nodes()):
        if not node.name:
            node.name = f"{node.op_type}_{i}"
    return model


def products(model: ir.Model) -> tuple[Product, ...]:
    """Every product of a lifted graph, subgraphs included, in graph order."""
    return tuple(p for node in model.graph.all_nodes() if (p := _product(node)) is not None)


def _product(node: ir.Node) -> Product | None:
    known = node.domain in ("", "ai.onnx", _MICROSOFT)
    if not known:
        return None
    if node.op_type in _INTEGER:
        return _from_integers(node, _INTEGER[node.op_type])
    if node.op_type in _WEIGHT_ONLY:
        return _plain(node, "weight-only", None, None)
    return _from_pairs(node) if node.op_type in _FLOAT_PRODUCTS else None


def _from_integers(node: ir.Node, slots: _Slots) -> Product:
    data = input_of(node, slots.data)
    inside = node.op_type.startswith("DynamicQuantize")
    maker = data.producer() if data is not None else None
    dynamic = inside or (
        array_of(input_of(node, slots.data_scale)) is None and slots.data_scale is not None
    )
    dynamic |= slots.data_scale is None and not _static_source(maker)
    codes = array_of(input_of(node, slots.weights))
    weights = None
    if codes is not None:
        held = array_of(input_of(node, slots.scale)) if slots.scale else _scale_behind(node)
        weights = weights_of(codes, held, array_of(input_of(node, slots.zero)), node)
        weights = _with_recurrent(weights, node)
    scale, zero = (
        array_of(input_of(node, slots.data_scale)),
        array_of(input_of(node, slots.data_zero)),
    )
    activation = Activation(
        dtype="u8" if inside else _dtype(data, input_of(node, slots.data_zero)),
        scale=_one(scale),
        zero=None if zero is None or zero.size != 1 else int(zero.reshape(-1)[0]),
        tensor=str(data.name if data is not None else ""),
        inside=inside,
        found_late=dynamic,
    )
    found = _plain(node, "dynamic" if dynamic else "static", activation, weights)
    span = _one(array_of(input_of(node, slots.out_scale)))
    return found if span is None else replace(found, out_range=255 * span)


def _with_recurrent(weights: Weights, node: ir.Node) -> Weights:
    """An LSTM's weights of its input, joined with those of its own last output."""
    codes = array_of(input_of(node, 2)) if node.op_type == "DynamicQuantizeLSTM" else None
    if codes is None:
        return weights
    scale, zero = (array_of(input_of(node, i)) for i in (10, 11))
    return together(weights, weights_of(codes, scale, zero, node))


def _scale_behind(node: ir.Node) -> NDArray[Any] | None:
    """Scale of a MatMulInteger's or ConvInteger's weights: a factor of what its sums meet."""
    value = node.outputs[0]
    for _ in range(3):
        users = [use.node for use in value.uses()]
        if len(users) != 1 or users[0].op_type not in ("Cast", "Mul"):
            return None
        if users[0].op_type == "Mul":
            factors = [v.producer() for v in users[0].inputs if v is not None and v is not value]
            inner = [v for m in factors if m is not None and m.op_type == "Mul" for v in m.inputs]
            return next((a for v in inner if (a := array_of(v)) is not None), None)
        value = users[0].outputs[0]
    return None


def _static_source(maker: ir.Node | None) -> bool:
    return maker is not None and maker.op_type == "QuantizeLinear"


def _from_pairs(node: ir.Node) -> Product:
    first, second = input_of(node, 0), input_of(node, 1)
    activation, weights = activation_of(first), held_weights(second, node)
    other = activation_of(second) if weights is None else None
    mode: Mode = "float"
    if activation is not None and (weights is not None or other is not None):
        mode = "dynamic" if activation.found_late else "static"
    elif weights is not None:
        mode, activation = "weight-only", None
    else:
        activation = None
    found = _plain(node, mode, activation, weights)
    return replace(found, out_range=_range_after(node))


def _plain(
    node: ir.Node, mode: Mode, activation: Activation | None, weights: Weights | None
) -> Product:
    shape = weights.codes.shape if weights is not None else shape_of(input_of(node, 1))
    count = int(np.prod(shape)) if shape else 0
    if node.op_type == "DynamicQuantizeLSTM":
        # Its codes are two matrices, one of them filled up.
        count = sum(int(np.prod(shape_of(input_of(node, i)))) for i in (1, 2))
    first = weights is not None or node.op_type in ("Conv", "FusedConv")
    channels = (shape[0] if first else shape[-1]) if shape else 0
    groups = integer_of(node, "group", 1)
    conv = "Conv" in node.op_type and weights is not None and "Transpose" not in node.op_type
    deep = conv and weights is not None and weights.codes.shape[1] == 1 and groups == channels
    return Product(
        name=str(node.name),
        op=node.op_type,
        output=str(node.outputs[0].name),
        mode=mode,
        activation=activation,
        weights=weights,
        weight_count=count,
        channels=channels,
        out_range=None,
        depthwise=deep and groups > 1,
    )


def _range_after(node: ir.Node) -> float | None:
    """Span of the QuantizeLinear behind a node, looked for past a Relu, a Clip or a bias."""
    value = node.outputs[0]
    for _ in range(4):
        users = [use.node for use in value.uses()]
        for user in users:
            if user.op_type == "QuantizeLinear":
                scale = _one(array_of(input_of(user, 1)))
                return None if scale is None else 255 * scale
        if len(users) != 1 or users[0].op_type not in ("Relu", "Clip", "Add"):
            return None
        value = users[0].outputs[0]
    return None


def activation_of(value: ir.Value | None) -> Activation | None:
    """What a float tensor was before the DequantizeLinear that made it; None if there is none."""
    for _ in range(8):
        maker = value.producer() if value is not None else None
        if maker is None:
            return None
        if maker.op_type == "DequantizeLinear":
            codes = input_of(maker, 0)
            if codes is None or array_of(codes) is not None:
                return None
            scale, zero = array_of(input_of(maker, 1)), array_of(input_of(maker, 2))
            return Activation(
                dtype=_dtype(codes, input_of(maker, 2)),
                scale=_one(scale),
                zero=0 if _has_no_zero(maker) else None if zero is None else int(zero.max()),
                tensor=str(codes.name),
                per_channel=scale is not None and scale.size > 1,
                found_late=scale is None,
            )
        if maker.op_type not in _MOVES:
            return None
        value = input_of(maker, 0)
    return None


def _has_no_zero(node: ir.Node) -> bool:
    """Whether a QuantizeLinear or DequantizeLinear leaves its zero point out, so that it is 0."""
    return len(node.inputs) < 3 or node.inputs[2] is None


def _one(values: NDArray[Any] | None) -> float | None:
    return float(values.reshape(-1)[0]) if values is not None and values.size == 1 else None


def _dtype(codes: ir.Value | None, zero: ir.Value | None) -> str:
    for value in (codes, zero):
        if value is None:
            continue
        kind = value.dtype or (value.const_value.dtype if value.const_value else None)
        if kind is not None:
            return _SHORT.get(kind, kind.name.lower())
    return "u8"


def dequantized(model: ir.Model) -> Iterator[tuple[ir.Node, NDArray[Any]]]:
    """Every QuantizeLinear and DequantizeLinear with a constant scale, and that scale."""
    for node in model.graph.all_nodes():
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale = array_of(input_of(node, 1))
            if scale is not None:
                yield node, scale
