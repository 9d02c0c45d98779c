"""Workflow commands for GitHub Actions: lines on standard output that become annotations."""

from typing import Literal

from bench.escape import clean, clean_lines
from bench.render.document import Check

MAX_ANNOTATIONS = 10
"""GitHub shows ten errors and ten warnings of a step and drops the rest silently."""


def github_annotation(
    level: Literal["error", "warning", "notice"], title: str, message: str
) -> str:
    """One workflow command; nothing in the texts can end it or begin another.

    Args:
        level: How it is shown.
        title: A property: its colons and commas are encoded too.
        message: May have several lines.
    """
    return f"::{level} title={_property(title)}::{_data(clean_lines(message))}"


def github_annotations(checks: tuple[Check, ...]) -> tuple[str, ...]:
    """Annotations for checks that did not pass: errors first, inconclusive ones as warnings."""
    errors = [c for c in checks if c.outcome in ("fail", "error")][:MAX_ANNOTATIONS]
    doubts = [c for c in checks if c.outcome == "inconclusive"][:MAX_ANNOTATIONS]
    return (
        *(github_annotation("error", c.name, c.message) for c in errors),
        *(github_annotation("warning", c.name, c.message) for c in doubts),
    )


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(clean(text)).replace(":", "%3A").replace(",", "%2C")
