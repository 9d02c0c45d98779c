"""A recipe in place of a search: one candidate, one evaluation, and how far its ranges moved."""

from dataclasses import dataclass
from pathlib import Path

from bench.errors import UnsupportedError, UsageError
from quantize.candidates import Found, Judge, Judged
from quantize.drift import Drift, Seen, drift, read_seen, seen_ranges
from quantize.recipe import Recipe, from_toml
from quantize.trials import Workbench, attempt, time_quickly


@dataclass(frozen=True, slots=True)
class Replay:
    """A recipe that fits the graph.

    Attributes:
        path: Its file.
        recipe: What it decides.
        seen: The ranges it was found with, by fingerprint.
        marks: Fingerprint by anchor name.
    """

    path: Path
    recipe: Recipe
    seen: Seen
    marks: dict[str, str]


def recipe_text(path: Path) -> str:
    """What a recipe file holds.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as e:
        raise UsageError(f"recipe {path}: cannot be read: {e.strerror}.") from e
    except UnicodeDecodeError as e:
        raise UsageError(f"recipe {path}: not TOML: {e}.") from e


def fitted(path: Path, marks: dict[str, str]) -> Replay:
    """The recipe in a file, for a graph with these fingerprints.

    Raises:
        UsageError: It was made for another graph; the message says where they differ.
    """
    text = recipe_text(path)
    recipe = from_toml(text, marks, str(path))
    return Replay(path, recipe, read_seen(text, str(path)), marks)


def drift_of(replay: Replay, bench: Workbench) -> tuple[Drift, ...]:
    """Ranges of the recipe against those of this calibration, the farthest apart first."""
    return drift(replay.seen, seen_ranges(bench.calibration, bench.anchors), replay.marks)


def run_recipe(replay: Replay, bench: Workbench, judge: Judge) -> Found:
    """Make and judge the one candidate.

    Raises:
        UnsupportedError: No runtime opens it.
        KeyboardInterrupt: A person asked for the end before there was a verdict.
    """
    timed, fp32_ms = time_quickly(bench, [attempt(bench, replay.recipe, "recipe")])
    runtime = timed[0].fastest
    if runtime is None:
        raise UnsupportedError(
            f"recipe {replay.path}: its model opens in none of {', '.join(bench.runtimes)}. Allow "
            "another --runtime."
        )
    if (outcome := judge(timed[0].quantized, runtime)) is None:
        raise KeyboardInterrupt
    judged = Judged(timed[0], runtime, *outcome)
    return Found(judged, (judged,), timed, fp32_ms, "the recipe was replayed")
