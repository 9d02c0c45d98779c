"""How much faster one variant is than another: an interval, and what speaks against believing it.

A process is one observation: inferences inside one are alike for reasons that have nothing to do
with the model, so the interval is over rounds and never over single inferences.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.distributions import student_quantile
from bench.errors import UsageError
from bench.latency import Latency
from bench.percentiles import P90_SAMPLES

CONFIDENCE = 0.95

STEAL_SHARE = 0.01
_OTHERS_SHARE = 0.1
_SPREAD = 0.25
_CLOCK_SHARE = 0.9
# Up to this share of its time a model that waits for a CPU has medians less than a tenth too long
# (`python -m tests.benchmarks.busy`).
_HELD_UP = 0.25
# Beyond, nothing is known at all.
_MOST_HELD_UP = 0.99
# A ratio from which on its size says nothing.
_WIDEST = 1000
# No float differs from what it is held against in a later place alone.
_MOST_DECIMALS = 17


@dataclass(frozen=True, slots=True)
class Comparison:
    """How many times as fast the candidate is.

    Attributes:
        baseline: Name of one variant.
        candidate: Name of the other.
        ratio: Time of the baseline over time of the candidate: above 1 the candidate is faster.
            Median over rounds, so that a round that something else disturbed does not decide.
        low: Lower end of the interval of `ratio`; None if one round was all there is.
        high: Upper end of it. Both allow for what others took; see `held_up`.
        confidence: Share of such intervals that hold the true ratio.
        doubts: Reasons to trust it less, in words.
        sound: Whether a variant that was timed beside itself came out equally fast; so too where
            none was.
        held_up: Of the baseline and of the candidate, the share of the time in which it was ready
            to run and others had its CPU; 0 where that is too little to move the ratio.
    """

    baseline: str
    candidate: str
    ratio: float
    low: float | None
    high: float | None
    confidence: float
    doubts: tuple[str, ...]
    sound: bool = True
    held_up: tuple[float, float] = (0.0, 0.0)

    @property
    def is_disturbed(self) -> bool:
        """Whether the interval is wider than the rounds alone make it, since others ran."""
        return any(self.held_up)

    @property
    def of_rounds(self) -> tuple[float | None, float | None]:
        """The interval of the rounds alone: more of them make it narrower."""
        slower, faster = (1 - share for share in self.held_up)
        low = None if self.low is None else self.low / slower
        return low, None if self.high is None else self.high * faster

    @property
    def holds_one(self) -> bool:
        """Whether "equally fast" cannot be ruled out."""
        return self.low is None or self.high is None or self.low <= 1.0 <= self.high


def speed_text(found: Comparison, limit: float = 1.0) -> str:
    """`2.26 times as fast (1.81 to 2.78)`; see `ratio_text` for `limit`."""
    interval = interval_text(found.low, found.high, limit)
    return f"{ratio_text(found.ratio, limit)} times as fast ({interval})"


def interval_text(low: float | None, high: float | None, limit: float = 1.0) -> str:
    """`1.79 to 1.88`; see `ratio_text` for `limit`."""
    if low is None or high is None:
        return "no interval"
    # Few rounds on a busy machine: more digits would only say how wide it is.
    upper = ratio_text(high, limit) if high < _WIDEST else f"over {_WIDEST:,}"
    return f"{ratio_text(low, limit)} to {upper}"


def ratio_text(ratio: float, limit: float = 1.0) -> str:
    """`2.26`; beside `limit` with as many decimals as tell on which side of it the ratio lies.

    A verdict of "slower" must not stand beside a ratio of `1.00`, where it was 0.998.
    """
    for decimals in range(2, _MOST_DECIMALS):
        text = f"{ratio:.{decimals}f}"
        shown = float(text)
        if (shown < limit, shown > limit) == (ratio < limit, ratio > limit):
            return text
    return f"{ratio:.{_MOST_DECIMALS}f}"


def too_busy(found: Comparison) -> str:
    """Of a ratio that others disturbed: why it does not tell, and what to do."""
    names = (found.baseline, found.candidate)
    share, name = max(zip(found.held_up, names, strict=True), key=lambda pair: pair[0])
    return (
        f"the machine is too busy to tell: others had the CPU in {share:.0%} of the time in which "
        f"{name} was ready to run. Try again where less else runs"
    )


def doubt_lines(found: Comparison) -> list[str]:
    """What speaks against it, one sentence for each of the two and one for both."""
    told: dict[str, list[str]] = {}
    for doubt in found.doubts:
        name, _, what = doubt.partition(": ")
        own = name in (found.baseline, found.candidate)
        told.setdefault(f" of {name}" if own else "", []).append(what if own else doubt)
    return [f"Doubts about the speed{of}: {'; '.join(what)}." for of, what in told.items()]


def compare(
    baseline: Latency,
    candidate: Latency,
    *,
    control: Comparison | None = None,
    error: float = 1 - CONFIDENCE,
) -> Comparison:
    """Compare two variants that `bench.latency.measure` timed together.

    Args:
        baseline: The one to be faster than.
        candidate: The other.
        control: The comparison of a variant with itself: shows what the machine's noise alone does.
        error: What this interval may miss the true ratio by chance in; less than 1 - `CONFIDENCE`
            for one of several looks at a growing number of rounds, whose errors add up to that.

    Raises:
        UsageError: They differ in something that has to be the same.
    """
    _refuse_unlike(baseline, candidate)
    logs = [
        math.log(b.median_ns / c.median_ns)
        for b, c in zip(baseline.rounds, candidate.rounds, strict=True)
    ]
    ratio = math.exp(statistics.median(logs))
    low, high = interval(logs, error)
    held_up = held_up_share(baseline), held_up_share(candidate)
    if low is not None and high is not None:
        low, high = min(low, ratio) * (1 - held_up[0]), max(high, ratio) / (1 - held_up[1])
    return Comparison(
        baseline=baseline.variant.name,
        candidate=candidate.variant.name,
        ratio=ratio,
        low=low,
        high=high,
        confidence=CONFIDENCE,
        doubts=tuple(_doubts(baseline, candidate, control)),
        sound=control is None or control.holds_one,
        held_up=held_up,
    )


def held_up_share(latency: Latency) -> float:
    """What an interval has to allow for: this share of its time may have been spent waiting.

    The slower of two models meets the end of its time slice more often, and the one that gains more
    from a second CPU loses more with it; so the ratio is off, mostly away from 1. No quantile of
    the samples cures that. A model that waited for a share w of its time would have taken 1 - w of
    it or more, had nobody else been there.
    """
    share = latency.held_up_share
    return min(share, _MOST_HELD_UP) if share > _HELD_UP else 0.0


def interval(
    logs: Sequence[float], error: float = 1 - CONFIDENCE
) -> tuple[float | None, float | None]:
    """Interval of a geometric mean from logs: Student's t; None with a single one.

    Not the percentile bootstrap, whose 95 % hold 90 % of the time with ten rounds, and 93 % with
    thirty.
    """
    n = len(logs)
    if n < 2:
        return None, None
    mean = statistics.fmean(logs)
    half = student_quantile(1 - error / 2, n - 1) * statistics.stdev(logs) / math.sqrt(n)
    return math.exp(mean - half), math.exp(mean + half)


def _refuse_unlike(a: Latency, b: Latency) -> None:
    pairs: list[tuple[str, Any, Any]] = [
        ("batch", a.variant.batch, b.variant.batch),
        ("inputs (digest)", a.feeds_sha256[:12], b.feeds_sha256[:12]),
        ("number of rounds", len(a.rounds), len(b.rounds)),
    ]
    # A CPU's threads mean nothing on a GPU; CPU against GPU is a question people have.
    if a.variant.device == b.variant.device:
        pairs.append(("threads", a.variant.threads, b.variant.threads))
    for field, left, right in pairs:
        if left != right:
            raise UsageError(
                f"cannot compare {a.variant.name!r} with {b.variant.name!r}: {field} is {left} "
                f"there and {right} here. Measure both in the same way."
            )


def _doubts(a: Latency, b: Latency, control: Comparison | None) -> list[str]:
    found = []
    if len(a.rounds) < 2:
        found.append("one round only, so there is no interval")
    if control is not None and not control.holds_one:
        found.append(
            f"the same model against itself measured {ratio_text(control.ratio)}x "
            f"({interval_text(control.low, control.high)}): the machine is too noisy, or drifts"
        )
    for latency in (a, b):
        found += [f"{latency.variant.name}: {doubt}" for doubt in _disturbances(latency)]
    return found


def _disturbances(latency: Latency) -> Iterator[str]:
    """What speaks against believing one variant's times."""
    fewest = min(len(r.samples_ns) for r in latency.rounds)
    if fewest < P90_SAMPLES:
        yield f"{fewest} samples in a round, better {P90_SAMPLES} or more"
    if latency.steal_share > STEAL_SHARE:
        yield f"other guests took {latency.steal_share:.1%} of the CPU time"
    if latency.others_share > _OTHERS_SHARE:
        yield f"other processes took {latency.others_share:.0%} of the CPU time"
    if latency.held_up_share > _HELD_UP:
        yield (
            f"it was ready to run and others had its CPU in {latency.held_up_share:.0%} of its "
            "time, which the interval allows for"
        )
    if latency.throttled_periods:
        yield f"the CPU quota stopped it {latency.throttled_periods} times"
    unsettled = sum(not r.settled for r in latency.rounds)
    if 2 * unsettled > len(latency.rounds):
        yield f"the warm-up did not settle in {unsettled} of {len(latency.rounds)} rounds"
    if latency.spread > _SPREAD:
        yield f"the middle half of the samples spans {latency.spread:.0%} of the median"
    clock = latency.gpu_clock_share
    if clock is not None and clock < _CLOCK_SHARE:
        yield f"the GPU ran at {clock:.0%} of its highest clock"
