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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from bench.errors import InputError, ResourceError, UnfitError, UnsupportedError
from bench.models import Model
from quantize.anchors import Anchor
from quantize.calibrate import Calibration
from quantize.quantizers.completing import complete
from quantize.quantizers.feeding import Replay
from quantize.quantizers.native import QuantizedLayer
from quantize.quantizers.pairs import is_constant, layers_of, own_constants, unsign
from quantize.recipe import Recipe
from quantize.targets import TARGETS

# NNCF hands whole models to protobuf's serializer, which takes 2 GiB.
_LARGEST_BYTES = 2_000_000_000
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
    replay = Replay(source, calibration.source, calibration.states)
    made = _run(package, source.path, replay, _options(package, anchors, recipe, source))
    model = ir.from_proto(made)
    own_constants(model)
    unsign(model)
    layers = layers_of(model, anchors, recipe, _KEPT)
    complete(model, anchors, calibration.tensors)
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
                if any(n.op_type == "MatMul" and not is_constant(n.inputs[1]) for n in seen):
                    return True
    return False


def _run(package: Any, path: Path, replay: Replay, options: Mapping[str, Any]) -> Any:
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
