"""FP32 and the first INT8 model, scored side by side on a growing part of the samples.

    FP32 on the first k ─▶ INT8 on the first k ─▶ look: a pass? lost? ─▶ FP32, INT8 on the next …
       ─▶ both on all samples: baseline, verdict

Whoever waits for a first answer gets it from as few samples as can give one, and none is run twice:
the verdict comes from all of them, as it would have otherwise.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from quantize.evaluate import Evaluation, Scoring, scoring
from quantize.gate import Verdict
from quantize.ground import Ground
from quantize.judging import Judging, execution_of
from quantize.quantizers import QuantizedModel
from quantize.sequential import Foresight, Looks, looks_at

Told = Callable[[QuantizedModel, str, Verdict], None]
"""Hears of a candidate, its runtime, and the pass on the samples so far; once at most."""


@dataclass(slots=True)
class Opening:
    """Judges the first candidate while FP32 is scored; call it like `Judging`, which takes over.

    Attributes:
        ground: What FP32 is scored on.
        foresight: When a pass may be told early.
        told: Hears of it.
        judging: What takes over.
    """

    ground: Ground
    foresight: Foresight
    told: Told
    judging: Judging | None = field(default=None, init=False)

    def __call__(
        self, quantized: QuantizedModel, runtime: str
    ) -> tuple[Evaluation, Verdict] | None:
        """Scores of a candidate and the verdict, see `Judging`; the first one runs beside FP32."""
        if self.judging is not None:
            return self.judging(quantized, runtime)
        ground = self.ground
        how = execution_of(quantized, runtime, ground.threads, {})
        with (
            self._fp32() as fp32,
            scoring(
                quantized.model, ground.samples, ground.metric, how, reference=ground.reference
            ) as int8,
        ):
            lost = self._abreast(fp32, int8, quantized, runtime)
            self.judging = ground.settle(lambda: self._all(fp32, int8.done))
            scores = int8.evaluation() if lost else self._all(int8, fp32.done)
        return self.judging.adopt(quantized, runtime, scores)

    def rest(self) -> Judging:
        """What judges from here on; scores FP32 where no candidate came."""
        if self.judging is None:
            self.judging = self.ground.settle(self.ground.score)
        return self.judging

    def _abreast(
        self, fp32: Scoring, int8: Scoring, quantized: QuantizedModel, runtime: str
    ) -> bool:
        """Run both to the last look; whether the candidate is lost before."""
        seen, told, total = self.foresight, False, len(self.ground.samples)
        for stop in looks_at(total):
            self._run(fp32, stop, int8.done)
            self._run(int8, stop, fp32.done)
            before, now = fp32.evaluation(), int8.evaluation()
            if not told and (verdict := seen.pass_of(before, now, stop)) is not None:
                self.told(quantized, runtime, verdict)
                told = True
            looks = Looks(before, seen.limit, seen.confidence, can_pass=False)
            if looks.is_lost(now.scores, stop, total):
                return True
        return False

    def _all(self, scores: Scoring, beside: int) -> Evaluation:
        self._run(scores, len(self.ground.samples), beside)
        return scores.evaluation()

    def _run(self, scores: Scoring, stop: int, beside: int) -> None:
        """Run one model further, while the other one has run `beside` samples."""

        def watch(_scores: object, done: int, total: int) -> bool:
            self.ground.progress.step(done + beside, 2 * total)
            return False

        scores.run_to(stop, watch)

    def _fp32(self) -> AbstractContextManager[Scoring]:
        ground = self.ground
        return scoring(
            ground.fp32, ground.samples, ground.metric, ground.execution, keep=ground.reference
        )
