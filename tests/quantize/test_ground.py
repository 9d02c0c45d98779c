"""What verdicts stand on: when samples stand for themselves, and when a pass may be told early."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.models import Model
from quantize.data import Samples, read_samples
from quantize.ground import Ground, looks
from quantize.job import DataSpec, Effort, Job, Limits
from quantize.journal import Journal
from quantize.metrics import resolve_metric
from quantize.outputs import OutputStore
from quantize.sources.seam import ModelSpec
from quantize.tolerance import Tolerance
from tests import classifier
from tests.fakes import Silent
from tests.scored import evaluation


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Samples]:
    from bench.models import read_model

    folder = tmp_path_factory.mktemp("ground")
    model = read_model(classifier.network(folder / "net.onnx"))
    return model, read_samples(
        str(classifier.samples(folder / "d.npz", 1000)), model.inputs, scratch=folder
    )


def ground(
    shelf: tuple[Model, Samples],
    metric: str = "top1",
    *,
    data: dict[str, Any] | None = None,
    effort: dict[str, Any] | None = None,
    **limits: Any,
) -> Ground:
    model, samples = shelf
    job = Job(
        model=ModelSpec("m.onnx"),
        data=DataSpec("d.npz", **data or {}),
        limits=Limits(metric=metric, **limits),
        effort=Effort(**effort or {}),
        command="",
    )
    found = resolve_metric(metric, labelled=True, first_label=samples.label(0))
    return Ground(job, model, samples, found, OutputStore(), 1, Silent(stages=[""]))


def test_a_pass_is_looked_for_where_right_or_wrong_scores_could_show_it(
    shelf: tuple[Model, Samples],
) -> None:
    # 299 samples without a loss show 1 pt at 95 %, and 368 at 97.5 %.
    seen = ground(shelf).foresight()
    assert seen is not None
    assert (seen.at, seen.limit, seen.confidence) == ((500,), 0.01, 0.95)
    wide = ground(shelf, max_drop="3pt").foresight()
    assert wide is not None
    assert wide.at == (250, 500)
    assert ground(shelf, max_drop="0.03abs").foresight() == replace(
        wide, tolerance=Tolerance(0.03, "abs")
    )


@pytest.mark.parametrize(
    "options",
    [
        {"max_drop": "0.5pt"},  # too few samples
        {"max_drop": "0pt"},  # no number of samples
        {"max_drop": "1%"},  # of what FP32 scores on all samples
        {"max_drop": "0.5%"},
        {"metric": "mse"},  # the same by default
        {"metric": "f1"},  # of all samples
        {"metric": "sqnr", "max_drop": "30dB"},
        {"unit": "patient"},  # samples hang together
        {"data": {"states": {"a": "b"}}},
    ],
)
def test_else_fp32_is_scored_first(shelf: tuple[Model, Samples], options: dict[str, Any]) -> None:
    assert ground(shelf, **options).foresight() is None


REPLAY = {"recipe": Path("recipe.toml")}


def test_a_replay_looks_for_its_verdict_up_to_the_last_sample(
    shelf: tuple[Model, Samples], tmp_path: Path
) -> None:
    # 368 samples without a loss show 1 pt at 97.5 %.
    first = ground(shelf, effort=REPLAY)
    seen = first.foresight()
    assert seen is not None
    assert (seen.at, seen.ends) == ((500, 1000), True)
    # Goes on to the same looks after a kill.
    first.journal = Journal(tmp_path)
    assert first.settle(first.score).looks is None
    assert first.foresight() == seen


@pytest.mark.parametrize(
    "options",
    [
        {"max_slice_drop": "5pt"},
        {"slices": Path("slices.csv")},
        {"max_drop": "1%"},
        {"metric": f"{__file__}:unbounded"},  # points of what may leave 0..1
        {"effort": {**REPLAY, "full": True}},
        {"lock": Path("vnnify.lock.json")},
        {"flips": True},
    ],
)
def test_what_stands_on_all_samples_has_them_all_run(
    shelf: tuple[Model, Samples], options: dict[str, Any]
) -> None:
    own = {k: options.pop(k) for k in ("lock", "flips") if k in options}
    found = ground(shelf, **{"effort": REPLAY, "max_drop": "1pt", **options})
    found.job = replace(found.job, **own)
    assert found.foresight() is None


def unbounded(outputs: dict[str, Any], label: int) -> float:
    return float(outputs["scores"][0, label])


def test_scores_of_fp32_that_are_known_are_not_made_again(
    shelf: tuple[Model, Samples], tmp_path: Path
) -> None:
    first = ground(shelf)
    first.journal = Journal(tmp_path)
    judging = first.settle(first.score)
    second = ground(shelf)
    second.journal = Journal(tmp_path)
    assert second.foresight() is None
    again = second.settle(lambda: pytest.fail("scored twice"))
    assert again.baseline == judging.baseline
    (now,), (before,) = again.reference[7].values(), judging.reference[7].values()
    assert np.array_equal(now, before)


def test_samples_that_hang_together_are_run_to_the_end(shelf: tuple[Model, Samples]) -> None:
    assert ground(shelf).settle(lambda: evaluation([1.0] * 1000)).looks is not None
    chained = ground(shelf, data={"states": {"a": "b"}})
    assert chained.settle(lambda: evaluation([1.0] * 1000)).looks is None
    found = looks(evaluation([1.0] * 500), Tolerance(1, "pt"), Limits())
    assert found is not None
    assert (found.limit, found.can_pass) == (0.01, True)


def test_candidates_of_a_search_share_the_error_and_a_recipe_has_it_alone(
    shelf: tuple[Model, Samples],
) -> None:
    def can_pass(lossless: int, recipe: Path | None) -> bool:
        made = ground(shelf, effort={"recipe": recipe})
        judging = made.settle(lambda: evaluation([1.0] * lossless))
        assert (judging.shares is None) == (recipe is not None)
        return made.can_pass

    # Without a loss 299 samples show 1 pt at 95 %, and 309 at 95.5 %.
    assert can_pass(300, Path("recipe.toml"))
    assert not can_pass(308, None)
    assert can_pass(309, None)


def test_a_search_may_fail_with_a_model_of_which_little_was_expected(
    shelf: tuple[Model, Samples],
) -> None:
    made = ground(shelf)
    judging = made.settle(lambda: evaluation([1.0] * 400))
    lost = evaluation([0.0] * 6 + [1.0] * 394, model_sha256="lost")
    assert judging.told(lost, unlikely=True)[1].level == pytest.approx(0.9975)
    assert made.can_pass
    assert judging.told(evaluation([1.0] * 400, model_sha256="good"))[1].outcome == "pass"


def test_scores_with_a_spread_and_replays_know_no_last_chance(
    shelf: tuple[Model, Samples],
) -> None:
    made = ground(shelf)
    assert not made.is_last_chance
    made.settle(lambda: evaluation([1.0] * 400))
    assert made.is_last_chance
    spread = ground(shelf)
    spread.settle(lambda: evaluation([0.5 + 0.001 * i for i in range(400)]))
    assert not spread.is_last_chance
    replay = ground(shelf, effort={"recipe": Path("recipe.toml")})
    replay.settle(lambda: evaluation([1.0] * 400))
    assert not replay.is_last_chance
    # None can pass at all.
    few = ground(shelf)
    few.settle(lambda: evaluation([1.0] * 200))
    assert not few.is_last_chance


def test_a_search_that_failed_once_knows_when_the_samples_are_too_few_for_more(
    shelf: tuple[Model, Samples],
) -> None:
    def more(samples: int) -> bool:
        made = ground(shelf)
        assert made.can_pass
        judging = made.settle(lambda: evaluation([1.0] * samples))
        assert made.can_pass
        lost = evaluation([0.0] * 9 + [1.0] * (samples - 9), model_sha256="lost")
        # That was to be known before.
        assert made.is_last_chance == (samples < 786)
        assert judging.told(lost)[1].outcome == "inconclusive"
        return made.can_pass

    # Without a loss it takes 786 to show 1 pt at 99.75 %, by the score test.
    assert not more(780)
    assert more(790)
