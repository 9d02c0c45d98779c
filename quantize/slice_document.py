"""How slices and flips are told: a figure of the worst slices, and tables."""

from collections.abc import Sequence

from bench.render import Block, Column, Forest, ForestRow, Section, Table
from quantize.amounts import UNITS, Scale, drop_text, scaled, score_text
from quantize.flips import Flip
from quantize.slices import SliceVerdict

_SHOWN_SLICES = 12
_SHOWN_FLIPS = 20


def slice_section(
    slices: Sequence[SliceVerdict],
    flips: Sequence[Flip],
    changed: int,
    limit: float,
    scale: Scale,
    *,
    asked: bool,
) -> Section | None:
    """What a report says of slices and flips; None where there are none.

    Args:
        slices: The worst first.
        flips: What lost most first; the first thousand.
        changed: Samples that changed, in all.
        limit: That slices were held against.
        scale: How scores and drops are written.
        asked: Whether slices have a limit of their own, and so decide anything.
    """
    blocks: list[Block] = []
    if slices:
        blocks += [_figure(slices, limit, scale, asked=asked), _slices(slices, scale)]
    if flips:
        blocks.append(_flips(flips, max(changed, len(flips)), scale))
    return Section("Slices and flips", tuple(blocks)) if blocks else None


def _figure(slices: Sequence[SliceVerdict], limit: float, scale: Scale, *, asked: bool) -> Forest:
    rows = tuple(
        ForestRow(
            s.name,
            scaled(s.drop, scale),
            scaled(s.low, scale),
            scaled(s.high, scale),
            s.outcome,
        )
        for s in slices[:_SHOWN_SLICES]
    )
    about = (
        "The drop of each slice; right of the line is too much. Left ends are corrected for "
        f"{len(slices)} slices."
    )
    if not asked:
        about += " They decide nothing without --max-slice-drop; the line is the limit of the mean."
    return Forest("Worst slices", about, UNITS[scale], rows, scaled(limit, scale), "limit")


def _slices(slices: Sequence[SliceVerdict], scale: Scale) -> Table:
    rows = tuple(
        (
            s.name,
            f"{s.n:,}",
            score_text(s.baseline_value, scale),
            score_text(s.candidate_value, scale),
            drop_text(s.drop, scale),
            drop_text(s.high, scale),
            s.outcome,
        )
        for s in slices[:_SHOWN_SLICES]
    )
    right = ("Samples", "FP32", "INT8", "Drop", "At most")
    columns = (Column("Slice"), *(Column(n, "right") for n in right), Column("Verdict"))
    more = len(slices) - len(rows)
    note = f"{more} more {'is' if more == 1 else 'are'} not shown." if more else ""
    return Table("Slices", columns, rows, note)


def _flips(flips: Sequence[Flip], changed: int, scale: Scale) -> Table:
    rows = tuple(
        (str(f.sample), f.place, f.label, f.before, f.after, drop_text(f.drop, scale))
        for f in flips[:_SHOWN_FLIPS]
    )
    names = ("Sample", "From", "Label", "FP32 says", "INT8 says", "Lost")
    note = "1 sample changed." if changed == 1 else f"{changed:,} samples changed."
    if changed > len(rows):
        note += " The first are shown; --flips writes all of them into a CSV file."
    return Table("Samples that changed", tuple(Column(n) for n in names), rows, note)
