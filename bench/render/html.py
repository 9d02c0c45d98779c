"""HTML: one file without scripts, readable in any browser, mail client or CI archive.

Everything in it is bounded, whatever the input: names, cells, rows, figures, and at last the file.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

from bench.escape import clean, clean_lines, elide, elide_words, escape_html
from bench.render.document import (
    Banner,
    Block,
    Check,
    Document,
    Figure,
    Paragraph,
    Section,
    Table,
)
from bench.render.style import style_sheet
from bench.render.svg import draw
from bench.render.tabulate import tabulate

MAX_BYTES = 300_000
"""Of the file; above it tables get shorter, then blocks are left out, and a line says so."""

_ROW_LIMITS = (200, 60, 20)
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
_WORDS = {
    "pass": ("✓", "Pass"),
    "refuse": ("✕", "Refused"),
    "inconclusive": ("?", "Inconclusive"),
    "info": ("i", "Report"),
    "fail": ("✕", "Fail"),
    "error": ("!", "Error"),
    "skipped": ("\N{EN DASH}", "Skipped"),
}
_MAX_CONTENTS = 40
_WIDE = 9
"""Columns from which a table is made small on paper."""
_LONGEST_WORD = 48
_PROSE, _LONG_NAME = 30, 18
"""Characters from which a cell is prose, or a row's name long, and asks for a readable width."""


def render_html(document: Document) -> str:
    """The report as an HTML page of less than `MAX_BYTES` bytes in UTF-8."""
    room = MAX_BYTES - len(_page(document, []).encode())
    for limit in _ROW_LIMITS:
        pieces, complete = _take(_pieces(document, limit), room)
        if complete:
            break
    return _page(document, pieces)


def _take(pieces: Iterator[str], room: int) -> tuple[list[str], bool]:
    """Pieces while there is room, and whether that was all; if not, a line says so at the end.

    What has no room is never made, so an enormous report costs no more than a large one.
    """
    kept: list[str] = []
    room -= 1000  # for the line, and for sections to be closed
    for piece in pieces:
        room -= len(piece.encode()) + 1
        if room < 0:
            opened = sum(p.startswith("<section") for p in kept) - kept.count("</section>")
            note = (
                '<p class="note"><strong>Note:</strong> This page would have become too large. '
                "Everything that is missing from here on is in report.json.</p>"
            )
            return [*kept, note, *["</section>"] * opened], False
        kept.append(piece)
    return kept, True


def _page(document: Document, pieces: list[str]) -> str:
    title = _short(document.title or "vnnify report", 160)
    footer = "".join(f"<p>{_short(line, 300)}</p>" for line in document.footer[:20])
    body = "\n".join(pieces)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{_word(document.verdict.outcome)}: {title}</title>"
        f'<style>{style_sheet()}</style></head>\n<body><div class="page">'
        f"<header><h1>{_text(document.title or 'vnnify report', 160)}</h1>\n"
        f"{_banner(document.verdict, document.picture)}</header>\n"
        f"{_contents(document)}<main>\n{body}\n</main>\n<footer>{footer}</footer></div></body></html>\n"
    )


def _banner(verdict: Banner, picture: Figure | None) -> str:
    sign, word = _WORDS[verdict.outcome]
    lines = "".join(f"<li>{_text(line, 500)}</li>" for line in verdict.lines[:12])
    figures = "".join(
        f'<div><dt>{_text(f.label, 80)}</dt><dd class="value">{_text(f.value, 40)}</dd>'
        f'<dd class="note">{_text(f.note, 160)}</dd></div>'
        for f in verdict.figures[:8]
    )
    reasons = f"<ul>{lines}</ul>" if lines else ""
    key = f'<dl class="key">{figures}</dl>' if figures else ""
    if picture is not None:
        # Numbers first, then what to look at, then what to know about it.
        drawn = _figure(picture, "f0", _ROW_LIMITS[-1])
        reasons, key = key, f'<div class="beside">{drawn}{reasons}</div>'
    return (
        f'<div class="verdict {verdict.outcome}"><p class="word">'
        f'<span aria-hidden="true">{sign}</span> {word}</p>'
        f'<p class="headline">{_text(verdict.headline, 300)}</p>{reasons}{key}</div>'
    )


def _contents(document: Document) -> str:
    if len(document.sections) <= 4:
        return ""
    titles = [s.title for s in document.sections[:_MAX_CONTENTS]]
    items = "".join(
        f'<li><a href="#s{i}">{_short(title, 60)}</a></li>' for i, title in enumerate(titles, 1)
    )
    return f'<nav aria-label="Contents"><strong>Contents</strong><ol>{items}</ol></nav>\n'


def _pieces(document: Document, limit: int) -> Iterator[str]:
    """The body in pieces that may be cut off from the end; a section's opening is a piece too."""
    if document.checks:
        yield '<section id="checks"><h2>Checks</h2>'
        yield _checks(document.checks, limit)
        yield "</section>"
    counter = iter(range(1, 1_000_000))
    for i, section in enumerate(document.sections, 1):
        yield f'<section id="s{i}"><h2>{_text(section.title, 160)}</h2>'
        yield from _blocks(section, counter, limit)
        yield "</section>"


def _blocks(section: Section, counter: Iterator[int], limit: int) -> Iterator[str]:
    """Blocks in order; neighbouring figures share a grid, eight at most: a cut then loses few."""
    for is_figure, run in groupby(section.blocks, key=_is_figure):
        if not is_figure:
            yield from (_block(block, limit) for block in run)
            continue
        figures = [b for b in run if not isinstance(b, Paragraph | Table)]
        drawn = [_figure(f, f"f{next(counter)}", limit) for f in figures]
        for start in range(0, len(drawn), 8):
            yield f'<div class="figures">{"".join(drawn[start : start + 8])}</div>'


def _is_figure(block: Block) -> bool:
    return not isinstance(block, Paragraph | Table)


def _block(block: Block, limit: int) -> str:
    if isinstance(block, Paragraph):
        return _paragraph(block)
    assert isinstance(block, Table)
    return _table(block, limit)


def _paragraph(block: Paragraph) -> str:
    text = "<br>".join(_text(line, 2000) for line in clean_lines(block.text).split("\n")[:100])
    if block.tone == "plain":
        return f"<p>{text}</p>"
    return f'<p class="{block.tone}"><strong>{block.tone.capitalize()}:</strong> {text}</p>'


def _figure(figure: Figure, key: str, limit: int) -> str:
    table = tabulate(figure)
    inner = _table(Table(table.title, table.columns, table.rows), limit)
    return (
        f"<figure><figcaption><strong>{_text(figure.title, 160)}</strong>"
        f"<br><span>{_text(figure.description, 500)}</span></figcaption>{draw(figure, key)}"
        f"<details><summary>Numbers</summary>{inner}</details></figure>"
    )


def _table(table: Table, limit: int) -> str:
    heads = "".join(
        f'<th scope="col"{_side(c.align)}>{_text(c.name, 80)}</th>' for c in table.columns
    )
    head = f"<thead><tr>{heads}</tr></thead>\n" if any(c.name for c in table.columns) else ""
    caption = f"<caption>{_text(table.title, 160)}</caption>" if table.title else ""
    sides = [c.align for c in table.columns]
    rows = "\n".join(_row(row, sides) for row in table.rows[:limit])
    wide = ' class="wide"' if len(table.columns) > _WIDE else ""
    missing = len(table.rows) - limit
    notes = [_text(table.note, 500)] if table.note else []
    if missing > 0:
        notes.append(f"{missing:,} more rows are in report.json ({len(table.rows):,} in all).")
    below = f'<p class="small">{" ".join(notes)}</p>' if notes else ""
    return (
        f"{_scroll(table.title or 'Table')}<table{wide}>{caption}{head}"
        f"<tbody>{rows}</tbody></table>{below}</div>"
    )


def _row(row: tuple[str, ...], sides: Sequence[str]) -> str:
    cells = [*row, *[""] * len(sides)][: len(sides)]
    made = []
    for i, (cell, side) in enumerate(zip(cells, sides, strict=True)):
        tag, scope = ("td", "") if i else ("th", ' scope="row"')
        prose = side == "left" and len(cell) > (_PROSE if i else _LONG_NAME)
        look = ' class="p"' if prose else _side(side)
        made.append(f"<{tag}{scope}{look}>{_text(cell, 400)}</{tag}>")
    return f"<tr>{''.join(made)}</tr>"


def _checks(every: Sequence[Check], limit: int) -> str:
    rows = "\n".join(_check(c) for c in every[:limit])
    missing = len(every) - limit
    below = (
        f'<p class="small">{missing:,} more checks are in report.json.</p>' if missing > 0 else ""
    )
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("Check", "Outcome", "Result"))
    return (
        f'{_scroll("Checks")}<table class="full checks"><thead><tr>{heads}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table>{below}</div>"
    )


def _check(check: Check) -> str:
    sign, word = _WORDS[check.outcome]
    details = elide(clean_lines(check.details), 2000)
    more = (
        f"<details><summary>Details</summary><pre>{_lines(details)}</pre></details>"
        if details
        else ""
    )
    return (
        f'<tr><th scope="row">{_text(check.name, 120)}</th>'
        f'<td><span class="badge {check.outcome}"><span aria-hidden="true">{sign}</span> {word}'
        f"</span></td><td>{_text(check.message, 600)}{more}</td></tr>"
    )


def _scroll(title: str) -> str:
    """A wide table scrolls in here, by keyboard too; the page never does."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{_short(title, 160)}">'


def _text(text: str, limit: int) -> str:
    """Escaped text with over-long words and ends elided, the full text in a tooltip then."""
    full = clean(text)
    shown = elide_words(full, _LONGEST_WORD, limit)
    if shown == full:
        return escape_html(full)
    words = [(w, elide(w, _LONGEST_WORD)) for w in full.split(" ")]
    if shown == " ".join(short for _, short in words):
        # Tooltips for the cut words alone: a whole sentence underlined is hard to read.
        return " ".join(_word_or_tooltip(word, short) for word, short in words)
    return f'<span title="{escape_html(elide(full, 1000))}">{escape_html(shown)}</span>'


def _word_or_tooltip(word: str, shown: str) -> str:
    if word == shown:
        return escape_html(word)
    return f'<span title="{escape_html(elide(word, 1000))}">{escape_html(shown)}</span>'


def _lines(text: str) -> str:
    return "\n".join(escape_html(line) for line in text.split("\n"))


def _short(text: str, limit: int) -> str:
    return escape_html(elide(clean(text), limit))


def _side(align: str) -> str:
    return ' class="r"' if align == "right" else ""


def _word(outcome: str) -> str:
    return _WORDS[outcome][1]
