import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.errors import UsageError
from bench.escape import clean, clean_lines, columns, elide
from bench.render import (
    FORMATS,
    Banner,
    Bar,
    Bars,
    Check,
    Column,
    Curve,
    Document,
    Ecdf,
    Forest,
    ForestRow,
    KeyFigure,
    Lines,
    Paragraph,
    Point,
    Scatter,
    Section,
    Series,
    Table,
    github_annotation,
    github_annotations,
    render,
)
from bench.render.markdown import MAX_CHARACTERS, escape_markdown
from bench.render.tabulate import tabulate
from bench.render.text import render_text

hostile = st.text(max_size=40) | st.text(alphabet="|\\`<>@#&*_[]()~$!-+=:1. \n\ra", max_size=30)
quick = settings(suppress_health_check=[HealthCheck.too_slow])


def report(*blocks, checks=(), outcome="pass"):
    return Document("model", Banner(outcome, "Verdict."), (Section("part", blocks),), checks)


def table_of(*cells):
    return Table("t", (Column("a"), Column("b", "right")), tuple((c, c) for c in cells))


def test_every_format_renders_and_unknown_ones_are_named():
    for name in FORMATS:
        assert render(report(Paragraph("x")), name)
    with pytest.raises(
        UsageError, match="unknown format 'pdf'; known: text, markdown, html, junit"
    ):
        render(report(), "pdf")


@given(st.text())
def test_clean_text_is_printable_on_one_line_and_stays_clean(text):
    once = clean(text)
    assert once.isprintable()
    assert clean(once) == once
    once.encode("utf-8")


def test_cleaning_takes_out_what_a_terminal_or_a_reader_would_obey():
    assert clean("a\x1b[31mred\x1b[0m\x07\u202eb\u200bc\ud800\x00d\te") == "aredbcd e"
    assert clean_lines("a\r\nb\x85c\n\n\x1b[2Jd") == "a\nb\nc\nd"


@given(st.text(), st.integers(3, 50))
def test_elided_text_keeps_both_ends(text, limit):
    short = elide(text, limit)
    assert len(short) <= limit
    if len(text) > limit:
        assert short[0] == text[0]
        assert short[-1] == text[-1] or limit == 3


# --- Markdown ---


@quick
@given(st.lists(hostile, min_size=1, max_size=4))
def test_markdown_rows_and_cells_are_stable_for_any_text(cells):
    text = render(report(table_of(*cells)), "markdown")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(cells)
    assert all(row.count("|") == 3 for row in rows)


@given(hostile)
def test_markdown_text_has_no_markup_left(text):
    escaped = escape_markdown(text)
    bare = re.sub(r"&#\d+;", "", escaped)
    assert not set(bare) & set("\\`*[]~$|<>#&\n\r")
    assert not re.search(r"@\w", escaped)
    assert not re.search(r"^(?:[-+](?!\d)|=|:|\d+[.)](?:\s|$))", escaped)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("@octocat", "@&#8203;octocat"),
        ("fixes #123", "fixes &#35;&#8203;123"),
        ("GH-12", "GH-&#8203;12"),
        ("https://a.example", "https://&#8203;a.example"),
        ("a|b", "a&#124;b"),
        ("`x`", "&#96;x&#96;"),
        ("<b>", "&#60;b&#62;"),
        ("- item", "&#45; item"),
        ("1. item", "1&#8203;. item"),
        ("0.31 pt", "0.31 pt"),
        ("-0.15", "-0.15"),
        ("snake_case_name", "snake_case_name"),
        ("_emphasis_", "&#95;emphasis&#95;"),
        ("a\nb", "a b"),
    ],
)
def test_markdown_escapes_just_what_it_must(text, escaped):
    assert escape_markdown(text) == escaped


def test_markdown_figures_become_tables():
    figure = Bars("Latency", "lower is better", "ms", (Bar("INT8", 9.15, 9.0, 9.3),))
    text = render(report(figure), "markdown")
    assert "**Latency**" in text
    assert "| INT8 | 9.15 | 9 | 9.3 |" in text
    assert "<svg" not in text


def test_markdown_fits_a_comment_and_says_what_it_cut():
    rows = tuple(("cell |" * 20, "x" * 100) for _ in range(80))
    block = Table("t", (Column("a"), Column("b")), rows)
    text = render(report(*[block] * 60), "markdown")
    assert len(text) <= MAX_CHARACTERS < 65_536
    assert "cut here" in text
    assert text.count("<details>") == text.count("</details>")


def test_markdown_begins_with_marker_and_verdict():
    verdict = Banner(
        "refuse", "Too much is lost.", ("why",), (KeyFigure("Drop", "2 pt", "limit 1"),)
    )
    lines = render(Document("m", verdict), "markdown").splitlines()
    assert lines[0] == "<!-- vnnify report -->"
    assert lines[4] == "**❌ Refused: Too much is lost.**"
    assert "| **2 pt** |" in lines


def test_markdown_folds_long_tables_and_counts_what_is_missing():
    text = render(report(table_of(*(str(i) for i in range(150)))), "markdown")
    assert "<details><summary>t</summary>" in text
    assert "50 more rows are in report.json." in text


# --- text ---


@quick
@given(st.lists(st.text(max_size=120), min_size=1, max_size=4))
def test_text_has_no_control_characters_and_fits_the_terminal(cells):
    checks = tuple(Check(c, "fail", c, c) for c in cells)
    blocks = (
        table_of(*cells),
        Paragraph("\n".join(cells)),
        Bars("t", "d", "u", (Bar(cells[0], 1),)),
    )
    text = render(report(*blocks, checks=checks), "text")
    assert all(c.isprintable() or c == "\n" for c in text)
    assert all(columns(line) <= 100 for line in text.splitlines() if line.isascii())


@pytest.mark.parametrize("width", [40, 60, 80, 132])
def test_text_is_as_wide_as_asked_and_its_prose_stays_readable(width):
    numbers = Table(
        "t",
        (Column("name"), *(Column(f"figure {i}", "right") for i in range(3))),
        (("first, onnxruntime, batch 8", "1.234", "2.345", "3.456"),),
    )
    bars = Bars("t", "d", "ms", (Bar("a name", 10), Bar("b", 5)))
    text = render_text(report(numbers, bars, Paragraph("word " * 60)), width)
    lines = text.splitlines()
    assert max(map(columns, lines)) <= width
    assert max(columns(line) for line in lines if "word" in line) > min(width, 100) - 6
    assert max(columns(line) for line in lines if "word" in line) <= 100
    drawn = [line.count("#") for line in lines if "##" in line]
    assert drawn[0] == 2 * drawn[1] or abs(drawn[0] - 2 * drawn[1]) == 1
    assert any(line.split()[-3:] == ["1.234", "2.345", "3.456"] for line in lines)


def test_text_names_rows_on_lines_of_their_own_where_numbers_need_the_room():
    heads = (Column("variant"), *(Column("ms", "right") for _ in range(3)))
    table = Table("t", heads, (("a rather long name", "1234.567", "2345.678", "3456.789"),))
    lines = render_text(report(table), 40).splitlines()
    start = lines.index("t")
    assert lines[start + 1 : start + 6] == [
        "  variant",
        "          ms        ms        ms",
        "  ------------------------------",
        "  a rather long name",
        "    1234.567  2345.678  3456.789",
    ]


def test_text_wraps_prose_in_the_last_column():
    table = Table(
        "", (Column(""), Column("")), (("Packages", "one 1, two 2, three 3, four 4, " * 2),)
    )
    lines = render_text(report(table), 50).splitlines()
    assert lines[-2:] == [
        "  Packages  one 1, two 2, three 3, four 4, one 1,",
        "            two 2, three 3, four 4,",
    ]


def test_tables_without_heads_have_none():
    table = Table("", (Column(""), Column("")), (("CPU", "x"),))
    assert "<thead>" not in render(report(table), "html")
    assert "<caption>" not in render(report(table), "html")
    assert "**Table**" not in render(report(table), "markdown")
    assert "  ---" not in render(report(table), "text")


def test_text_columns_are_aligned():
    table = Table("t", (Column("name"), Column("ms", "right")), (("a", "1"), ("long name", "12.5")))
    lines = render(report(table), "text").splitlines()
    start = lines.index("t")
    assert lines[start + 1 : start + 5] == [
        "  name         ms",
        "  ---------------",
        "  a             1",
        "  long name  12.5",
    ]


def test_text_bars_are_as_long_as_their_values():
    bars = Bars("t", "d", "ms", (Bar("a", 10), Bar("b", 5), Bar("c", float("nan"))))
    lines = render(report(bars), "text").splitlines()
    drawn = {
        line.split()[0]: line.count("#") for line in lines if line[:3] in ("  a", "  b", "  c")
    }
    assert drawn == {"a": 30, "b": 15, "c": 0}


def test_text_shortens_the_widest_column_only():
    table = Table("t", (Column("node"), Column("why")), (("x" * 300, "short reason"),))
    line = next(line for line in render(report(table), "text").splitlines() if "short" in line)
    assert columns(line) <= 100
    assert line.endswith("short reason")


# --- JUnit ---

any_check = st.builds(
    Check,
    st.text(max_size=30),
    st.sampled_from(["pass", "fail", "inconclusive", "error", "skipped"]),
    st.text(max_size=30),
    st.text(max_size=30),
)


@quick
@given(st.lists(any_check, max_size=5), st.text(max_size=20))
def test_junit_parses_for_any_text_and_counts_right(checks, title):
    document = Document(title, Banner("pass", "h"), checks=tuple(checks))
    root = ET.fromstring(render(document, "junit").encode())
    suite = root.find("testsuite")
    assert len(suite.findall("testcase")) == len(checks) == int(suite.get("tests"))
    assert len(suite.findall(".//failure")) == int(suite.get("failures"))
    assert len(suite.findall(".//error")) == int(suite.get("errors"))
    assert len(suite.findall(".//skipped")) == int(suite.get("skipped"))


def test_junit_has_the_numbers_in_the_failure_and_names_inconclusive_ones():
    checks = (
        Check("accuracy", "fail", "drop 2.1 pt, limit 1 pt", "b = 90\nc = 12"),
        Check("night", "inconclusive", "needs 3,100 more"),
        Check("size", "pass", "25 %"),
    )
    root = ET.fromstring(render(report(checks=checks), "junit").encode())
    first, second = root.findall(".//failure")
    assert first.get("message") == "drop 2.1 pt, limit 1 pt"
    assert first.text == "drop 2.1 pt, limit 1 pt\nb = 90\nc = 12"
    assert second.get("message") == "inconclusive: needs 3,100 more"
    assert root.find(".//testcase[@name='size']/system-out").text == "25 %"


# --- GitHub ---


def test_annotation_encodes_what_would_end_it():
    command = github_annotation("error", "a:b,c%", "100 %\r\n::error::x")
    assert command == "::error title=a%3Ab%2Cc%25::100 %25%0A::error::x"


@given(st.text(), st.text())
def test_annotation_is_always_one_command(title, message):
    command = github_annotation("warning", title, message)
    assert len(command.splitlines()) == 1
    assert re.fullmatch(r"::warning title=[^:,]*::.*", command)


def test_annotations_are_errors_then_doubts_ten_each():
    checks = tuple(Check(f"d{i}", "inconclusive", "m") for i in range(12))
    checks += (Check("ok", "pass", "m"), Check("bad", "fail", "m"), Check("broken", "error", "m"))
    levels = [c.split(" ")[0] for c in github_annotations(checks)]
    assert levels == ["::error"] * 2 + ["::warning"] * 10


# --- figures as tables ---


def test_ecdf_table_gives_percentiles_only_with_enough_samples():
    def row(count):
        series = Series("a", tuple(float(i) for i in range(1, count + 1)))
        return tabulate(Ecdf("t", "d", "ms", (series,))).rows[0]

    few = "n too small"
    assert row(10) == ("a", "10", "1", few, few, few, "10")
    assert row(63)[4] == few
    assert row(661)[5] == few
    assert row(64) == ("a", "64", "1", "32", "58", few, "64")
    assert row(1000) == ("a", "1,000", "1", "500", "900", "990", "1,000")


def test_figure_tables_hold_every_number_the_picture_shows():
    forest = Forest("t", "d", "pt", (ForestRow("a", 0.2, None, 0.5, "pass"),), 1.0, "limit")
    lines = Lines("t", "d", "x", "y", (Curve("a", ((2, 20), (1, 10))),))
    scatter = Scatter("t", "d", "x", "y", (Point(1, 10, "a"),))
    bars = Bars("t", "d", "ms", (Bar("a", 1),), 2, "limit")
    assert tabulate(forest).rows == (("a", "0.2", "", "0.5", "pass"), ("limit", "1", "", "", ""))
    assert tabulate(lines).rows == (("a", "1", "10"), ("a", "2", "20"))
    assert tabulate(scatter).rows == (("a", "1", "10"),)
    assert tabulate(bars).rows == (("a", "1"), ("limit", "2"))
    assert tabulate(Ecdf("t", "d", "ms", (Series("a", ()),))).rows[0][:2] == ("a", "0")


def test_text_says_verdict_reasons_figures_checks_and_origin_in_that_order():
    verdict = Banner("refuse", "Too much.", ("A reason.",), (KeyFigure("Drop", "2 pt", "of 1"),))
    sections = (Section("part", (Paragraph("One.\nTwo.", "warning"),)),)
    checks = (Check("accuracy", "fail", "2 pt", "b = 9"),)
    text = render(Document("m", verdict, sections, checks, ("v1",)), "text")
    assert text == (
        "m\n====\n\nREFUSE: Too much.\n  A reason.\n\n  Drop  2 pt  of 1\n\nChecks\n------\n"
        "  FAIL  accuracy\n      2 pt\n      b = 9\n\npart\n----\nWarning: One.\nTwo.\n\nv1\n"
    )


def test_text_counts_rows_that_it_leaves_out():
    text = render(report(table_of(*(str(i) for i in range(205)))), "text")
    assert "  5 more rows are in report.json." in text.splitlines()


def test_markdown_keeps_tones_checks_and_origin():
    sections = (Section("part", (Paragraph("One.\nTwo.", "note"), Paragraph("Three."))),)
    checks = (Check("night", "inconclusive", "needs 3,100 more"),)
    text = render(Document("m", Banner("info", "h"), sections, checks, ("v1",)), "markdown")
    assert "> **Note:** One.  \n> Two." in text
    assert "| night | ❓ Inconclusive | needs 3,100 more |" in text
    assert text.endswith("Three.\n\n<sub>v1</sub>\n")
