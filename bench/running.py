"""The order of one `vnnify bench`: models, what can run, latencies, loads, limits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from bench.errors import VnnifyError
from bench.feeds import feeds_digest, read_feeds, refuse_fixed_batch
from bench.forecast import Forecast, forecast
from bench.inputs import parse_input, with_sizes
from bench.latency import (
    CutShort,
    Latency,
    Progress,
    Variant,
    measure,
    refusal,
    with_control,
)
from bench.load import Load, measure_load, with_time_left
from bench.machine import Machine, granted_threads
from bench.models import Feeds, Model, synthetic_feeds
from bench.operators import Operators, measure_operators
from bench.others import Planned
from bench.peaks import Peaks, machine_peaks
from bench.planning import (
    Exporter,
    Plan,
    named,
    open_models,
    refuse_unknown,
    threads_text,
    what_runs,
)
from bench.report import BenchReport, Missing, assemble, with_names
from bench.work import Work, count_work

_SYNTHETIC = 8

Refuse: TypeAlias = Callable[[Machine, Sequence[Planned]], None]
"""Told what is going to be measured; raises where that could not be laid beside other runs."""


def run(
    plan: Plan,
    machine: Machine,
    scratch: Path,
    *,
    exporter: Exporter | None,
    progress: Progress,
    refuse: Refuse | None = None,
) -> BenchReport:
    """Measure everything that a plan asks for and that can run here.

    Ctrl-C or SIGTERM ends it with what was measured so far, if that is a whole round of something.

    Args:
        plan: What.
        machine: Where.
        scratch: An empty folder.
        exporter: Makes programs of models that are no files to run.
        progress: Told before every process.
        refuse: Told of every row before the first is measured.

    Raises:
        UsageError: The plan contradicts itself.
        UnfitError: Nothing of it can run here.
        VnnifyError: A model or the data is unusable.
        KeyboardInterrupt: Nothing was measured yet.
    """
    refuse_unknown(plan)
    plan = replace(plan, threads=tuple(dict.fromkeys(granted_threads(t) for t in plan.threads)))
    models = open_models(plan, scratch, exporter)
    for batch in plan.batches:
        refuse_fixed_batch(models[0], batch)
    possible, missing = what_runs(plan, models, machine)
    if refuse is not None:
        refuse(machine, _planned(plan, models[0], possible))
    found = _Found(missing=missing)
    try:
        for batch in plan.batches:
            _measure_batch(plan, models, possible, batch, machine, found, progress)
        if plan.peaks:
            found.peaks = _peaks(plan, machine, progress)
    except KeyboardInterrupt:
        if not found.latencies:
            raise
        found.missing.append(Missing("the rest", "interrupted"))
    report = replace(
        assemble(machine, found.latencies, found.controls, found.missing),
        loads=tuple(found.loads),
        works=tuple(found.works),
        peaks=found.peaks,
        operators=found.operators,
        forecast=found.forecast,
    )
    return with_names(report, dict(zip((m.path for m in models), plan.models, strict=True)))


@dataclass(slots=True)
class _Found:
    """What was measured so far; it survives an interruption."""

    missing: list[Missing]
    latencies: list[Latency] = field(default_factory=list)
    controls: list[Latency] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)
    operators: tuple[Operators, ...] = ()
    peaks: tuple[Peaks, ...] = ()
    forecast: Forecast | None = None


def _measure_batch(
    plan: Plan,
    models: Sequence[Model],
    possible: Sequence[Variant],
    batch: int,
    machine: Machine,
    found: _Found,
    progress: Progress,
) -> None:
    """Everything about one batch size, added to `found` step by step."""
    feeds = _feeds(models[0], plan, batch)
    variants = [replace(v, batch=batch) for v in possible]
    variants, failed = _runnable(variants, feeds, progress)
    found.missing += [m for m in failed if m not in found.missing]
    variants = named(variants, plan)
    interrupted = False
    try:
        measured = measure(
            with_control(variants),
            feeds,
            rounds=plan.rounds,
            seconds_per_round=plan.seconds,
            seed=plan.seed,
            progress=progress,
        )
    except CutShort as e:
        measured, interrupted = e.latencies, True
    found.latencies += measured[:-1]
    found.controls.append(measured[-1])
    found.works += [_work(m, feeds[0], batch) for m in models if m.path.suffix == ".onnx"]
    if interrupted:
        raise KeyboardInterrupt
    found.loads += _loads(plan, measured[:-1], feeds, machine, progress)
    if batch == plan.batches[0]:
        found.operators = _operators(plan, variants, feeds, found.missing, progress)
        if plan.predict_for is not None:
            rows = measured[:-1]
            found.forecast = forecast(plan.predict_for, machine, rows, feeds[0], progress)


def _planned(plan: Plan, model: Model, possible: Sequence[Variant]) -> list[Planned]:
    """Every row, with the digest of its inputs."""
    rows = []
    for batch in plan.batches:
        digest = feeds_digest(_feeds(model, plan, batch))
        variants = named([replace(v, batch=batch) for v in possible], plan)
        rows += [Planned(v, digest) for v in variants]
    return rows


def _runnable(
    variants: Sequence[Variant], feeds: Sequence[Feeds], progress: Progress
) -> tuple[list[Variant], list[Missing]]:
    """Those that really run, seen by trying each once, where there are several."""
    if len(variants) == 1:
        return list(variants), []
    errors: dict[str, VnnifyError] = {}
    for number, variant in enumerate(variants):
        progress(number, len(variants), f"{variant.name} (trying)")
        error = refusal(variant, feeds)
        if error is not None:
            errors[variant.name] = error
    if len(errors) == len(variants):
        raise next(iter(errors.values()))
    missing = [Missing(name, str(error)) for name, error in errors.items()]
    return [v for v in variants if v.name not in errors], missing


def _loads(
    plan: Plan,
    measured: Sequence[Latency],
    feeds: Sequence[Feeds],
    machine: Machine,
    progress: Progress,
) -> tuple[Load, ...]:
    if not plan.demand.wanted:
        return ()
    # Streams share out the threads themselves.
    chosen = [x for x in measured if x.variant.copies and x.variant.threads == plan.threads[0]]
    if not chosen:
        return ()
    batch = chosen[0].variant.batch

    def longest_s(x: Latency, size: int) -> float:
        # A batch twice as large is taken to last twice as long.
        per_second = 1000 / x.median_ms * batch / size
        return plan.demand.longest_s(machine.threads, plan.seconds, per_second)

    later = plan.batches[plan.batches.index(batch) + 1 :]
    bounds = [longest_s(x, batch) for x in chosen]
    bounds.append(sum(longest_s(x, size) for x in chosen for size in later))
    return measure_load(
        [x.variant for x in chosen],
        feeds,
        plan.demand,
        granted=machine.threads,
        seconds=plan.seconds,
        seed=plan.seed,
        progress=with_time_left(progress, bounds, plan.demand.most_runs(machine.threads)),
    )


def _operators(
    plan: Plan,
    variants: Sequence[Variant],
    feeds: Sequence[Feeds],
    missing: list[Missing],
    progress: Progress,
) -> tuple[Operators, ...]:
    """Of each variant with the first number of threads; what fails is added to `missing`."""
    if not plan.operators:
        return ()
    return measure_operators(
        [v for v in variants if v.threads == plan.threads[0]],
        feeds,
        seconds=plan.seconds,
        failed=lambda v, e: missing.append(Missing(f"operators of {v.name}", str(e))),
        progress=progress,
    )


def _work(model: Model, feeds: Feeds, batch: int) -> Work:
    return count_work(model.path, feeds, sha256=model.sha256, batch=batch)


def _peaks(plan: Plan, machine: Machine, progress: Progress) -> tuple[Peaks, ...]:
    found = []
    for number, threads in enumerate(plan.threads):
        progress(number, len(plan.threads), f"the machine's limits, {threads_text(threads)}")
        found.append(machine_peaks(machine, threads))
    return tuple(found)


def _feeds(model: Model, plan: Plan, batch: int) -> list[Feeds]:
    if plan.data is not None:
        return read_feeds(plan.data, model, batch=batch)
    if model.path.suffix == ".onnx":  # Sizes of others were asked for when they were exported.
        model = with_sizes(model, [parse_input(i) for i in plan.inputs])
    return synthetic_feeds(model, batch=batch, seed=plan.seed, count=_SYNTHETIC)
