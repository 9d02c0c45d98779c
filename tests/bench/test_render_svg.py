import math
import re
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bench.escape import number
from bench.render import (
    Bar,
    Bars,
    Curve,
    Ecdf,
    Forest,
    ForestRow,
    Lines,
    Pair,
    Pairs,
    Point,
    Roof,
    Roofline,
    Scatter,
    Series,
)
from bench.render.curves import MAX_STEPS
from bench.render.rows import MAX_ROWS
from bench.render.scale import Axis, fit_axis, tick_labels, ticks
from bench.render.shapes import PALETTE, WIDTH, fit_text, text_width
from bench.render.svg import draw

SVG = "{http://www.w3.org/2000/svg}"
any_float = st.floats(allow_nan=True, allow_infinity=True)
any_text = st.text(max_size=80)


def parse(figure):
    return ET.fromstring(draw(figure, "f1"))


def bars_of(root):
    return [r for r in root.findall(f"{SVG}rect") if r.get("rx")]


def words(root):
    return [t.text for t in root.iter(f"{SVG}text")]


def curves_of(root):
    return [p.get("d") for p in root.findall(f"{SVG}path") if "V" in p.get("d")]


def find(root, text):
    return next(t for t in root.iter(f"{SVG}text") if t.text == text)


def test_bars_are_as_long_as_their_values_and_in_order():
    figure = Bars("t", "d", "ms", (Bar("a", 10), Bar("b", 20), Bar("c", 5)))
    rects = bars_of(parse(figure))
    widths = [float(r.get("width")) for r in rects]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2)
    assert widths[2] == pytest.approx(widths[0] / 2, abs=0.2)
    assert len({r.get("x") for r in rects}) == 1
    assert [float(r.get("y")) for r in rects] == sorted(float(r.get("y")) for r in rects)


def test_negative_bars_end_where_positive_ones_begin():
    rects = bars_of(parse(Bars("t", "d", "dB", (Bar("a", -4), Bar("b", 8)))))
    left, right = ((float(r.get("x")), float(r.get("x")) + float(r.get("width"))) for r in rects)
    assert left[1] == pytest.approx(right[0], abs=0.2)


def test_tones_differ_without_colour():
    tones = ("candidate", "baseline", "warning")
    figure = Bars("t", "d", "ms", tuple(Bar(t, 1, tone=t) for t in tones))
    fills = [r.get("fill") for r in bars_of(parse(figure))]
    assert fills == [PALETTE["candidate"][0], "url(#f1-baseline)", "url(#f1-warning)"]
    patterns = {p.get("id") for p in parse(figure).iter(f"{SVG}pattern")}
    assert patterns == {"f1-baseline", "f1-warning"}


def test_reference_line_stands_at_its_value():
    root = parse(Bars("t", "d", "ms", (Bar("a", 10), Bar("b", 20)), 10, "target"))
    dashed = [p for p in root.iter(f"{SVG}path") if p.get("stroke-dasharray") == "5 3"]
    rect = bars_of(root)[0]
    end = float(rect.get("x")) + float(rect.get("width"))
    assert float(dashed[0].get("d")[1:].split(" ")[0]) == pytest.approx(end, abs=0.2)
    assert "target 10" in words(root)


def test_whisker_spans_its_interval():
    root = parse(Bars("t", "d", "ms", (Bar("a", 10, 5, 20), Bar("b", 20))))
    full = max(float(r.get("width")) for r in bars_of(root))
    start = float(bars_of(root)[0].get("x"))
    path = next(p for p in root.iter(f"{SVG}path") if p.get("stroke-width") == "1.6")
    begin, end = (float(c.split(" ")[0]) for c in path.get("d")[1:].split("L"))
    assert begin == pytest.approx(start + full / 4, abs=0.2)
    assert end == pytest.approx(start + full, abs=0.2)


def test_an_interval_without_use_does_not_hide_the_bars():
    root = parse(Bars("t", "d", "×", (Bar("a", 4.0, 0.0, 4e7, "candidate"), Bar("b", 2.0))))
    bar = next(r for r in root.findall(f"{SVG}rect") if "f-candidate" in r.get("class"))
    assert float(bar.get("width")) > 80
    assert "e+" not in " ".join(words(root))


def test_long_labels_stand_above_their_bar():
    short = parse(Bars("t", "d", "ms", (Bar("conv", 1),)))
    long = parse(Bars("t", "d", "ms", (Bar("/features/stage3/block_17/conv", 1),)))
    assert float(bars_of(short)[0].get("x")) > 0
    assert float(bars_of(long)[0].get("x")) == 0
    label = find(long, "/features/stage3/block_17/conv")
    assert float(label.get("y")) < float(bars_of(long)[0].get("y"))


def test_only_the_first_bars_are_drawn_and_the_rest_counted():
    figure = Bars("t", "d", "ms", tuple(Bar(str(i), i) for i in range(MAX_ROWS + 7)))
    root = parse(figure)
    assert len(bars_of(root)) == MAX_ROWS
    assert "7 more not drawn" in words(root)


def test_values_that_are_not_finite_are_named_not_drawn():
    root = parse(Bars("t", "d", "ms", (Bar("a", math.nan), Bar("b", math.inf), Bar("c", 1))))
    assert len(bars_of(root)) == 1
    assert words(root).count("not finite") == 2


def test_ecdf_rises_from_nothing_to_everything():
    root = parse(Ecdf("t", "d", "ms", (Series("a", (3, 1, 2)),)))
    (curve,) = curves_of(root)
    assert curve.count("H") == 3
    heights = [float(part.split("H")[0]) for part in curve.split("V")[1:]]
    bottom = float(curve[1:].split("H")[0].split(" ")[1])
    assert heights == sorted(heights, reverse=True)
    rises = [a - b for a, b in pairwise([bottom, *heights])]
    assert rises == pytest.approx([rises[0]] * 3, abs=0.2)


def test_ecdf_is_thinned_out_and_keeps_its_ends():
    root = parse(Ecdf("t", "d", "ms", (Series("a", tuple(range(1, 100_001))),)))
    (curve,) = curves_of(root)
    assert curve.count("H") == MAX_STEPS
    top = float(find(root, "100 %").get("y")) - 4
    assert float(curve.rsplit("V", 1)[1]) == pytest.approx(top, abs=0.2)


def test_thinned_ecdf_still_reaches_the_slowest_sample():
    values = (*range(1, 100_000), 1_000_000)
    (curve,) = curves_of(parse(Ecdf("t", "d", "ms", (Series("a", values),))))
    rights = [float(part.split("V")[0]) for part in curve.split("H")[1:]]
    assert rights[-1] > WIDTH * 0.9
    assert rights[-2] < WIDTH * 0.3


def test_ecdf_series_differ_in_dash_and_colour():
    series = (Series("FP32", (1, 2), "baseline"), Series("INT8", (1, 2), "candidate"))
    root = parse(Ecdf("t", "d", "ms", (*series, Series("x", (1, 2)), Series("y", (1, 2)))))
    looks = [
        (p.get("stroke"), p.get("stroke-dasharray"))
        for p in root.findall(f"{SVG}path")
        if "V" in p.get("d")
    ]
    assert len(set(looks)) == 4
    assert len({stroke for stroke, _ in looks}) == 4


def test_log_axis_is_said_and_given_up_for_values_that_are_not_positive():
    assert "ms (log scale)" in words(
        parse(Ecdf("t", "d", "ms", (Series("a", (1, 9)),), log_x=True))
    )
    assert "ms" in words(parse(Ecdf("t", "d", "ms", (Series("a", (0, 9)),), log_x=True)))


def test_forest_orders_estimate_limit_and_bounds_as_numbers_are():
    rows = (ForestRow("a", 0.2, -0.1, 0.5, "pass"), ForestRow("b", 1.5, 1.2, 1.9, "refuse"))
    root = parse(Forest("t", "d", "pt", rows, 1.0, "limit"))
    circle = root.find(f"{SVG}circle")
    tint = next(r for r in root.findall(f"{SVG}rect") if r.get("fill-opacity"))
    diamond = next(p for p in root.findall(f"{SVG}path") if p.get("d").endswith("Z"))
    limit = float(tint.get("x"))
    assert float(circle.get("cx")) < limit < float(diamond.get("d")[1:].split(" ")[0])
    assert "limit 1" in words(root)
    assert "+0.2 [−0.1, +0.5] pass" in words(root)


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ((-0.04, -0.133447, 0.036512), "−0.04 [−0.133, +0.037]"),
        ((0.0, -1.3247, 0.59744), "0 [−1.32, +0.6]"),
        ((512.3456, 12.5, 1900.25), "+512 [+12, +1,900]"),
        ((0.2, 0.2, 0.2), "+0.2 [+0.2, +0.2]"),
    ],
)
def test_intervals_are_written_as_exactly_as_they_are_known(
    bounds: tuple[float, float, float], said: str
) -> None:
    assert said in draw(Forest("t", "d", "pt", (ForestRow("a", *bounds),), 1.0, "limit"), "f")


def test_forest_draws_an_open_end_to_the_edge_without_a_cap():
    closed = draw(Forest("t", "d", "pt", (ForestRow("a", 0.2, 0.1, 0.5),), 1, "limit"), "f")
    opened = draw(Forest("t", "d", "pt", (ForestRow("a", 0.2, None, 0.5),), 1, "limit"), "f")
    assert opened.count("<path") == closed.count("<path") - 1
    assert "[−∞, +0.5]" in opened


def test_scatter_puts_larger_values_right_and_up_and_joins_the_front():
    points = (Point(1, 10, "a", "candidate"), Point(3, 30, "b", "candidate"))
    root = parse(Scatter("t", "d", "x", "y", points, ((3, 30), (1, 10))))
    (ax, ay), (bx, by) = (
        (float(c.get("cx")), float(c.get("cy"))) for c in root.findall(f"{SVG}circle")
    )
    assert ax < bx
    assert ay > by
    front = next(p for p in root.iter(f"{SVG}path") if p.get("stroke-dasharray") == "5 3")
    assert front.get("d") == f"M{ax:g} {ay:g}L{bx:g} {by:g}"


def test_scatter_labels_do_not_cover_one_another():
    points = tuple(Point(1 + i / 50, 1 + i / 50, f"label {i}") for i in range(40))
    points += (Point(9, 9, "far"),)
    root = parse(Scatter("t", "d", "x", "y", points))
    boxes = [
        (float(t.get("x")), float(t.get("y")), text_width(t.text, 11))
        for t in root.iter(f"{SVG}text")
        if t.text == "far" or t.text.startswith("label")
    ]
    assert 2 <= len(boxes) < 41
    for i, (x, y, w) in enumerate(boxes):
        for x2, y2, w2 in boxes[i + 1 :]:
            assert x + w <= x2 or x2 + w2 <= x or abs(y - y2) >= 9


def test_lines_mark_their_own_values_on_the_axis():
    curve = Curve("INT8", ((1, 10), (2, 19), (4, 35), (8, 60)), "candidate")
    root = parse(Lines("t", "d", "streams", "inf/s", (curve,), log_x=True))
    assert {"1", "2", "4", "8"} <= set(words(root))
    _, *xs = [float(c.get("cx")) for c in root.findall(f"{SVG}circle")]  # The legend's comes first.
    gaps = [b - a for a, b in pairwise(xs)]
    assert len(xs) == 4
    assert gaps == pytest.approx([gaps[0]] * 3, abs=0.2)  # doubling is one step on a log axis


def test_pairs_show_both_times_and_leave_out_what_is_not_there():
    rows = (Pair("conv", 4.0, 1.0), Pair("quantize", None, 0.5))
    root = parse(Pairs("t", "d", "ms", "FP32", "INT8", rows))
    # Two swatches, two bars of the first row, one of the second; patterns have rects of their own.
    rects = root.findall(f"{SVG}rect")
    assert [r.get("class").split()[0] for r in rects] == [
        "s-baseline",
        "f-candidate",
        "s-baseline",
        "f-candidate",
        "f-candidate",
    ]
    before, after, alone = (float(r.get("width")) for r in rects[2:])
    assert before == pytest.approx(4 * after, rel=0.02)
    assert after == pytest.approx(2 * alone, rel=0.02)


def test_roofs_meet_memory_at_their_ridges_and_points_lie_below():
    roofs = (Roof("FP32", 100.0, "baseline"), Roof("INT8", 400.0, "candidate"))
    root = parse(Roofline("t", "d", 10.0, roofs, (Point(20.0, 50.0, "m", "candidate"),)))
    lines = {
        p.get("class"): [tuple(map(float, c.split())) for c in p.get("d")[1:].split("L")]
        for p in root.findall(f"{SVG}path")
        if p.get("stroke-width") == "1.8"
    }
    (ridge, _), (lower, _) = lines["s-candidate"], lines["s-baseline"]
    assert lines["s-axis"][-1] == pytest.approx(ridge, abs=0.2)
    # Four times as high is a ridge at four times as many operations per byte: a slope of one.
    assert lower[0] < ridge[0]
    assert lower[1] > ridge[1]
    point = root.findall(f"{SVG}circle")[-1]
    assert float(point.get("cy")) > lower[1] > ridge[1]
    assert float(point.get("cx")) > lower[0]
    assert {"m", "memory 10 GB/s", "FP32 100", "INT8 400"} <= set(words(root))


def test_curves_of_one_tone_keep_its_colour_and_differ_in_dash():
    curves = tuple(Curve(f"c{i}", ((1, i), (2, i)), "candidate") for i in range(4))
    root = parse(Lines("t", "d", "x", "y", curves))
    drawn = [p for p in root.findall(f"{SVG}path") if p.get("stroke-width") == "2"]
    assert {p.get("class") for p in drawn} == {"s-candidate"}
    assert len({p.get("stroke-dasharray") for p in drawn}) == 4


def test_figures_without_data_are_still_drawn():
    for figure in (
        Bars("t", "d", "ms", ()),
        Ecdf("t", "d", "ms", ()),
        Forest("t", "d", "pt", (), math.nan, ""),
        Scatter("t", "d", "x", "y", ()),
        Lines("t", "d", "x", "y", (Curve("a", ()),)),
        Pairs("t", "d", "ms", "a", "b", ()),
        Roofline("t", "d", 0.0, (), ()),
    ):
        root = parse(figure)
        assert root.find(f"{SVG}title").text == "t"
        assert root.find(f"{SVG}desc").text == "d"
        assert root.get("role") == "img"


GEOMETRY = {"x", "y", "width", "height", "cx", "cy", "d"}

bars = st.builds(
    Bar,
    any_text,
    any_float,
    st.none() | any_float,
    st.none() | any_float,
    st.sampled_from(["plain", "baseline", "candidate", "warning"]),
)
pairs = st.tuples(any_float, any_float)
figures = st.one_of(
    st.builds(
        Bars,
        any_text,
        any_text,
        any_text,
        st.lists(bars, max_size=5).map(tuple),
        st.none() | any_float,
        any_text,
    ),
    st.builds(
        Ecdf,
        any_text,
        any_text,
        any_text,
        st.lists(
            st.builds(Series, any_text, st.lists(any_float, max_size=6).map(tuple)), max_size=9
        ).map(tuple),
        st.booleans(),
    ),
    st.builds(
        Forest,
        any_text,
        any_text,
        any_text,
        st.lists(
            st.builds(
                ForestRow,
                any_text,
                any_float,
                st.none() | any_float,
                st.none() | any_float,
                st.sampled_from(["pass", "refuse", "inconclusive", "info"]),
            ),
            max_size=4,
        ).map(tuple),
        any_float,
        any_text,
    ),
    st.builds(
        Scatter,
        any_text,
        any_text,
        any_text,
        any_text,
        st.lists(st.builds(Point, any_float, any_float, any_text), max_size=6).map(tuple),
        st.none() | st.lists(pairs, max_size=4).map(tuple),
    ),
    st.builds(
        Lines,
        any_text,
        any_text,
        any_text,
        any_text,
        st.lists(
            st.builds(Curve, any_text, st.lists(pairs, max_size=5).map(tuple)), max_size=3
        ).map(tuple),
        st.booleans(),
    ),
    st.builds(
        Pairs,
        any_text,
        any_text,
        any_text,
        any_text,
        any_text,
        st.lists(
            st.builds(Pair, any_text, st.none() | any_float, st.none() | any_float), max_size=4
        ).map(tuple),
    ),
    st.builds(
        Roofline,
        any_text,
        any_text,
        any_float,
        st.lists(st.builds(Roof, any_text, any_float), max_size=3).map(tuple),
        st.lists(st.builds(Point, any_float, any_float, any_text), max_size=9).map(tuple),
    ),
)


@given(figures)
def test_any_figure_is_well_formed_and_inside_its_box(figure):
    root = parse(figure)
    height = float(root.get("height"))
    for text in root.iter(f"{SVG}text"):
        x, y = float(text.get("x")), float(text.get("y"))
        width = text_width(text.text or "", float(text.get("font-size")))
        start = x - {"start": 0, "middle": width / 2, "end": width}[text.get("text-anchor")]
        assert start >= -0.2
        assert start + width <= WIDTH + 0.2
        assert 8 <= y <= height
    for rect in bars_of(root):
        assert float(rect.get("x")) >= -0.2
        assert float(rect.get("x")) + float(rect.get("width")) <= WIDTH + 0.6
    for element in root.iter():
        geometry = {k: v for k, v in element.attrib.items() if k in GEOMETRY}
        assert not re.search("nan|inf", str(geometry))


wide_float = st.floats(min_value=-1e90, max_value=1e90)


@given(values=st.lists(wide_float, min_size=1, max_size=6), zero=st.booleans(), log=st.booleans())
@example(values=[984513970174787.0], zero=False, log=True)
def test_ticks_are_round_ordered_and_inside(values, zero, log):
    axis = fit_axis(values, 0, 400, zero=zero, log=log)
    found = ticks(axis, 5)
    slack = 1e-6 * (axis.high - axis.low)
    assert 1 <= len(found) <= 13
    assert all(a < b for a, b in pairwise(found))
    assert axis.low - slack <= found[0]
    assert found[-1] <= axis.high + slack
    assert all(0 <= axis.at(v) <= 400 for v in (*values, *found))
    assert len(set(tick_labels(axis, found))) == len(found)


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0, 10, False, ("0", "2", "4", "6", "8", "10")),
        (-0.4, 0.4, False, ("−0.4", "−0.2", "0.0", "0.2", "0.4")),
        (0.01, 100, True, ("0.01", "0.1", "1", "10", "100")),
        (3, 30, True, ("5", "10", "20")),
        (3.1, 5.2, True, ("3.5", "4", "4.5", "5")),
    ],
)
def test_ticks_are_multiples_of_one_two_and_five(low, high, log, expected):
    axis = Axis(low, high, 0, 400, log)
    assert tick_labels(axis, ticks(axis, 5)) == expected


@given(st.text(max_size=200), st.floats(min_value=40, max_value=440))
def test_fitted_text_fits(text, width):
    assert text_width(fit_text(text, width)) <= width


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (1.72, "1.72"),
        (31.234567, "31.23"),
        (12345.6, "12,346"),
        (0.00123, "0.00123"),
        (1e-9, "1e-09"),
        (2.5e9, "2.5e+09"),
        (-3.0, "-3"),
        (math.nan, "not finite"),
    ],
)
def test_numbers_have_four_digits_at_most(value, shown):
    assert number(value) == shown


def luminance(colour):
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("paper", ["paper", "card"])
@pytest.mark.parametrize("role", sorted(set(PALETTE) - {"paper", "card", "rule", "axis"}))
def test_text_has_enough_contrast(role, paper, theme):
    a, b = sorted((luminance(PALETTE[r][theme]) for r in (role, paper)), reverse=True)
    assert (a + 0.05) / (b + 0.05) >= 4.5
