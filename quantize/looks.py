"""Looks at a growing number of samples: when they come, and how they share one error.

What is looked at more than once may end at a lucky moment. So each look has an error of its own,
and they add up to that of one verdict: by Bonferroni's inequality all of them together err no more
often than that, however much they depend on each other. The bounds of the look that ended it hold
with the same confidence, since those of every look do.

Where only a look in between may tell, the looks share the error equally. Where the last one, at all
samples, may tell too, it has half of it: at 95 %, its bounds are those of 97.5 %. The idea to look
early at a small error, and to keep the rest for the end, is that of Haybittle (British Journal of
Radiology 44 (1971) 793-797) and of Peto and others (British Journal of Cancer 34 (1976) 585-612).
"""

from dataclasses import dataclass

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
# Of the error of a search, for its first candidate; see `quantize.shares`.
FIRST = 0.9
# Of the error, for all looks before the last one.
_BEFORE_THE_LAST = 0.5


@dataclass(frozen=True, slots=True)
class Look:
    """One of several looks, and what it may err in.

    Attributes:
        done: Samples that have run.
        at: Numbers of samples at which it is looked, rising.
        error: Of each of the two bounds at this look.
    """

    done: int
    at: tuple[int, ...]
    error: float


def looks_at(total: int) -> tuple[int, ...]:
    """Numbers of samples after which it is looked before all have run, rising."""
    return tuple(sorted({round(total * share) for share in SHARES}))


def share(error: float, early: int, *, ends: bool) -> float:
    """What each early look may err in.

    Args:
        error: Of all looks together.
        early: How many there are before all samples have run.
        ends: Whether there is a last one at all samples, with the rest of the error.
    """
    return error * (_BEFORE_THE_LAST if ends else 1.0) / early


def level_of(confidence: float, part: float, look: Look | None) -> float:
    """Confidence of one bound of a verdict that has a part of the error, or is one of its looks."""
    return 1 - (part * (1 - confidence) if look is None else look.error)
