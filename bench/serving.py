"""One process under load: many inferences at once, as fast as they are answered or as they come."""

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from bench.disturbance import between, disturbance
from bench.feeds import load_feeds
from bench.models import Feeds
from bench.percentiles import P99_SAMPLES
from bench.rounds import is_stable, shapes_of
from bench.runtimes import Session, Settings, find_runtime

_WARMUP_S = 0.5
_MAX_SAMPLES = 200_000


def arrivals_ns(rate: float, seconds: float, seed: int) -> list[int]:
    """When requests are due, from 0, of a Poisson process; as many as a p99 takes at least."""
    count = min(max(math.ceil(rate * seconds), P99_SAMPLES), _MAX_SAMPLES)
    gaps = np.random.default_rng(seed).exponential(1e9 / rate, count)
    return [int(t) for t in gaps.cumsum()]


def run_load(job: dict[str, Any]) -> dict[str, Any]:
    """One run, in the process that calls.

    Returns:
        The fields of a `LoadRun`.
    """
    feeds = load_feeds(Path(job["feeds"]))
    settings = Settings(
        job["threads"], job["device"], precision=job["precision"], streams=job["streams"]
    )
    session = find_runtime(job["runtime"]).open(Path(job["model"]), settings)
    session.prepare(feeds[0])
    _together(job["streams"], lambda number: _warm(session, feeds, number))
    before = disturbance()
    due = [0]
    if job["rate"] is None:
        span, samples, left = closed_loop(session, feeds, job["streams"], job["seconds"])
    else:
        due = arrivals_ns(job["rate"], job["seconds"], job["seed"])
        patience = int(max(job["seconds"], 5.0) * 1e9)
        span, samples, left = open_loop(session, feeds, job["streams"], due, patience)
    taken = between(before, disturbance())
    session.close()
    return {
        "span_ns": span,
        "samples_ns": samples,
        "last_due_ns": due[-1],
        "unanswered": left,
        "steal_share": taken.steal_share,
        "throttled_periods": taken.throttled_periods,
    }


def closed_loop(
    session: Session, feeds: Sequence[Feeds], streams: int, seconds: float
) -> tuple[int, list[int], int]:
    """Every stream asks as soon as it is answered.

    Returns:
        The span from start to the last answer in ns, latencies in ns, and 0.
    """
    start = perf_counter_ns()
    end = start + int(seconds * 1e9)
    taken: list[list[int]] = [[] for _ in range(streams)]
    ends = [start] * streams

    def work(number: int) -> None:
        mine, last = taken[number], perf_counter_ns()
        for feed in _rotation(feeds, number):
            begun = last
            session.run(feed)
            last = perf_counter_ns()
            mine.append(last - begun)
            if last >= end or len(mine) >= _MAX_SAMPLES:
                break
        ends[number] = last

    _together(streams, work)
    return max(ends) - start, [s for mine in taken for s in mine], 0


def open_loop(
    session: Session, feeds: Sequence[Feeds], streams: int, due_ns: Sequence[int], patience_ns: int
) -> tuple[int, list[int], int]:
    """Requests come when they are due; the next free stream takes the oldest.

    Args:
        session: What serves.
        feeds: Its inputs, in rotation.
        streams: Inferences at once.
        due_ns: When requests come, ascending, from the start.
        patience_ns: How long after the last arrival the run is ended.

    Returns:
        The span in ns, latencies since each was due in ns, and the number never answered.
    """
    start = perf_counter_ns()
    end = start + due_ns[-1] + patience_ns
    done: list[int | None] = [None] * len(due_ns)
    ticket = itertools.count()

    def work(number: int) -> None:
        # next() of a counter is one step of the interpreter, so no two streams share a request.
        for feed in _rotation(feeds, number):
            index = next(ticket)
            if index >= len(due_ns) or perf_counter_ns() > end:
                return
            due = start + due_ns[index]
            while (left := due - perf_counter_ns()) > 0:
                time.sleep(left / 1e9)
            session.run(feed)
            done[index] = perf_counter_ns() - due

    _together(streams, work)
    answered = [s for s in done if s is not None]
    span = max(
        (due + s for due, s in zip(due_ns, done, strict=True) if s is not None),
        default=end - start,
    )
    return span, answered, len(due_ns) - len(answered)


def _rotation(feeds: Sequence[Feeds], offset: int) -> Iterator[Feeds]:
    return itertools.islice(itertools.cycle(feeds), offset % len(feeds), None)


def _warm(session: Session, feeds: Sequence[Feeds], number: int) -> None:
    taken: list[int] = []
    shapes = shapes_of(feeds)
    end = perf_counter_ns() + int(_WARMUP_S * 1e9)
    for feed in _rotation(feeds, number):
        start = perf_counter_ns()
        session.run(feed)
        taken.append(perf_counter_ns() - start)
        if perf_counter_ns() > end or is_stable(taken, shapes, number):
            return


def _together(streams: int, work: Callable[[int], None]) -> None:
    """Run `work(number)` in as many threads; the first error is raised here."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as e:  # noqa: BLE001 - raised again by the caller's thread
            errors.append(e)

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
