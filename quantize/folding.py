"""Constant factors and offsets folded into the weights and biases of layers beside them.

Conv ─▶ Mul ─▶ Add            becomes Conv
BatchNormalization ─▶ Conv    becomes Conv
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.nodes import float_constant, set_input, take_over


def fold_affine(model: ir.Model) -> int:
    """Fold Mul and Add by constants, per tensor or per channel, into the convolution before them.

    ONNX Runtime's own passes leave constants of shape [1] alone. Unfolded, each is one more pass
    over memory, and it keeps an INT8 convolution from handing on integers.

    Returns:
        How many were folded.
    """
    changed = 0
    for node in list(model.graph):
        while node.op_type == "Conv" and not node.domain and _absorb(node, model.graph):
            changed += 1
    return changed


def _absorb(conv: ir.Node, graph: ir.Graph) -> bool:
    """Take the one node that reads `conv` into its weights and bias, if it is affine."""
    value = conv.outputs[0]
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return False
    after = uses[0].node
    if after.op_type not in ("Mul", "Add") or after.domain or after.graph is not graph:
        return False
    weights, bias = float_constant(conv, 1), float_constant(conv, 2)
    constant = float_constant(after, 1 - uses[0].idx)
    if weights is None or constant is None or not _has_constants(conv):
        return False
    channels = _per_channel(constant, len(weights), weights.ndim)
    if channels is None:
        return False
    if bias is None:
        bias = np.zeros(len(weights), np.float32)
    if after.op_type == "Mul":
        weights = weights * channels.reshape(-1, *[1] * (weights.ndim - 1))
        set_input(conv, 1, weights, graph)
        bias = bias * channels
    else:
        bias = bias + channels
    set_input(conv, 2, bias, graph)
    take_over(after, conv, graph)
    return True


def _per_channel(
    constant: NDArray[np.float32], channels: int, rank: int
) -> NDArray[np.float32] | None:
    """A constant as one value per channel, or None where it varies along another axis."""
    if constant.size == 1 and constant.ndim <= rank:
        return np.full(channels, constant.reshape(-1)[0], np.float32)
    # Broadcasting aligns from the right, so channels stand `rank - 1` axes from the end.
    fits = constant.size == channels and constant.ndim in (rank - 1, rank)
    if fits and constant.shape[-(rank - 1)] == channels:
        return constant.reshape(-1)
    return None


def fold_late_norms(model: ir.Model) -> int:
    """Fold batch norms that stand behind an activation, where no runtime folds them.

    What reads the norm takes all of it, unless it pads: its zeros would have to be shifted too. A
    positive factor passes through a Relu as well, so that the convolution before it can take it;
    an addition is left then, for which there is an INT8 kernel.

    Returns:
        How many were folded.
    """
    graph, changed = model.graph, 0
    for node in list(graph):
        if node.op_type != "BatchNormalization" or node.domain or len(node.outputs) > 1:
            continue
        affine, data = _affine_of(node), node.inputs[0]
        if affine is None or data is None:
            continue
        factors, shift = affine
        uses, shown = list(node.outputs[0].uses()), node.outputs[0].is_graph_output()
        maker = _maker_behind(node)
        if uses and not shown and all(_takes_shift(use.node) for use in uses):
            for use in uses:
                _fold_into_reader(use.node, factors, shift, graph)
            node.outputs[0].replace_all_uses_with(data)
            graph.remove(node, safe=True)
        elif maker is not None and (factors > 0).all():
            _scale_outputs(maker, factors, graph)
            add = ir.node("Add", [data, data], name=f"{node.name}_shift")
            graph.insert_before(node, add)
            rank = len(maker.inputs[1].shape)  # type: ignore[union-attr, arg-type]
            set_input(add, 1, shift.reshape(-1, *[1] * (rank - 2)), graph)
            take_over(node, add, graph)
        else:
            continue
        changed += 1
    return changed


def _affine_of(norm: ir.Node) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """The factor and the shift per channel that a batch norm applies, in inference."""
    arrays = [float_constant(norm, i) for i in range(1, 5)]
    if any(a is None for a in arrays):
        return None
    scale, bias, mean, variance = (np.asarray(a, np.float64) for a in arrays)
    epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
    factors = scale / np.sqrt(variance + epsilon)
    return factors.astype(np.float32), (bias - mean * factors).astype(np.float32)


def _maker_behind(norm: ir.Node) -> ir.Node | None:
    """The convolution whose Relu alone a batch norm reads, if its constants can take a factor."""
    value = norm.inputs[0]
    for wanted in (("Relu", "LeakyRelu", "PRelu"), ("Conv",)):
        maker = value.producer() if value is not None else None
        if maker is None or maker.op_type not in wanted or maker.domain:
            return None
        if value is None or len(value.uses()) != 1 or value.is_graph_output():
            return None
        value = maker.inputs[0]
    return maker if maker is not None and _has_constants(maker) else None


def _has_constants(node: ir.Node) -> bool:
    """Whether weights and bias, if any, are float constants."""
    biased = len(node.inputs) > 2 and node.inputs[2] is not None
    weights, bias = float_constant(node, 1), float_constant(node, 2)
    return weights is not None and (bias is not None or not biased)


def _takes_shift(node: ir.Node) -> bool:
    """Whether a node's constants can take a factor and a shift of its input's channels."""
    if node.domain or node.op_type not in ("Conv", "Gemm") or not _has_constants(node):
        return False
    known = node.attributes
    if node.op_type == "Gemm":
        plain = all(known[k].as_float() == 1.0 for k in ("alpha", "beta") if k in known)
        return plain and not ("transA" in known and known["transA"].as_int())
    if "auto_pad" in known and known["auto_pad"].as_string() not in ("NOTSET", "VALID"):
        return False
    return "pads" not in known or not any(known["pads"].as_ints())


def _fold_into_reader(
    node: ir.Node, factors: NDArray[np.float32], shift: NDArray[np.float32], graph: ir.Graph
) -> None:
    """W (a x + d) + b = (W a) x + (b + W d), per input channel."""
    weights, bias = float_constant(node, 1), float_constant(node, 2)
    assert weights is not None
    turned = node.op_type == "Gemm" and not (
        "transB" in node.attributes and node.attributes["transB"].as_int()
    )
    first = weights.T if turned else weights
    # [groups, out channels / groups, in channels / groups, taps]
    groups = len(factors) // first.shape[1]
    split = first.reshape(groups, len(first) // groups, first.shape[1], -1)
    moved = np.einsum("goit,gi->go", split, shift.reshape(groups, -1)).reshape(-1)
    scaled = (split * factors.reshape(groups, 1, -1, 1)).reshape(first.shape)
    set_input(node, 1, scaled.T if turned else scaled, graph)
    set_input(node, 2, moved if bias is None else moved + bias, graph)


def _scale_outputs(conv: ir.Node, factors: NDArray[np.float32], graph: ir.Graph) -> None:
    weights, bias = float_constant(conv, 1), float_constant(conv, 2)
    assert weights is not None
    set_input(conv, 1, weights * factors.reshape(-1, *[1] * (weights.ndim - 1)), graph)
    if bias is not None:
        set_input(conv, 2, bias * factors, graph)
