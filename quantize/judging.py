"""Judges candidates as they would be served, with the target's arithmetic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.machine import canary
from bench.runtimes import Settings, find_runtime
from quantize.amounts import drop_text
from quantize.data import Samples
from quantize.evaluate import Evaluation, Execution, Watch, evaluate, first_scores
from quantize.gate import Verdict, judge
from quantize.journal import Journal, keep_evaluation, recall_evaluation
from quantize.looks import FIRST, Look
from quantize.metric import Metric
from quantize.outputs import OutputStore
from quantize.quantizers import QuantizedModel
from quantize.sequential import Looks
from quantize.served import Few
from quantize.shares import Shares
from quantize.stopping import Interrupt
from quantize.targets import TARGETS
from quantize.tolerance import Tolerance, exactly

if TYPE_CHECKING:
    from concurrent.futures import Future

    from bench.runtimes import Session


@dataclass(frozen=True, slots=True)
class Judging:
    """What every verdict of one run shares; call it with a candidate and a runtime.

    Attributes:
        samples: To judge on.
        metric: What scores them.
        reference: FP32's outputs for them.
        baseline: FP32's scores.
        tolerance: How much worse INT8 may be.
        confidence: One-sided, of all verdicts together.
        threads: That may be used.
        states: Output to input names that carry state.
        watch: Told after every sample.
        metric_sha256: Of the file that the metric comes from, if it is the user's.
        journal: What a run that was killed found before.
        interrupt: Armed with the first verdict.
        units: Number of the independent unit of each sample; None where each sample is one.
        looks: When an evaluation of a candidate may end early; None: never.
        look: Which of several looks at growing parts of the samples these are.
        shares: What the candidates of a search share the error by; None where there is one.
    """

    samples: Samples
    metric: Metric
    reference: OutputStore
    baseline: Evaluation
    tolerance: Tolerance
    confidence: float
    threads: int
    states: Mapping[str, str]
    watch: Watch
    metric_sha256: str = ""
    journal: Journal = field(default_factory=Journal)
    interrupt: Interrupt = field(default_factory=Interrupt)
    looks: Looks | None = None
    units: Sequence[int] | None = None
    look: Look | None = None
    shares: Shares | None = None

    def __call__(
        self,
        quantized: QuantizedModel,
        runtime: str,
        *,
        unlikely: bool = False,
        whole: bool = False,
        few: Few | None = None,
        opened: "Future[Session] | None" = None,
    ) -> tuple[Evaluation, Verdict] | None:
        """Scores on the target's arithmetic, and the verdict against FP32; None if interrupted.

        Args:
            quantized: The candidate.
            runtime: Where it would be served.
            unlikely: Whether little is expected of it; see `quantize.shares`.
            whole: Run it on every sample, even if it is lost before.
            few: Samples that it runs besides, for `quantize.served`.
            opened: The same, where it is being opened already.
        """
        looks = None if whole else self.looks
        found = self.evaluate(quantized, runtime, looks=looks, few=few, opened=opened)
        return None if found is None else self.told(found, unlikely=unlikely)

    def adopt(
        self, quantized: QuantizedModel, runtime: str, found: Evaluation, *, unlikely: bool = False
    ) -> tuple[Evaluation, Verdict]:
        """The same of scores that were found beside FP32's; a run that goes on finds them, too."""
        execution = execution_of(quantized, runtime, self.threads, self.states)
        self._keep(found, self._key(quantized, execution), self.looks)
        return self.told(found, unlikely=unlikely)

    def told(self, found: Evaluation, *, unlikely: bool = False) -> tuple[Evaluation, Verdict]:
        """A candidate's scores with the verdict; from here on there is something to publish."""
        self.interrupt.arm()
        name = (found.model_sha256, found.runtime)
        share = self.shares.of(name, unlikely=unlikely) if self.shares is not None else 1.0
        if found.count < self.baseline.count:
            verdict = self._lost(found)
        else:
            verdict = self.judge(found, share)
        # What is not finite had no chance to pass.
        if self.shares is not None and not found.nonfinite:
            self.shares.note(name, verdict)
        return found, verdict

    def judge(self, found: Evaluation, share: float = 1.0) -> Verdict:
        """The verdict on scores of every sample; a refusal has the whole error."""
        whole = partial(
            judge,
            self.baseline,
            found,
            self.tolerance,
            confidence=self.confidence,
            units=self.units,
            look=self.look,
        )
        verdict = whole(share=share)
        if share < FIRST and verdict.outcome == "inconclusive":
            plain = whole()
            return plain if plain.outcome == "refuse" else verdict
        return verdict

    def _lost(self, found: Evaluation) -> Verdict:
        """The verdict on a candidate whose evaluation ended early."""
        assert self.looks is not None
        # Not of the first samples alone whether FP32 is any good, nor what share of it is allowed.
        before = replace(first_scores(self.baseline, found.count), chance=None)
        limit = exactly(self.looks.limit, before)
        verdict = judge(before, found, limit, confidence=self.confidence)
        reason = (
            f"Lost after {found.count:,} of {self.baseline.count:,} samples: a drop of "
            f"{drop_text(verdict.drop, verdict.scale)} so far, and the limit is "
            f"{drop_text(self.looks.limit, verdict.scale)}."
        )
        return replace(verdict, outcome="refuse", samples_needed=None, reason=reason)

    def evaluate(
        self,
        quantized: QuantizedModel,
        runtime: str,
        *,
        native: bool = False,
        looks: Looks | None = None,
        few: Few | None = None,
        opened: "Future[Session] | None" = None,
    ) -> Evaluation | None:
        """Scores on the target's arithmetic or, if `native`, this CPU's; None if interrupted."""
        execution = execution_of(quantized, runtime, self.threads, self.states, native=native)
        key = self._key(quantized, execution)
        for known in (key, {**key, "looks": _facts(looks)}):
            kept = recall_evaluation(self.journal, self.metric, "evaluation", known)
            if kept is not None:
                return kept
        found = evaluate(
            quantized.model,
            self.samples,
            self.metric,
            replace(execution, few=few, opened=opened),
            reference=self.reference,
            watch=partial(self._watch, looks),
        )
        if self.interrupt.asked:
            return None
        self._keep(found, key, looks)
        return found

    def _keep(self, found: Evaluation, key: dict[str, Any], looks: Looks | None) -> None:
        if found.count < self.baseline.count:
            key = {**key, "looks": _facts(looks)}
        keep_evaluation(self.journal, found, "evaluation", key)

    def _key(self, quantized: QuantizedModel, execution: Execution) -> dict[str, Any]:
        return {
            "model": quantized.model.sha256,
            "runtime": execution.runtime.name,
            "exact": execution.settings.exact,
            "fp32": self.baseline.model_sha256,
            "samples": self.baseline.samples_sha256,
            "metric": (self.metric.name, self.metric.output, self.metric_sha256),
            "states": dict(self.states),
        }

    def _watch(self, looks: Looks | None, scores: Sequence[float], done: int, total: int) -> bool:
        lost = looks is not None and looks.is_lost(scores, done, total)
        return self.watch(scores, done, total) or self.interrupt.asked or lost


def execution_of(
    quantized: QuantizedModel,
    runtime: str,
    threads: int,
    states: Mapping[str, str],
    *,
    native: bool = False,
) -> Execution:
    """How a candidate is run to be judged for a runtime.

    Args:
        quantized: The candidate.
        runtime: Where it would be served.
        threads: That may be used.
        states: Output to input names that carry state.
        native: With this CPU's own arithmetic, not the target's.
    """
    narrow = TARGETS[quantized.recipe.target].narrow
    if canary(runtime) != "exact" and runtime != "onnxruntime" and not narrow and not native:
        # Only ONNX Runtime can compute exactly on a CPU that saturates.
        runtime = "onnxruntime"
    exact = not native and (canary(runtime) == "exact" or runtime == "onnxruntime")
    return Execution(find_runtime(runtime), Settings(threads=threads, exact=exact), states)


def _facts(looks: Looks | None) -> tuple[float, float, bool] | None:
    return (looks.limit, looks.confidence, looks.can_pass) if looks is not None else None
