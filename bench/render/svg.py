"""Figures drawn as SVG: data in, one string out. The parts are in the modules imported here."""

from collections.abc import Callable
from typing import Any

from bench.render.curves import draw_ecdf, draw_lines, draw_scatter
from bench.render.document import Bars, Ecdf, Figure, Forest, Lines, Pairs, Roofline, Scatter
from bench.render.roofline import draw_roofline
from bench.render.rows import draw_bars, draw_forest, draw_pairs

_DRAWINGS: dict[type[Figure], Callable[[Any, str], str]] = {
    Bars: draw_bars,
    Ecdf: draw_ecdf,
    Forest: draw_forest,
    Lines: draw_lines,
    Pairs: draw_pairs,
    Roofline: draw_roofline,
    Scatter: draw_scatter,
}


def draw(figure: Figure, key: str) -> str:
    """A figure as one `<svg>` element, complete without any style sheet.

    Args:
        figure: Its data. Values that are not finite are never drawn.
        key: Prefix of the element ids inside, unique on the page: letters and digits.
    """
    return _DRAWINGS[type(figure)](figure, key)
