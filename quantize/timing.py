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
    fp32_ms: dict[str, float],
    int8_ms: dict[str, float],
    effort: Effort,
    step: Callable[[int, int], None],
) -> Timing:
    """Time FP32 and INT8 in every runtime that takes them.

    Args:
        bench: FP32, feeds and threads.
        int8: The chosen model.
        fp32_ms: Quick medians of FP32 by runtime.
        int8_ms: The same of INT8.
        effort: Rounds and seconds; as many rounds again if the first ones disagree.
        step: Told processes done and in all.
    """
    variants = [
        Variant(f"{kind} {runtime}", model, runtime, "cpu", bench.threads, bench.batch)
        for kind, model, known in (("FP32", bench.fp32, fp32_ms), ("INT8", int8, int8_ms))
        for runtime in bench.runtimes
        if runtime in known
    ]
    # The fastest FP32 comes first: it is the one to beat, and its own control.
    variants.sort(key=lambda v: (v.model is int8, fp32_ms.get(v.runtime, 0.0)))
    *timed, control = _measure(variants, bench, effort, step, seed=0)
    if _noisy(timed):
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


def _noisy(timed: Sequence[Latency]) -> bool:
    """Whether a variant's rounds disagree so much that as many more are worth their time."""
    return any(
        max(r.median_ns for r in x.rounds) > _DISAGREE * min(r.median_ns for r in x.rounds)
        for x in timed
    )
