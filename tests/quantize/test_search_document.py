"""What is worth having of everything that was tried."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from bench.render import render
from quantize.document import document
from quantize.drift import Drift
from quantize.report import Report, TrialRow
from quantize.search_document import Choice, pareto
from tests.quantize.test_report import machine, report

__all__ = ["machine", "report"]

choices = st.builds(
    Choice,
    name=st.just("c"),
    value=st.floats(0, 1),
    ms=st.sampled_from([1.0, 2.0, 3.0]),
    size_bytes=st.integers(1, 3),
    outcome=st.just("pass"),
)


@given(st.lists(choices, min_size=1, max_size=12))
def test_each_one_is_on_the_front_or_beaten_by_one_that_is(found: list[Choice]) -> None:
    front = pareto(found, higher_is_better=True)
    assert front
    for c in found:
        as_good = [f for f in front if f.value >= c.value and f.ms <= c.ms]
        assert any(f.size_bytes <= c.size_bytes for f in as_good)
    for c in front:
        better = [f for f in front if f.value > c.value and f.ms < c.ms]
        assert all(f.size_bytes > c.size_bytes for f in better)


def test_the_direction_of_the_metric_counts() -> None:
    low, high = Choice("low", 0.1, 1.0, 1, "pass"), Choice("high", 0.2, 1.0, 1, "pass")
    assert pareto([low, high], higher_is_better=True) == (high,)
    assert pareto([low, high], higher_is_better=False) == (low,)


def tried(report: Report) -> Report:
    whole = report.evaluations[0].count
    row = TrialRow(
        "static", "r", 31.0, {"onnxruntime": 1.5}, 10, "1 of 2", "o", 0.9, 0, "pass",
        seconds=1.0, samples=whole, evaluation_seconds=2.0,
    )  # fmt: skip
    lost = replace(
        row, name="lost", outcome="refuse", samples=12, predicted_db=33.5, latency_ms={"o": 0.1}
    )
    slow = replace(row, name="slow", latency_ms={"o": 9.0}, value=0.1)
    return replace(report, trials=(row, lost, slow), fp32_ms={"onnxruntime": 3.0})


def test_the_front_holds_what_was_scored_on_every_sample(report: Report) -> None:
    text = render(document(tried(report)), "text")
    front = text.partition("Pareto front")[2].partition("No other model")[0]
    assert "static" in front
    assert "FP32" in front
    assert "lost" not in front
    assert "slow" not in front


def test_what_the_search_cost_is_said(report: Report) -> None:
    text = " ".join(render(document(tried(report)), "markdown").split())
    assert (
        "3 candidates, made and looked at in 3.0 s; 3 of them evaluated in 6.0 s, 1 ended" in text
    )
    assert "33.5" in text
    assert "lay on disk" not in text
    passed = replace(tried(report), first_pass_s=3.14)
    told = " ".join(render(document(passed), "markdown").split())
    assert "they were lost. The first model within the limit lay on disk after 3.1 s." in told
    total = report.evaluations[0].count
    early = replace(passed, first_pass_samples=total - 1)
    told = " ".join(render(document(early), "markdown").split())
    assert f"after 3.1 s, judged by {total - 1:,} samples; the other 1 came later." in told


def test_drift_has_a_table_of_its_own(report: Report) -> None:
    moved = replace(report, drift=(Drift("stem", 0.0, 1.0, 0.0, 2.5),))
    text = render(document(moved), "text")
    assert "Drift of ranges" in text
    assert "2.50×" in text
    assert "Drift of ranges" not in render(document(report), "text")
