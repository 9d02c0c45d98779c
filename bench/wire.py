"""Large weights of an ONNX file, left where they are: a model is read and written without them.

    file ─split─▶ the model without its weights, and where they lie
    the model without its weights, and each of them ─join─▶ file

To a protobuf library a file is all or nothing: parsed, a model of 1 GB lies in memory twice, and
while it is written, three times. The format is plain: fields one after the other, each with its
number and, where it may be long, its length (protobuf.dev, "Encoding").
"""

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

# Smaller ones are no trouble.
LEAST_BYTES = 1 << 16

Weight: TypeAlias = tuple[int, Callable[[], bytes]]
"""How many bytes, and what returns them."""

# A key is the number of a field, and how it is encoded: as 2, what has a length. In onnx.proto3:
# ModelProto.graph, GraphProto.initializer, TensorProto.raw_data.
_GRAPH, _INITIALIZER, _RAW = (number << 3 | 2 for number in (7, 5, 9))
# A number has 64 bits.
_LONGEST_VARINT = 10


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of one initializer of the main graph lie.

    Attributes:
        index: Number of the initializer.
        offset: In the file.
        length: In bytes.
    """

    index: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Field:
    """One field: from `start` to `end`, what it holds from `content` on."""

    key: int
    start: int
    content: int
    end: int


def split(path: Path) -> tuple[bytes, tuple[Place, ...]]:
    """The model in a file without the bytes of its large initializers, and where those lie.

    Args:
        path: An ONNX file.

    Returns:
        What parses as the same model, these initializers without `raw_data`.

    Raises:
        ValueError: It is no protobuf, is cut short, or is put together in another way than usual.
        OSError: It cannot be read.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
        top = list(_fields(held, 0, len(held)))
        graph = _graph(top)
        parts, places, count = list[bytes](), list[Place](), 0
        for field in _fields(held, graph.content, graph.end):
            raw = _raw_of(held, field) if field.key == _INITIALIZER else None
            if raw is None:
                parts.append(held[field.start : field.end])
            else:
                places.append(Place(count, raw.content, raw.end - raw.content))
                rest = held[field.content : raw.start] + held[raw.end : field.end]
                parts.append(_head(_INITIALIZER, len(rest)) + rest)
            count += field.key == _INITIALIZER
        inner = b"".join(parts)
        before, after = held[: graph.start], held[graph.end :]
        return before + _head(_GRAPH, len(inner)) + inner + after, tuple(places)


def join(model: bytes, weights: Mapping[int, Weight], out: BinaryIO) -> None:
    """Write a model with its large initializers, byte by byte as if it were serialized whole.

    Args:
        model: Serialized without their `raw_data`.
        weights: By number of the initializer.
        out: Where it goes.
    """
    graph = _graph(_fields(model, 0, len(model)))
    # Each part of the graph, and the bytes that stand behind it.
    parts: list[tuple[bytes, Weight]] = []
    count = 0
    for field in _fields(model, graph.content, graph.end):
        if field.key == _INITIALIZER and count in weights:
            parts += _filled(model, field, weights[count])
        else:
            parts.append((model[field.start : field.end], (0, bytes)))
        count += field.key == _INITIALIZER
    total = sum(len(part) + size for part, (size, _) in parts)
    out.write(model[: graph.start] + _head(_GRAPH, total))
    for part, (_, read) in parts:
        out.write(part)
        out.write(read())
    out.write(model[graph.end :])


def _filled(model: bytes, field: _Field, weight: Weight) -> list[tuple[bytes, Weight]]:
    """An initializer with its bytes, where a library writes them: in the order of the numbers."""
    fields = _fields(model, field.content, field.end)
    cut = max((f.end for f in fields if f.key < _RAW), default=field.content)
    before, after = model[field.content : cut], model[cut : field.end]
    raw = _head(_RAW, weight[0])
    size = len(before) + len(raw) + weight[0] + len(after)
    return [(_head(_INITIALIZER, size) + before + raw, weight), (after, (0, bytes))]


def _graph(fields: Iterable[_Field]) -> _Field:
    found = [f for f in fields if f.key == _GRAPH]
    if len(found) != 1:
        raise ValueError(f"{len(found)} graphs")
    return found[0]


def _raw_of(held: mmap.mmap, initializer: _Field) -> _Field | None:
    """The bytes of an initializer, if there are many."""
    if initializer.end - initializer.content < LEAST_BYTES:
        return None
    found = [f for f in _fields(held, initializer.content, initializer.end) if f.key == _RAW]
    large = len(found) == 1 and found[0].end - found[0].content >= LEAST_BYTES
    return found[0] if large else None


def _fields(held: bytes | mmap.mmap, start: int, end: int) -> Iterator[_Field]:
    while start < end:
        key, content = _varint(held, start, end)
        match key & 7:
            case 0:
                _, stop = _varint(held, content, end)
            case 1:
                stop = content + 8
            case 2:
                size, content = _varint(held, content, end)
                stop = content + size
            case 5:
                stop = content + 4
            case kind:
                raise ValueError(f"unknown wire type {kind} at byte {start}")
        if stop > end:
            raise ValueError(f"cut short: the field at byte {start} ends at {stop}, not by {end}")
        yield _Field(key, start, content, stop)
        start = stop


def _varint(held: bytes | mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = 0
    for i, byte in enumerate(held[at : min(at + _LONGEST_VARINT, end)]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    raise ValueError(f"cut short, or no number, at byte {at}")


def _head(key: int, size: int) -> bytes:
    """What stands before the content of a field that has a length."""
    return _written(key) + _written(size)


def _written(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*found, value))
