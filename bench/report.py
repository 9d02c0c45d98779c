"""What one run of `vnnify bench` learned."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.compare import Comparison, compare, interval
from bench.cost import ONE_CALLER, Price, Supply
from bench.forecast import Forecast
from bench.latency import Latency, Variant
from bench.load import Load, optimum
from bench.machine import Machine
from bench.operators import Operators
from bench.others import Other
from bench.peaks import Peaks
from bench.work import Work

GPU = "GPU"
"""Name of the missing row of a run that did not ask for a GPU, or could not have one."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A row that was not measured.

    Attributes:
        name: Of the row.
        reason: Why not.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        """One sentence."""
        return f"{self.name}: not measured: {self.reason.rstrip('.')}."


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What was measured together on one machine, and what was laid beside it.

    Attributes:
        machine: Where.
        latencies: What, the baseline first.
        comparisons: Every other variant against the first one of the same batch and threads, then
            every model against the first model in the same runtime, where that is another pair.
        controls: The first variant of each batch against itself.
        missing: What was left out.
        loads: Throughput against concurrency, and latency at rates.
        works: What each model takes, by digest and batch.
        peaks: What the machine can do at best, by threads.
        operators: Where the time of one inference goes.
        merged: Runs of the same models on other machines.
        earlier: An earlier run on this one.
        prices: Of machines; empty where no cost was asked for.
        utilisation: Share of the time in which there is work.
        p99_ms: What latency has to hold; None for no limit.
        command: As it was typed.
        measured: When it was done: ISO 8601, UTC; empty in reports of older versions.
        forecast: Latencies predicted for another machine, if that was asked for.
    """

    machine: Machine
    latencies: tuple[Latency, ...]
    comparisons: tuple[Comparison, ...]
    controls: tuple[Comparison, ...]
    missing: tuple[Missing, ...]
    loads: tuple[Load, ...] = ()
    works: tuple[Work, ...] = ()
    peaks: tuple[Peaks, ...] = ()
    operators: tuple[Operators, ...] = ()
    merged: tuple[Other, ...] = ()
    earlier: Other | None = None
    prices: tuple[Price, ...] = ()
    utilisation: float = 1.0
    p99_ms: float | None = None
    command: str = ""
    measured: str = ""
    forecast: Forecast | None = None

    def work_of(self, variant: Variant) -> Work | None:
        """What one inference of a variant takes; None if it was not counted."""
        key = (variant.model.sha256, variant.batch)
        return next((w for w in self.works if (w.sha256, w.batch) == key), None)

    def peaks_of(self, variant: Variant) -> Peaks | None:
        """What the machine can do for a variant; None for GPUs, and where it was not measured."""
        if variant.device != "cpu":
            return None
        return next((p for p in self.peaks if p.threads == variant.threads), None)


def assemble(
    machine: Machine,
    latencies: Sequence[Latency],
    controls: Sequence[Latency],
    missing: Sequence[Missing],
) -> BenchReport:
    """Compare what `measure` timed.

    Args:
        machine: Where it was timed.
        latencies: The variants, the baseline first.
        controls: The first variant of each batch, timed again.
        missing: What was left out and why.
    """
    firsts = {x.variant.batch: x for x in reversed(latencies)}
    noise = {c.variant.batch: compare(firsts[c.variant.batch], c) for c in controls}
    pairs: list[tuple[Latency, Latency]] = []
    for latency in latencies:
        baseline = _baseline(latency, latencies)
        if baseline is not latency:
            pairs.append((baseline, latency))
    for latency in latencies:
        first = _first_like(latency, latencies)
        if first not in (_baseline(latency, latencies), latency):
            pairs.append((first, latency))
    return BenchReport(
        machine=machine,
        latencies=tuple(latencies),
        comparisons=tuple(compare(a, b, control=noise.get(b.variant.batch)) for a, b in pairs),
        controls=tuple(noise.values()),
        missing=tuple(missing),
    )


def _baseline(latency: Latency, all_: Sequence[Latency]) -> Latency:
    """The first variant of the same batch, with as many threads if it runs on the same device."""
    ours = latency.variant
    return next(
        x
        for x in all_
        if x.variant.batch == ours.batch
        and (x.variant.device != ours.device or x.variant.threads == ours.threads)
    )


def _first_like(latency: Latency, all_: Sequence[Latency]) -> Latency:
    """The first variant that differs in its model alone."""

    def where(v: Variant) -> tuple[object, ...]:
        return v.runtime, v.device, v.batch, v.threads, v.precision, v.copies

    return next(x for x in all_ if where(x.variant) == where(latency.variant))


def with_names(report: BenchReport, names: dict[Path, str]) -> BenchReport:
    """Models at the paths that the user gave; copies and exported programs are gone afterwards."""

    def shown(variant: Variant) -> Variant:
        path = Path(names.get(variant.model.path, str(variant.model.path)))
        return replace(variant, model=replace(variant.model, path=path))

    return replace(
        report,
        latencies=tuple(replace(x, variant=shown(x.variant)) for x in report.latencies),
        loads=tuple(replace(x, variant=shown(x.variant)) for x in report.loads),
        operators=tuple(replace(x, variant=shown(x.variant)) for x in report.operators),
    )


def supplies(report: BenchReport) -> tuple[Supply, ...]:
    """What every variant delivers at best, here and on the machines that were merged.

    Under a latency target that is the highest throughput that was seen to hold it. Without any
    load it is what one caller gets who waits for each answer.
    """
    runs = [(False, report.machine, report.latencies, report.loads)]
    runs += [(True, o.machine, o.latencies, o.loads) for o in report.merged]
    found = []
    for elsewhere, machine, latencies, loads in runs:
        for latency in latencies:
            if not latency.variant.copies:
                continue  # What a user gets has to come and go.
            gpus = machine.gpus if latency.variant.device == "cuda" else ()
            place = f" ({', '.join(gpus) or machine.cpu})" if elsewhere else ""
            best = _best_supply(latency, loads, place, report.p99_ms)
            if best is not None:
                found.append(replace(best, cpu=machine.cpu))
    return tuple(found)


def _best_supply(
    latency: Latency, loads: Sequence[Load], place: str, p99_ms: float | None
) -> Supply | None:
    ours = latency.variant
    name = ours.name + place
    same = [x for x in loads if x.variant.model == ours.model and _is_same(x.variant, ours)]
    best = optimum(same, p99_ms)
    if best is not None:
        asked = "" if best.offered_per_second is None else f" at {best.offered_per_second:.4g}/s"
        low, high = _range(best.rates)
        return Supply(
            name, ours.device, best.per_second, best.p99_ms, best.shape + asked, low=low, high=high
        )
    if same or (p99_ms is not None and (latency.p99_ms is None or latency.p99_ms > p99_ms)):
        return None
    low, high = _range([ours.batch * 1e9 / r.median_ns for r in latency.rounds])
    return Supply(
        name, ours.device, latency.per_second, latency.p99_ms, ONE_CALLER, low=low, high=high
    )


def _range(rates: Sequence[float]) -> tuple[float | None, float | None]:
    """Interval of a throughput over processes."""
    return interval([math.log(r) for r in rates])


def _is_same(a: Variant, b: Variant) -> bool:
    return (a.runtime, a.device, a.batch, a.precision) == (
        b.runtime,
        b.device,
        b.batch,
        b.precision,
    )
