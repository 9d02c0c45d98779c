"""How a search is told: everything that was tried and what it cost, and the Pareto front of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.render import Block, Column, Paragraph, Point, Scatter, Section, Table
from quantize.amounts import score_text, size_text
from quantize.report import Report, TrialRow


@dataclass(frozen=True, slots=True)
class Choice:
    """A model that a user could take: FP32, or a candidate that was scored on every sample.

    Attributes:
        name: Of the candidate.
        value: Its score.
        ms: Quick median in its fastest runtime.
        size_bytes: Of its file.
        outcome: Of its verdict; empty for FP32.
    """

    name: str
    value: float
    ms: float
    size_bytes: int
    outcome: str


def search_section(report: Report) -> Section:
    """What the search tried, what it cost, and what of it is worth having."""
    metric = report.metric.rpartition(":")[2]
    choices = _choices(report)
    front = pareto(choices, higher_is_better=report.verdict.higher_is_better)
    blocks: tuple[Block, ...] = (Paragraph(_cost(report)), _tried(report, metric))
    if len(choices) > 1:
        blocks += (_front(report, front, metric), _picture(choices, front, metric))
    if points := _noise(report):
        blocks += (
            Scatter(
                title="Latency and fidelity of the candidates",
                description="Up and to the left is better.",
                x_label="quick median, ms",
                y_label="output SQNR, dB",
                points=points,
            ),
        )
    return Section("Search", blocks)


def pareto(choices: Sequence[Choice], *, higher_is_better: bool) -> tuple[Choice, ...]:
    """Those that no other one beats: as good in score, time and size, and better in one of them.

    Args:
        choices: What there is.
        higher_is_better: Direction of the score.
    """

    def costs(c: Choice) -> tuple[float, float, int]:
        return (-c.value if higher_is_better else c.value, c.ms, c.size_bytes)

    def beats(a: Choice, b: Choice) -> bool:
        pairs = list(zip(costs(a), costs(b), strict=True))
        return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)

    return tuple(c for c in choices if not any(beats(other, c) for other in choices))


def _choices(report: Report) -> tuple[Choice, ...]:
    fp32 = report.evaluations[0]
    found = []
    if report.fp32_ms:
        ms = min(report.fp32_ms.values())
        found.append(Choice("FP32", fp32.value, ms, report.fp32.size_bytes, ""))
    for t in report.trials:
        if t.value is not None and t.latency_ms and t.samples == fp32.count:
            ms = min(t.latency_ms.values())
            found.append(Choice(t.name, t.value, ms, t.size_bytes, t.outcome))
    return tuple(found)


def _cost(report: Report) -> str:
    judged = [t for t in report.trials if t.value is not None]
    early = sum(t.samples < report.evaluations[0].count for t in judged)
    spent = sum(t.evaluation_seconds for t in judged)
    making = sum(t.seconds for t in report.trials)
    count = len(report.trials)
    text = (
        f"{count} candidate{'s' * (count != 1)}, made and looked at in {making:.1f} s; "
        f"{len(judged)} of them evaluated in {spent:.1f} s"
    )
    text = f"{text}, {early} ended early because they were lost" if early else text
    if report.first_pass_s is None:
        return f"{text}."
    first = f"The first model within the limit lay on disk after {report.first_pass_s:.1f} s"
    samples, total = report.first_pass_samples, report.evaluations[0].count
    if samples is not None and samples < total:
        first += f", judged by {samples:,} samples; the other {total - samples:,} came later"
    return f"{text}. {first}."


def _tried(report: Report, metric: str) -> Table:
    names = ("In INT8", "SQNR dB", "predicted", "Quick ms", "Size", metric, "Samples", "Seconds")
    rows = tuple(
        (
            t.name,
            t.coverage,
            f"{t.noise_db:.1f}",
            f"{t.predicted_db:.1f}" if t.predicted_db is not None else "–",
            ", ".join(f"{r} {ms:.3g}" for r, ms in t.latency_ms.items())
            or ("–" if t.samples else "does not run"),
            size_text(t.size_bytes),
            _score(t, report),
            f"{t.samples:,}" if t.samples else "–",
            f"{t.seconds + t.evaluation_seconds:.1f}",
            t.outcome,
        )
        for t in report.trials
    )
    columns = (Column("Candidate"), *(Column(n, "right") for n in names), Column("Verdict"))
    return Table(
        "Everything that was tried",
        columns,
        rows,
        note="SQNR is that of the outputs, found and, where layers went to float, predicted from "
        "the noise of single layers. Scores on fewer samples are of candidates that were lost.",
    )


def _score(trial: TrialRow, report: Report) -> str:
    return score_text(trial.value, report.verdict.scale) if trial.value is not None else "–"


def _front(report: Report, front: Sequence[Choice], metric: str) -> Table:
    rows = tuple(
        (
            c.name,
            score_text(c.value, report.verdict.scale),
            f"{c.ms:.3g}",
            size_text(c.size_bytes),
            c.outcome or "–",
        )
        for c in sorted(front, key=lambda c: c.ms)
    )
    columns = (
        Column("Model"),
        *(Column(n, "right") for n in (metric, "Quick ms", "Size")),
        Column("Verdict"),
    )
    note = "No other model is as good in all three and better in one."
    return Table("Pareto front: accuracy, latency, size", columns, rows, note=note)


def _picture(choices: Sequence[Choice], front: Sequence[Choice], metric: str) -> Scatter:
    return Scatter(
        title=f"Latency and {metric}",
        description="The line joins the Pareto front.",
        x_label="quick median, ms",
        y_label=metric,
        points=tuple(
            Point(
                c.ms,
                c.value,
                c.name,
                "baseline" if not c.outcome else "candidate" if c.outcome == "pass" else "plain",
            )
            for c in choices
        ),
        line=tuple(sorted((c.ms, c.value) for c in front)),
    )


def _noise(report: Report) -> tuple[Point, ...]:
    return tuple(
        Point(
            min(t.latency_ms.values()),
            t.noise_db,
            t.name,
            "candidate" if t.outcome == "pass" else "plain",
        )
        for t in report.trials
        if t.latency_ms
    )
