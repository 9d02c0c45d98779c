"""What `vnnify gate` found, and the document that tells it."""

from dataclasses import dataclass
from typing import Literal

from bench.compare import Comparison, doubt_lines, interval_text, ratio_text, speed_text
from bench.latency import Latency
from bench.machine import Machine
from bench.models import Model
from bench.render import (
    Banner,
    Block,
    Check,
    Column,
    Document,
    Forest,
    ForestRow,
    KeyFigure,
    Outcome,
    Paragraph,
    Section,
    Table,
)
from bench.rounds import shapes_note
from quantize.amounts import UNITS, drop_text, scaled, score_text, size_change, size_text
from quantize.coverage import Coverage
from quantize.evaluate import Evaluation
from quantize.flips import Flip
from quantize.gate import Verdict
from quantize.served import Served, covered
from quantize.slice_document import slice_section
from quantize.slices import SliceVerdict, hidden_losses

_RANK = {"pass": 0, "inconclusive": 1, "refuse": 2}


@dataclass(frozen=True, slots=True)
class Judgement:
    """Both models in one runtime.

    Attributes:
        runtime: Its name.
        evaluations: FP32, then INT8.
        verdict: On the mean.
        slices: On each part of the data, the worst first.
        slice_limit: The drop that a slice may have; None where slices are only shown.
        flips: Samples that INT8 scores otherwise, what lost most first; at most a thousand.
        speed: INT8 against FP32; None where they were not timed.
        served: INT8 with one thread and with all.
        small_slices: Slices that are too small to be judged.
    """

    runtime: str
    evaluations: tuple[Evaluation, Evaluation]
    verdict: Verdict
    slices: tuple[SliceVerdict, ...]
    slice_limit: float | None
    flips: tuple[Flip, ...]
    speed: Comparison | None
    served: Served
    small_slices: int = 0


@dataclass(frozen=True, slots=True)
class GateReport:
    """What it found.

    Attributes:
        command: As typed.
        exit_code: Of the command.
        metric: Name.
        max_drop: The tolerance.
        judged: One entry per runtime.
        latencies: FP32 and INT8 in each runtime; empty where they were not timed.
        fp32: The baseline.
        int8: The candidate.
        coverage: How much of it is in INT8.
        data_sha256: Of samples and labels.
        calibration_apart: Whether the calibration samples were given and are others.
        inconclusive: What an inconclusive verdict counts as.
        checks: Everything that was judged.
        machine: Where.
        notes: What a user may want to know.
    """

    command: str
    exit_code: int
    metric: str
    max_drop: str
    judged: tuple[Judgement, ...]
    latencies: tuple[Latency, ...]
    fp32: Model
    int8: Model
    coverage: Coverage
    data_sha256: str
    calibration_apart: bool
    inconclusive: Literal["fail", "warn", "pass"]
    checks: tuple[Check, ...]
    machine: Machine
    notes: tuple[str, ...] = ()

    @property
    def worst(self) -> Judgement:
        """Of the runtime with the worst verdict."""
        return max(self.judged, key=lambda j: (_RANK[j.verdict.outcome], j.verdict.drop))

    @property
    def verdict(self) -> Verdict:
        """The worst one."""
        return self.worst.verdict

    @property
    def evaluations(self) -> tuple[Evaluation, Evaluation]:
        """Of the worst verdict."""
        return self.worst.evaluations

    @property
    def outcome(self) -> Outcome:
        """Of all checks together."""
        found = {c.outcome for c in self.checks}
        if "fail" in found:
            return "refuse"
        return "inconclusive" if "inconclusive" in found else "pass"


def gate_document(report: GateReport) -> Document:
    """The report as a reader sees it."""
    sections = [_accuracy(report), _slices(report)]
    sections += [_speed(report)] if report.latencies else []
    return Document(
        title="INT8 against FP32",
        verdict=_banner(report),
        sections=tuple(s for s in sections if s is not None),
        checks=report.checks,
        footer=(
            report.command,
            f"{report.machine.cpu}, {report.machine.isa_class}",
            f"FP32 sha256 {report.fp32.sha256}",
            f"INT8 sha256 {report.int8.sha256}",
        ),
    )


def _banner(report: GateReport) -> Banner:
    v = report.verdict
    failed = [c for c in report.checks if c.outcome == "fail"]
    doubtful = [c for c in report.checks if c.outcome == "inconclusive"]
    headline = (failed or doubtful or [Check("accuracy", "pass", v.reason)])[0].message
    lines = [c.message for c in (*failed, *doubtful) if c.message != headline]
    lines += [v.reason] if v.reason != headline and v.reason not in lines else []
    if doubtful and not failed and report.inconclusive != "fail":
        lines.insert(0, f"Let through without certainty: --inconclusive {report.inconclusive}.")
    for j in report.judged:
        lines += j.verdict.suspicious
        if j.slice_limit is None:
            lines += hidden_losses(j.slices, j.verdict.limit, j.evaluations[0])
        if j.speed is not None:
            told = any("times as fast" in c.message for c in failed)
            lines += [*([] if told else [_speed_line(j)]), *doubt_lines(j.speed)]
    if (served := [j.served for j in report.judged if j.served.is_sound]) and not failed:
        lines.append(covered(served, report.machine.isa_class))
    lines += [f"Note: {n}." for n in report.notes]
    times, way = size_change(report.fp32.size_bytes, report.int8.size_bytes)
    sizes = f"{size_text(report.fp32.size_bytes)} → {size_text(report.int8.size_bytes)}"
    decibels = v.scale == "decibels"
    top = v.candidate_value if decibels else v.drop
    edge, limit = (v.baseline_value - x if decibels else x for x in (v.high, v.limit))
    figures = (
        KeyFigure(
            "Ratio" if decibels else "Drop",
            drop_text(top, v.scale),
            f"limit {drop_text(limit, v.scale)}",
        ),
        KeyFigure(
            "At least" if decibels else "At most",
            drop_text(edge, v.scale),
            f"{v.confidence * 100:.4g} % sure",
        ),
        KeyFigure(way.capitalize(), f"{times:.2f}×", sizes),
        KeyFigure("Layers in INT8", str(report.coverage), "between Q/DQ, or integer operators"),
    )
    return Banner(report.outcome, headline, tuple(dict.fromkeys(lines)), figures)


def _speed_line(j: Judgement) -> str:
    assert j.speed is not None
    return f"In {j.runtime}, INT8 is {speed_text(j.speed)}."


def _accuracy(report: GateReport) -> Section:
    v = report.verdict
    compared = (
        ""
        if not (v.losses or v.gains)
        else (f" INT8 is worse on {v.losses:,} and better on {v.gains:,}.")
    )
    rows = tuple(
        (
            name,
            e.runtime,
            e.arithmetic if name == "INT8" else "float",
            score_text(e.value, v.scale),
            f"{e.count:,}",
            str(e.nonfinite),
        )
        for j in report.judged
        for name, e in zip(("FP32", "INT8"), j.evaluations, strict=True)
    )
    columns = (
        Column("Model"),
        Column("Runtime"),
        Column("Arithmetic"),
        Column(report.metric.rpartition(":")[2], "right"),
        Column("Samples", "right"),
        Column("Non-finite", "right"),
    )
    sure = f"{v.confidence * 100:.4g} % one-sided"
    text = f"{v.method}, {sure}, on {v.n:,} independent samples.{compared}"
    blocks: tuple[Block, ...] = (Paragraph(text), _forest(report), Table("Scores", columns, rows))
    return Section("Accuracy", blocks)


def _forest(report: GateReport) -> Forest:
    v = report.verdict
    rows = tuple(
        ForestRow(
            f"INT8 in {j.runtime}",
            scaled(j.verdict.drop, v.scale),
            scaled(j.verdict.low, v.scale),
            scaled(j.verdict.high, v.scale),
            j.verdict.outcome,
        )
        for j in report.judged
    )
    about = "Right of the line is too much."
    limit = scaled(v.limit, v.scale)
    return Forest("Drop against the limit", about, UNITS[v.scale], rows, limit, "limit")


def _slices(report: GateReport) -> Section | None:
    j = report.worst
    limit = j.verdict.limit if j.slice_limit is None else j.slice_limit
    return slice_section(
        j.slices,
        j.flips,
        j.verdict.losses + j.verdict.gains,
        limit,
        j.verdict.scale,
        asked=j.slice_limit is not None,
    )


def _speed(report: GateReport) -> Section:
    ratios = {j.speed.candidate: j.speed for j in report.judged if j.speed is not None}
    rows = []
    for x in report.latencies:
        c = ratios.get(x.variant.name)
        interval = interval_text(c.low, c.high) if c else "–"
        rows.append(
            (
                x.variant.name,
                x.variant.runtime,
                f"{x.median_ms:.4g}",
                f"{x.p90_ms:.4g}" if x.p90_ms is not None else "n too small",
                ratio_text(c.ratio) if c else "1 (baseline)",
                interval,
            )
        )
    first = report.latencies[0]
    columns = (
        Column("Model"),
        Column("Runtime"),
        Column("Median ms", "right"),
        Column("p90 ms", "right"),
        Column("Times as fast", "right"),
        Column("95 % interval", "right"),
    )
    note = (
        f"Batch {first.variant.batch}, {first.variant.threads} threads, {len(first.rounds)} fresh "
        f"processes each, interleaved.{shapes_note(first.rounds)}"
    )
    return Section("Latency", (Table("Latency", columns, tuple(rows), note),))
