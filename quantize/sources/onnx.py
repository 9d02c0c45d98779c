"""ONNX files: looked at and copied, external data and all."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from bench.errors import OutputError, UsageError
from bench.models import (
    NEWEST_IR,
    Model,
    TensorSpec,
    files_of,
    read_inputs,
    read_model,
    without_weights,
)
from bench.store import refuse_full
from quantize.data import Samples
from quantize.sources.seam import ModelSpec

# On the disk at once by the end of `quantize.prepare`: this one, one to fold, and the result.
_COPIES = 3


def accepts(text: str) -> bool:
    """Whether `text` names an ONNX file."""
    return Path(text).suffix == ".onnx"


def describe_inputs(spec: ModelSpec) -> Sequence[TensorSpec]:
    """The inputs that the file declares."""
    return read_inputs(Path(spec.text))


def convert(spec: ModelSpec, _samples: Samples | None, out: Path) -> Model:
    """Copy a model and its external data into the folder of `out`.

    Copied and not linked: ONNX Runtime refuses symbolic links to external data, onnx refuses hard
    links. Judged is the copy, so a source that changes meanwhile does no harm.

    Raises:
        InputError: The file is unusable or unsafe; see `bench.models.read_model`.
        OutputError: `out` is the model itself, or a data file would lie there.
        ResourceError: The disk has no room for it and for what is made of it next.
        UsageError: Weights were given; an ONNX file has its own.
    """
    if spec.weights is not None:
        raise UsageError(f"{spec.text}: an ONNX file has its own weights; leave --weights out.")
    source = Path(spec.text)
    _, *files = files_of(source)
    folder = source.parent.resolve()
    targets = {f: out.parent / f.relative_to(folder) for f in files}
    if out.resolve() in {source.resolve(), *(t.resolve() for t in targets.values())}:
        raise OutputError(f"{out}: would overwrite a file of the model itself. Use another folder.")
    refuse_full(out.parent, _COPIES * sum(f.stat().st_size for f in (source, *files)))
    for file, target in [*targets.items(), (source, out)]:
        if target.resolve() == file.resolve():
            raise OutputError(f"{target}: is the model's own data. Use another folder for output.")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    _lower_version(out)
    return read_model(out)


def _lower_version(copy: Path) -> None:
    """Let a file that calls itself newer than the runtimes know be read by them.

    The version of the format says what may be in it; what is, they refuse by its own name.
    """
    import onnx

    if without_weights(copy).ir_version > NEWEST_IR:
        proto = onnx.load(str(copy), load_external_data=False)
        proto.ir_version = NEWEST_IR
        onnx.save(proto, str(copy))
