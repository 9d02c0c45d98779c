"""How the cost of a benchmark's rows is told."""

from collections.abc import Iterator, Sequence

from bench.cost import Cost, costs, money, verdict
from bench.pictures import cost_bars
from bench.render import Block, Column, KeyFigure, Paragraph, Table
from bench.report import BenchReport, supplies


def rate(per_second: float) -> str:
    """`3,197`, `121.2`: four digits, and never an exponent."""
    return f"{per_second:,.0f}" if per_second >= 1000 else f"{per_second:.4g}"


def cost_blocks(report: BenchReport) -> Iterator[Block]:
    """What a million inferences cost; nothing without prices."""
    if not report.prices:
        return
    found = costs(supplies(report), report.prices, report.utilisation)
    if not found:
        # As in the banner, which otherwise says all of it.
        yield from map(Paragraph, verdict((), report.prices, report.utilisation, report.p99_ms))
        return
    rows = tuple(
        (
            c.supply.name,
            c.price.name,
            f"{c.price.per_hour:g} {c.price.currency}, {c.price.date}",
            c.supply.how,
            rate(c.supply.per_second),
            money(c.per_million, c.price),
        )
        for c in found
    )
    columns = (
        Column("variant"),
        Column("machine"),
        Column("per hour"),
        Column("load"),
        Column("per s", "right"),
        Column("per million", "right"),
    )
    note = f"At {report.utilisation:.0%} utilisation; prices are the user's."
    yield Table("Cost of a million inferences", columns, rows, note)
    yield cost_bars(found)
    yield from _unpaid(report)


def _unpaid(report: BenchReport) -> Iterator[Block]:
    """What is wrong with entries that name a CPU on which nothing was measured."""
    cpus = (report.machine.cpu, *(o.machine.cpu for o in report.merged))
    for price in report.prices:
        if not any(price.cpu.casefold() in cpu.casefold() for cpu in cpus):
            yield Paragraph(
                f"{price.name} is for {price.cpu!r}, and nothing was measured on such a CPU; "
                f"measured on {', '.join(cpus)}.",
                "warning",
            )


def cost_figures(found: Sequence[Cost]) -> list[KeyFigure]:
    """The cheapest row on each kind of device."""
    figures = []
    for device, name in (("cpu", "on a CPU"), ("cuda", "on a GPU")):
        best = next((c for c in found if c.supply.device == device), None)
        if best is not None:
            value = money(best.per_million, best.price)
            note = f"{best.supply.name}, on {best.price.name}"
            figures.append(KeyFigure(f"a million {name}", value, note))
    return figures
