"""Time models: every round of every variant in a fresh process, interleaved, raw samples kept.

Two processes that run the same file differ by more than two runs inside one process (memory layout,
page placement), and a machine drifts. So a round is a process, variants take turns in ABBA order,
and `bench.compare` builds its intervals over rounds.
"""

import contextlib
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter_ns
from typing import Any, TypeAlias

from bench.ahead import Ahead
from bench.errors import VnnifyError
from bench.feeds import feeds_digest, save_feeds
from bench.gpu import Gpu
from bench.isolate import Child, head_start, run_isolated
from bench.models import Feeds, Model
from bench.percentiles import percentile_ms
from bench.rounds import Round
from bench.runtimes.seam import Precision
from bench.turns import batches, refuse_nonsense, turns

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with rounds done, rounds in all, and what runs next."""

TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run one model.

    Attributes:
        name: What to call it; unique among those measured together.
        model: The file.
        runtime: A name in `bench.runtimes.RUNTIMES`.
        device: "cpu" or "cuda".
        threads: Threads inside one inference.
        batch: Samples in one inference. 1 is one sample, whatever its first axis means (it may be
            time).
        precision: Of float arithmetic on a GPU; see `bench.runtimes.seam.Settings`.
        copies: Whether copying inputs to the device and outputs back is timed. Without it, both
            stay there, and only the end of the computation is waited for.
    """

    name: str
    model: Model
    runtime: str
    device: str
    threads: int
    batch: int
    precision: Precision = "fp32"
    copies: bool = True


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one variant takes.

    Attributes:
        variant: What ran.
        runtime_version: Of the package that ran it.
        feeds_sha256: Digest of the inputs it ran on.
        rounds: One per process, in the order in which they ran.
    """

    variant: Variant
    runtime_version: str
    feeds_sha256: str
    rounds: tuple[Round, ...]

    @property
    def samples_ns(self) -> tuple[int, ...]:
        """The samples of all rounds."""
        return tuple(s for r in self.rounds for s in r.samples_ns)

    @property
    def median_ms(self) -> float:
        """Median over rounds of their medians."""
        return statistics.median(r.median_ns for r in self.rounds) / 1e6

    @property
    def p90_ms(self) -> float | None:
        """90th percentile over all samples; None if there are too few to know."""
        return percentile_ms(self.samples_ns, 90)

    @property
    def p99_ms(self) -> float | None:
        """99th percentile over all samples; None if there are too few to know."""
        return percentile_ms(self.samples_ns, 99)

    @property
    def per_second(self) -> float:
        """Samples per second of one caller that waits for each answer."""
        return self.variant.batch * 1000 / self.median_ms

    @property
    def load_ms(self) -> float | None:
        """Median time to open and compile the model; None where none did so alone."""
        return _median_ms([r.load_ns for r in self.rounds])

    @property
    def first_ms(self) -> float:
        """Median time of the first inference."""
        return statistics.median(r.first_ns for r in self.rounds) / 1e6

    @property
    def compile_ms(self) -> float | None:
        """Of `load_ms`, median time to compile; None where the runtime cannot tell."""
        return _median_ms([r.compile_ns for r in self.rounds])

    @property
    def cold_ms(self) -> float | None:
        """Median time from asking for a process to its first answer."""
        return _median_ms([r.cold_ns for r in self.rounds])

    @property
    def peak_rss_bytes(self) -> int:
        """The most memory that a round held."""
        return max(r.peak_rss_bytes for r in self.rounds)

    @property
    def spread(self) -> float:
        """Interquartile range over median, of the typical round."""
        return statistics.median(r.spread for r in self.rounds)

    @property
    def steal_share(self) -> float:
        """Share of CPU time that the hypervisor gave away, mean over rounds.

        The kernel counts in ticks of 10 ms, so a single short round says little.
        """
        return statistics.fmean(r.steal_share for r in self.rounds)

    @property
    def others_share(self) -> float:
        """Share of CPU time that other processes of this machine took, mean over rounds."""
        return statistics.fmean(r.others_share for r in self.rounds)

    @property
    def held_up_share(self) -> float:
        """Of the time in which it was ready to run, what others had; median over rounds."""
        return statistics.median(r.held_up_share for r in self.rounds)

    @property
    def throttled_periods(self) -> int:
        """How often the CPU quota stopped the rounds."""
        return sum(r.throttled_periods for r in self.rounds)

    @property
    def gpu_clock_share(self) -> float | None:
        """Of a GPU's highest clock, what it ran at after the slowest round; None if unknown."""
        shares = [r.gpu.clock_share for r in self.rounds if r.gpu is not None]
        return min((s for s in shares if s is not None), default=None)


@dataclass(frozen=True, slots=True)
class Haste:
    """What a benchmark may leave out to end sooner.

    Attributes:
        enough: Samples that end a round before its time; None: nothing does.
        least_s: How long it samples all the same. Counters of what others took go in ticks of
            10 ms: below 0.1 s, a single round of them says nothing.
        abreast: Processes that start and open their models side by side, before they are timed one
            after the other; how long that takes one that is alone is not measured then. Fewer do
            where models are large.
        ahead: Processes that started before, for these; None: all start when they are needed.
    """

    enough: int | None = None
    least_s: float = 0.1
    abreast: int = 1
    ahead: Ahead | None = None


UNHURRIED = Haste()


class CutShort(KeyboardInterrupt):
    """Ctrl-C or SIGTERM came while variants were timed.

    Attributes:
        latencies: What `measure` would have returned after the rounds that all variants finished;
            one at least.
    """

    def __init__(self, latencies: tuple[Latency, ...]) -> None:
        super().__init__()
        self.latencies = latencies


def _median_ms(values_ns: Sequence[int | None]) -> float | None:
    known = [v for v in values_ns if v is not None]
    return statistics.median(known) / 1e6 if known else None


def measure(
    variants: Sequence[Variant],
    feeds: Sequence[Feeds],
    *,
    rounds: int = 5,
    seconds_per_round: float = 1.0,
    seed: int = 0,
    haste: Haste = UNHURRIED,
    progress: Progress | None = None,
) -> tuple[Latency, ...]:
    """Time `variants` on the same inputs, taking turns.

    Args:
        variants: What to compare.
        feeds: Distinct inputs, given in rotation.
        rounds: Processes per variant; with 1 there is no interval.
        seconds_per_round: Time to take samples in one process; warm-up takes at most as much again.
            At least 5 are taken however long they last.
        seed: Of the order.
        haste: What may be left out.
        progress: Told before every round.

    Returns:
        One `Latency` per variant, in order.

    Raises:
        UsageError: A variant does not fit the inputs, or a number makes no sense.
        UnfitError: A runtime or a device is missing.
        ResourceError: A process crashed or hung.
        CutShort: Ctrl-C or SIGTERM after the first round of all variants.
        KeyboardInterrupt: One of them before.
    """
    refuse_nonsense(variants, feeds, rounds, seconds_per_round)
    orders = turns(len(variants), rounds, seed)
    found: list[list[Round]] = [[] for _ in variants]
    versions = [""] * len(variants)
    digest = feeds_digest(feeds)

    def until(count: int) -> tuple[Latency, ...]:
        return tuple(
            Latency(v, version, digest, tuple(r[:count]))
            for v, version, r in zip(variants, versions, found, strict=True)
        )

    with tempfile.TemporaryDirectory(prefix="vnnify-bench-") as folder:
        file = _saved(feeds, Path(folder))
        sooner = {"enough": haste.enough, "least_s": haste.least_s}
        jobs = [{**job_of(v, file, seconds_per_round), **sooner} for v in variants]
        queue = [w for order in orders for w in order]

        def take(which: int, child: Child | None) -> None:
            variant, done = variants[which], sum(map(len, found))
            if progress is not None:
                progress(done, len(queue), variant.name)
            answer = _isolated(variant, jobs[which], child)
            versions[which] = answer.pop("runtime_version")
            found[which].append(_round(answer))

        try:
            for batch in batches(queue, [v.model.size_bytes for v in variants], haste.abreast):
                with _waiting([jobs[w] for w in batch], haste.ahead) as children:
                    for which, child in zip(batch, children, strict=True):
                        take(which, child)
        except KeyboardInterrupt:
            if not (finished := min(map(len, found))):
                raise
            raise CutShort(until(finished)) from None
    return until(rounds)


@contextlib.contextmanager
def _waiting(
    jobs: Sequence[dict[str, Any]], ahead: Ahead | None
) -> Iterator[Sequence[Child | None]]:
    """Processes that have opened a model each, and are at rest; none ahead of a single round.

    A single round measures how long all of that takes, so nothing may start beside it.
    """
    if len(jobs) == 1:
        if ahead is not None:
            ahead.end()
        yield [None]
        return
    with contextlib.ExitStack() as held:
        started = [ahead.take(j["runtime"]) if ahead is not None else None for j in jobs]
        children = [child or held.enter_context(head_start()) for child in started]
        for job, child in zip(jobs, children, strict=True):
            child.get_ready("bench.sampling:open_ahead", json.dumps(job))
        for child in children:
            child.until_ready(TIMEOUT_S)
        yield children


def with_control(variants: Sequence[Variant]) -> list[Variant]:
    """The variants, and the first one a second time as if it were another: a difference is noise.

    It comes last, named "… (control)".
    """
    return [*variants, replace(variants[0], name=f"{variants[0].name} (control)")]


def refusal(variant: Variant, feeds: Sequence[Feeds]) -> VnnifyError | None:
    """Why a variant cannot run here, seen by running it once; None if it can."""
    refuse_nonsense([variant], feeds, 1, 1.0)
    with tempfile.TemporaryDirectory(prefix="vnnify-try-") as folder:
        job = job_of(variant, _saved(feeds[:1], Path(folder)), 1e-3)
        try:
            _isolated(variant, job)
        except VnnifyError as e:
            return e
    return None


def _saved(feeds: Sequence[Feeds], scratch: Path) -> Path:
    file = scratch / "feeds.npz"
    save_feeds(feeds, file)
    return file


def _isolated(variant: Variant, job: dict[str, Any], child: Child | None = None) -> dict[str, Any]:
    """One round of a variant, in a fresh process, which may have opened its model before."""
    if child is None:
        job = {**job, "spawned_ns": perf_counter_ns()}
    answer: dict[str, Any] = run_isolated(
        "bench.sampling:run_round",
        job,
        scratch=Path(job["feeds"]).parent,
        name=f"measuring {variant.name!r} in {variant.runtime}",
        timeout_s=TIMEOUT_S + 10 * job["seconds"],
        child=child,
    )
    return answer


def job_of(variant: Variant, feeds: Path, seconds: float) -> dict[str, Any]:
    """What a round or a turn of `bench.sampling` takes."""
    return {
        "model": str(variant.model.path.resolve()),
        "size_bytes": variant.model.size_bytes,
        "runtime": variant.runtime,
        "device": variant.device,
        "precision": variant.precision,
        "copies": variant.copies,
        "threads": variant.threads,
        "feeds": str(feeds),
        "seconds": seconds,
    }


def _round(answer: dict[str, Any]) -> Round:
    lists = {k: tuple(answer[k]) for k in ("warmup_ns", "samples_ns", "shapes")}
    gpu = answer.get("gpu")
    return Round(**{**answer, **lists, "gpu": None if gpu is None else Gpu(**gpu)})
