"""Metrics of a whole data set: from rows of a plugin to a verdict by the bootstrap."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.errors import InputError, ResourceError, UsageError
from bench.models import Model, TensorSpec
from bench.store import dump, load
from quantize import evidence
from quantize.data import Samples, read_samples
from quantize.evaluate import Evaluation, evaluate, first_scores
from quantize.evidence import Gathering, stacked
from quantize.gate import Verdict, judge
from quantize.metric import Metric
from quantize.metrics import METRICS, resolve_metric
from quantize.tasks.classes import macro_f1
from quantize.tasks.detection import Matched
from quantize.tasks.transcripts import all_wrong, error_rate
from quantize.tolerance import Tolerance
from tests.quantize.test_evaluate import run_with
from tests.scored import evaluation

X = (TensorSpec("x", "float32", ("N", 1)),)
F1 = """
def f(outputs, labels):
    found = outputs["x"][:, 0] > 0
    return [(int(a and b), int(a and not b), int(b and not a)) for a, b in zip(found, labels)]
def g(rows):
    hits, wrong, missed = rows.sum(axis=0)
    return 2 * hits / max(2 * hits + wrong + missed, 1)
f.corpus = g
f.bounded = True
"""
SPOIL = """
f.spoil = lambda rows: [(0, hits + wrong, hits + missed) for hits, wrong, missed in rows]
"""


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path / "m.onnx", X, X, 21, "m" * 64, 1)


def plugin(folder: Path, text: str = F1) -> Metric:
    (folder / "mine.py").write_text("import numpy as np\n" + text)
    return resolve_metric(f"{folder}/mine.py:f", labelled=True)


def samples(folder: Path, count: int = 400) -> Samples:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, 1)).astype(np.float32)
    labels = (x[:, 0] + 0.3 * rng.standard_normal(count) > 0).astype(int)
    np.savez(folder / "d.npz", x=x, labels=labels)
    return read_samples(str(folder / "d.npz"), X, scratch=folder)


def scored(folder: Path, model: Model, shift: float = 0.0, text: str = F1) -> Evaluation:
    execution = run_with(lambda feeds: {"x": feeds["x"] + np.float32(shift)})
    return evaluate(model, samples(folder), plugin(folder, text), execution)


def of_lines(rows: NDArray[np.int64]) -> Evaluation:
    """Of rows of errors and characters."""
    found = evidence.Evidence(rows, error_rate, "cer", all_wrong, additive=True)
    plain = evaluation([0.0], binary=False, bounded=False, higher_is_better=False)
    whole = replace(plain, scores=(), corpus_value=found.value(), corpus_count=len(rows))
    return replace(whole, evidence=found)


def test_f1_is_of_the_whole_and_not_a_mean(tmp_path: Path, model: Model) -> None:
    found = scored(tmp_path, model)
    data = samples(tmp_path)
    yes = np.array([s.feeds["x"][0, 0] > 0 for s in data])
    truth = np.array([bool(s.label) for s in data])
    both, any_of = int((yes & truth).sum()), int(yes.sum() + truth.sum())
    assert found.value == pytest.approx(2 * both / any_of)
    assert (found.scores, found.count) == ((), 400)
    assert (found.bounded, found.binary) == (True, False)
    assert first_scores(found, 50).count == 50


@pytest.mark.parametrize(
    ("shift", "points", "outcome"),
    [(0.0, 1, "pass"), (0.01, 3, "pass"), (1.5, 3, "refuse"), (0.2, 1, "inconclusive")],
)
def test_whole_metrics_are_judged(
    tmp_path: Path, model: Model, shift: float, points: float, outcome: str
) -> None:
    baseline, candidate = scored(tmp_path, model), scored(tmp_path, model, shift)
    verdict = judge(baseline, candidate, Tolerance(points, "pt"))
    assert verdict.outcome == outcome
    assert verdict.drop == pytest.approx(baseline.value - candidate.value)
    assert verdict.low <= verdict.drop <= verdict.high
    assert (verdict.samples_needed is not None) == (outcome == "inconclusive")
    assert judge(baseline, candidate, Tolerance(points, "pt")) == verdict


@pytest.mark.parametrize(("spoil", "least"), [("", 0.0074), (SPOIL, 0.008)])
def test_a_whole_without_a_change_is_only_as_sure_as_its_samples(
    tmp_path: Path, model: Model, spoil: str, least: float
) -> None:
    pair = [scored(tmp_path, model, text=F1 + spoil)] * 2
    verdict = judge(*pair, Tolerance(2, "pt"))
    assert verdict.outcome == "pass"
    assert "exactly" in verdict.reason
    assert least < verdict.high < 0.02
    few = judge(*(first_scores(e, 60) for e in pair), Tolerance(2, "pt"))
    assert few.outcome == "inconclusive"
    assert few.samples_needed is not None
    assert 100 < few.samples_needed < 600


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("lambda rows: [(0, 0, 0)]", "returned 1 rows for 3"),
        (
            "lambda rows: [(0, 0)] * len(rows)",
            r"in the shape of its own rows, \[3",
        ),
        ("lambda rows: ['x'] * len(rows)", "expected numbers"),
        ("lambda rows: 1 / 0", "the metric raised ZeroDivisionError"),
    ],
)
def test_rows_that_are_spoiled_otherwise_are_told(
    tmp_path: Path, model: Model, spoil: str, words: str
) -> None:
    pair = [scored(tmp_path, model, text=F1 + f"f.spoil = {spoil}\n")] * 2
    with pytest.raises(InputError, match=words):
        judge(*pair, Tolerance(2, "pt"))


def test_a_single_cheap_change_does_not_make_few_samples_sure(tmp_path: Path, model: Model) -> None:
    baseline = scored(tmp_path, model, text=F1 + SPOIL)
    first = baseline.evidence
    assert first is not None
    rows = np.array(first.rows)
    hit = int(np.flatnonzero(rows[:, 0])[0])
    rows[hit] = [0, 0, 1]
    second = evidence.Evidence(rows, first.function, "f")
    changed = replace(baseline, evidence=second, corpus_value=second.value())
    same = judge(baseline, baseline, Tolerance(2, "pt"))
    assert judge(baseline, changed, Tolerance(2, "pt")).high >= same.high


@pytest.mark.parametrize(("changed", "needed"), [(1, 299), (2, 299), (4, 299), (8, 150)])
def test_few_changed_rows_ask_for_the_samples_that_would_tell(changed: int, needed: int) -> None:
    """Every line has six characters; of the lines read otherwise, half are read better."""
    lines = np.tile([[1, 6], [1, 6], [0, 6], [0, 6]], (30, 1))
    read = lines.copy()
    read[: changed * 2 : 4, 0] -= 1
    read[2 : changed * 2 : 4, 0] += 1

    def judged(copies: int) -> Verdict:
        pair = [of_lines(np.tile(rows, (copies, 1))) for rows in (lines, read)]
        return judge(*pair, Tolerance(0.01, "abs"))

    few = judged(1)
    assert (few.outcome, few.samples_needed) == ("inconclusive", needed)
    assert judged(needed // 120).outcome == "inconclusive"
    assert judged(needed // 120 + 1).outcome == "pass"


def test_sums_of_rows_are_the_rows_themselves() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 9, (50, 3, 4))
    quick = evidence.Evidence(rows, macro_f1, "f1", additive=True)
    slow = evidence.Evidence(rows, macro_f1, "f1")
    for _ in range(20):
        picks = rng.integers(0, 50, 50)
        assert quick.value(picks) == slow.value(picks)


@pytest.mark.parametrize("name", ["f1", "miou", "cer", "wer", "map"])
def test_what_went_wrong_altogether_is_worse(name: str) -> None:
    metric = METRICS[name]
    rows: dict[str, list[Any]] = {
        "f1": [np.array([[1, 0], [1, 0], [1, 0]]), np.array([[0, 1], [0, 1], [0, 1]])] * 20,
        "cer": [(0, 9), (1, 7)] * 20,
        "map": [
            Matched(*map(np.array, ([1], [0.9], [[1] * 10], [1]))),
            Matched(*map(np.array, ([2], [0.8], [[1] * 10], [2]))),
        ]
        * 20,
    }
    rows |= {"miou": rows["f1"], "wer": rows["cer"]}
    assert metric.corpus is not None
    kept = stacked(rows[name]) if name != "map" else rows[name]
    found = evidence.Evidence(kept, metric.corpus, name, metric.spoil, additive=metric.additive)
    spoiled = found.spoiled(np.array([0, 1, 2]))
    assert (spoiled < found.value()) == metric.higher_is_better
    assert spoiled != found.value()


def test_lower_is_better_cannot_pass_by_getting_worse(tmp_path: Path, model: Model) -> None:
    errors = F1 + "f.corpus = lambda rows: 1 - g(rows)\nf.higher_is_better = False\n"
    pair = scored(tmp_path, model, text=errors), scored(tmp_path, model, 1.5, text=errors)
    assert pair[1].value > pair[0].value
    assert judge(*pair, Tolerance(3, "pt")).outcome == "refuse"
    assert judge(pair[1], pair[0], Tolerance(3, "pt")).outcome == "pass"


def test_whole_units_are_resampled(tmp_path: Path, model: Model) -> None:
    baseline, candidate = scored(tmp_path, model), scored(tmp_path, model, 0.1)
    # Each sample ten times over is no more evidence than once.
    many = [replace(e, evidence=None) for e in (baseline, candidate)]
    for i, e in enumerate((baseline, candidate)):
        assert e.evidence is not None
        rows = np.repeat(np.asarray(e.evidence.rows), 10, axis=0)
        copied = evidence.Evidence(rows, e.evidence.function, "f")
        many[i] = replace(e, evidence=copied, corpus_count=4000)
    alone = judge(baseline, candidate, Tolerance(3, "pt"))
    naive = judge(*many, Tolerance(3, "pt"))
    careful = judge(*many, Tolerance(3, "pt"), units=[i // 10 for i in range(4000)])
    assert naive.high < alone.high - 0.005
    assert careful.high == pytest.approx(alone.high, abs=0.002)
    with pytest.raises(UsageError, match="units: 7 samples have one, 4000 were scored"):
        judge(*many, Tolerance(3, "pt"), units=[0] * 7)


def test_units_of_scored_samples_widen_the_bounds(tmp_path: Path, model: Model) -> None:
    text = "def f(outputs, labels):\n    return (outputs['x'][:, 0] > 0) == labels\n"
    pair = scored(tmp_path, model, text=text), scored(tmp_path, model, 0.1, text)
    alone = judge(*pair, Tolerance(5, "pt"))
    grouped = judge(*pair, Tolerance(5, "pt"), units=[i % 20 for i in range(400)])
    assert alone.method == "Tango score test"
    assert grouped.method == "paired bootstrap (BCa and t) of 20 units"
    assert (grouped.n, grouped.losses, grouped.gains) == (20, alone.losses, alone.gains)
    assert grouped.drop == pytest.approx(alone.drop)


def test_broken_outputs_refuse_a_metric_of_the_whole(tmp_path: Path, model: Model) -> None:
    def breaks(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
        return {"x": np.where(feeds["x"] > 2, np.nan, feeds["x"])}

    broken = evaluate(model, samples(tmp_path), plugin(tmp_path), run_with(breaks))
    assert broken.nonfinite > 0
    assert broken.count == 400
    verdict = judge(scored(tmp_path, model), broken, Tolerance(3, "pt"))
    assert verdict.outcome == "refuse"
    assert "NaN" in verdict.reason
    everything = evaluate(
        model, samples(tmp_path), plugin(tmp_path), run_with(lambda f: {"x": f["x"] * np.nan})
    )
    assert everything.value == 0.0


def test_finishing_gives_each_sample_a_score(tmp_path: Path, model: Model) -> None:
    text = "def f(outputs, labels):\n    return list(outputs['x'][:, 0])\n"
    text += "def rank(rows):\n    return rows.argsort().argsort() / 399\nf.finish = rank\n"
    found = scored(tmp_path, model, text=text)
    assert sorted(found.scores) == pytest.approx([i / 399 for i in range(400)])
    assert found.corpus_value is None

    def breaks(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
        return {"x": np.where(feeds["x"] == 0, np.nan, feeds["x"])}

    np.savez(tmp_path / "z.npz", x=np.array([[1], [0], [0], [3]], np.float32), labels=np.zeros(4))
    few = read_samples(str(tmp_path / "z.npz"), X, scratch=tmp_path)
    broken = evaluate(model, few, plugin(tmp_path, text), run_with(breaks))
    assert broken.scores == (0.0, 0.0, 0.0, 1 / 399)
    assert broken.nonfinite == 2


def test_reports_do_not_store_rows(tmp_path: Path, model: Model) -> None:
    found = scored(tmp_path, model)
    stored = dump(found)
    assert json.loads(stored)["evidence"] is None
    assert load(Evaluation, stored, "e") == found
    assert load(Evaluation, stored, "e").value == found.value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (F1 + "f.corpus = 3", "`corpus` is 3, not a function"),
        (F1 + "f.finish = g", "has both"),
        (F1 + "del f.corpus\nf.spoil = g", "`spoil` goes with `corpus`"),
        (F1 + "f.corpus = lambda rows: 'high'", "returned str 'high'"),
        (F1 + "f.corpus = lambda rows: 1 / 0", "mine.py:11: the metric raised ZeroDivisionError"),
        (F1 + "f.corpus = lambda rows: float('nan')", "is nan for a selection of 400 samples"),
        ("def f(o, l):\n    return 3\nf.corpus = f", "expected a list of one row per sample"),
        ("def f(o, l):\n    return [1]\nf.finish = lambda r: [1]", "shape.*each of 400 rows"),
    ],
)
def test_plugins_that_misbehave_are_told(
    tmp_path: Path, model: Model, text: str, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        scored(tmp_path, model, text=text)


def test_rows_are_stacked_where_they_are_numbers_of_one_shape() -> None:
    assert isinstance(stacked([(1, 2), (3, 4)]), np.ndarray)
    assert isinstance(stacked([1.0, 2.0]), np.ndarray)
    for other in ([(1,), (1, 2)], ["a", "b"], [("a", 1)], [{"a": 1}], [None], []):
        assert stacked(other) == other


def test_too_much_evidence_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "_MOST_BYTES", 1000)
    gathering = Gathering("maps")
    gathering.add([np.zeros(50)])
    with pytest.raises(ResourceError, match="metric 'maps' keeps more than"):
        gathering.add([{"a": (np.zeros(100), [1.0])}])


def test_an_output_that_is_named_is_all_a_plugin_sees(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("def f(outputs, labels):\n    return [float(len(outputs))]\n")
    both = {"a": np.zeros((1, 1)), "b": np.zeros((1, 1))}
    every = resolve_metric(f"{tmp_path}/m.py:f", labelled=False)
    one = resolve_metric(f"{tmp_path}/m.py:f", labelled=False, output="b")
    assert (every.score(both, [None]), one.score(both, [None])) == ([2.0], [1.0])
    with pytest.raises(UsageError, match="no output 'b'"):
        one.score({"a": np.zeros((1, 1))}, [None])
