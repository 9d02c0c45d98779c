"""A candidate in a folder: its file, and the recipe that makes it again."""

import shutil
from pathlib import Path

from bench.models import Model, read_model
from bench.store import dump
from quantize.drift import seen_ranges
from quantize.gate import Verdict
from quantize.graphs import opened, save
from quantize.quantizers import QuantizedModel
from quantize.recipe import fingerprints, to_toml
from quantize.trials import Workbench


def keep_best(
    best: QuantizedModel, runtime: str, verdict: Verdict, bench: Workbench, folder: Path
) -> None:
    """Leave the best candidate so far in `folder/best`, complete whenever somebody looks.

    Args:
        best: The candidate.
        runtime: Where it was judged.
        verdict: On it.
        bench: Where it was made.
        folder: Of the journal.

    Raises:
        OSError: It cannot be written.
    """
    place = folder / f"best-{best.model.sha256[:16]}"
    place.mkdir(exist_ok=True)
    place_model(best, place)
    text = recipe_of(best, runtime, bench, best.samples_sha256)
    (place / "recipe.toml").write_text(text, encoding="utf-8")
    (place / "verdict.json").write_bytes(dump(verdict))
    link = folder / f".best-{place.name}"
    link.unlink(missing_ok=True)
    link.symlink_to(place.name)
    link.replace(folder / "best")
    for old in folder.glob("best-*"):
        if old != place:
            shutil.rmtree(old, ignore_errors=True)


def recipe_of(
    quantized: QuantizedModel, runtime: str, bench: Workbench, calibration_sha256: str
) -> str:
    """The TOML that replays a candidate.

    Args:
        quantized: The candidate.
        runtime: Where it is served.
        bench: Where it was made.
        calibration_sha256: Digest of the samples that calibrated.
    """
    facts = {"fp32_sha256": bench.fp32.sha256, "calibration_sha256": calibration_sha256}
    facts["served_by"] = runtime
    with opened(bench.fp32.path) as model:
        marks = fingerprints(model, bench.anchors)
    seen = seen_ranges(bench.calibration, bench.anchors)
    return to_toml(quantized.recipe, marks, facts, seen)


def move_model(model: Model, folder: Path) -> None:
    """Move a model that `save` wrote into a folder, with its weights where they lie beside it."""
    for file in model.path.parent.glob(f"{model.path.name}*"):
        file.rename(folder / file.name)


def place_model(quantized: QuantizedModel, folder: Path) -> Model:
    """The candidate's file as `model.onnx` in a folder, which is made if it is not there."""
    folder.mkdir(exist_ok=True)
    source, target = quantized.model.path, folder / "model.onnx"
    target.unlink(missing_ok=True)
    if source.with_name(f"{source.name}.data").exists():
        # The model names the file of its weights, so it is written again under its own.
        with opened(source) as model:
            save(model, target)
    else:
        try:
            target.hardlink_to(source)
        except OSError:  # Not every filesystem has links.
            shutil.copyfile(source, target)
    return read_model(target)
