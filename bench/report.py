"""What one run of `vnnify bench` learned, and how it is told."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.compare import Comparison, compare
from bench.latency import Latency
from bench.machine import Machine
from bench.render import (
    Banner,
    Bar,
    Bars,
    Column,
    Document,
    Ecdf,
    KeyFigure,
    Paragraph,
    Section,
    Series,
    Table,
)


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Latencies measured together on one machine.

    Attributes:
        machine: Where.
        latencies: What, the baseline first.
        comparisons: Every other variant against the baseline, then every model against the first
            model in the same runtime, where that is another pair.
        control: The baseline against itself; None if it was not measured.
        not_measured: What was left out, with the reason, one sentence each.
    """

    machine: Machine
    latencies: tuple[Latency, ...]
    comparisons: tuple[Comparison, ...]
    control: Comparison | None
    not_measured: tuple[str, ...]


def assemble(
    machine: Machine,
    latencies: Sequence[Latency],
    control: Latency | None,
    not_measured: Sequence[str],
) -> BenchReport:
    """Compare what `measure` timed.

    Args:
        machine: Where it was timed.
        latencies: The variants, the baseline first.
        control: The baseline, timed again.
        not_measured: What was left out and why.
    """
    baseline = latencies[0]
    noise = compare(baseline, control) if control is not None else None
    pairs = [(baseline, x) for x in latencies[1:]]
    for latency in latencies[1:]:
        first = _first_like(latency, latencies)
        if first not in (baseline, latency):
            pairs.append((first, latency))
    return BenchReport(
        machine=machine,
        latencies=tuple(latencies),
        comparisons=tuple(compare(a, b, control=noise) for a, b in pairs),
        control=noise,
        not_measured=tuple(not_measured),
    )


def bench_document(report: BenchReport) -> Document:
    """The report as a document for any format."""
    return Document(
        title="Latency of " + ", ".join(dict.fromkeys(_file(x) for x in report.latencies)),
        verdict=_banner(report),
        sections=(
            Section("Latency", (_latencies(report), _bars(report), _samples(report))),
            Section("Comparisons", _comparisons(report)),
            Section("Machine", (machine_table(report.machine),)),
        ),
        footer=tuple(
            f"{_file(x)}: SHA-256 {x.variant.model.sha256}"
            for x in {x.variant.model.sha256: x for x in report.latencies}.values()
        ),
    )


def machine_table(machine: Machine) -> Table:
    """What `doctor` shows and every report ends with."""
    quota = "none" if machine.quota_cpus is None else f"{machine.quota_cpus:g} CPUs"
    rows = [
        ("CPU", machine.cpu),
        ("Identity", f"family {machine.family} model {machine.model} stepping {machine.stepping}"),
        ("Microcode", machine.microcode),
        ("Class", machine.isa_class),
        ("AVX2", _flags(machine, "avx2", "fma", "avx_")),
        ("AVX-512", _flags(machine, "avx512")),
        ("AMX", _flags(machine, "amx")),
        *((f"INT8 in {name}", seen) for name, seen in machine.canaries.items()),
        ("Cores", f"{machine.physical_cores} ({machine.logical_cores} hardware threads)"),
        ("Threads usable", f"{machine.threads} (CPU quota: {quota})"),
        ("Caches", ", ".join(f"{k[:3]} {v / 2**10:g}K" for k, v in machine.caches.items())),
        ("Memory", f"{machine.memory_bytes / 2**30:.1f} GiB"),
        ("Virtual", "yes" if machine.hypervisor else "no"),
        ("Governor", machine.governor),
        ("GPU", ", ".join(machine.gpus) or f"none: {machine.no_gpu_reason}"),
        ("Kernel", machine.kernel),
        ("Python", machine.python),
        *((name, version) for name, version in machine.packages.items()),
        *((name, value) for name, value in machine.variables.items()),
    ]
    return Table("This machine", (Column("what"), Column("found")), tuple(rows))


def _flags(machine: Machine, *prefixes: str) -> str:
    return " ".join(f for f in machine.flags if f.startswith(prefixes)) or "no"


def _banner(report: BenchReport) -> Banner:
    baseline = report.latencies[0]
    fastest = min(report.latencies, key=lambda x: x.median_ms)
    figures = [KeyFigure("baseline", f"{baseline.median_ms:.3g} ms", baseline.variant.name)]
    headline = f"{baseline.variant.name} is the fastest: {baseline.median_ms:.3g} ms"
    if fastest is not baseline:
        found = next(c for c in report.comparisons if c.candidate == fastest.variant.name)
        headline = (
            f"{fastest.variant.name} is the fastest: {fastest.median_ms:.3g} ms, "
            f"{speedup(found)} of {baseline.variant.name}"
        )
        figures.append(KeyFigure("fastest", f"{fastest.median_ms:.3g} ms", fastest.variant.name))
        figures.append(KeyFigure("speed", f"{found.ratio:.2f}x", _interval(found)))
    lines = ["Arrays in, arrays out: copies to and from a device are counted."]
    if report.control is not None:
        lines.append(f"Noise: the baseline against itself, {speedup(report.control)}.")
    return Banner("info", headline, (*lines, *report.not_measured), tuple(figures))


def speedup(comparison: Comparison) -> str:
    """`1.83x (1.79 to 1.88)`."""
    return f"{comparison.ratio:.2f}x ({_interval(comparison)})"


def _interval(comparison: Comparison) -> str:
    if comparison.low is None or comparison.high is None:
        return "no interval"
    return f"{comparison.low:.2f} to {comparison.high:.2f}"


def _latencies(report: BenchReport) -> Table:
    rows = tuple(
        (
            x.variant.name,
            f"{x.median_ms:.3f}",
            _optional(x.p90_ms),
            _optional(x.p99_ms),
            f"{x.per_second:,.0f}",
            f"{x.load_ms:.0f}",
            f"{x.first_ms:.2f}",
            f"{x.peak_rss_bytes / 2**20:.0f}",
            f"{x.variant.model.size_bytes / 2**20:.2f}",
        )
        for x in report.latencies
    )
    first = report.latencies[0]
    names = (
        "median ms",
        "p90 ms",
        "p99 ms",
        "per s",
        "load ms",
        "first ms",
        "peak MiB",
        "file MiB",
    )
    return Table(
        f"Batch {first.variant.batch}, {first.variant.threads} threads, "
        f"{len(first.rounds)} rounds in fresh processes",
        (Column("variant"), *(Column(n, "right") for n in names)),
        rows,
        "n/a: too few samples to know that percentile. Median: of the medians of the rounds.",
    )


def _bars(report: BenchReport) -> Bars:
    bars = tuple(
        Bar(
            x.variant.name,
            x.median_ms,
            min(r.median_ns for r in x.rounds) / 1e6,
            max(r.median_ns for r in x.rounds) / 1e6,
            "baseline" if x is report.latencies[0] else "candidate",
        )
        for x in report.latencies
    )
    return Bars("Median latency", "Shorter is faster; whiskers span the rounds.", "ms", bars)


def _samples(report: BenchReport) -> Ecdf:
    series = tuple(
        Series(
            x.variant.name,
            tuple(s / 1e6 for s in x.samples_ns),
            "baseline" if x is report.latencies[0] else "candidate",
        )
        for x in report.latencies
    )
    about = "Share of inferences that took at most so long; a long tail to the right is jitter."
    return Ecdf("All samples", about, "ms", series, log_x=True)


def _comparisons(report: BenchReport) -> tuple[Table | Paragraph, ...]:
    if not report.comparisons:
        return (Paragraph("One variant only: nothing to compare."),)
    rows = tuple((c.candidate, c.baseline, f"{c.ratio:.2f}x", _interval(c)) for c in _all(report))
    columns = (Column("variant"), Column("against"), Column("speed", "right"), Column("95 %"))
    note = "Above 1 the variant is faster. Intervals are over rounds, not over single inferences."
    doubts = tuple(dict.fromkeys(d for c in report.comparisons for d in c.doubts))
    warnings = tuple(Paragraph(f"{d}.", "warning") for d in doubts)
    return (Table("Speed", columns, rows, note), *warnings)


def _all(report: BenchReport) -> tuple[Comparison, ...]:
    return (*report.comparisons, *([report.control] if report.control is not None else []))


def _first_like(latency: Latency, all_: Sequence[Latency]) -> Latency:
    """The first variant in the same runtime, on the same device."""
    where = (latency.variant.runtime, latency.variant.device)
    return next(x for x in all_ if (x.variant.runtime, x.variant.device) == where)


def _file(latency: Latency) -> str:
    return latency.variant.model.path.name


def _optional(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
