"""How one comparison is put into sentences."""

from dataclasses import dataclass

from quantize.amounts import Scale, drop_text, score_text
from quantize.evaluate import Evaluation
from quantize.pairing import Paired


@dataclass(frozen=True, slots=True)
class Words:
    """Parts of the sentences on one comparison.

    Attributes:
        baseline: Of FP32.
        scale: How scores and drops are written.
        confidence: That the whole claim has.
    """

    baseline: Evaluation
    scale: Scale
    confidence: float

    @property
    def sure(self) -> str:
        """How sure the whole claim is, whichever look makes it."""
        return f"at {self.confidence * 100:.4g} % confidence"

    def drop(self, drop: float) -> str:
        """A drop; of a ratio in decibels, the ratio that it leaves."""
        if self.scale == "decibels":
            return score_text(self.baseline.value - drop, self.scale)
        return drop_text(drop, self.scale)

    def observed(self, paired: Paired) -> str:
        """What was seen."""
        if self.scale == "decibels":
            return f"The observed ratio is {self.drop(paired.drop)} over {paired.n:,} samples"
        if self.baseline.metric == "agreement" and paired.binary:
            return (
                f"INT8 names another class than FP32 on {paired.losses:,} of {paired.n:,} samples, "
                f"so whatever the labels are, its top-1 accuracy there is at most "
                f"{self.drop(paired.drop)} lower"
            )
        if paired.drop < 0:
            return f"INT8 scores {self.drop(-paired.drop)} better over {paired.n:,} samples"
        return f"The observed drop is {self.drop(paired.drop)} over {paired.n:,} samples"

    def it(self, paired: Paired) -> str:
        """What is held against the limit, after `observed`."""
        named = self.scale == "decibels" or paired.drop >= 0
        return "it" if named else "the drop"

    @property
    def below(self) -> str:
        """The good side of the limit."""
        return "above" if self.scale == "decibels" else "below"

    @property
    def above(self) -> str:
        """The bad side."""
        return "below" if self.scale == "decibels" else "above"

    def undecided(
        self, paired: Paired, limit: float, needed: int | None, *, below: bool, alone: bool
    ) -> str:
        """Why a verdict is inconclusive, and what to do.

        Args:
            paired: The comparison.
            limit: The drop tolerated.
            needed: Samples that would settle it; None where no number would.
            below: Whether the bounds are within the limit, and the samples too few all the same.
            alone: Whether so many new samples would do where they judge this model alone.
        """
        observed, allowed = self.observed(paired), self.drop(limit)
        if needed is None and paired.drop == limit == 0:
            return (
                f"{observed}, and no number of samples can show that it is exactly the limit of 0. "
                "Allow a small drop, as in 0.1pt."
            )
        if needed is None:
            return (
                f"{observed}, no better than the limit of {allowed}, yet too few to refuse "
                f"{self.sure}. More samples are unlikely to make it pass, a larger limit may."
            )
        if below and limit > 0 and not alone:
            return (
                f"{observed}, too few to claim anything {self.sure}, whatever they show: the limit "
                f"of {allowed} asks for {needed:,}."
            )
        if below and limit > 0:
            known = f", too few to claim anything {self.sure} of one of several candidates."
        elif below:
            known = f"; chance does that too often to claim anything {self.sure}."
        else:
            known = (
                f", but {self.sure} {self.it(paired)} is only known to be {self.below} "
                f"{self.drop(paired.high)}; the limit is {allowed}."
            )
        return f"{observed}{known} {self._settled(needed, alone=alone)}"

    def _settled(self, needed: int, *, alone: bool) -> str:
        """How many samples would do; new ones where this model has to be judged `alone`."""
        if not alone:
            return f"About {needed:,} samples would settle it if that stays so."
        return (
            f"About {needed:,} new samples would settle it if that stays so: vnnify gate judges "
            "this model alone by them."
        )
