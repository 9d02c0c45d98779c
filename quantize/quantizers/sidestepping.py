"""INT8 graphs in forms that OpenVINO computes right, where it computes an equal form wrong.

    graph of any engine ─▶ zero points in biases, kernels with a tap of zeros ─▶ the same function

Two kernels of OpenVINO return garbage. Neither shows in ONNX Runtime, and the second shows on CPUs
with AMX only, so that a model may pass where it is made and fail where it is served:

- Matrix products without a bias, of two axes, few rows (8, not 12), inputs and outputs (256, not
  512), whose input has a zero point and whose output is quantized too: wrong with one thread, or
  with few rows per thread (2025.4 to 2026.4; not 2024.6).
- Convolutions without dilation of 4, 8, … 28 input channels per group, where a row of the kernel
  with all its channels fills two or more tiles of 64 bytes exactly: wrong with any number of
  threads (2024.6 to 2026.4).

`tests/quantize/test_sidestepping.py` has both, and says so when OpenVINO mends them.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from quantize.anchors import integer_of
from quantize.quantizers.editing import Editor
from quantize.quantizers.pairs import data_pair, held, is_constant, weight_pair

# Bytes in a row of an AMX tile, and channels from which on rows of kernels are not joined.
_TILE, _CHANNELS = 64, 32
# Codes that AMX multiplies at once.
_AT_ONCE = 4
# Inputs or outputs from which on products are right.
_LARGE = 512


def sidestep(model: ir.Model) -> None:
    """Write what OpenVINO computes wrong in a form that it computes right, in place.

    Args:
        model: An INT8 graph with Q/DQ pairs, of any engine.
    """
    editor = Editor(model)
    for node in list(model.graph):
        if node.op_type == "Conv":
            _add_tap(editor, node)
        elif node.op_type in ("MatMul", "Gemm"):
            _fold_zero_point(editor, node)
    editor.drop_unused()


def misread(model: ir.Model) -> Iterator[str]:
    """Names of the layers that OpenVINO computes wrong as they stand, in a file of any origin.

    Args:
        model: With Q/DQ pairs.
    """
    for node in model.graph:
        pair = weight_pair(node) if node.op_type in ("Conv", "MatMul", "Gemm") else None
        if pair is None or data_pair(node.inputs[0]) is None:
            continue
        kernel = held(pair.inputs[0]).shape
        if node.op_type == "Conv":
            wrong = len(kernel) > 2 and is_misread(kernel, _dilations(node, len(kernel) - 2)[-1])
        else:
            small = len(kernel) == 2 and max(kernel) < _LARGE
            wrong = small and _loses_zero_point(node) is not None and _ends_quantized(node)
        if wrong:
            yield str(node.name)


def is_misread(kernel: tuple[int, ...], dilation: int = 1) -> bool:
    """Whether OpenVINO 2026.4's AMX kernel computes a convolution wrong.

    Args:
        kernel: Of its weights: output channels, input channels per group, taps of every axis.
        dilation: Along the last axis.
    """
    channels, row = kernel[1], kernel[1] * kernel[-1]
    joined = dilation == 1 and channels < _CHANNELS and channels % _AT_ONCE == 0
    return joined and row > _TILE and row % _TILE == 0


def _add_tap(editor: Editor, conv: ir.Node) -> None:
    """Give the rows of a kernel one more tap, of zeros, and the input as much more padding."""
    pair = weight_pair(conv)
    if pair is None or data_pair(conv.inputs[0]) is None or len(pair.outputs[0].uses()) > 1:
        return
    codes = held(pair.inputs[0])
    dilations = _dilations(conv, codes.ndim - 2)
    pads = _pads(conv, codes.shape[2:], dilations)
    if not is_misread(codes.shape, dilations[-1]) or not _is_symmetric(pair) or pads is None:
        return
    wider = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, 1)])
    name = f"{conv.name}_weight_with_tap"
    pair.replace_input_with(0, editor.constant(name, wider))
    pair.outputs[0].shape = ir.Shape(wider.shape)
    conv.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", wider.shape[2:])
    conv.attributes["pads"] = ir.AttrInt64s("pads", [*pads[:-1], pads[-1] + 1])
    conv.attributes.pop("auto_pad", None)


def _dilations(conv: ir.Node, axes: int) -> Sequence[int]:
    return conv.attributes.get_ints("dilations", [1] * axes)


def _pads(conv: ir.Node, taps: tuple[int, ...], dilations: Sequence[int]) -> list[int] | None:
    """Padding before and after every axis; None where the length of the input decides it."""
    kind = conv.attributes.get_string("auto_pad", "NOTSET")
    if not kind.startswith("SAME"):
        zeros = [0] * (2 * len(taps))
        return list(conv.attributes.get_ints("pads", zeros)) if kind == "NOTSET" else zeros
    if any(s != 1 for s in conv.attributes.get_ints("strides", [1])):
        return None
    whole = [(t - 1) * d for t, d in zip(taps, dilations, strict=True)]
    less, more = [w // 2 for w in whole], [w - w // 2 for w in whole]
    return [*more, *less] if kind == "SAME_LOWER" else [*less, *more]


def _fold_zero_point(editor: Editor, node: ir.Node) -> None:
    """Let a product of two matrices read codes without a zero point, which moves into a bias.

    (q - z) w = q w - z (sum of w), in whole numbers, so that not a bit changes. OpenVINO drops a
    bias of zeros, so that alone would not help.
    """
    back, weights = _loses_zero_point(node), weight_pair(node)
    if back is None or weights is None or not _is_symmetric(weights):
        return
    codes, step, point = held(weights.inputs[0]), held(back.inputs[1]), held(back.inputs[2])
    if codes.ndim != 2 or step.size != 1 or integer_of(node, "transA", 0):
        return
    out_axis = 0 if integer_of(node, "transB", 0) else 1
    shift = -int(point.reshape(-1)[0]) * codes.sum(axis=1 - out_axis, dtype=np.int32)
    scales = np.broadcast_to(held(weights.inputs[1]), shift.shape)
    node.replace_input_with(0, _without_point(editor, node, back))
    if not back.outputs[0].uses() and not back.outputs[0].is_graph_output():
        editor.graph.remove(back, safe=True)
    node.op_type = "Gemm"
    editor.integer_bias(node, shift, (step.reshape(-1)[0] * scales).astype(np.float32))


def _loses_zero_point(node: ir.Node) -> ir.Node | None:
    """What a product reads, where that has a zero point that OpenVINO cannot add to a bias."""
    data = node.inputs[0]
    back = data.producer() if data is not None else None
    if back is None or back.op_type != "DequantizeLinear" or not _has_zero_point(back):
        return None
    return back if _lacks_bias(node, back) else None


def _ends_quantized(node: ir.Node) -> bool:
    """Whether what comes out, a Relu or Clip behind it included, is quantized."""
    (end,) = node.outputs
    readers = end.consumers()
    if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
        readers = readers[0].outputs[0].consumers()
    return any(r.op_type == "QuantizeLinear" for r in readers)


def _without_point(editor: Editor, node: ir.Node, back: ir.Node) -> ir.Value:
    """The same codes as if their zero point were 0."""
    name = f"{node.name}_data"
    zero = editor.constant(f"{name}_zero_point", np.zeros_like(held(back.inputs[2])))
    pair = ir.node("DequantizeLinear", [*back.inputs[:2], zero], name=editor.free(name))
    pair.outputs[0].name = editor.free(f"{name}_dequantized")
    pair.outputs[0].shape, pair.outputs[0].type = back.outputs[0].shape, back.outputs[0].type
    editor.graph.insert_after(back, pair)
    return pair.outputs[0]


def _lacks_bias(node: ir.Node, back: ir.Node) -> bool:
    """Whether it is a product of two axes that no constant but zeros is added to."""
    if node.op_type == "Gemm":
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        pair = bias.producer() if bias is not None else None
        if pair is not None and pair.op_type == "DequantizeLinear":
            bias = pair.inputs[0]
        return bias is None or (is_constant(bias) and not _is_shift(bias))
    readers = [use.node for use in node.outputs[0].uses()]
    added = len(readers) == 1 and readers[0].op_type == "Add"
    return _rank(node, back) == 2 and not (added and any(map(_is_shift, readers[0].inputs)))


def _is_shift(value: ir.Value | None) -> bool:
    return is_constant(value) and bool(held(value).any())


def _rank(node: ir.Node, back: ir.Node) -> int | None:
    """Axes of what a product reads or returns, where a shape tells."""
    maker = back.inputs[0].producer() if back.inputs[0] is not None else None
    rounded = maker.inputs[:1] if maker is not None else ()
    for value in (node.outputs[0], *node.inputs[:1], back.inputs[0], *rounded):
        if value is not None and value.shape is not None:
            return len(value.shape)
    return None


def _has_zero_point(pair: ir.Node) -> bool:
    return len(pair.inputs) > 2 and _is_shift(pair.inputs[2])


def _is_symmetric(pair: ir.Node) -> bool:
    return not _has_zero_point(pair)
