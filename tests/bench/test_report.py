import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bench.document import bench_document
from bench.latency import Latency, Round, Variant
from bench.machine import Machine, describe
from bench.models import Model
from bench.render import FORMATS, Paragraph, render
from bench.report import BenchReport, Missing, assemble
from bench.store import dump, load
from tests.fakes import MS


@pytest.fixture(scope="module")
def here() -> Machine:
    return describe()


def _latency(name: str, runtime: str, *medians_ms: float) -> Latency:
    model = Model(Path(f"{name}.onnx"), (), (), 17, name * 8, 1)
    rounds = tuple(Round(MS, MS, (), (round(m * MS),) * 64, 2**20, 0.0, 0.0, 0) for m in medians_ms)
    return Latency(Variant(f"{name}, {runtime}", model, runtime, "cpu", 1, 1), "1", "f", rounds)


@pytest.fixture
def report(here: Machine) -> BenchReport:
    latencies = [
        _latency("fp32", "ort", 4, 4),
        _latency("int8", "ort", 2, 2),
        _latency("fp32", "ov", 3, 3),
        _latency("int8", "ov", 1, 1),
    ]
    control = _latency("fp32", "ort", 4, 4.1)
    return assemble(here, latencies, [control], [Missing("GPU", "none")])


def test_everything_is_compared_with_the_baseline_and_in_its_runtime(report: BenchReport) -> None:
    pairs = {(c.baseline, c.candidate): round(c.ratio, 3) for c in report.comparisons}
    assert pairs == {
        ("fp32, ort", "int8, ort"): 2,
        ("fp32, ort", "fp32, ov"): 1.333,
        ("fp32, ort", "int8, ov"): 4,
        ("fp32, ov", "int8, ov"): 3,
    }
    assert len(report.controls) == 1


def test_the_document_says_what_matters_first(report: BenchReport) -> None:
    document = bench_document(report)
    assert document.verdict.headline.startswith("int8, ov is the fastest: 1 ms, 4.00×")
    assert "GPU: not measured: none." in document.verdict.lines


@pytest.mark.parametrize(
    ("medians", "why"), [((1.0, 9.0, 1.0, 9.0), "the interval holds 1"), ((2.0,), "one round")]
)
def test_a_ratio_that_is_not_certain_is_no_headline(
    here: Machine, medians: tuple[float, ...], why: str
) -> None:
    slow = _latency("fp32", "ort", *[6.0] * len(medians))
    found = assemble(here, [slow, _latency("int8", "ort", *medians)], [], [])
    headline = bench_document(found).verdict.headline
    assert "not certain that it is faster than fp32, ort" in headline
    assert why in headline
    assert "×" not in headline


def test_what_speaks_against_a_variant_is_one_line(report: BenchReport) -> None:
    doubts = ("fp32, ort: too few samples", "fp32, ort: other processes ran", "int8, ov: throttled")
    doubtful = tuple(dataclasses.replace(c, doubts=doubts) for c in report.comparisons)
    document = bench_document(dataclasses.replace(report, comparisons=doubtful))
    (warning,) = (
        b
        for s in document.sections
        for b in s.blocks
        if isinstance(b, Paragraph) and b.tone == "warning"
    )
    _, first, second = warning.text.split("\n")
    assert first == "fp32, ort: too few samples; other processes ran."
    assert second == "int8, ov: throttled."
    assert any("4 of 4 comparisons" in line for line in document.verdict.lines)


def test_a_fastest_baseline_is_said_so(here: Machine) -> None:
    alone = assemble(here, [_latency("fp32", "ort", 4)], [], [])
    assert "fp32, ort is the fastest: 4 ms" in bench_document(alone).verdict.headline
    assert "nothing to compare" in render(bench_document(alone), "text")


def test_doubts_reach_the_reader(report: BenchReport) -> None:
    doubtful = tuple(dataclasses.replace(c, doubts=("too noisy",)) for c in report.comparisons)
    text = render(bench_document(dataclasses.replace(report, comparisons=doubtful)), "text")
    assert text.count("too noisy") == 1


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_format_takes_it(report: BenchReport, name: str) -> None:
    assert "int8" in render(bench_document(report), name) or name == "junit"


def test_the_report_survives_json(report: BenchReport) -> None:
    data: Any = dump(report)
    assert load(BenchReport, data, "r") == report
