"""SVG's primitives: colours, text that is never clipped, lines, marks. Pure functions to strings.

Colours stand twice: as presentation attributes (light), which survive a viewer that strips styles,
and as classes, which the page's style sheet overrides for dark. So an SVG is right alone and in the
page.
"""

import unicodedata

from bench.escape import clean, elide, escape_html
from bench.render.document import Outcome, Tone

WIDTH = 440.0
"""Of every figure's viewBox. Small, so that text stays readable when it is scaled to a phone."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
TEXT_SIZE = 12.0
SMALL_SIZE = 11.0

# role -> light, dark. Blue against orange can be told apart with every kind of colour blindness;
# every role but "rule" and "axis" has a contrast of 4.5 and more on "paper" and on "card".
PALETTE: dict[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#14171b"),
    "card": ("#f6f7f9", "#1c2026"),
    "ink": ("#1c2128", "#e6e9ed"),
    "muted": ("#57606a", "#a2abb5"),
    "rule": ("#dde1e6", "#343a42"),
    "axis": ("#8b949e", "#6e7781"),
    "plain": ("#56616e", "#a9b4c0"),
    "baseline": ("#a84f00", "#f0a253"),
    "candidate": ("#1f5fa8", "#74b4f5"),
    "warning": ("#a8201a", "#ff8f85"),
    "pass": ("#0b6b4f", "#5fd0a8"),
    "refuse": ("#a8201a", "#ff8f85"),
    "inconclusive": ("#7a5000", "#e5b94e"),
    "info": ("#1f5fa8", "#74b4f5"),
    "violet": ("#74479a", "#c9a4ea"),
    "teal": ("#0f6b66", "#5ccfc0"),
}

# Curves without a tone of their own take these in turn; the dashes differ too.
CYCLE = (("plain", ""), ("violet", "7 3"), ("teal", "2 3"), ("inconclusive", "9 3 2 3"))
DASHES: dict[Tone, str] = {"plain": "", "baseline": "6 3", "candidate": "", "warning": "2 3"}


def fill(role: str) -> str:
    """Attributes that fill with a role's colour."""
    return f'class="f-{role}" fill="{PALETTE[role][0]}"'


def stroke(role: str, width: float = 1.0, dash: str = "") -> str:
    """Attributes that draw an outline in a role's colour."""
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'class="s-{role}" stroke="{PALETTE[role][0]}" stroke-width="{width:g}" fill="none"{dashes}'
    )


def text_width(text: str, size: float = TEXT_SIZE) -> float:
    """Width of a text in pixels, rather too large than too small: fonts differ by 15 %."""
    return size * sum(map(_advance, text))


def fit_text(text: str, width: float, size: float = TEXT_SIZE) -> str:
    """A text cut in the middle so that it fits a width."""
    text = clean(text)
    limit = len(text)
    while limit > 3 and text_width(elide(text, limit), size) > width:
        limit = min(
            limit - 1, max(3, int(limit * width / text_width(elide(text, limit), size)) + 1)
        )
    return elide(text, max(limit, 3))


def write(  # noqa: PLR0913 - the attributes of one text element
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: float = TEXT_SIZE,
    role: str = "ink",
    weight: int = 400,
    bounds: tuple[float, float] = (0.0, WIDTH),
) -> str:
    """A line of text moved, and cut if it must be, so that it lies within `bounds`.

    Args:
        x: Where its start, middle or end lies, as `anchor` says.
        y: Its base line.
        text: Foreign text is welcome; what a cut took away is in the tooltip.
        anchor: "start", "middle" or "end".
        size: Of the font.
        role: Of its colour.
        weight: Of the font.
        bounds: Left and right limit.
    """
    shown = fit_text(text, bounds[1] - bounds[0], size)
    width = text_width(shown, size)
    before = {"start": 0.0, "middle": width / 2, "end": width}[anchor]
    x = max(min(x, bounds[1] - width + before), bounds[0] + before)
    full = clean(text)
    tip = f"<title>{escape_html(elide(full, 400))}</title>" if shown != full else ""
    # The halo keeps text readable where a line passes behind it.
    halo = f'paint-order="stroke" stroke="{PALETTE["paper"][0]}" stroke-width="3"'
    bold = f' font-weight="{weight}"' if weight != 400 else ""
    return (
        f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}" font-size="{size:g}"{bold} '
        f'class="f-{role} halo" fill="{PALETTE[role][0]}" {halo}>{escape_html(shown)}{tip}</text>'
    )


def line(x1: float, y1: float, x2: float, y2: float, look: str) -> str:
    """A straight line; `look` comes from `stroke`."""
    return f'<path d="M{_n(x1)} {_n(y1)}L{_n(x2)} {_n(y2)}" {look}/>'


def path(points: list[tuple[float, float]], look: str) -> str:
    """A polyline."""
    return f'<path d="M{"L".join(f"{_n(x)} {_n(y)}" for x, y in points)}" {look}/>'


def steps(points: list[tuple[float, float]], look: str) -> str:
    """A polyline that goes right first, then up: an empirical distribution."""
    first, *rest = points
    corners = "".join(f"H{_n(x)}V{_n(y)}" for x, y in rest)
    return f'<path d="M{_n(first[0])} {_n(first[1])}{corners}" {look}/>'


def bar(x: float, y: float, width: float, height: float, tone: Tone, key: str) -> str:
    """A bar: the candidate is solid, the baseline hatched, a warning cross-hatched, the rest pale.

    Args:
        x: Left side.
        y: Top.
        width: Across.
        height: Down.
        tone: What it stands for.
        key: Of the figure; its patterns come from `patterns(key)`.
    """
    colour = PALETTE[tone][0]
    inside = f'fill="url(#{key}-{tone})"' if tone in ("baseline", "warning") else f'fill="{colour}"'
    kind = f"s-{tone}" if tone in ("baseline", "warning") else f"f-{tone} s-{tone}"
    return (
        f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(max(width, 0.5))}" height="{_n(height)}" '
        f'rx="1.5" class="{kind}" {inside} stroke="{colour}"/>'
    )


def patterns(key: str) -> str:
    """The hatches that `bar` fills with."""
    slants = {"baseline": "M-1 7L7 -1M-1 1L1 -1M5 7L7 5", "warning": "M0 0L6 6M6 0L0 6"}
    return (
        "<defs>"
        + "".join(
            f'<pattern id="{key}-{tone}" width="6" height="6" patternUnits="userSpaceOnUse">'
            f'<rect width="6" height="6" {fill(tone)} fill-opacity="0.18"/>'
            f'<path d="{slant}" {stroke(tone, 1.4)}/></pattern>'
            for tone, slant in slants.items()
        )
        + "</defs>"
    )


def mark(x: float, y: float, shape: str, role: str, tip: str = "") -> str:
    """A symbol centred on a point.

    Args:
        x: Centre.
        y: Centre.
        shape: "disc", "ring", "square", "diamond" or "triangle".
        role: Of its colour.
        tip: Tooltip.
    """
    title = f"<title>{escape_html(elide(clean(tip), 400))}</title>" if tip else ""
    if shape in ("disc", "ring"):
        inside = fill(role) if shape == "disc" else stroke(role, 2)
        return f'<circle cx="{_n(x)}" cy="{_n(y)}" r="4.5" {inside}>{title}</circle>'
    corners = {
        "square": ((-4, -4), (4, -4), (4, 4), (-4, 4)),
        "diamond": ((0, -6), (6, 0), (0, 6), (-6, 0)),
        "triangle": ((0, -5.5), (5.5, 4.5), (-5.5, 4.5)),
    }[shape]
    outline = "L".join(f"{_n(x + dx)} {_n(y + dy)}" for dx, dy in corners)
    return f'<path d="M{outline}Z" {fill(role)}>{title}</path>'


SHAPES: dict[Tone, str] = {
    "candidate": "disc",
    "baseline": "square",
    "warning": "diamond",
    "plain": "triangle",
}
OUTCOME_SHAPES: dict[Outcome, str] = {
    "pass": "disc",
    "refuse": "diamond",
    "inconclusive": "ring",
    "info": "square",
}


def frame(key: str, title: str, description: str, height: float, body: str) -> str:
    """The SVG element around a figure, named and described for those who cannot see it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="{key}-t {key}-d" '
        f'viewBox="0 0 {_n(WIDTH)} {_n(height)}" width="{_n(WIDTH)}" height="{_n(height)}" '
        f'font-family="{FONT}"><title id="{key}-t">{escape_html(elide(clean(title), 200))}</title>'
        f'<desc id="{key}-d">{escape_html(elide(clean(description), 1000))}</desc>{body}</svg>'
    )


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _advance(char: str) -> float:
    """Width of a character in units of the font size, as in the wider of the common sans fonts."""
    if char in "iljI.,:;|!'` ":
        return 0.36
    if char in 'ftr()[]{}/\\-"':
        return 0.43
    if char in "mwMW@%…—":
        return 1.0
    if char.isascii():
        return 0.72 if char.isupper() else 0.64
    if unicodedata.combining(char):
        return 0.0
    return 1.15 if unicodedata.east_asian_width(char) in "WF" else 0.85
