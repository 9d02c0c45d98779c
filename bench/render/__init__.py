"""Reports: a `Document` of plain data, and one file per format that it can be rendered to.

A new format is a file with a function, and a row in `FORMATS`; nothing else knows formats.
"""

from collections.abc import Callable

from bench.errors import UsageError
from bench.render.document import (
    Banner,
    Bar,
    Bars,
    Block,
    Check,
    CheckOutcome,
    Column,
    Curve,
    Document,
    Ecdf,
    Figure,
    Forest,
    ForestRow,
    KeyFigure,
    Lines,
    Outcome,
    Pair,
    Pairs,
    Paragraph,
    Point,
    Roof,
    Roofline,
    Scatter,
    Section,
    Series,
    Table,
    Tone,
)
from bench.render.github import github_annotation, github_annotations
from bench.render.html import render_html
from bench.render.junit import render_junit
from bench.render.markdown import render_markdown
from bench.render.text import render_text

__all__ = [
    "FORMATS",
    "Banner",
    "Bar",
    "Bars",
    "Block",
    "Check",
    "CheckOutcome",
    "Column",
    "Curve",
    "Document",
    "Ecdf",
    "Figure",
    "Forest",
    "ForestRow",
    "KeyFigure",
    "Lines",
    "Outcome",
    "Pair",
    "Pairs",
    "Paragraph",
    "Point",
    "Roof",
    "Roofline",
    "Scatter",
    "Section",
    "Series",
    "Table",
    "Tone",
    "github_annotation",
    "github_annotations",
    "render",
]

FORMATS: dict[str, Callable[[Document], str]] = {
    "text": render_text,
    "markdown": render_markdown,
    "html": render_html,
    "junit": render_junit,
}


def render(document: Document, format: str) -> str:
    """A document in the format called `format`.

    Raises:
        UsageError: There is none of that name.
    """
    try:
        writer = FORMATS[format]
    except KeyError:
        raise UsageError(f"unknown format {format!r}; known: {', '.join(FORMATS)}.") from None
    return writer(document)
