"""Inputs of models on disk and their digest. Reading never unpickles."""

import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.errors import InputError, UsageError
from bench.models import Array, Feeds, Model, TensorSpec

MAX_FEEDS = 64
_LABELS = {"label", "labels"}


def save_feeds(feeds: Sequence[Feeds], path: Path) -> None:
    """Write inputs to an `.npz` file that `load_feeds` reads without unpickling anything.

    Raises:
        InputError: An array holds something that is neither numbers nor text.
    """
    arrays: dict[str, Array] = {}
    names = [list(f) for f in feeds]
    for i, feed in enumerate(feeds):
        for j, (name, array) in enumerate(feed.items()):
            arrays[f"a{i}_{j}"] = _plain(name, array)
    # Names come from a model and may be anything, so they are content and not file names.
    arrays["names"] = np.frombuffer(json.dumps(names).encode(), dtype=np.uint8)
    with path.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def load_feeds(path: Path) -> list[Feeds]:
    """Read what `save_feeds` wrote."""
    with np.load(path, allow_pickle=False) as file:
        names = json.loads(file["names"].tobytes())
        return [{n: file[f"a{i}_{j}"] for j, n in enumerate(feed)} for i, feed in enumerate(names)]


def feeds_digest(feeds: Sequence[Feeds]) -> str:
    """SHA-256 over names, types, shapes and contents."""
    total = hashlib.sha256()
    for feed in feeds:
        for name in sorted(feed):
            array = _plain(name, feed[name])
            total.update(json.dumps([name, array.dtype.str, array.shape]).encode())
            total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def _plain(name: str, array: Array) -> Array:
    """`array`, Python strings turned into numpy's; what would have to be pickled is refused."""
    if array.dtype == object and all(isinstance(v, str) for v in array.flat):
        return array.astype(np.str_)
    if array.dtype.kind not in "biufcSU":
        raise InputError(
            f"input {name!r} holds {array.dtype}, expected numbers or text. "
            "Convert it, for example to float32."
        )
    return array


def refuse_fixed_batch(model: Model, batch: int) -> None:
    """Refuse several samples in one inference where no input can hold them.

    Raises:
        UsageError: The first axis of every input is fixed at another size.
    """
    # Inputs would keep their size, and the throughput would be multiplied all the same.
    held = [
        s for s in model.inputs if s.batch_is_free or s.shape is None or s.shape[:1] == (batch,)
    ]
    if batch > 1 and not held:
        raise UsageError(
            f"{model.path}: --batch {batch} needs an input whose first axis is free or {batch}, "
            f"found {', '.join(map(str, model.inputs))}. Export the model so, or leave --batch out."
        )


def read_feeds(path: Path, model: Model, *, batch: int) -> list[Feeds]:
    """Cut the samples of an `.npz` file into inputs for a model.

    Args:
        path: One array per input of the model, named as it. Where the input's first axis is free,
            the array's first axis counts samples. Otherwise the array has the input's own shape, or
            one axis more that counts inputs.
        model: What they are for.
        batch: Samples per input; a remainder is left out.

    Returns:
        At most `MAX_FEEDS`.

    Raises:
        InputError: It is no such file; an array is missing, superfluous, of another type or shape.
    """
    try:
        # An .npy file loads too, as an array, which is no context: TypeError.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError as e:
        raise InputError(
            f"{path}: no such file. This takes an .npz file, one array per input, made by "
            "numpy.savez(file, **inputs)."
        ) from e
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as e:
        raise InputError(f"{path}: not an .npz file of plain arrays: {e}.") from e
    names = [s.name for s in model.inputs]
    for extra in _LABELS - set(names):
        # Files for `quantize` and `gate` hold them too; time does not depend on them.
        arrays.pop(extra, None)
    if arrays.keys() != set(names):
        raise InputError(
            f"{path}: holds arrays {sorted(arrays)}, the model takes {sorted(names)}. "
            "Save one array per input, named as it: numpy.savez(file, **inputs)."
        )
    parts = {s.name: _parts(s, arrays[s.name], path, batch) for s in model.inputs}
    counts = {len(p) for p in parts.values() if p is not None}
    if len(counts) > 1:
        found = {n: len(p) for n, p in parts.items() if p is not None}
        raise InputError(f"{path}: arrays hold different numbers of inputs: {found}.")
    count = min(*counts, MAX_FEEDS) if counts else 1
    return [{n: arrays[n] if p is None else p[i] for n, p in parts.items()} for i in range(count)]


def _parts(spec: TensorSpec, array: Array, path: Path, batch: int) -> list[Array] | None:
    """An array cut into inputs; None if it is one input that serves all."""
    expected = np.dtype(spec.dtype) if spec.dtype != "string" else np.dtype(np.str_)
    if array.dtype.kind != expected.kind or (expected.kind != "U" and array.dtype != expected):
        raise InputError(f"{path}: {spec.name!r} holds {array.dtype}, the model takes {spec}.")
    if spec.batch_is_free:
        if array.ndim and len(array) >= batch:
            return [array[i : i + batch] for i in range(0, len(array) - batch + 1, batch)]
        raise InputError(
            f"{path}: {spec.name!r} has shape {list(array.shape)}, too few samples for a batch "
            f"of {batch}."
        )
    rank = None if spec.shape is None else len(spec.shape)
    if rank is None or array.ndim == rank:
        return None
    if array.ndim == rank + 1 and len(array):
        return list(array)
    raise InputError(
        f"{path}: {spec.name!r} has shape {list(array.shape)}, the model takes {spec}."
    )
