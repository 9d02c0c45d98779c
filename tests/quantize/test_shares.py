"""What candidates of one search may err in: together no more than a single verdict."""

import math
from dataclasses import replace

import pytest

from quantize.gate import Verdict, judge
from quantize.looks import FIRST
from quantize.shares import Shares, is_surely_lost
from tests.benchmarks.gate import run_errors, searching
from tests.scored import POINT, counted


def verdict(losses: int, gains: int, n: int = 1000, share: float = 1.0) -> Verdict:
    return judge(*counted(n, losses, gains), POINT, share=share)


GOOD, UNDECIDED, LOST = verdict(2, 2), verdict(15, 5), verdict(80, 5)


def given(*outcomes: Verdict) -> list[float]:
    """Shares of candidates with these verdicts, and of the one after them."""
    shares, found = Shares(), []
    for i, outcome in enumerate(outcomes):
        found.append(shares.of((str(i), "")))
        shares.note((str(i), ""), outcome)
    return [*found, shares.of(("next", ""))]


def test_the_made_up_verdicts_are_what_they_are_called() -> None:
    assert [v.outcome for v in (GOOD, UNDECIDED, LOST)] == ["pass", "inconclusive", "refuse"]


def test_each_that_might_have_passed_leaves_half_of_the_rest() -> None:
    assert given(UNDECIDED, UNDECIDED, UNDECIDED) == pytest.approx([0.9, 0.05, 0.025, 0.0125])
    assert math.fsum(given(*[UNDECIDED] * 50)) <= 1.0


def test_a_share_does_not_hang_on_the_order_in_which_a_set_has_its_names() -> None:
    shares = Shares()
    for i in range(50):
        shares.of((str(i), ""))
        shares.note((str(i), ""), UNDECIDED)
    names, rests = sorted(shares.failed), set()
    for start in range(50):
        shares.failed = [*names[start:], *names[:start]]  # type: ignore[assignment]
        rests.add(shares._rest)
    assert len(rests) == 1


def test_what_is_unlikely_to_pass_takes_little_from_the_next() -> None:
    shares = Shares()
    assert shares.of(("rough", ""), unlikely=True) == pytest.approx(0.05)
    assert shares.of(("rough", "")) == pytest.approx(0.05)
    shares.note(("rough", ""), UNDECIDED)
    for name, share in (("a", 0.855), ("b", 0.0475), ("c", 0.02375)):
        assert shares.of((name, "")) == pytest.approx(share)
        shares.note((name, ""), UNDECIDED)
    assert sum(shares.given.values()) < 1


def test_an_unlikely_candidate_after_one_that_failed_takes_little_of_the_rest() -> None:
    shares = Shares()
    shares.of(("a", ""))
    shares.note(("a", ""), UNDECIDED)
    assert shares.of(("rough", ""), unlikely=True) == pytest.approx(0.005)


def test_neither_a_pass_nor_a_sure_loss_takes_anything() -> None:
    assert given(GOOD, LOST, GOOD) == [FIRST] * 4
    assert given(LOST, UNDECIDED, GOOD, LOST) == pytest.approx([0.9, 0.9, 0.05, 0.05, 0.05])


def test_a_candidate_keeps_its_share_and_counts_once() -> None:
    shares = Shares()
    for _ in range(3):
        assert shares.of(("a", "")) == FIRST
        shares.note(("a", ""), UNDECIDED)
    assert shares.of(("b", "")) == pytest.approx(0.05)


def test_a_loss_is_sure_at_99_per_cent() -> None:
    assert is_surely_lost(LOST)
    assert not is_surely_lost(UNDECIDED)
    # At 95 % the drop is above the limit, at 99 % it is not.
    barely = next(v for v in (verdict(k, 0) for k in range(10, 40)) if v.outcome == "refuse")
    assert not is_surely_lost(barely)
    strict = judge(*counted(1000, barely.losses, 0), POINT, confidence=0.99)
    assert strict.outcome != "refuse"
    # A bound that is stricter already is taken as it is.
    assert is_surely_lost(replace(LOST, share=0.01))


def test_a_share_moves_the_bounds_and_not_what_they_are_called() -> None:
    whole, part = verdict(2, 0), verdict(2, 0, share=0.05)
    assert (whole.outcome, part.outcome) == ("pass", "inconclusive")
    assert part.level == pytest.approx(0.9975)
    assert part.high == judge(*counted(1000, 2, 0), POINT, confidence=0.9975).high
    assert "95 % confidence" in part.reason


def test_a_later_candidate_asks_for_new_samples_that_judge_it_alone() -> None:
    later = verdict(3, 2, share=0.05)
    assert later.outcome == "inconclusive"
    assert later.samples_needed is not None
    # Fewer than it had, since these judged others before.
    assert 299 <= later.samples_needed < 1000
    assert later.reason.endswith(
        f"About {later.samples_needed:,} new samples would settle it if that stays so: vnnify gate "
        "judges this model alone by them."
    )
    times = 2
    enough = verdict(3 * times, 2 * times, times * later.samples_needed)
    assert enough.outcome == "pass"
    # The first of a new run has what the first of this one had.
    first = verdict(6, 4, 500, share=FIRST)
    alone = verdict(6, 4, 500, share=0.05)
    assert first.samples_needed is not None
    assert alone.samples_needed is not None
    assert alone.samples_needed < first.samples_needed
    assert "new" not in first.reason


def test_a_later_candidate_without_a_loss_asks_for_those_of_the_zero_loss_rule() -> None:
    later = verdict(0, 0, 400, share=0.05)
    assert (later.outcome, later.samples_needed) == ("inconclusive", 299)


def test_a_refusal_has_the_whole_error() -> None:
    fp32, lost = counted(1000, 18, 0)
    judging = searching(fp32, Shares())
    first, later = (
        replace(e, model_sha256=n) for e, n in ((counted(1000, 15, 5)[1], "a"), (lost, "b"))
    )
    assert judging.told(first)[1].outcome == "inconclusive"
    found = judging.told(later)[1]
    assert judge(fp32, lost, POINT, share=0.05).outcome == "inconclusive"
    assert (found.outcome, found.share) == ("refuse", 1.0)


@pytest.mark.parametrize("alike", [0.0, 0.5])
def test_a_whole_run_errs_no_more_often_than_stated(alike: float) -> None:
    runs = 300
    # Three standard deviations of a rate of 0.05.
    assert run_errors(500, alike, runs) <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5
    assert run_errors(500, alike, runs, shared=False) > 0.2
