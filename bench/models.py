"""Model files: what a file takes and returns, and whether it is safe to hand to native code.

A file is read here before any runtime sees its path. What the runtimes and `onnx.load` let pass
silently (an empty file, an unknown opset, external data outside the model's folder) is refused
here.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bench.errors import InputError, UnsupportedError
from bench.external import external_files
from bench.wire import split

Array: TypeAlias = NDArray[Any]
Feeds: TypeAlias = dict[str, Array]

# Newest opset of the ONNX domain that the oldest supported onnxruntime (1.24) loads and ours is
# tested with. OpenVINO compiles anything, even opset 99, so the limit has to be ours.
MAX_OPSET = 26
# Newest version of the file format that onnxruntime 1.31 reads; onnx 1.23 writes 14 by itself.
NEWEST_IR = 13

_SIGNATURES = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"PK\x03\x04": "a zip archive (a .pt2, .npz or .keras file?)",
    b"\x1f\x8b": "a gzip archive",
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"\x89HDF": "an HDF5 file",
    b"<!": "an HTML page",
    b"<h": "an HTML page",
    b"<?xml": "an XML file (OpenVINO IR?)",
    b"{": "a JSON file",
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: Its name in the graph.
        dtype: numpy's name of the element type ("float32", "int64", …; "string" for text).
        shape: One entry per axis: a size, or a symbol's name, or None where the file says nothing;
            None for the whole shape where even the rank is unknown.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    @property
    def batch_is_free(self) -> bool:
        """Whether the first axis may be any size."""
        return self.shape is not None and len(self.shape) > 0 and not isinstance(self.shape[0], int)

    def __str__(self) -> str:
        """`name:dtype[N,3,224,224]`, as `--input` takes it."""
        if self.shape is None:
            return f"{self.name}:{self.dtype}[…]"
        return f"{self.name}:{self.dtype}[{','.join(str(d or '?') for d in self.shape)}]"


@dataclass(frozen=True, slots=True)
class Model:
    """A model file on disk, looked at and found sound.

    Attributes:
        path: The `.onnx` or `.pt2` file.
        inputs: What has to be fed, in the graph's order (initializers left out).
        outputs: What comes back, in the graph's order.
        opset: Version of the default ONNX domain; 0 for a `.pt2` program.
        sha256: Digest over the file and every external data file that it names.
        size_bytes: Size of all those files together.
    """

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    sha256: str
    size_bytes: int


def read_model(path: Path) -> Model:
    """Look at a model file without running it.

    Args:
        path: An `.onnx` file whose external data, if any, lies in its folder or below; or a `.pt2`
            program, see `bench.programs.read_program`.

    Raises:
        InputError: It is missing, empty, truncated, of another type, or its external data is
            missing or lies outside its folder.
        UnsupportedError: Its opset is newer than the runtimes know, or it takes something that is
            not a tensor.
    """
    if path.suffix == ".pt2":
        from bench.programs import read_program

        return read_program(path)
    proto, opset, files = _looked_at(path)
    return Model(
        path=path,
        inputs=_inputs(proto, path),
        outputs=tuple(_spec(v, path) for v in proto.graph.output),
        opset=opset,
        sha256=digest(files),
        size_bytes=sum(f.stat().st_size for f in files),
    )


def read_inputs(path: Path) -> tuple[TensorSpec, ...]:
    """What an ONNX file has to be fed. Its weights, which may be large, are not read.

    Raises:
        InputError: As `read_model` does.
        UnsupportedError: Likewise.
    """
    return _inputs(_looked_at(path)[0], path)


def files_of(path: Path) -> list[Path]:
    """An ONNX file that was looked at, and every file of external data that it names.

    Raises:
        InputError: As `read_model` does.
        UnsupportedError: Likewise.
    """
    return _looked_at(path)[2]


def _looked_at(path: Path) -> tuple[Any, int, list[Path]]:
    """The `onnx.ModelProto` without its large weights, its opset, and all its files."""
    _refuse_other_types(path)
    try:
        proto = without_weights(path)
    except Exception as e:
        size = path.stat().st_size
        raise InputError(
            f"{path}: not a complete ONNX file ({size:,} bytes): {e}. Export or copy it again."
        ) from e
    if not proto.graph.node and not proto.graph.output:
        raise InputError(f"{path}: holds no graph. Export or copy it again.")
    if not proto.graph.output:
        raise InputError(f"{path}: the graph has no outputs, so there is nothing to compute.")
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset > MAX_OPSET:
        raise UnsupportedError(
            f"{path}: declares opset {opset}, the newest supported is {MAX_OPSET}. "
            "Export it again with an older opset."
        )
    for value in proto.graph.output:
        _spec(value, path)
    return proto, opset, [path, *external_files(proto, path)]


def without_weights(path: Path) -> Any:
    """The `onnx.ModelProto` in a file, without external data, and without what else is large."""
    import onnx

    try:
        return onnx.ModelProto.FromString(split(path)[0])
    except ValueError:
        return onnx.load(str(path), load_external_data=False)


def _inputs(proto: Any, path: Path) -> tuple[TensorSpec, ...]:
    constants = {t.name for t in proto.graph.initializer}
    return tuple(_spec(v, path) for v in proto.graph.input if v.name not in constants)


def digest(files: list[Path]) -> str:
    """SHA-256 over the contents of `files`, in order."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            hashlib.file_digest(stream, lambda: total)
    return total.hexdigest()


def synthetic_feeds(model: Model, *, batch: int, seed: int, count: int = 1) -> list[Feeds]:
    """Random feeds that fit a model, for timing only.

    Args:
        model: Whose inputs to fill.
        batch: Size of every free first axis; other free axes are refused.
        seed: Of the generator.
        count: How many distinct feeds.

    Raises:
        UnsupportedError: An input is text, or has a free axis other than the first.
    """
    rng = np.random.default_rng(seed)
    return [{s.name: _synthetic(s, batch, rng) for s in model.inputs} for _ in range(count)]


def _synthetic(spec: TensorSpec, batch: int, rng: np.random.Generator) -> Array:
    shape = spec.shape or ()
    free = [i for i, d in enumerate(shape) if not isinstance(d, int)]
    if spec.shape is None or any(i > 0 for i in free):
        likely = [d if isinstance(d, int) else 64 if i else "N" for i, d in enumerate(shape)]
        raise UnsupportedError(
            f"input {spec} has free axes besides the batch, so its size cannot be guessed. Give "
            "real samples with --data, or sizes with --input, as in --input "
            f"{spec.name}:{spec.dtype}[{','.join(map(str, likely)) or 'N,3,224,224'}]."
        )
    sizes = tuple(batch if i in free else d for i, d in enumerate(shape))
    dims = tuple(d for d in sizes if isinstance(d, int))
    if spec.dtype == "string":
        raise UnsupportedError(f"input {spec} takes text, which cannot be made up. Use --data.")
    if spec.dtype == "bool":
        return rng.integers(0, 2, dims).astype(bool)
    if np.issubdtype(np.dtype(spec.dtype), np.integer):
        # Small: integers are mostly indices, and the smallest vocabulary is not known.
        return rng.integers(0, 2, dims).astype(spec.dtype)
    return rng.standard_normal(dims).astype(spec.dtype)


def _refuse_other_types(path: Path) -> None:
    try:
        found = path.exists()
    except OSError as e:
        raise InputError(f"{path}: cannot be looked at: {e.strerror}.") from e
    if not found:
        near = sorted(path.parent.glob("*.onnx")) if path.parent.is_dir() else []
        hint = f" Did you mean {near[0]}?" if near else ""
        raise InputError(f"{path}: no such file.{hint}")
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected an .onnx file.")
    if not path.is_file():
        # Opening a pipe would wait for a writer for ever.
        raise InputError(f"{path}: is a pipe or a device, expected an .onnx file.")
    try:
        with path.open("rb") as stream:
            head = stream.read(64)
    except OSError as e:
        raise InputError(f"{path}: cannot be read: {e.strerror}.") from e
    if not head:
        raise InputError(f"{path}: the file is empty. Export or copy it again.")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: is a Git LFS pointer, not the model. Run `git lfs pull`.")
    for signature, kind in _SIGNATURES.items():
        if head.startswith(signature):
            raise InputError(f"{path}: is {kind}, expected an ONNX model.")


def _spec(value: object, path: Path) -> TensorSpec:
    import onnx

    assert isinstance(value, onnx.ValueInfoProto)
    if value.type.WhichOneof("value") not in (None, "tensor_type"):
        kind = str(value.type.WhichOneof("value")).removesuffix("_type").replace("_", " ")
        raise UnsupportedError(
            f"{path}: {value.name!r} is of type {kind}, not tensor. Export the model without it "
            "(scikit-learn's ZipMap: convert with options={'zipmap': False})."
        )
    tensor = value.type.tensor_type
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(_axis(d) for d in tensor.shape.dim)
    return TensorSpec(value.name, _dtype(tensor.elem_type), shape)


def _axis(dim: Any) -> int | str | None:
    # Exporters write a free axis as a symbol, as "?", as -1, as 0 or not at all.
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value > 0 else None
    return dim.dim_param if dim.dim_param not in ("", "?", "-1") else None


def _dtype(elem_type: int) -> str:
    import onnx

    if elem_type == onnx.TensorProto.STRING:
        return "string"
    if elem_type == onnx.TensorProto.UNDEFINED:
        return "float32"
    return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type)))
