"""Anchors: the nodes that INT8 makes cheaper, and why others of their kinds cannot run in it."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir

Mode: TypeAlias = Literal["static", "dynamic", "float"]

_FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True, slots=True)
class Anchor:
    """A node that INT8 makes cheaper.

    Attributes:
        name: Of the node, unique in the model.
        op: "Conv", "Gemm", "MatMul" or "LSTM".
        data: Name of its activation input.
        output: Name of its output.
        end: Name of the Relu's or Clip's output where one follows alone, else `output`.
        out_axis: Axis of the weights that counts output channels.
        weight_count: Elements of its weights.
        depthwise: Whether it is a convolution of one input and one output channel per group.
        nested: Whether it lies inside an If, Loop or Scan, where no statistics reach.
    """

    name: str
    op: str
    data: str
    output: str
    end: str
    out_axis: int
    weight_count: int
    depthwise: bool = False
    nested: bool = False

    @property
    def modes(self) -> tuple[Mode, ...]:
        """What can be done with it, in the order of expected speed."""
        if self.op == "Conv":
            return ("static", "float")
        if self.op == "LSTM" or self.nested:
            return ("dynamic", "float")
        return ("static", "dynamic", "float")


def find_anchors(model: ir.Model) -> tuple[tuple[Anchor, ...], dict[str, str]]:
    """Nodes that can run in INT8, and why others of those kinds cannot."""
    found: list[Anchor] = []
    left: dict[str, str] = {}
    top = {id(n) for n in model.graph}
    for node in model.graph.all_nodes():
        if node.domain not in ("", "ai.onnx"):
            continue
        result = _anchor(node, nested=id(node) not in top)
        if isinstance(result, Anchor):
            found.append(result)
        elif result:
            left[node.name or "?"] = result
    return tuple(found), left


def _anchor(node: ir.Node, *, nested: bool) -> Anchor | str | None:
    match node.op_type:
        case "Conv" | "Gemm" | "MatMul":
            return _linear_anchor(node, nested=nested)
        case "LSTM":
            return _lstm_anchor(node, nested=nested)
        case "GRU" | "RNN":
            return "recurrent: no runtime has an INT8 kernel for it"
        case "ConvTranspose":
            return "transposed convolution: ONNX Runtime has no INT8 kernel for it"
        case "Einsum" if any(v is not None and v.is_initializer() for v in node.inputs):
            return "Einsum that is no single product with constant weights"
        case _:
            return None


def _linear_anchor(node: ir.Node, *, nested: bool) -> Anchor | str | None:
    data, weight = node.inputs[0], node.inputs[1]
    if data is None or weight is None or data.name is None:
        return None
    tensor = weight.const_value if weight.is_initializer() else None
    reason = _unfit(node, tensor)
    if reason or tensor is None:
        return reason
    rank = len(tensor.shape)
    output, end = str(node.outputs[0].name), end_of(node)
    count = int(np.prod(tensor.shape.numpy()))
    name = str(node.name)
    if node.op_type == "Conv":
        if nested:
            return "inside a subgraph, where no statistics reach"
        channels, per_group = (int(d) for d in tensor.shape.numpy()[:2])
        deep = per_group == 1 and 1 < channels == integer_of(node, "group", 1)
        return Anchor(name, "Conv", data.name, output, end, 0, count, depthwise=deep)
    if rank != 2:
        return f"weights of rank {rank}"
    if node.op_type == "Gemm":
        if integer_of(node, "transA", 0):
            return "Gemm with transposed activations"
        if nested:
            return "inside a subgraph, where no statistics reach"
        axis = 0 if integer_of(node, "transB", 0) else 1
        return Anchor(name, "Gemm", data.name, output, end, axis, count)
    return Anchor(name, "MatMul", data.name, output, end, 1, count, nested=nested)


def _unfit(node: ir.Node, tensor: ir.TensorProtocol | None) -> str | None:
    if tensor is None:
        products = node.op_type == "MatMul"
        return "both factors are activations" if products else "weights are computed"
    if tensor.dtype != _FLOAT:
        return f"weights are {tensor.dtype.name.lower()} (export them as float32)"
    if tensor.size == 0:
        return "weights are empty"
    if not _constant_bias(node):
        return "its bias is computed or not one value per channel"
    return None


def _constant_bias(node: ir.Node) -> bool:
    bias = node.inputs[2] if node.op_type != "MatMul" and len(node.inputs) > 2 else None
    if bias is None:
        return True
    if not bias.is_initializer() or bias.const_value is None:
        return False
    shape = bias.const_value.shape.numpy()
    return int(np.prod(shape)) in (1, *shape[-1:])


def _lstm_anchor(node: ir.Node, *, nested: bool) -> Anchor | str:
    for value in node.inputs[1:3]:
        if value is None or not value.is_initializer() or value.const_value is None:
            return "weights are computed"
        if value.const_value.dtype != _FLOAT:
            return f"weights are {value.const_value.dtype.name.lower()}"
    if integer_of(node, "layout", 0) or integer_of(node, "input_forget", 0):
        return "LSTM in a layout that the INT8 kernel does not take"
    if "clip" in node.attributes or (len(node.inputs) > 7 and node.inputs[7] is not None):
        return "LSTM with clipping or peepholes"
    weights = [v.const_value for v in node.inputs[1:3] if v is not None]
    count = sum(int(np.prod(t.shape.numpy())) for t in weights if t is not None)
    data = node.inputs[0]
    return Anchor(
        str(node.name),
        "LSTM",
        str(data.name if data else ""),
        str(node.outputs[0].name),
        str(node.outputs[0].name),
        1,
        count,
        nested=nested,
    )


def end_of(node: ir.Node) -> str:
    """The tensor that ends a node: its output, or that of the Relu or Clip that follows alone."""
    value = node.outputs[0]
    uses = value.uses()
    if len(uses) == 1 and not value.is_graph_output():
        follower = next(iter(uses)).node
        if follower.graph is node.graph and rectifies(follower):
            return str(follower.outputs[0].name)
    return str(value.name)


def rectifies(node: ir.Node) -> bool:
    """Whether it is a Relu, or a Clip from 0, which an unsigned scale does for nothing."""
    if node.op_type == "Relu":
        return True
    if node.op_type != "Clip" or len(node.inputs) < 2:
        return False
    low = node.inputs[1]
    if low is None or not low.is_initializer() or low.const_value is None:
        return False
    return float(low.const_value.numpy().reshape(-1)[0]) == 0.0


def integer_of(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute of a node, or what it is where it is left out."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()
