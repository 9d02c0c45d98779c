"""A model run on samples, in chunks: each worker reads some samples, runs them, and hands over.

Between two runs of a model of one millisecond, reading and scoring a sample in Python cost more
than they take, since they push the model out of the CPU's nearest caches. In chunks the runs follow
each other. A chunk regroups nothing: every sample is still run by itself.
"""

import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

from bench.errors import InputError
from bench.models import Feeds
from bench.runtimes.seam import Session
from quantize.data import Sample, Samples

# Of one chunk: samples, inputs with outputs, and time. Several are in flight.
_MOST_SAMPLES, _MOST_BYTES, _MOST_SECONDS = 64, 4 << 20, 0.1


@dataclass(frozen=True, slots=True)
class Run:
    """What a model returned for one sample.

    Attributes:
        index: Of the sample.
        digest: Of its content.
        label: Its label, or None.
        batch: Samples in the run: the first axis that inputs and outputs share, else one.
        outputs: By name.
    """

    index: int
    digest: str
    label: object | None
    batch: int
    outputs: Feeds


@dataclass(frozen=True, slots=True)
class _Chunk:
    runs: list[Run]
    bytes_each: int
    seconds_each: float


Chunks: TypeAlias = Generator[list[Run], None, None]


def run_all(
    session: Session, samples: Samples, states: Mapping[str, str], workers: int, which: range
) -> Chunks:
    """Run samples in order; close the generator to stop early.

    Args:
        session: Open model.
        samples: To run.
        states: Output -> input that is fed back; the samples are then run one after the other.
        workers: Samples to run at once where there are no states.
        which: Of the samples, with a step of 1; where there are states, from the first one on.

    Raises:
        InputError: A sample cannot be read or run.
    """
    if states:
        return _chained(session, samples, states, which)
    return _parallel(session, samples, workers, which)


def _chained(session: Session, samples: Samples, states: Mapping[str, str], which: range) -> Chunks:
    carried: Feeds = {}
    for index in which:
        sample = samples[index]
        run = _run(session, index, sample, {**sample.feeds, **carried})
        carried = {taker: run.outputs[giver] for giver, taker in states.items()}
        yield [run]


def _parallel(session: Session, samples: Samples, workers: int, which: range) -> Chunks:
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[_Chunk]] = deque()
    start, size = which.start, 1
    try:
        while start < which.stop or waiting:
            # Bounded, since each chunk in flight holds its inputs and outputs.
            while start < which.stop and len(waiting) < 2 * workers:
                # Small at the end, so that no worker has to wait for another.
                stop = start + max(1, min(size, (which.stop - start) // (2 * workers)))
                waiting.append(pool.submit(_run_chunk, session, samples, range(start, stop)))
                start = stop
            done = waiting.popleft().result()
            size = _fitting(done)
            yield done.runs
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _fitting(done: _Chunk) -> int:
    """Samples of a chunk, where they are like those of the last."""
    by_bytes = _MOST_BYTES // max(1, done.bytes_each)
    by_time = int(_MOST_SECONDS / max(1e-9, done.seconds_each))
    return max(1, min(_MOST_SAMPLES, by_bytes, by_time))


def _run_chunk(session: Session, samples: Samples, indices: Sequence[int]) -> _Chunk:
    started_ns = time.perf_counter_ns()
    chosen = [(i, samples[i]) for i in indices]
    runs = [_run(session, i, sample, sample.feeds) for i, sample in chosen]
    seconds = (time.perf_counter_ns() - started_ns) / 1e9
    held = sum(_bytes(s.feeds) for _, s in chosen) + sum(_bytes(r.outputs) for r in runs)
    return _Chunk(runs, held // len(runs), seconds / len(runs))


def _run(session: Session, index: int, sample: Sample, feeds: Feeds) -> Run:
    try:
        outputs = session.run(feeds)
    except InputError as e:
        raise InputError(f"sample {index}: {e}") from e
    return Run(index, sample.digest, sample.label, _batch(feeds, outputs), outputs)


def _batch(feeds: Feeds, outputs: Feeds) -> int:
    sizes = {a.shape[0] for a in outputs.values() if a.ndim}
    sizes |= {a.shape[0] for a in list(feeds.values())[:1] if a.ndim}
    return max(1, sizes.pop()) if len(sizes) == 1 else 1


def _bytes(arrays: Feeds) -> int:
    return sum(a.nbytes for a in arrays.values())
