"""FP32 and the first INT8 model, scored side by side on a growing part of the samples.

    FP32 on the first k ─▶ INT8 on the first k ─▶ look: a pass? lost? ─▶ FP32, INT8 on the next …
       ─▶ both on all samples: baseline, verdict

Whoever waits for a first answer gets it from as few samples as can give one, and none is run twice.
A search goes on: its verdict comes from all samples, as it would have otherwise. A replay ends with
the first look that tells, and its verdict stands on the samples that had run by then.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from quantize.evaluate import Evaluation, Execution, Scoring, scoring
from quantize.gate import Verdict
from quantize.ground import Ground
from quantize.judging import Judging, execution_of
from quantize.looks import looks_at
from quantize.quantizers import QuantizedModel
from quantize.sequential import Foresight, Looks
from quantize.served import Few

if TYPE_CHECKING:
    from concurrent.futures import Future

    from bench.runtimes import Session

Told = Callable[[QuantizedModel, str, Verdict], None]
"""Hears of a candidate, its runtime, and the pass on the samples so far; once at most."""


@dataclass(slots=True)
class Opening:
    """Judges the first candidate while FP32 is scored; call it like `Judging`, which takes over.

    Attributes:
        ground: What FP32 is scored on.
        foresight: When a look may tell before all samples have run; None: never.
        told: Hears of it, if more samples follow.
        few: Samples that candidates run besides; see `Judging`.
        judging: What takes over; from the start where FP32 was scored before.
    """

    ground: Ground
    foresight: Foresight | None
    told: Told
    few: Few
    judging: Judging | None = None

    def __call__(
        self,
        quantized: QuantizedModel,
        runtime: str,
        *,
        unlikely: bool = False,
        opened: "Future[Session] | None" = None,
    ) -> tuple[Evaluation, Verdict] | None:
        """Scores of a candidate and the verdict, see `Judging`; the first one runs beside FP32."""
        seen, ground = self.foresight, self.ground
        # A replay that was killed after all samples had run goes on with the last look.
        if self.judging is not None or seen is None or ground.knows_scores:
            judge = self.rest()
            return judge(quantized, runtime, unlikely=unlikely, few=self.few, opened=opened)
        how = replace(self.execution(quantized, runtime), opened=opened)
        with (
            self._fp32() as fp32,
            scoring(
                quantized.model, ground.samples, ground.metric, how, reference=ground.reference
            ) as int8,
        ):
            if seen.ends:
                scores = self._to_the_end(seen, fp32, int8)
            else:
                # What has to be better than these looks ask for is not told to pass by them.
                tell = None if unlikely else partial(self.told, quantized, runtime)
                lost = self._abreast(seen, fp32, int8, tell)
                self.judging = ground.settle(lambda: self._all(fp32, int8.done))
                scores = int8.evaluation() if lost else self._all(int8, fp32.done)
            self.few.see(int8)
        return self.rest().adopt(quantized, runtime, scores, unlikely=unlikely)

    def execution(self, quantized: QuantizedModel, runtime: str) -> Execution:
        """How a candidate will be run."""
        ground = self.ground
        return execution_of(quantized, runtime, ground.threads, ground.job.data.states)

    def rest(self) -> Judging:
        """What judges from here on; scores FP32 where no candidate came."""
        if self.judging is None:
            last = len(self.ground.samples)
            look = self.foresight.look(last) if self.foresight is not None else None
            self.judging = self.ground.settle(self.ground.score, look)
        return self.judging

    def _abreast(
        self,
        seen: Foresight,
        fp32: Scoring,
        int8: Scoring,
        tell: Callable[[Verdict], None] | None,
    ) -> bool:
        """Run both to the last look, and tell the first pass; whether INT8 is lost before."""
        total = len(self.ground.samples)
        for stop in looks_at(total):
            before, now = self._both(fp32, int8, stop)
            if tell is not None:
                verdict = seen.told(before, now, stop)
                if verdict is not None and verdict.outcome == "pass":
                    tell(verdict)
                    tell = None
            looks = Looks(before, seen.limit, seen.confidence, can_pass=False)
            if looks.is_lost(now.scores, stop, total):
                return True
        return False

    def _to_the_end(self, seen: Foresight, fp32: Scoring, int8: Scoring) -> Evaluation:
        """Run both to the first look that tells, and judge by the samples that ran; INT8's scores.

        Those that did not run are no part of what the verdict stands on any more.
        """
        ground, total = self.ground, len(self.ground.samples)
        for stop in seen.at:
            before, now = self._both(fp32, int8, stop)
            if stop == total or seen.told(before, now, stop) is not None:
                break
        if stop < total:
            ground.samples = ground.samples.subset(range(stop))
            digest = ground.samples.digest
            before, now = (replace(e, samples_sha256=digest) for e in (before, now))
        self.judging = ground.settle(lambda: before, seen.look(stop))
        return now

    def _both(self, fp32: Scoring, int8: Scoring, stop: int) -> tuple[Evaluation, Evaluation]:
        """Both on the samples in front of `stop`."""
        self._run(fp32, stop, int8.done)
        self._run(int8, stop, fp32.done)
        return fp32.evaluation(), int8.evaluation()

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
