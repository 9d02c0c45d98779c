"""What the quantizer reads from a graph: constants, channels, ranges."""

from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.anchors import Anchor, integer_of
from quantize.calibrate import Calibration
from quantize.placement import Placement
from quantize.ranges import RANGE_METHODS, Range
from quantize.recipe import Recipe

V = TypeVar("V", bound=np.generic)
# Rows and columns that are turned together.
_TILE = 256


def choose_ranges(
    placement: Placement, calibration: Calibration, recipe: Recipe, anchors: tuple[Anchor, ...]
) -> dict[str, Range]:
    """The range of every quantized tensor that has a scale of its own."""
    methods = {
        placement.tensors[a.data]: recipe.ranges_by_tensor[a.name]
        for a in anchors
        if a.name in recipe.ranges_by_tensor and a.data in placement.tensors
    }
    return {
        name: RANGE_METHODS[methods.get(name, recipe.ranges)](calibration.tensors[name])
        for name in sorted(set(placement.tensors.values()))
    }


def keeps_float_weights(node: ir.Node) -> bool:
    """Whether it is a Conv, ConvTranspose or Gemm whose weights are float constants."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm"):
        return False
    weights = node.inputs[1]
    return weights is not None and weights.is_initializer()


def input_channels(node: ir.Node) -> int:
    """Channels that a Conv, ConvTranspose or Gemm reads, counted on its weights."""
    shape = constant_of(node.inputs[1]).shape
    if node.op_type == "Conv":
        return int(shape[1]) * integer_of(node, "group", 1)
    if node.op_type == "ConvTranspose":
        return int(shape[0])
    return int(shape[1] if integer_of(node, "transB", 0) else shape[0])


def codes_of(values: NDArray[np.float32], chosen: Range) -> NDArray[np.uint8]:
    """Values as unsigned 8-bit codes of a range."""
    codes: NDArray[np.uint8] = np.clip(
        np.rint(values / chosen.scale) + chosen.zero_point, 0, 255
    ).astype(np.uint8)
    return codes


def constant_of(value: ir.Value | None) -> NDArray[np.float32]:
    """What an initializer holds, as float32."""
    assert value is not None
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy(), np.float32)


def bias_of(node: ir.Node, channels: int) -> NDArray[np.float64]:
    """The bias of a Conv or Gemm, one value per channel; zeros for what has none."""
    if node.op_type == "MatMul" or len(node.inputs) < 3 or node.inputs[2] is None:
        return np.zeros(channels)
    flat = constant_of(node.inputs[2]).reshape(-1)
    return np.broadcast_to(flat, (channels,)).astype(np.float64)


def channels_first(weights: NDArray[V], axis: int) -> NDArray[V]:
    """Weights with their output channels on the first axis, which may be a view of them."""
    return _turned(weights) if weights.ndim == 2 and axis else _moved(weights, axis, 0)


def channels_at(codes: NDArray[V], axis: int) -> NDArray[V]:
    """What has its output channels on the first axis, with them on another."""
    return _turned(codes) if codes.ndim == 2 and axis else _moved(codes, 0, axis)


def _moved(values: NDArray[V], start: int, end: int) -> NDArray[V]:
    return np.ascontiguousarray(np.moveaxis(values, start, end))


def _turned(values: NDArray[V]) -> NDArray[V]:
    """A matrix transposed, tile by tile: several times as fast as numpy where it is large."""
    rows, columns = values.shape
    turned = np.empty((columns, rows), values.dtype)
    for i in range(0, rows, _TILE):
        for j in range(0, columns, _TILE):
            turned[j : j + _TILE, i : i + _TILE] = values[i : i + _TILE, j : j + _TILE].T
    return turned
