"""The figures of a benchmark: what each shows, as plain data.

One look everywhere: the baseline's model is hatched, or orange; the others are solid, or blue; what
ran on a GPU is grey. Figures are drawn per batch size, so that none holds too many curves.
"""

from collections.abc import Iterator, Sequence

from bench.cost import Cost
from bench.kernels import Kernels
from bench.latency import Latency, Variant
from bench.operators import Operators, by_family, matched_layers
from bench.peaks import Peaks
from bench.render import (
    Bar,
    Bars,
    Curve,
    Ecdf,
    Lines,
    Pair,
    Pairs,
    Point,
    Roof,
    Roofline,
    Series,
    Tone,
)
from bench.report import BenchReport

_ROWS = 12
_LEAST_SHARE = 0.005
"""Of an inference: operators that take less are left out."""


def tone_of(report: BenchReport, variant: Variant) -> Tone:
    """What a variant stands for in every figure."""
    if variant.device != "cpu":
        return "plain"
    first = report.latencies[0].variant.model.sha256
    return "baseline" if variant.model.sha256 == first else "candidate"


def batches_of(report: BenchReport) -> tuple[int, ...]:
    """Batch sizes in the order in which they were measured."""
    return tuple(dict.fromkeys(x.variant.batch for x in report.latencies))


def short_name(variant: Variant) -> str:
    """A variant's name without its batch size, for figures that show one."""
    return variant.name.removesuffix(f", batch {variant.batch}")


def latency_bars(report: BenchReport, batch: int) -> Bars:
    """Median latencies of one batch size, with those that were merged."""
    rows = [("", x) for x in _with_batch(report.latencies, batch)]
    for other in report.merged:
        place = f" ({', '.join(other.machine.gpus) or other.machine.cpu})"
        rows += [(place, x) for x in _with_batch(other.latencies, batch)]
    bars = tuple(
        Bar(
            short_name(x.variant) + place,
            x.median_ms,
            min(r.median_ns for r in x.rounds) / 1e6,
            max(r.median_ns for r in x.rounds) / 1e6,
            tone_of(report, x.variant),
        )
        for place, x in rows
    )
    about = "Shorter is faster; whiskers span the rounds. Hatched: the baseline's model."
    if any(x.variant.device != "cpu" for _, x in rows):
        about += " Grey: on a GPU."
    return Bars(f"Median latency{_at(report, batch)}", about, "ms", bars)


def speed_bars(report: BenchReport, batch: int) -> Bars | None:
    """Ratios against the baseline with their intervals; None where there is nothing to compare."""
    variants = {x.variant.name: x.variant for x in _with_batch(report.latencies, batch)}
    first = next(iter(variants), "")
    found = [c for c in report.comparisons if c.candidate in variants and c.baseline == first]
    if not found:
        return None
    bars = tuple(
        Bar(
            short_name(variants[c.candidate]),
            c.ratio,
            c.low,
            c.high,
            tone_of(report, variants[c.candidate]),
        )
        for c in found
    )
    return Bars(
        f"Speed against {short_name(variants[first])}{_at(report, batch)}",
        "Longer is faster; whiskers are 95 % intervals over rounds. One that reaches the dashed "
        "line shows no difference.",
        "×",
        bars,
        1.0,
        "as fast",
    )


def sample_curves(report: BenchReport, batch: int) -> Ecdf:
    """Every sample of one batch size."""
    series = tuple(
        Series(
            short_name(x.variant),
            tuple(s / 1e6 for s in x.samples_ns),
            tone_of(report, x.variant),
        )
        for x in _with_batch(report.latencies, batch)
    )
    about = "Share of inferences that took at most so long; a long tail to the right is jitter."
    return Ecdf(f"All samples{_at(report, batch)}", about, "ms", series, log_x=True)


def throughput_curves(report: BenchReport) -> Iterator[Lines]:
    """Throughput against concurrency, a figure per batch size."""
    closed = [x for x in report.loads if x.offered_per_second is None]
    for batch in dict.fromkeys(x.variant.batch for x in closed):
        variants = {x.variant.name: x.variant for x in closed if x.variant.batch == batch}
        curves = tuple(
            Curve(
                short_name(variant),
                tuple((float(x.streams), x.per_second) for x in closed if x.variant.name == name),
                tone_of(report, variant),
            )
            for name, variant in variants.items()
        )
        yield Lines(
            f"Throughput against concurrency{_at(report, batch)}",
            "Higher is better; each point is a closed loop with that many inferences at once.",
            "streams",
            "samples per second",
            curves,
        )


def rooflines(report: BenchReport) -> Iterator[Roofline]:
    """What was reached under what the machine can do, a figure per number of threads and batch."""
    for peaks in report.peaks:
        for batch in batches_of(report):
            points = tuple(_points(report, peaks, batch))
            if points:
                threads = f", {peaks.threads} threads" if len(report.peaks) > 1 else ""
                yield Roofline(
                    f"How near to the machine's limits{threads}{_at(report, batch)}",
                    "Higher is faster. The slanted roof is the memory, the level ones are the "
                    "arithmetic, all measured here. A mark can pass the memory's roof: its "
                    "weights stayed in a cache.",
                    peaks.bytes_per_second / 1e9,
                    (
                        Roof("FP32", peaks.fp32_per_second / 1e9, "baseline"),
                        Roof("INT8", peaks.int8_per_second / 1e9, "candidate"),
                    ),
                    points,
                )


def cost_bars(found: Sequence[Cost]) -> Bars:
    """Cost per million, the cheapest first."""
    bars = tuple(
        Bar(
            f"{'GPU' if c.supply.device == 'cuda' else 'CPU'}: {c.supply.name}, on {c.price.name}",
            c.per_million,
            tone="plain" if c.supply.device == "cuda" else "candidate",
        )
        for c in found
    )
    about = "Shorter is cheaper. Blue: on a CPU; grey: on a GPU."
    return Bars("Cost of a million inferences", about, found[0].price.currency, bars)


def operator_pairs(report: BenchReport) -> Iterator[Pairs]:
    """The first model's operators against those of each other one, runtime by runtime."""
    for before, after in _same_runtime(report.operators):
        if before.kernels.total_ms is None or after.kernels.total_ms is None:
            continue  # Nothing was timed.
        names = short_name(before.variant), short_name(after.variant)
        runtime = before.variant.runtime
        yield Pairs(
            f"Time by operator in {runtime}",
            "Shorter is faster. Fused and integer forms count with the operator that they compute; "
            "conversions are Q, DQ and changes of layout.",
            "ms",
            *names,
            _families(before.kernels, after.kernels),
        )
        layers = matched_layers(before.kernels, after.kernels)
        if layers:
            yield Pairs(
                f"Slowest layers of {names[0]}",
                "The same layers in both models; one bar only: fused into another, or gone.",
                "ms",
                *names,
                tuple(Pair(*layer) for layer in layers[:_ROWS]),
            )


def _families(before: Kernels, after: Kernels) -> tuple[Pair, ...]:
    ours, theirs = by_family(before.kernels), by_family(after.kernels)
    every = dict.fromkeys((*ours, *theirs))
    least = _LEAST_SHARE * max(sum(ours.values()), sum(theirs.values()))
    rows = [Pair(name, ours.get(name), theirs.get(name)) for name in every]
    rows = [r for r in rows if max(r.before or 0.0, r.after or 0.0) >= least]
    rows.sort(key=lambda r: -max(r.before or 0.0, r.after or 0.0))
    return tuple(rows[:_ROWS])


def _same_runtime(every: Sequence[Operators]) -> Iterator[tuple[Operators, Operators]]:
    """The first model with each other one in the same runtime."""
    for i, first in enumerate(every):
        runtime = first.variant.runtime
        if any(x.variant.runtime == runtime for x in every[:i]):
            continue
        yield from ((first, x) for x in every[i + 1 :] if x.variant.runtime == runtime)


def _points(report: BenchReport, peaks: Peaks, batch: int) -> Iterator[Point]:
    for x in _with_batch(report.latencies, batch):
        work = report.work_of(x.variant)
        if work is not None and report.peaks_of(x.variant) == peaks:
            reached = (work.float_ops + work.int8_ops) / x.median_ms / 1e6
            tone = tone_of(report, x.variant)
            yield Point(work.ops_per_byte, reached, short_name(x.variant), tone)


def _with_batch(latencies: Sequence[Latency], batch: int) -> list[Latency]:
    return [x for x in latencies if x.variant.batch == batch]


def _at(report: BenchReport, batch: int) -> str:
    return f", batch {batch}" if len(batches_of(report)) > 1 else ""
