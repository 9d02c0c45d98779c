"""`vnnify convert`: a trained model to one clean, checked FP32 ONNX file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.inputs import with_sizes
from bench.machine import available_threads
from bench.models import Feeds, Model, synthetic_feeds
from bench.runtimes import RUNTIMES, Settings
from quantize.data import infer_inputs, read_samples
from quantize.graphs import light
from quantize.images import Preprocessing
from quantize.plugins import is_function_text
from quantize.prepare import prepare
from quantize.sources import ModelSpec, check_parity, convert, describe_inputs, refuse_random
from quantize.sources.torch import made_up

_PARITY_SAMPLES = 4


def convert_file(
    spec: ModelSpec, data: str | None, folder: Path, name: str, preprocessing: Preprocessing | None
) -> dict[str, Any]:
    """Convert, clean and compare.

    Args:
        spec: The trained model.
        data: Real samples, or None for made-up ones.
        folder: Where to work; the result lies in `clean/` in it.
        name: Of the file.
        preprocessing: How images become arrays.

    Returns:
        Names of the files, notes, size and digest.
    """
    samples = None
    if data is not None:
        inputs = describe_inputs(spec) or spec.inputs or infer_inputs(data)
        samples = read_samples(
            data, inputs, scratch=folder, preprocessing=preprocessing, limit=_PARITY_SAMPLES
        )
    brought = folder / "source"
    brought.mkdir()
    source = light(convert(spec, samples, brought / "model.onnx"), brought)
    clean = folder / "clean"
    clean.mkdir()
    prepared = prepare(source, clean / name, name=spec.text, folder=brought)
    feeds = [s.feeds for s in samples] if samples is not None else _made_up(source, spec)
    settings = Settings(threads=available_threads(), packed=False)
    reference = RUNTIMES["onnxruntime"].open(source.path, settings)
    refuse_random(reference.run, feeds[0], spec.text)
    check_parity(reference.run, prepared.model.path, feeds)
    return {
        "files": sorted(f.name for f in clean.iterdir()),
        "notes": [*_weights_of(spec), *prepared.notes],
        "size_bytes": prepared.model.size_bytes,
        "sha256": prepared.model.sha256,
    }


def _made_up(source: Model, spec: ModelSpec) -> list[Feeds]:
    """Samples of the sizes that `--input` gives; a module ran small ones when it was exported."""
    sized = with_sizes(replace(source, path=Path(spec.text)), spec.inputs)
    if Path(spec.text).suffix == ".onnx":
        return synthetic_feeds(sized, batch=1, seed=0, count=_PARITY_SAMPLES)
    return made_up(sized.inputs)


def _weights_of(spec: ModelSpec) -> tuple[str, ...]:
    """What nobody but the user can tell: whether a module was trained."""
    if spec.weights is not None or not is_function_text(spec.text):
        return ()
    note = f"the weights are those that {spec.text} returns, trained or not"
    return (f"{note}; --weights FILE loads others into it",)
