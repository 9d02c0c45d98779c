"""The same model with one thread and with all, in runtimes that err with some."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quantize.served as served
from bench.errors import InputError
from bench.models import Feeds
from bench.runtimes import Settings
from quantize.served import Served, covered, serve, threads_check

FEEDS: list[Feeds] = [{"x": np.linspace(-1, 1, 64, dtype=np.float32) * k} for k in (1, 2)]
WANTED: list[Feeds] = [{"y": f["x"], "label": np.array([3])} for f in FEEDS]


@dataclass
class Fake:
    """A runtime whose noise, as a share of the output, depends on the threads."""

    noise: Mapping[int, float]
    threads: int = 0
    open_sessions: int = 0

    def version(self) -> str:
        return "1.2"

    def open(self, path: Path, settings: Settings) -> Any:
        self.open_sessions += 1
        self.threads = settings.threads
        return self

    def run(self, feeds: Feeds) -> Feeds:
        share = self.noise[self.threads]
        if np.isnan(share):
            raise InputError("cannot")
        return {"y": feeds["x"] * np.float32(1 + share), "label": np.array([0])}

    def close(self) -> None:
        self.open_sessions -= 1


def found(monkeypatch: pytest.MonkeyPatch, noise: Mapping[int, float], threads: int) -> Served:
    fake = Fake(noise)
    monkeypatch.setattr(served, "find_runtime", lambda _: fake)
    result = serve(Path("m.onnx"), "openvino", FEEDS, WANTED, threads)
    assert fake.open_sessions == 0
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


def test_noise_is_that_of_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    result = found(monkeypatch, {1: 0.1}, 1)
    assert result.noise_db == {1: pytest.approx(20, abs=1e-3)}
    assert (result.samples, result.where) == (2, "openvino 1.2 with 1 thread")


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
