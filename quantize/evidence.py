"""Evidence: what a metric that is no mean over samples keeps of each sample until all have run.

F1, mAP and word error rate are functions of the whole data set. Such a metric turns one model run
into one row per sample, and afterwards any selection of rows into one number. The bootstrap of the
gate asks for that number again and again, for samples drawn with repetition.
"""

import json
import math
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bench.errors import InputError, ResourceError
from bench.models import Array
from bench.store import unstored_schema

Rows: TypeAlias = Array | list[Any]
"""Numbers, or equally long tuples or arrays of them, as one array [samples, …]; else a list."""

# Rows stay in memory for as long as verdicts are reached.
_MOST_BYTES = 1 << 30
_TEXT, _ARRAYS = "rows.json", "arrays.bin"


class Evidence:
    """Rows of one model and the function that turns a selection of them into a number.

    Reports do not store it: `bench.store` writes null.

    Args:
        rows: One per sample, in order.
        function: Takes any selection of rows, repeated ones included; returns a finite number.
        name: Of the metric, for messages.
        spoil: Makes rows those of samples that went wrong altogether; None where nobody knows.
        additive: Whether `function` does nothing with rows but add them up first.
    """

    __slots__ = ("_flat", "additive", "function", "name", "rows", "spoil")

    def __init__(
        self,
        rows: Rows,
        function: Callable[[Rows], float],
        name: str,
        spoil: Callable[[Rows], Rows] | None = None,
        *,
        additive: bool = False,
    ) -> None:
        self.rows, self.function, self.name, self.spoil = rows, function, name, spoil
        self.additive = additive and isinstance(rows, np.ndarray)
        self._flat = np.asarray(rows, np.float64).reshape(len(rows), -1) if self.additive else None

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, _handler: object) -> Any:
        return unstored_schema()

    def __len__(self) -> int:
        return len(self.rows)

    def value(self, picks: NDArray[np.intp] | None = None) -> float:
        """The metric over all rows, or over those at `picks`.

        Raises:
            InputError: The function gives no finite number.
        """
        found = self.function(self.rows if picks is None else self._selected(picks))
        if not math.isfinite(found):
            raise InputError(
                f"metric {self.name!r} is {found} for a selection of "
                f"{len(self.rows if picks is None else picks)} samples. Intervals"
                " come from samples drawn with repetition, so it needs a finite value for each "
                "such selection, also for one without a single positive."
            )
        return float(found)

    def at(self, picks: NDArray[np.intp]) -> "Evidence":
        """The same of some samples."""
        rows = take(self.rows, picks)
        return Evidence(rows, self.function, self.name, self.spoil, additive=self.additive)

    def spoiled(self, picks: NDArray[np.intp]) -> float:
        """The metric if the samples at `picks` had gone wrong altogether.

        Raises:
            InputError: The rows that `spoil` returns do not fit.
        """
        assert self.spoil is not None
        worst = self.spoil(take(self.rows, picks))
        if len(worst) != len(picks):
            raise InputError(
                f"metric {self.name!r}: `spoil` returned {len(worst)} rows for {len(picks)}."
            )
        if isinstance(self.rows, np.ndarray):
            wrong = np.asarray(stacked(list(worst)))
            if wrong.shape[1:] != self.rows.shape[1:] or wrong.dtype.kind not in "biuf":
                raise InputError(
                    f"metric {self.name!r}: `spoil` returned rows {worst[0]!r:.80}; expected "
                    f"numbers in the shape of its own rows, {list(self.rows.shape[1:])}."
                )
            rows = self.rows.astype(np.result_type(self.rows, wrong))
            rows[picks] = wrong
            return Evidence(rows, self.function, self.name).value()
        bad = dict(zip(map(int, picks), worst, strict=True))
        mixed = [bad.get(i, row) for i, row in enumerate(self.rows)]
        return Evidence(mixed, self.function, self.name).value()

    def _selected(self, picks: NDArray[np.intp]) -> Rows:
        if self._flat is None or not isinstance(self.rows, np.ndarray):
            return take(self.rows, picks)
        # One row that is the sum: it costs a tenth of taking every row out.
        counts = np.bincount(picks, minlength=len(self.rows)).astype(np.float64)
        total: Array = (counts @ self._flat).reshape(1, *self.rows.shape[1:])
        return total


class Gathering:
    """Collects rows while a model runs, and refuses more than fits in memory."""

    __slots__ = ("_bytes", "_name", "rows")

    def __init__(self, name: str) -> None:
        self.rows: list[Any] = []
        self._bytes, self._name = 0, name

    def add(self, rows: Sequence[Any]) -> None:
        """Keep the rows of one run.

        Raises:
            ResourceError: All rows together are too large.
        """
        self.rows += rows
        self._bytes += sum(_size_bytes(r) for r in rows)
        if self._bytes > _MOST_BYTES:
            raise ResourceError(
                f"metric {self._name!r} keeps more than {_MOST_BYTES >> 20} MiB after "
                f"{len(self.rows):,} samples. Keep less of each sample, counts instead of maps."
            )


def stacked(rows: Sequence[Any]) -> Rows:
    """Rows of numbers with one shape as an array [samples, …], others as a list."""
    if not rows or not all(_is_numeric(r) for r in rows):
        return list(rows)
    try:
        array = np.asarray(rows)
    except ValueError:
        return list(rows)  # of different lengths
    return array if array.dtype.kind in "biuf" else list(rows)


def take(rows: Rows, picks: NDArray[np.intp]) -> Rows:
    """The rows at `picks`, in that order, repeated as there."""
    return rows[picks] if isinstance(rows, np.ndarray) else [rows[i] for i in picks]


def _is_numeric(row: Any) -> bool:
    return isinstance(row, (bool, int, float, np.number, np.bool_, np.ndarray, tuple))


def _size_bytes(row: Any) -> int:
    if isinstance(row, np.ndarray):
        return row.nbytes
    if isinstance(row, (tuple, list)):
        return sys.getsizeof(row) + sum(_size_bytes(v) for v in row)
    if isinstance(row, dict):
        return sys.getsizeof(row) + sum(_size_bytes(v) for v in row.values())
    return sys.getsizeof(row)


def write_rows(rows: Rows, file: Path) -> None:
    """Store rows: plain values as JSON, arrays one behind the other, no pickle.

    Raises:
        TypeError: A row holds something else than numbers, text, None, arrays, and tuples, lists
            and dicts of these.
        OSError: It cannot be written.
    """
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open(_ARRAYS, "w", force_zip64=True) as arrays:
            text = json.dumps(_plain(rows, arrays))
        archive.writestr(_TEXT, text)


def read_rows(file: Path) -> Rows:
    """What `write_rows` stored, of the same types and to the last bit.

    Raises:
        ValueError: The file is damaged.
        OSError: It cannot be read.
    """
    try:
        with zipfile.ZipFile(file) as archive, archive.open(_ARRAYS) as arrays:
            rows: Rows = _value(json.loads(archive.read(_TEXT)), arrays)
            return rows
    except (zipfile.BadZipFile, KeyError, TypeError, IndexError) as e:
        raise ValueError(f"{file}: damaged: {e}") from e


def _plain(value: Any, arrays: IO[bytes]) -> Any:
    """A value as JSON: what it has no word for becomes a list that begins with its kind."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (list, tuple):
        return [type(value).__name__, [_plain(v, arrays) for v in value]]
    if type(value) is dict:
        pairs = [[_plain(k, arrays), _plain(v, arrays)] for k, v in value.items()]
        return ["dict", pairs]
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufcUS":
        arrays.write(np.ascontiguousarray(value).tobytes())
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return [kind, value.dtype.str, list(value.shape)]
    raise TypeError(f"a row of the metric holds a {type(value).__name__}")


def _value(plain: Any, arrays: IO[bytes]) -> Any:
    """What `_plain` made `plain` of; arrays are read in the order in which they were written."""
    if not isinstance(plain, list):
        return plain
    kind = plain[0]
    if kind == "dict":
        return {_value(k, arrays): _value(v, arrays) for k, v in plain[1]}
    if kind in ("list", "tuple"):
        values = [_value(v, arrays) for v in plain[1]]
        return tuple(values) if kind == "tuple" else values
    dtype, shape = np.dtype(plain[1]), tuple(plain[2])
    # Of a bytearray, so that it can be written to like the one that was stored.
    taken = bytearray(arrays.read(dtype.itemsize * math.prod(shape)))
    array = np.ndarray(shape, dtype, taken)
    return array if kind == "array" else array[()]
