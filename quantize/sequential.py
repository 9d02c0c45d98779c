"""Early looks: what is known of a candidate before it has run on every sample.

Looks come where a sixteenth, an eighth, a quarter and a half of the samples have run, which have to
come in random order; how their errors add up is in `quantize.looks`.

A loss ends an evaluation. Two rules:

- The lower bound of the drop so far, at a confidence of 1 - ERROR / 4, is above the limit. The four
  looks together stop a model whose true drop is within the limit in at most ERROR of all cases.
- Scores of 0 and 1: even if the candidate were right on every sample to come, the verdict on all of
  them would not be a pass. That is arithmetic and errs never.

In a search, a pass ends nothing: its candidates are compared on all samples. It is only told early:
each look has its share of the error that the verdict may make, so that a model whose true drop is
the limit is told to pass too early in at most that many cases. The verdict on all samples then has
its own.

A replay has one model, and its verdict is that of the first look that tells, the one at all samples
being the last: a pass or a refusal, both as of the gate, all looks sharing the one error that the
verdict may make.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.errors import InputError
from quantize.evaluate import Evaluation
from quantize.gate import Verdict, judge
from quantize.intervals import paired_bounds, zero_loss_samples
from quantize.looks import SHARES, Look, looks_at, share
from quantize.resampling import mean_bounds
from quantize.tolerance import Tolerance

ERROR = 0.01
# Fewer say too little about the spread of scores that are not 0 or 1.
_FEWEST = 32


@dataclass(frozen=True, slots=True)
class Looks:
    """When and by what an evaluation may end early.

    Attributes:
        baseline: Of FP32, on all samples, or on as many as the candidate.
        limit: The drop tolerated, in the metric's own unit.
        confidence: Of the verdict, one-sided.
        can_pass: Whether so many samples can show a pass at all; if not, only the first rule holds.
    """

    baseline: Evaluation
    limit: float
    confidence: float
    can_pass: bool

    def is_lost(self, scores: Sequence[float], done: int, total: int) -> bool:
        """Whether the candidate cannot pass any more, or almost surely will not.

        Args:
            scores: So far, in the order of the baseline's.
            done: Samples run.
            total: Samples in all.
        """
        if done not in looks_at(total) or len(scores) < _FEWEST:
            return False
        sign = 1.0 if self.baseline.higher_is_better else -1.0
        before = np.asarray(self.baseline.scores)
        now = np.asarray(scores)
        differences = sign * (before[: now.size] - now)
        sure = 1 - ERROR / len(SHARES)
        if self.baseline.binary and np.isin(now, (0.0, 1.0)).all():
            losses, gains = int((differences > 0).sum()), int((differences < 0).sum())
            low, _ = paired_bounds(losses, gains, now.size, sure)
            return low > self.limit or self._out_of_reach(losses, gains, now.size)
        if (differences == differences[0]).all():
            # They have no spread to bound the drop by, and samples to come may differ.
            return False
        return mean_bounds(differences, sure)[0] > self.limit

    def _out_of_reach(self, losses: int, gains: int, n: int) -> bool:
        """Whether the verdict is no pass even if all samples to come are right."""
        rest = np.asarray(self.baseline.scores[n:])
        best = gains + int((rest == 0).sum())
        _, high = paired_bounds(losses, best, len(self.baseline.scores), self.confidence)
        return self.can_pass and high >= self.limit


@dataclass(frozen=True, slots=True)
class Foresight:
    """When a pass may be told before all samples have run.

    Attributes:
        tolerance: How much worse the candidate may be.
        confidence: Of the whole claim, one-sided.
        at: Numbers of samples at which it is looked, which share the error.
        ends: Whether what a look tells is the verdict, and ends the evaluation; the last look is
            then the one at all samples.
    """

    tolerance: Tolerance
    confidence: float
    at: tuple[int, ...]
    ends: bool = False

    @property
    def limit(self) -> float:
        """The drop tolerated, in the metric's own unit."""
        return self.tolerance.value / (100 if self.tolerance.unit == "pt" else 1)

    def look(self, done: int) -> Look | None:
        """The look after so many samples, if there is one."""
        if done not in self.at:
            return None
        error = 1 - self.confidence
        early = len(self.at) - self.ends
        each = share(error, early, ends=self.ends)
        last = self.ends and done == self.at[-1]
        return Look(done, self.at, error - early * each if last else each)

    def told(self, baseline: Evaluation, candidate: Evaluation, done: int) -> Verdict | None:
        """What the samples so far tell; None where it is not looked, or they leave it open.

        Args:
            baseline: Of FP32, on the first `done` samples.
            candidate: Of INT8, on the same.
            done: Samples run.
        """
        if (look := self.look(done)) is None:
            return None
        try:
            verdict = judge(
                baseline, candidate, self.tolerance, confidence=self.confidence, look=look
            )
        except InputError:
            return None  # FP32 itself is not sure to be any good yet; all samples will tell.
        return verdict if verdict.outcome != "inconclusive" else None


def foresight(
    tolerance: Tolerance, confidence: float, total: int, *, ends: bool = False
) -> Foresight | None:
    """Looks for a pass where one can be seen: where even right-or-wrong scores could show it.

    Args:
        tolerance: In points or absolute, so that it is known before FP32's scores are.
        confidence: Of the claim that the model passes, one-sided.
        total: Samples in all.
        ends: Whether the first look that tells ends the evaluation.

    Returns:
        None where there is no look before all samples have run.
    """
    found = Foresight(tolerance, confidence, looks_at(total), ends)
    if not 0 < found.limit < 1:
        return None

    def is_told(n: int, early: int) -> bool:
        sure = 1 - share(1 - confidence, early, ends=ends)
        return n >= max(zero_loss_samples(found.limit, sure), _FEWEST)

    at = found.at
    # Without those that come too soon, the others have more of the error.
    while at and not is_told(at[0], len(at)):
        at = at[1:]
    return replace(found, at=(*at, total) if ends else at) if at else None
