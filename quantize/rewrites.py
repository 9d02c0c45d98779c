"""Rewrites of the FP32 graph that keep what it computes and give the runtimes better operators."""

import logging

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common as passes

logger = logging.getLogger(__name__)

_HARD_SWISH_OPSET = 14
_CLOSE = 1e-4


def rewrite(model: ir.Model) -> list[str]:
    """Apply every rewrite, in place.

    Returns:
        One sentence per kind of rewrite that was made.
    """
    notes = []
    if count := _fold_affine(model):
        notes.append(f"{count} constant factors and offsets folded into convolutions")
    if count := _fuse_hard_swish(model):
        notes.append(f"{count} written-out hard-swish activations fused into HardSwish")
    try:
        passes.ShapeInferencePass()(model)
    except Exception as e:  # noqa: BLE001 - the pass wraps whatever the C++ inference throws
        logger.info("shape inference failed, means stay as they are: %s", e)
        return notes
    if count := _pool_means(model):
        notes.append(f"{count} means over height and width written as GlobalAveragePool")
    return notes


def take_over(old: ir.Node, new: ir.Node, graph: ir.Graph) -> None:
    """Let `new`'s first output stand wherever `old`'s did, name and graph outputs included."""
    was, now = old.outputs[0], new.outputs[0]
    name, shape, kind = was.name, was.shape, was.type
    was.replace_all_uses_with(now, replace_graph_outputs=True)
    graph.remove(old, safe=True)
    now.name, now.shape, now.type = name, shape, kind


def _fold_affine(model: ir.Model) -> int:
    """Fold Mul and Add by constants, per tensor or per channel, into the convolution before them.

    ONNX Runtime's own passes leave constants of shape [1] alone. Unfolded, each is one more pass
    over memory, and it keeps an INT8 convolution from handing on integers.
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
    constant = after.inputs[1 - uses[0].idx]
    weights = _float_array(conv.inputs[1])
    bias = _float_array(conv.inputs[2]) if len(conv.inputs) > 2 and conv.inputs[2] else None
    if weights is None or (len(conv.inputs) > 2 and conv.inputs[2] and bias is None):
        return False
    channels = _per_channel(_float_array(constant), len(weights), weights.ndim)
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
    was = after.outputs[0]
    name, shape, kind = was.name, was.shape, was.type
    was.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(after, safe=True)
    value.name, value.shape, value.type = name, shape, kind
    return True


def _per_channel(
    constant: NDArray[np.float32] | None, channels: int, rank: int
) -> NDArray[np.float32] | None:
    """A constant as one value per channel, or None where it varies along another axis."""
    if constant is None:
        return None
    if constant.size == 1 and constant.ndim <= rank:
        return np.full(channels, constant.reshape(-1)[0], np.float32)
    # Broadcasting aligns from the right, so channels stand `rank - 1` axes from the end.
    fits = constant.size == channels and constant.ndim in (rank - 1, rank)
    if fits and constant.shape[-(rank - 1)] == channels:
        return constant.reshape(-1)
    return None


def _float_array(value: ir.Value | None) -> NDArray[np.float32] | None:
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    array = value.const_value.numpy()
    return array if array.dtype == np.float32 else None


def set_input(node: ir.Node, index: int, values: NDArray[np.float32], graph: ir.Graph) -> None:
    """Give a node new constant values under a name of their own, since others may share the old."""
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    stem = f"{node.name}_folded_{index}"
    name, count = stem, 1
    while name in graph.initializers:
        name, count = f"{stem}_{count}", count + 1
    tensor = ir.Tensor(np.ascontiguousarray(values, np.float32), name=name)
    kind = ir.TensorType(ir.DataType.FLOAT)
    value = ir.Value(name=name, type=kind, shape=tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    node.replace_input_with(index, value)


def _fuse_hard_swish(model: ir.Model) -> int:
    """X * clip(x + 3, 0, 6) / 6, in any order that exporters write it, as one operator.

    Written out it is four passes over memory in ONNX Runtime, and OpenVINO may miss the pattern.
    """
    if model.opset_imports.get("", 0) < _HARD_SWISH_OPSET:
        return 0
    graph, changed = model.graph, 0
    for node in list(graph):
        data = _hard_swish_input(node)
        if data is None:
            continue
        fused = ir.node("HardSwish", [data], name=f"{node.name}_hardswish")
        graph.insert_before(node, fused)
        take_over(node, fused, graph)
        changed += 1
    if changed:
        passes.RemoveUnusedNodesPass()(model)
    return changed


def _hard_swish_input(node: ir.Node) -> ir.Value | None:
    """The x of which `node` is the last step of a hard-swish, or None."""
    if node.domain or node.graph is None:
        return None
    sixth = _scaled(node)
    if sixth is not None and sixth[1] is not None:
        product = sixth[1].producer()
        if product is not None and product.op_type == "Mul" and _close(sixth[0], 1 / 6):
            return _gated(product, 1.0)
    return _gated(node, 1 / 6) if node.op_type == "Mul" else None


def _gated(product: ir.Node, factor: float) -> ir.Value | None:
    """X if `product` is x * factor * clip(x + 3, 0, 6), or x * HardSigmoid(x) for a sixth."""
    for x, gate in (product.inputs, reversed(product.inputs)):
        step = gate.producer() if gate is not None else None
        if x is None or step is None:
            continue
        if step.op_type == "HardSigmoid" and factor != 1.0 and step.inputs[0] is x:
            alpha = step.attributes["alpha"].as_float() if "alpha" in step.attributes else 0.2
            beta = step.attributes["beta"].as_float() if "beta" in step.attributes else 0.5
            if _close(alpha, 1 / 6) and _close(beta, 0.5):
                return x
        if factor != 1.0:
            scaled = _scaled(step)
            if scaled is None or scaled[1] is None or not _close(scaled[0], factor):
                continue
            inner = scaled[1].producer()
            if inner is None:
                continue
            step = inner
        if _is_relu6_of_shifted(step, x):
            return x
    return None


def _is_relu6_of_shifted(node: ir.Node, x: ir.Value) -> bool:
    if node.op_type != "Clip" or len(node.inputs) < 3 or node.inputs[0] is None:
        return False
    if not _close(_scalar(node.inputs[1]), 0.0) or not _close(_scalar(node.inputs[2]), 6.0):
        return False
    add = node.inputs[0].producer()
    if add is None or add.op_type != "Add":
        return False
    for one, other in (add.inputs, reversed(add.inputs)):
        if one is x and _close(_scalar(other), 3.0):
            return True
    return False


def _scaled(node: ir.Node) -> tuple[float, ir.Value | None] | None:
    """(factor, value) if `node` multiplies or divides a value by one constant."""
    if node.op_type == "Div":
        divisor = _scalar(node.inputs[1])
        return (1 / divisor, node.inputs[0]) if divisor else None
    if node.op_type == "Mul":
        for value, constant in (node.inputs, reversed(node.inputs)):
            factor = _scalar(constant)
            if factor is not None:
                return factor, value
    return None


def _scalar(value: ir.Value | None) -> float | None:
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    array = value.const_value.numpy()
    return float(array.reshape(-1)[0]) if array.size == 1 else None


def _close(value: float | None, wanted: float) -> bool:
    return value is not None and abs(value - wanted) < _CLOSE


def _pool_means(model: ir.Model) -> int:
    """Write the mean over height and width as GlobalAveragePool, which has an INT8 kernel."""
    changed = 0
    for node in list(model.graph):
        if node.op_type != "ReduceMean" or node.domain or not _means_of_images(node):
            continue
        pooled = ir.node("GlobalAveragePool", [node.inputs[0]], name=f"{node.name}_pool")
        model.graph.insert_before(node, pooled)
        tail = pooled
        keep = node.attributes.get("keepdims")
        if keep is not None and keep.as_int() == 0:
            pooled.outputs[0].name = f"{node.name}_pooled"
            axis = {"axis": 1}
            tail = ir.node("Flatten", pooled.outputs, attributes=axis, name=f"{node.name}_flat")
            model.graph.insert_before(node, tail)
        take_over(node, tail, model.graph)
        changed += 1
    return changed


def _means_of_images(node: ir.Node) -> bool:
    value = node.inputs[0]
    if value is None or value.shape is None or len(value.shape) != 4:
        return False
    return value.dtype == ir.DataType.FLOAT and _mean_axes(node) == (2, 3)


def _mean_axes(node: ir.Node) -> tuple[int, ...]:
    if "axes" in node.attributes:
        axes = tuple(node.attributes["axes"].as_ints())
    elif len(node.inputs) > 1 and node.inputs[1] is not None and node.inputs[1].const_value:
        numbers: list[int] = np.asarray(node.inputs[1].const_value.numpy()).reshape(-1).tolist()
        axes = tuple(numbers)
    else:
        return ()
    return tuple(sorted(a % 4 for a in axes))
