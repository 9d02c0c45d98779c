"""Figures over two axes: distributions, curves and scattered points."""

import math
from collections.abc import Sequence
from itertools import pairwise

from bench.escape import clean, number
from bench.render.document import Curve, Ecdf, Lines, Point, Scatter
from bench.render.grid import TOP, left_out, legend, looks_of, panel, thin, upright
from bench.render.scale import Axis, drawable, fit_axis
from bench.render.shapes import (
    SHAPES,
    SMALL_SIZE,
    WIDTH,
    frame,
    mark,
    path,
    steps,
    stroke,
    text_width,
    write,
)

MAX_CURVES = 8
MAX_STEPS = 200
"""Points of one curve; more are thinned out evenly."""
MAX_POINTS = 200

_HEIGHT = 190.0
_RANKS = {"candidate": 0, "baseline": 1, "warning": 2, "plain": 3}
_QUANTILES = ((0.0, "0 %"), (0.5, "50 %"), (0.9, "90 %"), (1.0, "100 %"))


def draw_ecdf(figure: Ecdf, key: str) -> str:
    """A step curve per series: the share of its samples at or below x."""
    sorted_values = [
        (s, sorted(v for v in s.values if drawable(v))) for s in figure.series[:MAX_CURVES]
    ]
    shown = [(s, values) for s, values in sorted_values if values]
    looks = looks_of([s.tone for s, _ in shown])
    drawn, top = legend([s.label for s, _ in shown], looks)
    y = Axis(0.0, 1.0, top + _HEIGHT, top)
    ends = [v for _, values in shown for v in (values[0], values[-1])]
    area = panel(ends, y, _QUANTILES, figure.unit, log=figure.log_x)
    parts = [drawn, area.body]
    for (_, values), look in zip(shown, looks, strict=True):
        corners = [(area.x.at(values[0]), y.start)]
        corners += [(area.x.at(v), y.at(share)) for v, share in _shares(values)]
        parts.append(steps(corners, stroke(look.role, 2, look.dash)))
    parts.append(left_out(len(figure.series) - len(shown), area.bottom))
    return frame(key, figure.title, figure.description, area.bottom + 4, "".join(parts))


def draw_lines(figure: Lines, key: str) -> str:
    """A line per curve, with marks while they are few."""
    drawable_curves = [(c, _points(c)) for c in figure.curves[:MAX_CURVES]]
    shown = [(c, points) for c, points in drawable_curves if points]
    looks = looks_of([c.tone for c, _ in shown])
    drawn, top = legend([c.label for c, _ in shown], looks, marks=True)
    top += 20
    y = fit_axis([b for _, ps in shown for _, b in ps], top + _HEIGHT, top, zero=True)
    xs = [a for _, ps in shown for a, _ in ps]
    area = panel(xs, y, upright(y), figure.x_label, log=figure.log_x, own_ticks=True)
    parts = [drawn, write(0, top - 8, figure.y_label, size=SMALL_SIZE, role="muted"), area.body]
    for (_, points), look in zip(shown, looks, strict=True):
        placed = [(area.x.at(a), y.at(b)) for a, b in points]
        parts.append(path(placed, stroke(look.role, 2, look.dash)))
        if len(placed) <= 40:
            parts.extend(mark(a, b, look.shape, look.role) for a, b in placed)
    parts.append(left_out(len(figure.curves) - len(shown), area.bottom))
    return frame(key, figure.title, figure.description, area.bottom + 4, "".join(parts))


def draw_scatter(figure: Scatter, key: str) -> str:
    """Marks with labels where they have room, and the front as a dashed line."""
    shown = thin([p for p in figure.points if drawable(p.x) and drawable(p.y)], MAX_POINTS)
    front = sorted(p for p in figure.line or () if drawable(p[0]) and drawable(p[1]))
    front = thin(front, MAX_STEPS)
    top = TOP + 20
    y = fit_axis([*(p.y for p in shown), *(b for _, b in front)], top + _HEIGHT + 30, top)
    xs = [*(p.x for p in shown), *(a for a, _ in front)]
    area = panel(xs, y, upright(y), figure.x_label, log=False)
    parts = [write(0, top - 8, figure.y_label, size=SMALL_SIZE, role="muted"), area.body]
    placed = [(area.x.at(a), y.at(b)) for a, b in front]
    if len(placed) > 1:
        parts.append(path(placed, stroke("axis", 1.6, "5 3")))
    spots = [(area.x.at(p.x), y.at(p.y)) for p in shown]
    parts.extend(
        mark(a, b, SHAPES[p.tone], p.tone, f"{clean(p.label)} ({number(p.x)}, {number(p.y)})")
        for (a, b), p in zip(spots, shown, strict=True)
    )
    parts.append(_labels(shown, spots, placed, (area.x.start, top, y.start)))
    parts.append(left_out(len(figure.points) - len(shown), area.bottom))
    return frame(key, figure.title, figure.description, area.bottom + 4, "".join(parts))


def _labels(
    points: Sequence[Point],
    spots: Sequence[tuple[float, float]],
    front: Sequence[tuple[float, float]],
    plot: tuple[float, float, float],
) -> str:
    """A label beside each point that has room for one; the others have tooltips and the table.

    Args:
        points: What to name, the candidate first, then the baseline.
        spots: Where they lie, in pixels.
        front: Corners of the dashed line, which labels keep off.
        plot: Left, upper and lower edge of the plot.
    """
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in spots]
    taken += [(x - 1, y - 1, x + 1, y + 1) for x, y in _along(front)]
    order = sorted(zip(points, spots, strict=True), key=lambda pair: _RANKS[pair[0].tone])
    parts = []
    for point, (x, y) in order:
        width = min(text_width(clean(point.label), SMALL_SIZE), 150.0)
        for dx, dy in _places(width) if width else ():
            box = (x + dx, y + dy - 9, x + dx + width, y + dy + 3)
            inside = plot[0] <= box[0] and box[2] < WIDTH
            inside = inside and plot[1] - 6 <= box[1] and box[3] < plot[2]
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                bounds = (box[0], box[2] + 0.5)
                parts.append(write(box[0], y + dy, point.label, size=SMALL_SIZE, bounds=bounds))
                break
    return "".join(parts)


def _places(width: float) -> tuple[tuple[float, float], ...]:
    """Where a label may begin, seen from its point: beside, above, below, then the diagonals."""
    right, left, middle = 9.0, -9.0 - width, -width / 2
    beside = ((right, 4.0), (left, 4.0), (middle, -10.0), (middle, 19.0))
    return (*beside, (right, 16.0), (left, 16.0), (right, -8.0), (left, -8.0), (right, 28.0))


def _along(corners: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points every few pixels along a polyline."""
    found = []
    for (x1, y1), (x2, y2) in pairwise(corners):
        count = max(1, round(math.hypot(x2 - x1, y2 - y1) / 5))
        found += [(x1 + (x2 - x1) * i / count, y1 + (y2 - y1) * i / count) for i in range(count)]
    return found


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _shares(values: Sequence[float]) -> list[tuple[float, float]]:
    """At most `MAX_STEPS` pairs (value, share at or below it) of a sorted sample, with its end."""
    count = len(values)
    n = min(count, MAX_STEPS)
    ranks = (math.ceil((i + 1) * count / n) for i in range(n))
    return [(values[rank - 1], rank / count) for rank in ranks]


def _points(curve: Curve) -> list[tuple[float, float]]:
    return thin(sorted(p for p in curve.points if drawable(p[0]) and drawable(p[1])), MAX_STEPS)
