"""How a run tells time and place: latencies with their figures, the machine, what stages cost."""

from typing import Literal

from bench.compare import interval_text, ratio_text
from bench.render import Bar, Bars, Block, Column, Ecdf, Paragraph, Section, Series, Table
from bench.rounds import shapes_note
from quantize.amounts import size_text
from quantize.report import Report


def latency_section(report: Report) -> Section:
    """Times of FP32 and INT8 in every runtime, as a table and figures."""
    ratios = {c.candidate: c for c in report.comparisons[: len(report.latencies) - 1]}
    rows = []
    for x in report.latencies:
        c = ratios.get(x.variant.name)
        interval = interval_text(c.low, c.high) if c else "–"
        rows.append(
            (
                x.variant.name,
                f"{x.median_ms:.4g}",
                f"{x.p90_ms:.4g}" if x.p90_ms is not None else "n too small",
                ratio_text(c.ratio) if c else "1 (baseline)",
                interval,
                f"{x.load_ms:.0f}" if x.load_ms is not None else "–",
                size_text(x.peak_rss_bytes),
            )
        )
    threads = report.latencies[0].variant.threads
    control = report.control
    noise = ""
    if control is not None:
        interval = interval_text(control.low, control.high)
        noise = f" FP32 against itself: {ratio_text(control.ratio)} ({interval})."
    blocks: list[Block] = [
        Paragraph(
            f"Batch {report.latencies[0].variant.batch}, {threads} threads, arrays in and out, "
            f"{len(report.latencies[0].rounds)} fresh processes each, interleaved.{noise}"
            f"{shapes_note(report.latencies[0].rounds)}"
        ),
        Table(
            "Latency",
            (
                Column("Variant"),
                Column("Median ms", "right"),
                Column("p90 ms", "right"),
                Column("Times as fast", "right"),
                Column("95 % interval", "right"),
                Column("Load ms", "right"),
                Column("Peak memory", "right"),
            ),
            tuple(rows),
            note=f"GPU: not measured: {_gpu(report)}",
        ),
        Bars(
            title="Median latency",
            description="Shorter is faster.",
            unit="ms",
            bars=tuple(
                Bar(x.variant.name, x.median_ms, tone=_tone(x.variant.name))
                for x in report.latencies
            ),
        ),
        Ecdf(
            title="Every inference",
            description="Share of inferences at or below each latency.",
            unit="ms",
            series=tuple(
                Series(x.variant.name, tuple(s / 1e6 for s in x.samples_ns), _tone(x.variant.name))
                for x in report.latencies
            ),
            log_x=True,
        ),
    ]
    return Section("Latency", tuple(blocks))


def _gpu(report: Report) -> str:
    machine = report.machine
    return (
        machine.no_gpu_reason
        or f"found {', '.join(machine.gpus)}; see `vnnify bench --device cuda`"
    )


def _tone(name: str) -> Literal["baseline", "candidate"]:
    return "candidate" if name.startswith("INT8") else "baseline"


def machine_section(report: Report) -> Section:
    """Where the run took place, on what data, and what each stage cost."""
    m = report.machine
    facts = (
        ("CPU", m.cpu),
        ("Instruction set", m.isa_class),
        ("INT8 arithmetic", ", ".join(f"{k}: {v}" for k, v in m.canaries.items())),
        ("Threads available", str(m.threads)),
        (
            "Calibration",
            f"{report.data.calibration_count:,} samples of {report.data.calibration_source}",
        ),
        (
            "Evaluation",
            f"{report.data.evaluation_count:,} samples of {report.data.evaluation_source}",
        ),
        *((f"Package {k}", v) for k, v in sorted(m.packages.items())),
    )
    stages = tuple((s.name, f"{s.seconds:.1f}", size_text(s.peak_rss_bytes)) for s in report.stages)
    return Section(
        "Machine and run",
        (
            Table("Where", (Column("What"), Column("Value")), tuple(facts)),
            Table(
                "Stages",
                (Column("Stage"), Column("Seconds", "right"), Column("Peak memory", "right")),
                stages,
            ),
        ),
    )
