"""Factors per channel that a graph can hold without computing anything else.

A tensor is divided by one positive factor per channel, what makes it is divided by the same, and
what reads it is multiplied. The result is the same, but channels of very different size become
alike, so that 8 bits per tensor hold each of them well. Two names for one thing: cross-layer
equalization between convolutions (Nagel et al., "Data-Free Quantization", 2019) and SmoothQuant
between a normalization and the products behind it (Xiao et al., 2022).

    graph + anchors ─▶ find_groups ─▶ Group ×N ─▶ apply(factors) ─▶ the same function, other ranges
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common as passes

from bench.wire import LEAST_BYTES
from quantize.anchors import Anchor, integer_of
from quantize.nodes import float_constant, set_input

Factors = NDArray[np.float32]
"""One positive number per channel."""

# f(x / s) = f(x) / s for every positive s, channel by channel. A Clip is none of them: where its
# limit is reached, Relu6 say, the result changes.
_HOMOGENEOUS = frozenset(
    {"Relu", "LeakyRelu", "PRelu", "Identity", "Dropout", "MaxPool", "AveragePool", "Resize"}
    | {"GlobalAveragePool", "GlobalMaxPool"}
)
_GLOBAL = frozenset({"GlobalAveragePool", "GlobalMaxPool"})
_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True, slots=True)
class Edit:
    """One constant that makes up for a division.

    Attributes:
        node: Who reads the constant.
        index: Which of its inputs it is.
        reads: True: the node reads the divided tensor, its weights are multiplied along their
            input channels. False: it makes the tensor, and the constant is divided.
        axis: Of the constant's channels; for a weight that is read, of its input channels.
    """

    node: str
    index: int
    reads: bool
    axis: int


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that share one factor per channel.

    Attributes:
        reads: (tensor, anchor) pairs: what the factors are chosen for.
        tensors: Axis of the channels, 1 or -1, by name of every tensor that changes.
        edits: Constants to change.
        channels: How many factors.
        rank: Of the tensors where their axis is 1; 0 where nothing says it.
        inserted: Whether a Mul has to divide the tensor, since other nodes read it as it is.
    """

    reads: tuple[tuple[str, str], ...]
    tensors: dict[str, int]
    edits: tuple[Edit, ...]
    channels: int
    rank: int = 0
    inserted: bool = False

    @property
    def name(self) -> str:
        """Of the first anchor that reads it."""
        return self.reads[0][1]


def find_groups(model: ir.Model, anchors: Iterable[Anchor]) -> tuple[Group, ...]:
    """Every group of a graph, in graph order.

    Groups whose factors fold into constants come first; a tensor that other nodes read as well
    gets a Mul in front of its products (MatMul and Gemm), which costs one pass over it.
    """
    known = {a.name: a for a in anchors if not a.nested and a.op in _PRODUCTS}
    nodes = {str(n.name): n for n in model.graph}
    covered: set[str] = set()
    found: dict[str, Group] = {}
    for insert in (False, True):
        for name, anchor in known.items():
            data = nodes[name].inputs[0]
            if data is None or data.name in covered:
                continue
            group = _inserted(data, known) if insert else _Domain(known).grow(data, anchor)
            if group is not None and not _unshares(group, nodes):
                covered |= set(group.tensors)
                found[group.name] = group
    return tuple(found[n] for n in known if n in found)


def axes_of(groups: Iterable[Group], watched: Container[str]) -> dict[str, int]:
    """Axis of the channels, 1 or -1, by name of every watched tensor that groups divide."""
    return {n: axis for g in groups for n, axis in g.tensors.items() if n in watched}


def _unshares(group: Group, nodes: Mapping[str, ir.Node]) -> bool:
    """Whether it would copy large constants that other nodes read as well."""
    values = (nodes[e.node].inputs[e.index] for e in group.edits)
    shared = (v.const_value for v in values if v is not None and len(v.uses()) > 1)
    return any(t is not None and t.nbytes >= LEAST_BYTES for t in shared)


class _Domain:
    """Tensors that have to share their factors, while they are collected."""

    def __init__(self, anchors: Mapping[str, Anchor]) -> None:
        self.anchors = anchors
        self.axes: dict[ir.Value, int] = {}
        self.queue: list[ir.Value] = []
        self.edits: dict[tuple[str, int, bool], Edit] = {}
        self.reads: list[tuple[str, str]] = []
        self.gates: list[tuple[ir.Value, ir.Value]] = []
        self.channels = 0
        self.rank = 0
        self.needs_rank = False

    def grow(self, data: ir.Value, anchor: Anchor) -> Group | None:
        """The group of a tensor that an anchor reads; None where something forbids it."""
        self._join(data, 1 if anchor.op == "Conv" else -1)
        while self.queue:
            value = self.queue.pop()
            if value.is_graph_output() or not self._made(value):
                return None
            if not all(self._read(value, use.node, use.idx) for use in value.uses()):
                return None
        legal = all((a in self.axes) != (b in self.axes) for a, b in self.gates)
        legal &= self.rank > 0 or not self.needs_rank
        if not legal or not self.reads or self.channels < 2:
            return None
        tensors = {str(v.name): axis for v, axis in self.axes.items()}
        edits = tuple(self.edits.values())
        order = list(self.anchors)
        reads = tuple(sorted(set(self.reads), key=lambda r: order.index(r[1])))
        return Group(reads, tensors, edits, self.channels, self.rank)

    def _join(self, value: ir.Value | None, axis: int | None) -> bool:
        """Take a tensor in; False where its channels stand elsewhere than they have to."""
        if value is None or axis is None or value.is_initializer() or value.is_graph_input():
            return False
        if value not in self.axes:
            self.axes[value] = axis
            self.queue.append(value)
        return self.axes[value] == axis

    def _edit(self, node: ir.Node, index: int, *, reads: bool, axis: int) -> bool:
        if float_constant(node, index) is None:
            return False
        self.edits[(str(node.name), index, reads)] = Edit(str(node.name), index, reads, axis)
        return True

    def _edit_term(self, node: ir.Node, index: int, axis: int) -> bool:
        """The constant of a Mul or an Add, which is broadcast from the right."""
        self.needs_rank |= axis == 1
        return self._edit(node, index, reads=False, axis=axis)

    def _sized(self, channels: int, node: ir.Node, weights: NDArray[np.float32]) -> bool:
        if node.op_type == "Conv":
            self.rank = weights.ndim
        self.channels = self.channels or channels
        return self.channels == channels

    # Who makes a tensor

    def _made(self, value: ir.Value) -> bool:
        node, axis = value.producer(), self.axes[value]
        if node is None or node.domain not in ("", "ai.onnx") or node.outputs[0] is not value:
            return False
        match node.op_type:
            case "Conv" | "Gemm" | "MatMul":
                return self._made_by_product(node, axis)
            case "LayerNormalization":
                scale = float_constant(node, 1)
                return (
                    axis == -1
                    and scale is not None
                    and scale.ndim == 1
                    and all(
                        self._edit(node, i, reads=False, axis=-1) for i in _present(node, (1, 2))
                    )
                )
            case "BatchNormalization":
                return axis == 1 and all(self._edit(node, i, reads=False, axis=-1) for i in (1, 2))
            case "Mul" | "Add":
                return self._made_by_sum(node, axis)
            case "Transpose":
                return self._join(node.inputs[0], _moved(node, axis, back=True))
            case "Flatten" | "Reshape" | "Squeeze":
                return axis == -1 and _is_pooled(node) and self._join(node.inputs[0], 1)
        return _passes(node, axis) and self._join(node.inputs[0], axis)

    def _made_by_product(self, node: ir.Node, axis: int) -> bool:
        weights = float_constant(node, 1)
        if weights is None or (axis == 1) != (node.op_type == "Conv"):
            return False
        if node.op_type == "MatMul" and weights.ndim != 2:
            return False
        out = 1 - _input_axis(node)
        bias = all(self._edit(node, i, reads=False, axis=-1) for i in _present(node, (2,)))
        sized = self._sized(weights.shape[out], node, weights)
        return sized and bias and self._edit(node, 1, reads=False, axis=out)

    def _made_by_sum(self, node: ir.Node, axis: int) -> bool:
        constants = [i for i in (0, 1) if float_constant(node, i) is not None]
        if node.op_type == "Mul" and any(v in self.axes for v in node.inputs):
            # Reached from what it scales or gates.
            return True
        if not constants:
            return node.op_type == "Add" and all(self._join(v, axis) for v in node.inputs)
        held = float_constant(node, constants[0])
        if node.op_type == "Mul" and held is not None and held.size == 1:
            # One number often belongs to a written-out Gelu or Swish, which the runtimes fuse only
            # while it is one number.
            return self._join(node.inputs[1 - constants[0]], axis)
        # A Mul's constant makes up for all of it; a bias is divided with what it is added to.
        if not self._edit_term(node, constants[0], axis):
            return False
        return node.op_type == "Mul" or self._join(node.inputs[1 - constants[0]], axis)

    # Who reads it

    def _read(self, value: ir.Value, node: ir.Node, index: int) -> bool:
        axis = self.axes[value]
        maker = value.producer()
        if node.domain not in ("", "ai.onnx") or maker is None or node.graph is not maker.graph:
            return False
        match node.op_type:
            case "Conv" | "Gemm" | "MatMul":
                return index == 0 and self._read_by_product(value, node, axis)
            case "Add":
                other = 1 - index
                if float_constant(node, other) is not None:
                    edited = self._edit_term(node, other, axis)
                    return edited and self._join(node.outputs[0], axis)
                return self._join(node.inputs[other], axis) and self._join(node.outputs[0], axis)
            case "Mul":
                return self._read_by_gate(value, node, index, axis)
            case "Transpose":
                return self._join(node.outputs[0], _moved(node, axis, back=False))
            case "Flatten" | "Reshape" | "Squeeze":
                return axis == 1 and _is_pooled(node) and self._join(node.outputs[0], -1)
        return index == 0 and _passes(node, axis) and self._join(node.outputs[0], axis)

    def _read_by_product(self, value: ir.Value, node: ir.Node, axis: int) -> bool:
        weights = float_constant(node, 1)
        if weights is None or (axis == 1) != (node.op_type == "Conv"):
            return False
        if node.op_type != "Conv" and (weights.ndim != 2 or integer_of(node, "transA", 0)):
            return False
        inner = _input_axis(node)
        groups = integer_of(node, "group", 1) if node.op_type == "Conv" else 1
        if str(node.name) in self.anchors:
            self.reads.append((str(value.name), str(node.name)))
        sized = self._sized(weights.shape[inner] * groups, node, weights)
        return sized and self._edit(node, 1, reads=True, axis=inner)

    def _read_by_gate(self, value: ir.Value, node: ir.Node, index: int, axis: int) -> bool:
        other = node.inputs[1 - index]
        if other is None:
            return False
        if float_constant(node, 1 - index) is None:
            self.gates.append((value, other))
        elif (str(node.name), 1 - index, False) in self.edits:
            return False
        return self._join(node.outputs[0], axis)


def apply(model: ir.Model, groups: Iterable[Group], factors: Mapping[str, Factors]) -> None:
    """Divide tensors and make up for it, in place.

    Args:
        model: The graph that the groups were found in.
        groups: All of them.
        factors: float32 [channels], positive, by name of the groups to divide.
    """
    nodes = {str(n.name): n for n in model.graph}
    values = {str(v.name): v for n in model.graph for v in n.outputs}
    values |= {str(v.name): v for v in model.graph.inputs}
    for group in groups:
        by = factors.get(group.name)
        if by is None:
            continue
        for edit in group.edits:
            node = nodes[edit.node]
            held = float_constant(node, edit.index)
            assert held is not None
            changed = (
                held * _inner(node, held, edit.axis, by)
                if edit.reads
                else held / _outer(node, held, edit.axis, by, group.rank)
            )
            set_input(node, edit.index, changed.astype(np.float32, copy=False), model.graph)
        if group.inserted:
            _insert(group, by, nodes, values)
    passes.RemoveUnusedNodesPass()(model)


def _inner(node: ir.Node, weights: NDArray[np.float32], axis: int, by: Factors) -> Factors:
    """Factors shaped to multiply the input channels of weights."""
    if node.op_type != "Conv":
        return by[:, None] if axis == 0 else by[None, :]
    groups = integer_of(node, "group", 1)
    rows = np.repeat(by.reshape(groups, -1), len(weights) // groups, axis=0)
    return rows.reshape(*rows.shape, *[1] * (weights.ndim - 2))


def _outer(node: ir.Node, held: NDArray[np.float32], axis: int, by: Factors, rank: int) -> Factors:
    """Factors shaped to divide a constant of a node that makes the tensor."""
    if node.op_type in ("Mul", "Add"):
        # Broadcast from the right, as the operator does.
        return by if axis == -1 else by.reshape(-1, *[1] * (rank - 2))
    return by.reshape(-1, *[1] * (held.ndim - 1)) if axis == 0 else by


def _insert(
    group: Group, by: Factors, nodes: Mapping[str, ir.Node], values: Mapping[str, ir.Value]
) -> None:
    """Put a Mul between a tensor and its products."""
    (data,) = group.tensors
    value, readers = values[data], [nodes[anchor] for _, anchor in group.reads]
    graph = readers[0].graph
    assert graph is not None
    smooth = ir.node("Mul", [value, value], name=f"{data}_smooth")
    smooth.outputs[0].name = f"{data}_smoothed"
    smooth.outputs[0].type, smooth.outputs[0].shape = value.type, value.shape
    maker = value.producer()
    if maker is None:
        graph.insert_before(next(iter(graph)), smooth)
    else:
        graph.insert_after(maker, smooth)
    set_input(smooth, 1, np.float32(1) / by, graph)
    for reader in readers:
        reader.replace_input_with(0, smooth.outputs[0])


def _inserted(data: ir.Value, anchors: Mapping[str, Anchor]) -> Group | None:
    """The group of a tensor that is divided by a Mul of its own, in front of its products only."""
    reads, edits, channels = [], [], set()
    for use in data.uses():
        node = use.node
        if str(node.name) not in anchors or node.op_type not in ("MatMul", "Gemm") or use.idx:
            continue
        weights = float_constant(node, 1)
        assert weights is not None
        inner = _input_axis(node)
        reads.append((str(data.name), str(node.name)))
        edits.append(Edit(str(node.name), 1, reads=True, axis=inner))
        channels.add(weights.shape[inner])
    if len(channels) != 1 or channels == {1}:
        return None
    return Group(tuple(reads), {str(data.name): -1}, tuple(edits), channels.pop(), inserted=True)


def _input_axis(product: ir.Node) -> int:
    """Where the weights of a Conv, Gemm or MatMul have their input channels, 0 or 1."""
    return 1 if product.op_type == "Conv" or integer_of(product, "transB", 0) else 0


def _present(node: ir.Node, indices: Iterable[int]) -> list[int]:
    return [i for i in indices if i < len(node.inputs) and node.inputs[i] is not None]


def _passes(node: ir.Node, axis: int) -> bool:
    if node.op_type not in _HOMOGENEOUS or node.domain not in ("", "ai.onnx"):
        return False
    # Pools and Resize mix what stands on the last axes.
    return axis == 1 or not (node.op_type.endswith("Pool") or node.op_type == "Resize")


def _is_pooled(node: ir.Node) -> bool:
    """Whether a reshape takes [n, c, 1, 1] to [n, c], as behind a global pool."""
    maker = node.inputs[0].producer() if node.inputs[0] is not None else None
    if maker is None or maker.op_type not in _GLOBAL:
        return False
    if node.op_type == "Flatten":
        return integer_of(node, "axis", 1) == 1
    shape = node.outputs[0].shape
    return shape is not None and len(shape) == 2


def _moved(node: ir.Node, axis: int, *, back: bool) -> int | None:
    """Where a Transpose takes the channels, 1 or -1; None where elsewhere."""
    if "perm" not in node.attributes:
        return None
    order = list(node.attributes["perm"].as_ints())
    here = axis % len(order)
    there = order[here] if back else order.index(here)
    if there == len(order) - 1:
        return -1
    return 1 if there == 1 else None
