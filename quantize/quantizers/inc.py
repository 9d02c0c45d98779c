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
from pathlib import Path
from typing import Any

import onnx_ir as ir

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
from quantize.anchors import Anchor
from quantize.calibrate import Calibration
from quantize.plugins import is_function_text
from quantize.prepare import tidy
from quantize.quantizers.completing import complete
from quantize.quantizers.exported import drop_clips, partners_of, place_layers, take_in_pads
from quantize.quantizers.feeding import Replay
from quantize.quantizers.native import QuantizedLayer
from quantize.quantizers.pairs import layers_of, own_constants, unsign
from quantize.quantizers.refitting import refit
from quantize.recipe import Recipe
from quantize.rewrites import rewrite
from quantize.sources import torch as torch_source
from quantize.sources.seam import ModelSpec

_KEPT = "Neural Compressor left it in float"
# They tell every step on stderr, or that GPU kernels are missing.
_NOISY = ("neural_compressor", "torchao", "torch.utils._pytree")


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
    drop_clips(model)
    partners = partners_of(model, anchors, ir.load(source.path))
    place_layers(model, partners, {a.name: recipe.modes.get(a.name) == "static" for a in anchors})
    take_in_pads(model)
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
