import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import pytest

from bench import latency, sampling
from bench.feeds import save_feeds
from bench.latency import Variant
from bench.models import Feeds, read_model
from bench.rounds import ONE_SHAPE, Round, fewest_to_tell, is_stable
from bench.runtimes import RUNTIMES, Settings
from bench.sampling import MIN_SAMPLES, open_ahead, run_round, run_turns, time_calls
from tests import tiny
from tests.fakes import MS, FakeClock, FakeRuntime, FakeSession

FEEDS: list[Feeds] = [{"x": np.full((1, 4), i, np.float32)} for i in range(3)]


def _time(
    durations_ns: list[int], seconds: float, enough: int | None = None, least_s: float = 0.0
) -> tuple[FakeSession, Any]:
    clock = FakeClock()
    session = FakeSession(clock, durations_ns)
    calls: list[Callable[[], object]] = [partial(session.run, f) for f in FEEDS]
    calls[0]()
    return session, time_calls(calls, seconds=seconds, enough=enough, least_s=least_s, clock=clock)


@pytest.fixture
def variant(tmp_path: Path) -> Variant:
    save_feeds(FEEDS, tmp_path / "feeds.npz")
    return Variant("m", read_model(tiny.linear(tmp_path / "m.onnx")), "onnxruntime", "cpu", 1, 1)


def _job(variant: Variant) -> dict[str, Any]:
    return latency.job_of(variant, variant.model.path.parent / "feeds.npz", 0.01)


def test_warmup_and_samples_are_kept_apart() -> None:
    _, (warmup, samples) = _time([90 * MS, 8 * MS, 4 * MS, 1 * MS], seconds=0.2)
    assert warmup[:3] == (8 * MS, 4 * MS, 1 * MS)
    assert set(samples) == {1 * MS}


def test_warmup_ends_when_medians_agree() -> None:
    _, (warmup, _) = _time([MS], seconds=1)
    assert len(warmup) == 19


def test_warmup_goes_on_while_medians_fall() -> None:
    falling = [MS * (200 - 2 * i) for i in range(1, 60)] + [80 * MS]
    _, (warmup, _) = _time(falling, seconds=10)
    assert sum(warmup) == pytest.approx(1000 * MS, abs=200 * MS)  # Until its second is over.


def test_warmup_of_a_slow_model_ends_after_its_time() -> None:
    _, (warmup, samples) = _time([700 * MS], seconds=5)
    assert len(warmup) == 2
    assert len(samples) == 8


def test_a_very_slow_model_still_gives_a_few_samples() -> None:
    _, (_, samples) = _time([3000 * MS], seconds=0.1)
    assert len(samples) == MIN_SAMPLES


def test_inputs_of_unlike_shapes_are_all_timed_and_warmed_up_for_themselves() -> None:
    shapes = (0, 1, 2, 3, 4, 5, 6)
    clock = FakeClock()
    session = FakeSession(clock, [(1 + i % 7) * 3000 * MS for i in range(99)])
    calls: list[Callable[[], object]] = [partial(session.run, FEEDS[0])] * 7
    calls[0]()
    _, samples = time_calls(calls, seconds=0.1, clock=clock, shapes=shapes)
    assert len(samples) == 7
    clock = FakeClock()
    session = FakeSession(clock, [(1 + i % 7) * MS for i in range(999)])
    calls = [partial(session.run, FEEDS[0])] * 7
    calls[0]()
    warmup, _ = time_calls(calls, seconds=1, clock=clock, shapes=shapes)
    assert len(warmup) == fewest_to_tell(shapes)


def test_a_round_tells_which_inputs_are_alike(variant: Variant) -> None:
    assert run_round(_job(variant))["shapes"] == ONE_SHAPE
    unlike: list[Feeds] = [{"x": np.zeros((n, 4), np.float32)} for n in (1, 2, 1)]
    save_feeds(unlike, variant.model.path.parent / "feeds.npz")
    assert run_round(_job(variant))["shapes"] == (0, 1, 0)


def test_a_turn_holds_each_input_against_its_own_shape(
    variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = (1, 1, 1, 2)
    unlike: list[Feeds] = [{"x": np.zeros((n, 4), np.float32)} for n in sizes]
    save_feeds(unlike, variant.model.path.parent / "feeds.npz")
    times = [n * MS for n in sizes]
    monkeypatch.setattr(sampling, "time_calls", lambda *_, **__: (tuple(times[1:]), tuple(times)))
    job = _job(variant)
    assert run_turns({"turns": [job]}) == [1.25 * MS]


def test_samples_fill_their_time() -> None:
    _, (_, samples) = _time([MS], seconds=0.5)
    assert len(samples) == 500


@pytest.mark.parametrize(
    ("ms", "least_s", "count"),
    [
        (0.1, 0.1, 1000),
        (0.1, 0.05, 500),
        (1, 0.1, 128),
        (2, 0.1, 128),
        (10, 0.1, 50),
        (0.1, 9, 5000),
    ],
)
def test_enough_samples_end_a_round_that_is_no_shorter_than_its_least(
    ms: float, least_s: float, count: int
) -> None:
    _, (_, samples) = _time([round(ms * MS)], seconds=0.5, enough=128, least_s=least_s)
    assert len(samples) == count


def test_inputs_rotate() -> None:
    session, _ = _time([MS], seconds=0.05)
    fed = [int(f["x"][0, 0]) for f in session.fed]
    assert fed == [i % 3 for i in range(len(fed))]


def test_a_warmup_that_only_ran_out_of_time_has_not_settled() -> None:
    _, (warmup, _) = _time([MS * (200 - 2 * i) for i in range(60)], seconds=10)
    assert not is_stable(warmup)
    _, (warmup, _) = _time([MS], seconds=1)
    assert is_stable(warmup)


def test_a_round_reports_everything(variant: Variant) -> None:
    answer = run_round({**_job(variant), "spawned_ns": perf_counter_ns()})
    assert answer.pop("runtime_version")
    assert {f.name for f in dataclasses.fields(Round)} == answer.keys()
    assert 0 <= answer["steal_share"] <= 1
    assert 0 <= answer["others_share"] <= 1
    assert 0 <= answer["held_up_share"] <= 1
    # Everything up to the first answer is part of a cold start.
    assert answer["cold_ns"] > answer["load_ns"] + answer["first_ns"]
    assert run_round(_job(variant))["cold_ns"] is None


def test_a_round_whose_model_was_opened_ahead_opens_nothing(
    variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = FakeSession(FakeClock(), [MS])
    session.compile_ns = MS
    runtime = FakeRuntime(session)
    monkeypatch.setitem(RUNTIMES, "fake", runtime)
    job = _job(dataclasses.replace(variant, runtime="fake"))
    ahead = open_ahead(json.dumps(job))
    answer = run_round(job, ahead)
    assert len(runtime.opened) == 1
    assert session.closed
    assert len(session.fed) == 1 + len(answer["warmup_ns"]) + len(answer["samples_ns"])
    # How long it took beside others is not how long it takes.
    assert (answer["load_ns"], answer["compile_ns"]) == (None, None)
    assert run_round(job)["compile_ns"] == MS


def test_a_round_opens_with_the_settings_asked_for(
    variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = FakeSession(FakeClock(), [MS])
    runtime = FakeRuntime(session)
    monkeypatch.setitem(RUNTIMES, "fake", runtime)
    asked = dataclasses.replace(variant, runtime="fake", threads=3, precision="tf32")
    run_round(_job(asked))
    assert runtime.opened == [(variant.model.path.resolve(), Settings(3, "cpu", precision="tf32"))]
    assert session.closed


def test_without_copies_inputs_are_staged_once(
    variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Staged(FakeSession):
        staged = 0
        ran = 0

        def stage(self, feeds: Feeds) -> Callable[[], None]:
            self.staged += 1

            def run() -> None:
                self.ran += 1

            return run

    session = Staged(FakeClock(), [MS])
    monkeypatch.setitem(RUNTIMES, "fake", FakeRuntime(session))
    run_round(_job(dataclasses.replace(variant, runtime="fake", copies=False)))
    assert session.staged == len(FEEDS)
    assert session.ran > MIN_SAMPLES
    assert session.fed == []


def test_inputs_stay_where_the_model_runs(variant: Variant) -> None:
    answer = run_round(_job(dataclasses.replace(variant, copies=False)))
    assert len(answer["samples_ns"]) >= MIN_SAMPLES
