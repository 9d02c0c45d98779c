"""What the quantizer reads from a graph: constants, channels, ranges."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.anchors import Anchor, integer_of
from quantize.calibrate import Calibration
from quantize.placement import Placement
from quantize.ranges import RANGE_METHODS, Range
from quantize.recipe import Recipe


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


def channels_first(weights: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Weights with their output channels on the first axis."""
    return np.ascontiguousarray(np.moveaxis(weights, axis, 0))
