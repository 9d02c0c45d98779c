"""A recipe in place of a search: one candidate, one evaluation, and how far its ranges moved."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import InputError, UnsupportedError, UsageError
from quantize.candidates import Found, Judge, Judged
from quantize.drift import Drift, Seen, drift, read_seen, seen_ranges
from quantize.gate import Verdict
from quantize.job import ROUNDS
from quantize.outputs import MOST_DB
from quantize.recipe import Recipe, from_toml, served_by
from quantize.speeds import Speeds, contenders, deciding, difference, place_of, read_speeds
from quantize.trials import Workbench, attempt, may_serve, serves


@dataclass(frozen=True, slots=True)
class Replay:
    """A recipe that fits the graph.

    Attributes:
        path: Its file.
        recipe: What it decides.
        seen: The ranges it was found with, by fingerprint.
        marks: Fingerprint by anchor name.
        served_by: The runtime that served the model it comes from.
        speeds: What the benchmark of that model found; None in older recipes.
    """

    path: Path
    recipe: Recipe
    seen: Seen
    marks: dict[str, str]
    served_by: str
    speeds: Speeds | None = None


def recipe_text(path: Path) -> str:
    """What a recipe file holds.

    Raises:
        InputError: It cannot be read.
        UsageError: It is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as e:
        raise InputError(f"recipe {path}: cannot be read: {e.strerror}.") from e
    except UnicodeDecodeError as e:
        raise UsageError(f"recipe {path}: not TOML: {e}.") from e


def fitted(path: Path, marks: dict[str, str]) -> Replay:
    """The recipe in a file, for a graph with these fingerprints.

    Raises:
        UsageError: It was made for another graph; the message says where they differ.
    """
    text = recipe_text(path)
    recipe = from_toml(text, marks, str(path))
    seen, speeds = read_seen(text, str(path)), read_speeds(text, str(path))
    return Replay(path, recipe, seen, marks, served_by(text, recipe), speeds)


def drift_of(replay: Replay, bench: Workbench) -> tuple[Drift, ...]:
    """Ranges of the recipe against those of this calibration, the farthest apart first."""
    return drift(replay.seen, seen_ranges(bench.calibration, bench.anchors), replay.marks)


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


# What a recipe says of the FP32 that it holds all others against.
_SAME = (1.0, 1.0, 1.0)


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
    found = {f"FP32 in {r}": known.fp32[r] for r in runtimes if r in known.fp32}
    against = next((n for n, x in found.items() if x == _SAME), "the fastest FP32")
    ratios = {**found, "INT8": known.int8}
    ratios.pop(against, None)
    told = ", ".join(f"{n} {x:.2f} ({a:.2f} to {b:.2f})" for n, (x, a, b) in ratios.items())
    return (
        f"from the recipe, times as fast as {against}: {told}. Timed here: INT8, and FP32 in "
        f"{' and '.join(timed)}; the fastest FP32 of this report is of these. With --rounds "
        f"{ROUNDS} everything is timed"
    )


def run_recipe(replay: Replay, bench: Workbench, judge: Judge) -> Found:
    """Make and judge the one candidate, in the runtime that served the model of the recipe.

    Nothing is timed: the benchmark that ends the run does that.

    Raises:
        UnsupportedError: No runtime opens it.
        KeyboardInterrupt: A person asked for the end before there was a verdict.
    """
    trial = attempt(bench, replay.recipe, "recipe")
    model = trial.quantized.model
    fitting = [r for r in bench.runtimes if may_serve(r, replay.recipe)]
    runtimes = sorted(fitting, key=lambda r: r != replay.served_by)
    runtime = next((r for r in runtimes if serves(r, model, bench, trial.noise_db)), None)
    if runtime is None:
        raise UnsupportedError(
            f"recipe {replay.path}: its model opens in none of {', '.join(bench.runtimes)}. Allow "
            "another --runtime."
        )
    if (outcome := judge(trial.quantized, runtime)) is None:
        raise KeyboardInterrupt
    judged = Judged(trial, runtime, *outcome)
    return Found(judged, (judged,), (trial,), {}, "the recipe was replayed")


def early_note(verdict: Verdict) -> str | None:
    """That a verdict stands on a part of the samples; None where it stands on all."""
    look = verdict.look
    if look is None or look.done == look.at[-1]:
        return None
    return (
        f"judged by {look.done:,} of {look.at[-1]:,} samples, drawn at random, which told enough. "
        f"With --rounds {ROUNDS} all of them judge"
    )
