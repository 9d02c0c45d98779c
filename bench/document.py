"""How a run of `vnnify bench` is told."""

from collections.abc import Iterator, Sequence

from bench.banner import banner
from bench.compare import STEAL_SHARE, interval_text, ratio_text
from bench.cost_document import cost_blocks, rate
from bench.escape import number
from bench.forecast_document import forecast_section
from bench.latency import Latency, Variant
from bench.load import Load, decisive
from bench.machine_table import machine_table
from bench.others import Other, changes
from bench.percentiles import P99_SAMPLES
from bench.pictures import (
    batches_of,
    latency_bars,
    operator_pairs,
    rooflines,
    sample_curves,
    speed_bars,
    throughput_curves,
)
from bench.render import (
    Block,
    Column,
    Document,
    Paragraph,
    Section,
    Table,
)
from bench.report import BenchReport
from bench.rounds import shapes_note
from bench.work import bound_by, shortest_ms


def _columns(*names: str) -> tuple[Column, ...]:
    return (Column("variant"), *(Column(n, "right") for n in names))


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
                # Of many batch sizes these would fill the page, and differ little.
                *(sample_curves(report, b) for b in dict.fromkeys((batches[0], batches[-1]))),
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
        *((forecast_section(report.forecast),) if report.forecast is not None else ()),
        Section("Machine", (machine_table(report.machine, report.peaks),)),
    )
    models = {x.variant.model.sha256: x for x in report.latencies}
    return Document(
        title="Latency of " + ", ".join(dict.fromkeys(_file(x.variant) for x in report.latencies)),
        verdict=banner(report),
        sections=tuple(s for s in sections if s.blocks),
        footer=(
            *([report.command] if report.command else []),
            *([f"Measured {report.measured} UTC."] if report.measured else []),
            *(f"{_file(x.variant)}: SHA-256 {digest}" for digest, x in models.items()),
        ),
        picture=latency_bars(report, batches[0]),
    )


def _latencies(report: BenchReport) -> Table:
    first = report.latencies[0]
    batches = {x.variant.batch for x in report.latencies}
    threads = sorted({x.variant.threads for x in report.latencies})
    rows = [_latency_row(x) for x in report.latencies]
    rows += [(m.name, "not measured", "–", "–", "–") for m in report.missing]
    return Table(
        f"Batch {' and '.join(map(str, sorted(batches)))}; {_counted(threads, 'thread')}; "
        f"{_counted([len(first.rounds)], 'round')} in fresh processes",
        _LATENCY,
        tuple(rows),
        "n/a: too few samples to know that percentile. Median: of the medians of the rounds."
        + shapes_note(r for x in report.latencies for r in x.rounds),
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
            _optional(x.load_ms, 0),
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
        (c.candidate, c.baseline, f"{ratio_text(c.ratio)}×", interval_text(c.low, c.high))
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
            f"{ratio_text(c.ratio)}×",
            interval_text(c.low, c.high),
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
    names = ("streams", "threads", "asked/s", "per s", "median ms", "p90 ms", "p99 ms")
    shown = decisive(report.loads, report.p99_ms)
    hidden = len(report.loads) - len(shown)
    note = (
        "Without a rate each stream asks again as soon as it is answered. With one, arrivals were "
        "drawn up front (Poisson), and latency counts from the moment at which each was due."
    )
    if hidden:
        note += f" {hidden} steps of the search for the highest rate are in the JSON only."
    yield Table(
        "Throughput and latency under load",
        (*_columns(*names), Column("kept up")),
        tuple(_load_row(x) for x in shown),
        note,
    )
    yield from throughput_curves(report)
    if report.p99_ms is not None:
        yield _targets(report, report.p99_ms)
    yield from _load_doubts(report.loads)


def _load_doubts(loads: Sequence[Load]) -> Iterator[Block]:
    """Who was stopped or robbed of time while it was loaded."""
    lines = []
    for name in dict.fromkeys(x.variant.name for x in loads):
        own = [x for x in loads if x.variant.name == name]
        stopped = sum(x.throttled_periods for x in own)
        stolen = max(x.steal_share for x in own)
        if stopped:
            lines.append(f"{name}: the CPU quota stopped it {stopped} times.")
        if stolen > STEAL_SHARE:
            lines.append(f"{name}: other guests took up to {stolen:.1%} of the CPU time.")
    if lines:
        yield Paragraph("What speaks against these loads:\n" + "\n".join(lines), "warning")


def _targets(report: BenchReport, p99_ms: float) -> Paragraph:
    lines = []
    for name in dict.fromkeys(x.variant.name for x in report.loads):
        rates = [x for x in report.loads if x.variant.name == name and x.offered_per_second]
        held = [x.offered_per_second for x in rates if x.holds(p99_ms)]
        known = [r for r in held if r is not None]
        if not rates:
            text = (
                f"was not tried at any rate: it answers so few requests that the {P99_SAMPLES} of "
                "a p99 would take longer than a minute"
            )
        elif known:
            text = f"holds a p99 of {p99_ms:g} ms up to {rate(max(known))} requests per second"
        else:
            text = f"was not seen to hold a p99 of {p99_ms:g} ms at any rate that was tried"
        lines.append(f"{name} {text}.")
    return Paragraph("\n".join(lines))


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
                number(work.float_ops / 1e9),
                number(work.int8_ops / 1e9),
                number(work.bytes / 2**20),
                number(work.ops_per_byte),
                number((work.float_ops + work.int8_ops) / x.median_ms / 1e6),
                number(limit),
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


def _counted(counts: Sequence[int], noun: str) -> str:
    """`1 and 2 threads`, `1 round`."""
    return f"{' and '.join(map(str, counts))} {noun}{'' if list(counts) == [1] else 's'}"


def _optional(value: float | None, digits: int = 3) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"
