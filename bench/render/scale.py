"""Axes: which range, which round numbers on it, and where a value lies."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeGuard

from bench.escape import MINUS, number

# Beyond these, differences and powers overflow; no measurement lives there.
_HUGE = 1e100
_TINY = 1e-100


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of values laid over a range of pixels.

    Attributes:
        low: Value at `start`.
        high: Value at `end`; always above `low`.
        start: Pixel of `low`.
        end: Pixel of `high`; below `start` on an upright axis.
        log: Whether equal distances are equal ratios; `low` is positive then.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Pixel of a value; one outside the range lies on its nearest end."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def drawable(value: float | None) -> TypeGuard[float]:
    """Whether a value can be placed on an axis."""
    return value is not None and math.isfinite(value) and abs(value) < _HUGE


def fit_axis(
    values: Iterable[float],
    start: float,
    end: float,
    *,
    zero: bool = False,
    log: bool = False,
) -> Axis:
    """An axis that holds all drawable values, with a little room where it does not begin at zero.

    Args:
        values: What it has to hold; none gives 0 to 1.
        start: Pixel of its low end.
        end: Pixel of its high end.
        zero: It holds zero too, as bars need.
        log: Logarithmic, if all values are positive and `zero` is not asked.
    """
    kept = [v for v in values if drawable(v)]
    if zero:
        kept.append(0.0)
    low, high = (min(kept), max(kept)) if kept else (0.0, 1.0)
    if log and not zero and low > _TINY:
        ratio = max(high / low, 1.02)
        return Axis(low / ratio**0.04, low * ratio**1.04, start, end, log=True)
    if high - low < max(1e-9 * max(abs(low), abs(high)), _TINY):
        room = 0.05 * max(abs(low), abs(high)) or 1.0
        low, high = (low, high + room) if zero and low == 0 else (low - room, high + room)
    room = 0.04 * (high - low)
    return Axis(
        low - (0.0 if zero and low == 0 else room),
        high + (0.0 if zero and high == 0 else room),
        start,
        end,
    )


def ticks(axis: Axis, count: int) -> tuple[float, ...]:
    """About `count` round numbers on an axis: multiples of 1, 2 or 5 times a power of ten.

    A logarithmic axis has whole decades; where fewer than three fit, 1-2-5 in each; where even that
    leaves fewer than three, the linear ones.
    """
    if axis.log:
        for digits in ((1,), (1, 2, 5)):
            found = _decades(axis, digits)
            if len(found) >= 3:
                return found[:: math.ceil(len(found) / max(count, 2))]
    step = _step(axis, count)
    first = math.ceil(axis.low / step - 1e-9)
    last = math.floor(axis.high / step + 1e-9)
    return tuple(k * step for k in range(first, last + 1))


def tick_labels(axis: Axis, values: tuple[float, ...]) -> tuple[str, ...]:
    """An axis' ticks as text, with just the decimals that tell them apart."""
    if axis.log:
        short = tuple(_minus(number(v)) for v in values)
        # A narrow axis far from zero has linear ticks, which three digits may not tell apart.
        if len(set(short)) == len(values):
            return short
    gaps = [b - a for a, b in pairwise(values)]
    step = min(gaps, default=1.0)
    size = max((abs(v) for v in values), default=0.0)
    if size >= 1e7 or (0 < step < 1e-4):
        # A difference of logarithms: the quotient can overflow.
        digits = min(max(math.ceil(math.log10(size) - math.log10(step)), 0) + 1, 12)
        return tuple(_minus(f"{v:.{digits}g}") for v in values)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return tuple(_minus(f"{v + 0.0:,.{decimals}f}") for v in values)


def _decades(axis: Axis, digits: tuple[int, ...]) -> tuple[float, ...]:
    powers = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
    candidates = (d * 10.0**p for p in powers for d in digits)
    return tuple(v for v in candidates if axis.low <= v <= axis.high)


def _step(axis: Axis, count: int) -> float:
    raw = (axis.high - axis.low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))


def _minus(text: str) -> str:
    zero = not text.strip("-0.,")
    return text.lstrip("-") if zero else text.replace("-", MINUS)
