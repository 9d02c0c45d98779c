"""Which variants of a plan are made, and which is kept; trials are made up."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantize import variants
from quantize.quantizers import QuantizedModel
from quantize.recipe import Recipe
from quantize.trials import Trial
from quantize.variants import RANGE_CHOICES, best_variant, smoothed

PLAN = Recipe("vnni", "mse", correct_bias=True, modes={"a": "static"})


class World:
    """Makes trials with the noise that a function of the recipe says, and remembers recipes."""

    def __init__(self, folder: Path, noise: Callable[[Recipe], float], **bench: Any) -> None:
        self.folder, self.noise = folder, noise
        self.made: list[Recipe] = []
        usual = {"starts": (), "late": False, "pinned": frozenset(), "rounding": "nearest"}
        usual |= {"anchors": (), "threads": 1, "deadline_s": float("inf")}
        self.bench: Any = SimpleNamespace(**{**usual, **bench})

    def attempt(self, _bench: object, recipe: Recipe, name: str) -> Trial:
        self.made.append(recipe)
        path = self.folder / f"{len(self.made)}.onnx"
        path.touch()
        model: Any = SimpleNamespace(sha256=path.name, path=path)
        return Trial(name, QuantizedModel(model, recipe, (), ""), self.noise(recipe), {})


Build = Callable[..., World]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    def build(noise: Callable[[Recipe], float], **bench: Any) -> World:
        made = World(tmp_path, noise, **bench)
        monkeypatch.setattr(variants, "attempt_or_none", made.attempt)
        return made

    return build


def start(*, muls: int) -> Any:
    return SimpleNamespace(muls=muls, strengths={"a": 0.5})


def test_the_quietest_ranges_are_kept_and_files_of_the_others_go(world: Build) -> None:
    w = world(lambda r: {"mse": 30.0, "minmax": 40.0, "percentile": 35.0}[r.ranges])
    found = best_variant(w.bench, PLAN, "static")
    assert found is not None
    assert found.quantized.recipe.ranges == "minmax"
    assert [p.name for p in w.folder.iterdir()] == ["2.onnx"]


def test_channels_evened_out_by_muls_are_no_variant_of_a_plan(world: Build) -> None:
    w = world(lambda r: 50.0 if r.strengths else 40.0, starts=[start(muls=1)])
    best_variant(w.bench, PLAN, "static")
    assert not any(r.strengths for r in w.made)
    w = world(lambda r: 50.0 if r.strengths else 40.0, starts=[start(muls=0)])
    found = best_variant(w.bench, PLAN, "static")
    assert found is not None
    assert found.quantized.recipe.strengths == {"a": 0.5}


def test_what_is_late_is_not_refined(world: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "refined", lambda *_: pytest.fail("refined"))
    w = world(lambda _: 10.0, late=True, rounding="learned")
    assert best_variant(w.bench, PLAN, "static") is not None
    assert len(w.made) == 1


def test_muls_have_to_gain_a_decibel(world: Build) -> None:
    def found(noise_db: float) -> list[Trial]:
        w = world(lambda _: noise_db, starts=[start(muls=1)])
        return smoothed(w.bench, [replace(w.attempt(None, PLAN, "static"), noise_db=30.0)])

    assert found(30.9) == []
    (kept,) = found(31.0)
    assert kept.name == "static, smoothed"
    assert kept.quantized.recipe.strengths == {"a": 0.5}


def test_ranges_of_smoothed_candidates_are_chosen_once(world: Build) -> None:
    w = world(lambda r: 40.0 + (r.ranges == "minmax"), starts=[start(muls=1)])
    trials = [replace(w.attempt(None, PLAN, n), noise_db=30.0) for n in ("one", "two")]
    w.made.clear()
    assert [t.name for t in smoothed(w.bench, trials)] == ["one, smoothed", "two, smoothed"]
    assert [r.ranges for r in w.made] == [*RANGE_CHOICES, "minmax"]


def test_smoothed_candidates_learn_their_rounding_where_the_others_did(world: Build) -> None:
    def roundings(rounding: Any) -> list[str]:
        w = world(lambda _: 40.0, starts=[start(muls=1)])
        recipe = replace(PLAN, rounding=rounding)
        trial = replace(w.attempt(None, recipe, "static"), noise_db=30.0)
        w.made.clear()
        smoothed(w.bench, [trial])
        return [r.rounding for r in w.made]

    assert roundings("nearest") == ["nearest"] * 3
    assert roundings("learned") == ["nearest"] * 3 + ["learned"]


def test_rounding_that_would_be_learned_too_late_is_not(world: Build) -> None:
    def learned(op: str) -> bool:
        huge = SimpleNamespace(op=op, weight_count=10**16)
        w = world(lambda _: 10.0, anchors=(huge,), deadline_s=1e9, rounding="learned")
        best_variant(w.bench, replace(PLAN, modes={"a": "dynamic"}), "dynamic")
        return w.made[-1].rounding == "learned"

    assert not learned("MatMul")
    # Rounding of an LSTM is never learned, so it takes no time.
    assert learned("LSTM")
