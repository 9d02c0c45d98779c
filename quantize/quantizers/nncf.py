"""NNCF's post-training quantization of the ONNX graph, as an engine beside our own.

    FP32 file + the calibration samples, streamed once more ─▶ nncf.quantize ─▶ INT8 graph
    ─▶ constants apart, s8 activations as u8, weights safe for the target

NNCF collects its own statistics, so our histograms are not used; the samples, the layers that stay
in float and the target are ours. Activations are asymmetric, weights symmetric per channel
(`MIXED`), as with the native engine. For a target that narrows, NNCF halves the range of weights
(`OverflowFix.ENABLE`), but not of depthwise ones; what could still saturate is halved afterwards.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from bench.errors import InputError, ResourceError, UnfitError, UnsupportedError
from bench.models import Feeds, Model
from bench.runtimes import RUNTIMES, Settings
from quantize.anchors import Anchor
from quantize.calibrate import Calibration
from quantize.data import Samples
from quantize.quantizers.native import QuantizedLayer
from quantize.recipe import Recipe
from quantize.targets import TARGETS, can_saturate

# NNCF hands whole models to protobuf's serializer, which takes 2 GiB.
_LARGEST_BYTES = 2_000_000_000
# Two neighbours of at most 64 cannot leave 16 bits: 255 * (64 + 64) = 32,640.
_SAFE_CODE = 64
_KEPT = "NNCF left it in float"


def write(
    source: Model, anchors: tuple[Anchor, ...], calibration: Calibration, recipe: Recipe
) -> tuple[ir.Model, tuple[QuantizedLayer, ...]]:
    """Quantize with NNCF.

    Args:
        source: The prepared FP32 model.
        anchors: Of its graph; those whose mode is not "static" are kept from NNCF.
        calibration: Knows the samples, and how state goes from one to the next.
        recipe: Modes and target. Ranges and bias correction are NNCF's own.

    Returns:
        The INT8 graph and one entry per anchor, in graph order.

    Raises:
        UnfitError: The package nncf is missing.
        UnsupportedError: NNCF does not take this model.
    """
    package = require()
    if calibration.source is None:
        raise InputError("NNCF needs the calibration samples themselves. Calibrate again.")
    if source.size_bytes > _LARGEST_BYTES:
        raise UnsupportedError(
            f"{source.path}: has {source.size_bytes:,} bytes; NNCF takes ONNX models of at most "
            f"{_LARGEST_BYTES:,}. Use --engine native."
        )
    replay = _Replay(source, calibration.source, calibration.states)
    made = _run(package, source.path, replay, _options(package, anchors, recipe, source))
    model = ir.from_proto(made)
    _own(model)
    _unsign(model)
    layers = _layers(model, anchors, recipe)
    if all(x.mode == "float" for x in layers):
        raise UnsupportedError(f"NNCF quantized none of the {len(anchors)} layers that were asked.")
    return model, layers


def require() -> Any:
    """The package nncf.

    Raises:
        UnfitError: It is missing, or does not work with what else is installed.
    """
    try:
        import nncf
        import nncf.onnx.quantization.quantize_model
    except ImportError as e:
        raise UnfitError(
            f"--engine nncf needs the package nncf: pip install 'vnnify[nncf]' ({e})"
        ) from e
    # Its log goes to stdout, which belongs to reports; what matters comes as an exception. Not by
    # nncf.set_log_level: that turns down the handlers of the logger too, whoever's they are.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf


@dataclass(frozen=True, slots=True)
class _Replay:
    """The calibration samples as NNCF reads them: one at a time, as often as it likes.

    A carried state is computed by FP32, as it is while the native engine calibrates.
    """

    model: Model
    samples: Samples
    states: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Feeds]:
        if not self.states:
            yield from (sample.feeds for sample in self.samples)
            return
        session = RUNTIMES["onnxruntime"].open(self.model.path, Settings(threads=1))
        carried: Feeds = {}
        try:
            for sample in self.samples:
                feeds = {**sample.feeds, **carried}
                yield feeds
                outputs = session.run(feeds)
                carried = {taker: outputs[giver] for giver, taker in self.states.items()}
        finally:
            session.close()


def _options(
    package: Any, anchors: tuple[Anchor, ...], recipe: Recipe, source: Model
) -> dict[str, Any]:
    from nncf.quantization.advanced_parameters import OverflowFix, QuantizationParameters

    narrow = TARGETS[recipe.target].narrow
    floats = [a.name for a in anchors if recipe.modes.get(a.name) != "static"]
    attention = _has_attention(ir.load(source.path))
    return {
        "preset": package.QuantizationPreset.MIXED,
        "target_device": package.TargetDevice.CPU,
        "model_type": package.ModelType.TRANSFORMER if attention else None,
        # Names inside an If or Loop are unknown to NNCF, which never looks there.
        "ignored_scope": package.IgnoredScope(names=floats, validate=False),
        "advanced_parameters": package.AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.ENABLE if narrow else OverflowFix.DISABLE,
            disable_bias_correction=not recipe.correct_bias,
            # Left to itself it gives inputs of depthwise convolutions a scale per channel, which
            # ONNX Runtime's kernel refuses when the model runs.
            activations_quantization_params=QuantizationParameters(per_channel=False),
        ),
    }


def _has_attention(model: ir.Model) -> bool:
    """Whether a Softmax feeds a product of two activations, directly or a few steps on."""
    for node in model.graph:
        if node.op_type == "Softmax":
            seen = [node]
            for _ in range(4):
                seen = [u.node for n in seen for v in n.outputs for u in v.uses()]
                if any(n.op_type == "MatMul" and not _constant(n.inputs[1]) for n in seen):
                    return True
    return False


def _run(package: Any, path: Path, replay: _Replay, options: Mapping[str, Any]) -> Any:
    import onnx

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        # Divisions by zero inside its statistics; a scale that is no number is found afterwards.
        warnings.simplefilter("ignore")
        try:
            return package.quantize(
                onnx.load(str(path)),
                package.Dataset(replay),
                subset_size=len(replay),
                **options,
            )
        except (InputError, MemoryError, ResourceError):
            raise
        except Exception as e:  # NNCF lets errors of every kind through.
            text = " ".join(str(e).split())[:300] or "no message"
            raise UnsupportedError(
                f"NNCF cannot quantize this model: {type(e).__name__}: {text}. Use --engine native."
            ) from e


def _own(model: ir.Model) -> None:
    """Give every Q/DQ pair a scale and a zero point of its own.

    ONNX Runtime's exact mode rejects a graph in which different tensors share a zero point.
    """
    taken = {str(v.name) for n in model.graph for v in n.outputs} | set(model.graph.initializers)
    owner: dict[str, str] = {}
    for node in model.graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        pair = str(_quantized(node).name)
        for i in range(1, len(node.inputs)):
            value = node.inputs[i]
            if value is None or value.const_value is None:
                continue
            name = str(value.name)
            if owner.setdefault(name, pair) == pair:
                continue
            fresh = f"{name}_of_{pair}"
            if fresh not in taken:
                taken.add(fresh)
                copy = ir.Value(name=fresh, shape=value.shape, type=value.type)
                copy.const_value = ir.Tensor(value.const_value.numpy(), name=fresh)
                model.graph.register_initializer(copy)
            node.replace_input_with(i, model.graph.initializers[fresh])


def _unsign(model: ir.Model) -> None:
    """Write s8 activations as u8, which both runtimes are faster with: code and zero point + 128.

    The values stay what they were, bit by bit. Only for pairs; s8 weights are meant to be s8.
    """
    points = {}
    for node in model.graph:
        if node.op_type == "QuantizeLinear" and len(node.inputs) > 2:
            point = node.inputs[2]
            if point is not None and _constant(point) and point.dtype == ir.DataType.INT8:
                points[str(point.name)] = (point, node.outputs[0])
    for point, codes in points.values():
        assert point.const_value is not None
        shifted = (point.const_value.numpy().astype(np.int16) + 128).astype(np.uint8)
        point.const_value = ir.Tensor(shifted, name=point.name)
        point.type = ir.TensorType(ir.DataType.UINT8)
        codes.type = ir.TensorType(ir.DataType.UINT8)


def _quantized(node: ir.Node) -> ir.Value:
    """The tensor of codes that a QuantizeLinear makes or a DequantizeLinear reads."""
    value = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    assert value is not None
    return value


def _layers(
    model: ir.Model, anchors: tuple[Anchor, ...], recipe: Recipe
) -> tuple[QuantizedLayer, ...]:
    """What became of each anchor, its weights made safe for the target."""
    nodes = {str(n.name): n for n in model.graph}
    layers = []
    for anchor in anchors:
        node = nodes.get(anchor.name)
        pair = _weight_pair(node) if node is not None else None
        if pair is None:
            reason = _KEPT if recipe.modes.get(anchor.name) == "static" else None
            layers.append(QuantizedLayer(anchor.name, anchor.op, "float", 0, 0, reason))
            continue
        if TARGETS[recipe.target].narrow:
            _halve(pair, anchor.out_axis)
        codes = np.moveaxis(_held(pair.inputs[0]), anchor.out_axis, 0)
        safe = np.abs(codes.astype(np.int16)).reshape(len(codes), -1).max(axis=1) <= _SAFE_CODE
        narrowed = int(safe.sum()) if TARGETS[recipe.target].narrow else 0
        layers.append(QuantizedLayer(anchor.name, anchor.op, "static", narrowed, len(codes), None))
    return tuple(layers)


def _weight_pair(node: ir.Node) -> ir.Node | None:
    """The DequantizeLinear of a node's weights, None where they are in float.

    NNCF quantizes weights only where the activations are quantized too, if some steps earlier.
    """
    weights = node.inputs[1]
    pair = weights.producer() if weights is not None else None
    if pair is None or pair.op_type != "DequantizeLinear" or not _constant(pair.inputs[0]):
        return None
    return pair


def _halve(pair: ir.Node, axis: int) -> None:
    """Halve the codes of the output channels that could saturate, and double their scales."""
    codes = np.moveaxis(_held(pair.inputs[0]), axis, 0)
    scales = _held(pair.inputs[1])
    wide = can_saturate(codes)
    if scales.ndim == 0:
        wide[:] = wide.any()
    if not wide.any():
        return
    codes = codes.copy()
    codes[wide] = np.rint(codes[wide] / 2).astype(np.int8)
    scales = scales * np.where(wide if scales.ndim else wide.any(), 2, 1).astype(np.float32)
    for value, held in zip(pair.inputs, (np.moveaxis(codes, 0, axis), scales), strict=False):
        assert value is not None
        value.const_value = ir.Tensor(np.ascontiguousarray(held), name=value.name)


def _held(value: ir.Value | None) -> np.ndarray[tuple[int, ...], np.dtype[Any]]:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def _constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None
