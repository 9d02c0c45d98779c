"""One round: a session is opened, warmed up and timed in the process that calls."""

import dataclasses
import functools
import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any, cast

from bench.disturbance import between, disturbance
from bench.feeds import load_feeds
from bench.gpu import first_visible, read_gpus
from bench.models import Feeds
from bench.rounds import ONE_SHAPE, Shapes, is_stable, shapes_of, typical_ns
from bench.runtimes import Session, Settings, Staging, find_runtime
from bench.stages import peak_rss_bytes
from bench.turns import OPEN_BYTES

MIN_SAMPLES = 5

_MAX_SAMPLES = 100_000
_WARMUP_S = 1.0
# Samples, and their time, of a turn that chooses what to measure.
_ENOUGH_TO_CHOOSE, _LEAST_TO_CHOOSE_S = 64, 0.1


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that is ready for its first inference.

    Attributes:
        runtime_version: Of the package that opened it.
        session: It.
        feeds: What it is timed on.
        shapes: Of these.
        load_ns: What opening took; importing the runtime not counted.
    """

    runtime_version: str
    session: Session
    feeds: Sequence[Feeds]
    shapes: Shapes
    load_ns: int


def get_ready(runtime: str) -> None:
    """Import what a round in a runtime needs."""
    find_runtime(runtime).version()


def open_ahead(job: str) -> Opened:
    """Open the model of a round, whose job is given as JSON, before there is an order for it."""
    return _opened(json.loads(job))


def _opened(job: dict[str, Any]) -> Opened:
    feeds = load_feeds(Path(job["feeds"]))
    runtime = find_runtime(job["runtime"])
    version = runtime.version()  # Imports the package, before the clock starts.
    start = perf_counter_ns()
    session = runtime.open(Path(job["model"]), _settings(job))
    session.prepare(feeds[0])
    load_ns = perf_counter_ns() - start
    return Opened(version, session, feeds, shapes_of(feeds), load_ns)


def run_round(job: dict[str, Any], ahead: Opened | None = None) -> dict[str, Any]:
    """One round, in the process that calls; `bench.latency.measure` calls it in fresh ones.

    Args:
        job: Model, runtime, feeds and settings; `spawned_ns` is when the process was asked for,
            where it started for this round alone.
        ahead: Its model, where it was opened beside others; how long that took tells nothing then.

    Returns:
        The fields of a `bench.rounds.Round`, and `runtime_version`.
    """
    opened = ahead or _opened(job)
    session = opened.session
    calls = _calls(session, opened.feeds, copies=job["copies"])
    start = perf_counter_ns()
    calls[0]()
    end = perf_counter_ns()
    gc.collect()
    gc.disable()
    before = disturbance()
    try:
        warmup, samples = time_calls(
            calls,
            seconds=job["seconds"],
            enough=job.get("enough"),
            least_s=job.get("least_s", 0.0),
            shapes=opened.shapes,
        )
    finally:
        gc.enable()
    taken = between(before, disturbance())
    gpus = read_gpus(only=first_visible()) if job["device"] == "cuda" else ()
    found = {
        "runtime_version": opened.runtime_version,
        "load_ns": None if ahead else opened.load_ns,
        "compile_ns": None if ahead else session.compile_ns,
        "first_ns": end - start,
        # One clock for all processes of a machine: CLOCK_MONOTONIC, clock_gettime(2).
        "cold_ns": end - job["spawned_ns"] if "spawned_ns" in job else None,
        "placement": session.placement,
        "gpu": dataclasses.asdict(gpus[0]) if gpus else None,
        "warmup_ns": warmup,
        "samples_ns": samples,
        "shapes": opened.shapes,
        "peak_rss_bytes": peak_rss_bytes(),
        **dataclasses.asdict(taken),
    }
    session.close()
    return found


def run_turns(job: dict[str, Any]) -> list[float]:
    """Median ns of several turns, one after the other in this process.

    A model is opened once for all its turns, unless those that are open are large already.
    """
    kept: dict[tuple[Any, ...], tuple[Session, int]] = {}
    medians = []
    gc.disable()
    try:
        for turn in job["turns"]:
            key = tuple(turn[k] for k in ("model", "runtime", "device", "threads", "precision"))
            size = turn["size_bytes"]
            session = kept.pop(key)[0] if key in kept else _session(turn)
            medians.append(_median_ns(session, turn))
            gc.collect()
            if size + sum(s for _, s in kept.values()) <= OPEN_BYTES:
                kept[key] = session, size
            else:
                session.close()
    finally:
        gc.enable()
    for session, _ in kept.values():
        session.close()
    return medians


def _session(turn: dict[str, Any]) -> Session:
    return find_runtime(turn["runtime"]).open(Path(turn["model"]), _settings(turn))


def _median_ns(session: Session, turn: dict[str, Any]) -> float:
    feeds = load_feeds(Path(turn["feeds"]))
    session.prepare(feeds[0])
    calls = _calls(session, feeds, copies=turn["copies"])
    calls[0]()
    shapes = shapes_of(feeds)
    warmup, samples = time_calls(
        calls,
        seconds=turn["seconds"],
        enough=_ENOUGH_TO_CHOOSE,
        least_s=_LEAST_TO_CHOOSE_S,
        shapes=shapes,
    )
    return typical_ns(samples, shapes, 1 + len(warmup))


def _settings(job: dict[str, Any]) -> Settings:
    return Settings(job["threads"], job["device"], precision=job["precision"])


def time_calls(
    calls: Sequence[Callable[[], object]],
    *,
    seconds: float,
    enough: int | None = None,
    least_s: float = 0.0,
    shapes: Shapes = ONE_SHAPE,
    clock: Callable[[], int] = perf_counter_ns,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Call in rotation until it is warm, then for `seconds`.

    Args:
        calls: One per input; the first one was made before.
        seconds: Time for samples, and the most for warming up; at least `MIN_SAMPLES` are taken,
            and one of every input where their shapes differ.
        enough: Samples that end it sooner.
        least_s: Time for samples all the same.
        shapes: Of the inputs.
        clock: Nanoseconds from any origin.

    Returns:
        Times of the warm-up's calls, and of those that count, in ns.
    """

    def run(index: int) -> int:
        call = calls[index % len(calls)]
        start = clock()
        call()
        return clock() - start

    warmup: list[int] = []
    end = clock() + int(min(seconds, _WARMUP_S) * 1e9)
    while clock() < end and not is_stable(warmup, shapes):
        warmup.append(run(1 + len(warmup)))
    samples: list[int] = []
    offset = 1 + len(warmup)
    start = clock()
    end, least = (start + int(s * 1e9) for s in (seconds, min(seconds, least_s)))
    most = _MAX_SAMPLES if enough is None else enough
    fewest = max(MIN_SAMPLES, len(shapes))
    while len(samples) < fewest or clock() < (end if len(samples) < most else least):
        samples.append(run(offset + len(samples)))
    return tuple(warmup), tuple(samples)


def _calls(session: Session, feeds: Sequence[Feeds], *, copies: bool) -> list[Callable[[], object]]:
    if copies:
        return [functools.partial(session.run, feed) for feed in feeds]
    return [cast("Staging", session).stage(feed) for feed in feeds]
