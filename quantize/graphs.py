"""Graphs in files: read, written, and their memory given back.

file ─▶ graph, large weights left where they are ─▶ file, with weights inside, beside or shared
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from bench.models import Model
from bench.wire import LEAST_BYTES, Place, join, split

# protobuf cannot hold more in memory; beyond it weights go to a file of their own.
EXTERNAL_BYTES = 1_500_000_000
# Of new weights that a graph may hold beside a file that it shares, or that file may hold in vain.
_INLINE_BYTES = 64 << 20
# Smaller constants are no trouble in the graph.
_APART_BYTES = 256
_WHOLE_BYTES = frozenset(
    k for k in ir.DataType if k.name not in ("UNDEFINED", "STRING") and k.bitwidth >= 8
)


def save(model: ir.Model, out: Path, *, share: bool = False) -> None:
    """Write a model deterministically; weights beside it when one protobuf could not hold them.

    Args:
        model: Stays as it is.
        out: The `.onnx` to write.
        share: Weights that lie in a file already may get a second name there instead of a copy, so
            that a changed graph costs no gigabytes. One of the names has to go at once: onnx and
            onnx_ir read no file that has two.
    """
    if too_large(weight_bytes(model)):
        before = {v: v.const_value for v in model.graph.initializers.values()}
        shared = share and _shared(model, out)
        ir.save(model, out, external_data=None if shared else f"{out.name}.data")
        for value, tensor in before.items():
            value.const_value = tensor
    else:
        _write_whole(model, out)


def save_apart(model: ir.Model, out: Path) -> None:
    """Write a model with its weights beside it; those that lie in files there stay in them.

    Args:
        model: Stays as it is.
        out: The `.onnx` to write.
    """
    held = {v: v.const_value for v in constants_of(model) if v.const_value is not None}
    new = {v: t for v, t in held.items() if t.nbytes >= _APART_BYTES and not _lies_in(t, out)}
    try:
        if new:
            folder, name = out.parent, f"{out.name}.data"
            moved = ir.external_data.convert_tensors_to_external([*new.values()], folder, name)
            for value, apart in zip(new, moved, strict=True):
                value.const_value = apart
        ir.save(model, out)
    finally:
        for value, tensor in new.items():
            value.const_value = tensor


def _lies_in(tensor: ir.TensorProtocol, out: Path) -> bool:
    """Whether a tensor stays where it is: in a file beside `out`, or as text in the graph."""
    if isinstance(tensor, ir.ExternalTensor):
        return Path(tensor.path).parent == out.parent
    return tensor.dtype == ir.DataType.STRING


def _write_whole(model: ir.Model, out: Path) -> None:
    """Write a model with its weights inside, of the large ones one at a time."""
    held = [v for v in model.graph.initializers.values() if v.const_value is not None]
    large = {i: t for i, v in enumerate(held) if (t := v.const_value) is not None and _is_apart(t)}
    for i, tensor in large.items():
        held[i].const_value = _stand_in(tensor)
    try:
        for value in constants_of(model):
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.Tensor(value.const_value.numpy(), name=value.name)
        light = ir.serde.serialize_model(model).SerializeToString()
    finally:
        for i, tensor in large.items():
            held[i].const_value = tensor
    with out.open("wb") as file:
        join(light, {i: (t.nbytes, t.tobytes) for i, t in large.items()}, file)


def _is_apart(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor is written by itself: it is large, and stored as its plain bytes."""
    if tensor.nbytes < LEAST_BYTES or isinstance(tensor, ir.StringTensor):
        return False
    return not isinstance(tensor, ir.serde.TensorProtoTensor) or tensor.raw.HasField("raw_data")


def _stand_in(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The same without its bytes."""
    import onnx

    proto = onnx.TensorProto(data_type=tensor.dtype.value, dims=tensor.shape.numpy())
    if tensor.doc_string:
        proto.doc_string = tensor.doc_string
    for key, value in tensor.metadata_props.items():
        proto.metadata_props.add(key=key, value=value)
    return ir.serde.TensorProtoTensor(proto)


def _shared(model: ir.Model, out: Path) -> bool:
    """Whether the weights, all but a few, lie in one file; then the model names it beside `out`."""
    values = [v for v in model.graph.initializers.values() if v.const_value is not None]
    held = {v: v.const_value for v in values if isinstance(v.const_value, ir.ExternalTensor)}
    files = {Path(t.path) for t in held.values()}
    rest = sum(v.const_value.nbytes for v in values if v not in held and v.const_value)
    if len(files) != 1 or rest > _INLINE_BYTES:
        return False
    (file,), data = files, out.with_name(f"{out.name}.data")
    if file.stat().st_size - sum(t.nbytes for t in held.values()) > _INLINE_BYTES:
        return False
    data.unlink(missing_ok=True)
    try:
        data.hardlink_to(file)
    except OSError:  # Not every filesystem has links.
        return False
    for value, t in held.items():
        value.const_value = ir.ExternalTensor(
            data.name,
            t.offset,
            t.length,
            t.dtype,
            shape=t.shape,
            name=str(t.name),
            base_dir=out.parent,
        )
    return True


def light(model: Model, folder: Path) -> Model:
    """The same model in a file that is read, written and opened in no time.

    It says where in the model's own file the large weights lie, so that a runtime maps them instead
    of parsing them. That file must not change or go then.

    Args:
        model: Stays as it is.
        folder: For the copy.

    Returns:
        The model itself, where it lies in another folder (runtimes look for weights in no other),
        where it is too large for one file, so that its weights lie beside it already, and where its
        file is put together in an unusual way.
    """
    path = folder / f"light-{model.sha256[:16]}.onnx"
    if folder != model.path.parent or too_large(model.size_bytes):
        return model
    if not path.exists():
        try:
            without, places = split(model.path)
        except ValueError:
            return model
        path.write_bytes(_pointing(without, places, model.path))
    return replace(model, path=path)


def _pointing(without: bytes, places: Sequence[Place], path: Path) -> bytes:
    """A model from `split` that says where in the file `path` its weights lie."""
    import onnx

    proto, file = onnx.ModelProto.FromString(without), _File(path)
    for place in places:
        tensor = proto.graph.initializer[place.index]
        if not _is_plain(tensor):
            tensor.raw_data = file.read(place)
            continue
        tensor.data_location = onnx.TensorProto.EXTERNAL
        told = {"location": path.name, "offset": place.offset, "length": place.length}
        for key, value in told.items():
            tensor.external_data.add(key=key, value=str(value))
    return bytes(proto.SerializeToString())


def too_large(size_bytes: int) -> bool:
    """Whether weights of this size need a file of their own."""
    return size_bytes > EXTERNAL_BYTES


def weight_bytes(model: ir.Model) -> int:
    """Size of all constants."""
    return sum(v.const_value.nbytes for v in constants_of(model) if v.const_value is not None)


def constants_of(model: ir.Model) -> Iterator[ir.Value]:
    """Initializers of the graph and of those inside it."""
    for graph in (model.graph, *model.graph.subgraphs()):
        yield from graph.initializers.values()


def tensors_of(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Initializers of the graph and of those inside it, and what nodes have as attributes."""
    yield from (v.const_value for v in constants_of(model) if v.const_value is not None)
    for node in model.graph.all_nodes():
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR:
                yield attribute.as_tensor()


def load(path: Path) -> ir.Model:
    """The graph in a file; large weights are read when they are asked for, and each time again.

    The file may be removed meanwhile, but must not change.
    """
    import onnx

    try:
        light, places = split(path)
    except ValueError:
        return ir.load(path)
    file = _File(path)
    proto = onnx.ModelProto.FromString(light)
    lazy: dict[str, ir.LazyTensor] = {}
    for place in places:
        tensor = proto.graph.initializer[place.index]
        if not _is_plain(tensor):
            tensor.raw_data = file.read(place)
            continue
        kind, shape = ir.DataType(tensor.data_type), ir.Shape(tensor.dims)
        read = partial(_tensor_at, file, place, kind, shape)
        told = tensor.doc_string or None
        lazy[tensor.name] = ir.LazyTensor(read, kind, shape, name=tensor.name, doc_string=told)
    model = ir.serde.deserialize_model(proto)
    for name, weights in lazy.items():
        model.graph.initializers[name].const_value = weights
    ir.external_data.set_base_dir(model.graph, path.parent)
    return model


def _is_plain(tensor: Any) -> bool:
    """Whether an `onnx.TensorProto` is the numbers in its `raw_data`, one after the other.

    What is not is for the library to read or to refuse: less than a byte each, text, bytes beside
    those in another file, no name.
    """
    plain = tensor.data_type in _WHOLE_BYTES and tensor.data_location != tensor.EXTERNAL
    return plain and bool(tensor.name)


class _File:
    """A file that stays open as long as anybody may want to read it."""

    def __init__(self, path: Path) -> None:
        self.handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        os.close(self.handle)

    def read(self, place: Place) -> bytes:
        """The bytes of one initializer."""
        return os.pread(self.handle, place.length, place.offset)


def _tensor_at(file: _File, place: Place, kind: ir.DataType, shape: ir.Shape) -> ir.Tensor[Any]:
    values = np.frombuffer(file.read(place), kind.numpy().newbyteorder("<"))
    return ir.Tensor(values.reshape(shape.numpy()), kind)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[ir.Model]:
    """The graph in a file, its weights in memory until the block ends."""
    model = load(path)
    try:
        yield model
    finally:
        release(model)


def release(model: ir.Model) -> None:
    """Give back the memory of a model's weights at once.

    Nodes and values refer to each other, so a graph that nobody holds any more stays until Python
    looks for such cycles, which may be several models later.
    """
    for value in constants_of(model):
        value.const_value = None


def give_back() -> None:
    """Return freed memory to the system, which glibc keeps for every thread that ever asked for it.

    Other C libraries have no such function, and nothing happens.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
