"""Plain text for a terminal or a log: aligned, as wide as asked, with nothing it would obey.

Tables take the whole width. Prose stays within `WIDTH`, where lines are still easy to read.
"""

import textwrap
from collections.abc import Iterator

from bench.escape import clean, clean_lines, columns, elide
from bench.render.document import Bars, Block, Check, Column, Document, Paragraph, Table
from bench.render.scale import drawable
from bench.render.tabulate import tabulate

WIDTH = 100
"""Columns of files, pipes and logs."""

_NARROWEST = 40
_MAX_ROWS = 200
_MIN_COLUMN = 8
_INDENT = "  "
_NAME = 20
"""Columns of a row's name below which it gets a line of its own."""

_PROSE = 24
"""Columns in which a last cell still wraps well."""

_BAR, _SHORTEST_BAR = 30, 8


def render_text(document: Document, width: int = WIDTH) -> str:
    """The report as text that ends with a line feed.

    Args:
        document: The report.
        width: Columns to fill at most; fewer than 40 are taken for 40.
    """
    return "\n".join(_lines(document, max(width, _NARROWEST))) + "\n"


def _lines(document: Document, width: int) -> Iterator[str]:
    verdict = document.verdict
    yield from _heading(document.title, "=", width)
    yield ""
    yield from _wrap(f"{verdict.outcome.upper()}: {verdict.headline}", width)
    for line in verdict.lines:
        yield from _wrap(line, width, "  ")
    if verdict.figures:
        yield ""
        figures = [[f.label, f.value, f.note] for f in verdict.figures]
        yield from _grid(figures, "lrl", width)
    if document.picture is not None:
        yield ""
        yield from _block(document.picture, width)
    if document.checks:
        yield ""
        yield from _heading("Checks", "-", width)
        yield from _checks(document.checks, width)
    for section in document.sections:
        yield ""
        yield from _heading(section.title, "-", width)
        for i, block in enumerate(section.blocks):
            if i:
                yield ""
            yield from _block(block, width)
    if document.footer:
        yield ""
        for line in document.footer:
            yield from _wrap(line, width)


def _heading(text: str, rule: str, width: int) -> tuple[str, str]:
    title = elide(clean(text), width)
    return title, rule * min(max(columns(title), 4), width)


def _block(block: Block, width: int) -> Iterator[str]:
    if isinstance(block, Paragraph):
        label = "" if block.tone == "plain" else f"{block.tone.capitalize()}: "
        for i, line in enumerate(clean_lines(block.text).split("\n")):
            yield from _wrap(line if i else label + line, width)
        return
    table = block if isinstance(block, Table) else tabulate(block)
    if isinstance(block, Bars):
        table = _with_bars(table, block, width)
    yield from _table(table, width)


def _with_bars(table: Table, figure: Bars, width: int) -> Table:
    """A last column with a bar of `#` for each positive value, none for the reference row."""
    largest = max((b.value for b in figure.bars if drawable(b.value)), default=0.0)
    rows = [[c.name for c in table.columns], *map(list, table.rows)]
    taken = sum(w + 2 for w in _widths(rows)) + len(_INDENT)
    longest = max(_SHORTEST_BAR, min(_BAR, width - taken))
    drawn = [
        "#" * round(longest * b.value / largest) if drawable(b.value) and b.value > 0 else ""
        for b in figure.bars
    ]
    drawn += [""] * (len(table.rows) - len(drawn))
    body = tuple((*row, mark) for row, mark in zip(table.rows, drawn, strict=True))
    return Table(table.title, (*table.columns, Column("")), body, table.note)


def _table(table: Table, width: int) -> Iterator[str]:
    if table.title:
        yield from _wrap(table.title, width)
    count = len(table.columns)
    body = [[*row, *[""] * count][:count] for row in table.rows[:_MAX_ROWS]]
    sides = "".join("r" if c.align == "right" else "l" for c in table.columns)
    heads = [c.name for c in table.columns]
    if any(heads):
        lines = list(_grid([heads, *body], sides, width, ruled=True))
    else:
        lines = list(_grid(body, sides, width))
    yield from lines
    if len(table.rows) > _MAX_ROWS:
        yield f"{_INDENT}{len(table.rows) - _MAX_ROWS:,} more rows are in report.json."
    if table.note:
        yield from _wrap(table.note, width, _INDENT)


def _checks(checks: tuple[Check, ...], width: int) -> Iterator[str]:
    rows = [[c.outcome.upper(), clean(c.name)] for c in checks]
    widths = _fitting(_widths(rows), width)
    for check, row in zip(checks, rows, strict=True):
        yield from _row(row, widths, "ll")
        yield from _wrap(check.message, width, "      ")
        for detail in clean_lines(check.details).split("\n"):
            yield from _wrap(detail, width, "      ")


def _grid(rows: list[list[str]], sides: str, width: int, *, ruled: bool = False) -> Iterator[str]:
    """Rows with their cells padded, a rule below the first one if asked for.

    Where a line is too long, prose in the last column wraps, names get lines of their own, and at
    last the widest columns give way.
    """
    cleaned = [[clean(cell) for cell in row] for row in rows]
    widths = _widths(cleaned)
    room = width - len(_INDENT) - 2 * (len(sides) - 1)
    others = sum(widths[1:])
    prose = sides[-1] == "l" and len(sides) > 1 and sum(widths[:-1]) + _PROSE <= room
    named_apart = not prose and len(sides) > 2 and room - others < min(widths[0], _NAME)
    if prose:
        widths[-1] = min(widths[-1], room - sum(widths[:-1]))
    elif named_apart:
        widths = [0, *_fitting(widths[1:], width - 2)]
    else:
        widths = _fitting(widths, width)
    lines = [list(_row(row, widths, sides, wrapped=prose)) for row in cleaned]
    if named_apart:
        names = [f"{_INDENT}{elide(row[0], width - len(_INDENT))}".rstrip() for row in cleaned]
        lines = [[name, *line] for name, line in zip(names, lines, strict=True)]
    longest = max((columns(line) for own in lines for line in own), default=0)
    for i, own in enumerate(lines):
        yield from own
        if ruled and i == 0:
            yield _INDENT + "-" * max(longest - len(_INDENT), 0)


def _widths(rows: list[list[str]]) -> list[int]:
    return [max(columns(cell) for cell in column) for column in zip(*rows, strict=True)]


def _fitting(widths: list[int], width: int) -> list[int]:
    """The same with the widest columns narrowed until a line fits, none below `_MIN_COLUMN`."""
    fitted = list(widths)
    room = width - len(_INDENT) - 2 * (len(fitted) - 1)
    while sum(fitted) > room and max(fitted) > _MIN_COLUMN:
        widest = fitted.index(max(fitted))
        over = sum(fitted) - room
        fitted[widest] = max(_MIN_COLUMN, fitted[widest] - over, _next(fitted))
    return fitted


def _row(row: list[str], widths: list[int], sides: str, *, wrapped: bool = False) -> Iterator[str]:
    """The lines of one row: several only where its last cell wraps. A width of 0 is no column."""
    cells = [_pad(c, w, s) for c, w, s in zip(row, widths, sides, strict=True) if w]
    more: list[str] = []
    if wrapped and columns(row[-1]) > widths[-1]:
        first, *more = textwrap.wrap(row[-1], widths[-1], break_on_hyphens=False)
        cells[-1] = first
    start = _INDENT + ("" if widths[0] else _INDENT)
    yield (start + "  ".join(cells)).rstrip()
    left = " " * (sum(widths[:-1]) + 2 * (len(widths) - 1))
    yield from (_INDENT + left + line for line in more)


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


def _wrap(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        clean(text),
        min(width, WIDTH),
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )
