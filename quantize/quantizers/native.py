"""Our own quantizer: Q/DQ pairs for static anchors, integer kernels for dynamic ones.

    FP32 graph + Placement + Calibration + Recipe ─▶ INT8 graph, one pass, deterministic

u8 asymmetric activations, s8 symmetric weights per output channel: the one format that is fast in
both ONNX Runtime and OpenVINO. Zero points are never shared between tensors, since ONNX Runtime's
exact mode (`session.x64quantprecision`) rejects graphs that do.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.anchors import Anchor, Mode
from quantize.calibrate import Calibration
from quantize.placement import Placement
from quantize.quantizers.fitting import Fit, fit
from quantize.quantizers.reading import (
    channels_first,
    choose_ranges,
    codes_of,
    constant_of,
    input_channels,
    keeps_float_weights,
)
from quantize.quantizers.weights import Codes, least_scales, quantize_bias, quantize_weights
from quantize.ranges import Range
from quantize.recipe import Recipe
from quantize.rows import Window, window_of
from quantize.targets import TARGETS

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
        self.model = model
        self.graph = model.graph
        self.anchors = anchors
        self.placement = placement
        self.calibration = calibration
        self.recipe = recipe
        self.narrow = TARGETS[recipe.target].narrow
        self.ranges = choose_ranges(placement, calibration, recipe, model)
        self.nodes = {str(n.name): n for n in model.graph.all_nodes()}
        self.values = {str(v.name): v for n in model.graph for v in n.outputs}
        self.values |= {str(v.name): v for v in model.graph.inputs}
        self.taken = {
            str(v.name) for g in (self.graph, *self.graph.subgraphs()) for v in _values(g)
        }
        self.taken |= set(self.nodes)
        static = {a.name for a in anchors if placement.modes[a.name] == "static"}
        self.integer_nodes = static | placement.glue
        self.integer_outputs = {
            placement.rectified.get(n, str(self.nodes[n].outputs[0].name))
            for n in self.integer_nodes
        }
        self.dynamic_inputs: dict[str, tuple[ir.Value, ir.Value, ir.Value]] = {}
        self.windows: dict[str, Window] = {}
        if calibration.rows is not None and (recipe.correct_bias or recipe.rounding == "learned"):
            flat = (a for a in anchors if a.op != "LSTM" and not a.nested)
            self.windows = {a.name: window_of(self.nodes[a.name], a) for a in flat}
            calibration.rows.capture(self.windows.values())

    def run(self) -> tuple[QuantizedLayer, ...]:
        layers = []
        for anchor in self.anchors:
            mode = self.placement.modes[anchor.name]
            codes: Codes | None = None
            if mode == "static":
                codes = self._static(anchor)
            elif mode == "dynamic" and anchor.op == "LSTM":
                codes = self._dynamic_lstm(anchor)
            elif mode == "dynamic":
                codes = self._dynamic_linear(anchor)
            layers.append(self._layer(anchor, mode, codes))
        self._quantize_glue_constants()
        for name in self._in_order(self.placement.tensors):
            self._pair(name)
        self._drop_unused()
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

    # Static

    def _static(self, anchor: Anchor) -> Codes:
        node = self.nodes[anchor.name]
        if anchor.op == "Gemm":
            _fold_gemm_factors(node, self)
        weights = channels_first(constant_of(node.inputs[1]), anchor.out_axis)
        source = self.ranges[self.placement.tensors[anchor.data]]
        scale = source.scale
        bias = self._bias(node, anchor, len(weights))
        room = least_scales(bias.astype(np.float32), scale) if anchor.op != "MatMul" else None
        found = self._fit(anchor, weights, source, room)
        if anchor.op == "MatMul":
            self._shift_following_add(node, found.shift)
        else:
            had_bias = len(node.inputs) > 2 and node.inputs[2] is not None
            if had_bias or found.corrected:
                self._integer_bias(node, bias + found.shift, scale, found.codes)
        self._weight_pair(node, anchor, found.codes)
        return found.codes

    def _bias(self, node: ir.Node, anchor: Anchor, channels: int) -> NDArray[np.float64]:
        if anchor.op == "MatMul" or len(node.inputs) < 3 or node.inputs[2] is None:
            return np.zeros(channels)
        return np.broadcast_to(constant_of(node.inputs[2]).reshape(-1), (channels,)).astype(
            np.float64
        )

    def _fit(
        self,
        anchor: Anchor,
        weights: NDArray[np.float32],
        source: Range | None = None,
        room: NDArray[np.float32] | None = None,
    ) -> Fit:
        """The layer's integers; worked out once for all candidates that ask for the same."""
        store, recipe = self.calibration.rows, self.recipe
        window = self.windows.get(anchor.name)

        def make() -> Fit:
            return fit(
                weights,
                store.rows(window) if store is not None and window is not None else None,
                source,
                narrow=self.narrow,
                least_scales=room,
                correct=recipe.correct_bias,
                rounding=recipe.rounding,
            )

        if store is None:
            return make()
        key = (anchor.name, source, self.narrow, recipe.correct_bias, recipe.rounding)
        return store.once(key, make)

    def _shift_following_add(self, node: ir.Node, shift: NDArray[np.float64]) -> None:
        """Put a MatMul's bias shift into the constant of the Add behind it, where there is one."""
        uses = node.outputs[0].uses()
        if not np.any(shift) or len(uses) != 1:
            return
        add = next(iter(uses)).node
        if add.op_type != "Add":
            return
        for i, value in enumerate(add.inputs):
            if value is not None and value.is_initializer() and value.const_value is not None:
                bias = value.const_value.numpy()
                if bias.shape[-1:] == shift.shape:
                    moved = (bias + shift).astype(np.float32)
                    add.replace_input_with(i, self._constant(f"{value.name}_{node.name}", moved))
                return

    def _integer_bias(
        self, node: ir.Node, bias: NDArray[np.float64], scale: np.float32, codes: Codes
    ) -> None:
        values, units = quantize_bias(bias, scale, codes.scales)
        name = f"{node.name}_bias"
        pair = ir.node(
            "DequantizeLinear",
            [
                self._constant(f"{name}_quantized", values),
                self._constant(f"{name}_scale", units),
                self._constant(f"{name}_zero_point", np.zeros(len(units), np.int32)),
            ],
            attributes={"axis": 0},
            name=name,
        )
        self._insert_pair(node, pair)
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, pair.outputs[0])

    def _weight_pair(self, node: ir.Node, anchor: Anchor, codes: Codes) -> None:
        name = f"{node.name}_weight"
        stored = np.ascontiguousarray(np.moveaxis(codes.codes, 0, anchor.out_axis))
        pair = ir.node(
            "DequantizeLinear",
            [
                self._constant(f"{name}_quantized", stored),
                self._constant(f"{name}_scale", codes.scales),
                self._constant(f"{name}_zero_point", np.zeros(len(codes.scales), np.int8)),
            ],
            attributes={"axis": anchor.out_axis},
            name=name,
        )
        self._insert_pair(node, pair)
        node.replace_input_with(1, pair.outputs[0])

    def _insert_pair(self, node: ir.Node, pair: ir.Node) -> None:
        """Put the DequantizeLinear of a constant before its reader."""
        pair.outputs[0].name = self._free(f"{pair.name}_dequantized")
        pair.name = self._free(f"{pair.name}_dequantize")
        self.graph.insert_before(node, pair)

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
                    scales = self._scale(f"{name}_operand_{i}", Range(min(low, 0), max(high, 0)))
                    codes = codes_of(values, Range(min(low, 0), max(high, 0)))
                    held = self._constant(f"{name}_operand_{i}_quantized", codes)
                    pair = ir.node("DequantizeLinear", [held, *scales], name=f"{name}_operand_{i}")
                    self._insert_pair(node, pair)
                    node.replace_input_with(i, pair.outputs[0])

    def _pair(self, name: str) -> None:
        """Put a Q/DQ pair behind the tensor `name` and let integer readers read through it."""
        value = self.values[name]
        uses = list(value.uses())
        produced = value.producer()
        source = self.ranges[self.placement.tensors[name]]
        quantize = ir.node(
            "QuantizeLinear",
            [value, *self._scale(name, source)],
            name=self._free(f"{name}_quantize"),
        )
        quantize.outputs[0].name = self._free(f"{name}_quantized")
        # A second set of initializers: sharing them between Q and DQ is fine, between tensors is
        # not.
        back = ir.node(
            "DequantizeLinear",
            [quantize.outputs[0], *quantize.inputs[1:]],
            name=self._free(f"{name}_dequantize"),
        )
        back.outputs[0].name = self._free(f"{name}_dequantized")
        self._insert_after(produced, [quantize, back])
        integers = name in self.integer_outputs
        for use in uses:
            if use.idx == 0 and keeps_float_weights(use.node):
                use.node.replace_input_with(0, self._shielded(name, use.node, quantize))
            elif integers or str(use.node.name) in self.integer_nodes:
                use.node.replace_input_with(use.idx, back.outputs[0])
        if integers:
            self._move_output(value, back.outputs[0])

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
                self._constant(f"{stem}_scale", scales),
                self._constant(f"{stem}_zero_point", zeros),
            ],
            attributes={"axis": 1},
            name=self._free(f"{stem}_dequantize"),
        )
        back.outputs[0].name = self._free(f"{stem}_dequantized")
        self.graph.insert_after(quantize, back)
        return back.outputs[0]

    def _insert_after(self, producer: ir.Node | None, nodes: list[ir.Node]) -> None:
        if producer is not None:
            self.graph.insert_after(producer, nodes)
            return
        first = next(iter(self.graph))
        self.graph.insert_before(first, nodes)

    def _move_output(self, value: ir.Value, after: ir.Value) -> None:
        """If `value` is a graph output, let `after` be it, under the same name."""
        for i, output in enumerate(self.graph.outputs):
            if output is value:
                name = str(value.name)
                after.type, after.shape = value.type, value.shape
                self.graph.outputs[i] = after
                value.name = self._free(f"{name}_float")
                after.name = name

    def _scale(self, name: str, chosen: Range) -> tuple[ir.Value, ir.Value]:
        return (
            self._constant(f"{name}_scale", np.asarray(chosen.scale, np.float32)),
            self._constant(f"{name}_zero_point", np.asarray(chosen.zero_point, np.uint8)),
        )

    # Dynamic

    def _dynamic_linear(self, anchor: Anchor) -> Codes:
        """MatMul or Gemm as the pattern that ONNX Runtime fuses into DynamicQuantizeMatMul."""
        node = self.nodes[anchor.name]
        graph = node.graph or self.graph
        if anchor.op == "Gemm":
            _fold_gemm_factors(node, self)
        weights = channels_first(constant_of(node.inputs[1]), anchor.out_axis)
        found = self._fit(anchor, weights)
        codes, shift = found.codes, found.shift
        name = str(node.name)
        data, data_scale, data_zero = self._dynamic_input(node)
        held = self._constant(f"{name}_weight_quantized", np.ascontiguousarray(codes.codes.T))
        zero = self._constant(f"{name}_weight_zero_point", np.zeros(len(codes.scales), np.int8))
        scales = self._constant(f"{name}_weight_scale", codes.scales)
        product = ir.node("MatMulInteger", [data, held, data_zero, zero], name=f"{name}_integer")
        cast = ir.node(
            "Cast", product.outputs, attributes={"to": int(ir.DataType.FLOAT)}, name=f"{name}_cast"
        )
        unit = ir.node("Mul", [data_scale, scales], name=f"{name}_scales")
        result = ir.node("Mul", [cast.outputs[0], unit.outputs[0]], name=f"{name}_scaled")
        chain = [product, cast, unit, result]
        if anchor.op == "Gemm":
            bias = self._bias(node, anchor, len(weights)) + shift
            if np.any(bias):
                held_bias = self._constant(f"{name}_bias_float", bias.astype(np.float32))
                added = ir.node("Add", [result.outputs[0], held_bias], name=f"{name}_biased")
                chain.append(added)
        else:
            self._shift_following_add(node, shift)
        for part in chain:
            part.name = self._free(str(part.name))
            part.outputs[0].name = self._free(f"{part.name}_output")
        graph.insert_before(node, chain)
        self._replace(node, chain[-1].outputs[0])
        return codes

    def _dynamic_input(self, node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Codes, scale and zero point of a node's input; siblings share them."""
        value = node.inputs[0]
        assert value is not None
        graph = node.graph or self.graph
        key = f"{id(graph)}:{value.name}"
        if key not in self.dynamic_inputs:
            dynamic = ir.node(
                "DynamicQuantizeLinear",
                [value],
                num_outputs=3,
                name=self._free(f"{value.name}_{node.name}_dql"),
            )
            for out, kind in zip(dynamic.outputs, ("codes", "scale", "zero"), strict=True):
                out.name = self._free(f"{dynamic.name}_{kind}")
            graph.insert_before(node, dynamic)
            codes, scale, zero = dynamic.outputs
            self.dynamic_inputs[key] = (codes, scale, zero)
        return self.dynamic_inputs[key]

    def _dynamic_lstm(self, anchor: Anchor) -> Codes:
        """LSTM as ONNX Runtime's DynamicQuantizeLSTM; its weights are stored transposed."""
        node = self.nodes[anchor.name]
        graph = node.graph or self.graph
        name = str(node.name)
        parts = []
        for label, value in (("W", node.inputs[1]), ("R", node.inputs[2])):
            weights = constant_of(value)
            directions, gates, width = weights.shape
            codes = quantize_weights(weights.reshape(directions * gates, width), narrow=self.narrow)
            stored = codes.codes.reshape(directions, gates, width).transpose(0, 2, 1)
            scales = codes.scales.reshape(directions, gates)
            held = self._constant(f"{name}_{label}_quantized", np.ascontiguousarray(stored))
            unit = self._constant(f"{name}_{label}_scale", scales)
            zero = self._constant(f"{name}_{label}_zero_point", np.zeros_like(scales, np.int8))
            parts.append((codes, held, unit, zero))
        (first, w, w_scale, w_zero), (second, r, r_scale, r_zero) = parts
        optional = [*node.inputs[3:7], *([None] * (4 - len(node.inputs[3:7])))]
        inputs = [node.inputs[0], w, r, *optional, None, w_scale, w_zero, r_scale, r_zero]
        kept = {k: v for k, v in node.attributes.items() if k not in ("layout", "clip")}
        quantized = ir.Node(
            _MICROSOFT,
            "DynamicQuantizeLSTM",
            inputs,
            kept.values(),
            num_outputs=len(node.outputs),
            name=self._free(f"{name}_quantized"),
        )
        self.model.opset_imports.setdefault(_MICROSOFT, 1)
        if graph is not self.graph:
            graph.opset_imports.setdefault(_MICROSOFT, 1)
        graph.insert_before(node, quantized)
        for old, new in zip(node.outputs, quantized.outputs, strict=True):
            taken, shape, kind = old.name, old.shape, old.type
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            if taken:
                old.name = f"{taken}_was"
            new.name, new.shape, new.type = taken, shape, kind
            self.values[str(taken)] = new
        graph.remove(node, safe=True)
        merged = np.concatenate([first.scales, second.scales])
        narrowed = np.concatenate([first.narrowed, second.narrowed])
        return Codes(first.codes, merged, narrowed)

    def _replace(self, node: ir.Node, after: ir.Value) -> None:
        was = node.outputs[0]
        name, shape, kind = was.name, was.shape, was.type
        was.replace_all_uses_with(after, replace_graph_outputs=True)
        was.name = f"{name}_was"
        after.name, after.shape, after.type = name, shape, kind
        self.values[str(name)] = after
        (node.graph or self.graph).remove(node, safe=True)

    # Both

    def _free(self, name: str) -> str:
        """`name`, with a number behind it where the model has something of that name."""
        free, count = name, 1
        while free in self.taken:
            free, count = f"{name}_{count}", count + 1
        self.taken.add(free)
        return free

    def _constant(self, name: str, values: NDArray[np.generic]) -> ir.Value:
        """A new initializer of the main graph."""
        free = self._free(name)
        tensor = ir.Tensor(values, name=free)
        value = ir.Value(
            name=free, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def _drop_unused(self) -> None:
        for name in list(self.graph.initializers):
            value = self.graph.initializers[name]
            if not value.uses() and not value.is_graph_output():
                del self.graph.initializers[name]


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _fold_gemm_factors(node: ir.Node, writer: "_Writer") -> None:
    """Move a Gemm's alpha and beta into its constants, since the INT8 kernel takes neither."""
    alpha = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 1.0
    beta = node.attributes["beta"].as_float() if "beta" in node.attributes else 1.0
    if alpha != 1.0:
        scaled = (constant_of(node.inputs[1]) * np.float32(alpha)).astype(np.float32)
        node.replace_input_with(1, writer._constant(f"{node.name}_scaled", scaled))  # noqa: SLF001
    if beta != 1.0 and len(node.inputs) > 2 and node.inputs[2] is not None:
        scaled = (constant_of(node.inputs[2]) * np.float32(beta)).astype(np.float32)
        node.replace_input_with(2, writer._constant(f"{node.name}_shifted", scaled))  # noqa: SLF001
    for name in ("alpha", "beta"):
        if name in node.attributes:
            del node.attributes[name]
