"""What a search chooses among, what it is for, and what it found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from quantize.anchors import Anchor, Mode
from quantize.evaluate import Evaluation
from quantize.gains import NO_GAIN, Expected, expect
from quantize.gate import Verdict
from quantize.graphs import opened
from quantize.placement import Fusion
from quantize.quantizers import QuantizedModel
from quantize.recipe import Engine, Recipe
from quantize.trials import Trial, Workbench, explained

# Below this the outputs have nothing to do with FP32's any more, whatever the metric.
HOPELESS_DB = 0.0

# The plan of what should gain; its layers in float have that reason.
SHOULD_PAY = "static where it should pay"


class Judge(Protocol):
    """Scores a candidate in a runtime, and judges it against FP32; None if interrupted."""

    def __call__(
        self, quantized: QuantizedModel, runtime: str, *, unlikely: bool = False
    ) -> tuple[Evaluation, Verdict] | None:
        """Evaluation and verdict; one that is `unlikely` to pass takes little of the error."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate with its verdict.

    Attributes:
        trial: The candidate.
        runtime: Where it was judged and would be served.
        evaluation: Its scores.
        verdict: Against FP32.
        cost: What counts among candidates of the same verdict; None: time.
    """

    trial: Trial
    runtime: str
    evaluation: Evaluation
    verdict: Verdict
    cost: float | None = None

    @property
    def rank(self) -> tuple[int, float]:
        """Sorts the best first: a pass, then within the limit, then by drop; then by cost."""
        verdict, ms = self.verdict, self.trial.latency_ms.get(self.runtime, float("inf"))
        ms = ms if self.cost is None else self.cost
        if verdict.outcome == "pass":
            return (0, ms)
        if verdict.outcome == "inconclusive" and verdict.drop <= verdict.limit:
            return (1, ms)
        return (2 if verdict.outcome == "inconclusive" else 3, verdict.drop)


@dataclass(frozen=True, slots=True)
class Found:
    """What a search learned.

    Attributes:
        best: The candidate to ship or to refuse; None where no candidate ran.
        judged: Everything that was evaluated, in order.
        trials: Everything that was made, timed or not.
        fp32_ms: Quick median of FP32 by runtime.
        reason: Why it ended, one sentence.
    """

    best: Judged | None
    judged: tuple[Judged, ...]
    trials: tuple[Trial, ...]
    fp32_ms: dict[str, float]
    reason: str


def plans(
    anchors: Sequence[Anchor],
    target: str,
    runtimes: Sequence[str],
    engines: Sequence[Engine] = ("native",),
    expected: Mapping[str, Mode] | None = None,
) -> dict[str, Recipe]:
    """Ways to divide the anchors among static, dynamic and float, without duplicates.

    Args:
        anchors: Of the graph.
        target: What they are made for.
        runtimes: That may serve.
        engines: What quantizes.
        expected: Modes that should be fastest, to be tried first; None where time does not count.
    """
    static: dict[str, Mode] = {a.name: a.modes[0] for a in anchors}
    divided: list[tuple[str, dict[str, Mode], Fusion]] = []
    if expected is not None and expected != static and "onnxruntime" in runtimes:
        divided.append((SHOULD_PAY, dict(expected), "onnxruntime"))
    divided.append(("static", static, "onnxruntime"))
    if "openvino" in runtimes and "static" in static.values():
        divided.append(("static for OpenVINO", static, "openvino"))
    mixed: dict[str, Mode] = {a.name: "static" if a.op == "Conv" else "dynamic" for a in anchors}
    divided.append(("convolutions static, rest dynamic", mixed, "onnxruntime"))
    dynamic: dict[str, Mode] = {
        a.name: "dynamic" if "dynamic" in a.modes else "float" for a in anchors
    }
    divided.append(("dynamic", dynamic, "onnxruntime"))
    distinct: dict[str, Recipe] = {}
    for name, modes, fused_for in divided if "native" in engines else []:
        recipe = Recipe(target, "mse", correct_bias=True, modes=modes, fused_for=fused_for)
        if recipe not in distinct.values() and any(m != "float" for m in modes.values()):
            distinct[f"{name}, {target}"] = recipe
    fitting: dict[str, Mode] = {
        a.name: "static" if "static" in a.modes else "float" for a in anchors
    }
    for engine in engines:
        if engine != "native" and "static" in fitting.values():
            distinct[f"{engine}, {target}"] = Recipe(
                target, "minmax", correct_bias=True, modes=fitting, engine=engine
            )
    return distinct


def expectation(bench: Workbench) -> Expected | None:
    """What should gain in ONNX Runtime, where the native engine makes something for it."""
    if "native" not in bench.engines or "onnxruntime" not in bench.runtimes:
        return None
    with opened(bench.fp32.path) as model:
        return expect(model, bench.anchors, bench.calibration)


def told(trial: Trial) -> Trial:
    """The trial, with why its layers are in float where their size alone decided."""
    if not trial.name.startswith(SHOULD_PAY):
        return trial
    return explained(trial, dict.fromkeys(trial.quantized.recipe.modes, NO_GAIN))


@dataclass(frozen=True, slots=True)
class Aim:
    """What a search is for, and who is told.

    Attributes:
        can_pass: Whether a model as good as FP32 could pass next; if not, the samples are too few
            for any verdict, or for one more, and the first candidate within the limit is taken.
        need_speed: Whether a candidate that is not faster than FP32 is of no use.
        is_last_chance: Whether none could pass any more once the next one has failed.
        say: Told what happens, one line at a time.
        stopped: Whether a person asked for the end.
        keep: Given each candidate that is the best so far.
    """

    can_pass: Callable[[], bool]
    need_speed: bool
    say: Callable[[str], None]
    stopped: Callable[[], bool] = lambda: False
    is_last_chance: Callable[[], bool] = lambda: False
    keep: Callable[[Judged], None] = lambda _: None

    @property
    def enough(self) -> int:
        """The first part of the rank of a candidate as good as the samples can show."""
        return 0 if self.can_pass() else 1
