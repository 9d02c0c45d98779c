"""The gate: may the INT8 model ship, given the scores of both models on the same samples?

Pure functions of two evaluations. The claim behind a pass is statistical: "the true drop is below
the limit", wrong in 1 - confidence of the cases where the drop is the limit, and in fewer where it
is more. A refusal claims the opposite with the same care; what is neither is inconclusive and says
how many samples would settle it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from bench.errors import InputError, UsageError
from quantize.amounts import Scale, drop_text
from quantize.evaluate import Evaluation
from quantize.intervals import (
    binomial_tail,
    clopper_pearson_upper,
    is_surely_better,
    samples_to_certify,
    zero_loss_samples,
)
from quantize.looks import FIRST, Look, level_of
from quantize.pairing import Paired, own_bounds, pair
from quantize.resampling import FEW_CHANGES
from quantize.sentences import Words
from quantize.tolerance import Tolerance

# Fewer say too little about the spread of a score to certify anything.
_FEWEST_SAMPLES = 5
_CHANCE_LEVEL = 0.05
# To ask for more would be the same as to say that it cannot be shown.
_MOST_SAMPLES = 10**9

Outcome = Literal["pass", "refuse", "inconclusive"]


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
        confidence: Of a pass or a refusal; where several verdicts or looks share the error, of all
            of them together. Each bound has `level`.
        method: How the bounds were computed.
        n: Samples in the comparison.
        baseline_value: FP32's mean score.
        candidate_value: INT8's.
        losses: Samples that INT8 scores worse.
        gains: Samples that INT8 scores better.
        samples_needed: Of an inconclusive verdict: about how many samples would certify the
            observed drop; None where no number would. Of a later candidate of a search, how many
            new ones would if it alone is judged by them, which may be fewer than it had.
        reason: One or two plain sentences.
        higher_is_better: Direction of the metric.
        suspicious: What a person should look at, whatever the outcome.
        scale: How scores and drops are written.
        look: Which look told, where there was more than one.
        share: Of the error of all verdicts that together have `confidence`, what this one may make.
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
    scale: Scale = "plain"
    look: Look | None = None
    share: float = 1.0

    @property
    def level(self) -> float:
        """Confidence of each bound."""
        return level_of(self.confidence, self.share, self.look)


def judge(
    baseline: Evaluation,
    candidate: Evaluation,
    tolerance: Tolerance,
    *,
    confidence: float = 0.95,
    share: float = 1.0,
    units: Sequence[int] | None = None,
    look: Look | None = None,
) -> Verdict:
    """Decide whether a model lost too much, by a paired test on the same samples.

    Scores of 0 and 1 in both: Tango's test of non-inferiority. A pass also needs the samples of the
    zero-loss rule, or gains that an exact sign test finds surely more than the losses: then it
    holds for any limit, 0 too. A refusal needs surely more losses than gains. Other scores and
    metrics of the whole data set: BCa bootstrap of the difference. A lower bound above the limit
    refuses, an upper bound below it passes, and non-finite outputs always refuse.

    Args:
        baseline: Of FP32.
        candidate: Of INT8, on the same samples with the same metric.
        tolerance: How much worse it may be.
        confidence: One-sided, above 0.5.
        share: What this verdict may make of the error, where several have `confidence` together.
        units: Number of the independent unit (person, document, video) of each sample; None where
            each sample is one. Whole units are then resampled.
        look: Which of several looks this is, each with a part of the error.

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
    scale = scale_of(baseline)
    level = level_of(confidence, share, look)
    paired = pair(baseline, candidate, level, units)
    # A later candidate of a search would have the whole error if it were judged alone.
    aim = level if share >= FIRST else confidence
    words = Words(baseline, scale, confidence)
    outcome, needed, reason = _decide(paired, limit, level, words, aim)
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
        suspicious=_suspicions(paired, limit, scale),
        scale=scale,
        look=look,
        share=share,
    )


def can_pass(baseline: Evaluation, itself: Verdict) -> bool:
    """Whether a model as good as FP32 can be shown to pass by so many samples.

    Args:
        baseline: Of FP32.
        itself: FP32 judged against itself.
    """
    if itself.outcome == "pass" or baseline.binary:
        return itself.outcome == "pass"
    # Scores that never change are bounded by how often they may, those of a real model by their
    # spread; the spread of fewer than so many is not believed.
    return itself.n >= FEW_CHANGES


def scale_of(evaluation: Evaluation) -> Scale:
    """How its scores are written."""
    if evaluation.decibels:
        return "decibels"
    return "points" if evaluation.bounded or evaluation.binary else "plain"


def _limit(baseline: Evaluation, candidate: Evaluation, tolerance: Tolerance) -> float:
    binary = baseline.binary and candidate.binary
    bounded = binary or (baseline.bounded and candidate.bounded)
    return tolerance.absolute(baseline.value, bounded=bounded, decibels=baseline.decibels)


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
    n, chance = baseline.count, baseline.chance
    if chance is None:
        return
    if not baseline.binary:
        _refuse_guessing(baseline, chance)
        return
    if chance**n > _CHANCE_LEVEL:
        return  # so few samples that not even a perfect model could show that it does not guess
    right = round(sum(baseline.scores))
    odds = binomial_tail(right, n, chance)
    if odds > _CHANCE_LEVEL:
        raise InputError(
            f"the baseline is broken: FP32 has {right} of {n} right, and guessing, right with "
            f"chance {chance:.3g}, does as well in {odds:.0%} of cases. Check the preprocessing "
            "and the labels' order; if both are right, give more samples."
        )


def _refuse_guessing(baseline: Evaluation, chance: float) -> None:
    """Refuse a baseline that is not surely better than what guessing scores, as a plugin says."""
    bounds = own_bounds(baseline, 1 - _CHANCE_LEVEL)
    surely = bounds.low > chance if baseline.higher_is_better else bounds.high < chance
    if not surely and baseline.count >= _FEWEST_SAMPLES:
        raise InputError(
            f"the baseline is broken: FP32 scores {baseline.value:.4g} on {baseline.count} samples,"
            f" not surely better than the {chance:.4g} that guessing scores. Check the "
            "preprocessing and the labels' order; if both are right, give more samples."
        )


def _decide(
    paired: Paired, limit: float, level: float, words: Words, aim: float
) -> tuple[Outcome, int | None, str]:
    """Outcome, samples needed where inconclusive, and the reason.

    Args:
        paired: The comparison.
        limit: The drop tolerated.
        level: Confidence of its bounds.
        words: To tell it.
        aim: Confidence of bounds on more samples, or on new ones where it is less than `level`.
    """
    observed, allowed, it = words.observed(paired), words.drop(limit), words.it(paired)
    if paired.low > limit and _may_refuse(paired, level):
        return (
            "refuse",
            None,
            f"{observed}; {words.sure} {it} is {words.above} the limit of {allowed}.",
        )
    below = paired.high < limit or (paired.constant and paired.high <= limit)
    if below and _may_pass(paired, limit, level):
        if paired.unchanged:
            reason = f"INT8 scores exactly as FP32 does on each of {paired.n:,} samples."
            return "pass", None, reason
        return (
            "pass",
            None,
            f"{observed}; {words.sure} {it} is {words.below} the limit of {allowed}.",
        )
    needed = _samples_needed(paired, limit, level, aim)
    reason = words.undecided(paired, limit, needed, below=below, alone=aim < level)
    return "inconclusive", needed, reason


def _may_refuse(paired: Paired, confidence: float) -> bool:
    """Whether so many samples, or so many losses among them, may refuse anything."""
    # Of very few samples the score test is too sure.
    if paired.binary:
        return is_surely_better(paired.gains, paired.losses, confidence)
    return paired.n > 1


def _may_pass(paired: Paired, limit: float, confidence: float) -> bool:
    """Whether so many samples, or so many gains among them, may certify anything."""
    if limit > 0 and paired.n >= _fewest_to_pass(paired, limit, confidence):
        return True
    # What is surely a gain is below every limit, 0 too, in however few samples it shows.
    if paired.binary:
        return is_surely_better(paired.losses, paired.gains, confidence)
    return paired.high < 0 and paired.n >= _FEWEST_SAMPLES


def _fewest_to_pass(paired: Paired, limit: float, confidence: float) -> int:
    if not paired.right_or_wrong or limit == 0:
        return _FEWEST_SAMPLES
    # Unless it surely gains: a model with no loss at all would need as many.
    return zero_loss_samples(limit, confidence)


def _samples_needed(paired: Paired, limit: float, level: float, aim: float) -> int | None:
    """How many would pass at `aim`; see `_decide`. Fewer than there are only if they are new."""
    room = limit - paired.drop
    if room < 0 or (room == 0 and (limit == 0 or not paired.constant)):
        return None
    fewest = max(paired.n + 1 if aim == level else 1, _fewest_to_pass(paired, limit, aim))
    if paired.constant:
        return fewest
    if paired.unchanged:
        return max(fewest, _samples_to_see_more(paired, limit, level, aim))
    if paired.binary:
        rates = (paired.losses / paired.n, paired.gains / paired.n)
        needed: float = samples_to_certify(*rates, limit, aim)
    else:
        # Squared only where the square is a number: room may be the last bit of a tolerance.
        root = NormalDist().inv_cdf(aim) * paired.bounds.spread / room
        needed = root**2 if root < _MOST_SAMPLES else math.inf
        changed = paired.rows_changed or paired.losses + paired.gains
        if 0 < changed < FEW_CHANGES:
            # Until so many changed, how often samples may change bounds the drop, not their spread.
            enough = paired.n * FEW_CHANGES / changed
            if paired.rows_changed and limit > 0:
                enough = min(enough, _samples_to_see_more(paired, limit, level, aim))
            needed = max(needed, enough)
    needed = max(fewest, needed)
    return math.ceil(needed) if needed < _MOST_SAMPLES else None


def _samples_to_see_more(paired: Paired, limit: float, level: float, aim: float) -> int:
    """How many would show that what was not seen costs less than the limit.

    Its bound shrinks as the share of samples that may change.
    """
    share = clopper_pearson_upper(0, paired.n, level) * limit / paired.high
    return zero_loss_samples(share, aim) if share < 1 else 0


def _suspicions(paired: Paired, limit: float, scale: Scale) -> tuple[str, ...]:
    if paired.high >= -limit or paired.n < _FEWEST_SAMPLES:
        return ()
    note = (
        f"INT8 is better than FP32 by {drop_text(-paired.drop, scale)}, more than the tolerance "
        f"of {drop_text(limit, scale)}. Quantization adds no accuracy: check that FP32 got the "
        "preprocessing it was trained with."
    )
    return (note,)
