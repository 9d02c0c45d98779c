"""What figures share around their data: grids with numbers, legends, plot areas, and thinning."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from bench.escape import clean
from bench.render.document import Tone
from bench.render.scale import Axis, drawable, fit_axis, tick_labels, ticks
from bench.render.shapes import (
    CYCLE,
    DASHES,
    SHAPES,
    SMALL_SIZE,
    WIDTH,
    line,
    mark,
    stroke,
    text_width,
    write,
)

TOP = 4.0
"""Free pixels above everything in a figure."""

_T = TypeVar("_T")
_MARKS = ("triangle", "diamond", "square", "disc", "ring")
_VARIED = ("", "6 3", "2 3", "9 3 2 3")
"""Dashes of curves that share a tone."""


@dataclass(frozen=True, slots=True)
class Panel:
    """The plot area of curves or points: its x axis, its drawn grid, and where it ends below."""

    x: Axis
    body: str
    bottom: float


@dataclass(frozen=True, slots=True)
class Look:
    """How a curve is told from the others: colour, dash and marks."""

    role: str
    dash: str
    shape: str


def panel(
    xs: Sequence[float],
    y: Axis,
    marks: Sequence[tuple[float, str]],
    label: str,
    *,
    log: bool,
    own_ticks: bool = False,
) -> Panel:
    """Grid and axes for the values `xs` across and the labelled `marks` upwards.

    Args:
        xs: Values that the x axis has to hold.
        y: The upright axis.
        marks: Where lines go across, and their numbers.
        label: Of the x axis.
        log: Whether the x axis is logarithmic, if the values allow it.
        own_ticks: Put the x axis' numbers at the values themselves, if they are few.
    """
    left = 10 + max((text_width(number, SMALL_SIZE) for _, number in marks), default=0.0)
    x = fit_axis(xs, left, WIDTH - 10, log=log)
    parts = []
    for value, number in marks:
        at = y.at(value)
        parts.append(line(left, at, WIDTH - 10, at, stroke("rule")))
        parts.append(write(left - 6, at + 4, number, anchor="end", size=SMALL_SIZE, role="muted"))
    unit = label + (" (log scale)" if x.log else "")
    values = tuple(sorted({v for v in xs if drawable(v)})) if own_ticks else ()
    parts.append(grid(x, y.end, y.start, unit, values))
    return Panel(x, "".join(parts), y.start + 32)


def grid(
    axis: Axis, top: float, bottom: float, label: str, preferred: tuple[float, ...] = ()
) -> str:
    """Upright grid lines with their numbers below, and what they count in the line below that.

    Args:
        axis: Across.
        top: Where the lines begin.
        bottom: Where they end.
        label: What the numbers count.
        preferred: Where to put the lines, if their numbers have room there.
    """
    values, numbers = _ticks_apart(axis, preferred)
    parts = []
    for value, number in zip(values, numbers, strict=True):
        x = axis.at(value)
        parts.append(line(x, top, x, bottom, stroke("rule")))
        parts.append(write(x, bottom + 15, number, anchor="middle", size=SMALL_SIZE, role="muted"))
    parts.append(line(axis.start, bottom, axis.end, bottom, stroke("axis")))
    parts.append(write(axis.end, bottom + 29, label, anchor="end", size=SMALL_SIZE, role="muted"))
    return "".join(parts)


def upright(axis: Axis) -> list[tuple[float, str]]:
    """Round numbers of an upright axis, with their text."""
    values = ticks(axis, 5)
    return list(zip(values, tick_labels(axis, values), strict=True))


def legend(
    labels: Sequence[str], looks: Sequence[Look], *, lines: bool = True, marks: bool = False
) -> tuple[str, float]:
    """A sample of each curve with its label, in as many lines as they need; and where that ends.

    Args:
        labels: Of the curves.
        looks: Of the curves.
        lines: Whether what is drawn has lines.
        marks: Whether it has marks.
    """
    parts: list[str] = []
    x, y = 0.0, TOP + 12
    for label, look in zip(labels, looks, strict=True):
        width = 34 + text_width(clean(label))
        if x > 0 and x + width > WIDTH:
            x, y = 0.0, y + 18
        if lines:
            parts.append(line(x, y - 4, x + 26, y - 4, stroke(look.role, 2.5, look.dash)))
        if marks:
            parts.append(mark(x + 13, y - 4, look.shape, look.role))
        parts.append(write(x + 33, y, label, bounds=(x + 33, WIDTH)))
        x += width + 14
    return "".join(parts), y + 14


def looks_of(tones: Sequence[Tone]) -> list[Look]:
    """A look for each curve: the colour of its tone, and a dash and a mark of its own in it.

    What is plain, or the fifth of a tone, takes the next colour in turn.
    """
    looks: list[Look] = []
    turn = 0
    for i, tone in enumerate(tones):
        before = tones[:i].count(tone)
        if tone != "plain" and before < len(_VARIED):
            dashes = (DASHES[tone], *(d for d in _VARIED if d != DASHES[tone]))
            shapes = (SHAPES[tone], *(m for m in _MARKS if m != SHAPES[tone]))
            looks.append(Look(tone, dashes[before], shapes[before]))
            continue
        role, dash = CYCLE[turn % len(CYCLE)]
        looks.append(Look(role, dash, _MARKS[turn % len(_MARKS)]))
        turn += 1
    return looks


def whisker(
    low: float, high: float, y: float, role: str, *, caps: tuple[bool, bool] = (True, True)
) -> str:
    """An interval between two pixels; an end without a bound has no cap."""
    look = stroke(role, 1.6)
    # The pale line below keeps it visible across a bar.
    parts = [line(low, y, high, y, stroke("paper", 4)), line(low, y, high, y, look)]
    ends = ((low, caps[0]), (high, caps[1]))
    parts.extend(line(x, y - 4, x, y + 4, look) for x, closed in ends if closed)
    return "".join(parts)


def thin(items: Sequence[_T], limit: int) -> list[_T]:
    """At most `limit` items, evenly spread, the first and the last among them."""
    if len(items) <= limit:
        return list(items)
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]


def left_out(count: int, bottom: float) -> str:
    """A line that says how many were not drawn, or nothing."""
    if count <= 0:
        return ""
    return write(0, bottom - 3, f"{count:,} more not drawn", size=SMALL_SIZE, role="muted")


def _ticks_apart(
    axis: Axis, preferred: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """As many ticks as their labels leave room for, the preferred ones if they can be had."""
    choices = [ticks(axis, count) for count in (7, 5, 4, 3, 2)]
    for values in [preferred, *choices] if 1 < len(preferred) <= 10 else choices:
        labels = tick_labels(axis, values)
        spans = [
            (axis.at(v) - text_width(t, SMALL_SIZE) / 2, axis.at(v) + text_width(t, SMALL_SIZE) / 2)
            for v, t in zip(values, labels, strict=True)
        ]
        if all(b[0] - a[1] >= 6 for a, b in pairwise(spans)):
            return values, labels
    return values[:1], labels[:1]
