"""Parts of the data that a mean can hide: each class, each value of a column that the user gives.

A slice is refused only if its drop is above the limit with the error rate of all slices together:
among a hundred good ones, five would look bad at 95 % each (Bonferroni's correction). A slice
passes by itself: to claim that every slice is good, each has to be shown so, and no correction is
needed (Berger, Technometrics 24 (1982) 295-300).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from quantize.amounts import drop_text
from quantize.columns import Columns, class_column, read_columns, units_of
from quantize.data import Samples
from quantize.evaluate import Evaluation, at
from quantize.flips import Flip, find_flips, write_flips
from quantize.gate import Outcome, judge, scale_of
from quantize.job import Limits
from quantize.looks import level_of
from quantize.pairing import pair
from quantize.tolerance import exactly, parse_tolerance

# Fewer say nothing, and every one of them makes the correction harsher for the others.
_FEWEST = 5
# In a report; a CSV file that is asked for holds them all.
_MOST_FLIPS = 1000


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
        samples_needed: About how many would settle it, if inconclusive; see `Verdict`.
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


def judge_slices(
    baseline: Evaluation,
    candidate: Evaluation,
    columns: Columns,
    limit: float,
    confidence: float,
    units: Sequence[int] | None = None,
    *,
    share: float = 1.0,
) -> tuple[SliceVerdict, ...]:
    """Judge every slice of at least five samples, the worst first.

    Args:
        baseline: Of FP32.
        candidate: Of INT8; its outputs are finite.
        columns: What divides the samples.
        limit: The drop that a slice may have, in the metric's own unit.
        confidence: Of the verdict over all slices.
        units: Number of the independent unit of each sample; None where each sample is one.
        share: What this candidate may make of the error, where several have `confidence` together.
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
    corrected = level_of(confidence, share / len(parts), None)
    found = [
        _judge_slice(
            (at(whole, picks), at(candidate, picks)),
            None if units is None else [units[int(i)] for i in picks],
            (column, value),
            limit,
            (confidence, share, corrected),
        )
        for column, value, picks in parts
    ]
    return tuple(sorted(found, key=lambda s: -s.low))


def _judge_slice(
    evaluations: tuple[Evaluation, Evaluation],
    units: Sequence[int] | None,
    name: tuple[str, str],
    limit: float,
    sure: tuple[float, float, float],
) -> SliceVerdict:
    """Judge one slice; `sure` is confidence, share of its error, and level of a refusal."""
    baseline, candidate = evaluations
    confidence, share, corrected = sure
    tolerance = exactly(limit, baseline)
    verdict = judge(baseline, candidate, tolerance, confidence=confidence, share=share, units=units)
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


def look_into(
    evaluations: tuple[Evaluation, Evaluation],
    samples: Samples,
    division: Division,
    limit: float,
    confidence: float,
    everything: Path | None = None,
    *,
    share: float = 1.0,
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
        share: What this candidate may make of the error, where several have `confidence` together.

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
    slices = judge_slices(
        baseline, candidate, columns, limit, confidence, division.units, share=share
    )
    small = sum(n < _FEWEST for v in columns.values() for n in Counter(v).values())
    if not baseline.scores:
        return Looked(slices, (), small)
    if everything is not None:
        write_flips(everything, find_flips(baseline, candidate, samples))
    first = tuple(islice(find_flips(baseline, candidate, samples), _MOST_FLIPS))
    return Looked(slices, first, small)
