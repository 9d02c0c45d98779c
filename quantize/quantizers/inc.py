"""Intel Neural Compressor's static quantization of the PyTorch module, as an engine.

    module ─export─▶ ATen graph ─prepare─▶ observers ◀─ calibration samples ─convert─▶ Q/DQ module
    ─torch.onnx─▶ ONNX ─▶ weights as codes, layers named as FP32's, constants apart, safe weights

It works by PT2E with Inductor's quantizer for x86 (`neural_compressor.torch`), on the module that
the FP32 file was exported from, so it needs a PyTorch source. Its defaults are kept but for the
ranges: unsigned asymmetric activations, signed symmetric weights per channel, pairs where Inductor
wants them. Weights are then rounded and biases corrected as the recipe says. A layer that stays in
float gets its weights back, and reads what stood before its input was rounded.
"""

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common as passes

from bench.errors import (
    InputError,
    UnfitError,
    UnsupportedError,
    UsageError,
    VnnifyError,
    describe_error,
)
from bench.models import Model
from bench.programs import quiet
from quantize.anchors import Anchor, integer_of
from quantize.calibrate import Calibration
from quantize.plugins import is_function_text
from quantize.prepare import tidy
from quantize.quantizers.completing import complete
from quantize.quantizers.feeding import Replay
from quantize.quantizers.native import QuantizedLayer
from quantize.quantizers.pairs import held, is_constant, layers_of, own_constants, unsign
from quantize.quantizers.refitting import refit
from quantize.recipe import Recipe
from quantize.rewrites import rewrite
from quantize.sources import torch as torch_source
from quantize.sources.seam import ModelSpec

_KEPT = "Neural Compressor left it in float"
_LAYERS = ("Conv", "Gemm", "MatMul")
# They tell every step on stderr, or that GPU kernels are missing.
_NOISY = ("neural_compressor", "torchao", "torch.utils._pytree")
# Codes of these are all that their type holds, so that a Clip to them changes nothing.
_CODES = (ir.DataType.INT8, ir.DataType.UINT8)


def write(
    source: Model, anchors: tuple[Anchor, ...], calibration: Calibration, recipe: Recipe
) -> tuple[ir.Model, tuple[QuantizedLayer, ...]]:
    """Quantize with Neural Compressor.

    Args:
        source: The prepared FP32 model.
        anchors: Of its graph; those whose mode is not "static" stay in float.
        calibration: Knows the samples, and the module that the model was exported from.
        recipe: Modes, target, rounding, bias correction. Ranges are all that was seen.

    Returns:
        The INT8 graph and one entry per anchor, in graph order.

    Raises:
        InputError: The calibration does not know the module or the samples.
        UnsupportedError: PT2E does not take the module.
    """
    rows = calibration.rows
    if calibration.origin is None or rows is None or calibration.source is None:
        raise InputError("--engine inc needs the module and the samples. Calibrate again.")
    file = rows.scratch / "inc.onnx"
    # Made once: modes and target change only what is done with it.
    rows.once("inc", lambda: _convert(source, calibration, file))
    model = ir.load(file)
    _drop_clips(model)
    partners = _partners(model, anchors, ir.load(source.path))
    _place(model, partners, {a.name: recipe.modes.get(a.name) == "static" for a in anchors})
    _take_in_pads(model)
    rewrite(model)
    model = tidy(model)
    own_constants(model)
    unsign(model)
    refit(model, source, anchors, calibration, recipe)
    layers = layers_of(model, anchors, recipe, _KEPT)
    complete(model, anchors, calibration.tensors)
    if all(x.mode == "float" for x in layers):
        raise UnsupportedError(
            f"Neural Compressor quantized none of the {len(anchors)} layers that were asked."
        )
    return model, layers


def require_module(source: ModelSpec) -> None:
    """Refuse what is no PyTorch module, and a missing package.

    Raises:
        UsageError: The model is a file.
        UnfitError: See `require`.
    """
    if not is_function_text(source.text):
        raise UsageError(
            f"{source.text}: --engine inc quantizes a PyTorch module that a function makes "
            "(file.py:factory --weights FILE). In an .onnx or .pt2 file Neural Compressor no "
            "longer finds its layers. Give the function, or use another engine."
        )
    require()


def require() -> Any:
    """The module neural_compressor.torch.quantization.

    Raises:
        UnfitError: It is missing, or does not work with what else is installed.
    """
    try:
        with quiet():
            # The logger first: it sets its own level and its handler for stderr on import.
            import neural_compressor.common.utils.logger

            for name in _NOISY:
                logging.getLogger(name).setLevel(logging.ERROR)
            import neural_compressor.torch.algorithms.pt2e_quant  # noqa: F401 - needs torchao
            import neural_compressor.torch.quantization as package
    except ImportError as e:
        raise UnfitError(
            "--engine inc needs the packages neural-compressor and torchao: "
            f"pip install 'vnnify[inc]' ({e})"
        ) from e
    return package


def _convert(source: Model, calibration: Calibration, out: Path) -> Path:
    """Neural Compressor's program as ONNX, whatever stays in float later."""
    spec, samples = calibration.origin, calibration.source
    assert spec is not None
    assert samples is not None
    feeds = Replay(source, samples, calibration.states)
    torch_source.convert_changed(spec, source, samples, feeds, _quantized, out)
    return out


def _quantized(
    module: Any, example: tuple[Any, ...], free: Any, batches: Iterator[tuple[Any, ...]]
) -> Any:
    """The module with Q/DQ pairs in it.

    Raises:
        UnsupportedError: PT2E cannot take it.
    """
    package = require()
    heard = _Heard()
    log = logging.getLogger("neural_compressor")
    level, handlers = log.level, log.handlers
    log.handlers = [heard]
    log.setLevel(logging.WARNING)
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _observed(package, module, example, free, batches, heard)
    except (VnnifyError, MemoryError):
        raise
    except Exception as e:  # torch and torchao let errors of every kind through.
        reason = heard.error or describe_error(e)
        raise UnsupportedError(
            f"Neural Compressor cannot quantize this model: {reason}. Use --engine native."
        ) from e
    finally:
        log.handlers = handlers
        log.setLevel(level)


def _observed(
    package: Any,
    module: Any,
    example: tuple[Any, ...],
    free: Any,
    batches: Iterator[tuple[Any, ...]],
    heard: "_Heard",
) -> Any:
    from neural_compressor.torch.export import export

    graph = export(module, example, dynamic_shapes=free)
    # Inductor's quantizer knows a layer by the function that it came from, which torch.export notes
    # where it traces strictly and nowhere else. Neural Compressor then goes on with what is left.
    if not any(node.meta.get("source_fn_stack") for node in graph.graph.nodes):
        raise UnsupportedError(
            "Neural Compressor finds no layers in this model, because torch.export cannot trace it "
            f"strictly: {heard.warning or 'no reason given'}. Use --engine native."
        )
    prepared = package.prepare(graph, package.get_default_static_config())
    _see_extremes(prepared)
    for tensors in batches:
        prepared(*tensors)
    return package.convert(prepared)


def _see_extremes(prepared: Any) -> None:
    """Let observers keep the least and the largest value.

    Neural Compressor's keep a moving average of each sample's, to which a sample adds a hundredth:
    ranges are nearly those of the first sample, and what lies beyond is cut off.
    """
    from torchao.quantization.pt2e.observer import MinMaxObserver, MovingAverageMinMaxObserver

    made: dict[int, Any] = {}
    for name, was in list(prepared.named_modules(remove_duplicate=False)):
        if type(was) is MovingAverageMinMaxObserver:
            # One observer under several names stands for tensors that share a range.
            if id(was) not in made:
                made[id(was)] = MinMaxObserver(
                    dtype=was.dtype,
                    qscheme=was.qscheme,
                    quant_min=was.quant_min,
                    quant_max=was.quant_max,
                    eps=was.eps,
                )
            setattr(prepared, name, made[id(was)])


class _Heard(logging.Handler):
    """Keeps what the log says in place of printing it; `export` tells its reasons nowhere else."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warning = self.error = ""

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())[:300]
        if record.levelno >= logging.ERROR:
            self.error = text
        elif not self.warning:
            self.warning = text


def _drop_clips(model: ir.Model) -> None:
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
class _Weights:
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

    def turned(self, order: list[int]) -> "_Weights":
        """The same weights behind a Transpose."""
        turned = np.ascontiguousarray(self.values.transpose(order))
        return _Weights(turned, self.scales, self.points, order.index(self.axis))

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


def _weights(value: ir.Value | None) -> _Weights | None:
    """What a constant, behind Transpose and a Q/DQ pair, holds; None where it is computed."""
    if value is None or is_constant(value):
        return None if value is None else _Weights(held(value))
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
    return _Weights(values, scales, points, integer_of(node, "axis", 1) % max(values.ndim, 1))


def _partners(
    model: ir.Model, anchors: tuple[Anchor, ...], fp32: ir.Model
) -> dict[str, tuple[ir.Node, _Weights]]:
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
    found: dict[str, tuple[ir.Node, _Weights]] = {}
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
    wanted: NDArray[np.float32], anchor: Anchor, node: ir.Node, weights: _Weights
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


def _place(
    model: ir.Model, partners: dict[str, tuple[ir.Node, _Weights]], static: dict[str, bool]
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


def _take_in_pads(model: ir.Model) -> None:
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


def _coded(graph: ir.Graph, node: ir.Node, weights: _Weights) -> ir.Value:
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
