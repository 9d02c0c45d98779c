"""Layers whose inputs are quantized while the model runs: MatMul, Gemm and LSTM."""

import numpy as np
import onnx_ir as ir

from quantize.anchors import Anchor
from quantize.quantizers.editing import Editor
from quantize.quantizers.fitting import Fit
from quantize.quantizers.reading import bias_of, channels_at, constant_of
from quantize.quantizers.weights import Codes, quantize_weights
from quantize.targets import TARGETS

_MICROSOFT = "com.microsoft"


class DynamicWriter:
    """Writes dynamic layers; remembers the codes of an input, so that siblings share them."""

    def __init__(self, editor: Editor, target: str) -> None:
        self.editor, self.narrow = editor, TARGETS[target].narrow
        self.inputs: dict[str, tuple[ir.Value, ir.Value, ir.Value]] = {}

    def linear(self, anchor: Anchor, found: Fit) -> Codes:
        """MatMul or Gemm as the pattern that ONNX Runtime fuses into DynamicQuantizeMatMul."""
        node = self.editor.nodes[anchor.name]
        graph = node.graph or self.editor.graph
        codes, shift = found.codes, found.shift
        name = str(node.name)
        data, data_scale, data_zero = self._input(node)
        stored = channels_at(codes.codes, 1)
        held = self.editor.codes(node, f"{name}_weight_quantized", stored)
        zero = self.editor.constant(
            f"{name}_weight_zero_point", np.zeros(len(codes.scales), np.int8)
        )
        scales = self.editor.constant(f"{name}_weight_scale", codes.scales)
        product = ir.node("MatMulInteger", [data, held, data_zero, zero], name=f"{name}_integer")
        cast = ir.node(
            "Cast", product.outputs, attributes={"to": int(ir.DataType.FLOAT)}, name=f"{name}_cast"
        )
        unit = ir.node("Mul", [data_scale, scales], name=f"{name}_scales")
        result = ir.node("Mul", [cast.outputs[0], unit.outputs[0]], name=f"{name}_scaled")
        chain = [product, cast, unit, result]
        if anchor.op == "Gemm":
            bias = bias_of(node, len(shift)) + shift
            if np.any(bias):
                held_bias = self.editor.constant(f"{name}_bias_float", bias.astype(np.float32))
                added = ir.node("Add", [result.outputs[0], held_bias], name=f"{name}_biased")
                chain.append(added)
        else:
            self.editor.shift_following_add(node, shift)
        for part in chain:
            part.name = self.editor.free(str(part.name))
            part.outputs[0].name = self.editor.free(f"{part.name}_output")
        graph.insert_before(node, chain)
        self.editor.replace(node, chain[-1].outputs[0])
        return codes

    def _input(self, node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Codes, scale and zero point of a node's input; siblings share them."""
        value = node.inputs[0]
        assert value is not None
        graph = node.graph or self.editor.graph
        key = f"{id(graph)}:{value.name}"
        if key not in self.inputs:
            dynamic = ir.node(
                "DynamicQuantizeLinear",
                [value],
                num_outputs=3,
                name=self.editor.free(f"{value.name}_{node.name}_dql"),
            )
            for out, kind in zip(dynamic.outputs, ("codes", "scale", "zero"), strict=True):
                out.name = self.editor.free(f"{dynamic.name}_{kind}")
            graph.insert_before(node, dynamic)
            codes, scale, zero = dynamic.outputs
            self.inputs[key] = (codes, scale, zero)
        return self.inputs[key]

    def lstm(self, anchor: Anchor) -> Codes:
        """LSTM as ONNX Runtime's DynamicQuantizeLSTM; its weights are stored transposed."""
        node = self.editor.nodes[anchor.name]
        graph = node.graph or self.editor.graph
        name = str(node.name)
        parts = []
        for label, value in (("W", node.inputs[1]), ("R", node.inputs[2])):
            weights = constant_of(value)
            directions, gates, width = weights.shape
            codes = quantize_weights(weights.reshape(directions * gates, width), narrow=self.narrow)
            stored = codes.codes.reshape(directions, gates, width).transpose(0, 2, 1)
            scales = codes.scales.reshape(directions, gates)
            held = self.editor.constant(f"{name}_{label}_quantized", np.ascontiguousarray(stored))
            unit = self.editor.constant(f"{name}_{label}_scale", scales)
            zero = self.editor.constant(
                f"{name}_{label}_zero_point", np.zeros_like(scales, np.int8)
            )
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
            name=self.editor.free(f"{name}_quantized"),
        )
        self.editor.model.opset_imports.setdefault(_MICROSOFT, 1)
        if graph is not self.editor.graph:
            graph.opset_imports.setdefault(_MICROSOFT, 1)
        graph.insert_before(node, quantized)
        for old, new in zip(node.outputs, quantized.outputs, strict=True):
            taken, shape, kind = old.name, old.shape, old.type
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            if taken:
                old.name = f"{taken}_was"
            new.name, new.shape, new.type = taken, shape, kind
            self.editor.values[str(taken)] = new
        graph.remove(node, safe=True)
        merged = np.concatenate([first.scales, second.scales])
        narrowed = np.concatenate([first.narrowed, second.narrowed])
        return Codes(first.codes, merged, narrowed)
