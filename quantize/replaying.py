"""A recipe in place of a search: one candidate, one evaluation, and how far its ranges moved."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.compare import interval_text, ratio_text
from bench.errors import UnsupportedError, UsageError
from quantize.candidates import Found, Judged
from quantize.drift import Drift, drift, seen_ranges
from quantize.evaluate import opened_beside
from quantize.gate import Verdict
from quantize.job import ROUNDS, Effort
from quantize.opening import Opening
from quantize.outputs import MOST_DB
from quantize.recipe import Recipe, RecipeFile, fit
from quantize.speeds import Speeds, contenders, deciding, difference, place_of, read_speeds
from quantize.trials import Workbench, attempt, may_serve, serves


@dataclass(frozen=True, slots=True)
class Replay:
    """A recipe that fits the graph.

    Attributes:
        file: What it was read from.
        recipe: What it decides.
        marks: Fingerprint by anchor name.
        speeds: What the benchmark of the model it comes from found; None in older recipes.
    """

    file: RecipeFile
    recipe: Recipe
    marks: dict[str, str]
    speeds: Speeds | None = None


def refuse_options(file: RecipeFile, effort: Effort) -> None:
    """Refuse what was asked for beside a recipe that decides otherwise.

    Raises:
        UsageError: It was made for another target, or by another engine.
    """
    made = file.recipe
    if effort.target not in ("auto", made.target):
        raise _contradiction(file, f"--target {effort.target}", made.target)
    # What is there by default was not asked for.
    if made.engine not in effort.engines and effort.engines != Effort().engines:
        raise _contradiction(file, f"--engine {','.join(effort.engines)}", made.engine)


def _contradiction(file: RecipeFile, asked: str, decided: str) -> UsageError:
    return UsageError(
        f"{asked}: {file.where} says {decided}, and a replay changes nothing that its recipe "
        "decides. Leave the option out, here and in vnnify.toml, or search without --recipe."
    )


def fitted(file: RecipeFile, marks: dict[str, str]) -> Replay:
    """A recipe for a graph with these fingerprints.

    Raises:
        UsageError: It was made for another graph; the message says where they differ.
    """
    return Replay(file, fit(file, marks), marks, read_speeds(file))


def drift_of(replay: Replay, bench: Workbench) -> tuple[Drift, ...]:
    """Ranges of the recipe against those of this calibration, the farthest apart first."""
    return drift(replay.file.seen, seen_ranges(bench.calibration, bench.anchors), replay.marks)


def serving_fp32(bench: Workbench) -> list[str]:
    """The runtimes that take FP32.

    Raises:
        UnsupportedError: None does.
    """
    found = [r for r in bench.runtimes if serves(r, bench.fp32, bench, MOST_DB)]
    if not found:
        raise UnsupportedError(
            f"none of {', '.join(bench.runtimes)} takes the FP32 model. Allow another --runtime."
        )
    return found


def what_to_time(
    replay: Replay, bench: Workbench, beside: Sequence[str] = (), *, exactly: bool = False
) -> tuple[Speeds | None, list[str], str]:
    """The runtimes to time FP32 in: all, unless the recipe tells which of them decide here.

    Args:
        replay: The recipe.
        bench: Where FP32 would be timed.
        beside: Runtimes to time it in besides, if they take it.
        exactly: Whether to time all in which it may be the fastest, since more is asked of INT8
            than to be faster.

    Returns:
        What of the recipe holds here, None where nothing does; runtimes, the fastest first; a line
        for the reader.

    Raises:
        UnsupportedError: None takes FP32.
    """
    known, anew = replay.speeds, "so FP32 was timed in every runtime"
    if known is None:
        return None, serving_fp32(bench), f"the recipe tells no speeds, {anew}"
    if (other := difference(known.place, place_of(bench))) is not None:
        return None, serving_fp32(bench), f"the recipe's speeds were found {other}, {anew}"
    choose = contenders if exactly else deciding
    if not (fastest := choose(known, bench.runtimes)):
        return None, serving_fp32(bench), f"the recipe tells no speed of FP32 here, {anew}"
    timed = list(dict.fromkeys([*fastest, *(r for r in beside if r in known.fp32)]))
    return known, timed, _told(known, bench.runtimes, timed)


def _told(known: Speeds, runtimes: Sequence[str], timed: Sequence[str]) -> str:
    """What a recipe says of speed, and what was measured; every ratio is over the same FP32."""
    others = [r for r in runtimes if r in known.fp32 and r != known.fastest]
    ratios = {**{f"FP32 in {r}": known.fp32[r] for r in others}, "INT8": known.int8}
    told = ", ".join(
        f"{n} {ratio_text(x)} ({interval_text(a, b)})" for n, (x, a, b) in ratios.items()
    )
    return (
        f"from the recipe, times as fast as FP32 in {known.fastest}: {told}. Timed here: INT8, and "
        f"FP32 in {' and '.join(timed)}; the fastest FP32 of this report is of these. With "
        f"--rounds {ROUNDS} everything is timed"
    )


def run_recipe(replay: Replay, bench: Workbench, judge: Opening) -> Found:
    """Make and judge the one candidate, in the runtime that served the model of the recipe.

    Nothing is timed: the benchmark that ends the run does that. A runtime opens the model twice,
    side by side: to be served, with all threads, and to be judged, with one for each sample.

    Raises:
        UnsupportedError: No runtime opens it.
        KeyboardInterrupt: A person asked for the end before there was a verdict.
    """
    trial = attempt(bench, replay.recipe, "recipe")
    quantized, model = trial.quantized, trial.quantized.model
    fitting = [r for r in bench.runtimes if may_serve(r, replay.recipe, bench)]
    runtimes = sorted(fitting, key=lambda r: r != replay.file.served_by)
    for runtime in runtimes:
        with opened_beside(model, judge.execution(quantized, runtime)) as opened:
            if not serves(runtime, model, bench, trial.noise_db):
                continue
            outcome = judge(quantized, runtime, opened=opened)
        if outcome is None:
            raise KeyboardInterrupt
        judged = Judged(trial, runtime, *outcome)
        return Found(judged, (judged,), (trial,), {}, "the recipe was replayed")
    raise UnsupportedError(
        f"{replay.file.where}: its model opens in none of {', '.join(bench.runtimes)}. Allow "
        "another --runtime."
    )


def early_note(verdict: Verdict) -> str | None:
    """That a verdict stands on a part of the samples; None where it stands on all."""
    look = verdict.look
    if look is None or look.done == look.at[-1]:
        return None
    return (
        f"judged by {look.done:,} of {look.at[-1]:,} samples, drawn at random, which told enough. "
        f"With --rounds {ROUNDS} all of them judge"
    )
