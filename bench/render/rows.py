"""Figures of one row per item: bars from zero, and intervals against a limit."""

import math
from collections.abc import Sequence

from bench.escape import MINUS, clean, number
from bench.render.document import Bar, Bars, Forest, ForestRow, Pairs, Tone
from bench.render.grid import TOP, grid, left_out, whisker
from bench.render.scale import Axis, drawable, fit_axis
from bench.render.shapes import (
    OUTCOME_SHAPES,
    SMALL_SIZE,
    WIDTH,
    bar,
    fill,
    frame,
    line,
    mark,
    patterns,
    stroke,
    text_width,
    write,
)

MAX_ROWS = 40
"""Bars or intervals drawn; the figure's table has more."""

_BAR = 14.0
_THIN_BAR = 9.0
_FARTHEST = 2.5
"""Where intervals are cut off, in lengths of the longest bar: a wider one would hide all bars."""
_PAIR = 46.0
_INTERVAL = 44.0


def draw_bars(figure: Bars, key: str) -> str:
    """Bars from zero with their values at the end; long labels stand above their bar."""
    shown = figure.bars[:MAX_ROWS]
    left, above = _label_room([b.label for b in shown])
    right = WIDTH - 8 - max((text_width(number(b.value)) for b in shown), default=0.0)
    most = _FARTHEST * max((abs(b.value) for b in shown if drawable(b.value)), default=0.0)
    ends = [_within(e, most) for b in shown for e in (b.value, b.low, b.high) if drawable(e)]
    reference = figure.reference
    if drawable(reference):
        ends.append(reference)
    axis = fit_axis(ends, left, right, zero=True)
    top = TOP + (18 if drawable(reference) else 0)
    pitch = _BAR + (28 if above else 10)
    offset = 22 if above else 5
    bottom = top + pitch * max(len(shown), 1) + 3
    tops = [top + i * pitch + offset for i in range(len(shown))]
    parts = [patterns(key), grid(axis, top, bottom, figure.unit)]
    parts.extend(_bar(item, axis, y, key) for item, y in zip(shown, tops, strict=True))
    zero = axis.at(0.0)
    parts.append(line(zero, top, zero, bottom, stroke("axis")))
    if drawable(reference):
        parts.append(_upright_line(axis.at(reference), top, bottom, "ink"))
        label = f"{figure.reference_label} {number(reference)}"
        parts.append(write(axis.at(reference), top - 8, label, anchor="middle", size=SMALL_SIZE))
    # Text comes last: it lies above the reference line.
    for item, y in zip(shown, tops, strict=True):
        x, base, anchor = (0.0, y - 6, "start") if above else (left - 8, y + _BAR - 3, "end")
        parts.append(write(x, base, item.label, anchor=anchor))
        parts.append(_value(item, axis, y))
    parts.append(left_out(len(figure.bars) - len(shown), bottom + 32))
    return frame(key, figure.title, figure.description, bottom + 36, "".join(parts))


def draw_forest(figure: Forest, key: str) -> str:
    """Estimates with intervals; the side of the limit that is not tolerated is tinted."""
    shown = figure.rows[:MAX_ROWS]
    ends = [e for r in shown for e in (r.estimate, r.low, r.high) if drawable(e)]
    axis = fit_axis([*ends, figure.limit], 8, WIDTH - 8, zero=True)
    top = TOP + 20
    bottom = top + _INTERVAL * max(len(shown), 1) + 3
    zero = axis.at(0.0)
    parts = [grid(axis, top, bottom, figure.unit), line(zero, top, zero, bottom, stroke("axis"))]
    if drawable(figure.limit):
        x = axis.at(figure.limit)
        parts.append(
            f'<rect x="{x:.1f}" y="{top:.1f}" width="{axis.end - x:.1f}" '
            f'height="{bottom - top:.1f}" {fill("warning")} fill-opacity="0.08"/>'
        )
        parts.append(_upright_line(x, top, bottom, "warning"))
        label = f"{figure.limit_label} {number(figure.limit)}"
        parts.append(
            write(x, top - 8, label, anchor="middle", size=SMALL_SIZE, role="warning", weight=600)
        )
    parts.extend(_interval(row, axis, top + i * _INTERVAL) for i, row in enumerate(shown))
    parts.append(left_out(len(figure.rows) - len(shown), bottom + 32))
    return frame(key, figure.title, figure.description, bottom + 36, "".join(parts))


def draw_pairs(figure: Pairs, key: str) -> str:
    """Two bars per row below its label, the baseline hatched above the solid candidate."""
    shown = figure.rows[:MAX_ROWS]
    values = [v for r in shown for v in (r.before, r.after) if drawable(v)]
    room = max((text_width(number(v), SMALL_SIZE) for v in values), default=0.0)
    axis = fit_axis(values, 0.0, WIDTH - 8 - room, zero=True)
    drawn, top = _swatches(figure, key)
    bottom = top + _PAIR * max(len(shown), 1)
    parts = [patterns(key), drawn, grid(axis, top, bottom, figure.unit)]
    zero = axis.at(0.0)
    parts.append(line(zero, top, zero, bottom, stroke("axis")))
    for i, row in enumerate(shown):
        y = top + i * _PAIR
        parts.append(write(zero + 4, y + 16, row.label))
        kinds: tuple[tuple[float | None, Tone, float], ...] = (
            (row.before, "baseline", 0.0),
            (row.after, "candidate", _THIN_BAR + 2),
        )
        for value, tone, down in kinds:
            if drawable(value):
                x, base = axis.at(value), y + 21 + down
                parts.append(bar(min(zero, x), base, abs(x - zero), _THIN_BAR, tone, key))
                text = number(value).replace("-", MINUS)
                parts.append(write(max(zero, x) + 5, base + 8.5, text, size=SMALL_SIZE))
    parts.append(left_out(len(figure.rows) - len(shown), bottom + 32))
    return frame(key, figure.title, figure.description, bottom + 36, "".join(parts))


def _bounds_text(low: float | None, high: float | None) -> str:
    """Both bounds in brackets, `∞` where there is none."""
    low_text = signed(low) if drawable(low) else f"{MINUS}∞"
    high_text = signed(high) if drawable(high) else "∞"
    return f"[{low_text}, {high_text}]"


def signed(value: float) -> str:
    """A number with its sign, with a real minus."""
    text = number(value).replace("-", MINUS)
    return f"+{text}" if value > 0 and drawable(value) else text


def _bar(item: Bar, axis: Axis, y: float, key: str) -> str:
    if not drawable(item.value):
        return ""
    zero, end = axis.at(0.0), axis.at(item.value)
    drawn = bar(min(zero, end), y, abs(end - zero), _BAR, item.tone, key)
    if drawable(item.low) and drawable(item.high):
        # An end that lies outside is cut off there, without a cap.
        caps = item.low >= axis.low, item.high <= axis.high
        drawn += whisker(axis.at(item.low), axis.at(item.high), y + _BAR / 2, "ink", caps=caps)
    return drawn


def _within(value: float, most: float) -> float:
    return min(max(value, -most), most)


def _value(item: Bar, axis: Axis, y: float) -> str:
    ends = [v for v in (0.0, item.value, item.high) if drawable(v)]
    text = number(item.value).replace("-", MINUS)
    return write(axis.at(max(ends)) + 6, y + _BAR - 3, text, weight=600)


def _interval(row: ForestRow, axis: Axis, top: float) -> str:
    estimate, low, high = _as_exact_as_known(row)
    numbers = f"{signed(estimate)} {_bounds_text(low, high)} {row.outcome}"
    room = min(text_width(numbers), WIDTH * 0.6)
    left, right = axis.start, axis.end
    drawn = write(left, top + 17, row.label, bounds=(left, right - room - 12))
    drawn += write(
        right, top + 17, numbers, anchor="end", role="muted", bounds=(right - room - 1, right)
    )
    if not drawable(row.estimate):
        return drawn
    caps = drawable(row.low), drawable(row.high)
    start = axis.at(row.low) if drawable(row.low) else axis.start
    end = axis.at(row.high) if drawable(row.high) else axis.end
    drawn += whisker(start, end, top + 32, row.outcome, caps=caps)
    shape = OUTCOME_SHAPES[row.outcome]
    return drawn + mark(axis.at(row.estimate), top + 32, shape, row.outcome)


def _as_exact_as_known(row: ForestRow) -> tuple[float, float | None, float | None]:
    """Estimate and bounds, rounded to three digits of the width, whole numbers at most."""
    if not drawable(row.low) or not drawable(row.high) or row.high <= row.low:
        return row.estimate, row.low, row.high
    decimals = max(0, 2 - math.floor(math.log10(row.high - row.low)))
    return round(row.estimate, decimals), round(row.low, decimals), round(row.high, decimals)


def _swatches(figure: Pairs, key: str) -> tuple[str, float]:
    """What both kinds of bars are, one below the other; and where that ends."""
    kinds: tuple[tuple[str, Tone], ...] = (
        (figure.before_label, "baseline"),
        (figure.after_label, "candidate"),
    )
    parts = []
    for i, (label, tone) in enumerate(kinds):
        y = TOP + 3 + i * 18
        parts.append(bar(1.0, y, 26.0, _THIN_BAR, tone, key) + write(34.0, y + 9, label))
    return "".join(parts), TOP + 42


def _upright_line(x: float, top: float, bottom: float, role: str) -> str:
    return line(x, top - 4, x, bottom, stroke(role, 1.5, "5 3"))


def _label_room(labels: Sequence[str]) -> tuple[float, bool]:
    """Where bars begin, and whether their labels stand above them because they are long."""
    widest = max((text_width(clean(label)) for label in labels), default=0.0)
    above = widest > WIDTH * 0.34
    return (0.0 if above else widest + 10), above
