"""What every verdict of one run stands on: FP32's scores on the samples, the limit, the judge."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bench.models import Model
from bench.runtimes import RUNTIMES, Settings
from quantize.data import Samples
from quantize.evaluate import Evaluation, Execution, evaluate
from quantize.gate import can_pass, judge
from quantize.job import Job, Limits, Progress
from quantize.journal import Journal, knows_scores, metric_digest, remember_scores
from quantize.judging import Judging
from quantize.looks import FIRST, Look
from quantize.metric import Metric
from quantize.outputs import OutputStore
from quantize.sequential import Foresight, Looks, foresight
from quantize.shares import Shares
from quantize.slices import Division, slice_limit
from quantize.slices import divide as divided
from quantize.stopping import Interrupt
from quantize.tolerance import Tolerance, default_tolerance, parse_tolerance


@dataclass(slots=True)
class Ground:
    """What the judge of a run is made of; `settle` makes it.

    Attributes:
        job: What was asked.
        fp32: To be the baseline; as a file that opens at once.
        samples: To judge on, in random order where no state is carried; once a replay has ended
            early, those that ran.
        metric: What scores them.
        reference: Filled with FP32's outputs.
        threads: That may be used.
        progress: Told what happens.
        journal: What a run that was killed found before.
        interrupt: Armed with the first verdict.
        division: Classes, slices and units of the samples; known once it is settled.
        judging: The judge; None until it is settled.
        shares: What the candidates of a search share the error by.
    """

    job: Job
    fp32: Model
    samples: Samples
    metric: Metric
    reference: OutputStore
    threads: int
    progress: Progress
    journal: Journal = field(default_factory=Journal)
    interrupt: Interrupt = field(default_factory=Interrupt)
    division: Division = field(default_factory=Division, init=False)
    judging: Judging | None = field(default=None, init=False)
    shares: Shares = field(default_factory=Shares, init=False)
    _possible: dict[float, bool] = field(default_factory=dict, init=False)

    @property
    def execution(self) -> Execution:
        """How FP32 runs."""
        settings = Settings(threads=self.threads)
        return Execution(RUNTIMES["onnxruntime"], settings, self.job.data.states)

    @property
    def knows_scores(self) -> bool:
        """Whether FP32's scores on all samples were kept."""
        return knows_scores(self.journal, self._key())

    def foresight(self) -> Foresight | None:
        """When a look may tell before all samples have run; None: never.

        The limit has to be known before FP32's scores are, and samples must not hang together. Of a
        search, FP32's scores must not be known yet. A replay must not be asked for more than one
        verdict on the mean.
        """
        job, limits, asked = self.job, self.job.limits, self.job.limits.max_drop
        whole = self.metric.gathers or self.metric.decibels or limits.unit is not None
        if whole or job.data.states or (asked is None and not self.metric.bounded):
            return None
        replay = job.effort.recipe is not None
        if _asks_for_every_sample(job) if replay else self.knows_scores:
            return None
        tolerance = parse_tolerance(asked) if asked is not None else Tolerance(1.0, "pt")
        if tolerance.unit not in ("pt", "abs"):
            return None
        if replay and tolerance.unit == "pt" and not self.metric.bounded:
            # Whether points mean anything is known once every score is.
            return None
        return foresight(tolerance, limits.confidence, len(self.samples), ends=replay)

    def score(self) -> Evaluation:
        """FP32 on every sample."""
        return evaluate(
            self.fp32,
            self.samples,
            self.metric,
            self.execution,
            keep=self.reference,
            watch=self.watch,
        )

    def settle(self, score: Callable[[], Evaluation], look: Look | None = None) -> Judging:
        """What judges candidates against FP32's scores, which `score` makes if none were kept.

        Args:
            score: Makes them.
            look: Which of several looks the verdict is of.

        Raises:
            InputError: FP32 itself is broken.
            UsageError: A limit does not fit the metric.
        """
        limits = self.job.limits
        baseline = remember_scores(self.journal, self._key(), self.metric, self.reference, score)
        asked = limits.max_drop
        tolerance = parse_tolerance(asked) if asked else default_tolerance(baseline)
        shown = f"{self.metric.name} {baseline.value:.4f} on {len(self.samples):,} samples"
        self.progress.say(f"FP32: {shown}")
        judge(baseline, baseline, tolerance, confidence=limits.confidence)
        slice_limit(limits, baseline)
        self.division = divided(limits, self.samples, baseline.count)
        searches = self.job.effort.recipe is None
        hang_together = bool(self.job.data.states) or self.division.units is not None
        # A replay has one model, and reports what it scores.
        whole = hang_together or not searches
        judging = Judging(
            samples=self.samples,
            metric=self.metric,
            reference=self.reference,
            baseline=baseline,
            tolerance=tolerance,
            confidence=limits.confidence,
            threads=self.threads,
            states=self.job.data.states,
            watch=self.watch,
            metric_sha256=metric_digest(limits),
            journal=self.journal,
            interrupt=self.interrupt,
            looks=None if whole else looks(baseline, tolerance, limits),
            units=self.division.units,
            look=look,
            shares=self.shares if searches else None,
        )
        self.judging = judging
        return judging

    @property
    def can_pass(self) -> bool:
        """Whether so many samples could show that the next model passes; true until it is known."""
        if self.judging is None:
            return True
        baseline, shares = self.judging.baseline, self.judging.shares
        share = 1.0 if shares is None else shares.next if baseline.binary else FIRST
        return self._could_pass(self.judging, share)

    @property
    def is_last_chance(self) -> bool:
        """Whether the next model could pass, but none after it, should it fail.

        Told of right-or-wrong scores alone: others pass or not by their spread.
        """
        judging = self.judging
        if judging is None or judging.shares is None or not judging.baseline.binary:
            return False
        return self.can_pass and not self._could_pass(judging, judging.shares.after_next)

    def _could_pass(self, judging: Judging, share: float) -> bool:
        """Whether a model as good as FP32 could pass with so much of the error."""
        if share not in self._possible:
            # Once: a metric of the whole data set is resampled thousands of times for it.
            baseline = judging.baseline
            self._possible[share] = can_pass(baseline, judging.judge(baseline, share))
        return self._possible[share]

    def watch(self, _scores: object, done: int, total: int) -> bool:
        """Tell how far an evaluation is."""
        self.progress.step(done, total)
        return False

    def _key(self) -> dict[str, Any]:
        return {
            "fp32": self.fp32.sha256,
            "samples": self.samples.digest,
            "metric": (self.metric.name, metric_digest(self.job.limits)),
            "states": self.job.data.states,
        }


def _asks_for_every_sample(job: Job) -> bool:
    """Whether a replay was asked for what stands on all samples: parts of them, or a baseline."""
    limits = job.limits
    parts = limits.slices is not None or limits.max_slice_drop is not None or job.flips
    return parts or job.lock is not None or job.effort.full


def looks(baseline: Evaluation, tolerance: Tolerance, limits: Limits) -> Looks | None:
    """When evaluations of samples that do not hang together may end early."""
    if baseline.corpus_value is not None:
        return None
    itself = judge(baseline, baseline, tolerance, confidence=limits.confidence)
    return Looks(baseline, itself.limit, limits.confidence, can_pass(baseline, itself))
