"""Layers that another package quantized, their weights rounded anew and their biases corrected.

    pairs of the package ─▶ what a layer reads, as codes ─▶ its FP32 weights tried on such rows
    ─▶ codes, and the mean error into its bias

Pairs of activations stay as the package made them.
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bench.models import Model
from quantize.anchors import Anchor, integer_of
from quantize.calibrate import Calibration
from quantize.graphs import opened
from quantize.quantizers.editing import Editor
from quantize.quantizers.fitting import Fitter
from quantize.quantizers.pairs import data_pair, held, is_constant, weight_pair
from quantize.quantizers.reading import bias_of, channels_at, channels_first, constant_of
from quantize.quantizers.weights import least_scales
from quantize.ranges import Range
from quantize.recipe import Recipe
from quantize.targets import U8_MAX


def refit(
    model: ir.Model,
    source: Model,
    anchors: tuple[Anchor, ...],
    calibration: Calibration,
    recipe: Recipe,
) -> None:
    """Round the weights of every layer that reads codes as the recipe says, in place.

    A layer is left as it is where its weights are not those of FP32, rounded: the package has then
    folded something into them, and what they read is not what FP32 feeds them either.

    Args:
        model: With u8 pairs; its layers have the names of the anchors.
        source: The FP32 model.
        anchors: Of its graph.
        calibration: Of the same model; has rows of what its layers read.
        recipe: Target, bias correction, rounding.
    """
    editor = Editor(model)
    with opened(source.path) as fp32:
        nodes = {str(n.name): n for n in fp32.graph.all_nodes()}
        fitter = Fitter(nodes, anchors, calibration.rows, recipe)
        for anchor in anchors:
            node = editor.nodes.get(anchor.name)
            reads = data_pair(node.inputs[0]) if node is not None else None
            pair = weight_pair(node) if node is not None else None
            if node is None or reads is None or pair is None:
                continue
            weights = constant_of(nodes[anchor.name].inputs[1])
            if _is_rounded(node, pair, channels_first(weights, anchor.out_axis)):
                _fit(editor, fitter, anchor, weights, _range_of(reads))
    editor.drop_unused()


def _is_rounded(node: ir.Node, pair: ir.Node, weights: NDArray[np.float32]) -> bool:
    """Whether a pair holds these weights, channels first, rounded, and nothing scales them."""
    factors = [node.attributes[n].as_float() for n in ("alpha", "beta") if n in node.attributes]
    codes = channels_first(held(pair.inputs[0]), _axis(pair))
    if codes.shape != weights.shape or any(f != 1.0 for f in factors):
        return False
    steps = np.broadcast_to(held(pair.inputs[1]), len(codes)).reshape(-1, *[1] * (codes.ndim - 1))
    # Half a step, and what folding a normalization in another order costs.
    return bool((np.abs(codes * steps - weights) <= 0.51 * steps).all())


def _axis(pair: ir.Node) -> int:
    """Of a layer's weights, the axis that counts output channels."""
    return integer_of(pair, "axis", 1) % held(pair.inputs[0]).ndim


def _range_of(reads: ir.Node) -> Range:
    scale = float(held(reads.inputs[1]).reshape(-1)[0])
    point = int(held(reads.inputs[2]).reshape(-1)[0])
    return Range(-point * scale, (U8_MAX - point) * scale)


def _fit(
    editor: Editor, fitter: Fitter, anchor: Anchor, weights: NDArray[np.float32], source: Range
) -> None:
    """New codes for one layer, and the mean error into its bias where there is one to take it."""
    node = editor.nodes[anchor.name]
    channels, product = weights.shape[anchor.out_axis], node.op_type == "MatMul"
    if product:
        movable = editor.added_constant(node, channels) is not None
    else:
        movable = len(node.inputs) < 3 or node.inputs[2] is None or is_constant(node.inputs[2])
    bias = bias_of(node, channels) if movable else np.zeros(channels)
    room = None if product else least_scales(bias.astype(np.float32), source.scale)
    found = fitter.fit(anchor, weights, source, room, movable=movable)
    pair = weight_pair(node)
    assert pair is not None
    axis, name = _axis(pair), f"{anchor.name}_weights"
    codes = channels_at(found.codes.codes, axis)
    pair.replace_input_with(0, editor.constant(f"{name}_quantized", codes))
    pair.replace_input_with(1, editor.constant(f"{name}_scale", found.codes.scales))
    zeros = np.zeros(channels, np.int8)
    pair.replace_input_with(2, editor.constant(f"{name}_zero_point", zeros))
    pair.attributes["axis"] = ir.AttrInt64("axis", axis)
    if product:
        editor.shift_following_add(node, found.shift)
    elif found.corrected:
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        moved = (bias + found.shift).astype(np.float32)
        node.replace_input_with(2, editor.constant(f"{anchor.name}_bias", moved))
