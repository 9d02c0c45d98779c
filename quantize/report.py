"""Report: everything that one run learned, and the document that tells it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from bench.compare import Comparison, interval_text, ratio_text, speed_text, too_busy
from bench.errors import ExitCode
from bench.forecast import Forecast
from bench.latency import Latency
from bench.machine import Machine
from bench.models import Model
from bench.render import Check
from bench.stages import Stage
from quantize.drift import Drift
from quantize.evaluate import Evaluation
from quantize.findings import Finding
from quantize.flips import Flip
from quantize.gate import Verdict
from quantize.inspection import Inspection
from quantize.proof.comparing import Proof
from quantize.quantizers.native import QuantizedLayer
from quantize.recipe import Recipe
from quantize.served import Served
from quantize.slices import SliceVerdict
from quantize.speeds import Speeds

# Ends of an interval of a speed-up farther apart than this factor tell of a noisy machine.
_WIDE = 1.25


@dataclass(frozen=True, slots=True)
class Data:
    """Which samples were used for what."""

    calibration_source: str
    calibration_count: int
    calibration_sha256: str
    evaluation_source: str
    evaluation_count: int
    evaluation_sha256: str


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One candidate of the search.

    Attributes:
        name: Of the candidate.
        recipe: Its recipe in words.
        noise_db: Signal to noise at the outputs, dB.
        latency_ms: Quick median by runtime.
        size_bytes: Of its file.
        coverage: Layers in INT8, of all; see `quantize.coverage`.
        runtime: Where it was evaluated; None if it was not.
        value: Its score; None likewise.
        drop: Against FP32; None likewise.
        outcome: Of its verdict, or "not evaluated".
        seconds: What it took to make it and to look at its noise.
        predicted_db: The noise that the search expected, dB; None where it had no reason to.
        samples: That it was scored on; fewer than all where it was lost before.
        evaluation_seconds: What that took.
    """

    name: str
    recipe: str
    noise_db: float
    latency_ms: dict[str, float]
    size_bytes: int
    coverage: str
    runtime: str | None
    value: float | None
    drop: float | None
    outcome: str
    seconds: float = 0.0
    predicted_db: float | None = None
    samples: int = 0
    evaluation_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What a run comes to.

    Attributes:
        outcome: Worst of accuracy and speed.
        ships: Whether the model lies at `model.onnx`.
        exit_code: Of the command.
        headline: One sentence.
        speedup: Time of the fastest FP32 over that of the served INT8.
        speedup_low: Lower end of its interval.
        speedup_high: Upper end.
        too_slow: Whether speed refused it, whatever accuracy says.
        too_noisy: Whether it measured slower, but the machine was too noisy to be sure.
    """

    outcome: Literal["pass", "refuse", "inconclusive"]
    ships: bool
    exit_code: int
    headline: str
    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    too_slow: bool
    too_noisy: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one `vnnify quantize` learned; stored as `report.json`.

    Attributes:
        command: As it was typed.
        source: The trained model as the user named it.
        source_sha256: Of its ONNX form.
        fp32: The clean FP32 model.
        int8: The INT8 model, shipped or refused.
        conclusion: What it comes to.
        verdict: On accuracy, in the runtime that serves.
        metric: Name.
        max_drop: The tolerance with its unit.
        served_by: The runtime in which INT8 is fastest and was judged.
        target: The arithmetic it was made for.
        recipe: Every decision.
        layers: What became of each anchor.
        left: Other layers of those kinds, and why they cannot be quantized.
        coverage: Layers in INT8, of all; see `quantize.coverage`.
        data: Samples.
        evaluations: FP32 first, then INT8 where it is served, then elsewhere.
        latencies: With every raw sample.
        comparisons: Against the fastest FP32 first.
        control: FP32 against itself.
        trials: Everything that the search made.
        stages: What each stage cost.
        machine: Where.
        notes: What a user may want to know.
        proofs: On emulated CPUs; none where none was asked for.
        drift: Of a replayed recipe: ranges then and now, the farthest apart first.
        remembered: Of a replayed recipe: speeds that hold here, and were not timed again.
        findings: What makes single layers hard for 8 bits, and what was done.
        slices: How each class fares, the worst first.
        flips: Samples that INT8 scores otherwise, what lost most first; at most a
            thousand.
        fp32_ms: Quick median of FP32 by runtime, to compare with those of `trials`.
        inspection: What the runtimes make of the INT8 model, and what saturates in it; None in
            reports of older versions.
        slice_limit: What slices were held against, if that was asked; else the limit of the mean.
        further: What was asked besides accuracy and being no slower than FP32.
        first_pass_s: From the start of the command's process to the moment at which the first model
            that passed lay complete on disk; the first within the limit, where the samples are too
            few for any to pass; None where there was none.
        first_pass_samples: On how many samples it had passed by then; more may have followed.
        forecast: Latencies predicted for another machine, if that was asked for.
        served: What each runtime makes of INT8 with one thread and with all; none in reports of
            older versions.
    """

    command: str
    source: str
    source_sha256: str
    fp32: Model
    int8: Model
    conclusion: Conclusion
    verdict: Verdict
    metric: str
    max_drop: str
    served_by: str
    target: str
    recipe: Recipe
    layers: tuple[QuantizedLayer, ...]
    left: dict[str, str]
    coverage: str
    data: Data
    evaluations: tuple[Evaluation, ...]
    latencies: tuple[Latency, ...]
    comparisons: tuple[Comparison, ...]
    control: Comparison | None
    trials: tuple[TrialRow, ...]
    stages: tuple[Stage, ...]
    machine: Machine
    notes: tuple[str, ...]
    proofs: tuple[Proof, ...] = ()
    drift: tuple[Drift, ...] = ()
    remembered: Speeds | None = None
    findings: tuple[Finding, ...] = ()
    slices: tuple[SliceVerdict, ...] = ()
    flips: tuple[Flip, ...] = ()
    fp32_ms: dict[str, float] = field(default_factory=dict)
    inspection: Inspection | None = None
    slice_limit: float | None = None
    further: tuple[Check, ...] = ()
    first_pass_s: float | None = None
    first_pass_samples: int | None = None
    forecast: Forecast | None = None
    served: tuple[Served, ...] = ()


def served_speed(comparisons: Sequence[Comparison], served_by: str) -> Comparison:
    """INT8 where it is served, against the fastest FP32."""
    return next(c for c in comparisons if c.candidate == f"INT8 {served_by}")


def beside_fp32(comparisons: Sequence[Comparison], served_by: str) -> Comparison | None:
    """INT8 where it is served, against FP32 in the same runtime; None if that was not timed."""
    names = (f"FP32 {served_by}", f"INT8 {served_by}")
    return next((c for c in comparisons if (c.baseline, c.candidate) == names), None)


def conclude(
    verdict: Verdict,
    served_by: str,
    comparisons: tuple[Comparison, ...],
    inconclusive: Literal["fail", "warn", "pass"],
    *,
    need_speed: bool,
    proofs: tuple[Proof, ...] = (),
    further: Sequence[Check] = (),
) -> Conclusion:
    """Put accuracy and speed together.

    Args:
        verdict: On accuracy.
        served_by: The runtime that serves INT8.
        comparisons: The first one with that runtime is against the fastest FP32.
        inconclusive: What an inconclusive verdict counts as.
        need_speed: Whether a model that is slower than FP32 is refused; one that measured slower on
            a machine too noisy to be sure is inconclusive.
        proofs: A model that one of them refutes is refused, whatever else is true of it; one that
            could not be proved is inconclusive.
        further: What else was asked; the worst of them counts, too.
    """
    speed = served_speed(comparisons, served_by)
    slower = speed.ratio < 1.0
    outcome, headline = verdict.outcome, verdict.reason
    if outcome == "pass":
        headline = _may_ship(speed)
    exit_code = ExitCode.OK
    if outcome == "refuse":
        exit_code = ExitCode.REFUSED
    elif outcome == "inconclusive" and inconclusive == "fail":
        exit_code = ExitCode.INCONCLUSIVE
    failed, open_ = ([c for c in further if c.outcome == o] for o in ("fail", "inconclusive"))
    if failed and outcome != "refuse":
        outcome, exit_code, headline = "refuse", ExitCode.REFUSED, failed[0].message
    elif open_ and outcome == "pass":
        outcome, headline = "inconclusive", open_[0].message
        exit_code = ExitCode.INCONCLUSIVE if inconclusive == "fail" else ExitCode.OK
    too_noisy = need_speed and slower and _is_unclear(speed)
    too_slow = need_speed and slower and not too_noisy
    if too_slow:
        outcome, exit_code = "refuse", ExitCode.REFUSED
        headline = (
            f"Not worth quantizing: INT8 runs at {ratio_text(speed.ratio)} times the speed of the "
            f"fastest FP32. {verdict.reason}"
        )
    elif too_noisy and outcome != "refuse":
        outcome, headline = "inconclusive", f"{_noise(speed)} {verdict.reason}"
        exit_code = ExitCode.INCONCLUSIVE if inconclusive == "fail" else exit_code
    doubts = [p for p in proofs if not p.holds]
    if doubts and outcome != "refuse":
        refuted = any(p.refutes for p in doubts)
        outcome = "refuse" if refuted else "inconclusive"
        exit_code = ExitCode.REFUSED if refuted else ExitCode.INCONCLUSIVE
        headline = f"The verdict does not count: {doubts[0].text}."
    ships = exit_code == ExitCode.OK
    return Conclusion(
        outcome=outcome,
        ships=ships,
        exit_code=int(exit_code),
        headline=headline,
        speedup=speed.ratio,
        speedup_low=speed.low,
        speedup_high=speed.high,
        too_slow=too_slow,
        too_noisy=too_noisy,
    )


def _may_ship(speed: Comparison) -> str:
    if not speed.holds_one or speed.low is None:
        return f"INT8 may ship: {speed_text(speed)} as the fastest FP32, and as accurate as asked."
    why = f", and {too_busy(speed)}" if speed.is_disturbed else ""
    return (
        "INT8 may ship: as accurate as asked, but it is not certain to be faster: "
        f"{speed_text(speed)} as the fastest FP32{why}."
    )


def _is_unclear(speed: Comparison) -> bool:
    """Whether INT8 may as well be faster: the interval holds 1, and is wide or not to be trusted.

    A narrow one on a quiet machine says that there is no difference, which is no gain either.
    """
    if speed.low is None or speed.high is None or not speed.holds_one:
        return False
    return not speed.sound or speed.high > _WIDE * speed.low


def _noise(speed: Comparison) -> str:
    interval = interval_text(speed.low, speed.high)
    return (
        f"The machine is too noisy to tell whether INT8 is slower: it runs at "
        f"{ratio_text(speed.ratio)} times the speed of the fastest FP32 ({interval}). Try again "
        "where less else runs, or with more --rounds."
    )
