"""Parts of the data, judged each by itself and all together."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.errors import UsageError
from quantize.checks import slices_check
from quantize.job import Limits
from quantize.looks import FIRST
from quantize.slices import (
    Division,
    Looked,
    divide,
    hidden_losses,
    judge_slices,
    look_into,
    slice_limit,
)
from tests.int8 import samples_of
from tests.scored import evaluation

CONFIDENCE = 0.95


def spread(count: int, drop: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Drops around this one."""
    return drop + 0.01 * np.sin(np.arange(count))


def judged(columns: dict[str, list[str]], drops: Any, limit: float = 0.1, **options: Any) -> Any:
    drops = np.asarray(drops)
    facts = {"binary": False, "bounded": True}
    before, after = evaluation(np.full(drops.size, 0.9), **facts), evaluation(0.9 - drops, **facts)
    return judge_slices(before, after, columns, limit, CONFIDENCE, **options)


def test_each_value_of_each_column_is_a_slice_and_the_surely_worst_comes_first() -> None:
    # `b` lost more on the mean, but of few samples that say little.
    columns = {"light": ["a"] * 200 + ["b"] * 6 + ["c"] * 200}
    wild = np.array([0.9, -0.5, 0.8, -0.4, 0.7, 0.6])
    found = judged(columns, np.concatenate([spread(200, 0.3), wild, spread(200, 0.0)]))
    assert [s.name for s in found] == ["light=a", "light=c", "light=b"]
    assert [s.outcome for s in found] == ["refuse", "pass", "inconclusive"]
    assert found[2].drop > found[0].drop
    assert [s.n for s in found] == [200, 200, 6]


def test_slices_of_fewer_than_five_samples_are_not_judged() -> None:
    found = judged({"k": ["a"] * 4 + ["b"] * 5}, spread(9, 0.0))
    assert [s.value for s in found] == ["b"]
    assert judged({"k": ["a"] * 4}, spread(4, 0.0)) == ()


def test_what_is_not_finite_has_no_slices() -> None:
    before, after = evaluation([1.0] * 9), evaluation([1.0] * 9, nonfinite=1)
    assert judge_slices(before, after, {"k": ["a"] * 9}, 0.1, CONFIDENCE) == ()


def test_among_many_slices_each_needs_clearer_evidence_to_be_refused() -> None:
    rng = np.random.default_rng(0)
    drops = 0.13 + 0.1 * rng.standard_normal(40)
    (alone,) = judged({"k": ["a"] * 40}, drops)
    assert alone.outcome == "refuse"
    others = [str(i // 10) for i in range(1000)]
    found = judged({"k": ["a"] * 40 + others}, np.concatenate([drops, spread(1000, 0.0)]))
    (among,) = (s for s in found if s.value == "a")
    assert among.outcome == "inconclusive"
    assert among.low < alone.low
    # That it passes is claimed of each by itself.
    assert among.high == alone.high


def test_of_a_later_candidate_a_slice_needs_so_many_new_samples_as_if_judged_alone() -> None:
    columns, drops = {"k": ["a"] * 40}, spread(40, 0.0985)
    (alone,) = judged(columns, drops)
    (first,) = judged(columns, drops, share=FIRST)
    (later,) = judged(columns, drops, share=0.01)
    assert [s.outcome for s in (alone, first, later)] == ["inconclusive"] * 3
    assert later.low < alone.low
    assert later.high > first.high > alone.high
    # The first gets more of the same samples, at its own level.
    assert first.samples_needed > alone.samples_needed
    assert later.samples_needed == alone.samples_needed
    baseline = evaluation([0.9] * 40, binary=False, bounded=True)
    told = slices_check([later], 0, 0.1, baseline, alone=True).message
    count = f"{alone.samples_needed:,}"
    assert told.endswith(
        f" About {count} new samples of each would settle it: vnnify gate judges this model alone "
        "by them."
    )
    told = slices_check([alone], 0, 0.1, baseline).message
    assert told.endswith(f" About {count} samples of each would settle it.")


def test_units_are_counted_within_each_slice() -> None:
    columns = {"k": ["a"] * 20 + ["b"] * 20}
    found = judged(columns, spread(40, 0.0), units=[i // 2 for i in range(40)])
    assert {s.value: s.n for s in found} == {"a": 10, "b": 10}


def test_a_slice_in_which_guessing_does_as_well_is_judged_all_the_same() -> None:
    before = evaluation([1.0] * 5 + [0.0] * 5, chance=0.1)
    found = judge_slices(before, before, {"k": ["a"] * 5 + ["b"] * 5}, 0.5, CONFIDENCE)
    assert [s.value for s in found] == ["a", "b"]


def test_losses_that_a_mean_hides_are_told_the_first_five() -> None:
    columns = {"k": [str(i // 50) for i in range(350)]}
    found = judged(columns, spread(350, 0.3))
    baseline = evaluation([0.9] * 350, binary=False, bounded=True)
    told = hidden_losses(found, 0.1, baseline)
    assert len(told) == 6
    assert told[0].startswith("k=")
    assert "on 50 samples, surely more than" in told[0]
    assert "(corrected for 7 slices)" in told[0]
    assert told[-1] == "2 more slices lost too much."
    assert hidden_losses(found, 0.5, baseline) == ()
    assert hidden_losses(found[:6], 0.1, baseline)[5:] == ("1 more slice lost too much.",)
    assert len(hidden_losses(found[:5], 0.1, baseline)) == 5
    # Of a drop that is the limit nobody is sure that it is more.
    assert hidden_losses([replace(found[0], low=0.1)], 0.1, baseline) == ()


@pytest.mark.parametrize(("text", "limit"), [(None, None), ("5pt", 0.05), ("10%", 0.08)])
def test_slices_have_a_limit_of_their_own(text: str | None, limit: float | None) -> None:
    found = slice_limit(Limits(max_slice_drop=text), evaluation([1.0] * 8 + [0.0] * 2))
    assert found == pytest.approx(limit)


@pytest.mark.parametrize("facts", [{"binary": True}, {"bounded": True}])
def test_a_limit_in_points_fits_scores_that_lie_between_0_and_1(facts: dict[str, bool]) -> None:
    asked = Limits(max_slice_drop="5pt")
    scores = evaluation([1.0] * 10, **({"binary": False, "bounded": False} | facts))
    assert slice_limit(asked, scores) == pytest.approx(0.05)
    with pytest.raises(UsageError):
        slice_limit(asked, evaluation([7.0] * 10, binary=False, bounded=False))


def test_a_column_of_units_divides_nothing(tmp_path: Path) -> None:
    file = tmp_path / "s.csv"
    file.write_text("sample,light,person\n0,day,p\n1,day,q\n2,night,p\n")
    samples = samples_of([{}] * 3, ())
    found = divide(Limits(slices=file, unit="person"), samples, 3)
    assert found == Division({"light": ["day", "day", "night"]}, (0, 1, 0))
    assert divide(Limits(), samples, 3) == Division()
    with pytest.raises(UsageError, match=r"--unit 'persons': no such .*mean 'person'"):
        divide(Limits(slices=file, unit="persons"), samples, 3)


def test_a_column_called_class_counts_instead_of_the_labels() -> None:
    labels = [0, 1] * 6
    samples = replace(samples_of([{}] * 12, ()), labelled=True, _label=labels.__getitem__)
    scores = evaluation([1.0] * 12)
    by_label = look_into((scores, scores), samples, Division(), 0.5, CONFIDENCE)
    assert {s.name for s in by_label.slices} == {"class=0", "class=1"}
    own = Division({"class": ["x"] * 8 + ["y"] * 4})
    found = look_into((scores, scores), samples, own, 0.5, CONFIDENCE)
    assert {s.name for s in found.slices} == {"class=x"}
    assert (found.small, by_label.small) == (1, 0)


def test_nothing_is_told_of_an_evaluation_that_ended_early(tmp_path: Path) -> None:
    file = tmp_path / "flips.csv"
    pair = evaluation([1.0] * 6), evaluation([0.0] * 5)
    found = look_into(pair, samples_of([{}] * 6, ()), Division(), 0.5, CONFIDENCE, file)
    assert (found.slices, found.flips) == ((), ())
    assert file.read_text().count("\n") == 1
    # Nor where it cannot be told which of its scores are those of a sample.
    uneven = evaluation([1.0] * 9)
    samples = replace(samples_of([{}] * 6, ()), labelled=True, _label=([0] * 6).__getitem__)
    assert look_into((uneven, uneven), samples, Division(), 0.5, CONFIDENCE) == Looked()
