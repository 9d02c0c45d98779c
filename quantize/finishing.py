"""What one run comes to: the chosen model in its place, its recipe, and the report of everything.

Results of the stages ─▶ conclude ─▶ `model.onnx` or `refused/model.onnx`, `recipe.toml` ─▶ Report
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.forecast import Forecast
from bench.kernels import TELLING
from bench.latency import Latency
from bench.machine import describe
from bench.models import Model
from bench.render import Check
from bench.stages import Stage
from quantize.anchors import find_anchors
from quantize.candidates import Found, Judged
from quantize.checks import size_checks, slices_check, speed_check
from quantize.coverage import Coverage, covered
from quantize.drift import Drift
from quantize.evaluate import Evaluation
from quantize.findings import find_causes
from quantize.graphs import light, opened
from quantize.inspection import Inspection, Means, inspect_model
from quantize.job import Job
from quantize.keeping import move_model, place_model, recipe_of
from quantize.lock import Lock, lock_checks, lock_of
from quantize.looks import FIRST
from quantize.proof.comparing import Proof
from quantize.report import Data, Report, TrialRow, beside_fp32, conclude, served_speed
from quantize.served import Served, threads_check
from quantize.slices import Looked
from quantize.speeds import Speeds, speeds_of
from quantize.speeds import to_toml as speeds_toml
from quantize.timing import Timing
from quantize.tolerance import Tolerance
from quantize.trials import Workbench

_PROBES = 2


@dataclass(frozen=True, slots=True)
class Results:
    """What the stages of one job found, for its report.

    Attributes:
        source: The converted model.
        fp32: The prepared one.
        bench: What all candidates shared.
        found: What the search learned.
        best: The candidate to ship or refuse, in the runtime that serves it.
        metric: Name.
        tolerance: How much worse INT8 may be.
        data: Which samples were used for what.
        evaluations: FP32 first, then INT8 where it is served, then elsewhere.
        timing: The benchmark.
        proofs: On emulated CPUs, if they were asked for.
        forecast: Latencies predicted for another machine, if that was asked for.
        drift: Of a replayed recipe.
        speeds: What of a replayed recipe holds here, and was not timed again.
        first_pass_s: From the start of the command to the first model that passed.
        first_pass_samples: On how many samples it did.
        looked: How each class and slice fares, and what changed.
        slice_limit: What they are held against; None where nothing was asked.
        lock: The committed baseline to compare with.
        served: What each runtime makes of the model with one thread and with all.
    """

    source: Model
    fp32: Model
    bench: Workbench
    found: Found
    best: Judged
    metric: str
    tolerance: Tolerance
    data: Data
    evaluations: tuple[Evaluation, ...]
    timing: Timing
    proofs: tuple[Proof, ...] = ()
    looked: Looked = field(default_factory=Looked)
    slice_limit: float | None = None
    lock: Lock | None = None
    drift: tuple[Drift, ...] = ()
    speeds: Speeds | None = None
    first_pass_s: float | None = None
    first_pass_samples: int | None = None
    forecast: Forecast | None = None
    served: tuple[Served, ...] = ()


def finish(
    job: Job, staging: Path, results: Results, stages: Sequence[Stage], notes: Sequence[str]
) -> Report:
    """Put the model and its recipe in their places, and report.

    Args:
        job: What was asked.
        staging: The folder to publish.
        results: Of all stages.
        stages: What each cost.
        notes: What a user may want to know.
    """
    best, fp32 = results.best, results.fp32
    made = best.trial.quantized
    further = further_checks(job, results)
    conclusion = conclude(
        best.verdict,
        best.runtime,
        results.timing.comparisons,
        job.limits.inconclusive,
        need_speed=job.limits.need_speed,
        proofs=results.proofs,
        further=further,
    )
    quantized = place_model(made, staging if conclusion.ships else staging / "refused")
    text = recipe_of(made, best.runtime, results.bench, results.data.calibration_sha256)
    speeds = results.speeds or speeds_of(results.timing, best.runtime, results.bench)
    text += f"\n{speeds_toml(speeds)}" if speeds is not None else ""
    (quantized.path.parent / "recipe.toml").write_text(text, encoding="utf-8")
    with opened(fp32.path) as model:
        _, left = find_anchors(model)
    inside = _look_inside(job, results, quantized, left, staging / "scratch")
    layers = covered(inside.layers)
    # The one moves there when nothing reads it, or what names its weights, any more.
    models = (replace(fp32, path=Path(fp32.path.name)), _relative(quantized, staging))
    named = dict(zip((fp32.sha256, made.model.sha256), models, strict=True))
    report = Report(
        command=job.command,
        source=job.model.text,
        source_sha256=results.source.sha256,
        fp32=models[0],
        int8=models[1],
        conclusion=conclusion,
        verdict=best.verdict,
        metric=results.metric,
        max_drop=str(results.tolerance),
        served_by=best.runtime,
        target=made.recipe.target,
        recipe=made.recipe,
        layers=made.layers,
        left=left,
        coverage=str(layers),
        data=results.data,
        evaluations=results.evaluations,
        slices=results.looked.slices,
        flips=results.looked.flips,
        slice_limit=results.slice_limit,
        further=further,
        latencies=tuple(_published(x, named) for x in results.timing.latencies),
        comparisons=results.timing.comparisons,
        control=results.timing.control,
        trials=_rows(results.found, layers.layers),
        stages=tuple(stages),
        machine=describe(),
        notes=tuple(dict.fromkeys(notes)),
        proofs=results.proofs,
        served=results.served,
        drift=results.drift,
        remembered=results.speeds,
        forecast=results.forecast,
        findings=find_causes(results.bench, made),
        fp32_ms=results.found.fp32_ms,
        first_pass_s=results.first_pass_s,
        first_pass_samples=results.first_pass_samples,
        inspection=replace(inside, model=models[1]),
    )
    move_model(fp32, staging)
    return report


def further_checks(job: Job, results: Results) -> tuple[Check, ...]:
    """What was asked besides accuracy and being no slower: slices, speed, size, the baseline."""
    best, bounds = results.best, job.bounds
    int8 = best.trial.quantized.model
    checks = [threads_check(s) for s in results.served if s.runtime == best.runtime]
    if results.slice_limit is not None:
        looked, limit = results.looked, results.slice_limit
        fp32, alone = results.evaluations[0], best.verdict.share < FIRST
        checks.append(slices_check(looked.slices, looked.small, limit, fp32, alone=alone))
    if bounds.min_speedup is not None:
        speed = served_speed(results.timing.comparisons, best.runtime)
        checks.append(speed_check(speed, bounds.min_speedup))
    checks += size_checks(bounds, results.fp32.size_bytes, int8.size_bytes)
    if results.lock is not None:
        beside = beside_fp32(results.timing.comparisons, best.runtime)
        checks += lock_checks(results.lock, _lock(results), {best.runtime: beside})
    return tuple(checks)


def lock_of_report(report: Report, folder: Path) -> Lock:
    """What a baseline keeps of a run whose files lie in `folder`."""
    return lock_of(
        report.verdict,
        report.data.evaluation_sha256,
        report.metric,
        replace(report.int8, path=folder / report.int8.path),
        beside_fp32(report.comparisons, report.served_by),
        report.served_by,
    )


def _lock(results: Results) -> Lock:
    best = results.best
    return lock_of(
        best.verdict,
        results.data.evaluation_sha256,
        results.metric,
        best.trial.quantized.model,
        beside_fp32(results.timing.comparisons, best.runtime),
        best.runtime,
    )


def _look_inside(
    job: Job, results: Results, model: Model, left: dict[str, str], scratch: Path
) -> Inspection:
    """Which kernels run in the INT8 model, and what would saturate on a few held-out samples."""
    bench, best = results.bench, results.best
    # A short replay asks whether INT8 is in INT8 kernels where it is served, and no more.
    short = job.effort.recipe is not None and not job.effort.full
    runtimes = (best.runtime,) if short else bench.runtimes
    source = None
    if not short:
        start = bench.start(best.trial.quantized.recipe)
        source = light(start.model, scratch).path
    read = {r: bench.few.kernels(model, r, bench.threads) for r in runtimes if short}
    means = Means(
        runtimes=tuple(r for r in runtimes if r in TELLING),
        threads=bench.threads,
        scratch=scratch,
        samples=bench.probes[:_PROBES],
        timing=bench.probes[0] if bench.probes and not short else None,
        fp32=source,
        known={r: kernels for r, kernels in read.items() if kernels is not None},
    )
    layers = best.trial.quantized.layers
    told = {x.name: x.reason for x in layers if x.reason is not None}
    return inspect_model(model, means, command=job.command, told=left | told)


def fastest(served: tuple[Judged, ...], latencies: tuple[Latency, ...]) -> Judged:
    """Of the runtimes with the best verdict, the one that the benchmark found fastest."""
    ms = {x.variant.name: x.median_ms for x in latencies}
    level = min(j.rank[0] for j in served)
    level_best = [j for j in served if j.rank[0] == level]
    return min(level_best, key=lambda j: ms.get(f"INT8 {j.runtime}", float("inf")))


def _relative(model: Model, folder: Path) -> Model:
    return replace(model, path=model.path.relative_to(folder))


def _published(latency: Latency, models: Mapping[str, Model]) -> Latency:
    """The same, its model named by where it lies when the scratch folder is gone.

    Args:
        latency: Measured on a file there.
        models: The published ones, by the digest that they had there; a model whose weights lie
            beside it names their file, and so has another digest now.
    """
    model = models[latency.variant.model.sha256]
    return replace(latency, variant=replace(latency.variant, model=model))


def _rows(found: Found, layers: int) -> tuple[TrialRow, ...]:
    verdicts = {id(j.trial): j for j in found.judged}
    rows = []
    for trial in found.trials:
        judged = verdicts.get(id(trial))
        rows.append(
            TrialRow(
                name=trial.name,
                recipe=trial.quantized.recipe.name,
                noise_db=trial.noise_db,
                latency_ms=trial.latency_ms,
                size_bytes=trial.quantized.model.size_bytes,
                coverage=str(Coverage(trial.quantized.int8_layers, layers)),
                runtime=judged.runtime if judged else None,
                value=judged.evaluation.value if judged else None,
                drop=judged.verdict.drop if judged else None,
                outcome=judged.verdict.outcome if judged else "not evaluated",
                seconds=trial.seconds,
                predicted_db=trial.predicted_db,
                samples=judged.evaluation.count if judged else 0,
                evaluation_seconds=judged.evaluation.seconds if judged else 0.0,
            )
        )
    return tuple(rows)
