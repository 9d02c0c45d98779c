"""Trained models to ONNX. A new framework is a file with three functions, and a row here."""

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import InputError, UnsupportedError, UsageError
from bench.models import Model, TensorSpec
from quantize.data import Samples
from quantize.plugins import nearest
from quantize.sources import onnx, torch
from quantize.sources.parity import Parity, check_parity, refuse_random
from quantize.sources.seam import ModelSpec

__all__ = [
    "SOURCES",
    "ModelSpec",
    "Parity",
    "check_parity",
    "convert",
    "describe_inputs",
    "refuse_random",
]


@dataclass(frozen=True, slots=True)
class Source:
    """One kind of trained model.

    Attributes:
        accepts: Whether a text names such a model.
        describe_inputs: What it takes, or None where only its data can tell.
        convert: Writes the ONNX file and reads it back.
    """

    accepts: Callable[[str], bool]
    describe_inputs: Callable[[ModelSpec], Sequence[TensorSpec] | None]
    convert: Callable[[ModelSpec, Samples | None, Path], Model]


def describe_inputs(spec: ModelSpec) -> tuple[TensorSpec, ...] | None:
    """What a model takes, as far as that is known before its data is read.

    Raises:
        UsageError: The text names no model.
        InputError: The file is missing, unusable or unsafe.
        UnsupportedError: The format cannot be converted.
    """
    found = _source(spec.text).describe_inputs(spec)
    return tuple(found) if found is not None else None


def convert(spec: ModelSpec, samples: Samples | None, out: Path) -> Model:
    """Make a checked FP32 ONNX file of a trained model.

    Args:
        spec: The model.
        samples: Real samples to export and compare with; synthetic ones where it is None.
        out: The file to write; external data lies beside it.

    Raises:
        UsageError: The text names no model, or something about the model is missing.
        InputError: The file is unusable or unsafe, or the ONNX file computes something else.
        UnsupportedError: The model cannot be converted.
        UnfitError: A package is missing.
    """
    source = _source(spec.text)
    out.parent.mkdir(parents=True, exist_ok=True)
    return source.convert(spec, samples, out)


def _source(text: str) -> Source:
    for source in SOURCES.values():
        if source.accepts(text):
            return source
    path = Path(text)
    if _is_script(path):
        raise UnsupportedError(f"{text}: {_SCRIPT}")
    if path.suffix in _ADVICE:
        kind, advice = _ADVICE[path.suffix]
        raise kind(f"{text}: {advice}")
    if path.is_dir():
        raise UnsupportedError(f"{text}: is a folder. Export the model in it to ONNX first.")
    if path.exists():
        raise UsageError(f"{text}: unknown model format; known: {', '.join(SOURCES)}.")
    near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    raise InputError(f"{text}: no such file.{nearest(path.name, near)}")


def _is_script(path: Path) -> bool:
    """Whether it is what torch.jit.save wrote: an archive with the code of its modules."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


_SCRIPT = (
    "is a TorchScript archive, which torch cannot export any more. Name the function that makes "
    "the module that it was scripted from, as file.py:factory with --weights, or save that with "
    "torch.export.save as a .pt2 file."
)
_WEIGHTS = (
    "holds weights only, or a pickled module, which is a program and is never run. Name the "
    "function that makes the module, and give the weights apart: file.py:factory --weights {}."
)
_ADVICE = {
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), (UsageError, _WEIGHTS.format("weights.pt"))),
    ".safetensors": (UsageError, _WEIGHTS.format("weights.safetensors")),
    ".py": (UsageError, "names no function. Write file.py:factory."),
    **dict.fromkeys(
        (".keras", ".h5", ".pb", ".tflite"),
        (UnsupportedError, "TensorFlow models are not read. Export to ONNX with tf2onnx first."),
    ),
    ".xml": (UnsupportedError, "OpenVINO IR is not read. Give the model that it was made from."),
    ".ort": (
        UnsupportedError,
        "is ONNX Runtime's own format. Give its .onnx file.",
    ),
}

SOURCES: dict[str, Source] = {
    "ONNX (.onnx)": Source(onnx.accepts, onnx.describe_inputs, onnx.convert),
    "PyTorch (.pt2, file.py:factory, package.module:factory)": Source(
        torch.accepts, torch.describe_inputs, torch.convert
    ),
}
