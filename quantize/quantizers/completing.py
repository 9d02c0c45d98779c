"""Pairs that ONNX Runtime needs for its integer kernels and other packages leave out.

    graph of another engine ─▶ pairs behind convolutions and sums ─▶ biases of Gemm as integers

Engines place pairs for the compiler that they come with. Inductor and OpenVINO fuse a convolution
with the sum behind it, so nothing stands between the two; ONNX Runtime then runs that convolution
in float, with its weights turned back into floats first, and the layout is changed twice around it.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from quantize.anchors import Anchor, end_of, integer_of
from quantize.histograms import TensorStatistics
from quantize.quantizers.editing import Editor
from quantize.quantizers.pairs import data_pair, held, is_constant, weight_pair
from quantize.quantizers.reading import bias_of
from quantize.quantizers.weights import INT32_MAX, quantize_bias
from quantize.ranges import minmax_range

# Which ONNX Runtime runs in integers where every side has a pair.
_GLUE = frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"})
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def complete(
    model: ir.Model, anchors: tuple[Anchor, ...], seen: Mapping[str, TensorStatistics]
) -> None:
    """Put in what ONNX Runtime needs to run every layer with INT8 weights in integers, in place.

    Args:
        model: With pairs; its layers have the names of the anchors.
        anchors: Of the FP32 graph.
        seen: Statistics of that graph's tensors, for pairs that are new.
    """
    editor = Editor(model)
    layers = {a.name: a for a in anchors}
    for node in list(model.graph):
        anchor = layers.get(str(node.name))
        if anchor is None:
            if node.op_type in _GLUE and _reads_integers(node):
                _close(editor, node, None)
        elif weight_pair(node) is not None and data_pair(node.inputs[0]) is not None:
            if anchor.op == "Conv":
                _close(editor, node, seen.get(anchor.end))
            elif anchor.op == "Gemm":
                _integer_bias(editor, node, anchor)
    editor.drop_unused()
    # What reads a pair now may have stood before it.
    model.graph.sort()


def _close(editor: Editor, node: ir.Node, seen: TensorStatistics | None) -> None:
    """Let all that reads a node's result read it through one pair."""
    end = editor.values[end_of(node)]
    uses = [
        u for u in end.uses() if u.node.op_type != "QuantizeLinear" and not _stays_float(u.node)
    ]
    there = [u.node for u in end.uses() if u.node.op_type == "QuantizeLinear"]
    if not uses and not end.is_graph_output():
        return
    known = [d for q in there for d in q.outputs[0].consumers() if d.op_type == "DequantizeLinear"]
    if known:
        back = known[0]
    elif seen is not None and seen.count and not seen.nonfinite:
        _, back = editor.pair_behind(end, minmax_range(seen))
    else:
        return
    for use in uses:
        use.node.replace_input_with(use.idx, back.outputs[0])
    editor.move_output(end, back.outputs[0])


def _stays_float(node: ir.Node) -> bool:
    """Whether it is a layer that was kept in float, and reads what was not rounded."""
    return node.op_type in _LAYERS and is_constant(node.inputs[1])


def _reads_integers(node: ir.Node) -> bool:
    """Whether all that a node reads comes through pairs."""
    return all(data_pair(v) is not None for v in node.inputs if v is not None)


def _integer_bias(editor: Editor, node: ir.Node, anchor: Anchor) -> None:
    """Write the bias of a Gemm in the units that its integer kernel adds up in."""
    data, weights = data_pair(node.inputs[0]), weight_pair(node)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    factors = {n: node.attributes[n].as_float() for n in ("alpha", "beta") if n in node.attributes}
    if data is None or weights is None or bias is None or not is_constant(bias):
        return
    if any(f != 1.0 for f in factors.values()) or integer_of(node, "transA", 0):
        return
    channels = int(held(weights.inputs[0]).shape[anchor.out_axis])
    scales = np.broadcast_to(held(weights.inputs[1]), (channels,)).astype(np.float32)
    step = np.float32(held(data.inputs[1]).reshape(-1)[0])
    values = bias_of(node, channels)
    if (np.abs(values) > step * scales.astype(np.float64) * (INT32_MAX // 2)).any():
        return
    editor.integer_bias(node, *quantize_bias(values, step, scales))
