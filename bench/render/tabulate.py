"""Figures as tables: for formats without pictures, and for those who want the numbers."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from bench.escape import number
from bench.render.document import (
    Bars,
    Column,
    Ecdf,
    Figure,
    Forest,
    Lines,
    Pairs,
    Roofline,
    Scatter,
    Series,
    Table,
)
from bench.render.scale import drawable

# Samples below which a percentile is a guess: MLPerf's early-stopping counts, one query discarded
# (mlcommons/inference, loadgen/early_stopping.cc).
_PERCENTILES = ((50, 11), (90, 64), (99, 662))


def tabulate(figure: Figure) -> Table:
    """The numbers of a figure."""
    return _TABLES[type(figure)](figure)


def _bars(figure: Bars) -> Table:
    with_intervals = any(b.low is not None or b.high is not None for b in figure.bars)
    names = ["", figure.unit, *(["low", "high"] if with_intervals else [])]
    rows = [
        (b.label, number(b.value), *((_end(b.low), _end(b.high)) if with_intervals else ()))
        for b in figure.bars
    ]
    if figure.reference is not None:
        rows.append((figure.reference_label, number(figure.reference), *[""] * (len(names) - 2)))
    return _table(figure, names, rows)


def _ecdf(figure: Ecdf) -> Table:
    percentiles = [f"p{p}" for p, _ in _PERCENTILES]
    names = [figure.unit, "n", "min", *percentiles, "max"]
    return _table(figure, names, [_quantiles(s) for s in figure.series])


def _quantiles(series: Series) -> tuple[str, ...]:
    values = sorted(v for v in series.values if drawable(v))
    count = len(values)
    if not count:
        return (series.label, "0", *[""] * (len(_PERCENTILES) + 2))
    cells = [
        # The order statistic at rank ceil(p n / 100): a value that was measured.
        number(values[-(-p * count // 100) - 1]) if count >= needed else "n too small"
        for p, needed in _PERCENTILES
    ]
    return (series.label, f"{count:,}", number(values[0]), *cells, number(values[-1]))


def _forest(figure: Forest) -> Table:
    rows: list[tuple[str, ...]] = [
        (r.label, number(r.estimate), _end(r.low), _end(r.high), r.outcome) for r in figure.rows
    ]
    rows.append((figure.limit_label, number(figure.limit), "", "", ""))
    numbers = _table(figure, ["", figure.unit, "low", "high"], rows)
    return replace(numbers, columns=(*numbers.columns, Column("outcome")))


def _lines(figure: Lines) -> Table:
    rows = [(c.label, number(x), number(y)) for c in figure.curves for x, y in sorted(c.points)]
    return _table(figure, ["", figure.x_label, figure.y_label], rows)


def _scatter(figure: Scatter) -> Table:
    rows = [(p.label, number(p.x), number(p.y)) for p in figure.points]
    return _table(figure, ["", figure.x_label, figure.y_label], rows)


def _pairs(figure: Pairs) -> Table:
    rows = [(r.label, _end(r.before), _end(r.after)) for r in figure.rows]
    names = [f"{name}, {figure.unit}" for name in (figure.before_label, figure.after_label)]
    return _table(figure, ["", *names], rows)


def _roofline(figure: Roofline) -> Table:
    rows = [(p.label, number(p.x), number(p.y)) for p in figure.points]
    rows += [(f"at best: {r.label}", "", number(r.height)) for r in figure.roofs]
    rows.append((f"at best: memory, {number(figure.bandwidth)} GB/s", "", ""))
    return _table(figure, ["", "op/byte", "GOP/s"], rows)


def _table(figure: Figure, names: list[str], rows: Sequence[tuple[str, ...]]) -> Table:
    first, *others = names
    heads = (Column(first), *(Column(name, "right") for name in others))
    return Table(figure.title, heads, tuple(rows), figure.description)


def _end(value: float | None) -> str:
    return "" if value is None else number(value)


_TABLES: dict[type[Figure], Callable[[Any], Table]] = {
    Bars: _bars,
    Ecdf: _ecdf,
    Forest: _forest,
    Lines: _lines,
    Pairs: _pairs,
    Roofline: _roofline,
    Scatter: _scatter,
}
