"""What a report says, before any format: text, tables and figures as plain data.

A figure is data too (values, intervals, limits), never a picture, so that each format can draw it
or write it as a table. Nothing here is escaped: strings may come straight from a hostile model, and
every format makes them safe itself.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Outcome: TypeAlias = Literal["pass", "refuse", "inconclusive", "info"]
CheckOutcome: TypeAlias = Literal["pass", "fail", "inconclusive", "error", "skipped"]
Tone: TypeAlias = Literal["plain", "baseline", "candidate", "warning"]
"""What a bar, point or curve stands for: each has its own colour *and* hatch, dash or shape."""


@dataclass(frozen=True, slots=True)
class KeyFigure:
    """One of the few large numbers on top: accuracy, speed, size, coverage.

    Attributes:
        label: What it is.
        value: The number with its unit, ready to show.
        note: What to hold it against: an interval, the FP32 value, the limit.
    """

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Banner:
    """The verdict, which comes first in every format.

    Attributes:
        outcome: Decides colour, sign and word.
        headline: The verdict in one sentence.
        lines: Reasons and caveats, one sentence each.
        figures: Key figures, four at best.
    """

    outcome: Outcome
    headline: str
    lines: tuple[str, ...] = ()
    figures: tuple[KeyFigure, ...] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was judged; a test case in JUnit.

    Attributes:
        name: What was judged, unique in a report.
        outcome: "inconclusive" counts as a failure wherever a format knows only two outcomes.
        message: One sentence with the numbers in it.
        details: More lines, for whoever has to act.
        found: What was measured, with its unit.
        limit: What it was held against, with its unit.
    """

    name: str
    outcome: CheckOutcome
    message: str
    details: str = ""
    found: str = ""
    limit: str = ""


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Running text; a line break begins a new line."""

    text: str
    tone: Literal["plain", "note", "warning"] = "plain"


@dataclass(frozen=True, slots=True)
class Column:
    """A table's column. Numbers belong on the right."""

    name: str
    align: Literal["left", "right"] = "left"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of ready-to-show cells; the first column names the row.

    Attributes:
        title: The caption; empty where the section's own title says it.
        columns: Their names and sides; without any name there is no head.
        rows: One cell per column each; missing cells are shown empty, extra ones left out.
        note: A line below.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """A value with an optional interval, in the figure's unit."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True)
class Bars:
    """Horizontal bars from zero, in the order given: latency per variant, SQNR of the worst layers.

    Attributes:
        title: What is shown.
        description: What to see in it; also read out where the picture cannot be seen.
        unit: Of every value ("ms", "dB", "×").
        bars: Top to bottom.
        reference: A value to compare with, drawn as a dashed line.
        reference_label: What that value is.
    """

    title: str
    description: str
    unit: str
    bars: tuple[Bar, ...]
    reference: float | None = None
    reference_label: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Raw samples of one variant, in any order, in the figure's unit."""

    label: str
    values: tuple[float, ...]
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True)
class Ecdf:
    """Share of samples at or below each value: the whole distribution, not one percentile of it.

    Attributes:
        title: What is shown.
        description: What to see in it.
        unit: Of every sample.
        series: One step curve each.
        log_x: A logarithmic axis; a linear one is drawn where a sample is not positive.
    """

    title: str
    description: str
    unit: str
    series: tuple[Series, ...]
    log_x: bool = False


@dataclass(frozen=True, slots=True)
class ForestRow:
    """An estimate with its interval; None is an end without a bound."""

    label: str
    estimate: float
    low: float | None
    high: float | None
    outcome: Outcome = "info"


@dataclass(frozen=True, slots=True)
class Forest:
    """Intervals against a limit that must not be passed to the right, such as accuracy drops.

    Attributes:
        title: What is shown.
        description: What to see in it.
        unit: Of estimates, bounds and limit.
        rows: Top to bottom.
        limit: The largest value that is tolerated.
        limit_label: What that value is.
    """

    title: str
    description: str
    unit: str
    rows: tuple[ForestRow, ...]
    limit: float
    limit_label: str


@dataclass(frozen=True, slots=True)
class Point:
    """One candidate in a scatter."""

    x: float
    y: float
    label: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True)
class Scatter:
    """Candidates in two dimensions, with the Pareto front as an optional line of (x, y)."""

    title: str
    description: str
    x_label: str
    y_label: str
    points: tuple[Point, ...]
    line: tuple[tuple[float, float], ...] | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """Measured (x, y) pairs of one variant, joined in order of x."""

    label: str
    points: tuple[tuple[float, float], ...]
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True)
class Lines:
    """Curves over a common axis, such as throughput against concurrency."""

    title: str
    description: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    log_x: bool = False


@dataclass(frozen=True, slots=True)
class Pair:
    """The same thing before and after; None where it is gone, or was not there."""

    label: str
    before: float | None
    after: float | None


@dataclass(frozen=True, slots=True)
class Pairs:
    """Two bars from zero per row: the time of each layer in FP32 and in INT8.

    Attributes:
        title: What is shown.
        description: What to see in it.
        unit: Of every value.
        before_label: What the first bars are, drawn as the baseline.
        after_label: What the second ones are, drawn as the candidate.
        rows: Top to bottom.
    """

    title: str
    description: str
    unit: str
    before_label: str
    after_label: str
    rows: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class Roof:
    """What arithmetic of one kind can reach at best, in operations per second times 10⁹."""

    label: str
    height: float
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True)
class Roofline:
    """What was reached under what the machine can do at best, both axes logarithmic.

    Attributes:
        title: What is shown.
        description: What to see in it.
        bandwidth: Of the memory, in bytes per second times 10⁹: the slanted roof.
        roofs: Of the arithmetic: the level ones.
        points: Operations per byte across, 10⁹ operations per second upwards.
    """

    title: str
    description: str
    bandwidth: float
    roofs: tuple[Roof, ...]
    points: tuple[Point, ...]


Figure: TypeAlias = Bars | Ecdf | Forest | Scatter | Lines | Pairs | Roofline
Block: TypeAlias = Paragraph | Table | Figure


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A whole report.

    Attributes:
        title: What was examined.
        verdict: Shown first.
        sections: In reading order.
        checks: What was judged, one by one.
        picture: The one to look at first, beside the verdict.
        footer: Where it came from: versions, digests, the command.
    """

    title: str
    verdict: Banner
    sections: tuple[Section, ...] = ()
    checks: tuple[Check, ...] = ()
    footer: tuple[str, ...] = ()
    picture: Figure | None = None
