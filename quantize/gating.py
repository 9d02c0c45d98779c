"""`vnnify gate`: two existing models, one verdict per runtime. Nothing is quantized."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.compare import Comparison, compare
from bench.errors import ExitCode, UnsupportedError, UsageError
from bench.latency import Latency, Variant, measure, with_control
from bench.machine import canary, describe, granted_threads
from bench.models import Model, TensorSpec, read_model
from bench.render import Check
from bench.runtimes import RUNTIMES, Settings, find_runtime
from quantize.checks import (
    accuracy_check,
    finite_check,
    plausible_check,
    size_checks,
    slices_check,
    speed_check,
)
from quantize.coverage import coverage_of
from quantize.data import Samples
from quantize.evaluate import Evaluation, Execution, Scoring, scoring
from quantize.gate import judge
from quantize.gate_report import GateReport, Judgement
from quantize.job import GateJob, Limits, Progress, flips_file
from quantize.lock import Lock, entry_of, lock_checks, read_lock
from quantize.metric import Metric
from quantize.metrics import compares_texts
from quantize.outputs import OutputStore
from quantize.served import FEW, Few, Served, serve, threads_check, unscored
from quantize.slices import divide, look_into, slice_limit
from quantize.sources.parity import repeats
from quantize.splitting import refuse_overlap
from quantize.starting import chosen_metric, read_source
from quantize.tolerance import Tolerance, parse_tolerance

_ROUNDS = 6
_ROUND_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class _Gate:
    """What every runtime's verdict of one run shares."""

    job: GateJob
    fp32: Model
    int8: Model
    samples: Samples
    metric: Metric
    tolerance: Tolerance
    threads: int
    progress: Progress


def run_gate(job: GateJob, scratch: Path, progress: Progress) -> GateReport:
    """Score both models on the same samples, and time them if asked.

    Raises:
        UsageError: The two do not take and return the same tensors.
        InputError: Samples that calibrated are among those that judge, or FP32 is broken.
        UnsupportedError: A model is not deterministic.
    """
    tolerance = parse_tolerance(job.limits.max_drop or "")
    old = read_lock(job.lock) if job.lock is not None else None
    fp32, int8 = read_model(job.fp32), read_model(job.int8)
    _refuse_unfit_runtimes(job, (fp32, int8))
    inputs = _common_inputs(fp32, int8)
    progress.begin("read")
    texts = compares_texts(job.limits.metric)
    samples = read_source(job.data, job.data.source, inputs, scratch, texts=texts)
    if job.data.calibration is not None:
        calibration = read_source(job.data, job.data.calibration, inputs, scratch, texts=texts)
        refuse_overlap(calibration, samples)
    metric = chosen_metric(job.limits, samples)
    threads = granted_threads(job.threads)
    gate = _Gate(job, fp32, int8, samples, metric, tolerance, threads, progress)
    judged = tuple(_judged(gate, runtime, scratch) for runtime in job.runtimes)
    latencies: tuple[Latency, ...] = ()
    if job.timed or job.bounds.min_speedup is not None:
        progress.begin("benchmark")
        latencies, judged = _timed(gate, judged)
    report = GateReport(
        command=job.command,
        exit_code=0,
        metric=metric.name,
        max_drop=str(tolerance),
        judged=judged,
        latencies=latencies,
        fp32=fp32,
        int8=int8,
        coverage=coverage_of(int8.path),
        data_sha256=samples.digest,
        calibration_apart=job.data.calibration is not None,
        inconclusive=job.limits.inconclusive,
        checks=(),
        machine=describe(),
        notes=tuple(n for j in judged if (n := unscored(j.served, metric)) is not None),
    )
    checks = _checks(report, job)
    if old is not None:
        checks += lock_checks(old, lock_of(report), {j.runtime: j.speed for j in judged})
    return replace(report, checks=checks, exit_code=int(_exit_code(checks, job.limits)))


def lock_of(report: GateReport) -> Lock:
    """What a baseline keeps of a report."""
    verdict = report.verdict
    return Lock(
        data_sha256=report.data_sha256,
        metric=report.metric,
        samples=verdict.n,
        scale=verdict.scale,
        size_bytes=report.int8.size_bytes,
        int8_layers=report.coverage.int8,
        layers=report.coverage.layers,
        entries=tuple(
            entry_of(j.verdict, j.speed, j.runtime, report.machine.cpu) for j in report.judged
        ),
    )


def _checks(report: GateReport, job: GateJob) -> tuple[Check, ...]:
    several = len(report.judged) > 1
    checks: list[Check] = []
    for j in report.judged:
        where = j.runtime if several else ""
        checks.append(accuracy_check(j.verdict, where))
        checks.append(threads_check(j.served, where))
        if j.slice_limit is not None:
            checks.append(
                slices_check(j.slices, j.small_slices, j.slice_limit, j.evaluations[0], where)
            )
        if j.speed is not None and job.bounds.min_speedup is not None:
            checks.append(speed_check(j.speed, job.bounds.min_speedup, where))
    checks.append(finite_check([e for j in report.judged for e in j.evaluations]))
    checks.append(Check("deterministic", "pass", "Two runs on one sample give the same outputs."))
    checks.append(plausible_check([s for j in report.judged for s in j.verdict.suspicious]))
    if report.calibration_apart:
        text = "No sample that calibrated is among those that judge."
        checks.append(Check("calibration apart", "pass", text))
    checks += size_checks(job.bounds, report.fp32.size_bytes, report.int8.size_bytes)
    return tuple(checks)


def _exit_code(checks: Sequence[Check], limits: Limits) -> ExitCode:
    outcomes = {c.outcome for c in checks}
    if "fail" in outcomes:
        return ExitCode.REFUSED
    if "inconclusive" in outcomes and limits.inconclusive == "fail":
        return ExitCode.INCONCLUSIVE
    return ExitCode.OK


def _judged(gate: _Gate, runtime: str, scratch: Path) -> Judgement:
    baseline, candidate, served = _evaluate(gate, runtime)
    limits = gate.job.limits
    division = divide(limits, gate.samples, baseline.count)
    allowed = slice_limit(limits, baseline)
    verdict = judge(
        baseline,
        candidate,
        gate.tolerance,
        confidence=limits.confidence,
        units=division.units,
    )
    looked = look_into(
        (baseline, candidate),
        gate.samples,
        division,
        verdict.limit if allowed is None else allowed,
        limits.confidence,
        flips_file(scratch, runtime) if gate.job.flips else None,
    )
    return Judgement(
        runtime=runtime,
        evaluations=(baseline, candidate),
        verdict=verdict,
        slices=looked.slices,
        small_slices=looked.small,
        slice_limit=allowed,
        flips=looked.flips,
        speed=None,
        served=served,
    )


def _evaluate(gate: _Gate, runtime: str) -> tuple[Evaluation, Evaluation, Served]:
    """Both models on every sample, and INT8 on a few with one thread and with all."""
    exact = not gate.job.native and (runtime == "onnxruntime" or canary(runtime) == "exact")
    feeds = [gate.samples[i].feeds for i in range(min(FEW, len(gate.samples)))]
    with OutputStore() as kept:
        gate.progress.begin("baseline")
        with _scoring(gate, gate.fp32, _execution(gate, runtime), keep=kept) as scores:
            baseline = _all(gate, scores)
            few = Few(feeds, [scores.session.run(f) for f in feeds])
        gate.progress.begin("verify")
        how = _execution(gate, runtime, exact=exact)
        with _scoring(gate, gate.int8, how, reference=kept) as scores:
            candidate = _all(gate, scores)
            few.see(scores)
    return baseline, candidate, serve(few, gate.int8, runtime, gate.threads)


def _execution(gate: _Gate, runtime: str, *, exact: bool = False) -> Execution:
    settings = Settings(threads=gate.threads, exact=exact)
    return Execution(find_runtime(runtime), settings, gate.job.data.states)


@contextmanager
def _scoring(
    gate: _Gate, model: Model, how: Execution, **outputs: OutputStore
) -> Iterator[Scoring]:
    with scoring(model, gate.samples, gate.metric, how, **outputs) as scores:
        if not repeats(scores.session.run, gate.samples[0].feeds):
            raise UnsupportedError(
                f"{model.path}: two runs on one sample give different outputs in "
                f"{how.runtime.name}, so nothing can be compared. Export it in evaluation mode "
                "(dropout and noise off)."
            )
        yield scores


def _all(gate: _Gate, scores: Scoring) -> Evaluation:
    def watch(_scores: Sequence[float], done: int, total: int) -> bool:
        gate.progress.step(done, total)
        return False

    scores.run_to(len(gate.samples), watch)
    return scores.evaluation()


def _timed(
    gate: _Gate, judged: tuple[Judgement, ...]
) -> tuple[tuple[Latency, ...], tuple[Judgement, ...]]:
    """Time both models in every runtime, taking turns; each INT8 against FP32 where it runs."""
    variants = [
        Variant(_variant(kind, j.runtime, judged), model, j.runtime, "cpu", gate.threads, 1)
        for j in judged
        for kind, model in (("FP32", gate.fp32), ("INT8", gate.int8))
    ]
    feeds = [gate.samples[i].feeds for i in range(min(4, len(gate.samples)))]
    *timed, control = measure(
        with_control(variants),
        feeds,
        rounds=_ROUNDS,
        seconds_per_round=_ROUND_SECONDS,
        progress=lambda done, total, _name: gate.progress.step(done, total),
    )
    noise = compare(timed[0], control)
    speeds: list[Comparison] = [
        compare(timed[2 * i], timed[2 * i + 1], control=noise) for i in range(len(judged))
    ]
    return tuple(timed), tuple(replace(j, speed=s) for j, s in zip(judged, speeds, strict=True))


def _variant(kind: str, runtime: str, judged: Sequence[Judgement]) -> str:
    return f"{kind} {runtime}" if len(judged) > 1 else kind


def _refuse_unfit_runtimes(job: GateJob, models: Sequence[Model]) -> None:
    for name in job.runtimes:
        for model in models:
            if model.path.suffix not in RUNTIMES[name].suffixes:
                fit = [n for n, r in RUNTIMES.items() if model.path.suffix in r.suffixes]
                raise UsageError(
                    f"--runtime {name}: opens {', '.join(RUNTIMES[name].suffixes)}, and "
                    f"{model.path} is none. For it there is {', '.join(fit)}."
                )


def _common_inputs(fp32: Model, int8: Model) -> tuple[TensorSpec, ...]:
    """What both models take: sizes that one of them fixes hold for both."""
    for verb, ours, theirs in (
        ("takes", fp32.inputs, int8.inputs),
        ("returns", fp32.outputs, int8.outputs),
    ):
        if {t.name for t in ours} != {t.name for t in theirs}:
            raise UsageError(
                f"{fp32.path} {verb} {_listed(ours)}, {int8.path} {verb} {_listed(theirs)}. Give "
                "two forms of one model, with the same names; a renamed tensor is named back in "
                "the tool that made it."
            )
    known = {t.name: t for t in int8.inputs}
    return tuple(_common(spec, known[spec.name], (fp32, int8)) for spec in fp32.inputs)


def _common(ours: TensorSpec, theirs: TensorSpec, models: tuple[Model, Model]) -> TensorSpec:
    if ours.shape is None or theirs.shape is None:
        shape = theirs.shape if ours.shape is None else ours.shape
        fits = True
    else:
        fits = len(ours.shape) == len(theirs.shape)
        pairs = list(zip(ours.shape, theirs.shape, strict=False))
        fits &= all(a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in pairs)
        shape = tuple(b if isinstance(b, int) else a for a, b in pairs)
    if ours.dtype != theirs.dtype or not fits:
        raise UsageError(
            f"{models[0].path} takes {ours}, {models[1].path} takes {theirs}: no sample fits both. "
            "Give two forms of one model."
        )
    return TensorSpec(ours.name, ours.dtype, shape)


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(map(str, specs))
