"""Two evaluations of the same samples, paired: how much worse one is, with bounds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bench.errors import UsageError
from quantize.evaluate import Evaluation
from quantize.evidence import Evidence, Rows
from quantize.intervals import clopper_pearson_upper, paired_bounds
from quantize.resampling import FEW_CHANGES, Bounds, mean_bounds, statistic_bounds

# How often units are spoiled, to see what the worst of them cost.
_SPOILED_DRAWS = 100


@dataclass(frozen=True, slots=True)
class Paired:
    """What two evaluations say about the drop.

    Attributes:
        bounds: Of the drop, positive where INT8 is worse.
        n: Independent units.
        method: How the bounds were computed.
        losses: Samples that INT8 scores worse; 0 where samples have no scores.
        gains: Samples that INT8 scores better.
        binary: Whether all scores are 0 or 1 and each sample is a unit: Tango's test.
        right_or_wrong: Whether all scores are 0 or 1, also where units are several samples.
        unchanged: Whether no sample changed, of scores that are not 0 or 1.
        rows_changed: How many rows changed, of a metric of the whole data set; 0 of others.
    """

    bounds: Bounds
    n: int
    method: str
    losses: int = 0
    gains: int = 0
    binary: bool = False
    right_or_wrong: bool = False
    unchanged: bool = False
    rows_changed: int = 0

    @property
    def drop(self) -> float:
        """Observed."""
        return self.bounds.value

    @property
    def low(self) -> float:
        """The drop is above this."""
        return self.bounds.low

    @property
    def high(self) -> float:
        """The drop is below this."""
        return self.bounds.high

    @property
    def constant(self) -> bool:
        """Whether all differences are the same."""
        return not self.binary and self.low == self.high


def pair(
    baseline: Evaluation, candidate: Evaluation, confidence: float, units: Sequence[int] | None
) -> Paired:
    """The drop with its bounds, by the test that fits the scores.

    Args:
        baseline: Of FP32.
        candidate: Of INT8, on the same samples.
        confidence: Of each bound.
        units: Number of the independent unit of each sample; None where each sample is one.

    Raises:
        UsageError: There are more or fewer units than samples.
    """
    sign = 1.0 if baseline.higher_is_better else -1.0
    if baseline.corpus_value is not None:
        members = _members(units, baseline.count)
        return _pair_wholes((baseline, candidate), sign, confidence, members)
    # Plus zero, because minus zero is no drop that a reader should see.
    differences = sign * (np.asarray(baseline.scores) - np.asarray(candidate.scores)) + 0.0
    losses, gains = int((differences > 0).sum()), int((differences < 0).sum())
    n, binary = differences.size, baseline.binary and candidate.binary
    members = _members(units, n)
    if len(members) < n:
        bounds = statistic_bounds(lambda i: float(differences[i].mean()), members, confidence)
        method = f"paired bootstrap (BCa and t) of {len(members):,} units"
        unchanged = not losses and not gains
        if unchanged and not binary:
            share = clopper_pearson_upper(0, len(members), confidence)
            bounds = replace(bounds, high=share * _scale(baseline))
        return Paired(
            bounds,
            len(members),
            method,
            losses,
            gains,
            right_or_wrong=binary,
            unchanged=unchanged,
        )
    if binary:
        low, high = paired_bounds(losses, gains, n, confidence)
        bounds = Bounds((losses - gains) / n, low, high, 0.0)
        # Without a gain, as in agreement, the exact bound of a rate of losses rules.
        method = "Clopper-Pearson" if baseline.metric == "agreement" else "Tango score test"
        return Paired(bounds, n, method, losses, gains, binary=True, right_or_wrong=True)
    if (differences == differences[0]).all():
        only = float(differences[0])
        high = only or clopper_pearson_upper(0, n, confidence) * _scale(baseline)
        bounds = Bounds(only, only, high, 0.0)
        return Paired(bounds, n, "identical differences", losses, gains, unchanged=only == 0)
    low, high = mean_bounds(differences, confidence)
    # Clipped, because a sum of nearly equal differences may round to just beside them.
    drop = min(max(math.fsum(differences) / n, low), high)
    bounds = Bounds(drop, low, high, float(differences.std(ddof=1)))
    return Paired(bounds, n, "paired bootstrap (BCa and t)", losses, gains)


def own_bounds(evaluation: Evaluation, confidence: float) -> Bounds:
    """One model's own score with its bounds, of all samples alike."""
    if evaluation.evidence is not None:
        members = _members(None, evaluation.count)
        return statistic_bounds(evaluation.evidence.value, members, confidence)
    scores = np.asarray(evaluation.scores)
    value = evaluation.value
    if scores.size < 2:
        return Bounds(value, value, value, 0.0)
    low, high = mean_bounds(scores, confidence)
    return Bounds(value, low, high, float(scores.std(ddof=1)))


def _pair_wholes(
    evaluations: tuple[Evaluation, Evaluation],
    sign: float,
    confidence: float,
    members: Sequence[NDArray[np.intp]],
) -> Paired:
    """Of a metric of the whole data set: both models on the same resampled units."""
    baseline, candidate = evaluations
    first, second, scale = baseline.evidence, candidate.evidence, _scale(baseline)
    if first is None or second is None:
        # Outputs that are not finite refuse the model, whatever the rest of it scores.
        drop = sign * (baseline.value - candidate.value) + 0.0
        return Paired(Bounds(drop, drop, drop, 0.0), len(members), "not tested")
    bounds, changed = whole_bounds(first, second, members, confidence, scale, sign)
    method = f"paired bootstrap (BCa and t) of {len(members):,} units"
    return Paired(bounds, len(members), method, unchanged=changed == 0, rows_changed=changed)


def whole_bounds(
    first: Evidence,
    second: Evidence,
    members: Sequence[NDArray[np.intp]],
    confidence: float,
    scale: float,
    sign: float = 1.0,
    *,
    resamples: int = 2_000,
) -> tuple[Bounds, int]:
    """Bounds of the drop of a metric of the whole data set, and how many samples changed.

    Rows that are no numbers count as enough where anything changed.

    Resampling sees only what changed. Where fewer than ten samples did, the bound is no less than
    what they cost, scaled to how often samples may change, nor than what samples may cost that
    change in a way that none of these did.

    Args:
        first: Of FP32.
        second: Of INT8, on the same samples.
        members: Indices of the samples of each independent unit.
        confidence: Of each bound.
        scale: What it costs if all samples change, where the metric does not say what one costs.
        sign: -1.0 where lower is better.
        resamples: How often to resample.
    """
    bounds = statistic_bounds(
        lambda i: sign * (first.value(i) - second.value(i)) + 0.0,
        members,
        confidence,
        resamples=resamples,
    )
    changed = _changed(first.rows, second.rows)
    if changed is None:
        changed = 0 if bounds.low == bounds.high == 0 else FEW_CHANGES
    if changed >= FEW_CHANGES:
        return bounds, changed
    count, high = len(first), max(bounds.high, _unseen_loss(first, members, confidence, scale))
    if changed:
        share = clopper_pearson_upper(changed, count, confidence)
        high = max(high, bounds.value * share * count / changed)
    return replace(bounds, high=high), changed


def _unseen_loss(
    evidence: Evidence, members: Sequence[NDArray[np.intp]], confidence: float, scale: float
) -> float:
    """What samples may cost that change in a way that was not seen.

    As many units as may do so, by the exact bound of a share of which none was seen, are spoiled:
    the most that this costs in a hundred random draws of them.
    """
    share = clopper_pearson_upper(0, len(members), confidence)
    if evidence.spoil is None:
        return share * scale
    rng = np.random.default_rng(0)
    # Of few units, the next whole number may be far more than the share.
    count = math.ceil(share * len(members))
    value, most = evidence.value(), 0.0
    for _ in range(_SPOILED_DRAWS):
        picked = rng.choice(len(members), size=min(count, len(members)), replace=False)
        spoiled = evidence.spoiled(np.concatenate([members[p] for p in picked]))
        most = max(most, abs(value - spoiled))
    return most * share * len(members) / count


def _scale(baseline: Evaluation) -> float:
    """What it costs if every sample changes: the metric's range, or its value where it has none."""
    return 1.0 if baseline.bounded else abs(baseline.value)


def _changed(first: Rows, second: Rows) -> int | None:
    """Samples whose rows differ; None where rows are no numbers."""
    if not isinstance(first, np.ndarray) or not isinstance(second, np.ndarray):
        return None
    differ = first != second
    return int(differ.reshape(len(differ), -1).any(axis=1).sum())


def _members(units: Sequence[int] | None, count: int) -> list[NDArray[np.intp]]:
    """Indices of the samples of each unit."""
    if units is None:
        return list(np.arange(count)[:, None])
    if len(units) != count:
        raise UsageError(
            f"units: {len(units)} samples have one, {count} were scored. Name one for each sample."
        )
    order = np.argsort(units, kind="stable")
    edges = np.flatnonzero(np.diff(np.asarray(units)[order])) + 1
    return list(np.split(order, edges))
