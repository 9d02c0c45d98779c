"""How a report tells of single layers: in float, hard for 8 bits, ranges that drifted."""

from bench.render import Block, Column, Paragraph, Section, Table
from quantize.report import Report


def layer_section(report: Report) -> Section:
    """Which layers run in INT8, why others do not, and what made them hard."""
    floats = [
        (x.name, x.op, x.reason or "the recipe leaves it in float")
        for x in report.layers
        if x.mode == "float"
    ]
    floats += [(name, "–", reason) for name, reason in report.left.items()]
    narrowed = sum(x.narrowed for x in report.layers)
    channels = sum(x.channels for x in report.layers)
    dynamic = sum(x.mode == "dynamic" for x in report.layers)
    text = (
        f"{report.coverage} layers run in INT8 ({dynamic} of them with scales found at run time)."
    )
    if narrowed:
        text += (
            f" {narrowed:,} of {channels:,} output channels use less than 8 bits, so that no "
            "sum of two products leaves 16 bits on CPUs without VNNI."
        )
    blocks: list[Block] = [Paragraph(text)]
    if floats:
        blocks.append(
            Table("In float", (Column("Layer"), Column("Operator"), Column("Why")), tuple(floats))
        )
    if report.findings:
        rows = tuple((f.layer, f.cause, f.done) for f in report.findings)
        columns = (Column("Layer"), Column("Cause"), Column("Done"))
        blocks.append(Table("Hard for 8 bits", columns, rows))
    if report.drift:
        blocks.append(_drift(report))
    return Section("Layers", tuple(blocks))


def _drift(report: Report) -> Table:
    rows = tuple(
        (
            d.name,
            f"{d.low_before:.4g} to {d.high_before:.4g}",
            f"{d.low:.4g} to {d.high:.4g}",
            f"{d.factor:.2f}×",
        )
        for d in report.drift
    )
    names = ("With the recipe", "Now", "Width")
    columns = (Column("Input of"), *(Column(n, "right") for n in names))
    return Table("Drift of ranges, the farthest first", columns, rows)
