"""The gate: may the INT8 model ship, given the scores of both models on the same samples?

Pure functions of two evaluations. The claim behind a pass is statistical: "the true drop is below
the limit", wrong in 1 - confidence of the cases where the drop is the limit, and in fewer where it
is more. A refusal claims the opposite with the same care; what is neither is inconclusive and says
how many samples would settle it.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from bench.errors import InputError, UsageError
from quantize.evaluate import Evaluation
from quantize.intervals import binomial_tail, samples_to_certify, zero_loss_samples
from quantize.pairing import Paired, pair

# Fewer say too little about the spread of a score to certify anything.
_FEWEST_SAMPLES = 5
_CHANCE_LEVEL = 0.05
# To ask for more would be the same as to say that it cannot be shown.
_MOST_SAMPLES = 10**9

Outcome = Literal["pass", "refuse", "inconclusive"]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How much worse INT8 may be.

    Attributes:
        value: The number before the unit.
        unit: "pt": hundredths of a metric in 0..1; "%": hundredths of FP32's value; "abs": none.
    """

    value: float
    unit: Literal["pt", "%", "abs"]

    def absolute(self, baseline_value: float, *, bounded: bool) -> float:
        """The tolerated drop in the metric's own unit.

        Args:
            baseline_value: FP32's mean score.
            bounded: Whether the metric lies in 0..1.

        Raises:
            UsageError: Points of a metric that is not in 0..1, a share of zero, or a tolerance
                that any model would meet.
        """
        if self.unit == "pt" and not bounded:
            raise UsageError(
                f"tolerance {self}: points are hundredths of a metric in 0..1, and this is none. "
                f"Write a share of FP32's value ({self.value:g}%) or a number in the metric's own "
                "unit (as in 0.1abs)."
            )
        if self.unit == "%" and baseline_value == 0:
            raise UsageError(
                f"tolerance {self} is a share of FP32's value, which is 0. Write a number in the "
                "metric's own unit, as in 0.1abs."
            )
        limit = self.value if self.unit == "abs" else self.value / 100
        if self.unit == "%":
            limit *= abs(baseline_value)
        if bounded and limit >= 1:
            raise UsageError(
                f"tolerance {self} allows a drop of {limit:g} in a metric that lies in 0..1, so it "
                "would pass any model. Did you mean hundredths, as in 1pt?"
            )
        return limit

    def __str__(self) -> str:
        """As `parse_tolerance` takes it."""
        return f"{self.value:g}{self.unit}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether INT8 is good enough.

    Attributes:
        outcome: "pass": the drop is below the limit; "refuse": it is above, or outputs are not
            finite; "inconclusive": the samples cannot tell.
        drop: Observed mean drop, positive where INT8 is worse, in the metric's own unit.
        low: The drop is above this, at `confidence`.
        high: The drop is below this, at `confidence`.
        limit: The drop tolerated.
        confidence: Of each of the two bounds, and so of a pass or a refusal.
        method: How the bounds were computed.
        n: Samples in the comparison.
        baseline_value: FP32's mean score.
        candidate_value: INT8's.
        losses: Samples that INT8 scores worse.
        gains: Samples that INT8 scores better.
        samples_needed: Of an inconclusive verdict: about how many samples would certify the
            observed drop; None where no number would.
        reason: One or two plain sentences.
        higher_is_better: Direction of the metric.
        suspicious: What a person should look at, whatever the outcome.
    """

    outcome: Outcome
    drop: float
    low: float
    high: float
    limit: float
    confidence: float
    method: str
    n: int
    baseline_value: float
    candidate_value: float
    losses: int
    gains: int
    samples_needed: int | None
    reason: str
    higher_is_better: bool
    suspicious: tuple[str, ...]


def parse_tolerance(text: str) -> Tolerance:
    """Read `1pt`, `1%` or `0.1abs`.

    Raises:
        UsageError: The number or its unit is missing, or it is negative.
    """
    found = re.fullmatch(
        r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(pt|%|abs)?\s*", text, re.I
    )
    spellings = (
        "Write 1pt (a hundredth of a metric in 0..1), 1% (a hundredth of FP32's value) or 0.1abs "
        "(in the metric's own unit)."
    )
    if found is None:
        raise UsageError(f"tolerance {text!r} is not a number with a unit. {spellings}")
    number, unit = found.groups()
    if unit is None:
        raise UsageError(f"tolerance {text!r} has no unit. {spellings}")
    value = float(number)
    if value < 0 or not math.isfinite(value):
        raise UsageError(
            f"tolerance {text!r} is out of range: it says how much worse INT8 may be, so it is 0 "
            f"or more, also for metrics where lower is better. {spellings}"
        )
    units: dict[str, Literal["pt", "%", "abs"]] = {"pt": "pt", "%": "%", "abs": "abs"}
    return Tolerance(value, units[unit.lower()])


def judge(
    baseline: Evaluation,
    candidate: Evaluation,
    tolerance: Tolerance,
    *,
    confidence: float = 0.95,
    units: Sequence[int] | None = None,
) -> Verdict:
    """Decide whether a model lost too much, by a paired test on the same samples.

    Scores of 0 and 1 in both: Tango's test of non-inferiority. A pass needs, whatever they say, the
    samples of the zero-loss rule. Other scores and metrics of the whole data set: BCa bootstrap of
    the difference. A lower bound above the limit refuses, an upper bound below it passes, and
    non-finite outputs always refuse.

    Args:
        baseline: Of FP32.
        candidate: Of INT8, on the same samples with the same metric.
        tolerance: How much worse it may be.
        confidence: One-sided, above 0.5.
        units: Number of the independent unit (person, document, video) of each sample; None where
            each sample is one. Whole units are then resampled.

    Raises:
        UsageError: The evaluations cannot be compared, or the tolerance does not fit the metric.
        InputError: FP32 itself is broken: non-finite, or no better than guessing.
    """
    _refuse_unlike(baseline, candidate)
    if not 0.5 < confidence < 1:
        raise UsageError(
            f"confidence {confidence:g} is out of range: it lies above 0.5 and below 1."
        )
    _refuse_broken(baseline)
    limit = _limit(baseline, candidate, tolerance)
    paired = pair(baseline, candidate, confidence, units)
    outcome, needed, reason = _decide(paired, limit, confidence)
    if candidate.nonfinite:
        outcome, needed = "refuse", None
        reason = (
            f"{candidate.nonfinite} of {candidate.count} INT8 runs returned NaN or infinity, first "
            f"in {candidate.first_nonfinite}. Such a model never passes."
        )
    return Verdict(
        outcome=outcome,
        drop=paired.drop,
        low=paired.low,
        high=paired.high,
        limit=limit,
        confidence=confidence,
        method=paired.method,
        n=paired.n,
        baseline_value=baseline.value,
        candidate_value=candidate.value,
        losses=paired.losses,
        gains=paired.gains,
        samples_needed=needed,
        reason=reason,
        higher_is_better=baseline.higher_is_better,
        suspicious=_suspicions(paired, limit),
    )


def _limit(baseline: Evaluation, candidate: Evaluation, tolerance: Tolerance) -> float:
    binary = baseline.binary and candidate.binary
    bounded = binary or (baseline.bounded and candidate.bounded)
    return tolerance.absolute(baseline.value, bounded=bounded)


def _refuse_unlike(baseline: Evaluation, candidate: Evaluation) -> None:
    pairs = (
        ("samples", baseline.samples_sha256, candidate.samples_sha256),
        ("metric", baseline.metric, candidate.metric),
        ("scored output", baseline.output, candidate.output),
        ("direction (higher is better)", baseline.higher_is_better, candidate.higher_is_better),
        ("number of scores", baseline.count, candidate.count),
    )
    for field, ours, theirs in pairs:
        if ours != theirs:
            raise UsageError(
                f"the evaluations cannot be paired: {field} of FP32 is {ours!r}, of INT8 "
                f"{theirs!r}. Evaluate both on the same samples with the same metric."
            )
    if not baseline.count:
        raise UsageError("the evaluations cannot be paired: they hold no scores.")


def _refuse_broken(baseline: Evaluation) -> None:
    if baseline.nonfinite:
        raise InputError(
            f"the baseline is broken: FP32 returned NaN or infinity in {baseline.nonfinite} of "
            f"{baseline.count} runs, first in {baseline.first_nonfinite}. Nothing can be "
            "judged against it; check the model and the preprocessing."
        )
    n, chance = len(baseline.scores), baseline.chance
    if chance is None or not baseline.binary or chance**n > _CHANCE_LEVEL:
        return  # or so few samples that not even a perfect model could show that it does not guess
    right = round(sum(baseline.scores))
    odds = binomial_tail(right, n, chance)
    if odds > _CHANCE_LEVEL:
        raise InputError(
            f"the baseline is broken: FP32 has {right} of {n} right, and guessing, right with "
            f"chance {chance:.3g}, does as well in {odds:.0%} of cases. Check the preprocessing "
            "and the labels' order; if both are right, give more samples."
        )


def _decide(paired: Paired, limit: float, confidence: float) -> tuple[Outcome, int | None, str]:
    """Outcome, samples needed where inconclusive, and the reason."""
    sure = f"at {confidence * 100:.4g} % confidence"
    observed = f"The observed drop is {paired.drop:.4g} over {paired.n} samples"
    if paired.low > limit and (paired.binary or paired.n > 1):
        return "refuse", None, f"{observed}; {sure} it is above the limit of {limit:.4g}."
    below = paired.high < limit or (paired.constant and paired.high <= limit)
    if below and paired.n >= _fewest_to_pass(paired, limit, confidence):
        if paired.constant and paired.drop == 0:
            return "pass", None, f"INT8 scores exactly as FP32 does on each of {paired.n} samples."
        return "pass", None, f"{observed}; {sure} it is below the limit of {limit:.4g}."
    needed = _samples_needed(paired, limit, confidence)
    if needed is not None and below:
        reason = (
            f"{observed}, too few to claim anything {sure}, whatever they show: the limit of "
            f"{limit:.4g} asks for {needed:,}."
        )
    elif needed is not None:
        reason = (
            f"{observed}, but {sure} it is only known to be below {paired.high:.4g}; "
            f"the limit is {limit:.4g}. About {needed:,} samples would settle it "
            "if the drop stays so."
        )
    elif paired.drop == limit == 0:
        reason = (
            f"{observed}, and no number of samples can show that it is exactly the limit of 0. "
            "Allow a small drop, as in 0.1pt."
        )
    else:
        reason = (
            f"{observed}, no less than the limit of {limit:.4g}, yet too few to refuse {sure}. "
            "More samples are unlikely to make it pass."
        )
    return "inconclusive", needed, reason


def _fewest_to_pass(paired: Paired, limit: float, confidence: float) -> int:
    if not paired.binary:
        return _FEWEST_SAMPLES
    # Whatever was observed: a model with no loss at all would need as many.
    return zero_loss_samples(limit, confidence) if limit > 0 else 1


def _samples_needed(paired: Paired, limit: float, confidence: float) -> int | None:
    room = limit - paired.drop
    if room < 0 or (room == 0 and not paired.constant):
        return None
    fewest = max(paired.n + 1, _fewest_to_pass(paired, limit, confidence))
    if paired.constant:
        return fewest
    if paired.binary:
        rates = (paired.losses / paired.n, paired.gains / paired.n)
        needed: float = samples_to_certify(*rates, limit, confidence)
    else:
        needed = (NormalDist().inv_cdf(confidence) * paired.bounds.spread / room) ** 2
    needed = max(fewest, needed)
    return math.ceil(needed) if needed < _MOST_SAMPLES else None


def _suspicions(paired: Paired, limit: float) -> tuple[str, ...]:
    if paired.high >= -limit or paired.n < _FEWEST_SAMPLES:
        return ()
    note = (
        f"INT8 is better than FP32 by {-paired.drop:.4g}, more than the tolerance of {limit:.4g}. "
        "Quantization adds no accuracy: check that FP32 got the preprocessing it was trained with."
    )
    return (note,)
