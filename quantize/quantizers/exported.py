"""The exported program of a quantized PyTorch module, brought back to FP32's layers.

ONNX of the program ─▶ Clips and Pads that say nothing go ─▶ layers matched by their weights
─▶ named as FP32's, weights as codes, those of float layers as they were
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common as passes

from quantize.anchors import Anchor, integer_of
from quantize.quantizers.pairs import held, is_constant

_LAYERS = ("Conv", "Gemm", "MatMul")
# Codes of these are all that their type holds, so that a Clip to them changes nothing.
_CODES = (ir.DataType.INT8, ir.DataType.UINT8)


def drop_clips(model: ir.Model) -> None:
    """Take out the Clip that torch.onnx writes after a QuantizeLinear, to the range of its type."""
    for node in list(model.graph):
        value = node.inputs[0] if node.op_type == "Clip" else None
        if value is None or value.dtype not in _CODES or not all(map(is_constant, node.inputs[1:])):
            continue
        limits = np.iinfo(value.dtype.numpy())
        if held(node.inputs[1]) <= limits.min and held(node.inputs[2]) >= limits.max:
            node.outputs[0].replace_all_uses_with(value)
            model.graph.remove(node, safe=True)


@dataclass(frozen=True, slots=True)
class Weights:
    """Constant weights as a layer of the exported program reads them.

    Attributes:
        values: float32, as in FP32.
        scales: float32, one or one per channel; None where they are in float.
        points: int8, as `scales`.
        axis: Of `values` that counts channels.
    """

    values: NDArray[np.float32]
    scales: NDArray[np.float32] | None = None
    points: NDArray[np.int8] | None = None
    axis: int = 0

    def turned(self, order: list[int]) -> "Weights":
        """The same weights behind a Transpose."""
        turned = np.ascontiguousarray(self.values.transpose(order))
        return Weights(turned, self.scales, self.points, order.index(self.axis))

    def codes(self) -> NDArray[np.int8]:
        """As ONNX's QuantizeLinear rounds them."""
        assert self.scales is not None
        assert self.points is not None
        along = [1] * self.values.ndim
        if self.scales.ndim:
            along[self.axis] = -1
        codes = np.rint(self.values / self.scales.reshape(along)) + self.points.reshape(along)
        rounded: NDArray[np.int8] = np.clip(codes, -128, 127).astype(np.int8)
        return rounded


def _weights(value: ir.Value | None) -> Weights | None:
    """What a constant, behind Transpose and a Q/DQ pair, holds; None where it is computed."""
    if value is None or is_constant(value):
        return None if value is None else Weights(held(value))
    node = value.producer()
    if node is None:
        return None
    if node.op_type == "Transpose":
        before = _weights(node.inputs[0])
        order = node.attributes.get("perm")
        if before is None or order is None:
            return None
        return before.turned([int(i) for i in order.as_ints()])
    codes = node.inputs[0] if node.op_type == "DequantizeLinear" else None
    maker = codes.producer() if codes is not None else None
    if maker is None or maker.op_type != "QuantizeLinear" or not is_constant(maker.inputs[0]):
        return None
    values, scales, points = (held(v) for v in maker.inputs)
    return Weights(values, scales, points, integer_of(node, "axis", 1) % max(values.ndim, 1))


def partners_of(
    model: ir.Model, anchors: tuple[Anchor, ...], fp32: ir.Model
) -> dict[str, tuple[ir.Node, Weights]]:
    """The exported layer of each anchor, by the anchor's name: the one with the same weights.

    Both graphs come of one module, but exporter and runtime name and order nodes as they like.
    Layers that share weights stand in the same order in both.
    """
    left = []
    for node in model.graph:
        if node.op_type in _LAYERS and not node.domain:
            weights = _weights(node.inputs[1])
            if weights is not None:
                left.append((node, weights))
    nodes = {str(n.name): n for n in fp32.graph}
    found: dict[str, tuple[ir.Node, Weights]] = {}
    for anchor in anchors:
        layer = nodes.get(anchor.name)
        if layer is None or layer.op_type not in _LAYERS:
            continue
        wanted = held(layer.inputs[1])
        distances = [_distance(wanted, anchor, *other) for other in left]
        best = int(np.argmin(distances)) if distances else 0
        if distances and distances[best] < np.inf:
            found[anchor.name] = left.pop(best)
    return found


def _distance(
    wanted: NDArray[np.float32], anchor: Anchor, node: ir.Node, weights: Weights
) -> float:
    """Squared difference of an anchor's weights and a layer's; infinite for other shapes."""
    ours, theirs = wanted, weights.values
    if anchor.op == "Conv" or node.op_type == "Conv":
        if node.op_type != anchor.op or ours.shape != theirs.shape:
            return float("inf")
    else:
        ours = ours if anchor.out_axis else ours.T
        turned = node.op_type == "Gemm" and integer_of(node, "transB", 0)
        theirs = theirs.T if turned else theirs
        if ours.shape != theirs.shape:
            return float("inf")
    return float(np.square(ours - theirs, dtype=np.float64).sum())


def place_layers(
    model: ir.Model, partners: dict[str, tuple[ir.Node, Weights]], static: dict[str, bool]
) -> None:
    """Name layers as their anchors, weights as codes, and those of float layers as they were."""
    graph = model.graph
    for node in graph:
        if node.name in static:
            node.name = f"{node.name}_of_inc"
    for name, (node, weights) in partners.items():
        node.name = name
        if static[name] and weights.scales is not None:
            node.replace_input_with(1, _coded(graph, node, weights))
            continue
        node.replace_input_with(1, _constant(graph, f"{name}_weights", weights.values))
        pair = node.inputs[0].producer() if node.inputs[0] is not None else None
        maker = pair.inputs[0].producer() if pair is not None and pair.inputs[0] else None
        if pair is None or maker is None or pair.op_type != "DequantizeLinear":
            continue
        if maker.op_type == "QuantizeLinear":
            node.replace_input_with(0, maker.inputs[0])
    passes.RemoveUnusedNodesPass()(model)


def take_in_pads(model: ir.Model) -> None:
    """Let convolutions pad, where a Pad with zeros stands before the pair of their input.

    ONNX Runtime's passes do the same in the FP32 graph, where no pair stands between. A pair keeps
    zero as it is, so this changes no value.
    """
    for pad in list(model.graph):
        if pad.op_type != "Pad" or pad.domain or pad.outputs[0].is_graph_output():
            continue
        quantizers = pad.outputs[0].consumers()
        pairs = [p for q in quantizers for p in q.outputs[0].consumers()]
        convs = [c for p in pairs for c in p.outputs[0].consumers()]
        x, known = pad.inputs[0], all(is_constant(v) for v in pad.inputs[1:])
        if (
            x is None
            or not known
            or len(pad.inputs) > 3
            or ("mode" in pad.attributes and pad.attributes["mode"].as_string() != "constant")
            or (len(pad.inputs) == 3 and held(pad.inputs[2]) != 0)
            or {n.op_type for n in quantizers} != {"QuantizeLinear"}
            or {n.op_type for n in pairs} != {"DequantizeLinear"}
            or {n.op_type for n in convs} != {"Conv"}
            or any(c.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" for c in convs)
        ):
            continue
        begins, ends = np.split(held(pad.inputs[1]).astype(np.int64), 2)
        if begins[:2].any() or ends[:2].any() or min(begins.min(), ends.min()) < 0:
            continue
        more = np.concatenate([begins[2:], ends[2:]])
        for conv in convs:
            own = conv.attributes.get("pads")
            total = more + (np.array(own.as_ints()) if own is not None else 0)
            conv.attributes["pads"] = ir.AttrInt64s("pads", total.tolist())
        for node in (*quantizers, *pairs):
            # It was written with the margins.
            node.outputs[0].shape = None
        pad.outputs[0].replace_all_uses_with(x)


def _coded(graph: ir.Graph, node: ir.Node, weights: Weights) -> ir.Value:
    """A DequantizeLinear of constant codes, put in before a node."""
    parts = [weights.codes(), weights.scales, weights.points]
    names = ("weights_quantized", "weights_scale", "weights_zero_point")
    inputs = [_constant(graph, f"{node.name}_{n}", p) for n, p in zip(names, parts, strict=True)]
    pair = ir.node(
        "DequantizeLinear",
        inputs,
        attributes={"axis": weights.axis},
        name=f"{node.name}_weights_dequantize",
    )
    pair.outputs[0].name = f"{node.name}_weights_dequantized"
    graph.insert_before(node, pair)
    return pair.outputs[0]


def _constant(graph: ir.Graph, name: str, values: Any) -> ir.Value:
    tensor = ir.Tensor(np.ascontiguousarray(values), name=name)
    kind = ir.TensorType(tensor.dtype)
    value = ir.Value(name=name, type=kind, shape=tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value
