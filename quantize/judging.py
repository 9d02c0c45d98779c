"""Judges candidates as they would be served, with the target's arithmetic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.machine import canary
from bench.runtimes import Settings, find_runtime
from quantize.data import Samples
from quantize.evaluate import Evaluation, Execution, Watch, evaluate
from quantize.gate import Tolerance, Verdict, judge
from quantize.journal import Journal, storable
from quantize.metrics import Metric
from quantize.outputs import OutputStore
from quantize.quantizers import QuantizedModel
from quantize.stopping import Interrupt
from quantize.targets import TARGETS


@dataclass(frozen=True, slots=True)
class Judging:
    """What every verdict of one run shares; call it with a candidate and a runtime.

    Attributes:
        samples: To judge on.
        metric: What scores them.
        reference: FP32's outputs for them.
        baseline: FP32's scores.
        tolerance: How much worse INT8 may be.
        confidence: One-sided, of the verdict.
        threads: That may be used.
        states: Output to input names that carry state.
        watch: Told after every sample.
        metric_sha256: Of the file that the metric comes from, if it is the user's.
        journal: What a run that was killed found before.
        interrupt: Armed with the first verdict.
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

    def __call__(
        self, quantized: QuantizedModel, runtime: str
    ) -> tuple[Evaluation, Verdict] | None:
        """Scores on the target's arithmetic, and the verdict against FP32; None if interrupted."""
        found = self.evaluate(quantized, runtime)
        if found is None:
            return None
        self.interrupt.arm()
        return found, judge(self.baseline, found, self.tolerance, confidence=self.confidence)

    def evaluate(
        self, quantized: QuantizedModel, runtime: str, *, native: bool = False
    ) -> Evaluation | None:
        """Scores on the target's arithmetic or, if `native`, this CPU's; None if interrupted."""
        narrow = TARGETS[quantized.recipe.target].narrow
        if canary(runtime) != "exact" and runtime != "onnxruntime" and not narrow and not native:
            # Only ONNX Runtime can compute exactly on a CPU that saturates.
            runtime = "onnxruntime"
        exact = not native and (canary(runtime) == "exact" or runtime == "onnxruntime")
        settings = Settings(threads=self.threads, exact=exact)
        key = self._key(quantized, runtime, exact=exact)
        found = self.journal.recall(Evaluation, "evaluation", key)
        if found is not None:
            return found
        found = evaluate(
            quantized.model,
            self.samples,
            self.metric,
            Execution(find_runtime(runtime), settings, self.states),
            reference=self.reference,
            watch=self._watch,
        )
        if self.interrupt.asked:
            return None
        if storable(found):
            self.journal.keep(found, "evaluation", key)
        return found

    def _key(self, quantized: QuantizedModel, runtime: str, *, exact: bool) -> dict[str, Any]:
        return {
            "model": quantized.model.sha256,
            "runtime": runtime,
            "exact": exact,
            "fp32": self.baseline.model_sha256,
            "samples": self.baseline.samples_sha256,
            "metric": (self.metric.name, self.metric.output, self.metric_sha256),
            "states": dict(self.states),
        }

    def _watch(self, scores: Sequence[float], done: int, total: int) -> bool:
        return self.watch(scores, done, total) or self.interrupt.asked
