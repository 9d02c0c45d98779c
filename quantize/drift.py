"""Drift: how far the ranges of a retrained model lie from those that its recipe was found with.

A recipe keeps the range that calibration saw at the input of every layer. Replayed on another
training of the model it still fits by structure; how well it fits by value is said here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from quantize.anchors import Anchor
from quantize.calibrate import Calibration

# A range that became this many times wider or narrower is worth a line.
_FAR = 1.5

Seen: TypeAlias = Mapping[str, tuple[float, float]]
"""Lowest and highest value at a layer's input, by the layer's fingerprint or name."""


@dataclass(frozen=True, slots=True)
class Drift:
    """The range at one layer's input, then and now.

    Attributes:
        name: Of the layer.
        low_before: Lowest value that the recipe's calibration saw.
        high_before: Highest.
        low: Lowest value seen now.
        high: Highest.
    """

    name: str
    low_before: float
    high_before: float
    low: float
    high: float

    @property
    def factor(self) -> float:
        """How many times wider the range is now; below 1 where it is narrower."""
        before, now = self.high_before - self.low_before, self.high - self.low
        return now / before if before > 0 and now > 0 else 1.0


def seen_ranges(
    calibration: Calibration, anchors: Sequence[Anchor]
) -> dict[str, tuple[float, float]]:
    """What calibration saw at each layer's input, by the layer's name."""
    found = {}
    for anchor in anchors:
        stats = calibration.tensors.get(anchor.data)
        if stats is not None and stats.count:
            found[anchor.name] = (float(stats.low), float(stats.high))
    return found


def drift(before: Seen, now: Seen, marks: Mapping[str, str]) -> tuple[Drift, ...]:
    """Of every layer that both know, the one that moved farthest first.

    Args:
        before: By fingerprint.
        now: By name.
        marks: Fingerprint by name.
    """
    both = [(n, before[marks[n]], r) for n, r in now.items() if marks.get(n) in before]
    found = [Drift(n, *old, *new) for n, old, new in both]
    return tuple(sorted(found, key=lambda d: -abs(math.log(d.factor))))


def drift_note(found: Sequence[Drift]) -> str | None:
    """One line for a reader, or None where nothing can be compared."""
    if not found:
        return None
    worst = found[0]
    far = sum(max(d.factor, 1 / d.factor) > _FAR for d in found)
    return (
        f"ranges against those of the recipe: {far} of {len(found)} are more than {_FAR:g} times "
        f"wider or narrower; the farthest is at {worst.name!r}: {worst.low_before:.4g} to "
        f"{worst.high_before:.4g} then, {worst.low:.4g} to {worst.high:.4g} now"
    )
