"""Fixtures of what runs a whole job."""

from pathlib import Path

import pytest

from quantize import timing, trials
from quantize.job import DataSpec, Effort, Job, Limits
from quantize.sources.seam import ModelSpec
from tests.timing import Stopwatch


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    made = Stopwatch()
    monkeypatch.setattr(trials, "glance", made.glance)
    monkeypatch.setattr(timing, "measure", made)
    return made


@pytest.fixture
def job(shelf: Path, stopwatch: Stopwatch) -> Job:
    """`net.onnx` and `data.npz` of a module's own `shelf`; `stopwatch` says the latencies."""
    return Job(
        model=ModelSpec(str(shelf / "net.onnx")),
        data=DataSpec(str(shelf / "data.npz"), calibration_count=40),
        limits=Limits(max_drop="3pt"),
        effort=Effort(runtimes=("onnxruntime",), threads=1),
        command="vnnify quantize",
    )


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    folder = tmp_path / "staging"
    folder.mkdir()
    return folder
