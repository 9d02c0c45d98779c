"""Foreign text made harmless, and numbers made short. Names in a model are arbitrary UTF-8.

Every format passes every string through `clean` or `clean_lines` before its own escaping: that
takes out control characters (terminal escapes), lone surrogates (which cannot be encoded),
characters that XML 1.0 forbids, and the invisible ones that reorder or hide text.
"""

import html
import math
import re
import unicodedata

ELLIPSIS = "…"
MINUS = "\N{MINUS SIGN}"
_CSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_SPACES = re.compile(r"\s+")


def clean(text: str) -> str:
    """One line of printable characters, runs of white space made one space."""
    if not text.isprintable():
        text = _CSI.sub("", text)
        text = "".join(c if c.isprintable() else " " if c.isspace() else "" for c in text)
    return _SPACES.sub(" ", text).strip()


def clean_lines(text: str) -> str:
    """The same with line breaks kept (as LF) and lines left empty by the cleaning taken out."""
    lines = (clean(line) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def elide(text: str, limit: int) -> str:
    """At most `limit` characters, cut in the middle: names differ at both ends.

    Args:
        text: Clean text.
        limit: At least 3.
    """
    if len(text) <= limit:
        return text
    head = limit // 2
    return text[:head] + ELLIPSIS + text[len(text) - (limit - head - 1) :]


def elide_words(text: str, word: int, limit: int) -> str:
    """Elide each word longer than `word` characters, then end the text at `limit` characters."""
    text = " ".join(elide(w, word) for w in text.split(" "))
    return text if len(text) <= limit else text[: limit - 1].rstrip() + ELLIPSIS


def escape_html(text: str) -> str:
    """Clean text that can stand in HTML or XML, as content or inside a quoted attribute."""
    return html.escape(clean(text), quote=True)


def columns(text: str) -> int:
    """Terminal columns of clean text: wide East Asian characters two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def number(value: float) -> str:
    """Four significant digits at most, thousands separated: 12,345, 1.72, 0.0012, "not finite"."""
    if not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if value == 0:
        return "0"
    if size >= 1e7 or size < 1e-4:
        return f"{value:.3g}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{float(f'{value:.4g}'):.10f}".rstrip("0").rstrip(".")
