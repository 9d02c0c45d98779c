"""What edits of a graph have in common: constants of nodes, and one node in another's place."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def float_constant(node: ir.Node, index: int) -> NDArray[np.float32] | None:
    """The float32 constant that a node reads as its input of this index; None where it is none."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    if value.const_value.dtype != ir.DataType.FLOAT:
        return None
    return np.asarray(value.const_value.numpy(), np.float32)


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


def take_over(old: ir.Node, new: ir.Node, graph: ir.Graph) -> None:
    """Let `new`'s first output stand wherever `old`'s did, name and graph outputs included."""
    was, now = old.outputs[0], new.outputs[0]
    name, shape, kind = was.name, was.shape, was.type
    was.replace_all_uses_with(now, replace_graph_outputs=True)
    graph.remove(old, safe=True)
    now.name, now.shape, now.type = name, shape, kind
