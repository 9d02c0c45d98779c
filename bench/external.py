"""Files of external data: where an ONNX file's tensors lie outside it, and whether they can.

What the runtimes do not look at, or tell in words of their own, is refused here before anything is
opened or copied: data outside the model's folder, links, missing and short files.
"""

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from bench.errors import InputError

# Types that share bytes; of the others numpy knows the size.
_PACKED_BITS = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}


def external_files(proto: object, path: Path) -> list[Path]:
    """External data files that a model names, each checked to lie in the model's folder.

    Args:
        proto: `onnx.ModelProto`, loaded without its external data.
        path: Where the model was read from.

    Raises:
        InputError: One is missing, is a link, lies outside the folder, or is too short for a tensor
            that should lie in it. Nothing is opened.
    """
    found: dict[str, Path] = {}
    for tensor in _external(proto):
        entries = {e.key: e.value for e in tensor.external_data}
        location = entries.get("location", "")
        if location not in found:
            found[location] = _data_file(tensor.name, location, path)
        _refuse_misplaced(tensor, entries, found[location], path)
    return [found[k] for k in sorted(found)]


def _data_file(name: str, location: str, path: Path) -> Path:
    """The file of external data that a tensor of this name lies in."""
    folder, pure = path.parent.resolve(), PurePosixPath(location)
    if pure.is_absolute() or ".." in pure.parts:
        raise InputError(
            f"{path}: tensor {name!r} keeps its data in {location!r}, outside the model's folder. "
            "That is unsafe; save the model again with its data beside it."
        )
    file = folder / location
    if file.is_symlink() or not file.resolve().is_relative_to(folder):
        raise InputError(
            f"{path}: external data {location!r} is a symbolic link, which may point anywhere. "
            "Copy the real file beside the model."
        )
    if not file.is_file():
        raise InputError(
            f"{path}: external data {location!r} of tensor {name!r} is missing in {folder}. "
            "Copy it beside the model."
        )
    if file.samefile(path):
        raise InputError(
            f"{path}: tensor {name!r} keeps its data in the model's own file. Save the model again "
            "with its data in a file of its own."
        )
    return file


def _refuse_misplaced(tensor: Any, entries: dict[str, str], file: Path, path: Path) -> None:
    """Refuse a tensor that its file of external data cannot hold where it says."""
    from onnx import TensorProto
    from onnx.helper import tensor_dtype_to_np_dtype

    kinds = TensorProto.DataType
    if tensor.data_type not in set(kinds.values()) - {TensorProto.UNDEFINED, TensorProto.STRING}:
        raise InputError(
            f"{path}: tensor {tensor.name!r} has the type {tensor.data_type}, which no file of "
            "external data holds. Export the model again."
        )
    place = {}
    for key in ("offset", "length"):
        if not (text := entries.get(key, "0")).isdecimal():
            raise InputError(
                f"{path}: external data of tensor {tensor.name!r} has the {key} {text!r}, expected "
                "a whole number of bytes. Export the model again."
            )
        place[key] = int(text)
    kind = kinds.Name(tensor.data_type)
    bits = _PACKED_BITS.get(kind) or 8 * tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    size = -(-math.prod(tensor.dims) * bits // 8)
    what = f"{path}: tensor {tensor.name!r}, {kind} {list(tensor.dims)}, takes {size:,} bytes"
    if "length" in entries and place["length"] != size:
        raise InputError(
            f"{what}, but says that it has {place['length']:,} in {file.name!r}. Export the model "
            "again."
        )
    if place["offset"] + size > (found := file.stat().st_size):
        raise InputError(
            f"{what} from byte {place['offset']:,} of {file.name!r} on, which ends at {found:,}. "
            "The file was cut short or belongs to another model: copy or export both again."
        )


def _external(proto: object) -> Iterator[Any]:
    """Every tensor with external data, in subgraphs, attributes and functions too."""
    import onnx

    return (t for t in _tensors(proto) if t.data_location == onnx.TensorProto.EXTERNAL)


def _tensors(proto: object) -> Iterator[Any]:
    import onnx

    assert isinstance(proto, onnx.ModelProto)
    graphs = [proto.graph]
    nodes = [n for f in proto.functions for n in f.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.extend(graph.node)
            continue
        for attribute in nodes.pop().attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t
            graphs.extend(attribute.graphs)
            if attribute.HasField("g"):
                graphs.append(attribute.g)
