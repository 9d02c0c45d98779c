"""Columns that divide the scored samples: those of the user's CSV file, and the labels."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.errors import InputError, UsageError
from quantize.data import Samples
from quantize.evaluate import Evaluation
from quantize.plugins import nearest

CLASS = "class"
KEY = "sample"

Columns = Mapping[str, Sequence[str]]
"""By name, the value of each scored sample."""


def read_columns(path: Path, samples: Samples, count: int) -> dict[str, list[str]]:
    """Columns of a CSV file, in the order of the scored samples.

    The first column, `sample`, holds the sample's number in the data (from 0) or its file's name.

    Args:
        path: Of the file; the first row names the columns.
        samples: That were scored.
        count: Scores, which may be several per run of the model.

    Raises:
        InputError: It cannot be read, or does not name every sample.
    """
    header, rows = _table(path)
    found: dict[str, list[str]] = {name: [] for name in header[1:]}
    batch = scores_per_run(samples, count)
    for position in range(count):
        number = samples.number(position // batch) * batch + position % batch
        names = [str(number), *_names(samples.place(position // batch))]
        row = next((rows[n] for n in names if n in rows), None)
        if row is None:
            raise InputError(
                f"{path}: has no row for sample {number} ({samples.place(position // batch)})."
                f"{nearest(names[-1], list(rows))} The column {KEY!r} holds the number of each "
                "sample in the data, from 0, or the name of its file."
            )
        for name, cell in zip(header[1:], row, strict=True):
            found[name].append(cell)
    return found


def units_of(columns: Columns, name: str) -> list[int]:
    """Number of the independent unit of each sample.

    Raises:
        UsageError: There is no such column.
    """
    if name not in columns:
        raise UsageError(
            f"--unit {name!r}: no such column.{nearest(name, list(columns))} Known: "
            f"{', '.join(columns) or 'none; give them with --slices'}."
        )
    numbers: dict[str, int] = {}
    return [numbers.setdefault(v, len(numbers)) for v in columns[name]]


def class_column(samples: Samples, evaluation: Evaluation) -> dict[str, list[str]]:
    """The label of each sample as a column, where labels are classes."""
    if not samples.labelled or not evaluation.binary:
        return {}
    labels = labels_of(samples, evaluation.count)
    if not all(isinstance(v, (int, np.integer, str)) for v in labels):
        return {}
    return {CLASS: [str(v) for v in labels]}


def _table(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Names of the columns, and the cells of each row by its first."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            lines = [[c.strip() for c in r] for r in csv.reader(stream) if r]
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise InputError(f"{path}: not readable as CSV: {e}.") from e
    if not lines or lines[0][0] != KEY or len(lines[0]) < 2:
        raise InputError(
            f"{path}: starts with {','.join(lines[0]) if lines else 'nothing'!r}; expected a row "
            f"of names, {KEY},…, as in {KEY},lighting,camera."
        )
    header = lines[0]
    for name in header:
        if not name or header.count(name) > 1:
            raise InputError(
                f"{path}: the first row names {name!r} {header.count(name)} times: "
                f"{','.join(header)}. Give each column a name of its own."
            )
    known: dict[str, int] = {}
    for number, row in enumerate(lines[1:], 2):
        if len(row) != len(header):
            raise InputError(
                f"{path}: row {number} has {len(row)} cells, the first row {len(header)}."
            )
        if known.setdefault(row[0], number) != number:
            raise InputError(
                f"{path}: rows {known[row[0]]} and {number} both name sample {row[0]!r}. Keep one."
            )
    return header, {row[0]: row[1:] for row in lines[1:]}


def _names(place: str) -> list[str]:
    """What a row may call a sample that is a file: `val/cat/1.jpg`, `cat/1.jpg`, `1.jpg`."""
    parts = Path(place).parts
    return ["/".join(parts[i:]) for i in range(len(parts))] if Path(place).suffix else []


def scores_per_run(samples: Samples, count: int) -> int:
    """Scores per run of the model."""
    if count % len(samples):
        raise UsageError(
            f"{samples.source}: {count} scores of {len(samples)} samples: batches of different "
            "sizes cannot be told apart into slices. Give samples one by one."
        )
    return count // len(samples)


def labels_of(samples: Samples, count: int) -> list[object]:
    """The label of each score; None where a run has several scores and no label for each."""
    batch = scores_per_run(samples, count)
    if batch == 1:
        return [samples.label(i) for i in range(count)]
    wholes: list[NDArray[np.generic]] = [np.asarray(samples.label(i)) for i in range(len(samples))]
    if any(w.shape[:1] != (batch,) for w in wholes):
        return [None] * count
    return [w[k].item() if w.ndim == 1 else None for w in wholes for k in range(batch)]
