"""How a prediction for another machine is told: apart from everything that was measured."""

from collections.abc import Sequence

from bench.forecast import Forecast, Prediction
from bench.render import Block, Column, Paragraph, Section, Table


def forecast_section(found: Forecast) -> Section:
    """Predicted latencies, how far off such predictions are here, and what was left out."""
    blocks: list[Block] = [Paragraph(f"Predicted, not measured. {_bar(found)}", "warning")]
    if found.predictions:
        names = ("threads there", "measured here, ms", "predicted, ms", "if as far off as here")
        blocks.append(
            Table(
                f"Predicted for {found.machine.cpu} ({found.machine.isa_class})",
                (Column("variant"), *(Column(n, "right") for n in names)),
                tuple(_row(p, found.factor) for p in found.predictions),
                f"From {found.source}: each kind of kernel (convolutions, matrix products, the "
                "rest; float and integer) is taken to be as much slower or faster there as small "
                "layers of its kind, timed on both machines in the same runtime.",
            )
        )
    if found.checks:
        rows = tuple(
            (c.name, f"{c.predicted_ms:.3g}", f"{c.measured_ms:.3g}", f"{c.factor:.2f}×")
            for c in found.checks
        )
        heads = ("predicted, ms", "measured, ms", "off by")
        blocks.append(
            Table(
                "The same kind of prediction, tried here",
                (Column("what"), *(Column(h, "right") for h in heads)),
                rows,
                "From the times with all kernels and threads of this machine, for less of it.",
            )
        )
    blocks += [Paragraph(f"Not predicted: {text}") for text in found.left_out]
    blocks += [Paragraph(f"What speaks against it: {text}.", "warning") for text in found.doubts]
    return Section("On another machine", tuple(blocks))


def forecast_lines(found: Forecast, variants: Sequence[str]) -> list[str]:
    """One line with the most threads that were measured there, for the top of a report."""
    most = {p.variant: p for p in sorted(found.predictions, key=lambda p: p.threads)}
    parts = [
        f"{name} {most[name].ms:.3g} ms ({between(most[name], found.factor)})"
        for name in variants
        if name in most
    ]
    return [f"Predicted for {found.machine.cpu}, not measured: {', '.join(parts)}."] * bool(parts)


def between(prediction: Prediction, factor: float | None) -> str:
    """The range of a prediction that is as far off as those that were tried here."""
    if factor is None:
        return "unknown"
    return f"{prediction.ms / factor:.3g} to {prediction.ms * factor:.3g}"


def _bar(found: Forecast) -> str:
    if found.factor is None:
        return "How far off it may be is unknown: nothing of the kind could be tried here."
    return (
        f"The same kind of prediction was off by up to {found.factor:.2f} times in "
        f"{len(found.checks)} cases that were tried on this machine; the other one may differ more."
    )


def _row(prediction: Prediction, factor: float | None) -> tuple[str, ...]:
    return (
        prediction.variant,
        str(prediction.threads),
        f"{prediction.here_ms:.3g}",
        f"{prediction.ms:.3g}",
        between(prediction, factor),
    )
