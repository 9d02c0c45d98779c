"""Plain text for a terminal or a log: aligned, 100 columns, nothing that a terminal would obey."""

import textwrap
from collections.abc import Iterator

from bench.render.document import Bars, Block, Check, Column, Document, Paragraph, Table
from bench.render.escape import clean, clean_lines, columns, elide
from bench.render.scale import drawable
from bench.render.tabulate import tabulate

_WIDTH = 100
_MAX_ROWS = 200
_MIN_COLUMN = 8
_BAR = 30


def render_text(document: Document) -> str:
    """The report as text that ends with a line feed."""
    return "\n".join(_lines(document)) + "\n"


def _lines(document: Document) -> Iterator[str]:
    verdict = document.verdict
    title = elide(clean(document.title), _WIDTH)
    yield from (title, "=" * min(max(columns(title), 4), _WIDTH), "")
    yield from _wrap(f"{verdict.outcome.upper()}: {verdict.headline}")
    for line in verdict.lines:
        yield from _wrap(line, "  ")
    if verdict.figures:
        yield ""
        yield from _grid([[f.label, f.value, f.note] for f in verdict.figures], "lrl", "  ")
    if document.picture is not None:
        yield ""
        yield from _block(document.picture)
    if document.checks:
        yield from ("", "Checks", "------")
        yield from _checks(document.checks)
    for section in document.sections:
        heading = elide(clean(section.title), _WIDTH)
        yield from ("", heading, "-" * max(columns(heading), 1))
        for i, block in enumerate(section.blocks):
            if i:
                yield ""
            yield from _block(block)
    if document.footer:
        yield ""
        for line in document.footer:
            yield from _wrap(line)


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Paragraph):
        label = "" if block.tone == "plain" else f"{block.tone.capitalize()}: "
        for i, line in enumerate(clean_lines(block.text).split("\n")):
            yield from _wrap(line if i else label + line)
        return
    table = block if isinstance(block, Table) else tabulate(block)
    if isinstance(block, Bars):
        table = _with_bars(table, block)
    yield from _table(table)


def _with_bars(table: Table, figure: Bars) -> Table:
    """A last column with a bar of `#` for each positive value, none for the reference row."""
    largest = max((b.value for b in figure.bars if drawable(b.value)), default=0.0)
    drawn = [
        "#" * round(_BAR * b.value / largest) if drawable(b.value) and b.value > 0 else ""
        for b in figure.bars
    ]
    drawn += [""] * (len(table.rows) - len(drawn))
    rows = tuple((*row, mark) for row, mark in zip(table.rows, drawn, strict=True))
    return Table(table.title, (*table.columns, Column("")), rows, table.note)


def _table(table: Table) -> Iterator[str]:
    yield from _wrap(table.title)
    width = len(table.columns)
    body = [[*row, *[""] * width][:width] for row in table.rows[:_MAX_ROWS]]
    sides = "".join("r" if c.align == "right" else "l" for c in table.columns)
    lines = list(_grid([[c.name for c in table.columns], *body], sides, "  "))
    yield from lines[:1]
    yield "  " + "-" * max((columns(line) - 2 for line in lines), default=0)
    yield from lines[1:]
    if len(table.rows) > _MAX_ROWS:
        yield f"  {len(table.rows) - _MAX_ROWS:,} more rows are in report.json."
    if table.note:
        yield from _wrap(table.note, "  ")


def _checks(checks: tuple[Check, ...]) -> Iterator[str]:
    rows = [[c.outcome.upper(), c.name] for c in checks]
    for check, line in zip(checks, _grid(rows, "ll", "  "), strict=True):
        yield line
        yield from _wrap(check.message, "      ")
        for detail in clean_lines(check.details).split("\n"):
            yield from _wrap(detail, "      ")


def _grid(rows: list[list[str]], sides: str, indent: str) -> Iterator[str]:
    """Rows with their cells padded; the widest columns give way where a line is too long."""
    cleaned = [[clean(cell) for cell in row] for row in rows]
    widths = [max(columns(row[i]) for row in cleaned) for i in range(len(sides))]
    room = _WIDTH - len(indent) - 2 * (len(sides) - 1)
    while sum(widths) > room and max(widths) > _MIN_COLUMN:
        widest = widths.index(max(widths))
        widths[widest] = max(_MIN_COLUMN, widths[widest] - (sum(widths) - room), _next(widths))
    for row in cleaned:
        cells = [_pad(cell, w, s) for cell, w, s in zip(row, widths, sides, strict=True)]
        yield (indent + "  ".join(cells)).rstrip()


def _next(widths: list[int]) -> int:
    """The second largest width, or one less than the largest where two are equal."""
    first, *others = sorted(widths, reverse=True)
    return min(others[0] if others else 0, first - 1)


def _pad(cell: str, width: int, side: str) -> str:
    limit = width
    while columns(cell) > width:
        cell = elide(cell, max(limit, 3))
        limit -= 1
        if limit < 3:
            break
    gap = " " * (width - columns(cell))
    return gap + cell if side == "r" else cell + gap


def _wrap(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        clean(text), _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
