"""The benchmark that ends a run: FP32 and INT8 in every runtime, taking turns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bench.compare import Comparison, compare
from bench.latency import Latency, Variant, measure
from bench.models import Model
from quantize.job import Effort
from quantize.trials import Workbench

# Rounds whose medians differ by this factor were disturbed by something else on the machine.
_DISAGREE = 1.5


@dataclass(frozen=True, slots=True)
class Timing:
    """What the benchmark found.

    Attributes:
        latencies: The fastest FP32 of the quick look first.
        comparisons: Everything against the fastest FP32 first, then INT8 against FP32 in each other
            runtime.
        control: FP32 against itself.
    """

    latencies: tuple[Latency, ...]
    comparisons: tuple[Comparison, ...]
    control: Comparison


def time_models(
    bench: Workbench,
    int8: Model,
    fp32_in: Sequence[str],
    int8_in: Sequence[str],
    effort: Effort,
    step: Callable[[int, int], None],
) -> Timing:
    """Time FP32 and INT8 in the runtimes that shall run them.

    Args:
        bench: FP32, feeds and threads.
        int8: The chosen model.
        fp32_in: Runtimes of FP32; the first one is its own control.
        int8_in: Those of INT8.
        effort: Rounds and seconds; as many rounds again if the first ones tell nothing.
        step: Told processes done and in all.
    """
    variants = [
        Variant(f"{kind} {runtime}", model, runtime, "cpu", bench.threads, bench.batch)
        for kind, model, runtimes in (("FP32", bench.fp32, fp32_in), ("INT8", int8, int8_in))
        for runtime in runtimes
    ]
    *timed, control = _measure(variants, bench, effort, step, seed=0)
    if _is_open(timed, int8):
        more = _measure(variants, bench, effort, step, seed=1)
        *timed, control = (
            replace(a, rounds=a.rounds + b.rounds)
            for a, b in zip((*timed, control), more, strict=True)
        )
    noise = compare(timed[0], control)
    pairs = _pairs(timed, int8)
    return Timing(tuple(timed), tuple(compare(a, b, control=noise) for a, b in pairs), noise)


def _measure(
    variants: Sequence[Variant],
    bench: Workbench,
    effort: Effort,
    step: Callable[[int, int], None],
    *,
    seed: int,
) -> tuple[Latency, ...]:
    return measure(
        variants,
        bench.probes[:4],
        rounds=effort.rounds,
        seconds_per_round=effort.seconds,
        seed=seed,
        control=True,
        progress=lambda done, total, _name: step(done, total),
    )


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


def _is_open(timed: Sequence[Latency], int8: Model) -> bool:
    """Whether rounds disagree so much that as many more are worth their time.

    Not where every round of one INT8 variant is faster than every one of FP32: more rounds would
    not make it the slower one.
    """
    rounds = [[r.median_ns for r in x.rounds] for x in timed]
    disagree = any(max(x) > _DISAGREE * min(x) for x in rounds)
    fp32 = [
        ns for x, t in zip(rounds, timed, strict=True) if t.variant.model is not int8 for ns in x
    ]
    slowest = min(max(x) for x, t in zip(rounds, timed, strict=True) if t.variant.model is int8)
    return disagree and slowest >= min(fp32)
