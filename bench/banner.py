"""What a run of `vnnify bench` learned, in a few sentences: the best against the best."""

from collections.abc import Iterator, Sequence

from bench.compare import Comparison, compare, interval_text, ratio_text
from bench.cost import costs, verdict
from bench.cost_document import cost_figures, rate
from bench.latency import Latency
from bench.load import optimum
from bench.pictures import batches_of, short_name
from bench.render import Banner, KeyFigure
from bench.report import BenchReport, supplies

_MOST_BATCHES = 4
"""Lines about further batch sizes."""


def banner(report: BenchReport) -> Banner:
    """The headline compares the fastest variant with the fastest one of the first model.

    Against a slow runtime of the first model, a faster runtime alone would look like a faster
    model.
    """
    baseline = report.latencies[0]
    fastest, rival, found = _race(report, baseline.variant.batch)
    figures = [_figure("baseline", baseline)]
    if rival is not baseline and rival is not fastest:
        same = rival.variant.model == baseline.variant.model
        figures.append(_figure(f"{'first' if same else 'other'} model at best", rival))
    if fastest is not baseline:
        figures.append(_figure("fastest", fastest))
    if found is not None:
        note = f"{interval_text(found.low, found.high)}, against {short_name(rival.variant)}"
        figures.append(KeyFigure("times as fast", f"{ratio_text(found.ratio)}×", note))
    lines = [
        *_further_batches(report),
        *_under_load(report),
        *_elsewhere(report, fastest),
        *_what_counts(report),
    ]
    if report.prices:
        paid = costs(supplies(report), report.prices, report.utilisation)
        told = verdict(paid, report.prices, report.utilisation, report.p99_ms, report.measured)
        lines = [*told, *lines]
        figures += cost_figures(paid)
    at = f" at batch {baseline.variant.batch}" if len(batches_of(report)) > 1 else ""
    headline = _headline(fastest, rival, found, at)
    return Banner("info", headline, (*lines, *map(str, report.missing)), tuple(figures))


def _speedup(comparison: Comparison) -> str:
    interval = interval_text(comparison.low, comparison.high)
    return f"{ratio_text(comparison.ratio)}× ({interval})"


def _race(report: BenchReport, batch: int) -> tuple[Latency, Latency, Comparison | None]:
    """The fastest of one batch size, what it is held against, and by how much it is faster.

    That is the fastest variant of the first model; where the first model is itself the fastest, of
    the others; where it is alone, its first variant. Only what may be compared is looked at.
    """
    alike = [x for x in report.latencies if x.variant.batch == batch]
    first, fastest = alike[0], min(alike, key=lambda x: x.median_ms)
    model = first.variant.model.sha256
    like = [
        x
        for x in alike
        if x.variant.device != fastest.variant.device or _threads(x) == _threads(fastest)
    ]
    own = [x for x in like if x.variant.model.sha256 == model]
    others = [x for x in like if x.variant.model.sha256 != model]
    rivals = own if fastest in others else others or [x for x in own if x is first]
    rival = min(rivals, key=lambda x: x.median_ms, default=fastest)
    if rival is fastest:
        return fastest, rival, None
    control = next((c for c in report.controls if c.baseline == first.variant.name), None)
    return fastest, rival, compare(rival, fastest, control=control)


def _threads(latency: Latency) -> int:
    return latency.variant.threads


def _figure(label: str, x: Latency) -> KeyFigure:
    return KeyFigure(label, f"{x.median_ms:.3g} ms", short_name(x.variant))


def _headline(fastest: Latency, rival: Latency, found: Comparison | None, at: str) -> str:
    """What is the fastest; only a ratio whose interval is above 1 is said to be one."""
    name = short_name(fastest.variant)
    if found is None:
        return f"{name} is the fastest{at}: {fastest.median_ms:.3g} ms"
    other = short_name(rival.variant)
    if found.low is not None and found.low > 1 and found.sound:
        speed = f"{ratio_text(found.ratio)}× as fast as {other}"
        return f"{name} is the fastest{at}: {fastest.median_ms:.3g} ms, {speed}"
    why = "one round has no interval" if found.low is None else "the interval holds 1"
    if not found.sound:
        why = "a model against itself was not equally fast, so this machine is too noisy"
    return (
        f"{name} had the shortest median{at}, {fastest.median_ms:.3g} ms, but it is not certain "
        f"that it is faster than {other}: {why}"
    )


def _further_batches(report: BenchReport) -> Iterator[str]:
    """The race of each other batch size, or of the one with the most throughput of many."""
    others = batches_of(report)[1:]
    races = [(batch, *_race(report, batch)) for batch in others]
    if len(races) > _MOST_BATCHES:
        races = [max(races, key=lambda race: race[1].per_second)]
    for batch, fastest, rival, found in races:
        against = short_name(rival.variant)
        speed = "" if found is None else f", {_speedup(found)} as fast as {against}"
        yield (
            f"Batch {batch}: {short_name(fastest.variant)} has the shortest median, "
            f"{fastest.median_ms:.3g} ms or {rate(fastest.per_second)} samples per second{speed}."
        )


def _under_load(report: BenchReport) -> Iterator[str]:
    best = optimum([x for x in report.loads if x.offered_per_second is None])
    if best is not None:
        yield (
            f"Most throughput: {best.variant.name}, {rate(best.per_second)} samples per second "
            f"with {best.shape}."
        )


def _elsewhere(report: BenchReport, fastest: Latency) -> Iterator[str]:
    """The fastest of each other machine beside the fastest here, of the same batch size."""
    for other in report.merged:
        alike = [x for x in other.latencies if x.variant.batch == fastest.variant.batch]
        # What a caller waits for includes the copies; rows without them are for those who know why.
        whole = [x for x in alike if x.variant.copies] or alike
        theirs = min(whole, key=lambda x: x.median_ms, default=None)
        if theirs is None:
            continue
        place = ", ".join(other.machine.gpus) or other.machine.cpu
        ratio = fastest.median_ms / theirs.median_ms
        how = f"{ratio:.3g} times as fast" if ratio >= 1 else f"{1 / ratio:.3g} times as long"
        yield (
            f"{other.source}: {short_name(theirs.variant)} takes {theirs.median_ms:.3g} ms on "
            f"{place}, {how} as the fastest here; machines share no noise, so there is no interval."
        )


def _what_counts(report: BenchReport) -> Iterator[str]:
    """What the numbers include, and what speaks against them."""
    yield "Arrays in, arrays out: copies to and from a device are counted."
    held = _fixed_batch(report.latencies[0])
    if held:
        yield (
            f"Rates count inferences. The first axis of every input is fixed at {held}: if that is "
            f"a batch, --batch {held} counts samples."
        )
    for control in report.controls:
        yield f"Noise: {control.baseline} against itself, {_speedup(control)}."
    every: Sequence[Latency] = (*report.latencies, *(x for o in report.merged for x in o.latencies))
    if any(x.variant.device != "cpu" for x in every):
        yield "This version had not run on a GPU when it was made: check its GPU rows."
    doubted = sum(bool(c.doubts) for c in report.comparisons)
    if doubted:
        yield (
            f"{doubted} of {len(report.comparisons)} comparisons have something that speaks "
            "against them; it is named below them."
        )


def _fixed_batch(x: Latency) -> int:
    """The fixed first axis that all inputs share, where it may be a batch that was not told; or 0.

    It may be time as well, so it is only said.
    """
    firsts = {s.shape[0] for s in x.variant.model.inputs if s.shape}
    (first,) = firsts if len(firsts) == 1 else (0,)
    return first if isinstance(first, int) and first > 1 and x.variant.batch == 1 else 0
