"""Recipe + statistics -> INT8 model, and the conditions that every INT8 model has to meet.

    FP32 Model + Recipe + Calibration ─engine─▶ graph ─conditions─▶ file, QuantizedModel

Every engine is held to the same: layers in INT8, sane scales, a file that reads back. That it runs,
gives finite outputs and how much noise it adds is seen by whoever tries it (`quantize.trials`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from bench.errors import InputError, UnsupportedError, UsageError
from bench.models import Model, read_model
from quantize.anchors import Anchor
from quantize.calibrate import Calibration
from quantize.graphs import load, release, save
from quantize.placement import place
from quantize.quantizers import inc, native, nncf
from quantize.quantizers.native import QuantizedLayer
from quantize.quantizers.sidestepping import sidestep
from quantize.quantizers.tables import compress_tables
from quantize.recipe import Engine, Recipe
from quantize.sources.seam import ModelSpec

__all__ = ["QUANTIZERS", "QuantizedLayer", "QuantizedModel", "find_engines", "quantize"]

Made: TypeAlias = tuple[ir.Model, tuple[QuantizedLayer, ...]]

# A scale this large means that one absurd value decided the range.
_LARGEST_SCALE = 1e6


@dataclass(frozen=True, slots=True)
class QuantizedModel:
    """An INT8 model and how it was made.

    Attributes:
        model: The file.
        recipe: What was decided; anchors that turned out unusable stand as "float".
        layers: One entry per anchor.
        samples_sha256: Of the calibration samples.
        tables: Embedding tables stored in 8 bits.
    """

    model: Model
    recipe: Recipe
    layers: tuple[QuantizedLayer, ...]
    samples_sha256: str
    tables: int = 0

    @property
    def int8_layers(self) -> int:
        """How many anchors are in INT8."""
        return sum(x.mode != "float" for x in self.layers)


def quantize(
    source: Model, anchors: tuple[Anchor, ...], calibration: Calibration, recipe: Recipe, out: Path
) -> QuantizedModel:
    """Write the INT8 model that a recipe describes.

    Args:
        source: The prepared FP32 model.
        anchors: Of its graph.
        calibration: Of the same model.
        recipe: What to do.
        out: The `.onnx` to write.

    Raises:
        UsageError: The recipe gives a node a mode that its operator does not have.
        InputError: The statistics are of another model, or a scale came out absurd.
        UnsupportedError: Nothing is left to quantize.
    """
    if calibration.model_sha256 != source.sha256:
        raise InputError(
            f"ranges were taken of model {calibration.model_sha256[:12]}…, not of "
            f"{source.sha256[:12]}…. Calibrate again."
        )
    for anchor in anchors:
        if (mode := recipe.modes.get(anchor.name, "float")) not in anchor.modes:
            raise UsageError(
                f"node {anchor.name!r} ({anchor.op}) cannot be {mode!r}, only "
                f"{', '.join(anchor.modes)}. Change its mode in the recipe."
            )
    model, layers = QUANTIZERS[recipe.engine](source, anchors, calibration, recipe)
    sidestep(model)
    tables = compress_tables(model) if recipe.engine == "native" else 0
    _check_scales(model)
    save(model, out)
    release(model)
    kept = replace(recipe, modes={x.name: x.mode for x in layers})
    return QuantizedModel(
        model=read_model(out),
        recipe=kept,
        layers=layers,
        samples_sha256=calibration.samples_sha256,
        tables=tables,
    )


def _native(
    source: Model, anchors: tuple[Anchor, ...], calibration: Calibration, recipe: Recipe
) -> Made:
    """Our own engine: pairs where the runtimes fuse them, written in one pass."""
    model = load(source.path)
    placement = place(model, anchors, recipe.modes, calibration.magnitudes(), recipe.fused_for)
    if all(m == "float" for m in placement.modes.values()):
        reasons = sorted(set(placement.reasons.values())) or ["every layer was kept in float"]
        raise UnsupportedError(f"nothing to quantize (0 of {len(anchors)}): {'; '.join(reasons)}.")
    return model, native.write(model, anchors, placement, calibration, recipe)


def _check_scales(model: ir.Model) -> None:
    for node in model.graph:
        # Only what scales codes; a weight of the model's own may be called so as well.
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale = node.inputs[1]
        assert scale is not None
        assert scale.const_value is not None
        name, scales = scale.name, scale.const_value.numpy()
        if not np.isfinite(scales).all() or (scales <= 0).any() or (scales > _LARGEST_SCALE).any():
            raise InputError(
                f"scale {name!r} came out as {scales.max():g}: one absurd value decided the range. "
                "Look for outliers in the calibration data."
            )


def find_engines(names: Sequence[str], source: ModelSpec) -> tuple[Engine, ...]:
    """The engines of these names, each known to be installed.

    Args:
        names: From the command line or a recipe; none for the native engine.
        source: The trained model, which not every engine can start from.

    Raises:
        UsageError: There is none of that name, or it cannot start from such a source.
        UnfitError: Its package is missing.
    """
    found: list[Engine] = []
    for name in names or ("native",):
        engine = next((e for e in QUANTIZERS if e == name), None)
        if engine is None:
            raise UsageError(f"unknown engine {name!r}; known: {', '.join(QUANTIZERS)}.")
        if engine in REQUIREMENTS:
            REQUIREMENTS[engine](source)
        found.append(engine)
    return tuple(dict.fromkeys(found))


QUANTIZERS: dict[Engine, Callable[[Model, tuple[Anchor, ...], Calibration, Recipe], Made]] = {
    "native": _native,
    "nncf": nncf.write,
    "inc": inc.write,
}

# What says early that an engine's package is missing, or that it cannot start from the model.
REQUIREMENTS: dict[Engine, Callable[[ModelSpec], object]] = {
    "nncf": lambda _: nncf.require(),
    "inc": inc.require_module,
}
