"""Samples from the user's own function: taken once, written to disk, read back at random.

A generator cannot be asked for sample 17, may reuse its buffers, and may yield another order the
next time. So every sample goes once into one file on disk, and the function is never called again.
"""

import contextlib
import errno
import itertools
import tempfile
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np

from bench.errors import InputError, ResourceError
from bench.models import Array, Feeds
from quantize.feeds import Request, Rows, check_feeds, with_states
from quantize.labels import plain
from quantize.plugins import blame, load_function

_ALIGNMENT = 64
_Address: TypeAlias = tuple[int, str, tuple[int, ...]]
"""Where an array lies in the file: offset, element type, shape."""


@dataclass(frozen=True, slots=True)
class _Spooled:
    """What went to disk; labels that are not arrays stay in memory."""

    feeds: list[dict[str, _Address]] = field(default_factory=list)
    labels: list[object] = field(default_factory=list)


def peek_function(source: str, count: int) -> list[Feeds]:
    """The first samples that a data function yields, with nothing known about the model."""
    with contextlib.closing(_samples(source)) as samples:
        return [feeds for _, feeds, _ in itertools.islice(samples, count)]


def read_function(source: str, request: Request) -> Rows:
    """Samples that `file.py:function` yields as `(feeds, label)`.

    Raises:
        InputError: The function raises, or a sample does not fit the model; with file and line.
        ResourceError: The disk is full.
    """
    request.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        dir=request.scratch, prefix="samples-", suffix=".raw", delete=False
    ) as stream:
        try:
            spooled = _spool(source, request, stream)
        except OSError as e:
            if e.errno != errno.ENOSPC:
                raise
            raise ResourceError(
                f"{request.scratch}: the disk is full after {stream.tell():,} bytes of samples "
                f"from {source}. Free some space, or yield fewer samples."
            ) from e
        size = stream.tell()
    data = _map(Path(stream.name), size)
    labels = spooled.labels
    unlabelled = [i for i, v in enumerate(labels) if v is None]
    if unlabelled and len(unlabelled) < len(labels):
        raise InputError(
            f"{source}: sample {unlabelled[0]} has no label, but {len(labels) - len(unlabelled)} "
            "others have. Label all samples or none."
        )

    def label(i: int) -> object:
        value = labels[i]
        return _fetch(data, value.address) if isinstance(value, _Stored) else value

    return Rows(
        count=len(spooled.feeds),
        load=lambda i: {n: _fetch(data, a) for n, a in spooled.feeds[i].items()},
        where=lambda i: f"{source}: sample {i}",
        label=None if unlabelled else label,
    )


@dataclass(frozen=True, slots=True)
class _Stored:
    """A label that lies in the file."""

    address: _Address


def _spool(source: str, request: Request, stream: IO[bytes]) -> _Spooled:
    spooled = _Spooled()
    with contextlib.closing(_samples(source)) as samples:
        for where, feeds, label in itertools.islice(samples, request.limit):
            completed = with_states(feeds, request.inputs, request.states)
            check_feeds(completed, request.inputs, where)
            spooled.feeds.append({n: _write(stream, a) for n, a in completed.items()})
            if isinstance(label, np.ndarray) and label.dtype != object:
                spooled.labels.append(_Stored(_write(stream, label)))
            else:
                spooled.labels.append(label)
    return spooled


def _samples(source: str) -> Generator[tuple[str, Feeds, object], None, None]:
    """Place, feeds and label of each sample, copied out of the function's hands."""
    function = load_function(source, what="data function")
    with blame(source, what="data function"):
        produced = function()
    if isinstance(produced, Mapping | str) or not hasattr(produced, "__iter__"):
        raise InputError(
            f"{source}: returned {type(produced).__name__}, expected an iterable of "
            "(feeds, label): use `yield feeds, label`."
        )
    with blame(source, what="data function"):
        iterator = iter(produced)
    for index in itertools.count():
        # Only the user's own code runs inside `blame`: prints and errors are attributed to it.
        with blame(source, what="data function"):
            item = next(iterator, _END)
        if item is _END:
            return
        where = f"{source}: sample {index}{_line(iterator)}"
        feeds, label = _pair(item, where)
        yield where, feeds, label


_END = object()


def _line(iterator: object) -> str:
    frame = getattr(iterator, "gi_frame", None)
    return f" (line {frame.f_lineno})" if frame is not None else ""


def _pair(item: object, where: str) -> tuple[Feeds, object]:
    if not isinstance(item, tuple | list) or len(item) != 2 or not isinstance(item[0], Mapping):
        raise InputError(
            f"{where}: is {_shape_of(item)}, expected (feeds, label), where feeds maps each "
            "input's name to an array and label may be None."
        )
    feeds = {str(n): _array(v, f"{where}: {n!r}") for n, v in item[0].items()}
    label = item[1]
    if isinstance(label, np.ndarray) or hasattr(label, "detach"):
        label = _array(label, f"{where}: label")
    return feeds, plain(label)


def _shape_of(item: object) -> str:
    if isinstance(item, tuple | list):
        return (
            f"a {type(item).__name__} of {', '.join(type(v).__name__ for v in item) or 'nothing'}"
        )
    return f"a {type(item).__name__}"


def _array(value: Any, where: str) -> Array:
    """A copy as an array: the function may use its buffer again."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    try:
        array: Array = np.array(value)
    except (ValueError, TypeError) as e:
        raise InputError(f"{where}: is not an array: {e}.") from e
    if array.dtype == object:
        if not all(isinstance(v, str) for v in array.flat):
            raise InputError(
                f"{where}: holds Python objects ({type(value).__name__}), expected an array."
            )
        array = array.astype(np.str_)
    return array


def _write(stream: IO[bytes], array: Array) -> _Address:
    stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
    offset = stream.tell()
    stream.write(np.ascontiguousarray(array).tobytes())
    return offset, array.dtype.str if array.dtype.kind != "V" else str(array.dtype), array.shape


def _map(path: Path, size: int) -> Array:
    if size == 0:
        return np.zeros(0, np.uint8)
    mapped: Array = np.memmap(path, dtype=np.uint8, mode="r", shape=(size,))
    return mapped


def _fetch(data: Array, address: _Address) -> Array:
    offset, dtype, shape = address
    kind = np.dtype(dtype)
    size = kind.itemsize * int(np.prod(shape, dtype=np.int64))
    return np.asarray(data[offset : offset + size]).view(kind).reshape(shape)
