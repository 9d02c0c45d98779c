"""Early ends: a candidate that surely misses the limit need not be run on every sample.

Two rules, looked at where a sixteenth, an eighth, a quarter and a half of the samples have run:

- The lower bound of the drop so far, at a confidence of 1 - ERROR / 4, is above the limit. By
  Bonferroni's inequality the four looks together stop a model whose true drop is within the limit
  in at most ERROR of all cases.
- Scores of 0 and 1: even if the candidate were right on every sample to come, the verdict on all of
  them would not be a pass. That is arithmetic and errs never.

Only a loss ends an evaluation early: to stop at the first look that would pass would void the
verdict's error rate. The samples have to come in random order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantize.evaluate import Evaluation
from quantize.intervals import mean_bounds, paired_bounds

ERROR = 0.01
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
# Fewer say too little about the spread of scores that are not 0 or 1.
_FEWEST = 32


@dataclass(frozen=True, slots=True)
class Looks:
    """When and by what an evaluation may end early.

    Attributes:
        baseline: Of FP32, on all samples.
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
        if done not in {round(total * s) for s in SHARES} or len(scores) < _FEWEST:
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
            return False
        return mean_bounds(differences, sure)[0] > self.limit

    def _out_of_reach(self, losses: int, gains: int, n: int) -> bool:
        """Whether the verdict is no pass even if all samples to come are right."""
        rest = np.asarray(self.baseline.scores[n:])
        best = gains + int((rest == 0).sum())
        _, high = paired_bounds(losses, best, len(self.baseline.scores), self.confidence)
        return self.can_pass and high >= self.limit
