"""Graphs in half precision, widened to float: weights, casts, and every value inside."""

import numpy as np
import onnx_ir as ir

from quantize.graphs import constants_of, tensors_of

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def widen(model: ir.Model) -> bool:
    """Turn half precision into float inside; inputs and outputs keep their types through casts.

    Returns:
        Whether there was any.
    """
    graph = model.graph
    ports, nodes = (*graph.inputs, *graph.outputs), graph.all_nodes()
    kinds = {*(p.dtype for p in ports), *(t.dtype for t in tensors_of(model))}
    held = not kinds.isdisjoint(_HALF)
    # As in a model that was exported under autocast, whose weights are float.
    if not held and not any(_makes_half(a) for n in nodes for a in n.attributes.values()):
        return False
    for value in graph.outputs:
        if value.dtype in _HALF:
            value.meta["half"], value.dtype = value.dtype, ir.DataType.FLOAT
    for value in (v for sub in graph.subgraphs() for v in sub.inputs):
        if value.dtype in _HALF:
            value.dtype = ir.DataType.FLOAT
    for value in constants_of(model):
        if value.const_value is not None and value.const_value.dtype in _HALF:
            wide = value.const_value.numpy().astype(np.float32)
            value.const_value = ir.Tensor(wide, name=value.name)
            value.dtype = ir.DataType.FLOAT
    for node in list(graph.all_nodes()):
        _widen_node(node)
    _cast_edges(graph)
    return True


def _makes_half(attribute: ir.Attr) -> bool:
    """Whether it is the type that a Cast or the like turns its input into, and half precision."""
    if attribute.name not in ("to", "dtype") or attribute.type != ir.AttributeType.INT:
        return False
    return attribute.as_int() in _HALF


def _widen_node(node: ir.Node) -> None:
    for attribute in list(node.attributes.values()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _HALF:
            wide = attribute.as_tensor().numpy().astype(np.float32)
            node.attributes[attribute.name] = ir.AttrTensor(attribute.name, ir.Tensor(wide))
        if _makes_half(attribute):
            node.attributes[attribute.name] = ir.AttrInt64(attribute.name, int(ir.DataType.FLOAT))
    for value in node.outputs:
        if value.dtype in _HALF:
            value.dtype = ir.DataType.FLOAT


def _cast_edges(graph: ir.Graph) -> None:
    first = next(iter(graph), None)
    for value in graph.inputs:
        if value.dtype not in _HALF or first is None:
            continue
        cast = ir.node("Cast", [value], attributes={"to": int(ir.DataType.FLOAT)})
        cast.outputs[0].name = f"{value.name}_float"
        value.replace_all_uses_with(cast.outputs[0])
        cast.replace_input_with(0, value)
        graph.insert_before(first, cast)
    for i, value in enumerate(graph.outputs):
        if "half" in value.meta:
            _cast_output(graph, i, value)


def _cast_output(graph: ir.Graph, index: int, value: ir.Value) -> None:
    kind = value.meta["half"]
    cast = ir.node("Cast", [value], attributes={"to": int(kind)})
    name = value.name
    value.name = f"{name}_float"
    cast.outputs[0].name, cast.outputs[0].dtype, cast.outputs[0].shape = name, kind, value.shape
    graph.append(cast)
    graph.outputs[index] = cast.outputs[0]
