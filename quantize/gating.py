"""`vnnify gate`: two existing models, one verdict. Nothing is quantized."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.compare import Comparison, compare
from bench.errors import ExitCode, UsageError
from bench.latency import Latency, Variant, measure
from bench.machine import Machine, available_threads, canary, describe
from bench.models import Model, read_model
from bench.render import (
    Banner,
    Check,
    Column,
    Document,
    Forest,
    ForestRow,
    KeyFigure,
    Paragraph,
    Section,
    Table,
)
from bench.render.document import CheckOutcome
from bench.runtimes import Settings, find_runtime
from quantize.data import read_samples
from quantize.evaluate import Evaluation, Execution, Watch, evaluate
from quantize.gate import Verdict, judge
from quantize.job import GateJob, Progress
from quantize.metrics import resolve_metric
from quantize.outputs import OutputStore
from quantize.tolerance import parse_tolerance

if TYPE_CHECKING:
    from quantize.data import Samples


@dataclass(frozen=True, slots=True)
class GateReport:
    """What it found.

    Attributes:
        command: As typed.
        verdict: On accuracy.
        exit_code: Of the command.
        max_drop: The tolerance.
        min_speedup: The least speed-up asked for, or None.
        evaluations: FP32, then INT8.
        latencies: FP32, INT8; empty where speed was not asked.
        speed: Their comparison, or None.
        machine: Where.
    """

    command: str
    verdict: Verdict
    exit_code: int
    max_drop: str
    min_speedup: float | None
    evaluations: tuple[Evaluation, Evaluation]
    latencies: tuple[Latency, ...]
    speed: Comparison | None
    machine: Machine

    @property
    def too_slow(self) -> bool:
        """Whether the least speed-up is not certain: the interval's lower end decides."""
        if self.min_speedup is None or self.speed is None:
            return False
        return (self.speed.low or 0.0) < self.min_speedup


def run_gate(job: GateJob, scratch: Path, progress: Progress) -> GateReport:
    """Score both models on the same samples, and time them if asked.

    Raises:
        UsageError: The two do not take and return the same tensors.
    """
    tolerance = parse_tolerance(job.limits.max_drop or "")
    fp32, int8 = read_model(job.fp32), read_model(job.int8)
    _refuse_unlike(fp32, int8)
    threads = job.threads or available_threads()
    with _samples(job, fp32, scratch, progress) as samples:
        evaluations = _evaluate(job, (fp32, int8), samples, threads, progress)
        verdict = judge(*evaluations, tolerance, confidence=job.limits.confidence)
        latencies: tuple[Latency, ...] = ()
        speed = None
        if job.min_speedup is not None:
            progress.begin("benchmark")
            latencies, speed = _time(job, (fp32, int8), samples, threads, progress)
    report = GateReport(
        job.command,
        verdict,
        0,
        str(tolerance),
        job.min_speedup,
        evaluations,
        latencies,
        speed,
        describe(),
    )
    return _with_exit_code(report, job)


def _with_exit_code(report: GateReport, job: GateJob) -> GateReport:
    from dataclasses import replace

    code = ExitCode.OK
    if report.verdict.outcome == "refuse" or report.too_slow:
        code = ExitCode.REFUSED
    elif report.verdict.outcome == "inconclusive" and job.limits.inconclusive == "fail":
        code = ExitCode.INCONCLUSIVE
    return replace(report, exit_code=int(code))


@contextmanager
def _samples(job: GateJob, model: Model, scratch: Path, progress: Progress) -> Iterator["Samples"]:
    progress.begin("read")
    data = job.data
    yield read_samples(
        data.source,
        model.inputs,
        scratch=scratch,
        preprocessing=data.preprocessing,
        states={i: o for o, i in data.states.items()},
        limit=data.limit,
    )


def _evaluate(
    job: GateJob, models: tuple[Model, Model], samples: "Samples", threads: int, progress: Progress
) -> tuple[Evaluation, Evaluation]:
    label = samples.label(0) if samples.labelled else None
    metric = resolve_metric(
        job.limits.metric,
        labelled=samples.labelled,
        first_label=label,
        output=job.limits.output,
        decode=job.limits.decode,
    )
    runtime = find_runtime(job.runtime)
    exact = not job.native and (job.runtime == "onnxruntime" or canary(job.runtime) == "exact")
    found = []
    with OutputStore() as kept:
        for i, model in enumerate(models):
            progress.begin("baseline" if i == 0 else "verify")
            settings = Settings(threads=threads, exact=exact and i == 1)
            found.append(
                evaluate(
                    model,
                    samples,
                    metric,
                    Execution(runtime, settings, job.data.states),
                    keep=kept if i == 0 else None,
                    reference=kept if i == 1 else None,
                    watch=_watch(progress),
                )
            )
    return found[0], found[1]


def _watch(progress: Progress) -> Watch:
    def watch(_scores: Sequence[float], done: int, total: int) -> bool:
        progress.step(done, total)
        return False

    return watch


def _time(
    job: GateJob, models: tuple[Model, Model], samples: "Samples", threads: int, progress: Progress
) -> tuple[tuple[Latency, ...], Comparison]:
    variants = [
        Variant(name, model, job.runtime, "cpu", threads, 1)
        for name, model in zip(("FP32", "INT8"), models, strict=True)
    ]
    feeds = [samples[i].feeds for i in range(min(4, len(samples)))]
    *timed, control = measure(
        variants,
        feeds,
        rounds=6,
        seconds_per_round=0.5,
        control=True,
        progress=lambda done, total, _name: progress.step(done, total),
    )
    noise = compare(timed[0], control)
    return tuple(timed), compare(timed[0], timed[1], control=noise)


def _refuse_unlike(fp32: Model, int8: Model) -> None:
    ours, theirs = {i.name for i in fp32.inputs}, {i.name for i in int8.inputs}
    if ours != theirs:
        raise UsageError(
            f"{fp32.path} takes {sorted(ours)}, {int8.path} takes {sorted(theirs)}. "
            "Give two forms of one model."
        )
    ours, theirs = {o.name for o in fp32.outputs}, {o.name for o in int8.outputs}
    if ours != theirs:
        raise UsageError(
            f"{fp32.path} returns {sorted(ours)}, {int8.path} returns {sorted(theirs)}. "
            "Give two forms of one model."
        )


def gate_document(report: GateReport) -> Document:
    """The report as a reader sees it."""
    v = report.verdict
    outcome = "refuse" if report.too_slow else v.outcome
    checks = [Check("accuracy", _CHECKS[v.outcome], v.reason)]
    lines, headline = list(v.suspicious), v.reason
    if report.speed is not None and report.min_speedup is not None:
        low, high = report.speed.low or 0.0, report.speed.high or 0.0
        text = (
            f"INT8 is {report.speed.ratio:.2f} times as fast ({low:.2f} to {high:.2f}), "
            f"at least {report.min_speedup:g} asked."
        )
        checks.append(Check("speed", "fail" if report.too_slow else "pass", text))
        lines += [text, *report.speed.doubts]
        if report.too_slow and v.outcome != "refuse":
            headline = f"Too slow: {text} {v.reason}"
    percent = report.evaluations[0].bounded or report.evaluations[0].binary
    factor, unit = (100.0, "%") if percent else (1.0, "")
    rows = tuple(
        (name, e.runtime, e.arithmetic, f"{e.value * factor:.4g} {unit}".strip(), str(e.nonfinite))
        for name, e in zip(("FP32", "INT8"), report.evaluations, strict=True)
    )
    return Document(
        title="INT8 against FP32",
        verdict=Banner(
            outcome,
            headline,
            tuple(lines),
            (
                KeyFigure(
                    "Drop", f"{v.drop * factor:.3g} {unit}".strip(), f"limit {report.max_drop}"
                ),
                KeyFigure(
                    "At most", f"{v.high * factor:.3g} {unit}".strip(), f"{v.confidence:.0%} sure"
                ),
            ),
        ),
        sections=(
            Section(
                "Accuracy",
                (
                    Paragraph(
                        f"{v.method} on {v.n:,} paired samples: INT8 is worse on {v.losses:,} and "
                        f"better on {v.gains:,}."
                    ),
                    Forest(
                        "Drop against the limit",
                        "Right of the line is too much.",
                        unit,
                        (
                            ForestRow(
                                "INT8", v.drop * factor, v.low * factor, v.high * factor, v.outcome
                            ),
                        ),
                        v.limit * factor,
                        f"limit {report.max_drop}",
                    ),
                    Table(
                        "Scores",
                        (
                            Column("Model"),
                            Column("Runtime"),
                            Column("Arithmetic"),
                            Column(report.evaluations[0].metric, "right"),
                            Column("Non-finite", "right"),
                        ),
                        rows,
                    ),
                ),
            ),
        ),
        checks=tuple(checks),
        footer=(report.command, f"{report.machine.cpu}, {report.machine.isa_class}"),
    )


_CHECKS: dict[str, CheckOutcome] = {
    "pass": "pass",
    "refuse": "fail",
    "inconclusive": "inconclusive",
}
