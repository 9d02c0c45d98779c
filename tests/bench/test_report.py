import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.document import bench_document
from bench.latency import Latency, Variant
from bench.machine import Machine, describe
from bench.models import Model, TensorSpec
from bench.peaks import Peaks
from bench.render import FORMATS, Paragraph, render
from bench.report import BenchReport, Missing, assemble
from bench.rounds import Round
from bench.store import dump, load
from bench.work import Work
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
    # Against the fastest of the first model: a faster runtime is no faster model.
    assert document.verdict.headline == "int8, ov is the fastest: 1 ms, 3.00× as fast as fp32, ov"
    assert [(f.label, f.value) for f in document.verdict.figures] == [
        ("baseline", "4 ms"),
        ("first model at best", "3 ms"),
        ("fastest", "1 ms"),
        ("times as fast", "3.00×"),
    ]
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


def test_a_first_model_that_is_the_fastest_is_held_against_the_others(here: Machine) -> None:
    found = assemble(here, [_latency("fp32", "ort", 2, 2), _latency("int8", "ort", 3, 3)], [], [])
    headline = bench_document(found).verdict.headline
    assert headline == "fp32, ort is the fastest: 2 ms, 1.50× as fast as int8, ort"
    unsure = [_latency("fp32", "ort", 2, 2), _latency("int8", "ort", 1.9, 3)]
    headline = bench_document(assemble(here, unsure, [], [])).verdict.headline
    assert "not certain that it is faster than int8, ort" in headline


def test_no_ratio_is_claimed_where_the_control_failed(here: Machine) -> None:
    latencies = [_latency("fp32", "ort", 4, 4.01), _latency("int8", "ort", 2, 2)]
    drifted = _latency("fp32", "ort", 5, 5.01)
    headline = bench_document(assemble(here, latencies, [drifted], [])).verdict.headline
    assert "a model against itself was not equally fast" in headline


def test_a_fastest_baseline_is_said_so(here: Machine) -> None:
    alone = assemble(here, [_latency("fp32", "ort", 4)], [], [])
    assert "fp32, ort is the fastest: 4 ms" in bench_document(alone).verdict.headline
    assert "nothing to compare" in render(bench_document(alone), "text")


def _batched(latency: Latency, batch: int) -> Latency:
    name = f"{latency.variant.name}, batch {batch}"
    return dataclasses.replace(
        latency, variant=dataclasses.replace(latency.variant, name=name, batch=batch)
    )


def test_every_batch_size_has_a_fastest(here: Machine) -> None:
    found = [
        _batched(_latency(model, "ort", ms * batch, ms * batch), batch)
        for batch, fp32, int8 in ((1, 4, 2), (8, 3, 1), (16, 2, 3))
        for model, ms in (("fp32", fp32), ("int8", int8))
    ]
    banner = bench_document(assemble(here, found, [], [])).verdict
    assert (
        banner.headline == "int8, ort is the fastest at batch 1: 2 ms, 2.00× as fast as fp32, ort"
    )
    assert banner.lines[0] == (
        "Batch 8: int8, ort has the shortest median, 8 ms or 1,000 samples per second, "
        "3.00× (3.00 to 3.00) as fast as fp32, ort."
    )
    assert banner.lines[1] == (
        "Batch 16: fp32, ort has the shortest median, 32 ms or 500 samples per second, "
        "1.50× (1.50 to 1.50) as fast as int8, ort."
    )
    many = [_batched(_latency("fp32", "ort", b, b), b) for b in (1, 2, 3, 4, 5, 60)]
    lines = bench_document(assemble(here, many, [], [])).verdict.lines
    assert [line.partition(":")[0] for line in lines if line.startswith("Batch")] == ["Batch 2"]


def test_a_sweep_of_many_batches_and_threads_is_whole_on_one_page(here: Machine) -> None:
    rng = np.random.default_rng(0)
    found = []
    for batch in (1, 2, 4, 8, 16, 32):
        for model, ms in (("fp32", 4), ("int8", 2)):
            for runtime in ("ort", "ov", "a", "b"):
                one = _batched(_latency(model, runtime, ms * batch, ms * batch), batch)
                samples = tuple(int(v) for v in rng.normal(ms * batch, 0.1 * ms, 2000) * MS)
                rounds = tuple(dataclasses.replace(r, samples_ns=samples) for r in one.rounds)
                found.append(dataclasses.replace(one, rounds=rounds))
    page = render(bench_document(assemble(here, found, [], [])), "html")
    assert "too large" not in page
    assert "more rows" not in page
    assert len(page) < 300_000


def test_a_batch_that_may_be_fixed_in_the_file_is_said(here: Machine) -> None:
    alone = _latency("fp32", "ort", 4, 4)
    spec = TensorSpec("x", "float32", (8, 4))
    model = dataclasses.replace(alone.variant.model, inputs=(spec,))
    variant = dataclasses.replace(alone.variant, model=model)
    said = "if that is a batch, --batch 8 counts samples"
    for batch, expected in ((1, True), (8, False)):
        latency = dataclasses.replace(alone, variant=dataclasses.replace(variant, batch=batch))
        lines = bench_document(assemble(here, [latency], [], [])).verdict.lines
        assert (said in " ".join(lines)) == expected


def test_large_numbers_have_no_exponent(here: Machine) -> None:
    found = assemble(here, [_latency("fp32", "ort", 4, 4)], [], [])
    work = Work("fp32" * 8, 1, 271 * 10**10, 0, 10**9, ())
    peaks = Peaks(1, 1e12, 4e12, "a", "b", 1e10, 1)
    text = render(bench_document(dataclasses.replace(found, works=(work,), peaks=(peaks,))), "text")
    assert "2,710" in text
    assert "e+0" not in text


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
