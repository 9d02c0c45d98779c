"""Q/DQ graphs that another package wrote, made fit for both runtimes and for the target."""

from typing import Any

import numpy as np
import onnx_ir as ir

from quantize.anchors import Anchor
from quantize.quantizers.native import QuantizedLayer
from quantize.recipe import Recipe
from quantize.targets import TARGETS, can_saturate

# Two neighbours of at most 64 cannot leave 16 bits: 255 * (64 + 64) = 32,640.
_SAFE_CODE = 64
# Past which ONNX Runtime moves a DequantizeLinear by itself.
_MOVES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})


def own_constants(model: ir.Model) -> None:
    """Give every Q/DQ pair a scale and a zero point of its own.

    ONNX Runtime's exact mode rejects a graph in which different tensors share a zero point.
    """
    taken = {str(v.name) for n in model.graph for v in n.outputs} | set(model.graph.initializers)
    owner: dict[str, str] = {}
    for node in model.graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        pair = str(_quantized(node).name)
        for i in range(1, len(node.inputs)):
            value = node.inputs[i]
            if value is None or value.const_value is None:
                continue
            name = str(value.name)
            if owner.setdefault(name, pair) == pair:
                continue
            fresh = f"{name}_of_{pair}"
            if fresh not in taken:
                taken.add(fresh)
                copy = ir.Value(name=fresh, shape=value.shape, type=value.type)
                copy.const_value = ir.Tensor(value.const_value.numpy(), name=fresh)
                model.graph.register_initializer(copy)
            node.replace_input_with(i, model.graph.initializers[fresh])


def unsign(model: ir.Model) -> None:
    """Write s8 activations as u8, which both runtimes are faster with: code and zero point + 128.

    The values stay what they were, bit by bit. Only for pairs; s8 weights are meant to be s8.
    """
    points = {}
    for node in model.graph:
        if node.op_type == "QuantizeLinear" and len(node.inputs) > 2:
            point = node.inputs[2]
            if point is not None and is_constant(point) and point.dtype == ir.DataType.INT8:
                points[str(point.name)] = (point, node.outputs[0])
    for point, codes in points.values():
        assert point.const_value is not None
        shifted = (point.const_value.numpy().astype(np.int16) + 128).astype(np.uint8)
        point.const_value = ir.Tensor(shifted, name=point.name)
        point.type = ir.TensorType(ir.DataType.UINT8)
        codes.type = ir.TensorType(ir.DataType.UINT8)


def _quantized(node: ir.Node) -> ir.Value:
    """The tensor of codes that a QuantizeLinear makes or a DequantizeLinear reads."""
    value = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    assert value is not None
    return value


def layers_of(
    model: ir.Model, anchors: tuple[Anchor, ...], recipe: Recipe, kept: str
) -> tuple[QuantizedLayer, ...]:
    """What became of each anchor, its weights made safe for the target.

    Args:
        model: Changed in place; its nodes have the names of the anchors.
        anchors: Of the FP32 graph.
        recipe: Modes and target.
        kept: Why a layer that was asked for is in float all the same.
    """
    nodes = {str(n.name): n for n in model.graph}
    layers = []
    for anchor in anchors:
        node = nodes.get(anchor.name)
        pair = weight_pair(node) if node is not None else None
        if pair is None:
            reason = kept if recipe.modes.get(anchor.name) == "static" else None
            layers.append(QuantizedLayer(anchor.name, anchor.op, "float", 0, 0, reason))
            continue
        narrow = TARGETS[recipe.target].narrow and not anchor.depthwise
        if narrow:
            _halve(pair, anchor.out_axis)
        codes = np.moveaxis(held(pair.inputs[0]), anchor.out_axis, 0)
        safe = np.abs(codes.astype(np.int16)).reshape(len(codes), -1).max(axis=1) <= _SAFE_CODE
        narrowed = int(safe.sum()) if narrow else 0
        layers.append(QuantizedLayer(anchor.name, anchor.op, "static", narrowed, len(codes), None))
    return tuple(layers)


def weight_pair(node: ir.Node) -> ir.Node | None:
    """The DequantizeLinear of a node's weights, None where they are in float.

    The engines quantize weights only where activations are quantized too, if some steps earlier.
    """
    weights = node.inputs[1]
    pair = weights.producer() if weights is not None else None
    if pair is None or pair.op_type != "DequantizeLinear" or not is_constant(pair.inputs[0]):
        return None
    return pair


def data_pair(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that a tensor comes from, seen through what only moves its values."""
    maker = value.producer() if value is not None else None
    while maker is not None and maker.op_type in _MOVES and maker.inputs[0] is not None:
        maker = maker.inputs[0].producer()
    return maker if maker is not None and maker.op_type == "DequantizeLinear" else None


def _halve(pair: ir.Node, axis: int) -> None:
    """Halve the codes of the output channels that could saturate, and double their scales."""
    codes = np.moveaxis(held(pair.inputs[0]), axis, 0)
    scales = held(pair.inputs[1])
    wide = can_saturate(codes)
    if scales.ndim == 0:
        wide[:] = wide.any()
    if not wide.any():
        return
    codes = codes.copy()
    codes[wide] = np.rint(codes[wide] / 2).astype(np.int8)
    scales = scales * np.where(wide if scales.ndim else wide.any(), 2, 1).astype(np.float32)
    for value, values in zip(pair.inputs, (np.moveaxis(codes, 0, axis), scales), strict=False):
        assert value is not None
        value.const_value = ir.Tensor(np.ascontiguousarray(values), name=value.name)


def held(value: ir.Value | None) -> np.ndarray[tuple[int, ...], np.dtype[Any]]:
    """The values of a constant."""
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is there and known before the model runs."""
    return value is not None and value.const_value is not None
