from dataclasses import replace
from pathlib import Path

import pytest

from bench.beside import Beside
from bench.document import bench_document
from bench.errors import InputError
from bench.latency import Latency, Round, Variant
from bench.load import Load, LoadRun
from bench.machine import Machine, describe
from bench.models import Model
from bench.peaks import Peaks
from bench.render import FORMATS, render
from bench.report import BenchReport, Missing, assemble, supplies
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
    whole = beside.lay(report, command="vnnify bench m.onnx", p99_ms=None)
    assert load(BenchReport, dump(whole), "r") == whole
    for name in FORMATS:
        text = " ".join(render(bench_document(whole), name).split())
        if name == "junit":
            continue
        assert "The GPU is worth it: big delivers 12.5 times as much" in text
        assert "at 50% utilisation" in text
        assert "H100" in text
        assert "2.00×" in text  # What changed since old.json.
        assert "not measured" in text
        assert "Not counted: Loop" in text
        assert "50%" in text  # 1 ms is the limit, 2 ms were measured.


def test_throughput_is_the_best_that_holds_the_target(report: BenchReport) -> None:
    (best,) = supplies(report)
    assert (best.per_second, best.how) == (pytest.approx(800), "4 streams of 1 threads")
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


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        Beside.read([tmp_path / "no.json"], None, None, 1.0)
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InputError, match="no record of vnnify's"):
        Beside.read([], tmp_path / "x.json", None, 1.0)
