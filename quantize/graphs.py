"""Graphs in files: read, written, and their memory given back.

file ─▶ graph, weights inside or in a file beside it ─▶ file, with weights alike or shared
"""

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

# protobuf cannot hold more in memory; beyond it weights go to a file of their own.
EXTERNAL_BYTES = 1_500_000_000
# Of new weights that a graph may hold beside a file that it shares, or that file may hold in vain.
_INLINE_BYTES = 64 << 20


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
        for value in constants_of(model):
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.Tensor(value.const_value.numpy(), name=value.name)
        ir.save(model, out)


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


@contextlib.contextmanager
def opened(path: Path) -> Iterator[ir.Model]:
    """The graph in a file, its weights in memory until the block ends."""
    model = ir.load(path)
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
