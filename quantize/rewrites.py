"""Rewrites of the FP32 graph that keep what it computes and give the runtimes better operators."""

import logging
import re

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from quantize.folding import fold_affine, fold_late_norms
from quantize.nodes import float_constant, set_input, take_over

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
    if count := fold_affine(model):
        notes.append(f"{count} constant factors and offsets folded into convolutions")
    if count := fold_late_norms(model):
        notes.append(f"{count} batch norms behind an activation folded into convolutions")
    known = _infer_shapes(model)
    if (count := _fuse_hard_swish(model) - hard_swishes) > 0:
        notes.append(f"{count} written-out hard-swish activations fused into HardSwish")
    if known:
        if count := _pool_means(model):
            text = "GlobalAveragePool takes the place of means over height and width"
            notes.append(f"{text} ({count})")
        _join_gemms(model)
    return notes


def _infer_shapes(model: ir.Model) -> bool:
    """Tell shapes of all tensors, as far as they follow; whether that could be done."""
    # It logs what it cannot infer with a traceback; nothing depends on it.
    logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)
    untyped = [v for n in model.graph.all_nodes() for v in n.outputs if v.type is None]
    try:
        passes.ShapeInferencePass()(model)
    except Exception as e:  # noqa: BLE001 - the pass wraps whatever the C++ inference throws
        logger.info("shape inference failed, means stay as they are: %s", e)
        return False
    for value in untyped:
        # The pass takes sequences and optional values, and what branches make of them, for tensors.
        maker = value.producer()
        if maker is not None and _CONTAINERS.search(maker.op_type):
            value.type = value.shape = None
    return True


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
    bounds = [_scalar(v, node.inputs[0]) for v in node.inputs[1:3]]
    if not _close(bounds[0], 0.0) or not _close(bounds[1], 6.0):
        return False
    add = node.inputs[0].producer()
    if add is None or add.op_type != "Add":
        return False
    for one, other in (add.inputs, reversed(add.inputs)):
        if one is x and _close(_scalar(other, x), 3.0):
            return True
    return False


def _scaled(node: ir.Node) -> tuple[float, ir.Value | None] | None:
    """(factor, value) if `node` multiplies or divides a value by one constant."""
    if node.op_type == "Div":
        divisor = _scalar(node.inputs[1], node.inputs[0])
        return (1 / divisor, node.inputs[0]) if divisor else None
    if node.op_type == "Mul":
        for value, constant in (node.inputs, reversed(node.inputs)):
            factor = _scalar(constant, value)
            if factor is not None:
                return factor, value
    return None


def _scalar(value: ir.Value | None, beside: ir.Value | None) -> float | None:
    """One constant number; None if its axes could be more than those of what it meets."""
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    shape = beside.shape if beside is not None else None
    array = value.const_value.numpy()
    # Of a tensor whose rank nobody knows, it is at least that of one number.
    few = array.ndim <= (1 if shape is None else len(shape))
    return float(array.reshape(-1)[0]) if array.size == 1 and few else None


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
        add, data, weights = uses[0].node, node.inputs[0], float_constant(node, 1)
        if add.op_type != "Add" or add.domain or add.graph is not model.graph or weights is None:
            continue
        rank = len(data.shape) if data is not None and data.shape is not None else 0
        bias = float_constant(add, 1 - uses[0].idx)
        if (rank, weights.ndim) != (2, 2) or bias is None or bias.size != weights.shape[1]:
            continue
        gemm = ir.node("Gemm", node.inputs[:2], name=node.name)
        model.graph.insert_before(add, gemm)
        set_input(gemm, 2, bias.reshape(-1), model.graph)
        take_over(add, gemm, model.graph)
        model.graph.remove(node, safe=True)
