"""How a run of `vnnify bench` is told."""

from collections.abc import Iterator, Sequence

from bench.compare import Comparison
from bench.cost import costs, verdict
from bench.cost_document import cost_blocks, cost_figures, rate
from bench.latency import Latency, Variant
from bench.load import Load
from bench.machine_table import machine_table
from bench.others import Change, Other, changes
from bench.pictures import (
    batches_of,
    latency_bars,
    operator_pairs,
    rooflines,
    sample_curves,
    short_name,
    speed_bars,
    throughput_curves,
)
from bench.render import (
    Banner,
    Block,
    Column,
    Document,
    KeyFigure,
    Paragraph,
    Section,
    Table,
)
from bench.report import BenchReport, supplies
from bench.work import bound_by, shortest_ms


def _columns(*names: str) -> tuple[Column, ...]:
    return (Column("variant"), *(Column(n, "right") for n in names))


_WIDEST = 1000
"""A ratio from which on its size says nothing."""
_LATENCY = _columns("median ms", "p90 ms", "p99 ms", "per s")
_STARTS = _columns("load ms", "compile ms", "first ms", "cold ms", "peak MiB", "file MiB")


def bench_document(report: BenchReport) -> Document:
    """The report as a document for any format."""
    batches = batches_of(report)
    sections = (
        Section(
            "Latency",
            (
                _latencies(report),
                *(latency_bars(report, b) for b in batches[1:]),
                *(sample_curves(report, b) for b in batches),
                _starts(report.latencies),
                *_clocks(report.latencies),
            ),
        ),
        Section("Comparisons", _comparisons(report)),
        Section("Changes", tuple(_changes(report))),
        Section("Cost", tuple(cost_blocks(report))),
        Section("Under load", tuple(_loads(report))),
        Section("Where the time goes", tuple(_operators(report))),
        Section("Physical limits", tuple(_limits(report))),
        Section("Other machines", tuple(_others(report))),
        Section("Machine", (machine_table(report.machine, report.peaks),)),
    )
    models = {x.variant.model.sha256: x for x in report.latencies}
    return Document(
        title="Latency of " + ", ".join(dict.fromkeys(_file(x.variant) for x in report.latencies)),
        verdict=_banner(report),
        sections=tuple(s for s in sections if s.blocks),
        footer=(
            *([report.command] if report.command else []),
            *(f"{_file(x.variant)}: SHA-256 {digest}" for digest, x in models.items()),
        ),
        picture=latency_bars(report, batches[0]),
    )


def _banner(report: BenchReport) -> Banner:
    baseline = report.latencies[0]
    alike = [x for x in report.latencies if x.variant.batch == baseline.variant.batch]
    fastest = min(alike, key=lambda x: x.median_ms)
    figures = [KeyFigure("baseline", f"{baseline.median_ms:.3g} ms", short_name(baseline.variant))]
    headline = f"{baseline.variant.name} is the fastest: {baseline.median_ms:.3g} ms"
    if fastest is not baseline:
        found = [c for c in report.comparisons if c.candidate == fastest.variant.name]
        headline = f"{fastest.variant.name} is the fastest: {fastest.median_ms:.3g} ms"
        figures.append(
            KeyFigure("fastest", f"{fastest.median_ms:.3g} ms", short_name(fastest.variant))
        )
        if found:
            headline = _headline(fastest, found[0])
            figures.append(
                KeyFigure("times as fast", f"{found[0].ratio:.2f}×", _interval(found[0]))
            )
    lines = ["Arrays in, arrays out: copies to and from a device are counted."]
    lines += [f"Noise: {c.baseline} against itself, {speedup(c)}." for c in report.controls]
    if any(x.variant.device != "cpu" for x in report.latencies):
        lines.append("This version had not run on a GPU when it was made: check its GPU rows.")
    if report.prices:
        found_costs = costs(supplies(report), report.prices, report.utilisation)
        lines = [
            *verdict(found_costs, report.prices, report.utilisation, report.p99_ms),
            *lines,
        ]
        figures += cost_figures(found_costs)
    doubted = sum(bool(c.doubts) for c in report.comparisons)
    if doubted:
        lines.append(
            f"{doubted} of {len(report.comparisons)} comparisons have something that speaks "
            "against them; it is named below them."
        )
    return Banner("info", headline, (*lines, *map(str, report.missing)), tuple(figures))


def _headline(fastest: Latency, found: Comparison) -> str:
    """What is the fastest; only a ratio whose interval is above 1 is said to be one."""
    speed = f"{found.ratio:.2f}× as fast as {found.baseline}"
    if found.low is not None and found.low > 1:
        return f"{fastest.variant.name} is the fastest: {fastest.median_ms:.3g} ms, {speed}"
    why = "one round has no interval" if found.low is None else "the interval holds 1"
    return (
        f"{fastest.variant.name} had the shortest median, {fastest.median_ms:.3g} ms, but it is "
        f"not certain that it is faster than {found.baseline}: {why}"
    )


def speedup(comparison: Comparison) -> str:
    """`1.83× (1.79 to 1.88)`."""
    return f"{comparison.ratio:.2f}× ({_interval(comparison)})"


def _interval(found: Comparison | Change) -> str:
    if found.low is None or found.high is None:
        return "no interval"
    # Few rounds on a busy machine: more digits would only say how wide it is.
    high = f"{found.high:.2f}" if found.high < _WIDEST else f"over {_WIDEST:,}"
    return f"{found.low:.2f} to {high}"


def _latencies(report: BenchReport) -> Table:
    first = report.latencies[0]
    batches = {x.variant.batch for x in report.latencies}
    threads = sorted({x.variant.threads for x in report.latencies})
    rows = [_latency_row(x) for x in report.latencies]
    rows += [(m.name, "not measured", "–", "–", "–") for m in report.missing]
    return Table(
        f"Batch {', '.join(map(str, sorted(batches)))}, "
        f"{' and '.join(map(str, threads))} threads, "
        f"{len(first.rounds)} rounds in fresh processes",
        _LATENCY,
        tuple(rows),
        "n/a: too few samples to know that percentile. Median: of the medians of the rounds.",
    )


def _latency_row(x: Latency) -> tuple[str, ...]:
    return (
        x.variant.name,
        f"{x.median_ms:.3f}",
        _optional(x.p90_ms),
        _optional(x.p99_ms),
        f"{x.per_second:,.0f}",
    )


def _starts(latencies: Sequence[Latency]) -> Table:
    rows = tuple(
        (
            x.variant.name,
            f"{x.load_ms:.0f}",
            _optional(x.compile_ms, 0),
            f"{x.first_ms:.2f}",
            _optional(x.cold_ms, 0),
            f"{x.peak_rss_bytes / 2**20:.0f}",
            f"{x.variant.model.size_bytes / 2**20:.2f}",
        )
        for x in latencies
    )
    return Table(
        "Before the first answer, and memory",
        _STARTS,
        rows,
        "Load includes compile, which not every runtime tells apart (n/a); PyTorch's compiler "
        "reuses its cache on disk. First: the first inference after that. Cold: from starting a "
        "process to its first answer, files in the page cache.",
    )


def _clocks(latencies: Sequence[Latency]) -> Iterator[Table]:
    """What the GPUs did while they were timed; nothing where nvidia-smi did not tell."""
    rows = []
    for x in latencies:
        seen = [r.gpu for r in x.rounds if r.gpu is not None]
        if seen:
            low = min(seen, key=lambda g: g.clock_mhz or 0.0)
            cells = (low.clock_mhz, low.most_clock_mhz, low.power_w, low.power_limit_w, low.celsius)
            rows.append((x.variant.name, low.driver, *(_optional(c, 0) for c in cells)))
    if rows:
        heads = ("driver", "MHz", "at most MHz", "W", "at most W", "°C")
        note = "Of the round with the lowest clock, right after its last inference."
        yield Table("The GPU while it was timed", _columns(*heads), tuple(rows), note)


def _comparisons(report: BenchReport) -> tuple[Block, ...]:
    if not report.comparisons:
        return (Paragraph("One variant only: nothing to compare."),)
    rows = tuple(
        (c.candidate, c.baseline, f"{c.ratio:.2f}×", _interval(c))
        for c in (*report.comparisons, *report.controls)
    )
    columns = (Column("variant"), Column("against"), Column("speed", "right"), Column("95 %"))
    note = "Above 1 the variant is faster. Intervals are over rounds, not over single inferences."
    figures = (speed_bars(report, b) for b in batches_of(report))
    return (*(f for f in figures if f), Table("Speed", columns, rows, note), *_doubts(report))


def _doubts(report: BenchReport) -> Iterator[Block]:
    """One warning, a line per variant: twenty of them would hide what they say."""
    found = dict.fromkeys(d for c in report.comparisons for d in c.doubts)
    lines: dict[str, list[str]] = {}
    for doubt in found:
        # Doubts about one variant begin with its name, which may hold commas, but no colon.
        name, colon, text = doubt.rpartition(": ")
        lines.setdefault(name + colon, []).append(text)
    if lines:
        told = "\n".join(f"{name}{'; '.join(texts)}." for name, texts in lines.items())
        yield Paragraph(f"What speaks against these ratios:\n{told}", "warning")


def _changes(report: BenchReport) -> Iterator[Block]:
    if report.earlier is None:
        return
    found = changes(report.earlier, report.machine, report.latencies)
    rows = tuple(
        (
            c.name,
            f"{c.before_ms:.3f}",
            f"{c.after_ms:.3f}",
            f"{c.ratio:.2f}×",
            _interval(c),
            ("faster" if c.ratio > 1 else "slower") if c.certain else "no change seen",
            "; ".join(c.also) or "nothing",
        )
        for c in found
    )
    columns = (
        Column("variant"),
        *(Column(n, "right") for n in ("before ms", "now ms", "speed", "95 %")),
        Column("change"),
        Column("what else differs"),
    )
    yield Table(f"Against {report.earlier.source}", columns, rows, "Above 1 it became faster.")


def _loads(report: BenchReport) -> Iterator[Block]:
    if not report.loads:
        return
    names = ("streams", "threads", "asked/s", "per s")
    columns = (*names, "median ms", "p90 ms", "p99 ms")
    yield Table(
        "Throughput and latency under load",
        (Column("variant"), *(Column(n, "right") for n in columns), Column("kept up")),
        tuple(_load_row(x) for x in report.loads),
        "Without a rate each stream asks again as soon as it is answered. With one, arrivals were "
        "drawn up front (Poisson), and latency counts from the moment at which each was due.",
    )
    yield from throughput_curves(report)
    if report.p99_ms is not None:
        yield from _targets(report, report.p99_ms)


def _targets(report: BenchReport, p99_ms: float) -> Iterator[Block]:
    for name in dict.fromkeys(x.variant.name for x in report.loads):
        rates = [x for x in report.loads if x.variant.name == name and x.offered_per_second]
        held = [x.offered_per_second for x in rates if x.holds(p99_ms)]
        known = [r for r in held if r is not None]
        if known:
            text = f"holds a p99 of {p99_ms:g} ms up to {rate(max(known))} requests per second"
        else:
            text = f"was not seen to hold a p99 of {p99_ms:g} ms at any rate that was tried"
        yield Paragraph(f"{name} {text}.")


def _load_row(x: Load) -> tuple[str, ...]:
    return (
        x.variant.name,
        str(x.streams),
        str(x.variant.threads),
        "–" if x.offered_per_second is None else rate(x.offered_per_second),
        rate(x.per_second),
        f"{x.median_ms:.3f}",
        _optional(x.p90_ms),
        _optional(x.p99_ms),
        "no" if x.saturated else "yes",
    )


def _operators(report: BenchReport) -> Iterator[Block]:
    rows = []
    for x in report.operators:
        k = x.kernels
        total = k.total_ms or 0.0
        spent = [(m.integer, m.kind, m.ms or 0.0) for m in k.kernels]
        integer = sum(ms for inside, _, ms in spent if inside)
        converting = sum(ms for _, kind, ms in spent if kind == "conversion")
        rows.append(
            (
                x.variant.name,
                _optional(k.total_ms),
                f"{k.integer_products} of {len(k.products)}",
                f"{integer / total:.0%}" if total else "n/a",
                f"{converting / total:.0%}" if total else "n/a",
                str(len(k.islands)),
            )
        )
    if not rows:
        return
    yield from operator_pairs(report)
    names = ("kernels ms", "INT8 products", "time in INT8", "conversions", "float islands")
    yield Table(
        "What the runtimes made of the models",
        (Column("variant"), *(Column(n, "right") for n in names)),
        tuple(rows),
        "Asked of the runtimes, timed with their profilers, which slow every kernel down a little. "
        "Products: kernels that multiply. vnnify inspect shows each kernel.",
    )


def _limits(report: BenchReport) -> Iterator[Block]:
    rows = []
    for x in report.latencies:
        work, peaks = report.work_of(x.variant), report.peaks_of(x.variant)
        if work is None or peaks is None:
            continue
        limit = shortest_ms(work, peaks)
        rows.append(
            (
                x.variant.name,
                f"{work.float_ops / 1e9:.3g}",
                f"{work.int8_ops / 1e9:.3g}",
                f"{work.bytes / 2**20:.3g}",
                f"{work.ops_per_byte:.3g}",
                f"{(work.float_ops + work.int8_ops) / x.median_ms / 1e6:,.3g}",
                f"{limit:.3g}",
                bound_by(work, peaks),
                f"{limit / x.median_ms:.0%}",
            )
        )
    if not rows:
        return
    names = ("float GOP", "INT8 GOP", "MiB", "op/byte", "GOP/s", "limit ms")
    uncounted = sorted({k for w in report.works for k in w.uncounted})
    yield Table(
        "How near to what this machine can do",
        (
            Column("variant"),
            *(Column(n, "right") for n in names),
            Column("limit is"),
            Column("share", "right"),
        ),
        tuple(rows),
        "Limit: the time that neither the fastest product of matrices nor the memory of this "
        "machine beats, both measured here. Bytes: weights, inputs and outputs, once."
        + (f" Not counted: {', '.join(uncounted)}." if uncounted else ""),
    )
    yield from rooflines(report)


def _others(report: BenchReport) -> Iterator[Block]:
    for other in report.merged:
        yield Table(
            f"{other.source}: {other.machine.cpu}{_gpus(other)}",
            _LATENCY,
            tuple(_latency_row(x) for x in other.latencies),
            "The same models on the same inputs. Machines share no noise, so there is no interval.",
        )
        yield _starts(other.latencies)
        yield from _clocks(other.latencies)


def _gpus(other: Other) -> str:
    return f", {', '.join(other.machine.gpus)}" if other.machine.gpus else ""


def _file(variant: Variant) -> str:
    return variant.model.path.name


def _optional(value: float | None, digits: int = 3) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"
