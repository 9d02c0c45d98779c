"""Samples in `.npz` and `.npy` files: one archive for all, or a folder with a file per sample.

An archive is believed only after its headers agree with its size: nothing is unpickled, nothing is
allocated before it is known to fit, and uncompressed arrays are mapped into memory in place.
"""

import logging
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, Literal

import numpy as np

from bench.errors import InputError, ResourceError
from bench.models import Array, Feeds, TensorSpec
from quantize.feeds import Request, Rows, check_array, check_names, grouped, with_batch
from quantize.labels import (
    LABEL_FILES,
    label_values,
    labels_beside,
    load_array,
    natural_key,
    plain,
)

logger = logging.getLogger(__name__)

# A zip cannot compress much better than 1:1000, and real data never comes near 1:100.
_BOMB_RATIO = 100
_LOCAL_HEADER = struct.Struct("<26xHH")
# Members that are read: mapping a file takes longer than that.
_SMALL_BYTES = 1 << 16
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    struct.error,
)


@dataclass(frozen=True, slots=True)
class _Member:
    info: zipfile.ZipInfo
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    fortran: bool
    header_bytes: int


def open_arrays(path: Path) -> dict[str, Array]:
    """Arrays of an `.npz` file by name; mapped in place where it is not compressed.

    Raises:
        InputError: It is no complete archive, a header lies, or it holds Python objects.
        ResourceError: Its compressed arrays do not fit in the memory that is free.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {
                i.filename.removesuffix(".npy"): _member(archive, i, path)
                for i in archive.infolist()
            }
            _refuse_too_large(path, members)
            return {n: _read_member(archive, m, path) for n, m in members.items()}
    except _ZIP_ERRORS as e:
        raise InputError(
            f"{path}: not a readable .npz archive: {e}. Save it again with np.savez."
        ) from e


def peek_npz(source: str, count: int) -> list[Feeds]:
    """The first samples of an archive, with nothing known about the model."""
    arrays = _all_arrays(Path(source))
    arrays.pop("labels", None)
    length = _length(source, arrays)
    return [{n: a[i : i + 1] for n, a in arrays.items()} for i in range(min(count, length))]


def read_npz(source: str, request: Request) -> Rows:
    """Samples along the first axis of each array; `labels`, unless an input has that name."""
    arrays = _all_arrays(Path(source))
    labels = None
    if "labels" not in {s.name for s in request.inputs}:
        labels = arrays.pop("labels", None)
    arrays = _by_input(source, arrays, request, label="labels" if labels is None else None)
    count = _length(source, arrays)

    def load(i: int) -> Feeds:
        return {n: _row(a, i, request.input(n)) for n, a in arrays.items()}

    if count:
        first = load(0)
        for name, array in arrays.items():
            _check_stack(source, array, first[name], request.input(name))
    values = label_values(labels, count, f"{source}: 'labels'") if labels is not None else None
    rows = Rows(
        count=count,
        load=load,
        where=lambda i: f"{source}: sample {i}",
        label=values.__getitem__ if values is not None else None,
    )
    return grouped(rows, request.inputs)


def array_files(folder: Path) -> list[Path]:
    """The `.npy` and `.npz` samples of a folder, in natural order."""
    return sorted(
        (p for p in folder.iterdir() if p.suffix in (".npy", ".npz") and p.name not in LABEL_FILES),
        key=natural_key,
    )


def peek_folder(source: str, count: int) -> list[Feeds]:
    """The first samples of a folder, with nothing known about the model."""
    found: list[Feeds] = []
    for file in array_files(Path(source))[:count]:
        if file.suffix == ".npy":
            raise InputError(
                f"{file}: an .npy file does not name its input. Name it with --input, as in "
                "--input x:f32[N,3,224,224]."
            )
        found.append({n: a for n, a in open_arrays(file).items() if n != "label"})
    return found


def read_folder(source: str, request: Request) -> Rows:
    """One `.npy` or `.npz` file per sample; labels inside as `label`, or in a file beside them."""
    files = array_files(Path(source))
    if len({f.suffix for f in files}) > 1:
        raise InputError(f"{source}: mixes .npy and .npz samples. Keep one kind in the folder.")
    if files and files[0].suffix == ".npy" and len(request.required) != 1:
        names = ", ".join(repr(s.name) for s in request.required)
        raise InputError(
            f"{source}: an .npy file holds one array, the model takes {names}. Save each sample "
            "with np.savez, one array per input."
        )
    beside = labels_beside(Path(source), files, texts=request.texts)
    own = "label" not in {s.name for s in request.inputs} and _has_label(files)

    def load(i: int) -> Feeds:
        return _load_file(files[i], request, has_label=own)

    def label(i: int) -> object:
        return beside[i] if beside is not None else _own_label(files[i])

    rows = Rows(
        count=len(files),
        load=load,
        where=lambda i: str(files[i]),
        label=label if beside is not None or own else None,
    )
    return grouped(rows, request.inputs)


def _load_file(file: Path, request: Request, *, has_label: bool) -> Feeds:
    if file.suffix == ".npy":
        spec = request.required[0]
        return {spec.name: with_batch(load_array(file), spec)}
    arrays = open_arrays(file)
    if has_label:
        arrays.pop("label", None)
    arrays = _by_input(str(file), arrays, request, label=None if has_label else "label")
    return {n: with_batch(a, request.input(n)) for n, a in arrays.items()}


def _has_label(files: list[Path]) -> bool:
    return bool(files) and files[0].suffix == ".npz" and "label" in open_arrays(files[0])


def _own_label(file: Path) -> object:
    arrays = open_arrays(file)
    if "label" not in arrays:
        raise InputError(f"{file}: has no `label`, but the first sample has. Label all or none.")
    return plain(arrays["label"])


def _all_arrays(path: Path) -> dict[str, Array]:
    if path.suffix == ".npy":
        return {path.stem: load_array(path)}
    return open_arrays(path)


def _by_input(
    source: str, arrays: dict[str, Array], request: Request, *, label: str | None
) -> dict[str, Array]:
    """Arrays named as the model's inputs; the only array fits the only input under any name."""
    if len(arrays) == 1 and len(request.required) == 1:
        (found,) = arrays
        wanted = request.required[0].name
        if found != wanted and found not in {s.name for s in request.inputs}:
            logger.info("%s: feeding array %r as input %r", source, found, wanted)
            return {wanted: arrays[found]}
    expected = [s for s in request.inputs if s.name in arrays or s.name not in request.states]
    check_names(list(arrays), expected, source, label=label)
    return arrays


def _length(source: str, arrays: dict[str, Array]) -> int:
    lengths = {n: len(a) if a.ndim else None for n, a in arrays.items()}
    if len(set(lengths.values())) > 1 or None in lengths.values():
        sizes = ", ".join(f"{n!r} {list(arrays[n].shape)}" for n in arrays)
        raise InputError(
            f"{source}: arrays differ in their first axis, which counts the samples: {sizes}. "
            "Repeat what is the same for every sample."
        )
    return next((n for n in lengths.values() if n is not None), 0)


def _row(array: Array, i: int, spec: TensorSpec) -> Array:
    """Sample i: with a batch axis of one, or as it is where the array has one axis more."""
    if spec.shape is not None and array.ndim == len(spec.shape) + 1:
        return np.asarray(array[i])
    return array[i : i + 1]


def _check_stack(source: str, array: Array, row: Array, spec: TensorSpec) -> None:
    """Check the first sample, and say the shape of the whole array where it does not fit."""
    shape = spec.shape
    if shape and isinstance(shape[0], int) and shape[0] > 1 and row.ndim == len(shape):
        # Consecutive samples are joined later, so the first axis does not count here.
        spec = TensorSpec(spec.name, spec.dtype, (row.shape[0], *shape[1:]))
    check_array(row, spec, f"{source} ({array.shape[0]} samples, array {list(array.shape)})")


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> _Member:
    if not info.filename.endswith(".npy"):
        raise InputError(f"{path}: holds {info.filename!r}, expected only .npy arrays.")
    with archive.open(info) as stream:
        shape, fortran, dtype = _header(stream, info, path)
        header_bytes = stream.tell()
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or header_bytes + size != info.file_size:
        raise InputError(
            f"{path}: array {info.filename!r} promises {size:,} bytes, the archive holds "
            f"{info.file_size - header_bytes:,}. It is damaged or made to deceive; save it again."
        )
    return _Member(info, dtype, shape, fortran, header_bytes)


def _header(
    stream: IO[bytes], info: zipfile.ZipInfo, path: Path
) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise InputError(f"{path}: array {info.filename!r} has the unknown format {version}.")
    length = stream.read(2 if version == (1, 0) else 4)
    text = stream.read(int.from_bytes(length, "little"))
    shape, fortran, dtype = _parsed(version, length + text)
    if dtype.hasobject:
        raise InputError(
            f"{path}: array {info.filename!r} holds Python objects, which are never loaded: "
            "that would run a pickle. Save numbers or text arrays."
        )
    return shape, fortran, dtype


@lru_cache(maxsize=256)
def _parsed(
    version: tuple[int, int], header: bytes
) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """What a header says. Files of one folder have few different ones, and parsing takes long."""
    found: tuple[tuple[int, ...], bool, np.dtype[np.generic]] = _HEADERS[version](BytesIO(header))
    return found


def _refuse_too_large(path: Path, members: dict[str, _Member]) -> None:
    packed = [m.info for m in members.values() if m.info.compress_type != zipfile.ZIP_STORED]
    needed = sum(i.file_size for i in packed)
    if not needed or needed <= (free := _free_memory()):
        return
    stored = max(1, sum(i.compress_size for i in packed))
    if needed / stored > _BOMB_RATIO:
        raise InputError(
            f"{path}: {stored:,} bytes that unpack to {needed:,}, more than the {free:,} bytes of "
            "memory that are free. That is how a zip bomb looks; it was not unpacked."
        )
    raise ResourceError(
        f"{path}: unpacks to {needed:,} bytes, {free:,} bytes of memory are free. Save it with "
        "np.savez instead of np.savez_compressed: it is then read in place."
    )


def _free_memory() -> int:
    """Memory that can be had without swapping, in bytes."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("Linux has reported MemAvailable since 3.14")


def _read_member(archive: zipfile.ZipFile, member: _Member, path: Path) -> Array:
    if member.info.compress_type != zipfile.ZIP_STORED or not math.prod(member.shape):
        with archive.open(member.info) as stream:
            array: Array = np.lib.format.read_array(stream, allow_pickle=False)
        return array
    # A local header repeats the name and has an extra field of its own length (APPNOTE.TXT 4.3.7).
    with path.open("rb") as raw:
        raw.seek(member.info.header_offset)
        name_bytes, extra_bytes = _LOCAL_HEADER.unpack(raw.read(_LOCAL_HEADER.size))
        start = member.info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
        if start + member.info.file_size > path.stat().st_size:
            raise InputError(f"{path}: ends before its arrays do. Copy it again.")
        order: Literal["C", "F"] = "F" if member.fortran else "C"
        offset, length = start + member.header_bytes, member.info.file_size - member.header_bytes
        if length <= _SMALL_BYTES:
            raw.seek(offset)
            content: Array = np.frombuffer(raw.read(length), member.dtype)
            return content.reshape(member.shape, order=order)
        mapped: Array = np.memmap(
            raw, dtype=member.dtype, mode="r", offset=offset, shape=member.shape, order=order
        )
        return mapped
