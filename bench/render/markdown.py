"""GitHub-flavoured Markdown for pull-request comments and job summaries: figures become tables."""

import re
from collections.abc import Iterator

from bench.escape import clean, clean_lines, elide_words
from bench.render.document import Banner, Check, Document, Paragraph, Section, Table
from bench.render.tabulate import tabulate

MAX_CHARACTERS = 65_000
"""GitHub refuses a comment of more than 65,536."""

MARKER = "<!-- vnnify report -->"
"""First line, invisible: lets a workflow find its own comment and replace it."""

_MAX_ROWS = 100
_FOLDED_ROWS = 12
_SIGNS = {
    "pass": "✅ Pass",
    "refuse": "❌ Refused",
    "inconclusive": "❓ Inconclusive",
    "info": "📊 Report",
    "fail": "❌ Fail",
    "error": "⚠️ Error",
    "skipped": "⏭️ Skipped",
}
# Entities, not backslashes: what counts as escaped differs between table cells, HTML and plain
# text, but an entity can never begin or end anything.
_ENTITIES = str.maketrans({c: f"&#{ord(c)};" for c in "\\`*[]~$|<>&#"})
_BREAK = "&#8203;"  # zero-width space: takes mentions and links apart, invisibly
_LINE_START = re.compile(r"^(-(?!\d)|\+(?!\d)|[=:]|\d+(?=[.)](?:\s|$)))")
_UNDERSCORE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
_LINKS = re.compile(r"(@|&#35;|\bGH-|://|\bwww\.)(?=\w)", re.IGNORECASE)


def render_markdown(document: Document) -> str:
    """The report as Markdown of at most `MAX_CHARACTERS` characters."""
    head = _head(document)
    foot = [f"<sub>{_text(line, 300)}</sub>" for line in document.footer[:10]]
    note = (
        "> **Note:** cut here, because a comment has room for no more. All of it is in report.json."
    )
    room = MAX_CHARACTERS - sum(len(b) + 2 for b in (*head, *foot, note))
    body: list[str] = []
    for block in _body(document):
        room -= len(block) + 2
        if room < 0:
            body.append(note)
            break
        body.append(block)
    return "\n\n".join([*head, *body, *foot]) + "\n"


def escape_markdown(text: str) -> str:
    """One line that Markdown shows as it is: no markup, cells, links, mentions or references."""
    text = clean(text).translate(_ENTITIES)
    text = _UNDERSCORE.sub("&#95;", text)
    text = _LINKS.sub(lambda m: m.group(1) + _BREAK, text)
    return _LINE_START.sub(_defuse_line_start, text)


def _defuse_line_start(match: re.Match[str]) -> str:
    found = match.group(1)
    return f"{found}{_BREAK}" if found.isdigit() else f"&#{ord(found)};"


def _head(document: Document) -> list[str]:
    verdict = document.verdict
    parts = [
        MARKER,
        f"# {_text(document.title or 'vnnify report', 160)}",
        f"**{_SIGNS[verdict.outcome]}: {_text(verdict.headline, 300)}**",
    ]
    if verdict.lines:
        parts.append("\n".join(f"- {_text(line, 500)}" for line in verdict.lines[:12]))
    return [*parts, *_key_figures(verdict)]


def _key_figures(verdict: Banner) -> list[str]:
    figures = verdict.figures[:8]
    if not figures:
        return []
    rows = (
        [_text(f.label, 80) for f in figures],
        ["---"] * len(figures),
        [f"**{_text(f.value, 40) or '&nbsp;'}**" for f in figures],
        [_text(f.note, 160) for f in figures],
    )
    return ["\n".join(map(_row, rows))]


def _body(document: Document) -> Iterator[str]:
    if document.picture is not None:
        yield _table(tabulate(document.picture))
    if document.checks:
        yield "## Checks\n\n" + _checks(document.checks)
    for section in document.sections:
        yield f"## {_text(section.title, 160)}"
        yield from _blocks(section)


def _blocks(section: Section) -> Iterator[str]:
    for block in section.blocks:
        if isinstance(block, Paragraph):
            yield _paragraph(block)
        else:
            yield _table(block if isinstance(block, Table) else tabulate(block))


def _paragraph(block: Paragraph) -> str:
    lines = [_text(line, 2000) for line in clean_lines(block.text).split("\n")[:100]]
    if block.tone == "plain":
        return "  \n".join(lines)
    return "> " + f"**{block.tone.capitalize()}:** " + "  \n> ".join(lines)


def _table(table: Table) -> str:
    shown = table.rows[:_MAX_ROWS]
    width = len(table.columns)
    rows = [
        [_text(c.name, 80) for c in table.columns],
        ["---:" if c.align == "right" else ":---" for c in table.columns],
        *([_text(cell, 400) for cell in [*row, *[""] * width][:width]] for row in shown),
    ]
    grid = "\n".join(map(_row, rows)) if width else ""
    title, note = _text(table.title, 160), _text(table.note, 500)
    if len(table.rows) > len(shown):
        rest = f"{len(table.rows) - len(shown):,} more rows are in report.json."
        note = f"{note} {rest}".strip()
    tail = f"\n\n{note}" if note else ""
    if len(shown) > _FOLDED_ROWS:
        return f"<details><summary>{title or 'Table'}</summary>\n\n{grid}{tail}\n\n</details>"
    return f"**{title}**\n\n{grid}{tail}" if title else f"{grid}{tail}"


def _checks(checks: tuple[Check, ...]) -> str:
    shown = checks[:_MAX_ROWS]
    rows = [
        ["Check", "Outcome", "Result"],
        [":---"] * 3,
        *([_text(c.name, 120), _SIGNS[c.outcome], _text(c.message, 500)] for c in shown),
    ]
    rest = len(checks) - len(shown)
    more = f"\n\n{rest:,} more checks are in report.json." if rest else ""
    return "\n".join(map(_row, rows)) + more


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(text: str, limit: int) -> str:
    return escape_markdown(elide_words(clean(text), 80, limit))
