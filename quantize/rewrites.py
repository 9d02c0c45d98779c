"""Rewrites of the FP32 graph that keep what it computes and give the runtimes better operators."""

import logging
import re

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common as passes

logger = logging.getLogger(__name__)

# Operators whose outputs may be no tensors.
_CONTAINERS = re.compile("Sequence|Optional|^(If|Loop|Scan)$")

_HARD_SWISH_OPSET = 14
_CLOSE = 1e-4


def rewrite(model: ir.Model, *, hard_swishes: int = 0) -> list[str]:
    """Apply every rewrite, in place.

    Args:
        model: The graph, folded.
        hard_swishes: Those that stand here written out, but were one node in the source.

    Returns:
        One sentence per kind of rewrite that was made.
    """
    notes = []
    if count := _fold_affine(model):
        notes.append(f"{count} constant factors and offsets folded into convolutions")
    if count := _fold_late_norms(model):
        notes.append(f"{count} batch norms behind an activation folded into convolutions")
    if (count := _fuse_hard_swish(model) - hard_swishes) > 0:
        notes.append(f"{count} written-out hard-swish activations fused into HardSwish")
    # It logs what it cannot infer with a traceback; nothing depends on it.
    logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)
    untyped = [v for n in model.graph.all_nodes() for v in n.outputs if v.type is None]
    try:
        passes.ShapeInferencePass()(model)
    except Exception as e:  # noqa: BLE001 - the pass wraps whatever the C++ inference throws
        logger.info("shape inference failed, means stay as they are: %s", e)
        return notes
    for value in untyped:
        # The pass takes sequences and optional values, and what branches make of them, for tensors.
        maker = value.producer()
        if maker is not None and _CONTAINERS.search(maker.op_type):
            value.type = value.shape = None
    if count := _pool_means(model):
        notes.append(f"GlobalAveragePool takes the place of means over height and width ({count})")
    _join_gemms(model)
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


def _fold_late_norms(model: ir.Model) -> int:
    """Fold batch norms that stand behind an activation, where no runtime folds them.

    What reads the norm takes all of it, unless it pads: its zeros would have to be shifted too. A
    positive factor passes through a Relu as well, so that the convolution before it can take it;
    an addition is left then, for which there is an INT8 kernel.
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
        if uses and not shown and all(_takes_shift(use.node, use.idx) for use in uses):
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
    arrays = [_float_array(v) for v in norm.inputs[1:5]]
    if len(arrays) < 4 or any(a is None for a in arrays):
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
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    weights = _float_array(node.inputs[1])
    return weights is not None and (bias is None or _float_array(bias) is not None)


def _takes_shift(node: ir.Node, index: int) -> bool:
    """Whether a node's constants can take a factor and a shift of its input's channels."""
    if index or node.domain or node.op_type not in ("Conv", "Gemm") or not _has_constants(node):
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
    weights = _float_array(node.inputs[1])
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
    bias = _float_array(node.inputs[2]) if len(node.inputs) > 2 else None
    set_input(node, 1, scaled.T if turned else scaled, graph)
    set_input(node, 2, moved if bias is None else moved + bias, graph)


def _scale_outputs(conv: ir.Node, factors: NDArray[np.float32], graph: ir.Graph) -> None:
    weights = _float_array(conv.inputs[1])
    bias = _float_array(conv.inputs[2]) if len(conv.inputs) > 2 else None
    assert weights is not None
    set_input(conv, 1, weights * factors.reshape(-1, *[1] * (weights.ndim - 1)), graph)
    if bias is not None:
        set_input(conv, 2, bias * factors, graph)


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


def _join_gemms(model: ir.Model) -> None:
    """Write MatMul and the Add of its bias as Gemm, where rows make a matrix.

    ONNX Runtime does the same before it looks for Q/DQ pairs (`matmul_add_fusion.cc`), and runs a
    Gemm in integers only if its bias is quantized too, as that of a Gemm is and of an Add is not.
    """
    for node in list(model.graph):
        value, uses = node.outputs[0], list(node.outputs[0].uses())
        if node.op_type != "MatMul" or node.domain or len(uses) != 1 or value.is_graph_output():
            continue
        add, data, weights = uses[0].node, node.inputs[0], _float_array(node.inputs[1])
        if add.op_type != "Add" or add.domain or add.graph is not model.graph or weights is None:
            continue
        rank = len(data.shape) if data is not None and data.shape is not None else 0
        bias = _float_array(add.inputs[1 - uses[0].idx])
        if (rank, weights.ndim) != (2, 2) or bias is None or bias.size != weights.shape[1]:
            continue
        gemm = ir.node("Gemm", node.inputs[:2], name=node.name)
        model.graph.insert_before(add, gemm)
        set_input(gemm, 2, bias.reshape(-1), model.graph)
        take_over(add, gemm, model.graph)
        model.graph.remove(node, safe=True)
