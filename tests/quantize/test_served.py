"""The same model with one thread and with all, in runtimes that err with some."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quantize.served as served
from bench.errors import InputError, UnsupportedError
from bench.kernels import Kernels
from bench.models import Feeds, Model
from bench.runtimes import Settings
from quantize.metrics import METRICS
from quantize.served import Few, Served, covered, serve, threads_check, unscored

FEEDS: list[Feeds] = [{"x": np.linspace(-1, 1, 64, dtype=np.float32) * k} for k in (1, 2)]
KERNELS = Kernels("openvino", "1.2", (), (), 0, 0)
WANTED: list[Feeds] = [{"y": f["x"], "label": np.array([3])} for f in FEEDS]


@dataclass
class Fake:
    """A runtime whose noise, as a share of the output, depends on the threads."""

    noise: Mapping[int, float]
    threads: int = 0
    opened: list[tuple[Path, int]] = field(default_factory=list)
    open_sessions: int = 0

    def version(self) -> str:
        return "1.2"

    def open(self, path: Path, settings: Settings) -> Any:
        if settings.threads not in self.noise:
            raise UnsupportedError("takes no such thing")
        self.open_sessions += 1
        self.opened.append((path, settings.threads))
        self.threads = settings.threads
        return self

    def run(self, feeds: Feeds) -> Feeds:
        share = self.noise[self.threads]
        if np.isnan(share):
            raise InputError("cannot")
        return {"y": feeds["x"] * np.float32(1 + share), "label": np.array([0])}

    def close(self) -> None:
        self.open_sessions -= 1


def model(name: str) -> Model:
    return Model(Path(f"{name}.onnx"), (), (), 17, f"sha256 of {name}", 1)


def fake(monkeypatch: pytest.MonkeyPatch, noise: Mapping[int, float]) -> Fake:
    made = Fake(noise)
    monkeypatch.setattr(served, "find_runtime", lambda _: made)
    return made


def found(monkeypatch: pytest.MonkeyPatch, noise: Mapping[int, float], threads: int) -> Served:
    runtime = fake(monkeypatch, noise)
    result = serve(Few(FEEDS, WANTED), model("m"), "openvino", threads)
    assert runtime.open_sessions == 0
    return result


@pytest.mark.parametrize(
    ("noise", "agrees"),
    [
        ({1: 0.01, 4: 0.01}, True),
        ({1: 0.01, 4: 0.02}, True),
        ({1: 0.01, 4: 0.05}, False),
        ({1: 3.0, 4: 0.01}, False),
        ({1: 0.0, 4: 0.0}, True),
        ({1: np.inf, 4: 0.01}, False),
        ({1: np.nan, 4: 0.01}, False),
        # Refused with one thread.
        ({4: 0.01}, False),
        # Noise everywhere is for the verdict to judge.
        ({1: 2.0, 4: 2.5}, True),
    ],
)
def test_garbage_with_some_threads_is_found(
    monkeypatch: pytest.MonkeyPatch, noise: Mapping[int, float], *, agrees: bool
) -> None:
    result = found(monkeypatch, noise, 4)
    assert list(result.noise_db) == [1, 4]
    assert np.isfinite(list(result.noise_db.values())).all()
    assert result.agrees is agrees
    assert threads_check(result).outcome == ("pass" if agrees else "fail")


@pytest.mark.parametrize(
    ("noise", "beside", "wrong"),
    [
        ({1: 0.5, 4: 0.5}, 0.01, True),
        # Wrong with four threads alone is another fault.
        ({1: 0.01, 4: 0.5}, 0.01, False),
        # Noise that ONNX Runtime makes, too, is for the verdict to judge.
        ({1: 0.5, 4: 0.5}, 0.2, False),
        # Little noise may be a matter of rounding.
        ({1: 0.03, 4: 0.03}, 0.001, False),
        # ONNX Runtime refuses the file, or cannot run it.
        ({1: 0.5, 4: 0.5}, None, False),
        ({1: 0.5, 4: 0.5}, np.nan, False),
    ],
)
def test_garbage_with_any_threads_shows_beside_onnx_runtime(
    monkeypatch: pytest.MonkeyPatch,
    noise: Mapping[int, float],
    beside: float | None,
    *,
    wrong: bool,
) -> None:
    fakes = {"openvino": Fake(noise), "onnxruntime": Fake({} if beside is None else {4: beside})}
    monkeypatch.setattr(served, "find_runtime", fakes.__getitem__)
    result = serve(Few(FEEDS, WANTED), model("m"), "openvino", 4)
    assert result.is_wrong is wrong
    assert result.is_sound is (result.agrees and not wrong)
    check = threads_check(result)
    assert check.outcome == ("pass" if result.is_sound else "fail")
    assert ("ONNX Runtime 40 dB" in check.message) is wrong
    assert ("computes INT8 wrong: " in check.message) is wrong
    assert ("Checked in openvino" in covered([result], "x86")) is result.is_sound


def test_onnx_runtime_is_asked_for_what_it_opens_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = fake(monkeypatch, {1: 0.1})
    program = replace(model("m"), path=Path("m.pt2"))
    assert serve(Few(FEEDS, WANTED), program, "torch", 1).beside_db == -200.0
    assert runtime.opened == [(program.path, 1)]


def test_noise_is_that_of_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    result = found(monkeypatch, {1: 0.1}, 1)
    assert result.noise_db == {1: pytest.approx(20, abs=1e-3)}
    assert (result.samples, result.where) == (2, "openvino 1.2 with 1 thread")


def test_one_broken_output_of_two_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Second(Fake):
        def run(self, feeds: Feeds) -> Feeds:
            y = super().run(feeds)["y"]
            return {"y": feeds["x"], "z": y[:-1] if self.threads == 4 else y}

    runtime = Second({1: 0.01, 4: 0.01})
    monkeypatch.setattr(served, "find_runtime", lambda _: runtime)
    wanted = [{"y": f["x"], "z": f["x"]} for f in FEEDS]
    assert not serve(Few(FEEDS, wanted), model("m"), "openvino", 4).agrees


def test_each_runtime_opens_each_model_once_for_each_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime, few = fake(monkeypatch, {1: 0.1, 4: 0.1}), Few(FEEDS, WANTED)
    monkeypatch.setattr(
        served, "kernels_of", lambda session: KERNELS if session.open_sessions else None
    )
    one, other = model("one"), model("other")
    assert few.noise(one, "openvino", 4) == {"y": pytest.approx(0.01, rel=1e-3)}
    serve(few, one, "openvino", 4)
    # There is noise, so that ONNX Runtime is asked as well.
    assert runtime.opened == [(one.path, 4), (one.path, 1), (one.path, 4)]
    few.noise(other, "openvino", 4)
    few.noise(one, "onnxruntime", 4)
    assert runtime.opened[3:] == [(other.path, 4)]
    # It tells its kernels while it is open.
    assert few.kernels(one, "openvino", 4) == KERNELS
    assert few.kernels(one, "openvino", 3) is None
    # What is refused is not tried again, and what ran elsewhere is taken from there.
    assert few.noise(one, "openvino", 2) is few.noise(one, "openvino", 2) is None
    few.note(other, "openvino", Settings(threads=1), WANTED)
    assert serve(few, other, "openvino", 1).noise_db == {1: 200.0}
    assert len(runtime.opened) == 4


@pytest.mark.parametrize(("arithmetic", "kept"), [("exact", True), ("saturating", False)])
def test_what_had_to_be_made_exact_is_not_what_is_served(
    monkeypatch: pytest.MonkeyPatch, arithmetic: str, *, kept: bool
) -> None:
    monkeypatch.setattr(served, "canary", lambda _: arithmetic)
    few = Few(FEEDS, WANTED)
    few.note(model("m"), "onnxruntime", Settings(threads=2, exact=True), WANTED)
    assert bool(few.known) is kept
    few.note(model("m"), "onnxruntime", Settings(threads=2), WANTED)
    assert list(few.known) == [(model("m").sha256, "onnxruntime", 2)]


def test_a_failure_names_runtime_version_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    check = threads_check(found(monkeypatch, {1: 3.0, 2: 0.01}, 2), "openvino")
    assert check.name == "threads in openvino"
    assert check.message.startswith("openvino 1.2 computes INT8 wrong with some numbers of threads")
    assert check.found == "-10 dB with 1, 40 dB with 2"


def test_only_what_agrees_was_checked() -> None:
    good = Served("onnxruntime", "1.31.1", 4, {1: 30.0, 2: 30.0})
    bad = replace(good, runtime="openvino", noise_db={1: -5.0, 2: 30.0})
    text = covered([good, bad], "amx")
    assert text.startswith("Checked in onnxruntime 1.31.1 with 1 and 2 threads, on amx. Other")
    assert "openvino" not in text


def test_outputs_that_nothing_scores_are_told_the_noisiest_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Three(Fake):
        def run(self, feeds: Feeds) -> Feeds:
            y = super().run(feeds)["y"]
            return {"y": feeds["x"], "z": y, "w": -feeds["x"]}

    monkeypatch.setattr(served, "find_runtime", lambda _: Three({1: 0.1}))
    wanted = [{"y": f["x"], "z": f["x"], "w": f["x"]} for f in FEEDS]
    tried = serve(Few(FEEDS, wanted), model("m"), "openvino", 1)
    text = unscored(tried, METRICS["top1"])
    assert text is not None
    assert text.startswith("top1 looks at one output only. Against FP32, on 2 samples in openvino:")
    assert "'w' -6 dB, 'z' 20 dB, 'y' alike." in text
    chosen = unscored(tried, replace(METRICS["cosine"], output="z"))
    assert chosen is not None
    assert chosen.startswith("cosine looks at 'z' only.")
    assert unscored(tried, METRICS["cosine"]) is None


def test_many_outputs_are_counted_and_one_is_no_news() -> None:
    tried = Served("onnxruntime", "1", 4, {1: 30.0}, {f"y{i}": 30.0 + i for i in range(9)})
    assert "'y5' 35 dB and 3 more." in str(unscored(tried, METRICS["mse"]))
    assert unscored(replace(tried, outputs_db={"y": 1.0}), METRICS["mse"]) is None
