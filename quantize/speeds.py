"""Speeds: what the benchmark of a recipe's model found, and whether it holds here.

Which runtime is the fastest for FP32 depends on the graph, the size of the inputs, the machine and
the versions, and not on the weights. So a recipe keeps it, and a replay in a place like that one
times the runtimes that may be the fastest, and no others. What it says of INT8's own speed is for
the reader: that is measured again, always.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from bench.compare import Comparison
from bench.errors import UsageError
from bench.machine import describe
from bench.runtimes import find_runtime
from bench.store import record_of
from quantize.recipe import RecipeFile
from quantize.timing import Timing, timed_feeds
from quantize.trials import Workbench

# FP32 in a runtime that surely stays below this share of the fastest one's speed is not timed
# again, and what is closer than that is no clear difference. Less than 1: two CPUs of one class, or
# two trainings, may differ by some per cent.
_SURELY = 0.9
# Inputs this many times larger or smaller are other work.
_ALIKE = 2.0


class Ratio(NamedTuple):
    """How many times as fast, and the ends of its interval."""

    times: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Place:
    """What decides, besides the graph, which runtime is the fastest.

    Attributes:
        isa_class: Of the CPU.
        threads: Inside one inference.
        values: Numbers that one inference is given, mean over those that are timed.
        versions: By runtime that may serve.
    """

    isa_class: str
    threads: int
    values: int
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Speeds:
    """What a benchmark found.

    Attributes:
        place: Where.
        fp32: FP32 by runtime, against the fastest FP32. One that `place` has and this lacks
            refused the model.
        int8: INT8 where it is served, against the same.
    """

    place: Place
    fp32: dict[str, Ratio]
    int8: Ratio

    def __post_init__(self) -> None:
        """Refuse what is no ratio within its interval."""
        for name, found in (*self.fp32.items(), ("int8", self.int8)):
            if not 0 < found.low <= found.times <= found.high:
                raise ValueError(f"{name} has {list(found)}, no ratio within its interval")

    @property
    def fastest(self) -> str:
        """The runtime whose FP32 all others are held against."""
        return max(self.fp32, key=lambda r: self.fp32[r].times)


def place_of(bench: Workbench) -> Place:
    """Where a benchmark runs."""
    counts = [sum(a.size for a in feeds.values()) for feeds in timed_feeds(bench)]
    return Place(
        isa_class=describe().isa_class,
        threads=bench.threads,
        values=round(sum(counts) / len(counts)),
        versions={r: find_runtime(r).version() for r in bench.runtimes},
    )


def speeds_of(timing: Timing, served_by: str, bench: Workbench) -> Speeds | None:
    """What a recipe keeps of a benchmark of all runtimes; None where it left a ratio open."""
    fastest = timing.comparisons[0].baseline
    own = [c for c in timing.comparisons if c.baseline == fastest]
    ratios = {c.candidate: found for c in own if (found := _ratio(c)) is not None}
    int8 = ratios.get(f"INT8 {served_by}")
    if int8 is None or len(ratios) < len(own):
        return None
    ratios = {fastest: Ratio(1.0, 1.0, 1.0), **ratios}
    fp32 = {n.removeprefix("FP32 "): r for n, r in ratios.items() if n.startswith("FP32 ")}
    return Speeds(place_of(bench), fp32, int8)


def _ratio(found: Comparison) -> Ratio | None:
    if found.low is None or found.high is None or found.is_disturbed:
        return None
    return Ratio(found.ratio, found.low, found.high)


def to_toml(speeds: Speeds) -> str:
    """The table that a recipe holds, `[made.speed]`."""
    place = speeds.place
    versions = ", ".join(f'"{r}" = "{v}"' for r, v in place.versions.items())
    fp32 = ", ".join(f'"{r}" = {_numbers(x)}' for r, x in speeds.fp32.items())
    lines = (
        "# How fast FP32 was in each runtime, and INT8, against the fastest FP32; and where.",
        "[made.speed]",
        f'"isa_class" = "{place.isa_class}"',
        f'"threads" = {place.threads}',
        f'"values" = {place.values}',
        f'"versions" = {{ {versions} }}',
        f'"fp32" = {{ {fp32} }}',
        f'"int8" = {_numbers(speeds.int8)}',
    )
    return "\n".join(lines) + "\n"


def _numbers(ratio: Ratio) -> str:
    return f"[{', '.join(repr(float(f'{r:.6g}')) for r in ratio)}]"


def read_speeds(recipe: RecipeFile) -> Speeds | None:
    """What a recipe says of speed; None where it says nothing, as older ones do.

    Raises:
        UsageError: It is not what `to_toml` writes.
    """
    if "speed" not in recipe.made:
        return None
    try:
        rest = dict(recipe.made["speed"])
        place = {f.name: rest.pop(f.name) for f in fields(Place) if f.name in rest}
        return record_of(Speeds, {"place": place, **rest})
    except (TypeError, ValueError) as e:
        raise UsageError(
            f"{recipe.where}: [made.speed] is damaged: {e}. Take the table out to replay the rest "
            "of the recipe; every runtime is timed then."
        ) from e


def difference(then: Place, now: Place) -> str | None:
    """Why speeds of one place say nothing of another, to follow "…"; None where they do."""
    if then.isa_class != now.isa_class:
        return f"on {then.isa_class}, and this CPU is {now.isa_class}"
    if then.threads != now.threads:
        return f"with {then.threads} threads, and now it is {now.threads}"
    for runtime, version in now.versions.items():
        if (before := then.versions.get(runtime)) is None:
            return f"without {runtime}"
        if before != version:
            return f"with {runtime} {before}, and now it is {version}"
    if not then.values <= _ALIKE * now.values <= _ALIKE**2 * then.values:
        return f"on inputs of {then.values:,} values, and now they have {now.values:,}"
    return None


def is_close(speeds: Speeds, beside: str) -> bool:
    """Whether INT8 is about as fast as FP32 in the runtime `beside`, or may be here."""
    int8, fp32 = speeds.int8, speeds.fp32[beside].times
    return _SURELY * int8.low <= fp32 <= int8.high / _SURELY


def contenders(speeds: Speeds, runtimes: Sequence[str]) -> list[str]:
    """Of `runtimes`, those in which FP32 may be the fastest; the one that was comes first."""
    known = {r: speeds.fp32[r] for r in runtimes if r in speeds.fp32}
    order = sorted(known, key=lambda r: -known[r].times)
    return [r for r in order if known[r].high >= _SURELY * known[order[0]].low]


def deciding(speeds: Speeds, runtimes: Sequence[str]) -> list[str]:
    """Of `runtimes`, those in which FP32 may decide whether INT8 is faster than all of them.

    Of those in which it may be the fastest, the one that was does. The others do not where INT8 was
    clearly slower than that one, or clearly faster than them.
    """
    first, *others = contenders(speeds, runtimes) or [""]
    if not first or speeds.int8.high < _SURELY * speeds.fp32[first].times:
        return [first] if first else []
    return [first, *(r for r in others if speeds.fp32[r].high > _SURELY * speeds.int8.low)]


def to_beat(speeds: Speeds, runtimes: Sequence[str], timed: Sequence[str]) -> float:
    """How many times as fast as the first of `timed` INT8 has to be, to be faster than all FP32.

    Args:
        speeds: Those that are not timed count with the upper ends of their intervals.
        runtimes: That may serve.
        timed: Of them, those in which FP32 is timed.
    """
    untimed = (speeds.fp32[r].high for r in contenders(speeds, runtimes) if r not in timed)
    return max([1.0, *(high / speeds.fp32[timed[0]].times for high in untimed)])
