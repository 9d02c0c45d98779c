"""Tensors inside the FP32 model while samples run through it, in bounded memory.

    samples ─▶ FP32 graph with the wanted tensors as outputs ─▶ one tensor at a time

ONNX Runtime keeps every output of a graph until a run ends, fetched or not. So where all wanted
tensors together would take too much memory, the samples pass several times, each time through a
graph that has only some of them as outputs. All these graphs share one file of weights.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from bench.errors import InputError
from bench.models import Array, Feeds, Model
from bench.runtimes.onnxruntime import open_errors, session_options
from bench.runtimes.seam import Settings
from quantize.data import Samples
from quantize.graphs import give_back, light, load, save, too_large

if TYPE_CHECKING:
    import onnxruntime as ort

logger = logging.getLogger(__name__)

R = TypeVar("R")
# Tensors fetched in one run hold at most this much together.
GROUP_BYTES = 128 << 20
# Samples looked at to find the largest, by which the groups are packed.
_LOOKED_AT = 16


@dataclass(slots=True)
class Watch:
    """A graph that is open, with some of the wanted tensors as outputs too.

    Attributes:
        session: What runs it, for several threads at once; gone when the pass is over.
        wanted: Tensors to look at, inputs of the graph among them.
        fetched: What a run has to return for that.
        states: Output to input names.
        workers: Samples that run side by side, so that no thread waits for another inside them.
        number: Of this pass over the samples, from 0.
        passes: In all.
    """

    session: "ort.InferenceSession"
    wanted: tuple[str, ...]
    fetched: tuple[str, ...]
    states: Mapping[str, str]
    workers: int
    number: int
    passes: int

    def over(
        self, samples: Samples, take: Callable[[int, Iterator[tuple[str, Array]]], R]
    ) -> Iterator[R]:
        """What `take` makes of each sample, in order.

        Half of the workers look at tensors while the others run samples: looking is many short
        calls of numpy, and threads that all make them wait for the interpreter after each.

        Args:
            samples: To run.
            take: Gets the number of a sample and its wanted tensors one at a time, each of which
                has to be taken; called by several threads at once.
        """
        carried: Feeds = {}
        waiting: deque[Future[R]] = deque()
        pool = ThreadPoolExecutor(self.workers)
        lookers = threading.BoundedSemaphore(max(self.workers // 2, 1))

        def one(index: int) -> R:
            feeds = {**samples[index].feeds, **carried}
            found = _run(self.session, self.fetched, feeds)
            with lookers:
                return take(index, self._values(feeds, found, carried))

        try:
            for index in range(len(samples)):
                if len(waiting) >= 2 * self.workers:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(one, index))
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _values(
        self, feeds: Feeds, found: Iterator[tuple[str, Array]], carried: Feeds
    ) -> Iterator[tuple[str, Array]]:
        yield from ((n, feeds[n]) for n in self.wanted if n in feeds)
        for name, array in found:
            if name in self.states:
                carried[self.states[name]] = array
            if name in self.wanted and name not in feeds:
                yield name, array


def passes(
    model: Model,
    tensors: Sequence[str],
    samples: Samples,
    threads: int,
    scratch: Path,
    states: Mapping[str, str],
) -> Iterator[Watch]:
    """Open graphs that together show all of `tensors`, as many of them as memory asks for.

    Args:
        model: The FP32 model.
        tensors: What to look at; each is seen in one of the passes.
        samples: Those that will run.
        threads: In all.
        scratch: Where the graphs are written for a moment.
        states: Output to input names, for which samples run in turn.
    """
    inputs = {s.name for s in model.inputs}
    groups = _groups(model, [n for n in tensors if n not in inputs], samples, scratch)
    workers = 1 if states else _side_by_side(groups, threads)
    path = scratch / "watched.onnx"
    for number, group in enumerate(groups):
        expose(light(model, scratch).path, group, path)
        # A worker computes as well; the other threads help all of them.
        packed = not too_large(model.size_bytes)
        session = _open(path, threads - workers + 1, packed=packed)
        # What is fed is looked at once.
        wanted = (*group, *(n for n in tensors if n in inputs and number == 0))
        fetched = tuple(dict.fromkeys([*group, *states])) or (model.outputs[0].name,)
        watched = Watch(session, wanted, fetched, states, workers, number, len(groups))
        try:
            yield watched
        finally:
            # Before the next one takes as much memory, whoever still holds this.
            del session, watched.session
            give_back()


def _run(
    session: "ort.InferenceSession", fetched: Sequence[str], feeds: Feeds
) -> Iterator[tuple[str, Array]]:
    """Tensors of a run, which is done at once; each is let go when the next one is taken."""
    import onnxruntime as ort

    try:
        if any(v.dtype.kind in "OU" for v in feeds.values()):
            # An OrtValue holds no text.
            return zip(fetched, session.run(list(fetched), feeds), strict=True)
        fed = {n: ort.OrtValue.ortvalue_from_numpy(v) for n, v in feeds.items()}
        found = session.run_with_ort_values(list(fetched), fed)
    except open_errors() as e:
        text = str(e).strip().splitlines()[0]
        raise InputError(f"the model cannot run on a calibration sample: {text}") from e
    return _one_by_one(fetched, found)


def _one_by_one(names: Sequence[str], found: list[Any]) -> Iterator[tuple[str, Array]]:
    for i, name in enumerate(names):
        value, found[i] = found[i], None
        if value.is_tensor():
            yield name, value.numpy()


def _open(path: Path, threads: int, *, packed: bool) -> "ort.InferenceSession":
    """Open a graph of our own, which is removed from the disk again.

    Args:
        path: The file.
        threads: Inside one inference.
        packed: See `Settings`.
    """
    import onnxruntime as ort

    options = session_options(Settings(threads=threads, packed=packed, arena=False))
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    finally:
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()


def _groups(
    model: Model, names: Sequence[str], samples: Samples, scratch: Path
) -> list[dict[str, int]]:
    """Names in groups that fit in memory, with their bytes on the largest of some samples."""
    some = range(0, len(samples), max(1, len(samples) // _LOOKED_AT))
    largest = max(some, key=lambda i: sum(v.nbytes for v in samples[i].feeds.values()))
    feeds, source = samples[largest].feeds, light(model, scratch).path
    shapes: dict[str, tuple[int, ...] | Array] = {**_shapes_told(source, names, feeds)}
    if unknown := [n for n in names if n not in shapes]:
        path = scratch / "sizes.onnx"
        outputs = _expose_shapes(source, unknown, path)
        found = dict(_run(_open(path, 0, packed=False), list(outputs.values()), feeds))
        shapes |= {n: found[o] for n, o in outputs.items() if o in found}
    sizes = {n: 4 * int(np.prod(s, dtype=np.int64)) for n, s in shapes.items()}
    return _pack({n: sizes.get(n, 0) for n in names})


def _shapes_told(path: Path, names: Iterable[str], feeds: Feeds) -> dict[str, tuple[int, ...]]:
    """Shapes of those tensors of a model for which they follow from what is fed.

    What else it says of shapes is its author's word, and may be that of another input.
    """
    graph = load(path)
    for given in graph.graph.inputs:
        if given.name in feeds:
            given.shape = ir.Shape(feeds[given.name].shape)
    made = [v for node in graph.graph.all_nodes() for v in node.outputs]
    for value in made:
        value.shape = None
    try:
        ShapeInferencePass(data_prop=True)(graph)
    except Exception as e:  # noqa: BLE001 - the pass wraps whatever the C++ inference throws
        logger.info("shape inference failed, sizes are looked at: %s", e)
    found = {v.name: v.shape for v in made if v.shape is not None and v.shape.is_static()}
    return {n: found[n].numpy() for n in names if n in found}


def _pack(sizes: Mapping[str, int]) -> list[dict[str, int]]:
    """Groups of names of at most GROUP_BYTES together, or one name alone."""
    groups: list[dict[str, int]] = [{}]
    for name, size in sizes.items():
        if groups[-1] and sum(groups[-1].values()) + size > GROUP_BYTES:
            groups.append({})
        groups[-1][name] = size
    return groups


def _side_by_side(groups: Iterable[Mapping[str, int]], threads: int) -> int:
    """Samples that may run at once: what is watched of them takes the memory of one group."""
    held = sum(size for group in groups for size in group.values())
    return max(1, min(threads, GROUP_BYTES // max(held, 1)))


def write_beside(model: ir.Model, source: Path, out: Path) -> None:
    """Write a graph that was read from `source`; beside it, both name the same file of weights."""
    if source.parent == out.parent:
        ir.save(model, out)
    else:
        save(model, out, share=True)


def expose(path: Path, names: Iterable[str], out: Path) -> None:
    """Write a copy of a model in which the tensors called `names` are outputs too.

    Weights that lie beside the model stay there, so `out` has to be in the same folder then.
    """
    model = load(path)
    known = {v.name: v for node in model.graph for v in node.outputs}
    there = {v.name for v in model.graph.outputs}
    for name in names:
        if name not in there:
            value = known[name]
            if value.type is None:
                value.type = ir.TensorType(ir.DataType.FLOAT)
            model.graph.outputs.append(value)
    write_beside(model, path, out)


def _expose_shapes(path: Path, names: Iterable[str], out: Path) -> dict[str, str]:
    """Write a copy of a model whose outputs are the shapes of tensors; their names by tensor."""
    model = load(path)
    known = {v.name: v for node in model.graph for v in node.outputs}
    shapes: dict[str, str] = {}
    for name in names:
        shapes[name] = f"{name}/shape_of_it"
        node = ir.node("Shape", [known[name]], name=shapes[name])
        node.outputs[0].name = shapes[name]
        node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
        model.graph.append(node)
        model.graph.outputs.append(node.outputs[0])
    write_beside(model, path, out)
    return shapes
