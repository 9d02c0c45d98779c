"""The benchmark that ends a run: FP32 and INT8 in every runtime, taking turns.

    3 rounds ─▶ certain and narrow, or certain and brief? ─▶ as many as asked ─▶ certain?
    ─▶ twice as many

Where a recipe tells which FP32 is the fastest, FP32 runs beside itself at the last look alone: what
that shows, how noisy the machine is, matters only where the side is still open. Where it tells that
INT8 is about as fast as FP32, the first look is the only one.

What is looked at more than once may end at a lucky moment. So each look has an error of its own,
and they add up to that of one interval: by Bonferroni's inequality the true ratio is inside at
every look in `CONFIDENCE` of all runs, whatever ends them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bench.ahead import Ahead
from bench.compare import CONFIDENCE, Comparison, compare
from bench.latency import Haste, Latency, Variant, measure, with_control
from bench.models import Feeds, Model
from bench.percentiles import P90_SAMPLES
from quantize.job import Effort
from quantize.trials import Workbench

# Rounds of the first look.
FEWEST = 3
# Of each look's interval, the first one first.
_ERRORS = (0.02, 0.02, 0.01)
# Ends of an interval this far apart are narrow.
_NARROW = 1.1
# Sampling in one process where only the side is asked.
_QUICK_S = 0.1
# Inputs that are timed, in rotation.
_FEEDS = 4
# More samples in one process tell little more: processes differ by more than their medians err.
_USUAL = Haste(2 * P90_SAMPLES)
# The processes that start side by side are those of a first look at two variants.
_QUICK = Haste(P90_SAMPLES, _QUICK_S / 2, 2 * FEWEST)


@dataclass(frozen=True, slots=True)
class Question:
    """What the benchmark has to tell.

    Attributes:
        limits: Speed-ups that INT8 is held against; their side has to be certain.
        brief: Whether that is all, and no narrow interval is waited for.
        quick: Whether processes are short and start side by side, and FP32 runs beside itself at
            the last look alone; for a replay whose recipe tells which FP32 is the fastest.
        once: Whether the first look is the only one; where the side was open before, and more
            rounds would hardly tell it.
    """

    limits: tuple[float, ...]
    brief: bool = False
    quick: bool = False
    once: bool = False


@dataclass(frozen=True, slots=True)
class Timing:
    """What the benchmark found.

    Attributes:
        latencies: The fastest FP32 of the quick look first.
        comparisons: Everything against the fastest FP32 first, then INT8 against FP32 in each other
            runtime.
        control: FP32 against itself; None where a quick look told enough.
    """

    latencies: tuple[Latency, ...]
    comparisons: tuple[Comparison, ...]
    control: Comparison | None


def timed_feeds(bench: Workbench) -> tuple[Feeds, ...]:
    """What models are timed on."""
    return bench.probes[:_FEEDS]


def time_models(
    bench: Workbench,
    int8: Model,
    runtimes: tuple[Sequence[str], Sequence[str]],
    effort: Effort,
    question: Question,
    step: Callable[[int, int], None],
    ahead: Ahead | None = None,
) -> Timing:
    """Time FP32 and INT8 in the runtimes that shall run them.

    Args:
        bench: FP32, feeds and threads.
        int8: The chosen model.
        runtimes: Of FP32, the first one its own control, and of INT8.
        effort: Rounds and seconds.
        question: What ends it with fewer rounds, or with twice as many.
        step: Told processes done and in all.
        ahead: Processes that were started before, for quick rounds.
    """
    if ahead is not None and not question.quick:
        # Nothing may start beside rounds that do not take it.
        ahead.end()
    variants = [
        Variant(f"{kind} {runtime}", model, runtime, "cpu", bench.threads, bench.batch)
        for kind, model, names in (("FP32", bench.fp32, runtimes[0]), ("INT8", int8, runtimes[1]))
        for runtime in names
    ]
    seconds = min(effort.seconds, _QUICK_S) if question.quick else effort.seconds
    found: tuple[Latency, ...] = ()
    looks = _looks(effort.rounds)
    if question.once:
        looks = [(min(FEWEST, effort.rounds), 1 - CONFIDENCE)]
    for look, (rounds, error) in enumerate(looks):
        done = len(found[0].rounds) if found else 0
        more = measure(
            variants if question.quick and rounds <= effort.rounds else with_control(variants),
            timed_feeds(bench),
            rounds=rounds - done,
            seconds_per_round=seconds,
            seed=look,
            haste=replace(_QUICK, ahead=ahead) if question.quick else _USUAL,
            progress=lambda done, total, _name: step(done, total),
        )
        found = _joined(found, more)
        timing = _compared(found[: len(variants)], found[len(variants) :], int8, error)
        brief = question.brief or rounds >= effort.rounds
        if _is_certain(timing, question.limits) and (brief or _is_narrow(timing)):
            break
    return timing


def _looks(rounds: int) -> list[tuple[int, float]]:
    """After how many rounds the intervals are looked at, and what each may err in."""
    if rounds == 1:
        return [(1, 1 - CONFIDENCE)]
    last, errors = [rounds, 2 * rounds], _ERRORS
    if rounds <= FEWEST:
        return list(zip(last, (errors[0] + errors[1], errors[2]), strict=True))
    return list(zip([FEWEST, *last], errors, strict=True))


def _joined(before: tuple[Latency, ...], more: tuple[Latency, ...]) -> tuple[Latency, ...]:
    """Rounds of both looks; the control may have come with the later one."""
    both = (replace(a, rounds=a.rounds + b.rounds) for a, b in zip(before, more, strict=False))
    return (*both, *more[len(before) :])


def _compared(
    timed: Sequence[Latency], controls: Sequence[Latency], int8: Model, error: float
) -> Timing:
    noise = None
    for control in controls:
        beside = replace(timed[0], rounds=timed[0].rounds[-len(control.rounds) :])
        noise = compare(beside, control, error=error)
    pairs = _pairs(timed, int8)
    compared = tuple(compare(a, b, control=noise, error=error) for a, b in pairs)
    return Timing(tuple(timed), compared, noise)


def _fastest(timing: Timing) -> Comparison:
    """The fastest INT8 against the fastest FP32, which comes first in every pair of its own."""
    first = timing.comparisons[0].baseline
    return max(
        (c for c in timing.comparisons if c.baseline == first and c.candidate.startswith("INT8")),
        key=lambda c: c.ratio,
    )


def _is_certain(timing: Timing, limits: Sequence[float]) -> bool:
    """Whether INT8 is on one side of every limit as surely as more rounds could show it."""
    speed = _fastest(timing)
    low, high = speed.of_rounds
    if low is None or high is None:
        return not limits
    return not any(low <= limit <= high for limit in limits)


def _is_narrow(timing: Timing) -> bool:
    speed = _fastest(timing)
    low, high = speed.of_rounds
    return low is not None and high is not None and high <= _NARROW * low


def _pairs(timed: Sequence[Latency], int8: Model) -> list[tuple[Latency, Latency]]:
    fp32 = [t for t in timed if t.variant.model is not int8]
    fastest = min(fp32, key=lambda t: t.median_ms)
    pairs = [(fastest, t) for t in timed if t is not fastest]
    return pairs + [
        (a, b)
        for a in fp32
        for b in timed
        if a is not fastest and b.variant.model is int8 and a.variant.runtime == b.variant.runtime
    ]
