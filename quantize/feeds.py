"""What one sample has to look like, and what every reader of samples hands over.

A sample that does not fit is refused and never repaired: a cast from uint8 to float32 calibrates
on unscaled pixels, and a NaN is ignored silently by some calibrators and written into a scale by
others.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.errors import InputError
from bench.models import Array, Feeds, TensorSpec
from quantize.plugins import nearest

if TYPE_CHECKING:
    from quantize.images import Preprocessing

_LAYOUTS = {
    "NHWC→NCHW": (0, 3, 1, 2),
    "NCHW→NHWC": (0, 2, 3, 1),
}


@dataclass(frozen=True, slots=True)
class Request:
    """What the caller of a reader wants.

    Attributes:
        inputs: What the model takes.
        scratch: Existing folder for temporary files; the caller removes it.
        preprocessing: How images become arrays; None for the defaults.
        states: Names of the inputs that carry state; they may be missing from the data.
        limit: Read at most so many samples.
        texts: Labels are text, even where all look like numbers in a file of text.
    """

    inputs: tuple[TensorSpec, ...]
    scratch: Path
    preprocessing: "Preprocessing | None" = None
    states: frozenset[str] = frozenset()
    limit: int | None = None
    texts: bool = False

    def input(self, name: str) -> TensorSpec:
        """The input called `name`, which exists."""
        return next(s for s in self.inputs if s.name == name)

    @property
    def required(self) -> tuple[TensorSpec, ...]:
        """The inputs that data has to give."""
        return tuple(s for s in self.inputs if s.name not in self.states)


@dataclass(frozen=True, slots=True)
class Rows:
    """Random access to samples as a reader finds them, not yet checked.

    Attributes:
        count: How many there are.
        load: Feeds of sample i; safe to call from several threads.
        where: File or place of sample i, for messages.
        label: Label of sample i; None where there are no labels.
    """

    count: int
    load: Callable[[int], Feeds]
    where: Callable[[int], str]
    label: Callable[[int], object] | None = None


def check_feeds(
    feeds: Feeds, inputs: Sequence[TensorSpec], where: str, *, values: bool = True
) -> None:
    """Refuse feeds that the model does not take exactly as they are.

    Args:
        feeds: One sample, batch axis included.
        inputs: What the model takes.
        where: Where the sample came from.
        values: Whether to look at every value; not where they were looked at before.

    Raises:
        InputError: Names, element type or shape differ, or a value is not finite.
    """
    check_names(list(feeds), inputs, where)
    for spec in inputs:
        check_array(feeds[spec.name], spec, where, values=values)


def check_names(
    found: Sequence[str], inputs: Sequence[TensorSpec], where: str, *, label: str | None = None
) -> None:
    """Refuse a sample whose names are not the model's.

    Args:
        found: Names of its arrays.
        inputs: What the model takes.
        where: Where the sample came from.
        label: What the array of its label would be called, if it may have one.

    Raises:
        InputError: It lists both sides.
    """
    wanted = [s.name for s in inputs]
    if sorted(found) == sorted(wanted):
        return
    missing = [n for n in wanted if n not in found]
    extra = [n for n in found if n not in wanted]
    hint = nearest(missing[0], extra) if missing else f" Remove {', '.join(map(repr, extra))}."
    if label is not None and len(extra) == len(missing) + 1:
        hint += f" Labels have to be called {label!r}."
    raise InputError(
        f"{where}: expected the inputs {', '.join(map(repr, wanted))}; "
        f"found {', '.join(map(repr, found)) or 'none'}.{hint}"
    )


def check_array(array: Array, spec: TensorSpec, where: str, *, values: bool = True) -> None:
    """Refuse an array that does not fit an input.

    Raises:
        InputError: Its element type or shape differs, an axis is empty, or a value is not finite.
    """
    found = dtype_name(array)
    if found != spec.dtype:
        raise InputError(
            f"{where}: {spec.name!r} is {found}, the model takes {spec.dtype}. "
            f"{_cast_hint(found, spec)}"
        )
    if not fits(array.shape, spec.shape):
        raise InputError(
            f"{where}: {spec.name!r} has the shape {list(array.shape)}, the model takes {spec}."
            f"{_shape_hint(array.shape, spec)}"
        )
    if 0 in array.shape:
        raise InputError(f"{where}: {spec.name!r} has an empty axis: {list(array.shape)}.")
    if values and "float" in found and not np.isfinite(array).all():
        bad = array[~np.isfinite(array)]
        index = [int(i) for i in np.argwhere(~np.isfinite(array))[0]]
        # Minus infinity is refused too: an infinite mask makes the range of its tensor infinite,
        # and a large finite number masks as well.
        raise InputError(
            f"{where}: {spec.name!r} holds {bad.size} value(s) that are not finite, the first is "
            f"{float(bad.flat[0])} at {index}. Remove the sample or mend what makes it "
            "(in a mask, use a large finite number)."
        )


def dtype_name(array: Array) -> str:
    """Element type as `TensorSpec` spells it; "string" for text."""
    if array.dtype.kind == "U" or (
        array.dtype == object and all(isinstance(v, str) for v in array.flat)
    ):
        return "string"
    return str(array.dtype)


def fits(shape: Sequence[int], wanted: tuple[int | str | None, ...] | None) -> bool:
    """Whether an array of that shape may be fed."""
    if wanted is None:
        return True
    return len(shape) == len(wanted) and all(
        not isinstance(w, int) or w == n for n, w in zip(shape, wanted, strict=True)
    )


def with_batch(array: Array, spec: TensorSpec) -> Array:
    """Add the batch axis to an array that lacks exactly one axis, the first."""
    if spec.shape is not None and array.ndim == len(spec.shape) - 1:
        return array[None]
    return array


def with_states(feeds: Feeds, inputs: Sequence[TensorSpec], states: frozenset[str]) -> Feeds:
    """Start the states that a sample does not give as zeros.

    A free axis takes the size that the same symbol has in the sample, or 1.
    """
    missing = [s for s in inputs if s.name in states and s.name not in feeds]
    if not missing:
        return feeds
    sizes: dict[str, int] = {}
    for spec in inputs:
        if spec.name in feeds and spec.shape is not None:
            pairs = zip(spec.shape, feeds[spec.name].shape, strict=False)
            sizes.update({d: n for d, n in pairs if isinstance(d, str)})
    return {**feeds, **{s.name: _zeros(s, sizes) for s in missing}}


def grouped(rows: Rows, inputs: Sequence[TensorSpec]) -> Rows:
    """Join consecutive samples where the model's batch axis is fixed above one.

    Args:
        rows: Samples with a batch axis of one, or of the model's size already.
        inputs: What the model takes.

    Returns:
        The same rows where nothing has to be joined. A rest that fills no batch is left out.
    """
    if rows.count == 0:
        return rows
    first = rows.load(0)
    size = max((_missing_batch(first.get(s.name), s) for s in inputs), default=1)
    if size == 1:
        return rows

    def load(i: int) -> Feeds:
        parts = [rows.load(i * size + k) for k in range(size)]
        return {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}

    def label(i: int) -> object:
        assert rows.label is not None
        return np.asarray([rows.label(i * size + k) for k in range(size)])

    return Rows(
        count=rows.count // size,
        load=load,
        where=lambda i: f"{rows.where(i * size)} and the {size - 1} after it",
        label=label if rows.label is not None else None,
    )


def describe(feeds: Sequence[Feeds]) -> tuple[TensorSpec, ...]:
    """Specs that a few samples agree with: the batch axis is free, and every axis that differs.

    First axes are the batch axis, unless inputs disagree in their sizes (a graph's nodes and edges,
    states of several layers): then only those that always are 1. Axes that differ and always have
    the same size as each other share a symbol.

    Args:
        feeds: At least one sample.

    Raises:
        InputError: Samples differ in their names, element types or ranks.
    """
    symbols: dict[tuple[int, ...], str] = {}
    together = all(len({a.shape[0] for a in f.values() if a.ndim}) <= 1 for f in feeds)
    return tuple(_describe_one(name, feeds, symbols, together=together) for name in feeds[0])


def digest(feeds: Feeds) -> str:
    """SHA-256 over names, element types, shapes and bytes, whatever the order of the names."""
    total = hashlib.sha256()
    for name in sorted(feeds):
        array = feeds[name]
        kind = dtype_name(array)
        total.update(repr((name, kind, array.shape)).encode())
        if kind == "string":
            # The width of a text array depends on its longest entry, its content does not.
            total.update(repr([str(v) for v in array.flat]).encode())
        else:
            total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def frozen(array: Array) -> Array:
    """A contiguous view or copy that nobody can write to."""
    view: Array = np.asarray(array, order="C").view()
    view.flags.writeable = False
    return view


def _zeros(spec: TensorSpec, sizes: Mapping[str, int]) -> Array:
    if spec.shape is None:
        raise InputError(
            f"the state {spec.name!r} has no declared shape, so it cannot start as zeros. "
            "Give its first value with the data."
        )
    dims = tuple(
        d if isinstance(d, int) else sizes.get(d, 1) if isinstance(d, str) else 1
        for d in spec.shape
    )
    return np.zeros(dims, spec.dtype)


def _missing_batch(array: Array | None, spec: TensorSpec) -> int:
    """How many samples with a batch of one make what the model takes; 1 where nothing is to do."""
    if array is None or not spec.shape or array.ndim != len(spec.shape):
        return 1
    batch = spec.shape[0]
    return batch if isinstance(batch, int) and array.shape[0] == 1 and batch > 1 else 1


def _describe_one(
    name: str, feeds: Sequence[Feeds], symbols: dict[tuple[int, ...], str], *, together: bool
) -> TensorSpec:
    arrays = [f.get(name) for f in feeds]
    first = feeds[0][name]
    for i, array in enumerate(arrays):
        if (
            array is None
            or dtype_name(array) != dtype_name(first)
            or array.ndim != first.ndim
            or len(feeds[i]) != len(feeds[0])
        ):
            raise InputError(
                f"sample {i} and sample 0 differ in the names, element types or ranks of their "
                f"arrays ({name!r}). Every sample must have the same."
            )
    shape: list[int | str | None] = []
    for axis in range(first.ndim):
        sizes = tuple(a.shape[axis] for a in arrays if a is not None)
        if axis == 0 and (together or set(sizes) == {1}):
            shape.append("N")
        elif len(set(sizes)) > 1:
            shape.append(symbols.setdefault(sizes, f"S{len(symbols) or ''}"))
        else:
            shape.append(sizes[0])
    return TensorSpec(name, dtype_name(first), tuple(shape))


def _cast_hint(found: str, spec: TensorSpec) -> str:
    if spec.dtype == "string":
        return "Save it as an array of text."
    line = f"`{spec.name} = {spec.name}.astype(np.{spec.dtype})`"
    if found == "float64" and spec.dtype.startswith("float"):
        return f"Save it with {line}."
    if found == "uint8" and spec.dtype.startswith("float"):
        return f"If these are pixels, scale and normalize them as in training, then {line}."
    return f"Values are never cast for you; if that is what they mean, save it with {line}."


def _shape_hint(shape: tuple[int, ...], spec: TensorSpec) -> str:
    if spec.shape is None:
        return ""
    if fits((1, *shape), spec.shape) and shape[:1] != (1,):
        return f" The batch axis is missing: `{spec.name}[None]` would fit."
    for name, axes in _LAYOUTS.items():
        if len(shape) == len(axes) and fits([shape[a] for a in axes], spec.shape):
            return f" A transpose would fit ({name}): `{spec.name}.transpose{axes}`."
    for axis in range(1, len(spec.shape)):
        if fits((*shape[:axis], 1, *shape[axis:]), spec.shape):
            return f" An axis is missing: `np.expand_dims({spec.name}, {axis})` would fit."
    return ""
