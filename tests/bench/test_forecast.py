"""What is predicted for a machine that is not here, from layers timed on both."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import forecast as forecasts
from bench.document import bench_document
from bench.errors import InputError
from bench.forecast import Check, Elsewhere, Forecast, Survey, forecast, read_elsewhere, slowdown
from bench.forecast_document import forecast_lines, forecast_section
from bench.latency import Latency, Variant
from bench.machine import Machine, describe
from bench.models import Model
from bench.render import render
from bench.report import assemble
from bench.rounds import Round
from bench.store import dump, load
from bench.yardsticks import Bout, Yardsticks
from tests.fakes import MS

KINDS = {"pointwise integer": 1.0, "matrix float": 2.0, "other": 0.5}
FEEDS = {"x": np.zeros((1, 2), np.float32)}
SHARES = {"pointwise integer": 0.6, "matrix float": 0.3, "other": 0.1}


@pytest.fixture(scope="module")
def here() -> Machine:
    found = describe()
    packages = {**found.packages, "openvino": "1"}
    flags = ("avx2", "avx512bw", "avx512_vnni")
    return replace(found, packages=packages, flags=flags, canaries={"openvino": "exact"})


def yardsticks(runtime: str = "openvino", threads: int = 2, **factors: float) -> Yardsticks:
    return Yardsticks(
        runtime, "1", threads, "", {k: v * factors.get(k[:5], 1.0) for k, v in KINDS.items()}
    )


def latency(name: str, ms: float, runtime: str = "openvino", device: str = "cpu") -> Latency:
    model = Model(Path(f"{name}.onnx"), (), (), 17, name * 8, 1)
    rounds = (Round(MS, MS, (), (round(ms * MS),) * 64, 2**20, 0.0, 0.0, 0),)
    return Latency(Variant(f"{name} {runtime}", model, runtime, device, 2, 1), "1", "f", rounds)


@pytest.fixture
def bouts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """With AVX2 alone everything takes three times as long, with one thread twice; a model less."""
    asked: list[dict[str, Any]] = []

    def measured(runtime: str, threads: int, models: Any, **rest: Any) -> Bout:
        asked.append({"runtime": runtime, "threads": threads, **rest})
        factor = 3.0 if rest.get("limited") else 1.0 if threads > 1 else 2.0
        times = {k: v * factor for k, v in KINDS.items()}
        model_ms = dict.fromkeys(range(len(models)), 4.0 * (factor if factor < 3 else 2.5))
        shares = dict.fromkeys(model_ms, SHARES) if rest.get("shares") else {}
        return Bout(replace(yardsticks(runtime, threads), ms=times), model_ms, shares)

    monkeypatch.setattr(forecasts, "measure_bout", measured)
    return asked


def test_each_kind_of_kernel_counts_by_its_share(
    here: Machine, bouts: list[dict[str, Any]]
) -> None:
    there = yardsticks(point=10.0, matri=2.0)
    survey = Survey(replace(here, cpu="There"), (), (there, yardsticks(threads=8)))
    found = forecast(Elsewhere("o.json", survey), here, [latency("int8", 5.0)], FEEDS)
    first, second = found.predictions
    assert first.ms == pytest.approx(5.0 * (0.6 * 10 + 0.3 * 2 + 0.1))
    assert (second.threads, second.ms) == (8, pytest.approx(5.0))
    assert (first.variant, first.here_ms) == ("int8 openvino", 5.0)
    assert any("more threads than the 2" in d for d in found.doubts)


def test_predictions_for_less_of_this_machine_say_how_far_off_they_are(
    here: Machine, bouts: list[dict[str, Any]]
) -> None:
    survey = Survey(here, (), (yardsticks(),))
    found = forecast(Elsewhere("o.json", survey), here, [latency("int8", 5.0)], FEEDS)
    assert [a.get("limited", "") for a in bouts] == ["", "AVX2", ""]
    assert [a["threads"] for a in bouts] == [2, 2, 1]
    assert [(c.name, c.predicted_ms, c.measured_ms) for c in found.checks] == [
        ("int8 openvino, AVX2 kernels alone", pytest.approx(12.0), 10.0),
        ("int8 openvino, one thread", pytest.approx(8.0), 8.0),
    ]
    assert found.factor == pytest.approx(1.2)


def test_only_openvino_is_held_to_avx2_and_only_where_there_is_more(
    here: Machine, bouts: list[dict[str, Any]]
) -> None:
    survey = Elsewhere("o.json", Survey(here, (), (yardsticks(),)))
    forecast(survey, here, [latency("int8", 5.0, "onnxruntime")], FEEDS)
    forecast(survey, replace(here, flags=("avx2",)), [latency("int8", 5.0)], FEEDS)
    assert not any(a.get("limited") for a in bouts)


def test_what_cannot_be_predicted_is_named(here: Machine, bouts: list[dict[str, Any]]) -> None:
    bare = replace(yardsticks(), ms={"other": 1.0})
    rows = [latency("a", 1.0), latency("b", 1.0, "torch"), latency("c", 1.0, device="cuda")]
    found = forecast(Elsewhere("o.json", Survey(here, (), (bare,))), here, rows, FEEDS)
    assert found.predictions == ()
    assert found.left_out == (
        "b torch: its runtime does not tell its kernels",
        "c openvino: it ran on a GPU",
        "a openvino: o.json has no times of its layers in openvino",
    )


def test_another_version_of_the_runtime_is_a_doubt(
    here: Machine, bouts: list[dict[str, Any]]
) -> None:
    old = replace(yardsticks(), version="0.9")
    rows = [latency("a", 1.0)]
    found = forecast(Elsewhere("o.json", Survey(here, (), (old,))), here, rows, FEEDS)
    assert found.doubts == ("openvino is 0.9 there and 1 here",)


@given(
    shares=st.dictionaries(st.sampled_from(sorted(KINDS)), st.floats(0.01, 1.0), min_size=1),
    factor=st.floats(0.1, 10.0),
)
def test_a_machine_that_is_slower_in_everything_is_as_much_slower(
    shares: dict[str, float], factor: float
) -> None:
    total = sum(shares.values())
    parts = {k: v / total for k, v in shares.items()}
    there = replace(yardsticks(), ms={k: v * factor for k, v in KINDS.items()})
    assert slowdown(parts, yardsticks(), there) == pytest.approx(factor)
    assert slowdown({}, yardsticks(), there) is None
    assert slowdown({**parts, "depthwise float": 0.1}, yardsticks(), there) is None


def test_too_long_is_as_far_off_as_too_short() -> None:
    assert Check("a", 2.0, 1.0).factor == Check("b", 1.0, 2.0).factor == 2.0


def forecast_of(here: Machine, **changes: Any) -> Forecast:
    checks = (Check("int8 openvino, one thread", 1.5, 1.0),)
    predictions = (forecasts.Prediction("int8 openvino", 4, 5.0, 12.0),)
    found = Forecast("other.json", replace(here, cpu="Other CPU"), predictions, checks)
    return replace(found, **changes)


def test_a_prediction_is_never_shown_as_measured(here: Machine) -> None:
    rows = [latency("fp32", 9.0), latency("int8", 5.0)]
    report = replace(assemble(here, rows, [], []), forecast=forecast_of(here))
    (section,) = (s for s in bench_document(report).sections if s.title == "On another machine")
    text = render(bench_document(report), "markdown")
    assert section.blocks[0].text.startswith("Predicted, not measured. ")  # type: ignore[union-attr]
    assert "off by up to 1.50 times in 1 cases" in text
    assert "8 to 18" in text
    assert load(type(report), dump(report), "r") == report
    line = "Predicted for Other CPU, not measured: int8 openvino 12 ms (8 to 18)."
    assert forecast_lines(forecast_of(here), ["int8 openvino", "gone"]) == [line]
    assert forecast_lines(forecast_of(here), ["gone"]) == []


def test_without_a_check_the_range_is_unknown(here: Machine) -> None:
    section = forecast_section(forecast_of(here, checks=()))
    assert "unknown: nothing of the kind could be tried here" in section.blocks[0].text  # type: ignore[union-attr]
    assert section.blocks[1].rows[0][-1] == "unknown"  # type: ignore[union-attr]


def test_a_file_that_describes_no_speed_is_refused(here: Machine, tmp_path: Path) -> None:
    file = tmp_path / "machine.json"
    with pytest.raises(InputError, match=r"machine\.json: cannot be read"):
        read_elsewhere(file)
    file.write_bytes(dump(here))
    with pytest.raises(InputError, match="holds a 'Machine', expected a 'Survey'"):
        read_elsewhere(file)
    file.write_bytes(dump(Survey(here)))
    with pytest.raises(InputError, match="without --quick"):
        read_elsewhere(file)
    file.write_bytes(dump(Survey(here, (), (yardsticks(),))))
    assert read_elsewhere(file).source == "machine.json"
