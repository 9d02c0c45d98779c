"""Where Q/DQ pairs go: only where a runtime turns them into integer kernels.

    anchors (Conv, Gemm, MatMul, LSTM with constant weights) ─▶ modes ─▶ place() ─▶ Placement

An anchor is what gains from INT8. Glue (Add, Mul, pools, reshapes, …) is quantized only between
anchors, where a pair on every side lets the runtime stay in integers; elsewhere it stays in float,
since a lone pair costs time and precision for nothing. What the runtimes fuse was read from
onnxruntime 1.31's QDQ selectors (`core/optimizer/qdq_transformer`) and OpenVINO's low-precision
transformations.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from quantize.anchors import Anchor, Mode, end_of

Fusion: TypeAlias = Literal["onnxruntime", "openvino"]

# Whose output has the input's range, so that both share one scale and the kernel moves bytes.
_MOVES = frozenset(
    {
        "MaxPool",
        "Reshape",
        "Flatten",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Identity",
        "DepthToSpace",
    }
)
# Which have INT8 kernels with a range of their own.
_COMPUTES = frozenset(
    {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu", "Relu"}
)
# Operators that blow up the small values which 8 bits round to nothing: after them a signal front
# end (spectrogram, log-mel) has lost its quiet half.
_MAGNIFIERS = frozenset({"Log", "Pow", "Sqrt", "Reciprocal"})
# Inputs of one Concat share a scale; one whose range is this many times smaller keeps too few
# levels.
CONCAT_SPREAD = 8.0
_FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True, slots=True)
class Placement:
    """Which tensors are quantized, and who reads them.

    Attributes:
        modes: Mode of every anchor by node name.
        glue: Names of other nodes that run in integers.
        tensors: Quantized activations; each maps to the tensor whose scale it uses (mostly itself).
        rectified: Anchors and glue whose Relu or Clip is folded into the scale, to that tensor.
        reasons: Why an anchor is not "static" although it could be, or in float at all.
    """

    modes: dict[str, Mode]
    glue: frozenset[str]
    tensors: dict[str, str]
    rectified: dict[str, str]
    reasons: dict[str, str]


def watch_list(model: ir.Model, anchors: tuple[Anchor, ...]) -> tuple[str, ...]:
    """Names of the tensors whose statistics any placement could ask for."""
    widest = place(model, anchors, {a.name: a.modes[0] for a in anchors})
    read = (a.data for a in anchors if not a.nested and a.op != "LSTM")
    return tuple(sorted({*widest.tensors.values(), *read}))


def place(
    model: ir.Model,
    anchors: tuple[Anchor, ...],
    modes: Mapping[str, Mode],
    magnitudes: Mapping[str, float] | None = None,
    fused_for: Fusion = "onnxruntime",
) -> Placement:
    """Decide which tensors get Q/DQ pairs when the anchors run in `modes`.

    ONNX Runtime makes a convolution integer only if its output is quantized too, and runs glue in
    integers. OpenVINO fuses what follows a convolution (Swish, HardSwish, sums) into its kernel,
    and a pair between the two would tear them apart; it wants pairs on anchors' inputs alone.

    Args:
        model: The prepared FP32 graph.
        anchors: From `find_anchors`.
        modes: Mode by anchor name; one that is missing stays in float.
        magnitudes: Largest absolute value by tensor name, once calibrated; a tensor that is missing
            there cannot be quantized. None before calibration.
        fused_for: The runtime whose fusions decide.
    """
    return _Placing(model, anchors, dict(modes), magnitudes).result(fused_for)


class _Placing:
    """Holds the graph's cross-references while one placement is worked out."""

    def __init__(
        self,
        model: ir.Model,
        anchors: tuple[Anchor, ...],
        modes: dict[str, Mode],
        magnitudes: Mapping[str, float] | None,
    ) -> None:
        self.nodes = {str(n.name): n for n in model.graph}
        self.moved = {
            str(n.outputs[0].name): str(n.inputs[0].name)
            for n in self.nodes.values()
            if n.op_type in _MOVES and n.inputs[0] is not None
        }
        self.magnitudes = magnitudes
        self.anchors = {a.name: a for a in anchors}
        self.modes: dict[str, Mode] = {a.name: modes.get(a.name, "float") for a in anchors}
        self.reasons: dict[str, str] = {}
        self.rectified: dict[str, str] = {}

    def result(self, fused_for: Fusion) -> Placement:
        self._drop_unusable()
        if fused_for == "openvino":
            inputs = {a.data: a.data for a in self._static()}
            return Placement(self.modes, frozenset(), inputs, {}, self.reasons)
        glue = self._glue()
        tensors = self._tensors(glue)
        return Placement(self.modes, frozenset(glue), tensors, self.rectified, self.reasons)

    def _drop_unusable(self) -> None:
        """Back to float where a tensor's range makes no sense for 8 bits."""
        for anchor in self.anchors.values():
            if self.modes[anchor.name] != "static":
                continue
            reason = self._unusable(anchor)
            if reason:
                self.modes[anchor.name] = "float"
                self.reasons[anchor.name] = reason

    def _unusable(self, anchor: Anchor) -> str | None:
        node = self.nodes[anchor.name]
        if not self._has_range(anchor.data):
            return "its input holds non-finite values or was never seen"
        # First, since nobody watches the output of such a one.
        if anchor.op == "Conv" and _feeds_magnifier(node):
            return "a signal front end: its output goes into Log, Pow or Sqrt"
        if anchor.op == "Conv" and not self._has_range(self._end(node)):
            return "its output holds non-finite values or was never seen"
        return None

    def _has_range(self, name: str) -> bool:
        return self.magnitudes is None or self._watched(name) in self.magnitudes

    def _watched(self, name: str) -> str:
        """The tensor whose statistics are those of a tensor: nobody watches what was only moved."""
        while self.magnitudes is not None and name not in self.magnitudes and name in self.moved:
            name = self.moved[name]
        return name

    def _end(self, node: ir.Node) -> str:
        """The tensor to quantize after `node`: its output, or its Relu's or Clip's."""
        end = end_of(node)
        if end != node.outputs[0].name:
            self.rectified[str(node.name)] = end
        return end

    def _static(self) -> Iterator[Anchor]:
        return (a for a in self.anchors.values() if self.modes[a.name] == "static")

    def _glue(self) -> set[str]:
        """The largest set of glue whose inputs are all integers and whose output is wanted."""
        glue = {
            name
            for name, node in self.nodes.items()
            if node.op_type in _MOVES | _COMPUTES and self._fits(node)
        }
        while True:
            supplied = {self._end(self.nodes[n]) for n in glue}
            supplied |= {self._end(self.nodes[a.name]) for a in self._static() if a.op == "Conv"}
            wanted = {a.data for a in self._static()}
            wanted |= {str(v.name) for n in glue for v in self.nodes[n].inputs if v is not None}
            supplied |= {
                self._end(self.nodes[a.name])
                for a in self._static()
                if self._end(self.nodes[a.name]) in wanted
            }
            anchored = {a.data for a in self._static()}
            keep = {
                n
                for n in glue
                if self._end(self.nodes[n]) in wanted
                # Not so of a Relu that is folded into the scale of what comes before it.
                and self._inputs_supplied(n, supplied | anchored)
            }
            if keep == glue:
                return glue
            glue = keep

    def _inputs_supplied(self, name: str, supplied: set[str]) -> bool:
        node = self.nodes[name]
        data = node.inputs[:1] if node.op_type in _MOVES else node.inputs
        values = [v for v in data if v is not None]
        varying = [v for v in values if not v.is_initializer()]
        return bool(varying) and all(v.name in supplied for v in varying)

    def _fits(self, node: ir.Node) -> bool:
        data = node.inputs[:1] if node.op_type in _MOVES else node.inputs
        output = node.outputs[0]
        for value in (*data, output):
            if value is None or not _may_be_float(value):
                return False
            if value.is_initializer():
                if node.op_type not in ("Add", "Mul") or _follows_product(node):
                    return False
                if node.op_type == "Mul" and not _is_even(value):
                    return False
            elif not self._has_range(end_of(node) if value is output else str(value.name)):
                return False
        return node.op_type != "Concat" or self._concat_fits(node)

    def _concat_fits(self, node: ir.Node) -> bool:
        if self.magnitudes is None:
            return True
        names = [str(v.name) for v in node.inputs if v is not None]
        sizes = [self.magnitudes[self._watched(n)] for n in names]
        return max(sizes) <= CONCAT_SPREAD * max(min(sizes), 1e-12)

    def _tensors(self, glue: set[str]) -> dict[str, str]:
        tensors: dict[str, str] = {}
        for anchor in self._static():
            tensors[anchor.data] = anchor.data
        wanted = set(tensors) | {
            str(v.name)
            for n in glue
            for v in self.nodes[n].inputs
            if v is not None and not v.is_initializer()
        }
        for anchor in self._static():
            end = self._end(self.nodes[anchor.name])
            if anchor.op == "Conv" or end in wanted:
                tensors[end] = end
        for name in glue:
            node = self.nodes[name]
            data = node.inputs[:1] if node.op_type in _MOVES else node.inputs
            for value in data:
                if value is not None and not value.is_initializer():
                    tensors.setdefault(str(value.name), str(value.name))
            tensors.setdefault(self._end(node), self._end(node))
        return self._share_scales(tensors, glue)

    def _share_scales(self, tensors: dict[str, str], glue: set[str]) -> dict[str, str]:
        """Point the outputs of nodes that only move bytes at their input's scale."""
        for name, node in self.nodes.items():
            if name in glue and node.op_type in _MOVES and name not in self.rectified:
                source = str(node.inputs[0].name if node.inputs[0] is not None else "")
                tensors[str(node.outputs[0].name)] = tensors[source]
        return tensors


def _is_even(factors: ir.Value) -> bool:
    """Whether no factor is much larger than most: it would magnify the rounding of its channel.

    So in a batch norm behind a Relu, whose input has one scale for all channels.
    """
    tensor = factors.const_value
    sizes = np.abs(tensor.numpy()).reshape(-1) if tensor is not None else np.zeros(0)
    sizes = sizes[sizes > 0]
    return not sizes.size or float(sizes.max()) <= CONCAT_SPREAD * float(np.median(sizes))


def _follows_product(node: ir.Node) -> bool:
    """Whether it reads a MatMul: a bias in float takes no longer there, and loses nothing."""
    makers = [v.producer() for v in node.inputs if v is not None]
    return any(m is not None and m.op_type == "MatMul" for m in makers)


def _feeds_magnifier(node: ir.Node) -> bool:
    """Whether Log, Pow, Sqrt or a square is reached before another weighted operator."""
    seen: set[int] = set()
    queue = [node.outputs[0]]
    for _ in range(64):
        if not queue:
            return False
        value = queue.pop()
        for use in value.uses():
            after = use.node
            if id(after) in seen:
                continue
            seen.add(id(after))
            if after.op_type in _MAGNIFIERS and not _normalizes(after):
                return True
            squares = after.op_type == "Mul" and after.inputs[0] is after.inputs[1]
            if squares:
                return True
            if after.op_type in _MOVES or after.op_type in (
                "Slice",
                "Gather",
                "Abs",
                "Split",
                "Pad",
            ):
                queue.extend(after.outputs)
    return False


def _normalizes(node: ir.Node) -> bool:
    """Whether a Pow or Sqrt is a layer norm's, which tolerates 8 bits."""
    following = [use.node.op_type for v in node.outputs for use in v.uses()]
    return "ReduceMean" in following or "Div" in following


def _may_be_float(value: ir.Value) -> bool:
    return value.dtype in (None, _FLOAT)
