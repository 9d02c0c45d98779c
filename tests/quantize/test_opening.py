"""FP32 and the first model side by side: an early answer, and the same end."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bench.render import render
from bench.store import load
from quantize import concluding, early, opening, pipeline, served
from quantize import evaluate as evaluating
from quantize.document import document
from quantize.evaluate import Scoring
from quantize.gate import Verdict
from quantize.ground import Ground
from quantize.inference import Run
from quantize.job import Job
from quantize.looks import Look
from quantize.pipeline import run
from quantize.report import Report
from tests import classifier
from tests.fakes import Ending, Silent

TOTAL = 400


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    classifier.network(folder / "net.onnx")
    classifier.samples(folder / "data.npz", TOTAL + 40)
    return folder


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Stretches of samples that were scored: the model, first and last."""
    seen: list[tuple[str, int, int]] = []
    real = Scoring.run_to

    def run_to(self: Scoring, stop: int, *rest: Any) -> None:
        first = self.done
        real(self, stop, *rest)
        kind = self.model.path.name.partition("-")[0]
        # FP32 is scored from a light copy of its file.
        seen.append(({"light": "fp32"}.get(kind, kind), first, self.done))

    monkeypatch.setattr(Scoring, "run_to", run_to)
    return seen


def wrong_from(first: int, monkeypatch: pytest.MonkeyPatch, stop: int = TOTAL) -> None:
    """Have INT8 be wrong on all samples from one on, or to another."""
    real = evaluating._Tally.add

    def add(self: Any, run: Run) -> None:
        if self.reference is not None and first <= run.index < stop:
            run = replace(run, outputs={n: -a for n, a in run.outputs.items()})
        real(self, run)

    monkeypatch.setattr(evaluating._Tally, "add", add)


def test_a_pass_is_told_from_half_of_the_samples_and_the_rest_follows(
    job: Job, staging: Path, tmp_path: Path, scored: Sequence[tuple[str, int, int]]
) -> None:
    class Looking(Silent):
        def say(self, text: str) -> None:
            super().say(text)
            if text.startswith("first passing model"):
                best = tmp_path / "work" / "best"
                assert (best / "model.onnx").is_file()
                assert load(Verdict, (best / "verdict.json").read_bytes(), best).n == TOTAL // 2
                before.extend(scored)

    before: list[tuple[str, int, int]] = []
    heard = Looking()
    report = run(job, staging, heard, work=tmp_path / "work")
    at = (0, 25, 50, 100, 200)
    pairs = [(f, a, b) for a, b in pairwise(at) for f in ("fp32", "trial")]
    assert before == pairs
    # Nothing twice, and nothing left out.
    rest = [("fp32", 200, 400), ("trial", 200, 400)]
    assert scored[: len(pairs) + 2] == [*pairs, *rest]
    assert heard.stages[:4] == ["read", "prepare", "calibrate", "first model"]
    assert ("first model", 800, 800) in heard.steps
    (line,) = (s for s in heard.said if s.startswith("first "))
    assert line.endswith(" s (on 200 samples; more follow)")
    assert (report.first_pass_samples, report.verdict.n) == (200, 400)
    assert report.first_pass_s is not None
    assert all(e.count == TOTAL for e in report.evaluations)


def timeless(report: Report) -> Any:
    return (
        *(report.verdict, report.int8.sha256, report.conclusion.outcome),
        [replace(e, seconds=0.0) for e in report.evaluations],
    )


def test_the_end_is_the_same_as_without(
    job: Job, staging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(job, staging, Silent())
    monkeypatch.setattr(Ground, "foresight", lambda _: None)
    (tmp_path / "plain").mkdir()
    plain = run(job, tmp_path / "plain", Silent())
    assert timeless(found) == timeless(plain)
    assert (found.first_pass_samples, plain.first_pass_samples) == (200, 400)


@pytest.mark.parametrize("at", ["first passing model", "FP32: top1", "even out"])
def test_a_run_that_was_killed_goes_on_to_the_same_end(
    job: Job, staging: Path, tmp_path: Path, at: str, scored: list[tuple[str, int, int]]
) -> None:
    work = tmp_path / "work"
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
    whole = run(job, tmp_path / "whole", Silent())
    with pytest.raises(KeyboardInterrupt):
        run(job, tmp_path / "killed", Ending(at=at), work=work)
    shutil.rmtree(tmp_path / "killed")
    scored.clear()
    assert timeless(run(job, staging, Silent(), work=work)) == timeless(whole)
    fp32 = [s for s in scored if s[0] == "fp32"]
    # Scores of FP32 are kept as soon as they are complete.
    assert (fp32 == []) == (at != "first passing model")


def test_a_candidate_that_is_lost_ends_and_fp32_goes_on(
    job: Job, staging: Path, monkeypatch: pytest.MonkeyPatch, scored: list[tuple[str, int, int]]
) -> None:
    wrong_from(0, monkeypatch)
    heard = Silent()
    report = run(job, staging, heard)
    assert scored[:5] == [
        ("fp32", 0, 25),
        ("trial", 0, 25),
        ("fp32", 25, 50),
        ("trial", 25, 50),
        ("fp32", 50, 400),
    ]
    assert not any(line.startswith("first passing") for line in heard.said)
    assert report.trials[0].samples == 50
    assert report.conclusion.outcome == "refuse"
    assert report.first_pass_s is report.first_pass_samples is None


def test_of_a_noisy_first_model_a_pass_is_told_once_all_samples_have_run(
    job: Job, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early, "_LOUD_DB", 1000.0)
    heard = Silent()
    report = run(job, staging, heard)
    (line,) = (s for s in heard.said if s.startswith("first "))
    assert "more follow" not in line
    assert report.first_pass_samples == TOTAL


def test_a_pass_that_all_samples_do_not_bear_out_is_taken_back(
    job: Job, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong_from(200, monkeypatch)
    heard = Silent()
    report = run(job, staging, heard)
    assert any(line.startswith("first passing model") for line in heard.said)
    assert "on all 400 samples it does not pass" in heard.said
    assert report.conclusion.outcome == "refuse"
    assert report.first_pass_s is report.first_pass_samples is None


def test_fp32_is_scored_where_no_first_candidate_comes(
    job: Job, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "first_models", lambda *_: ())
    report = run(job, staging, Silent())
    assert report.verdict.n == report.first_pass_samples == TOTAL


def test_a_second_candidate_is_judged_as_always(
    job: Job, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = opening.Opening.__call__, []

    def call(self: opening.Opening, *candidate: Any, **options: Any) -> Any:
        asked.append(self.judging)
        real(self, *candidate, **options)
        return real(self, *candidate, **options)

    monkeypatch.setattr(opening.Opening, "__call__", call)
    assert run(job, staging, Silent()).verdict.n == TOTAL
    assert asked == [None]


# --- replays ---


@pytest.fixture
def replay(job: Job, shelf: Path) -> Job:
    """Of a model that passed; it is searched for once."""
    folder = shelf / "searched"
    if not folder.exists():
        folder.mkdir()
        run(job, folder, Silent())
    return replace(job, effort=replace(job.effort, recipe=folder / "recipe.toml"))


def test_a_replay_ends_with_the_look_that_tells(
    replay: Job,
    staging: Path,
    scored: Sequence[tuple[str, int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, asked = concluding.look_into, []

    def look_into(*args: Any, **kwargs: Any) -> Any:
        asked.append(args[4])
        return real(*args, **kwargs)

    monkeypatch.setattr(concluding, "look_into", look_into)
    heard = Silent()
    report = run(replay, staging, heard)
    assert scored == [("fp32", 0, 200), ("trial", 0, 200)]
    assert "baseline" not in heard.stages
    verdict = report.verdict
    assert (verdict.outcome, verdict.n, verdict.confidence) == ("pass", 200, 0.95)
    assert verdict.look == Look(200, (200, 400), pytest.approx(0.025))
    assert [e.count for e in report.evaluations] == [200, 200]
    assert report.data.evaluation_count == 200
    # What is told of parts is that of the same samples, and as sure as their look.
    assert asked == [pytest.approx(0.975)]
    assert sum(s.n for s in report.slices if s.column == "class") == 200
    (note,) = (n for n in report.notes if n.startswith("judged by"))
    assert note.startswith("judged by 200 of 400 samples")
    assert note.endswith("With --rounds 5 all of them judge")
    text = render(document(report), "text")
    assert "bounds alone hold with 97.5 %" in " ".join(text.split())


def test_what_the_judged_model_computes_is_not_asked_again(
    replay: Job, staging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> Any:
        raise AssertionError("opened again")

    monkeypatch.setattr(served.Few, "_try", refused)
    monkeypatch.setattr(served, "canary", lambda _: "exact")
    # By a look, and by all samples.
    for full, folder in ((False, staging), (True, tmp_path / "full")):
        folder.mkdir(exist_ok=True)
        asked = replace(replay, effort=replace(replay.effort, threads=2, full=full))
        assert set(run(asked, folder, Silent()).served[0].noise_db) == {1, 2}


def test_what_the_samples_leave_open_goes_to_the_last_look(
    replay: Job, staging: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # 3 in 200: too many to pass at once, and too few in 400 to refuse.
    wrong_from(197, monkeypatch, 200)
    report = run(replay, staging, Silent(), work=tmp_path / "work")
    look = report.verdict.look
    assert look is not None
    assert (look.done, report.verdict.n) == (400, 400)
    assert look.error == pytest.approx(0.025)
    assert report.evaluations[0].samples_sha256 == report.data.evaluation_sha256
    assert not any(n.startswith("judged by") for n in report.notes)


def test_a_lost_replay_is_refused_by_the_look_that_shows_it(
    replay: Job, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong_from(0, monkeypatch)
    report = run(replay, staging, Silent())
    assert (report.verdict.outcome, report.verdict.n) == ("refuse", 200)
    assert report.conclusion.exit_code == 3


def test_in_full_a_replay_has_one_look_at_all_samples(replay: Job, staging: Path) -> None:
    full = replace(replay, effort=replace(replay.effort, full=True))
    report = run(full, staging, Silent())
    assert (report.verdict.n, report.verdict.look) == (TOTAL, None)


def test_a_replay_that_was_killed_after_its_last_look_does_not_forget_the_others(
    replay: Job, staging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
    wrong_from(197, monkeypatch, 200)
    whole = run(replay, tmp_path / "whole", Silent())
    with pytest.raises(KeyboardInterrupt):
        run(replay, tmp_path / "killed", Ending(at="verify"), work=work)
    shutil.rmtree(tmp_path / "killed")
    monkeypatch.setattr(Scoring, "run_to", lambda *_: pytest.fail("scored again"))
    assert timeless(run(replay, staging, Silent(), work=work)) == timeless(whole)
