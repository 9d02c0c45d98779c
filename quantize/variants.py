"""Variants of one plan: which ranges, evened-out channels and rounding make the least noise.

plan ─▶ ranges ─▶ evened-out channels ─▶ ranges per tensor ─▶ learned rounding ─▶ Trial
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter

from quantize.anchors import Mode
from quantize.quantizers.choosing import least_error_ranges
from quantize.recipe import ROUNDED, Recipe
from quantize.trials import Start, Trial, Workbench, attempt, attempt_or_none

logger = logging.getLogger(__name__)

# Tried in this order; what is left out of it was never best where these were not.
RANGE_CHOICES = ("mse", "minmax", "percentile")
# Above this, ranges per tensor and learned rounding wait until accuracy turns out too low.
_QUIET_DB = 30.0
# What is chosen layer by layer has less error on hundreds of rows of each; few probes may say
# otherwise by chance (by 1 dB where 64 more samples said 0.3 to 3.5 dB less noise).
_SLACK_DB = 1.0
# Operations of learned rounding in a second of one core: 14 s for a layer of 6,000 x 6,000.
_LEARNED_PER_S = 3e10
# What Muls have to gain for a candidate of their own.
_SMOOTH_GAIN_DB = 1.0


def best_variant(bench: Workbench, plan: Recipe, name: str) -> Trial | None:
    """The candidate with the least noise: evened channels, ranges, bias correction, rounding.

    Args:
        bench: What all candidates share.
        plan: A recipe whose modes, target and fusion are given; the rest is chosen.
        name: Of the candidate.

    Returns:
        None where nothing can be quantized this way.
    """
    if plan.engine != "native":
        return _of_other(bench, plan, name)
    methods = RANGE_CHOICES if plan.is_static else RANGE_CHOICES[:1]
    best: Trial | None = None
    for ranges in methods:
        best = _improved(bench, best, replace(plan, ranges=ranges, correct_bias=True), name)
    for start in (s for s in bench.starts if not s.muls):
        best = _evened(bench, best, start, replace(plan, correct_bias=True), name)
    return best if best is None or _is_enough(bench, best) else refined(bench, best, plan.modes)


def _of_other(bench: Workbench, plan: Recipe, name: str) -> Trial | None:
    """The candidate of another engine, which chooses ranges by itself."""
    if bench.engines == (plan.engine,):
        # There is nothing else to offer, so what it says is the answer.
        trial: Trial | None = attempt(bench, plan, name)
    else:
        trial = attempt_or_none(bench, plan, name)
    if trial is None or plan.engine not in ROUNDED or _is_enough(bench, trial):
        return trial
    return refined(bench, trial, plan.modes)


def _is_enough(bench: Workbench, trial: Trial) -> bool:
    """Whether a candidate stays as it is, unless accuracy turns out too low."""
    return bench.late or (bench.rounding != "learned" and trial.noise_db >= _QUIET_DB)


def _evened(
    bench: Workbench, best: Trial | None, start: Start, plan: Recipe, name: str
) -> Trial | None:
    """The best so far, or a candidate of a graph with evened-out channels.

    Where these do not help with the ranges that suit the best so far, other ranges do not either.
    """
    first = plan.ranges if best is None else best.quantized.recipe.ranges
    others = (r for r in RANGE_CHOICES if plan.is_static and r != first)
    for ranges in (first, *others):
        recipe = replace(plan, ranges=ranges, strengths=start.strengths)
        found = _improved(bench, best, recipe, name)
        if found is best and ranges == first:
            break
        best = found
    return best


def refined(bench: Workbench, trial: Trial, modes: dict[str, Mode]) -> Trial:
    """The candidate with ranges per tensor and learned rounding, each unless it does harm.

    Args:
        bench: What all candidates share.
        trial: A candidate of an engine whose weights the recipe rounds.
        modes: That were asked for; the trial's own lack what turned out unusable.
    """
    if trial.quantized.recipe.engine == "native" and trial.quantized.recipe.is_static:
        trial = _by_tensor(bench, trial, modes)
    return _learned(bench, trial, modes) if bench.rounding != "nearest" else trial


def _by_tensor(bench: Workbench, trial: Trial, modes: dict[str, Mode]) -> Trial:
    """The candidate with a range method per tensor, unless that makes clearly more noise."""
    recipe = replace(trial.quantized.recipe, modes=modes)
    start = bench.start(recipe)
    methods = least_error_ranges(start.model, start.anchors, start.calibration, recipe)
    if not methods:
        return trial
    recipe = replace(recipe, ranges_by_tensor=methods)
    return _improved(bench, trial, recipe, trial.name, _SLACK_DB) or trial


def _improved(
    bench: Workbench, best: Trial | None, recipe: Recipe, name: str, slack_db: float = 0.0
) -> Trial | None:
    """The best so far, or another candidate with less noise; once it is late, the best so far."""
    if best is not None and bench.late:
        return best
    return _quieter(bench, best, attempt_or_none(bench, recipe, name), slack_db)


def _learned(bench: Workbench, trial: Trial, modes: dict[str, Mode]) -> Trial:
    """The candidate with learned rounding, unless it is noisier or would come too late."""
    if perf_counter() + _learning_s(bench) > bench.deadline_s:
        logger.info("%s: rounding is not learned, which would take too long", trial.name)
        return trial
    recipe = replace(trial.quantized.recipe, modes=modes, rounding="learned")
    return _improved(bench, trial, recipe, trial.name, _SLACK_DB) or trial


def _learning_s(bench: Workbench) -> float:
    """What learned rounding takes at least: of a square matrix, twice its size to the power 1.5."""
    sizes = [a.weight_count for a in bench.anchors if a.op != "LSTM"]
    operations = sum(2 * count * math.sqrt(count) for count in sizes)
    return operations / (_LEARNED_PER_S * max(bench.threads, 1))


def smoothed(bench: Workbench, trials: Sequence[Trial]) -> list[Trial]:
    """The same candidates with channels evened out by Muls too, where that gains enough.

    They stand beside the others, since each takes a little longer. Ranges are chosen on the first.

    Args:
        bench: What all candidates share.
        trials: Others, whose recipes are kept but for the ranges.
    """
    found: list[Trial] = []
    chosen: tuple[str, ...] = RANGE_CHOICES
    for start in (s for s in bench.starts if s.muls):
        for trial in (t for t in trials if t.quantized.recipe.engine == "native"):
            if bench.late:
                return found
            name, recipe = f"{trial.name}, smoothed", trial.quantized.recipe
            recipe = replace(recipe, ranges_by_tensor={})
            like = replace(recipe, strengths=start.strengths, rounding="nearest")
            best: Trial | None = None
            for ranges in chosen if recipe.is_static else chosen[:1]:
                best = _improved(bench, best, replace(like, ranges=ranges), name)
            if best is None:
                continue
            if recipe.is_static:
                chosen = (best.quantized.recipe.ranges,)
            if recipe.rounding == "learned":
                best = _learned(bench, best, recipe.modes)
            if best.noise_db >= trial.noise_db + _SMOOTH_GAIN_DB:
                found.append(best)
    return found


def _quieter(
    bench: Workbench, one: Trial | None, other: Trial | None, slack_db: float = 0.0
) -> Trial | None:
    """The trial with less noise; the other's files are removed, since models may be large.

    Args:
        bench: Says which files stay.
        one: The best so far.
        other: What may take its place.
        slack_db: By how much the other may be noisier and still take it.
    """
    if one is None or other is None:
        return one or other
    takes_place = other.noise_db > one.noise_db - slack_db
    better, worse = (other, one) if takes_place else (one, other)
    if worse.quantized.model.sha256 in bench.pinned:
        return better
    path = worse.quantized.model.path
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    return better
