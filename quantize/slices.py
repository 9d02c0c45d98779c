"""Parts of the data that a mean can hide: each class, each value of a column that the user gives.

A slice is refused only if its drop is above the limit with the error rate of all slices together:
among a hundred good ones, five would look bad at 95 % each (Bonferroni's correction). A slice
passes by itself: to claim that every slice is good, each has to be shown so, and no correction is
needed (Berger, Technometrics 24 (1982) 295-300).
"""

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.errors import InputError, ResourceError, UsageError
from quantize.amounts import drop_text
from quantize.data import Samples
from quantize.evaluate import Evaluation, at
from quantize.gate import Outcome, judge, scale_of
from quantize.job import Limits
from quantize.pairing import pair
from quantize.plugins import nearest
from quantize.tolerance import exactly, parse_tolerance

CLASS = "class"
KEY = "sample"
# Fewer say nothing, and every one of them makes the correction harsher for the others.
_FEWEST = 5
# In a report; a CSV file that is asked for holds them all.
_MOST_FLIPS = 1000

Columns = Mapping[str, Sequence[str]]
"""By name, the value of each scored sample."""


@dataclass(frozen=True, slots=True)
class Division:
    """What the user's file says of the scored samples.

    Attributes:
        columns: That divide them.
        units: Number of the independent unit of each sample; None where each sample is one.
    """

    columns: dict[str, list[str]] = field(default_factory=dict)
    units: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class SliceVerdict:
    """How one part of the data fares.

    Attributes:
        column: What divides the data: "class", or a column that the user gave.
        value: Of that column.
        n: Samples in it, or units.
        baseline_value: FP32's score on it.
        candidate_value: INT8's.
        drop: Observed, positive where INT8 is worse.
        low: The drop is above this, at the confidence that all slices together have.
        high: The drop is below this, at the confidence of a single verdict.
        outcome: Against the limit of slices, or where there is none against that of the mean.
        samples_needed: About how many would settle it, if inconclusive.
    """

    column: str
    value: str
    n: int
    baseline_value: float
    candidate_value: float
    drop: float
    low: float
    high: float
    outcome: Outcome
    samples_needed: int | None

    @property
    def name(self) -> str:
        """`class=7`."""
        return f"{self.column}={self.value}"


@dataclass(frozen=True, slots=True)
class Flip:
    """A sample that INT8 scores otherwise than FP32.

    Attributes:
        sample: Its number in the data, from 0.
        place: Where it came from: a file, or a number in one.
        sha256: Of its content.
        label: As text; empty without labels.
        before: What FP32 answers, or its score.
        after: The same of INT8.
        drop: What the sample lost; negative where INT8 is better.
    """

    sample: int
    place: str
    sha256: str
    label: str
    before: str
    after: str
    drop: float


@dataclass(frozen=True, slots=True)
class Looked:
    """What parts of the data and single samples say of two evaluations.

    Attributes:
        slices: How each class and slice fares, the worst first.
        flips: What changed, what lost most first; at most a thousand.
        small: Slices of fewer than five samples, which are not judged.
    """

    slices: tuple[SliceVerdict, ...] = ()
    flips: tuple[Flip, ...] = ()
    small: int = 0


def divide(limits: Limits, samples: Samples, count: int) -> Division:
    """How the samples are divided, as `--slices` and `--unit` say.

    Raises:
        InputError: The file cannot be read, or does not name every sample.
        UsageError: It has no such column.
    """
    columns = read_columns(limits.slices, samples, count) if limits.slices is not None else {}
    units = tuple(units_of(columns, limits.unit)) if limits.unit is not None else None
    return Division({k: v for k, v in columns.items() if k != limits.unit}, units)


def slice_limit(limits: Limits, baseline: Evaluation) -> float | None:
    """The drop that each slice may have, in the metric's own unit; None where none was given.

    Raises:
        UsageError: The tolerance does not fit the metric.
    """
    if limits.max_slice_drop is None:
        return None
    bounded = baseline.bounded or baseline.binary
    asked = parse_tolerance(limits.max_slice_drop)
    return asked.absolute(baseline.value, bounded=bounded, decibels=baseline.decibels)


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
    batch = _batch(samples, count)
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
    labels = _labels(samples, evaluation.count)
    if not all(isinstance(v, (int, np.integer, str)) for v in labels):
        return {}
    return {CLASS: [str(v) for v in labels]}


def judge_slices(
    baseline: Evaluation,
    candidate: Evaluation,
    columns: Columns,
    limit: float,
    confidence: float,
    units: Sequence[int] | None = None,
) -> tuple[SliceVerdict, ...]:
    """Judge every slice of at least five samples, the worst first.

    Args:
        baseline: Of FP32.
        candidate: Of INT8; its outputs are finite.
        columns: What divides the samples.
        limit: The drop that a slice may have, in the metric's own unit.
        confidence: Of the verdict over all slices.
        units: Number of the independent unit of each sample; None where each sample is one.
    """
    parts = [
        (column, value, np.flatnonzero(np.asarray(values) == value))
        for column, values in columns.items()
        for value in dict.fromkeys(values)
    ]
    parts = [p for p in parts if p[2].size >= _FEWEST]
    if not parts or candidate.nonfinite:
        return ()
    whole = replace(baseline, chance=None)
    corrected = 1 - (1 - confidence) / len(parts)
    found = [
        _judge_slice(
            (at(whole, picks), at(candidate, picks)),
            None if units is None else [units[int(i)] for i in picks],
            (column, value),
            limit,
            (confidence, corrected),
        )
        for column, value, picks in parts
    ]
    return tuple(sorted(found, key=lambda s: (-s.low, -s.drop)))


def _judge_slice(
    evaluations: tuple[Evaluation, Evaluation],
    units: Sequence[int] | None,
    name: tuple[str, str],
    limit: float,
    confidences: tuple[float, float],
) -> SliceVerdict:
    baseline, candidate = evaluations
    single, corrected = confidences
    verdict = judge(baseline, candidate, exactly(limit, baseline), confidence=single, units=units)
    low = min(verdict.low, pair(baseline, candidate, corrected, units).low)
    outcome = verdict.outcome
    if outcome == "refuse" and low <= limit:
        outcome = "inconclusive"
    return SliceVerdict(
        column=name[0],
        value=name[1],
        n=verdict.n,
        baseline_value=baseline.value,
        candidate_value=candidate.value,
        drop=verdict.drop,
        low=low,
        high=verdict.high,
        outcome=outcome,
        samples_needed=verdict.samples_needed,
    )


def hidden_losses(
    slices: Sequence[SliceVerdict], limit: float, evaluation: Evaluation
) -> tuple[str, ...]:
    """Slices that surely lost more than the mean may, one sentence each, at most five."""
    scale = scale_of(evaluation)
    lost = [s for s in slices if s.low > limit]
    lines = [
        f"{s.name} lost {drop_text(s.drop, scale)} on {s.n:,} samples, surely more than "
        f"{drop_text(s.low, scale)} (corrected for {len(slices)} slices)."
        for s in lost[:5]
    ]
    rest = len(lost) - 5
    more = [f"{rest:,} more slice{'s' * (rest > 1)} lost too much."] if rest > 0 else []
    return tuple(lines + more)


def find_flips(baseline: Evaluation, candidate: Evaluation, samples: Samples) -> Iterator[Flip]:
    """Samples whose score differs, those that lost most first.

    A metric of the whole data set has no scores, and so no flips.
    """
    sign = 1.0 if baseline.higher_is_better else -1.0
    drops = sign * (np.asarray(baseline.scores) - np.asarray(candidate.scores)) + 0.0
    changed = np.flatnonzero(drops)
    changed = changed[np.argsort(-drops[changed], kind="stable")]
    if not changed.size:
        return
    batch = _batch(samples, baseline.count)
    labels = _labels(samples, baseline.count)
    before, after = (
        e.answers or tuple(f"{s:.6g}" for s in e.scores) for e in (baseline, candidate)
    )
    for i in map(int, changed):
        yield Flip(
            sample=samples.number(i // batch) * batch + i % batch,
            place=samples.place(i // batch),
            sha256=samples.digests[i // batch],
            label="" if labels[i] is None else f"{labels[i]!s:.80}",
            before=before[i],
            after=after[i],
            drop=float(drops[i]),
        )


def look_into(
    evaluations: tuple[Evaluation, Evaluation],
    samples: Samples,
    division: Division,
    limit: float,
    confidence: float,
    everything: Path | None = None,
) -> Looked:
    """Slices, classes and the first thousand flips of two evaluations.

    There are none where one of the evaluations ended early.

    Args:
        evaluations: Of FP32 and of INT8.
        samples: That were scored.
        division: What the user's file says of them.
        limit: The drop that a slice may have, or else the mean.
        confidence: Of the verdicts.
        everything: CSV file for all flips; written also where there are none.

    Raises:
        ResourceError: The disk is full.
    """
    baseline, candidate = evaluations
    if everything is not None:
        write_flips(everything, ())
    # Batches of different sizes cannot be told apart; `read_columns` refuses them where it matters.
    if candidate.count < baseline.count or baseline.count % len(samples):
        return Looked()
    # A column of the user's own called `class` counts instead of the labels.
    columns = class_column(samples, baseline) | division.columns
    slices = judge_slices(baseline, candidate, columns, limit, confidence, division.units)
    small = sum(n < _FEWEST for v in columns.values() for n in Counter(v).values())
    if not baseline.scores:
        return Looked(slices, (), small)
    if everything is not None:
        write_flips(everything, find_flips(baseline, candidate, samples))
    first = tuple(islice(find_flips(baseline, candidate, samples), _MOST_FLIPS))
    return Looked(slices, first, small)


def write_flips(path: Path, flips: Iterable[Flip]) -> None:
    """Write flips as a CSV file with a header, one after the other.

    Raises:
        ResourceError: It cannot be written.
    """
    try:
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["sample", "place", "sha256", "label", "before", "after", "drop"])
            for f in flips:
                row = [f.sample, f.place, f.sha256, f.label, f.before, f.after, f"{f.drop:.6g}"]
                writer.writerow(row)
    except OSError as e:
        raise ResourceError(f"{path}: the flips cannot be written: {e.strerror}.") from e


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


def _batch(samples: Samples, count: int) -> int:
    """Scores per run of the model."""
    if count % len(samples):
        raise UsageError(
            f"{samples.source}: {count} scores of {len(samples)} samples: batches of different "
            "sizes cannot be told apart into slices. Give samples one by one."
        )
    return count // len(samples)


def _labels(samples: Samples, count: int) -> list[object]:
    batch = _batch(samples, count)
    if batch == 1:
        return [samples.label(i) for i in range(count)]
    wholes: list[NDArray[np.generic]] = [np.asarray(samples.label(i)) for i in range(len(samples))]
    if any(w.shape[:1] != (batch,) for w in wholes):
        return [None] * count
    return [w[k].item() if w.ndim == 1 else None for w in wholes for k in range(batch)]
