from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.errors import ResourceError
from bench.latency import Variant
from bench.load import (
    Demand,
    Load,
    LoadRun,
    highest_rate,
    measure_load,
    optimum,
    sweep,
    with_time_left,
)
from bench.models import Feeds, Model, read_model
from bench.percentiles import P99_SAMPLES
from tests import tiny
from tests.fakes import MS

VARIANT = Variant("m", Model(Path("m.onnx"), (), (), 17, "m" * 64, 1), "ort", "cpu", 1, 1)


def _load(samples_ms: list[float], *, rate: float | None = None, span_s: float = 1.0) -> Load:
    samples = tuple(round(s * MS) for s in samples_ms)
    due = 0 if rate is None else round(len(samples) / rate * 1e9)
    return Load(VARIANT, 1, rate, (LoadRun(round(span_s * 1e9), samples, due, 0, 0.0, 0),))


def _closed(streams: int, per_second: float, latency_ms: float = 1.0) -> Load:
    count = P99_SAMPLES
    found = _load([latency_ms] * count, span_s=count / per_second)
    return replace(found, streams=streams)


def test_throughput_counts_samples_over_the_span() -> None:
    found = _load([1] * 100, span_s=2)
    assert found.per_second == 50
    assert replace(found, variant=replace(VARIANT, batch=4)).per_second == 200


def test_percentiles_need_enough_samples_and_count_who_was_not_served() -> None:
    found = _load([*[1.0] * (P99_SAMPLES - 1), 9.0])
    assert (found.p90_ms, found.p99_ms) == (1, 1)
    assert _load([1.0] * (P99_SAMPLES - 1)).p99_ms is None
    run = replace(found.runs[0], unanswered=20)
    assert replace(found, runs=(run,)).p99_ms is None


def test_a_server_that_falls_behind_is_saturated() -> None:
    assert not _load([1] * 100, rate=100, span_s=1.002).saturated
    assert _load([1] * 100, rate=100, span_s=1.2).saturated
    assert not _load([1] * 100, span_s=1.2).saturated


def test_streams_double_while_it_pays() -> None:
    throughput = {1: 100.0, 2: 190.0, 4: 193.0, 8: 400.0}
    asked: list[tuple[int, int]] = []

    def run(streams: int, threads: int) -> Load:
        asked.append((streams, threads))
        return _closed(streams, throughput[streams])

    found = sweep(run, 8)
    assert asked == [(1, 8), (2, 4), (4, 2)]
    best = optimum(found)
    assert best is not None
    assert best.streams == 4
    assert [x.streams for x in sweep(run, 8, [8, 1])] == [1, 8]


def test_the_optimum_holds_its_target() -> None:
    loads = [_closed(1, 100, 5.0), _closed(2, 190, 9.0), _closed(4, 300, 12.0)]
    found = optimum(loads, 10.0)
    assert found is not None
    assert found.streams == 2
    assert optimum(loads, 1.0) is None


@pytest.mark.parametrize("true_limit", [55.0, 130.0, 190.0, 900.0])
def test_the_highest_rate_is_found_from_below(true_limit: float) -> None:
    def probe(rate: float) -> Load:
        return _load(
            [5.0 if rate <= true_limit else 50.0] * P99_SAMPLES,
            rate=rate,
            span_s=P99_SAMPLES / rate,
        )

    tried = highest_rate(probe, 200.0, 20.0)
    held = [x.offered_per_second for x in tried if x.holds(20.0) and x.offered_per_second]
    assert max(held) <= true_limit
    assert max(held) > 0.9 * min(true_limit, 200.0)


def test_a_rate_too_slow_for_a_p99_is_not_waited_for() -> None:
    assert highest_rate(lambda _: pytest.fail("waited"), 5.0, 20.0) == ()


@pytest.mark.parametrize("per_second", [20.0, 100.0, 5000.0])
def test_the_longest_time_holds_what_a_search_that_always_fails_takes(per_second: float) -> None:
    demand = Demand(streams=(0,), rates=(50.0,), p99_ms=1.0, rounds=3)
    tried = highest_rate(lambda rate: _load([9.0] * P99_SAMPLES, rate=rate), per_second, 1.0)
    lasting = [max(2.0, P99_SAMPLES / (x.offered_per_second or 1)) for x in tried]
    # Streams 1, 2 and 4, three processes each, and 662 requests at 50 per second.
    own = 9 * 2.0 + 662 / 50
    starts = 9 + 1 + len(tried)
    assert demand.longest_s(2, 2.0, per_second) == pytest.approx(own + sum(lasting) + starts, 0.2)
    assert Demand(streams=(1,), rounds=2).longest_s(2, 2.0, per_second) == 6


def test_the_time_left_is_told_with_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 100.0, 110.0])
    monkeypatch.setattr("bench.load.perf_counter", lambda: next(clock))
    told: list[str] = []
    tell = with_time_left(lambda _done, _total, step: told.append(step), [60.0, 20.0, 120.0], 4)
    for done in (0, 1, 4, 5):
        tell(done, 8, "m")
    left = [step.partition("about ")[2].partition(" left")[0] for step in told]
    # The first variant took longer than was foreseen; what comes after it counts anew.
    assert left == ["3 min", "3 min", "2 min", "2 min"]
    assert told[0] == "m (loads: about 3 min left at most)"


@pytest.mark.slow
def test_a_model_is_swept_and_loaded_in_fresh_processes(tmp_path: Path) -> None:
    model = read_model(tiny.linear(tmp_path / "m.onnx"))
    variant = Variant("m", model, "onnxruntime", "cpu", 1, 1)
    feeds: list[Feeds] = [{"x": np.zeros((1, 4), np.float32)}]
    told: list[tuple[int, int, str]] = []
    found = measure_load(
        [variant],
        feeds,
        Demand(streams=(1, 2), rates=(2000.0,), rounds=1),
        granted=2,
        seconds=0.05,
        seed=0,
        progress=lambda done, total, name: told.append((done, total, name)),
    )
    assert [(x.streams, x.variant.threads) for x in found[:2]] == [(1, 2), (2, 1)]
    assert found[2].offered_per_second == 2000
    assert sum(len(r.samples_ns) + r.unanswered for r in found[2].runs) == P99_SAMPLES
    assert told == [(0, 3, "m, 1 stream"), (1, 3, "m, 2 streams"), (2, 3, "m, 2000 per second")]


def test_a_crash_under_load_names_the_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(_target: str, _job: object, **rest: object) -> None:
        raise ResourceError(f"{rest['name']} crashed")

    monkeypatch.setattr("bench.load.run_isolated", crash)
    with pytest.raises(ResourceError, match="loading 'm' with 1 streams crashed"):
        measure_load(
            [VARIANT], [{"x": np.zeros(1)}], Demand((1,)), granted=1, seconds=1, seed=0,
            progress=lambda *_: None,
        )  # fmt: skip
