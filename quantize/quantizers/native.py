"""Our own quantizer: Q/DQ pairs for static anchors, integer kernels for dynamic ones.

    FP32 graph + Placement + Calibration + Recipe ─▶ INT8 graph, one pass, deterministic

u8 asymmetric activations, s8 symmetric weights per output channel: the one format that is fast in
both ONNX Runtime and OpenVINO. Zero points are never shared between tensors, since ONNX Runtime's
exact mode (`session.x64quantprecision`) rejects graphs that do. Codes of weights that several
layers read are stored once.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from bench.wire import LEAST_BYTES
from quantize.anchors import Anchor, Mode
from quantize.calibrate import Calibration
from quantize.layerwise import side_by_side
from quantize.placement import Placement
from quantize.quantizers.dynamic import DynamicWriter
from quantize.quantizers.editing import Editor
from quantize.quantizers.fitting import Fit, Fitter
from quantize.quantizers.reading import (
    bias_of,
    channels_at,
    choose_ranges,
    codes_of,
    constant_of,
    input_channels,
    keeps_float_weights,
)
from quantize.quantizers.weights import Codes, least_scales, quantize_bias
from quantize.ranges import Range
from quantize.recipe import Recipe

_MICROSOFT = "com.microsoft"


@dataclass(frozen=True, slots=True)
class QuantizedLayer:
    """What became of one anchor.

    Attributes:
        name: Of the node.
        op: Its operator.
        mode: "static", "dynamic" or "float".
        narrowed: Output channels narrowed to be safe on CPUs that saturate.
        channels: Output channels in all.
        reason: Why it is not INT8, or None.
    """

    name: str
    op: str
    mode: Mode
    narrowed: int
    channels: int
    reason: str | None


def write(
    model: ir.Model,
    anchors: tuple[Anchor, ...],
    placement: Placement,
    calibration: Calibration,
    recipe: Recipe,
) -> tuple[QuantizedLayer, ...]:
    """Turn an FP32 graph into an INT8 one, in place.

    Args:
        model: A freshly loaded copy of the prepared model.
        anchors: From `find_anchors` of that model.
        placement: From `place` of that model.
        calibration: Statistics of every tensor in `placement.tensors`.
        recipe: Range methods, target, bias correction.

    Returns:
        One entry per anchor, in graph order.
    """
    return _Writer(model, anchors, placement, calibration, recipe).run()


class _Writer:
    """The graph while it is rewritten, and the tables that keep pairs from being made twice."""

    def __init__(
        self,
        model: ir.Model,
        anchors: tuple[Anchor, ...],
        placement: Placement,
        calibration: Calibration,
        recipe: Recipe,
    ) -> None:
        self.editor = Editor(model)
        self.graph, self.nodes = model.graph, self.editor.nodes
        self.anchors = anchors
        self.placement = placement
        self.fitter = Fitter(self.nodes, anchors, calibration.rows, recipe)
        self.dynamic = DynamicWriter(self.editor, recipe.target)
        self.ranges = choose_ranges(placement, calibration, recipe, anchors)
        static = {a.name for a in anchors if placement.modes[a.name] == "static"}
        self.integer_nodes = static | placement.glue
        self.readers = Counter(
            str(value.name)
            for a in anchors
            if placement.modes[a.name] != "float"
            and (value := self.nodes[a.name].inputs[1]) is not None
        )
        self.integer_outputs = {
            placement.rectified.get(n, str(self.nodes[n].outputs[0].name))
            for n in self.integer_nodes
        }

    def run(self) -> tuple[QuantizedLayer, ...]:
        fits, layers = self._fits(), []
        for anchor in self.anchors:
            mode = self.placement.modes[anchor.name]
            codes: Codes | None = None
            if mode == "static":
                codes = self._static(anchor, fits.pop(anchor.name))
            elif mode == "dynamic" and anchor.op == "LSTM":
                codes = self.dynamic.lstm(anchor)
            elif mode == "dynamic":
                codes = self.dynamic.linear(anchor, fits.pop(anchor.name))
            layers.append(self._layer(anchor, mode, codes))
        self._quantize_glue_constants()
        for name in self._in_order(self.placement.tensors):
            self._pair(name)
        self.editor.drop_unused()
        return tuple(layers)

    def _layer(self, anchor: Anchor, mode: Mode, codes: Codes | None) -> QuantizedLayer:
        reason = self.placement.reasons.get(anchor.name)
        narrowed = int(codes.narrowed.sum()) if codes else 0
        channels = len(codes.scales) if codes else 0
        return QuantizedLayer(anchor.name, anchor.op, mode, narrowed, channels, reason)

    def _in_order(self, names: Mapping[str, str]) -> list[str]:
        order = [str(v.name) for v in self.graph.inputs]
        order += [str(v.name) for n in self.graph for v in n.outputs]
        return [n for n in order if n in names]

    def _fits(self) -> dict[str, Fit]:
        """The integers of layers, worked out side by side, by name; an LSTM's are only rounded."""
        found: dict[str, Fit] = {}

        def keep(name: str, work: Callable[[], Fit]) -> None:
            found[name] = work()

        store = self.fitter.store
        modes = self.placement.modes
        fitted = (a for a in self.anchors if modes[a.name] != "float" and a.op != "LSTM")
        # What looks at the graph stays in this thread.
        jobs = (partial(keep, a.name, self._fit(a)) for a in fitted)
        side_by_side(jobs, store.threads if store is not None else 1)
        return found

    def _fit(self, anchor: Anchor) -> Callable[[], Fit]:
        """What works out a layer's integers."""
        node = self.nodes[anchor.name]
        if anchor.op == "Gemm":
            self.editor.fold_gemm_factors(node)
        weights = constant_of(node.inputs[1])
        channels = weights.shape[anchor.out_axis]
        source, room = None, None
        if self.placement.modes[anchor.name] == "static":
            source = self.ranges[self.placement.tensors[anchor.data]]
            bias = bias_of(node, channels).astype(np.float32)
            room = least_scales(bias, source.scale) if anchor.op != "MatMul" else None
        movable = anchor.op != "MatMul" or self.editor.added_constant(node, channels) is not None
        fit, shared = self.fitter.fit, self._shared(node, weights.size)
        return partial(fit, anchor, weights, source, room, movable=movable, shared=shared)

    def _shared(self, node: ir.Node, size_bytes: int) -> str | None:
        """Name of a layer's weights, where codes of their own for each reader would be large."""
        assert node.inputs[1] is not None
        name = str(node.inputs[1].name)
        return name if (self.readers[name] - 1) * size_bytes >= LEAST_BYTES else None

    # Static

    def _static(self, anchor: Anchor, found: Fit) -> Codes:
        node, channels = self.nodes[anchor.name], len(found.shift)
        if anchor.op == "MatMul":
            self.editor.shift_following_add(node, found.shift)
            self.editor.keep_add_apart(node, channels)
        else:
            had_bias = len(node.inputs) > 2 and node.inputs[2] is not None
            if had_bias or found.corrected:
                total = bias_of(node, channels) + found.shift
                scale = self.ranges[self.placement.tensors[anchor.data]].scale
                self.editor.integer_bias(node, *quantize_bias(total, scale, found.codes.scales))
        self._weight_pair(node, anchor, found.codes)
        return found.codes

    def _weight_pair(self, node: ir.Node, anchor: Anchor, codes: Codes) -> None:
        name = f"{node.name}_weight"
        stored = channels_at(codes.codes, anchor.out_axis)
        pair = ir.node(
            "DequantizeLinear",
            [
                self.editor.codes(node, f"{name}_quantized", stored),
                self.editor.constant(f"{name}_scale", codes.scales),
                self.editor.constant(f"{name}_zero_point", np.zeros(len(codes.scales), np.int8)),
            ],
            attributes={"axis": anchor.out_axis},
            name=name,
        )
        self.editor.insert_pair(node, pair)
        node.replace_input_with(1, pair.outputs[0])

    def _quantize_glue_constants(self) -> None:
        """Constant operands of Add and Mul get a scale per tensor."""
        for name in sorted(self.placement.glue):
            node = self.nodes[name]
            if node.op_type not in ("Add", "Mul"):
                continue
            for i, value in enumerate(node.inputs):
                if value is not None and value.is_initializer():
                    values = constant_of(value)
                    low, high = float(values.min(initial=0)), float(values.max(initial=0))
                    scales = self.editor.scale(
                        f"{name}_operand_{i}", Range(min(low, 0), max(high, 0))
                    )
                    codes = codes_of(values, Range(min(low, 0), max(high, 0)))
                    held = self.editor.constant(f"{name}_operand_{i}_quantized", codes)
                    pair = ir.node("DequantizeLinear", [held, *scales], name=f"{name}_operand_{i}")
                    self.editor.insert_pair(node, pair)
                    node.replace_input_with(i, pair.outputs[0])

    def _pair(self, name: str) -> None:
        """Put a Q/DQ pair behind the tensor `name` and let integer readers read through it."""
        value = self.editor.values[name]
        uses = list(value.uses())
        source = self.ranges[self.placement.tensors[name]]
        quantize, back = self.editor.pair_behind(value, source)
        integers = name in self.integer_outputs
        for use in uses:
            if use.idx == 0 and keeps_float_weights(use.node):
                use.node.replace_input_with(0, self._shielded(name, use.node, quantize))
            elif integers or str(use.node.name) in self.integer_nodes:
                use.node.replace_input_with(use.idx, back.outputs[0])
        if integers:
            self.editor.move_output(value, back.outputs[0])

    def _shielded(self, name: str, reader: ir.Node, quantize: ir.Node) -> ir.Value:
        """The dequantized tensor for a convolution or Gemm that has to stay in float.

        ONNX Runtime quantizes the weights of such a node itself, per tensor, when it stands between
        a DequantizeLinear with one scale and a QuantizeLinear (`weight_bias_quantization.cc`): a
        depthwise layer kept in float for its accuracy would lose it after all. It leaves a
        DequantizeLinear with a scale per channel alone, so all channels get the same one.
        """
        channels = input_channels(reader)
        source = self.ranges[self.placement.tensors[name]]
        stem = f"{name}_for_{reader.name}"
        scales = np.full(channels, source.scale, np.float32)
        zeros = np.full(channels, source.zero_point, np.uint8)
        back = ir.node(
            "DequantizeLinear",
            [
                quantize.outputs[0],
                self.editor.constant(f"{stem}_scale", scales),
                self.editor.constant(f"{stem}_zero_point", zeros),
            ],
            attributes={"axis": 1},
            name=self.editor.free(f"{stem}_dequantize"),
        )
        back.outputs[0].name = self.editor.free(f"{stem}_dequantized")
        self.graph.insert_after(quantize, back)
        return back.outputs[0]
