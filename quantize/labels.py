"""Labels that lie beside files: `labels.npy`, `labels.csv`, and the names of class folders."""

import csv
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import InputError
from bench.models import Array
from quantize.plugins import nearest

LABEL_FILES = ("labels.npy", "labels.csv")


def labels_beside(
    folder: Path, files: Sequence[Path], *, texts: bool = False
) -> tuple[object, ...] | None:
    """Labels of `files`, read from `labels.npy` or `labels.csv` in their folder.

    Args:
        folder: Where the label file may lie.
        files: The samples, in the order that `labels.npy` follows.
        texts: Labels of `labels.csv` are text, even where all look like numbers.

    Returns:
        One label per file: all ints, or else all floats, or else all text; None where there is no
        label file.

    Raises:
        InputError: Both files exist, a file has no label, or the counts differ.
    """
    found = [folder / name for name in LABEL_FILES if (folder / name).is_file()]
    if len(found) > 1:
        raise InputError(f"{folder}: holds both {' and '.join(LABEL_FILES)}. Keep one of them.")
    if not found:
        return None
    if found[0].suffix == ".csv":
        written = _from_csv(found[0], files)
        return tuple(written) if texts else _numbers(written)
    return label_values(load_array(found[0]), len(files), f"{found[0]}")


def label_values(array: Array, count: int, where: str) -> tuple[object, ...]:
    """One label per sample: plain numbers or text from a vector, arrays from anything larger.

    Whole numbers in a column, [N, 1], are classes as in a vector.

    Raises:
        InputError: There are more or fewer labels than samples.
    """
    if array.ndim == 0 or len(array) != count:
        raise InputError(
            f"{where}: holds {len(array) if array.ndim else 'a single'} label(s) for {count} "
            "sample(s). Give exactly one label per sample, in the same order."
        )
    if array.dtype.kind in "iu" and array.shape[1:] == (1,):
        array = array[:, 0]
    return tuple(plain(v) for v in array)


def plain(value: Any) -> object:
    """Numbers of numpy and 0-d arrays as Python's; everything else as it is."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    if isinstance(value, np.ndarray):
        value = value.view()
        value.flags.writeable = False
    return value


def class_labels(names: Sequence[str]) -> Mapping[str, int]:
    """Class of each folder name: its number where all are numbers, else its place when sorted."""
    if all(re.fullmatch(r"\d+", n) for n in names):
        return {n: int(n) for n in names}
    return {n: i for i, n in enumerate(sorted(names))}


def load_array(path: Path) -> Array:
    """Read an `.npy` file, memory-mapped and without unpickling.

    Raises:
        InputError: It is not a complete array file, or it holds Python objects.
    """
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as e:
        raise InputError(
            f"{path}: not a readable .npy array: {e}. Save it again with np.save; arrays of Python "
            "objects are never loaded, because that would run a pickle."
        ) from e
    return array


def natural_key(path: Path) -> tuple[tuple[int, int, str], ...]:
    """Sorts `2.npy` before `10.npy`."""
    parts = re.split(r"(\d+)", path.name)
    return tuple((0, int(p), p) if p.isdigit() else (1, 0, p) for p in parts)


def label_digest(label: object) -> str:
    """SHA-256 over a label's content; objects that are no plain data count by their type alone."""
    return hashlib.sha256(repr(_canonical(label)).encode()).hexdigest()


def _canonical(label: object) -> object:
    if isinstance(label, np.ndarray):
        content = label.tolist() if label.dtype == object else label.tobytes().hex()
        return ("array", str(label.dtype), label.shape, content)
    if label is None or isinstance(label, bool | int | float | str | bytes):
        return label
    if isinstance(label, Mapping):
        return ("map", [(str(k), _canonical(label[k])) for k in sorted(label, key=str)])
    if isinstance(label, list | tuple):
        return ("list", [_canonical(v) for v in label])
    return ("object", type(label).__qualname__)


def _from_csv(path: Path, files: Sequence[Path]) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = [r for r in csv.reader(stream) if r]
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise InputError(f"{path}: not readable as CSV: {e}.") from e
    if rows and [c.strip().lower() for c in rows[0]] == ["file", "label"]:
        rows = rows[1:]
    texts: dict[str, str] = {}
    for line, row in enumerate(rows, 1):
        if len(row) != 2:
            raise InputError(f"{path}: row {line} has {len(row)} fields, expected file,label.")
        texts[row[0].strip()] = row[1].strip()
    unlabelled = [f.name for f in files if f.name not in texts]
    if unlabelled:
        raise InputError(
            f"{path}: labels {len(texts)} file(s); {len(unlabelled)} of {len(files)} sample(s) "
            f"have none, the first is {unlabelled[0]!r}.{nearest(unlabelled[0], list(texts))}"
        )
    return [texts[f.name] for f in files]


def _numbers(texts: list[str]) -> tuple[object, ...]:
    for kind in (int, float):
        try:
            return tuple(kind(t) for t in texts)
        except ValueError:
            continue
    return tuple(texts)
