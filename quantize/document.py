"""The document that tells a run: what every report format renders, and what ends a terminal."""

from collections import Counter

from bench.compare import doubt_lines, interval_text, ratio_text
from bench.forecast_document import forecast_lines, forecast_section
from bench.render import (
    Banner,
    Check,
    CheckOutcome,
    Column,
    Document,
    Forest,
    ForestRow,
    KeyFigure,
    Paragraph,
    Section,
    Table,
)
from quantize.amounts import UNITS, drop_text, scaled, score_text, size_change, size_text
from quantize.checks import accuracy_check, finite_check, plausible_check
from quantize.inspection.document import kernel_section, noise_sections
from quantize.intervals import wilson
from quantize.layer_document import layer_section
from quantize.proof.comparing import proof_checks, proof_section
from quantize.report import Conclusion, Report
from quantize.run_document import latency_section, machine_section
from quantize.search_document import search_section
from quantize.served import covered, threads_check
from quantize.shares import bounds_note, later_note
from quantize.slice_document import slice_section
from quantize.slices import hidden_losses

# Of layers, as `inspect` tells them.
_MODES = ("static", "dynamic", "weight-only", "float")


def document(report: Report) -> Document:
    """The report as a reader sees it."""
    return Document(
        title=f"INT8 of {report.source}",
        verdict=_banner(report),
        sections=(
            _accuracy(report),
            *((sliced,) if (sliced := _slices(report)) is not None else ()),
            latency_section(report),
            *((forecast_section(report.forecast),) if report.forecast is not None else ()),
            layer_section(report),
            *((kernel_section(report.inspection),) if report.inspection else ()),
            *(noise_sections(report.inspection) if report.inspection else ()),
            search_section(report),
            *((proof_section(report.proofs),) if report.proofs else ()),
            machine_section(report),
        ),
        checks=(*_checks(report), *proof_checks(report.proofs)),
        footer=(
            f"vnnify {report.machine.packages.get('vnnify', '')}: {report.command}",
            f"FP32 sha256 {report.fp32.sha256}",
            f"INT8 sha256 {report.int8.sha256}",
        ),
    )


def summary(report: Report, folder: str) -> Document:
    """The few lines that end a run on a terminal.

    Args:
        report: Of the run.
        folder: Where the files lie.
    """
    verdict, end = report.verdict, report.conclusion
    fastest = report.comparisons[0].baseline
    baseline = next(x for x in report.latencies if x.variant.name == fastest)
    served = next(x for x in report.latencies if x.variant.name == f"INT8 {report.served_by}")
    interval = interval_text(end.speedup_low, end.speedup_high)
    speed = f"{ratio_text(end.speedup)}× as fast ({interval})"
    times, way = size_change(report.fp32.size_bytes, report.int8.size_bytes)
    rows = (
        (
            _metric_name(report),
            _number(verdict.baseline_value, report),
            _number(verdict.candidate_value, report),
            f"{_lost(report)} (limit {_drop(verdict.limit, report)})",
        ),
        (
            "latency",
            f"{baseline.median_ms:.3g} ms",
            f"{served.median_ms:.3g} ms",
            speed,
        ),
        # A row of its own: beside the times it made the last column, with the drop, too narrow.
        ("in", baseline.variant.runtime, served.variant.runtime, _chosen(report)),
        (
            "size",
            size_text(report.fp32.size_bytes),
            size_text(report.int8.size_bytes),
            f"{times:.2f}× {way}",
        ),
        ("layers in INT8", "0", report.coverage, _modes(report)),
    )
    columns = (Column("What"), Column("FP32"), Column("INT8"), Column("Change"))
    return Document(
        title=f"INT8 of {report.source}",
        verdict=Banner(
            end.outcome,
            end.headline,
            (*_banner(report).lines, f"Look at {folder}/report.html for everything else."),
        ),
        sections=(Section("Result", (Table("Before and after", columns, rows),)),),
    )


def _chosen(report: Report) -> str:
    """Why the runtimes of the summary are those two."""
    return "the fastest of each" if report.remembered is None else "as the recipe has it"


def _modes(report: Report) -> str:
    """How many layers run how; a recipe counts only those that it had a choice for."""
    if report.inspection is None:
        return report.recipe.counts
    layers = report.inspection.layers
    found = Counter[str](layer.mode for layer in layers if layer.weight_count)
    return ", ".join(f"{mode} {found[mode]}" for mode in _MODES if found[mode])


def _metric_name(report: Report) -> str:
    """Short: a plugin by its function, not by its path."""
    return report.metric.rpartition(":")[2]


def _banner(report: Report) -> Banner:
    verdict, end = report.verdict, report.conclusion
    lines = [] if end.headline.endswith(verdict.reason) else [verdict.reason]
    lines += later_note(verdict)
    where = f"{report.int8.path} with {report.served_by} on {_needs(report)}"
    lines += [
        f"Serve {where}." if end.ships else f"Not to be served: {where}.",
        *_served(report),
        *(f"{p.text[:1].upper()}{p.text[1:]}." for p in report.proofs),
        *verdict.suspicious,
        *_caveats(report),
    ]
    interval = interval_text(end.speedup_low, end.speedup_high)
    interval = interval if end.speedup_low is None else f"95 % interval {interval}"
    fastest = next(x for x in report.latencies if x.variant.name == f"INT8 {report.served_by}")
    times, way = size_change(report.fp32.size_bytes, report.int8.size_bytes)
    return Banner(
        outcome=end.outcome,
        headline=end.headline,
        lines=tuple(lines),
        figures=(
            KeyFigure(
                f"{_metric_name(report)} of INT8",
                _number(verdict.candidate_value, report),
                f"FP32 {_number(verdict.baseline_value, report)}, drop at most "
                f"{_drop(verdict.high, report)} (limit {_drop(verdict.limit, report)})",
            ),
            KeyFigure(
                "Times as fast as FP32",
                f"{ratio_text(end.speedup)}×",
                f"{fastest.median_ms:.3g} ms at batch {fastest.variant.batch}; {interval}",
            ),
            KeyFigure(
                way.capitalize(),
                f"{times:.2f}×",
                f"{size_text(report.fp32.size_bytes)} → {size_text(report.int8.size_bytes)}",
            ),
            KeyFigure(
                "Layers in INT8",
                report.coverage,
                f"{_modes(report)}; {report.recipe.making}",
            ),
        ),
    )


def _served(report: Report) -> list[str]:
    """Where it was checked, and the runtimes that it must not be served in."""
    wrong = [s for s in report.served if not s.is_sound and s.runtime != report.served_by]
    lines = [f"Do not serve it there: {threads_check(s).message}" for s in wrong]
    if any(s.is_sound for s in report.served):
        lines.append(covered(report.served, report.machine.isa_class))
    return lines


def _needs(report: Report) -> str:
    from quantize.targets import TARGETS

    return TARGETS[report.target].needs


def _slices(report: Report) -> Section | None:
    v = report.verdict
    limit = v.limit if report.slice_limit is None else report.slice_limit
    return slice_section(
        report.slices,
        report.flips,
        v.losses + v.gains,
        limit,
        v.scale,
        asked=report.slice_limit is not None,
    )


def _caveats(report: Report) -> list[str]:
    lines = [
        c.message
        for c in report.further
        if c.outcome in ("fail", "inconclusive") and c.message != report.conclusion.headline
    ]
    if report.slice_limit is None:
        lines += hidden_losses(report.slices, report.verdict.limit, report.evaluations[0])
    if report.target in ("vnni", "amx"):
        lines.append(
            "Made for VNNI: on a CPU without it this file computes other, wrong answers. "
            "Use --target portable for a file that is right everywhere."
        )
    if report.machine.isa_class not in ("amx", "avx512_vnni", "avx_vnni"):
        lines.append(
            "Measured on a CPU without VNNI: the speed on VNNI is not measured. Accuracy is judged "
            "with VNNI's arithmetic."
        )
    if report.forecast is not None:
        names = (f"INT8 {report.served_by}", report.comparisons[0].baseline)
        lines += forecast_lines(report.forecast, names)
    v = report.verdict
    for e in report.evaluations[2:]:
        worse = v.baseline_value - e.value if v.higher_is_better else e.value - v.baseline_value
        # Of a model that must not be served at all, one runtime is no news.
        if report.conclusion.ships and e.runtime != report.served_by and worse > v.limit:
            lines.append(
                f"Do not serve it with {e.runtime}: there it scores {_number(e.value, report)}."
            )
    if report.int8.size_bytes > report.fp32.size_bytes:
        lines.append(
            "The file is larger than FP32: small models grow by the scales, and layers that share "
            "weights hold their own each."
        )
    served = next(c for c in report.comparisons if c.candidate == f"INT8 {report.served_by}")
    lines += doubt_lines(served)
    return lines + [f"Note: {n}." for n in report.notes]


def _accuracy(report: Report) -> Section:
    rows = []
    for i, e in enumerate(report.evaluations):
        low, high = wilson(round(sum(e.scores)), len(e.scores), 0.95) if e.binary else (None, None)
        interval = "–"
        if low is not None and high is not None:
            interval = f"{_number(low, report)} to {_number(high, report)}"
        rows.append(
            (
                "FP32" if i == 0 else "INT8",
                e.runtime,
                "float" if i == 0 else e.arithmetic,
                _number(e.value, report),
                interval,
                f"{e.count:,}",
                str(e.nonfinite),
            )
        )
    v = report.verdict
    return Section(
        "Accuracy",
        (
            Paragraph(
                f"{v.method}, {v.confidence * 100:.4g} % one-sided, on {v.n:,} paired samples: "
                f"INT8 is worse on {v.losses:,} and better on {v.gains:,}.{bounds_note(v)}"
            ),
            Forest(
                title=f"Drop of {_metric_name(report)} against the limit",
                description="The drop with its confidence bounds; right of the line is too much.",
                unit=UNITS[v.scale],
                rows=(
                    ForestRow(
                        f"INT8 in {report.served_by}",
                        scaled(v.drop, v.scale),
                        scaled(v.low, v.scale),
                        scaled(v.high, v.scale),
                        v.outcome,
                    ),
                ),
                limit=scaled(v.limit, v.scale),
                limit_label="limit",
            ),
            Table(
                "Scores",
                (
                    Column("Model"),
                    Column("Runtime"),
                    Column("Arithmetic"),
                    Column(_metric_name(report), "right"),
                    Column("95 % interval", "right"),
                    Column("Samples", "right"),
                    Column("Non-finite", "right"),
                ),
                tuple(rows),
                note=_arithmetic_note(report),
            ),
        ),
    )


def _arithmetic_note(report: Report) -> str:
    verdicts = ", ".join(f"{k}: {v}" for k, v in report.machine.canaries.items())
    return (
        "“exact” computes INT8 products as VNNI does; “native” as this CPU does. "
        f"What this CPU really does ({verdicts}) was found by running a canary, not read from "
        "flags."
    )


def _checks(report: Report) -> tuple[Check, ...]:
    # Being no slower is asked of every model; --min-speedup asks for more.
    end = report.conclusion
    more = any(c.name == "speed" for c in report.further) and not (end.too_slow or end.too_noisy)
    return (
        accuracy_check(report.verdict),
        *(() if more else (_no_slower(report.conclusion),)),
        finite_check(report.evaluations),
        plausible_check(report.verdict.suspicious),
        *report.further,
    )


def _no_slower(end: Conclusion) -> Check:
    ratio, sure = ratio_text(end.speedup), end.speedup_low is not None and end.speedup_low > 1
    interval = interval_text(end.speedup_low, end.speedup_high)
    text = f"INT8 is {ratio} times as fast ({interval}) as the fastest FP32."
    if not (sure or end.too_slow or end.too_noisy):
        text += " That it is faster is not certain."
    outcome: CheckOutcome = "pass"
    if end.too_slow or end.too_noisy:
        outcome = "fail" if end.too_slow else "inconclusive"
    return Check("speed", outcome, text, "", f"{ratio}x", "1x")


def _number(value: float, report: Report) -> str:
    return score_text(value, report.verdict.scale)


def _lost(report: Report) -> str:
    """What was seen and what is certain; a gain is called one."""
    drop, high = report.verdict.drop, report.verdict.high
    seen = f"lost {_drop(drop, report)}" if drop >= 0 else f"gained {_drop(-drop, report)}"
    if high < 0:
        return f"{seen}, at least {_drop(-high, report)}"
    return f"{seen}, {'at most' if drop >= 0 else 'lost at most'} {_drop(high, report)}"


def _drop(drop: float, report: Report) -> str:
    return drop_text(drop, report.verdict.scale)
