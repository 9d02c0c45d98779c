import random
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.render import (
    Banner,
    Bar,
    Bars,
    Check,
    Column,
    Document,
    Ecdf,
    KeyFigure,
    Paragraph,
    Section,
    Series,
    Table,
    render,
)
from bench.render.html import MAX_BYTES

VOID = {"meta", "br"}
any_text = st.text(max_size=30) | st.sampled_from(
    ["<script>alert(1)</script>", '"><svg onload=x>', "' style=x ", "</style>", "\x1b[31m", "&#60;"]
)


class Page(HTMLParser):
    """Collects tags, attributes and text, and insists on balanced tags."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text = [], [], []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@st.composite
def documents(draw, text=any_text):
    def t():
        return draw(text)

    def many(limit=3):
        return range(draw(st.integers(0, limit)))

    table = Table(
        t(),
        tuple(Column(t(), draw(st.sampled_from(["left", "right"]))) for _ in many()),
        tuple(tuple(t() for _ in many(4)) for _ in many()),
        t(),
    )
    figure = Bars(t(), t(), t(), tuple(Bar(t(), 1.0) for _ in many()), 2.0, t())
    paragraph = Paragraph(t(), draw(st.sampled_from(["plain", "note", "warning"])))
    blocks = draw(st.permutations([table, figure, paragraph, figure]))
    outcomes = ["pass", "fail", "inconclusive", "error", "skipped"]
    return Document(
        t(),
        Banner(
            draw(st.sampled_from(["pass", "refuse", "inconclusive", "info"])),
            t(),
            tuple(t() for _ in many()),
            tuple(KeyFigure(t(), t(), t()) for _ in many()),
        ),
        tuple(Section(t(), tuple(blocks)) for _ in many(6)),
        tuple(Check(t(), draw(st.sampled_from(outcomes)), t(), t()) for _ in many()),
        tuple(t() for _ in many()),
    )


def document(*blocks, **more):
    return Document("model", Banner("pass", "It may ship."), (Section("s", blocks),), **more)


def page(*blocks, **more):
    return Page(render(document(*blocks, **more), "html"))


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
@given(documents())
def test_any_text_leaves_the_page_intact(doc):
    source = render(doc, "html")
    parsed = Page(source)
    assert "<script" not in source.lower()
    for tag, attrs in parsed.tags:
        assert tag in KNOWN, tag
        assert not [a for a in attrs if a.startswith("on") or a == "style"]
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    source.encode("utf-8")
    assert all(c.isprintable() or c == "\n" for c in source)


KNOWN = {
    *("html", "head", "meta", "title", "style", "body", "div", "header", "main", "nav", "footer"),
    *("h1", "h2", "p", "ul", "ol", "li", "dl", "dt", "dd", "a", "strong", "span", "br", "pre"),
    *("section", "table", "caption", "thead", "tbody", "tr", "th", "td"),
    *("figure", "figcaption", "details", "summary", "svg", "desc", "defs", "pattern"),
    *("rect", "path", "text", "circle"),
}


def test_page_is_self_contained_and_closed_to_scripts():
    source = render(document(Bars("t", "d", "ms", (Bar("a", 1.0),))), "html")
    policy = next(m["content"] for m in Page(source).all("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert "http://" not in source.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in source
    assert "@import" not in source


def test_verdict_comes_before_everything_else():
    source = render(document(Paragraph("later"), checks=(Check("c", "pass", "m"),)), "html")
    order = [source.index(s) for s in ("It may ship.", "<h2>Checks", "<h2>s</h2>", "later")]
    assert order == sorted(order)


def test_outcome_is_a_word_and_not_only_a_colour():
    for outcome, word in (
        ("pass", "Pass"),
        ("refuse", "Refused"),
        ("inconclusive", "Inconclusive"),
    ):
        parsed = Page(render(Document("m", Banner(outcome, "h")), "html"))
        assert f" {word}" in parsed.text


def test_hostile_name_is_shown_as_it_is():
    name = "<script>alert('x')</script>"
    parsed = page(Table("t", (Column("a"),), ((name,),)))
    assert name in parsed.text


def test_long_name_is_cut_in_the_middle_and_whole_in_the_tooltip():
    name = "/block/" + "x" * 200 + "/Conv"
    parsed = page(Table("t", (Column("a"),), ((name,),)))
    assert {"title": name} in parsed.all("span")
    shown = next(t for t in parsed.text if "…" in t)
    assert shown.startswith("/block/")
    assert shown.endswith("/Conv")
    assert len(shown) == 48


def test_prose_is_not_cut_where_names_would_be():
    reason = "INT8 is slower here because the fused kernel takes longer than both FP32 ones do"
    assert reason in page(Table("t", (Column("a"), Column("b")), (("x", reason),))).text


def test_contents_appear_from_five_sections():
    def nav(count):
        sections = tuple(Section(f"part {i}", ()) for i in range(count))
        return Page(render(Document("m", Banner("info", "h"), sections), "html")).all("nav")

    assert not nav(4)
    assert len(nav(5)) == 1


def test_contents_point_at_sections():
    sections = tuple(Section(f"part {i}", ()) for i in range(6))
    parsed = Page(render(Document("m", Banner("info", "h"), sections), "html"))
    targets = {a["href"][1:] for a in parsed.all("a")}
    assert targets == {s["id"] for s in parsed.all("section")}


def test_tables_are_captioned_scoped_and_scroll_by_keyboard():
    parsed = page(Table("Machines", (Column("a"), Column("b", "right")), (("x", "1"),)))
    scopes = [th["scope"] for th in parsed.all("th")]
    assert scopes == ["col", "col", "row"]
    assert len(parsed.all("caption")) == 1
    wrapper = next(d for d in parsed.all("div") if d.get("class") == "scroll")
    assert wrapper["tabindex"] == "0"
    assert wrapper["aria-label"] == "Machines"


def test_only_long_names_and_prose_ask_for_a_width():
    columns = (Column("name"), Column("cause"), Column("n", "right"))
    rows = (("x" * 18, "y" * 30, "1" * 31), ("x" * 19, "y" * 31, "1" * 31))
    parsed = page(Table("t", columns, rows))
    looks = [attrs.get("class") for tag, attrs in parsed.tags if "class" in attrs or tag == "td"]
    assert [look for look in looks if look in (None, "p", "r")][1:] == [None, "r", "p", "p", "r"]


def test_long_table_is_cut_with_a_line_that_says_so():
    rows = tuple((f"row {i}",) for i in range(250))
    parsed = page(Table("t", (Column("a"),), rows))
    assert len(parsed.all("tr")) == 201
    assert "50 more rows are in report.json (250 in all)." in parsed.text


def test_ragged_rows_get_exactly_one_cell_per_column():
    parsed = page(Table("t", (Column("a"), Column("b")), (("1",), ("1", "2", "3"))))
    assert len(parsed.all("td")) == 2
    assert len(parsed.all("th")) == 4


def test_neighbouring_figures_share_a_grid_and_each_has_its_numbers():
    figure = Bars("t", "d", "ms", (Bar("a", 1.5),))
    parsed = page(figure, figure, Paragraph("between"), figure)
    grids = [d for d in parsed.all("div") if d.get("class") == "figures"]
    assert len(grids) == 2
    assert len(parsed.all("svg")) == len(parsed.all("details")) == 3
    for svg in parsed.all("svg"):
        assert svg["role"] == "img"
        assert svg["viewbox"].startswith("0 0 440 ")


HUGE = "<&\"'\U0001f600 long" * 300


@pytest.mark.parametrize(
    "blocks",
    [
        tuple(Table(HUGE, (Column(HUGE),) * 20, ((HUGE,) * 20,) * 300) for _ in range(20)),
        tuple(
            Ecdf(HUGE, HUGE, "ms", tuple(Series(HUGE, VALUES) for _ in range(8)))
            for VALUES in [tuple(random.Random(1).random() for _ in range(2000))] * 30
        ),
        tuple(Bars(HUGE, HUGE, HUGE, tuple(Bar(HUGE, i) for i in range(300))) for _ in range(30)),
        (Paragraph("\n".join([HUGE] * 300)),) * 30,
    ],
    ids=["tables", "curves", "bars", "text"],
)
def test_page_stays_small_whatever_is_in_it(blocks):
    doc = Document(
        HUGE,
        Banner("pass", HUGE, (HUGE,) * 50, (KeyFigure(HUGE, HUGE, HUGE),) * 50),
        tuple(Section(HUGE, blocks) for _ in range(60)),
        tuple(Check(HUGE, "fail", HUGE, HUGE) for _ in range(500)),
        (HUGE,) * 100,
    )
    source = render(doc, "html")
    assert len(source.encode()) < MAX_BYTES
    assert "report.json" in source
    Page(source)


def test_moderate_report_is_complete():
    tables = tuple(
        Table(f"t{i}", (Column("a"),) * 6, (("some cell of usual size",) * 6,) * 50)
        for i in range(8)
    )
    parsed = page(*tables)
    assert len(parsed.all("table")) == 8
    assert len(parsed.all("tr")) == 8 * 51
