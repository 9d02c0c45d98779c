"""Many inferences at once: throughput against concurrency, and latency at a given rate.

In a closed loop every caller waits for its answer before it asks again, so a stall delays only what
comes next and hides how many would have waited. For a rate, arrivals are therefore drawn up front,
and each latency counts from the moment at which its request was due, whether or not anybody was
free to take it (Gil Tene's "coordinated omission").
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

from bench.feeds import save_feeds
from bench.isolate import run_isolated
from bench.latency import Progress, Variant
from bench.models import Feeds
from bench.percentiles import P99_SAMPLES, percentile_ms

# More streams are tried while each doubling brings at least this much more throughput.
_GAIN = 1.05
# A slower arrival of the samples that a p99 takes is not waited for.
_LONGEST_S = 60.0
_TIMEOUT_S = 1800.0
# Below this share of the offered rate the server did not keep up.
_KEPT_UP = 0.99
_PROBES = 7
# About what a process takes to start, open a model and warm up.
_START_S = 1.0


@dataclass(frozen=True, slots=True)
class LoadRun:
    """One process under load.

    Attributes:
        span_ns: From the start to the last answer.
        samples_ns: Latency of every answered request, in order of arrival; for a rate from the
            moment at which it was due.
        last_due_ns: When the last request was due, from the start; 0 in a closed loop.
        unanswered: Requests that were still waiting when the run was ended.
        steal_share: Share of the machine's CPU time that the hypervisor gave away.
        throttled_periods: How often the CPU quota stopped the process.
    """

    span_ns: int
    samples_ns: tuple[int, ...]
    last_due_ns: int
    unanswered: int
    steal_share: float
    throttled_periods: int


@dataclass(frozen=True, slots=True)
class Load:
    """A variant under one load.

    Attributes:
        variant: What ran; its threads are those of one stream.
        streams: Inferences at once.
        offered_per_second: Requests that came per second, each a batch; None in a closed loop,
            where each stream asks again as soon as it is answered.
        runs: One per process.
        probe: A step of the search for the highest rate, and nothing that was asked for.
    """

    variant: Variant
    streams: int
    offered_per_second: float | None
    runs: tuple[LoadRun, ...]
    probe: bool = False

    @property
    def per_second(self) -> float:
        """Samples answered per second, median over processes."""
        return statistics.median(self.rates)

    @property
    def rates(self) -> tuple[float, ...]:
        """Samples answered per second, process by process."""
        return tuple(len(r.samples_ns) * 1e9 / r.span_ns * self.variant.batch for r in self.runs)

    @property
    def shape(self) -> str:
        """`4 streams of 1 thread`."""
        threads = self.variant.threads
        return (
            f"{self.streams} stream{'s' * (self.streams != 1)} of "
            f"{threads} thread{'s' * (threads != 1)}"
        )

    @property
    def steal_share(self) -> float:
        """Share of CPU time that the hypervisor gave away, mean over processes."""
        return statistics.fmean(r.steal_share for r in self.runs)

    @property
    def throttled_periods(self) -> int:
        """How often the CPU quota stopped the processes."""
        return sum(r.throttled_periods for r in self.runs)

    @property
    def median_ms(self) -> float:
        """Median latency over all samples."""
        return statistics.median(s for r in self.runs for s in r.samples_ns) / 1e6

    @property
    def p90_ms(self) -> float | None:
        """90th percentile; None with too few samples, or where unanswered requests hide it."""
        return self._percentile_ms(90)

    @property
    def p99_ms(self) -> float | None:
        """99th percentile; None likewise."""
        return self._percentile_ms(99)

    @property
    def saturated(self) -> bool:
        """Whether requests came faster than they were answered."""
        if self.offered_per_second is None:
            return False
        # What was due last takes its own time after that; only what comes on top is a backlog.
        return any(
            r.unanswered or (r.span_ns - self.median_ms * 1e6) * _KEPT_UP > r.last_due_ns
            for r in self.runs
        )

    def holds(self, p99_ms: float) -> bool:
        """Whether the 99th percentile is known and within a target."""
        return self.p99_ms is not None and self.p99_ms <= p99_ms and not self.saturated

    def _percentile_ms(self, percent: int) -> float | None:
        samples = [s for r in self.runs for s in r.samples_ns]
        unanswered = sum(r.unanswered for r in self.runs)
        return percentile_ms(samples, percent, unanswered=unanswered)


class Loader:
    """Runs variants under load in fresh processes; holds their inputs in a folder."""

    def __init__(self, feeds: Sequence[Feeds], folder: Path, *, seconds: float, seed: int) -> None:
        self.folder = folder
        self.seconds = seconds
        self.seed = seed
        save_feeds(feeds, folder / "load.npz")

    def run(
        self,
        variant: Variant,
        streams: int,
        rate: float | None = None,
        *,
        rounds: int = 1,
    ) -> Load:
        """Put one load on one variant.

        Args:
            variant: What to run; its threads are those of one stream.
            streams: Inferences at once.
            rate: Requests per second, Poisson; None for a closed loop.
            rounds: Processes, each with arrivals of its own.

        Raises:
            ResourceError: A process crashed or hung.
        """
        runs = []
        for number in range(rounds):
            job = {
                "model": str(variant.model.path.resolve()),
                "runtime": variant.runtime,
                "device": variant.device,
                "precision": variant.precision,
                "threads": variant.threads,
                "streams": streams,
                "rate": rate,
                "seconds": self.seconds,
                "seed": self.seed + number,
                "feeds": str(self.folder / "load.npz"),
            }
            answer = run_isolated(
                "bench.serving:run_load",
                job,
                scratch=self.folder,
                name=f"loading {variant.name!r} with {streams} streams",
                timeout_s=_TIMEOUT_S + 10 * self.seconds,
            )
            runs.append(LoadRun(**{**answer, "samples_ns": tuple(answer["samples_ns"])}))
        return Load(variant, streams, rate, tuple(runs))


def sweep(
    run: Callable[[int, int], Load], granted: int, asked: Sequence[int] = ()
) -> tuple[Load, ...]:
    """Throughput against concurrency, to its optimum.

    Args:
        run: Told streams and threads of each.
        granted: Threads that may be used in all.
        asked: Numbers of streams; none doubles them from 1 on for as long as it pays.

    Returns:
        One load per number of streams, fewest first.
    """
    found: list[Load] = []
    for streams in sorted(asked) or _doubling(2 * granted):
        found.append(run(streams, max(1, granted // streams)))
        best = max((x.per_second for x in found[:-1]), default=0.0)
        if not asked and found[-1].per_second < _GAIN * best:
            break
    return tuple(found)


def _doubling(most: int) -> list[int]:
    return [2**i for i in range(most.bit_length())]


def decisive(loads: Sequence[Load], p99_ms: float | None) -> tuple[Load, ...]:
    """Without those probes that decide nothing, each variant keeps two.

    Those are the highest rate that held the target, and the lowest above it that did not.
    """
    kept = []
    for name in dict.fromkeys(x.variant.name for x in loads):
        own = [x for x in loads if x.variant.name == name]
        probes = sorted((x for x in own if x.probe), key=lambda x: x.offered_per_second or 0.0)
        held = [x for x in probes if p99_ms is not None and x.holds(p99_ms)]
        missed = probes[probes.index(held[-1]) + 1 :] if held else probes
        kept += [x for x in own if not x.probe] + held[-1:] + missed[:1]
    return tuple(kept)


def optimum(loads: Sequence[Load], p99_ms: float | None = None) -> Load | None:
    """The load with the most throughput; with a target, of those that hold it."""
    fit = [x for x in loads if p99_ms is None or x.holds(p99_ms)]
    return max(fit, key=lambda x: x.per_second, default=None)


def highest_rate(
    probe: Callable[[float], Load], ceiling_per_second: float, p99_ms: float
) -> tuple[Load, ...]:
    """Look for the highest rate whose 99th percentile stays within a target, by bisection.

    Args:
        probe: Runs a rate, in requests per second.
        ceiling_per_second: What a closed loop reached: no rate above it can hold.
        p99_ms: The target.

    Returns:
        Every probe, in order; those that `holds` are true of bound the answer from below.
    """
    low, high = 0.0, ceiling_per_second
    found: list[Load] = []
    for _ in range(_PROBES):
        # The first look is near the ceiling; most servers that can hold a target do so up to there.
        rate = 0.9 * high if not found else (low + high) / 2
        if P99_SAMPLES / rate > _LONGEST_S:
            break
        found.append(probe(rate))
        if found[-1].holds(p99_ms):
            low = rate
        else:
            high = rate
        if high - low < 0.03 * high:
            break
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Demand:
    """What load was asked for.

    Attributes:
        streams: Numbers of streams; empty for none, (0,) to look for the optimum.
        rates: Requests per second to try.
        p99_ms: Look for the highest rate that holds this; None does not.
        rounds: Processes per point of the sweep.
    """

    streams: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    p99_ms: float | None = None
    rounds: int = 3

    @property
    def wanted(self) -> bool:
        """Whether any load was asked for."""
        return bool(self.streams or self.rates or self.p99_ms is not None)

    def most_runs(self, granted: int) -> int:
        """Points of the sweep and rates of one variant, if no search ends early."""
        asked = [s for s in self.streams if s]
        probes = 0 if self.p99_ms is None else _PROBES
        return len(asked or _doubling(2 * granted)) + len(self.rates) + probes

    def longest_s(self, granted: int, seconds: float, per_second: float) -> float:
        """About how long one variant takes at most.

        Args:
            granted: Threads in all.
            seconds: Of each run that does not wait for requests.
            per_second: Requests that the variant answers, one after the other.
        """
        points = len([s for s in self.streams if s] or _doubling(2 * granted)) * self.rounds
        waits = [P99_SAMPLES / rate for rate in self.rates]
        if self.p99_ms is not None:
            # At worst each rate that is tried misses the target, and the next is half of it.
            probes = [P99_SAMPLES / (0.9 * per_second) * 2**i for i in range(_PROBES)]
            waits += [s for s in probes if s <= _LONGEST_S]
        lasting = sum(max(seconds, s) for s in waits)
        return points * seconds + lasting + (points + len(waits)) * _START_S


def with_time_left(progress: Progress, longest_s: Sequence[float], runs: int) -> Progress:
    """Tell with each step for how long loads may go on.

    Args:
        progress: Told of each step.
        longest_s: Of each variant, and of whatever comes after the last.
        runs: Of one variant at most.
    """
    ends_s: dict[int, float] = {}

    def tell(done: int, total: int, step: str) -> None:
        number, now_s = done // runs, perf_counter()
        left_s = ends_s.setdefault(number, now_s + sum(longest_s[number:])) - now_s
        left = f"{left_s / 60:.0f} min" if left_s >= 90 else f"{max(left_s, 0):.0f} s"
        progress(done, total, f"{step} (loads: about {left} left at most)")

    return tell


def measure_load(
    variants: Sequence[Variant],
    feeds: Sequence[Feeds],
    demand: Demand,
    *,
    granted: int,
    seconds: float,
    seed: int,
    progress: Progress,
) -> tuple[Load, ...]:
    """Sweep the streams of each variant, then try the rates at the best number of them.

    Args:
        variants: What to load.
        feeds: Inputs, in rotation.
        demand: What was asked for.
        granted: Threads in all.
        seconds: Of each run; a run at a rate lasts until a p99 can be known.
        seed: Of the arrivals.
        progress: Told what runs next, and how many runs of how many are done at most: searches
            end when they have found what they look for.

    Raises:
        ResourceError: A process crashed or hung.
    """
    found: list[Load] = []
    most, done = demand.most_runs(granted), 0

    def tell(step: str) -> None:
        nonlocal done
        progress(done, most * len(variants), step)
        done += 1

    with tempfile.TemporaryDirectory(prefix="vnnify-load-") as folder:
        loader = Loader(feeds, Path(folder), seconds=seconds, seed=seed)
        for number, variant in enumerate(variants):
            done = number * most

            def run(streams: int, threads: int, variant: Variant = variant) -> Load:
                tell(f"{variant.name}, {streams} stream{'s' * (streams != 1)}")
                used = replace(variant, threads=threads)
                return loader.run(used, streams, rounds=demand.rounds)

            swept = sweep(run, granted, [s for s in demand.streams if s])
            found += swept
            server = optimum(swept, demand.p99_ms) or optimum(swept)
            assert server is not None  # At least one number of streams was tried.
            found += _rates(loader, server, demand, tell)
    return tuple(found)


def _rates(
    loader: Loader, server: Load, demand: Demand, tell: Callable[[str], None]
) -> Iterator[Load]:
    def run(rate: float) -> Load:
        tell(f"{server.variant.name}, {rate:.4g} per second")
        return loader.run(server.variant, server.streams, rate)

    for rate in demand.rates:
        yield run(rate)
    if demand.p99_ms is not None:
        ceiling = server.per_second / server.variant.batch
        for found in highest_rate(run, ceiling, demand.p99_ms):
            yield replace(found, probe=True)
