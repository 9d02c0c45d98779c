from dataclasses import replace
from pathlib import Path

import pytest

from bench.errors import InputError
from bench.latency import Latency, Variant
from bench.machine import Machine, describe
from bench.models import Model
from bench.others import Other, changes, refuse_unlike_run
from bench.rounds import Round
from tests.fakes import MS


@pytest.fixture(scope="module")
def here() -> Machine:
    return describe()


def _latency(*medians_ms: float, name: str = "m") -> Latency:
    model = Model(Path("m.onnx"), (), (), 17, "a" * 64, 1)
    rounds = tuple(Round(MS, MS, (), (round(m * MS),) * 64, 1, 0.0, 0.0, 0) for m in medians_ms)
    return Latency(Variant(name, model, "onnxruntime", "cpu", 1, 1), "1.0", "f" * 64, rounds)


def _model(latency: Latency, digest: str) -> Latency:
    model = replace(latency.variant.model, sha256=digest)
    return replace(latency, variant=replace(latency.variant, model=model))


def test_rows_of_the_same_models_and_inputs_may_be_merged(here: Machine) -> None:
    ours = _latency(1, 1)
    gpu = replace(ours, variant=replace(ours.variant, name="g", device="cuda"))
    refuse_unlike_run(Other("gpu.json", here, (gpu,)), [ours])


@pytest.mark.parametrize("field", ["model", "inputs", "batch"])
def test_rows_of_something_else_are_refused_naming_the_field(here: Machine, field: str) -> None:
    ours = _latency(1, 1)
    theirs = {
        "model": _model(ours, "b" * 64),
        "inputs": replace(ours, feeds_sha256="e" * 64),
        "batch": replace(ours, variant=replace(ours.variant, batch=8)),
    }[field]
    with pytest.raises(InputError, match=f"gpu.json: {field}"):
        refuse_unlike_run(Other("gpu.json", here, (theirs,)), [ours])


def test_a_change_has_an_interval(here: Machine) -> None:
    old = Other("old.json", here, (_latency(4, 4.1, 3.9, 4),))
    (found,) = changes(old, here, [_latency(2, 2.05, 1.95, 2)])
    assert found.ratio == pytest.approx(2, rel=0.01)
    assert found.low is not None
    assert found.high is not None
    assert 1.8 < found.low < 2 < found.high < 2.2
    assert found.certain
    (same,) = changes(old, here, [_latency(3.9, 4.2, 4, 4)])
    assert not same.certain


def test_what_other_work_may_have_done_is_no_certain_change(here: Machine) -> None:
    quiet = _latency(4, 4.1, 3.9, 4)
    slower = _latency(6, 6.1, 5.9, 6)
    old = Other("old.json", here, (quiet,))
    (found,) = changes(old, here, [slower])
    assert found.certain
    assert found.low is not None
    assert found.high is not None
    busy = replace(slower, rounds=tuple(replace(r, held_up_share=0.5) for r in slower.rounds))
    (open_,) = changes(old, here, [busy])
    assert (open_.ratio, open_.low, open_.certain) == (found.ratio, found.low, False)
    assert open_.high == pytest.approx(2 * found.high)
    assert open_.also == ("others had its CPU in 50% of its time now",)
    (back,) = changes(Other("old.json", here, (busy,)), here, [quiet])
    assert (back.also, back.certain) == (("others had its CPU in 50% of its time then",), False)


def test_one_round_has_no_interval(here: Machine) -> None:
    (found,) = changes(Other("old.json", here, (_latency(4),)), here, [_latency(2)])
    assert (found.low, found.certain) == (None, False)


def test_what_else_differs_is_told(here: Machine) -> None:
    new = replace(_model(_latency(1, 1), "b" * 64), runtime_version="2.0")
    (found,) = changes(Other("old.json", here, (_latency(1, 1),)), here, [new])
    assert found.also == ("another model file", "onnxruntime 1.0 became 2.0")


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("batch", {"batch": 8}),
        ("threads", {"threads": 2}),
        ("device", {"device": "cuda"}),
        ("runtime", {"runtime": "openvino"}),
        ("precision", {"precision": "fp16"}),
        ("copies", {"copies": False}),
    ],
)
def test_unlike_variants_are_refused_naming_the_field(
    here: Machine, field: str, changed: dict[str, object]
) -> None:
    new = _latency(1, 1)
    new = replace(new, variant=replace(new.variant, **changed))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"cannot compare 'm': {field} is"):
        changes(Other("old.json", here, (_latency(1, 1),)), here, [new])


def test_unlike_inputs_machines_and_names_are_refused(here: Machine) -> None:
    old, new = Other("old.json", here, (_latency(1, 1),)), _latency(1, 1)
    with pytest.raises(InputError, match="inputs"):
        changes(old, here, [replace(new, feeds_sha256="0" * 64)])
    with pytest.raises(InputError, match="the machine: CPU is"):
        changes(replace(old, machine=replace(here, cpu="another")), here, [new])
    with pytest.raises(InputError, match="none in common"):
        changes(old, here, [_latency(1, 1, name="other")])
