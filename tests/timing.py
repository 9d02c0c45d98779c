"""Latencies that are said, not measured, so that verdicts on speed do not hang on the machine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.feeds import feeds_digest
from bench.latency import UNHURRIED, Haste, Latency, Progress, Variant
from bench.models import Feeds
from bench.rounds import Round


def latency(
    variant: Variant,
    ms: float,
    *,
    rounds: int = 2,
    spread: float = 0.0,
    feeds: str = "f" * 64,
    held_up: float = 0.0,
) -> Latency:
    """So many rounds, `spread` apart around a median of `ms`, eighty samples each."""
    found = []
    for i in range(rounds):
        off = spread * (2 * i / (rounds - 1) - 1) if rounds > 1 else 0.0
        sample = round(ms * 1e6 * (1 + off))
        samples = (sample,) * 80
        found.append(Round(10**6, sample, (sample,), samples, 10**8, 0.0, 0.0, 0, held_up))
    return Latency(variant, "1.2.3", feeds, tuple(found))


@dataclass
class Stopwatch:
    """Stands in for `measure` and `glance` of `bench`; INT8 is `speedup` times as fast as FP32.

    Attributes:
        speedup: Of INT8, in the quick look and in the benchmark.
        later: Of INT8 in the benchmark, where that shall differ.
        spread: Of two rounds around their median, as a share of it.
        held_up: Share of its time for which every model waits for a CPU.
        measured: Names of all variants, call by call.
        haste: What was asked of the benchmark, call by call.
        before: Called first.
    """

    speedup: float = 2.0
    later: float | None = None
    spread: float = 0.0
    held_up: float = 0.0
    measured: list[list[str]] = field(default_factory=list)
    haste: list[Haste] = field(default_factory=list)
    before: Callable[[], object] = lambda: None

    def glance(
        self, variants: Sequence[Variant], feeds: Sequence[Feeds], *, rounds: int, seconds: float
    ) -> dict[str, float]:
        """Stands in for `bench.glance.glance`."""
        found = self._told(variants, feeds, self.speedup, rounds=2)
        return {x.variant.name: x.median_ms for x in found}

    def __call__(
        self,
        variants: Sequence[Variant],
        feeds: Sequence[Feeds],
        *,
        rounds: int = 5,
        seconds_per_round: float = 1.0,
        seed: int = 0,
        haste: Haste = UNHURRIED,
        progress: Progress | None = None,
    ) -> tuple[Latency, ...]:
        if progress is not None:
            progress(0, len(variants), variants[0].name)
        self.haste.append(haste)
        speedup = self.speedup if self.later is None else self.later
        return self._told(variants, feeds, speedup, rounds=rounds)

    def _told(
        self, variants: Sequence[Variant], feeds: Sequence[Feeds], speedup: float, *, rounds: int
    ) -> tuple[Latency, ...]:
        self.before()
        self.measured.append([v.name for v in variants])
        digest = feeds_digest(list(feeds))
        return tuple(
            latency(v, ms, rounds=rounds, spread=self.spread, feeds=digest, held_up=self.held_up)
            for v in variants
            for ms in [1.0 if v.name.lower().startswith("fp32") else 1 / speedup]
        )
