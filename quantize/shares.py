"""How much of a run's error each of its verdicts may make.

The candidates of a search are judged on the same samples, and it ends with one that passes. Were
each of ten at the limit and passed by chance in 5 % of cases, the search would find one that passes
in up to 43 (`make bench-gate` has the simulation). So they share what the run may err in:

- The first has nine tenths of it. After each candidate that failed the next has half of the rest.
- A first model that is noisy has a twentieth, and leaves nine tenths of the rest to the next one:
  what is made in the plainest way must not take from what is made with care.
- A pass takes nothing, since what is judged after it could only err if it did not: tests in an
  order that is not chosen by their results need no correction while they succeed.
- What is surely above the limit takes nothing either, since it had no chance to pass.

Which candidate comes next, and what it has, follows from noise on other samples, from the clock and
from which ones failed, not from how they scored. The shares add up to one, so by Bonferroni's
inequality a run passes a model that is not within the limit in at most 1 - confidence of all cases.
To leave out sure losses adds a hundredth of that at most, where candidates have nothing in common,
and nothing where they lose the same samples (J. Tian, A. Ramdas: Online control of the familywise
error rate, Statistical Methods in Medical Research 30 (2021) 976-993).
"""

import math
from dataclasses import dataclass, field
from statistics import NormalDist

from quantize.gate import Verdict
from quantize.looks import FIRST

_UNLIKELY = 0.05
_LATER = 0.5
_SURE = 0.99


@dataclass(slots=True)
class Shares:
    """Of the candidates of one run, in the order in which they are judged.

    Attributes:
        given: Share of each candidate that was judged, by what names it.
        failed: Names of those that failed and might have passed.
        doubted: Names of those of which little was expected.
    """

    given: dict[tuple[str, str], float] = field(default_factory=dict, init=False)
    failed: set[tuple[str, str]] = field(default_factory=set, init=False)
    doubted: set[tuple[str, str]] = field(default_factory=set, init=False)

    def of(self, name: tuple[str, str], *, unlikely: bool = False) -> float:
        """The share of a candidate, the same whenever it is asked for.

        Args:
            name: Of the candidate.
            unlikely: Whether little is expected of it.
        """
        if name not in self.given:
            self.given[name] = _UNLIKELY * self._rest if unlikely else self.next
            if unlikely:
                self.doubted.add(name)
        return self.given[name]

    @property
    def next(self) -> float:
        """The share of a candidate that was not asked for yet, and may well pass."""
        return (_LATER if self.failed - self.doubted else FIRST) * self._rest

    @property
    def after_next(self) -> float:
        """The share of the one after that, should the next one fail."""
        return _LATER * (self._rest - self.next)

    @property
    def _rest(self) -> float:
        """What those that failed have left."""
        # Rounded once: names in a set come in another order in each process.
        return 1 - math.fsum(self.given[n] for n in self.failed)

    def note(self, name: tuple[str, str], verdict: Verdict) -> None:
        """Learn what became of it."""
        if verdict.outcome != "pass" and not is_surely_lost(verdict):
            self.failed.add(name)


def is_surely_lost(verdict: Verdict) -> bool:
    """Whether the drop is above the limit with 99 % confidence, and so had no chance to pass."""
    quantile = NormalDist().inv_cdf
    below = (verdict.drop - verdict.low) * quantile(_SURE) / quantile(verdict.level)
    return verdict.outcome == "refuse" and verdict.drop - below > verdict.limit


def bounds_note(verdict: Verdict) -> str:
    """Why its bounds are wider than those of a single test; nothing where they are not."""
    alone, whole = (f"{x * 100:.4g} %" for x in (verdict.level, verdict.confidence))
    if verdict.look is not None:
        *early, last = (f"{n:,}" for n in verdict.look.at)
        return (
            f" Looks were to come after {', '.join(early)} and all {last} samples; this is the one "
            f"after {verdict.look.done:,}. Its bounds alone hold with {alone}, so that those of "
            f"all looks together do with {whole}."
        )
    if verdict.share == 1:
        return ""
    return (
        f" A search may judge several candidates on these samples; so that all of them together "
        f"err as rarely, the bounds of this one are those of {alone}."
    )


def later_note(verdict: Verdict) -> list[str]:
    """What a reader has to know first of one that has not the share of the first."""
    if verdict.share >= FIRST:
        return []
    told = (
        "Of many candidates that are judged on the same samples one would pass by chance, so the "
        f"bounds of this one are those of {verdict.level * 100:.4g} %."
    )
    return [told]
