"""The first model that is judged, before anything is timed."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantize import early, making
from quantize.candidates import Aim, Found, Judged
from quantize.early import first_models
from quantize.evaluate import Evaluation
from quantize.gate import Verdict
from quantize.quantizers import QuantizedModel
from quantize.recipe import Recipe
from quantize.search import search
from quantize.trials import Trial, Workbench
from quantize.variants import _quieter
from tests.quantize.test_search import CALLED, EVALUATION, LIMIT, World, anchor, model, verdict

Build = Callable[..., "Early"]


class Early:
    """A `World` in which one look may come before the search."""

    def __init__(self, world: World, noises: Sequence[float]) -> None:
        self.world, self.noises, self.tries = world, list(noises), 0
        self.kept: list[Judged] = []
        self.lines: list[str] = []
        self.unlikely: list[bool] = []
        self.takes = lambda _runtime: True
        anchors = tuple(anchor(n, world.ops.get(n, "Conv")) for n in world.drops)
        rest: Any = (None, (), (), world.runtimes, 1, Path())
        self.bench = Workbench(model("fp32"), anchors, *rest)
        self.aim = Aim(
            can_pass=lambda: not world.few,
            need_speed=True,
            say=self.lines.append,
            keep=self.kept.append,
            stopped=lambda: world.stopped(),
        )

    def attempt(self, bench: Workbench, recipe: Recipe, name: str) -> Trial | None:
        made = self.world.attempt_or_none(bench, recipe, name)
        noise_db = self.noises[min(self.tries, len(self.noises) - 1)]
        self.tries += 1
        return replace(made, noise_db=noise_db) if made is not None else None

    def judge(
        self, quantized: QuantizedModel, runtime: str, *, unlikely: bool = False
    ) -> tuple[Evaluation, Verdict]:
        self.unlikely.append(unlikely)
        return self.world.judge(quantized, runtime)

    def first(self) -> tuple[Judged, ...]:
        return first_models(self.bench, self.judge, "portable", self.aim)

    def search(self, first: Sequence[Judged]) -> Found:
        return search(self.bench, self.judge, ("portable",), self.aim, first)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Build:
    def build(drops: dict[str, float], noises: Sequence[float] = (30.0,), **options: Any) -> Early:
        made = Early(World(drops, **options), noises)
        for module, name in CALLED:
            monkeypatch.setattr(module, name, getattr(made.world, name))
        monkeypatch.setattr(early, "attempt_or_none", made.attempt)
        monkeypatch.setattr(early, "expectation", made.world.expectation)
        monkeypatch.setattr(early, "serves", lambda runtime, *_: made.takes(runtime))
        return made

    return build


def test_one_model_is_judged_and_kept_before_anything_is_timed(world: Build) -> None:
    w = world({"a": 0.1, "b": 0.1})
    (found,) = w.first()
    assert found.verdict.outcome == "pass"
    assert found.trial.latency_ms == {}
    assert w.world.timings == 0
    assert w.kept == [found]
    assert w.lines == ["static, portable, first in onnxruntime: pass, drop 0.2 (limit 1)"]


def test_the_first_model_is_made_in_the_plainest_way(world: Build) -> None:
    w = world({"a": 0.1})
    w.first()
    (made,) = w.world.made
    assert (made.ranges, made.correct_bias, made.rounding) == ("mse", False, "nearest")
    assert made.strengths == made.ranges_by_tensor == {}


def test_where_the_first_fails_a_quieter_one_follows(world: Build) -> None:
    w = world({"a": 0.1, "g": 1.0}, noises=(10.0, 20.0), ops={"g": "Gemm"})
    failed, passed = w.first()
    assert failed.verdict.outcome == "refuse"
    assert passed.verdict.outcome == "pass"
    assert passed.trial.quantized.recipe.modes == {"a": "static", "g": "dynamic"}
    assert w.kept == [failed, passed]


def test_little_is_expected_of_a_first_model_that_is_noisy(world: Build) -> None:
    def doubts(*noises: float) -> list[bool]:
        w = world({"a": 9.0, "g": 9.0}, noises=noises, ops={"g": "Gemm"})
        assert len(w.first()) == 2
        return w.unlikely

    assert doubts(20.0, 30.0) == [False, False]
    assert doubts(19.0, 20.0) == [True, False]
    assert doubts(10.0, 19.0) == [True, True]


def test_what_is_no_quieter_than_what_failed_is_not_judged(world: Build) -> None:
    w = world({"a": 0.1, "g": 1.0}, noises=(10.0, 10.0, 9.0), ops={"g": "Gemm"})
    assert len(w.first()) == len(w.world.judged) == 1


def test_at_most_two_are_judged_first(world: Build) -> None:
    w = world({"a": 9.0, "g": 9.0}, noises=(10.0, 20.0, 30.0), ops={"g": "Gemm"})
    assert [j.verdict.outcome for j in w.first()] == ["refuse", "refuse"]


def test_noise_is_not_judged_first(world: Build) -> None:
    assert world({"a": 0.1}, noises=(-1.0,)).first() == ()


def test_the_same_numbers_for_another_runtime_are_no_second_chance(world: Build) -> None:
    w = world({"a": 9.0}, noises=(10.0, 20.0), runtimes=("onnxruntime", "openvino"))
    assert len(w.first()) == 1


def test_pairs_for_another_runtime_are_tried_where_nothing_was_judged(world: Build) -> None:
    w = world({"a": 0.1}, noises=(-1.0, 20.0), runtimes=("onnxruntime", "openvino"))
    (found,) = w.first()
    assert (found.runtime, found.trial.quantized.recipe.fused_for) == ("openvino", "openvino")


def test_a_second_model_that_does_worse_is_not_kept(world: Build) -> None:
    w = world({"a": 9.0, "g": 9.0}, noises=(10.0, 20.0), ops={"g": "Gemm"})
    drops = iter((2.0, 3.0))
    w.judge = lambda *_, **__: (EVALUATION, verdict("refuse", next(drops)))  # type: ignore[method-assign]
    first, second = w.first()
    assert (first.verdict.drop, second.verdict.drop) == (2.0, 3.0)
    assert w.kept == [first]


def test_a_runtime_that_refuses_the_model_does_not_judge_it(world: Build) -> None:
    w = world({"a": 0.1}, runtimes=("onnxruntime", "openvino"))
    w.takes = lambda runtime: runtime == "openvino"
    assert [j.runtime for j in w.first()] == ["openvino"]


def test_where_samples_are_too_few_the_first_within_the_limit_is_enough(world: Build) -> None:
    w = world({"a": 0.1, "g": 0.1}, noises=(10.0, 20.0), ops={"g": "Gemm"}, few=True)
    assert len(w.first()) == 1


def test_an_interrupt_leaves_what_was_judged(world: Build) -> None:
    w = world({"a": 9.0, "g": 9.0}, noises=(10.0, 20.0), ops={"g": "Gemm"})
    w.world.stopped = lambda: bool(w.world.judged)
    (found,) = w.first()
    end = w.search([found])
    assert end.best == found
    assert end.reason == "interrupted"
    assert end.trials == (found.trial,)


# --- the search that follows ---


def test_a_first_model_that_the_search_comes_to_is_not_judged_again(
    world: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = world({"a": 0.1})
    (found,) = w.first()
    monkeypatch.setattr(making, "best_variant", lambda *_: found.trial)
    end = w.search([found])
    assert len(w.world.judged) == len(end.judged) == 1
    assert end.best is not None
    assert end.best.trial.latency_ms == {"onnxruntime": 99.0}
    assert len(end.trials) == 1


def test_a_faster_model_takes_the_place_of_the_first(world: Build) -> None:
    w = world({"a": 0.1})
    (found,) = w.first()
    end = w.search([found])
    assert end.best is not None
    assert end.best.trial is not found.trial
    assert len(w.world.judged) == 2
    assert found.trial in end.trials


def test_a_first_model_that_alone_passes_is_timed_in_the_end(world: Build) -> None:
    w = world({"a": 9.0})
    passing = Judged(
        Trial("first", QuantizedModel(model("x"), recipe(), (), ""), 30.0, {}),
        "onnxruntime",
        EVALUATION,
        verdict("pass", LIMIT / 2),
    )
    end = w.search([passing])
    assert end.best is not None
    assert end.best.trial.quantized == passing.trial.quantized
    assert end.best.trial.latency_ms != {}


def recipe() -> Recipe:
    return Recipe("portable", "mse", correct_bias=True, modes={"a": "static"})


def test_the_file_of_a_pinned_model_stays_where_another_is_quieter(tmp_path: Path) -> None:
    def trial(name: str, noise_db: float) -> Trial:
        path = tmp_path / name
        path.touch()
        made = replace(model(name), path=path)
        return Trial(name, QuantizedModel(made, recipe(), (), ""), noise_db, {})

    rest: Any = ((), None, (), (), (), 1, tmp_path)
    bench = Workbench(model("fp32"), *rest, pinned=frozenset({"first"}))
    first, second, third = trial("first", 10.0), trial("second", 20.0), trial("third", 30.0)
    assert _quieter(bench, first, second) == second
    assert _quieter(bench, second, third) == third
    assert sorted(f.name for f in tmp_path.iterdir()) == ["first", "third"]
