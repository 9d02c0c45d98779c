from dataclasses import replace
from pathlib import Path

import pytest

from bench.beside import Beside
from bench.document import bench_document
from bench.errors import InputError
from bench.latency import Latency, Variant
from bench.load import Load, LoadRun, decisive
from bench.machine import Machine, describe
from bench.models import Model
from bench.others import Planned
from bench.peaks import Peaks
from bench.render import FORMATS, render
from bench.report import BenchReport, Missing, assemble, supplies
from bench.rounds import Round
from bench.store import dump, load
from bench.work import Work
from tests.fakes import MS

PRICES = """
[[machine]]
name = "small"
price_per_hour = 0.36
currency = "EUR"
date = 2026-11-22
device = "cpu"

[[machine]]
name = "big"
price_per_hour = 3.6
currency = "EUR"
date = 2026-11-22
device = "cuda"
"""


@pytest.fixture(scope="module")
def here() -> Machine:
    return describe()


def _latency(name: str, ms: float, device: str = "cpu", threads: int = 1) -> Latency:
    model = Model(Path("m.onnx"), (), (), 17, "a" * 64, 1)
    rounds = tuple(
        Round(MS, MS, (), (round(ms * MS),) * 662, 2**20, 0.0, 0.0, 0, compile_ns=MS, cold_ns=MS)
        for _ in range(3)
    )
    variant = Variant(name, model, "onnxruntime", device, threads, 1)
    return Latency(variant, "1", "f" * 64, rounds)


def _loaded(latency: Latency, streams: int, rate: float | None, ms: float) -> Load:
    count = 700
    span = round(count / (rate or streams * 1000 / ms) * 1e9)
    run = LoadRun(span, (round(ms * MS),) * count, span if rate else 0, 0, 0.0, 0)
    return Load(latency.variant, streams, rate, (run,))


@pytest.fixture
def report(here: Machine) -> BenchReport:
    first = _latency("m, onnxruntime", 2)
    found = assemble(here, [first], [_latency("m, onnxruntime (control)", 2)], [])
    loads = (_loaded(first, 1, None, 2), _loaded(first, 4, None, 5), _loaded(first, 4, 600.0, 8))
    return replace(
        found,
        loads=loads,
        works=(Work("a" * 64, 1, 10**9, 0, 10**6, ("Loop",)),),
        peaks=(Peaks(1, 1e12, 4e12, "a", "b", 1e10, 1),),
        missing=(Missing("GPU", "no driver"),),
    )


def _write(path: Path, report: BenchReport) -> Path:
    path.write_bytes(dump(report))
    return path


def test_everything_that_is_laid_beside_reaches_the_reader(
    here: Machine, report: BenchReport, tmp_path: Path
) -> None:
    gpu = assemble(replace(here, gpus=("H100",)), [_latency("m, gpu", 0.1, "cuda")], [], [])
    slower = assemble(here, [_latency("m, onnxruntime", 4)], [], [])
    (tmp_path / "prices.toml").write_text(PRICES)
    beside = Beside.read(
        [_write(tmp_path / "gpu.json", gpu)],
        _write(tmp_path / "old.json", slower),
        tmp_path / "prices.toml",
        0.5,
    )
    whole = beside.lay(
        report, command="vnnify bench m.onnx", measured="2026-11-22 05:00", p99_ms=None
    )
    assert load(BenchReport, dump(whole), "r") == whole
    for name in FORMATS:
        text = " ".join(render(bench_document(whole), name).split())
        if name == "junit":
            continue
        assert "The GPU is worth it: big delivers 12.5 times as much" in text
        assert "at 50% utilisation" in text
        assert "H100" in text
        assert "2.00×" in text  # What changed since old.json.
        assert "GPU: not measured" not in text  # The merged rows are of one.
        assert "m, gpu takes 0.1 ms on H100, 20 times as fast as the fastest here" in text
        assert "Measured 2026-11-22 05:00 UTC." in text
        assert "Not counted: Loop" in text
        assert "50%" in text  # 1 ms is the limit, 2 ms were measured.


def test_throughput_is_the_best_that_holds_the_target(report: BenchReport) -> None:
    (best,) = supplies(report)
    assert (best.per_second, best.how) == (pytest.approx(800), "4 streams of 1 thread")
    (held,) = supplies(replace(report, p99_ms=3.0))
    assert held.per_second == pytest.approx(500)
    assert supplies(replace(report, p99_ms=1.0)) == ()
    (alone,) = supplies(replace(report, loads=()))
    assert (alone.per_second, alone.how) == (500, "one caller that waits")


def test_a_target_is_told_with_the_rate_that_holds_it(report: BenchReport) -> None:
    held = replace(report, p99_ms=10.0)
    assert "holds a p99 of 10 ms up to 600 requests" in render(bench_document(held), "text")
    missed = replace(report, p99_ms=7.0)
    assert "was not seen to hold a p99 of 7 ms" in render(bench_document(missed), "text")


def test_steps_of_a_search_that_decide_nothing_are_not_shown(report: BenchReport) -> None:
    first = report.latencies[0]
    probes = [
        replace(_loaded(first, 4, rate, ms), probe=True)
        for rate, ms in ((720.0, 30.0), (360.0, 6.0), (540.0, 9.0), (630.0, 25.0), (585.0, 9.5))
    ]
    asked = _loaded(first, 4, 100.0, 5)
    whole = replace(report, loads=(*report.loads[:2], asked, *probes), p99_ms=10.0)
    shown = [x.offered_per_second for x in decisive(whole.loads, 10.0)]
    assert shown == [None, None, 100.0, 585.0, 630.0]
    text = render(bench_document(whole), "text")
    assert "3 steps of the search" in " ".join(text.split())
    assert "up to 585 requests per second" in text
    missed = decisive(whole.loads, 1.0)
    assert [x.offered_per_second for x in missed if x.probe] == [360.0]


def test_a_target_that_was_too_slow_to_try_says_so(report: BenchReport) -> None:
    closed = replace(report, loads=report.loads[:2], p99_ms=10.0)
    text = " ".join(render(bench_document(closed), "text").split())
    assert "was not tried at any rate: it answers so few requests that the 662 of a p99" in text


def test_what_disturbed_a_load_is_told(report: BenchReport) -> None:
    run = replace(report.loads[0].runs[0], throttled_periods=3, steal_share=0.2)
    loads = (replace(report.loads[0], runs=(run,)),)
    text = " ".join(render(bench_document(replace(report, loads=loads)), "text").split())
    assert "m, onnxruntime: the CPU quota stopped it 3 times." in text
    assert "m, onnxruntime: other guests took up to 20.0% of the CPU time." in text


def test_unlike_runs_are_refused_by_what_is_planned(
    here: Machine, report: BenchReport, tmp_path: Path
) -> None:
    old = _write(tmp_path / "old.json", report)
    beside = Beside.read([], old, None, 1.0)
    planned = Planned(report.latencies[0].variant, "f" * 64)
    beside.refuse_unlike(here, [planned])
    with pytest.raises(InputError, match=r"old\.json: .*inputs"):
        beside.refuse_unlike(here, [replace(planned, feeds_sha256="0" * 64)])
    assert beside.has_runs
    assert not Beside.read([], None, None, 1.0).has_runs


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        Beside.read([tmp_path / "no.json"], None, None, 1.0)
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InputError, match="no record of vnnify's"):
        Beside.read([], tmp_path / "x.json", None, 1.0)
