"""The roofline: what was reached, under what memory and arithmetic allow at best.

Below a level roof a model is held up by arithmetic, below the slanted one by memory (Williams,
Waterman, Patterson: Roofline, CACM 52(4), 2009).
"""

from bench.escape import clean, number
from bench.render.curves import MAX_CURVES
from bench.render.document import Point, Roof, Roofline
from bench.render.grid import left_out, legend, looks_of, panel, upright
from bench.render.scale import Axis, drawable, fit_axis
from bench.render.shapes import SMALL_SIZE, WIDTH, frame, mark, path, stroke, write

_HEIGHT = 230.0
_LEAST = 1e-9


def draw_roofline(figure: Roofline, key: str) -> str:
    """Roofs as lines with their heights, and a mark per point, named in the legend."""
    every = [p for p in figure.points if _positive(p.x) and _positive(p.y)]
    shown = every[:MAX_CURVES]
    roofs = sorted((r for r in figure.roofs if _positive(r.height)), key=lambda r: -r.height)
    looks = looks_of([p.tone for p in shown])
    drawn, top = legend([p.label for p in shown], looks, lines=False, marks=True)
    top += 24
    x, y, body = _axes(figure, shown, roofs, top)
    parts = [
        drawn,
        write(0, top - 12, "10⁹ operations/s (log scale)", size=SMALL_SIZE, role="muted"),
        body,
        *_roofs(figure, roofs, x, y),
    ]
    for point, look in zip(shown, looks, strict=True):
        tip = f"{clean(point.label)} ({number(point.x)}, {number(point.y)})"
        parts.append(mark(x.at(point.x), y.at(point.y), look.shape, look.role, tip))
    bottom = y.start + 32
    parts.append(left_out(len(figure.points) - len(shown), bottom))
    return frame(key, figure.title, figure.description, bottom + 4, "".join(parts))


def _axes(
    figure: Roofline, points: list[Point], roofs: list[Roof], top: float
) -> tuple[Axis, Axis, str]:
    """Both axes with room around points and ridges, and the drawn grid."""
    ridges = [r.height / figure.bandwidth for r in roofs if _positive(figure.bandwidth)]
    xs = [p.x for p in points] + [r for r in ridges if _positive(r)] or [1.0]
    ys = [p.y for p in points] + [r.height for r in roofs] or [1.0]
    # Room above for the label of the upper roof, and on both sides to see which way roofs go.
    y = fit_axis([min(ys) / 2, max(ys) * 1.6], top + _HEIGHT, top, log=True)
    area = panel([min(xs) / 2, max(xs) * 6], y, upright(y), "operations per byte", log=True)
    return area.x, y, area.body


def _roofs(figure: Roofline, roofs: list[Roof], x: Axis, y: Axis) -> list[str]:
    parts = []
    slanted = _positive(figure.bandwidth)
    for i, roof in enumerate(roofs):
        ridge = roof.height / figure.bandwidth if slanted else x.low
        begin = min(max(ridge, x.low), x.high)
        height = y.at(roof.height)
        parts.append(path([(x.at(begin), height), (x.end, height)], stroke(roof.tone, 1.8)))
        label = f"{roof.label} {number(roof.height)}"
        # The highest one is named above its line, the others below theirs.
        base = height - 6 if i == 0 else height + 14
        if i < 2:
            parts.append(write(x.end - 2, base, label, anchor="end", size=SMALL_SIZE))
    if slanted and roofs:
        left = max(x.low, y.low / figure.bandwidth)
        right = min(x.high, roofs[0].height / figure.bandwidth)
        if left < right:
            ends = [(x.at(v), y.at(v * figure.bandwidth)) for v in (left, right)]
            parts.append(path(ends, stroke("axis", 1.8)))
            label = f"memory {number(figure.bandwidth)} GB/s"
            base = min(ends[0][1] - 8, y.start - 8)
            parts.append(
                write(ends[0][0] + 18, base + 2, label, size=SMALL_SIZE, bounds=(ends[0][0], WIDTH))
            )
    return parts


def _positive(value: float) -> bool:
    return drawable(value) and value > _LEAST
