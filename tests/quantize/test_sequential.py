"""Early ends of evaluations: how often they err, and that they come early."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize.evaluate import Evaluation
from quantize.gate import judge
from quantize.looks import SHARES, looks_at
from quantize.sequential import ERROR, Foresight, Looks, foresight
from quantize.tolerance import Tolerance
from tests.scored import evaluation

TOTAL = 800
LIMIT = 0.02


def end_of(looks: Looks, scores: np.ndarray) -> int | None:
    """After how many samples an evaluation with these scores ends; None: with the last."""
    for done in range(1, len(scores) + 1):
        if looks.is_lost(scores[:done].tolist(), done, len(scores)):
            return done
    return None


def lost_share(drop: float, *, runs: int, binary: bool) -> tuple[float, float]:
    """How many of so many candidates with this true drop end early, and after which share."""
    rng = np.random.default_rng(1)
    ends = []
    for _ in range(runs):
        if binary:
            before = (rng.random(TOTAL) < 0.9).astype(float)
            # Changes both ways, so that the differences spread.
            loss = (0.02 + drop) / 0.9
            after = np.where(before == 1, rng.random(TOTAL) >= loss, rng.random(TOTAL) < 0.2)
        else:
            before = rng.normal(0, 1, TOTAL)
            after = before - drop - rng.normal(0, 0.2, TOTAL)
        looks = Looks(scored(before), LIMIT, 0.95, can_pass=False)
        # Only where it looks; the rest is the same.
        counts = [round(TOTAL * s) for s in SHARES]
        ends.append(
            next(
                (n for n in counts if looks.is_lost([float(x) for x in after[:n]], n, TOTAL)), None
            )
        )
    early = [e for e in ends if e is not None]
    return len(early) / runs, float(np.mean(early)) / TOTAL if early else 1.0


def scored(scores: np.ndarray) -> Evaluation:
    return evaluation([float(s) for s in scores])


@pytest.mark.parametrize(("kind", "runs"), [("binary", 1500), ("other", 60)])
def test_a_drop_at_the_limit_ends_early_no_more_often_than_stated(kind: str, runs: int) -> None:
    share, _ = lost_share(LIMIT, runs=runs, binary=kind == "binary")
    # Three standard deviations of a rate of ERROR.
    assert share <= ERROR + 3 * (ERROR * (1 - ERROR) / runs) ** 0.5


def test_drops_that_are_all_equal_say_nothing_of_rare_gains() -> None:
    """A little is lost on 98 of 100 samples and much gained on 2: less than nothing in all."""
    rng = np.random.default_rng(3)
    before = np.full(TOTAL, 0.5)
    looks = Looks(scored(before), 0.01, 0.95, can_pass=False)
    ended = 0
    for _ in range(20):
        after = np.where(rng.random(TOTAL) < 0.02, 1.5, 0.48)
        ended += end_of(looks, after) is not None
    assert ended == 0


@pytest.mark.parametrize("kind", ["binary", "other"])
def test_a_large_drop_ends_early(kind: str) -> None:
    share, after = lost_share(0.25, runs=40, binary=kind == "binary")
    assert share == 1.0
    assert after < 0.2


@given(st.integers(0, 10**6), st.floats(0.0, 0.2), st.floats(0.6, 1.0))
def test_what_is_out_of_reach_would_not_have_passed(seed: int, drop: float, right: float) -> None:
    rng = np.random.default_rng(seed)
    before = (rng.random(200) < right).astype(float)
    after = np.where(rng.random(200) < drop, 0.0, before)
    baseline = scored(before)
    looks = Looks(baseline, 0.05, 0.95, can_pass=True)
    for n in (round(200 * s) for s in SHARES):
        losses, gains = int((before[:n] > after[:n]).sum()), int((before[:n] < after[:n]).sum())
        if n and looks._out_of_reach(losses, gains, n):
            best = np.concatenate([after[:n], np.ones(200 - n)])
            verdict = judge(replace(baseline, chance=None), scored(best), Tolerance(0.05, "abs"))
            assert verdict.outcome != "pass"


def test_a_hopeless_candidate_is_out_of_reach_before_it_is_surely_lost() -> None:
    # Each of the first eighth is lost: more than all that is to come may make up for.
    before = np.ones(400)
    after = np.concatenate([np.zeros(12), np.ones(388)])
    sure = Looks(scored(before), 0.03, 0.95, can_pass=False)
    reach = replace(sure, can_pass=True)
    assert end_of(reach, after) is not None
    assert end_of(reach, np.ones(400)) is None
    assert end_of(sure, np.ones(400)) is None


def test_where_no_model_can_pass_none_is_out_of_reach() -> None:
    looks = Looks(scored(np.ones(100)), 0.01, 0.95, can_pass=False)
    assert end_of(looks, np.ones(100)) is None
    assert end_of(replace(looks, can_pass=True), np.ones(100)) == 50


def test_lower_is_better_turns_the_direction() -> None:
    rng = np.random.default_rng(0)
    before = rng.random(400)
    worse = replace(scored(before), higher_is_better=False)
    looks = Looks(worse, 0.01, 0.95, can_pass=False)
    assert end_of(looks, before + 0.5 + rng.random(400) / 100) == 50
    assert end_of(looks, before - 0.5 - rng.random(400) / 100) is None


def test_it_looks_four_times_and_not_at_a_handful() -> None:
    looks = Looks(scored(np.ones(100)), 0.0, 0.95, can_pass=False)
    assert end_of(looks, np.zeros(100)) == 50


# --- a pass that is told early ---

WIDE = 0.1  # So wide that all four looks can tell.


def told_share(drop: float, *, runs: int, binary: bool, ends: bool = False) -> tuple[float, float]:
    """How many of so many candidates with this true drop are told to pass, after which share."""
    rng = np.random.default_rng(2)
    seen = foresight(Tolerance(WIDE, "abs"), 0.95, TOTAL, ends=ends)
    assert seen is not None
    assert seen.at == (*looks_at(TOTAL), *([TOTAL] if ends else []))
    after_share = []
    for _ in range(runs):
        if binary:
            before = (rng.random(TOTAL) < 0.9).astype(float)
            loss = (0.01 + drop) / 0.9
            after = np.where(before == 1, rng.random(TOTAL) >= loss, rng.random(TOTAL) < 0.1)
        else:
            before = rng.normal(0, 1, TOTAL)
            after = before - drop - rng.normal(0, 0.2, TOTAL)
        for done in seen.at:
            verdict = seen.told(scored(before[:done]), scored(after[:done]), done)
            if verdict is not None and verdict.outcome == "pass":
                after_share.append(done / TOTAL)
                break
    return len(after_share) / runs, float(np.mean(after_share)) if after_share else 1.0


@pytest.mark.parametrize(
    ("kind", "runs", "ends"), [("binary", 600, False), ("other", 40, False), ("other", 40, True)]
)
def test_a_drop_at_the_limit_is_told_to_pass_no_more_often_than_stated(
    kind: str, runs: int, *, ends: bool
) -> None:
    share, _ = told_share(WIDE, runs=runs, binary=kind == "binary", ends=ends)
    # Three standard deviations of a rate of 0.05.
    assert share <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5


@pytest.mark.parametrize("kind", ["binary", "other"])
def test_a_good_model_is_told_early(kind: str) -> None:
    share, after = told_share(0.0, runs=20, binary=kind == "binary")
    assert share == 1.0
    assert after < 0.2


def test_a_pass_is_looked_for_where_it_can_be_seen() -> None:
    def at(limit: float, total: int) -> tuple[int, ...]:
        seen = foresight(Tolerance(limit, "pt"), 0.95, total)
        return () if seen is None else seen.at

    assert looks_at(5000) == (312, 625, 1250, 2500)
    assert at(1, 5000) == (625, 1250, 2500)
    assert at(1, 600) == (300,)
    assert at(1, 590) == at(0, 10**6) == at(100, 10**6) == ()
    assert at(90, 200) == (50, 100)


def test_an_fp32_that_may_be_guessing_has_no_early_pass() -> None:
    seen = foresight(Tolerance(0.5, "abs"), 0.95, 400)
    assert seen is not None
    good = scored(np.ones(100))
    assert seen.told(good, good, 100) is not None
    assert seen.told(good, good, 99) is None
    guesses = replace(scored(np.arange(100) % 2.0), chance=0.5)
    assert seen.told(guesses, guesses, 100) is None


# --- the verdict of a replay, which the first look that tells ends ---


def ending(limit: float, total: int, confidence: float = 0.95) -> Foresight:
    seen = foresight(Tolerance(limit, "abs"), confidence, total, ends=True)
    assert seen is not None
    return seen


def outcome_at(seen: Foresight, n: int, losses: int, gains: int) -> str:
    """Of right-or-wrong scores of which so many were lost and gained."""
    before = scored(np.repeat([1.0, 0.0, 1.0], (losses, gains, n - losses - gains)))
    after = scored(np.repeat([0.0, 1.0, 1.0], (losses, gains, n - losses - gains)))
    verdict = seen.told(before, after, n)
    return "inconclusive" if verdict is None else verdict.outcome


def chances(n: int, losing: float, gaining: float, most: int) -> np.ndarray:
    """Of so many losses and gains among n samples, by multinomial."""
    found = np.zeros((most, most))
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    for losses in range(min(most, n + 1)):
        gains = np.arange(min(most, n - losses + 1))
        rest = n - losses - gains
        p = logs[n] - logs[losses] - logs[gains] - logs[rest] + losses * math.log(losing)
        p += gains * math.log(gaining) + rest * math.log1p(-losing - gaining)
        found[losses, : gains.size] = np.exp(p)
    return found


def ends(seen: Foresight, drop: float, changed: float) -> Iterator[dict[str, float]]:
    """Exact chance of each outcome at each look, those that went on till there: no simulation."""
    losing, gaining, n = (changed + drop) / 2, (changed - drop) / 2, seen.at[-1]
    most = math.ceil(n * losing + 8 * math.sqrt(n * losing) + 8)
    alive, before = np.eye(1, most * most).reshape(most, most), 0
    for done in seen.at:
        step = chances(done - before, losing, gaining, most)
        size = (2 * most, 2 * most)
        alive = np.fft.irfft2(np.fft.rfft2(alive, size) * np.fft.rfft2(step, size), size)
        alive, before = alive[:most, :most], done
        found = {"pass": 0.0, "refuse": 0.0}
        for gains in range(min(most, done + 1)):
            top = min(most, done - gains + 1)
            first = next((x for x in range(top) if outcome_at(seen, done, x, gains) != "pass"), top)
            last = next(
                (x for x in range(top, 0, -1) if outcome_at(seen, done, x - 1, gains) != "refuse"),
                0,
            )
            found["pass"] += float(alive[:first, gains].sum())
            found["refuse"] += float(alive[last:top, gains].sum())
            alive[:first, gains] = alive[last:top, gains] = 0.0
        yield found


def test_the_last_look_of_a_replay_has_half_of_the_error() -> None:
    seen = ending(0.1, 800)
    *early, last = [look.error for n in seen.at if (look := seen.look(n)) is not None]
    assert last == pytest.approx(0.025)
    assert early == pytest.approx([0.025 / 4] * 4)


@pytest.mark.parametrize(("limit", "total", "changed"), [(0.1, 200, 0.12), (0.2, 100, 0.5)])
def test_all_looks_together_pass_a_drop_at_the_limit_no_more_often_than_stated(
    limit: float, total: int, changed: float
) -> None:
    found = list(ends(ending(limit, total), limit, changed))
    assert len(found) > 1
    assert sum(f["pass"] for f in found) <= 0.05
    # Tango's test refuses up to a quarter too often where few samples differ, with one look too.
    assert sum(f["refuse"] for f in found) <= 0.05 * 1.3
    assert all(f["pass"] > 0 for f in found)
