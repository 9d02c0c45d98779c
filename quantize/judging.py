"""Judges candidates as they would be served, with the target's arithmetic."""

from collections.abc import Mapping
from dataclasses import dataclass

from bench.machine import canary
from bench.runtimes import Settings, find_runtime
from quantize.data import Samples
from quantize.evaluate import Evaluation, Execution, Watch, evaluate
from quantize.gate import Tolerance, Verdict, judge
from quantize.metrics import Metric
from quantize.outputs import OutputStore
from quantize.quantizers import QuantizedModel
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

    def __call__(self, quantized: QuantizedModel, runtime: str) -> tuple[Evaluation, Verdict]:
        """Scores on the target's arithmetic, and the verdict against FP32."""
        found = self.evaluate(quantized, runtime)
        return found, judge(self.baseline, found, self.tolerance, confidence=self.confidence)

    def evaluate(
        self, quantized: QuantizedModel, runtime: str, *, native: bool = False
    ) -> Evaluation:
        """Scores on the target's arithmetic or, if `native`, on this CPU's own."""
        narrow = TARGETS[quantized.recipe.target].narrow
        if canary(runtime) != "exact" and runtime != "onnxruntime" and not narrow and not native:
            # Only ONNX Runtime can compute exactly on a CPU that saturates.
            runtime = "onnxruntime"
        exact = not native and (canary(runtime) == "exact" or runtime == "onnxruntime")
        settings = Settings(threads=self.threads, exact=exact)
        return evaluate(
            quantized.model,
            self.samples,
            self.metric,
            Execution(find_runtime(runtime), settings, self.states),
            reference=self.reference,
            watch=self.watch,
        )
