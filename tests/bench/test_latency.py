import contextlib
import dataclasses
import itertools
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import isolate, latency
from bench.ahead import Ahead, started_ahead
from bench.errors import InputError, ResourceError, UsageError
from bench.isolate import Child
from bench.latency import (
    Haste,
    Latency,
    Variant,
    measure,
    with_control,
)
from bench.models import Feeds, read_model, synthetic_feeds
from bench.rounds import Round
from bench.runtimes import RUNTIMES
from bench.sampling import MIN_SAMPLES
from bench.turns import OPEN_BYTES, batches, turns
from tests import tiny
from tests.fakes import MS

FEEDS: list[Feeds] = [{"x": np.full((1, 4), i, np.float32)} for i in range(3)]


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 99))
def test_every_variant_runs_once_a_round_and_pairs_of_rounds_mirror(
    count: int, rounds: int, seed: int
) -> None:
    orders = turns(count, rounds, seed)
    assert len(orders) == rounds
    assert all(sorted(o) == list(range(count)) for o in orders)
    assert all(orders[i + 1] == orders[i][::-1] for i in range(0, rounds - 1, 2))
    assert orders == turns(count, rounds, seed)


def test_the_order_is_random() -> None:
    assert len({tuple(turns(4, 1, seed)[0]) for seed in range(50)}) > 10


def _variant(path: Path, name: str = "m", **changes: Any) -> Variant:
    return Variant(name, read_model(path), "onnxruntime", "cpu", 1, 1, **changes)


@pytest.fixture
def variant(tmp_path: Path) -> Variant:
    return _variant(tiny.linear(tmp_path / "m.onnx"))


def test_measures_in_fresh_processes(variant: Variant) -> None:
    other = dataclasses.replace(variant, name="other")
    told: list[tuple[int, int, str]] = []
    found = measure(
        with_control([variant, other]),
        FEEDS,
        rounds=2,
        seconds_per_round=0.02,
        progress=lambda *a: told.append(a),
    )
    assert [x.variant.name for x in found] == ["m", "other", "m (control)"]
    assert [(done, total) for done, total, _ in told] == [(i, 6) for i in range(6)]
    for x in found:
        assert len(x.rounds) == 2
        assert x.runtime_version == RUNTIMES["onnxruntime"].version()
        assert all(r.cold_ns and r.load_ns and r.cold_ns > r.load_ns > 0 for r in x.rounds)
        assert all(len(r.samples_ns) >= MIN_SAMPLES for r in x.rounds)
        assert 10 * 2**20 < x.peak_rss_bytes < 2**30
        assert x.feeds_sha256 == found[0].feeds_sha256


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.lists(st.integers(1, OPEN_BYTES * 5 // 4), min_size=4, max_size=4),
    st.integers(1, 6),
)
def test_models_that_are_open_at_once_are_few_and_small(
    queue: list[int], sizes: list[int], most: int
) -> None:
    parts = list(batches(queue, sizes, most))
    assert [w for part in parts for w in part] == queue

    def fits(part: list[int]) -> bool:
        return len(part) <= most and sum(sizes[w] for w in part) <= OPEN_BYTES

    assert all(part and (fits(part) or len(part) == 1) for part in parts)
    # None is smaller than it has to be.
    assert not any(fits([*a, b[0]]) for a, b in itertools.pairwise(parts))


def test_processes_that_start_side_by_side_are_timed_one_after_the_other(
    variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    start, give = latency.head_start, latency.run_isolated

    @contextlib.contextmanager
    def started(*words: str) -> Iterator[Child]:
        with start(*words) as child:
            events.append("start")
            yield child
        events.append("end")

    def given(*order: Any, child: Child | None, **rest: Any) -> Any:
        events.append("time")
        return give(*order, child=child, **rest)

    wait = Child.until_ready

    def ready(child: Child, timeout_s: float) -> None:
        wait(child, timeout_s)
        events.append("ready")

    monkeypatch.setattr(Child, "until_ready", ready)
    monkeypatch.setattr(latency, "head_start", started)
    monkeypatch.setattr(latency, "run_isolated", given)
    found = measure(
        [variant, dataclasses.replace(variant, name="other")],
        FEEDS,
        rounds=2,
        seconds_per_round=0.01,
        haste=Haste(abreast=3),
    )
    # A single one is left for the end: it starts when it is asked for.
    assert events == [*["start"] * 3, *["ready"] * 3, *["time"] * 3, *["end"] * 3, "time"]
    assert [len(x.rounds) for x in found] == [2, 2]
    rounds = [r for x in found for r in x.rounds]
    assert sum(r.cold_ns is None for r in rounds) == 3
    assert [r.load_ns is None for r in rounds] == [r.cold_ns is None for r in rounds]


def test_processes_that_wait_are_taken_before_others_start(
    variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[int] = []
    give = latency.run_isolated

    def given(*order: Any, child: Child, **rest: Any) -> Any:
        orders.append(child.process.pid)
        return give(*order, child=child, **rest)

    class Two(Ahead):
        """Has two processes."""

        def take(self, runtime: str) -> Child | None:
            assert runtime == "onnxruntime"
            return waiting.pop() if waiting else None

    monkeypatch.setattr(latency, "run_isolated", given)
    with contextlib.ExitStack() as held:
        ready = ("bench.sampling:get_ready", "onnxruntime")
        waiting = [held.enter_context(isolate.head_start(*ready)) for _ in range(2)]
        known = {child.process.pid for child in waiting}
        for child in waiting:
            child.until_ready(60)
        (found,) = measure(
            [variant], FEEDS, rounds=3, seconds_per_round=0.01, haste=Haste(abreast=3, ahead=Two())
        )
    assert known == set(orders[:2])
    assert len(set(orders)) == 3
    assert [r.load_ns for r in found.rounds] == [None] * 3


def test_none_waits_beside_a_single_round(variant: Variant) -> None:
    with started_ahead(["onnxruntime"] * 3) as ahead:
        options: dict[str, Any] = {"seconds_per_round": 0.01, "haste": Haste(ahead=ahead)}
        (found,) = measure([variant], FEEDS, rounds=1, **options)
        assert ahead.take("onnxruntime") is None
        end = time.monotonic() + 60
        while time.monotonic() < end and "ahead" in {t.name for t in threading.enumerate()}:
            time.sleep(0.01)
        assert "ahead" not in {t.name for t in threading.enumerate()}
    assert found.cold_ms is not None


def test_an_interrupt_leaves_none_of_the_processes_that_started(
    variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[Child] = []
    start = latency.head_start

    @contextlib.contextmanager
    def started(*words: str) -> Iterator[Child]:
        with start(*words) as child:
            waiting.append(child)
            yield child

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(latency, "head_start", started)
    monkeypatch.setattr(latency, "run_isolated", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure([variant], FEEDS, rounds=2, seconds_per_round=0.01, haste=Haste(abreast=2))
    assert [child.process.returncode for child in waiting] == [-signal.SIGKILL] * 2


def test_a_crash_names_the_variant(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(_target: str, _job: dict[str, Any], **rest: Any) -> Any:
        raise ResourceError(f"{rest['name']} crashed with SIGSEGV")

    monkeypatch.setattr(latency, "run_isolated", crash)
    with pytest.raises(ResourceError, match="'m' in onnxruntime crashed with SIGSEGV"):
        measure([variant], FEEDS, rounds=1, seconds_per_round=0.1)


def test_an_error_in_the_process_comes_back_as_itself(variant: Variant) -> None:
    wrong: list[Feeds] = [{"x": np.zeros((1, 5), np.float32)}]
    with pytest.raises(InputError, match="this sample"):
        measure([variant], wrong, rounds=1, seconds_per_round=0.01)


@pytest.mark.parametrize(
    ("changes", "arguments", "says"),
    [
        ({}, {"rounds": 0}, "rounds"),
        ({}, {"seconds_per_round": 0.0}, "seconds"),
        ({}, {"seconds_per_round": float("nan")}, "seconds"),
        ({}, {"seconds_per_round": float("inf")}, "seconds"),
        ({"threads": 0}, {}, "threads"),
        ({"batch": 2}, {}, "batch is 2, but the inputs hold 1"),
    ],
)
def test_nonsense_is_refused_before_anything_runs(
    variant: Variant, changes: dict[str, Any], arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        measure([dataclasses.replace(variant, **changes)], FEEDS, **arguments)


def test_nothing_to_measure_is_refused(variant: Variant) -> None:
    with pytest.raises(UsageError, match="nothing to measure"):
        measure([], FEEDS)
    with pytest.raises(UsageError, match="nothing to measure"):
        measure([variant], [])


def test_names_have_to_differ(variant: Variant) -> None:
    with pytest.raises(UsageError, match="different names"):
        measure([variant, variant], FEEDS)


def test_inputs_have_to_be_those_of_the_model(variant: Variant) -> None:
    with pytest.raises(UsageError, match=r"takes \['x'\], the inputs are \['z'\]"):
        measure([variant], [{"z": np.zeros((1, 4), np.float32)}])


def _latency(variant: Variant, *rounds: list[int]) -> Latency:
    made = [
        Round(5 * MS, 2 * MS, (), tuple(r), 100 + i, 0.01 * i, 0.1 * i, i, 0.2 * i * i)
        for i, r in enumerate(rounds)
    ]
    return Latency(variant, "1", "abc", tuple(made))


def test_statistics_are_of_rounds(variant: Variant) -> None:
    found = _latency(variant, [1 * MS, 2 * MS, 30 * MS], [4 * MS] * 3, [5 * MS] * 3)
    assert found.median_ms == 4
    assert found.per_second == 250
    assert found.load_ms == 5
    assert found.first_ms == 2
    assert (found.compile_ms, found.cold_ms) == (None, None)
    assert found.peak_rss_bytes == 102
    assert found.steal_share == pytest.approx(0.01)
    assert found.others_share == pytest.approx(0.1)
    # A round that was disturbed alone does not count, as in the ratio.
    assert found.held_up_share == pytest.approx(0.2)
    assert found.throttled_periods == 3


def test_throughput_counts_the_batch(variant: Variant) -> None:
    found = _latency(dataclasses.replace(variant, batch=8), [4 * MS] * 3)
    assert found.per_second == 2000


def test_spread_is_interquartile_range_over_median(variant: Variant) -> None:
    found = _latency(variant, [i * MS for i in (1, 2, 3, 4, 5)])
    assert found.spread == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("count", "p90", "p99"),
    [(63, None, None), (64, 58, None), (661, 595, None), (662, 596, 656)],
)
def test_percentiles_need_enough_samples(
    variant: Variant, count: int, p90: float | None, p99: float | None
) -> None:
    found = _latency(variant, [(i + 1) * MS for i in range(count)])
    assert found.p90_ms == p90
    assert found.p99_ms == p99


def test_synthetic_feeds_fit_the_batch(variant: Variant) -> None:
    feeds = synthetic_feeds(variant.model, batch=2, seed=0)
    found = measure(
        [dataclasses.replace(variant, batch=2)], feeds, rounds=1, seconds_per_round=0.01
    )
    assert len(found) == 1
