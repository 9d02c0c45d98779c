import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import glance as looking
from bench import sampling
from bench.glance import glance
from bench.latency import Variant
from bench.models import Feeds, read_model
from bench.runtimes import RUNTIMES
from tests import tiny
from tests.fakes import MS, FakeClock, FakeRuntime, FakeSession

FEEDS: list[Feeds] = [{"x": np.full((1, 4), i, np.float32)} for i in range(3)]


def _variant(path: Path, name: str = "m") -> Variant:
    return Variant(name, read_model(path), "onnxruntime", "cpu", 1, 1)


@pytest.fixture
def variant(tmp_path: Path) -> Variant:
    return _variant(tiny.linear(tmp_path / "m.onnx"))


def test_a_glance_takes_turns_in_one_process_per_runtime(
    variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes: list[list[str]] = []

    def here(target: str, job: dict[str, Any], **_: Any) -> Any:
        assert target == "bench.sampling:run_turns"
        processes.append([Path(t["model"]).name for t in job["turns"]])
        return sampling.run_turns(job)

    monkeypatch.setattr(looking, "run_isolated", here)
    runtime = FakeRuntime(FakeSession(FakeClock(), [MS]))
    monkeypatch.setitem(RUNTIMES, "fake", runtime)
    path = variant.model.path
    other = _variant(path.rename(path.with_name("n.onnx")), "other")
    again = dataclasses.replace(other, name="again", runtime="fake")
    twin = dataclasses.replace(other, name="twin")
    found = glance([other, again, twin], FEEDS, rounds=2, seconds=0.01)
    assert processes == [["n.onnx"] * 4, ["n.onnx"] * 2]
    assert found.keys() == {"other", "again", "twin"}
    assert all(ms > 0 for ms in found.values())


def test_a_glance_gives_each_variant_its_own_turns(
    variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(variant, name="other", threads=2)

    def by_threads(_target: str, job: dict[str, Any], **_: Any) -> list[float]:
        return [i * 1e3 + t["threads"] * 1e6 for i, t in enumerate(job["turns"])]

    monkeypatch.setattr(looking, "run_isolated", by_threads)
    found = glance([variant, other], FEEDS, rounds=3, seconds=0.01)
    assert found["m"] == pytest.approx(1, abs=0.01)
    assert found["other"] == pytest.approx(2, abs=0.01)


@dataclasses.dataclass
class Counting:
    """A runtime that counts what it opens and closes."""

    name: str = "counting"
    opened: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    closed: int = 0

    def open(self, path: Path, settings: Any) -> Any:
        self.opened.append((path.name, settings.threads))
        session: Any = FakeSession(FakeClock(), [MS])
        session.close = self.close
        return session

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(("size", "times"), [(10, 1), (10**9, 3)])
def test_a_model_is_opened_once_for_its_turns_unless_it_is_large(
    variant: Variant, monkeypatch: pytest.MonkeyPatch, size: int, times: int
) -> None:
    runtime = Counting()
    monkeypatch.setitem(RUNTIMES, "counting", runtime)  # type: ignore[arg-type]
    monkeypatch.setattr(looking, "run_isolated", lambda _, job, **__: sampling.run_turns(job))
    # All its files count, not the one that is opened.
    model = dataclasses.replace(variant.model, size_bytes=size)
    one = dataclasses.replace(variant, runtime="counting", model=model)
    two = dataclasses.replace(one, name="two", threads=2)
    glance([one, two], FEEDS, rounds=3, seconds=0.01)
    assert sorted(runtime.opened) == [("m.onnx", 1)] * times + [("m.onnx", 2)] * times
    assert runtime.closed == 2 * times
