"""One job, stage by stage, where the command line cannot reach: runtimes, arithmetic, states."""

import itertools
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from bench import ahead
from bench import forecast as forecasts
from bench.ahead import Ahead
from bench.errors import ExitCode, InputError, UnfitError, UnsupportedError, UsageError
from bench.forecast import Survey
from bench.machine import canary, describe
from bench.render import render
from bench.runtimes import RUNTIMES, Session, Settings, installed_runtimes
from bench.store import dump, load
from bench.yardsticks import Bout, Yardsticks
from quantize import calibrate as calibrating
from quantize import (
    concluding,
    finishing,
    graphs,
    ground,
    judging,
    kept,
    pipeline,
    ranking,
    replaying,
    rows,
    served,
    smoothing,
    starting,
    trials,
)
from quantize.candidates import Judged
from quantize.coverage import coverage_of
from quantize.data import Samples
from quantize.document import document, summary
from quantize.gate import Outcome, Verdict
from quantize.job import DataSpec, GateBounds, Job, Limits
from quantize.lock import write_lock
from quantize.looks import level_of
from quantize.pipeline import run
from quantize.proof import debian
from quantize.proof.comparing import Compared, Proof
from quantize.proof.guest import VNNI_CPU
from quantize.recipe import Engine, Recipe, read_recipe
from quantize.recipe import to_toml as recipe_toml
from quantize.report import Report, TrialRow
from quantize.served import Few, Served
from quantize.sources.seam import ModelSpec
from quantize.speeds import Ratio, read_speeds, to_toml
from quantize.stopping import Interrupt
from quantize.targets import TARGETS
from tests import classifier, tiny
from tests.fakes import Ending, Silent
from tests.timing import Stopwatch


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    classifier.network(folder / "net.onnx")
    classifier.samples(folder / "data.npz", 200)
    return folder


# --- the whole ---


def test_progress_hears_of_every_stage_in_order(job: Job, staging: Path) -> None:
    heard = Silent()
    report = run(job, staging, heard)
    names = ["read", "prepare", "baseline", "calibrate", "first model", "even out"]
    names += ["search", "verify", "benchmark"]
    assert heard.stages == names == [s.name for s in report.stages]
    assert ("baseline", 160, 160) in heard.steps
    assert ("calibrate", 32, 32) in heard.steps
    assert ("first model", 160, 160) in heard.steps
    assert "FP32: top1 1.0000 on 160 samples" in heard.said


def test_a_model_whose_weights_lie_beside_it_is_published_with_them(
    job: Job, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "EXTERNAL_BYTES", 100)
    report = run(job, staging, Silent())
    names = {"model.fp32.onnx", "model.onnx"}
    assert {x.variant.model.path.name for x in report.latencies} == names
    assert all((staging / f"{n}.data").is_file() for n in names)
    assert report.inspection is not None
    assert any("noise of single layers is unknown" in n for n in report.inspection.notes)


@pytest.mark.parametrize("large", [False, True])
def test_a_published_fp32_model_with_its_weights_beside_it_is_quantized_again(
    job: Job, staging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, large: bool
) -> None:
    """Files that the source brings have the names of those that a run writes."""
    if large:
        monkeypatch.setattr(graphs, "EXTERNAL_BYTES", 100)
    source = tmp_path / "model.fp32.onnx"
    onnx_ir.save(onnx_ir.load(job.model.text), source, external_data=f"{source.name}.data")
    again = tmp_path / "again"
    again.mkdir()
    first = run(job, staging, Silent())
    second = run(replace(job, model=ModelSpec(str(source))), again, Silent())
    assert {p.name for p in again.iterdir()} == {p.name for p in staging.iterdir()}
    assert second.fp32.sha256 == first.fp32.sha256
    assert second.int8.sha256 == first.int8.sha256


def test_the_report_shows_where_noise_is_made(job: Job, staging: Path) -> None:
    report = run(job, staging, Silent())
    assert report.inspection is not None
    integers = [x.name for x in report.layers if x.mode != "float"]
    assert [n.layer for n in report.inspection.noise if n.local > 1e-9] == integers
    assert "Where noise is made" in render(document(report), "markdown")


def test_speed_elsewhere_is_predicted_and_named_so(
    job: Job, staging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Yardsticks("onnxruntime", "1", 1, "", {"matrix float": 1.0})
    there = replace(ours, ms={"matrix float": 3.0})
    other = tmp_path / "other.json"
    other.write_bytes(dump(Survey(replace(describe(), cpu="Another CPU"), (), (there,))))
    shares = {i: {"matrix float": 1.0} for i in range(2)}
    monkeypatch.setattr(
        forecasts, "measure_bout", lambda *_, **__: Bout(ours, dict.fromkeys(shares, 2.0), shares)
    )
    heard = Silent()
    report = run(replace(job, effort=replace(job.effort, predict_for=other)), staging, heard)
    assert "predict" in heard.stages
    assert report.forecast is not None
    assert [p.ms / p.here_ms for p in report.forecast.predictions] == [3.0, 3.0]
    text = render(document(report), "markdown")
    assert "Predicted for Another CPU, not measured: INT8 onnxruntime " in text
    bare = replace(job, effort=replace(job.effort, predict_for=tmp_path / "none.json"))
    with pytest.raises(InputError, match=r"none\.json: cannot be read"):
        run(bare, tmp_path, Silent())


def test_layers_without_an_int8_kernel_are_counted_as_gate_and_inspect_count_them(
    job: Job, staging: Path, tmp_path: Path
) -> None:
    model = onnx.load(job.model.text)
    first = model.graph.node[0]
    model.graph.node.insert(0, onnx.helper.make_node("ConvTranspose", ["x", "one"], ["same"], "up"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((1,) * 4, "f"), "one"))
    first.input[0], model.graph.node[0].input[0] = "same", first.input[0]
    onnx.save(model, tmp_path / "up.onnx")
    report = run(replace(job, model=ModelSpec(str(tmp_path / "up.onnx"))), staging, Silent())
    assert report.coverage == str(coverage_of(staging / report.int8.path)) == "3 of 4"
    assert {t.coverage.partition(" of ")[2] for t in report.trials} == {"4"}


def test_nodes_of_one_name_are_told_apart_to_compare_the_source(
    job: Job, staging: Path, tmp_path: Path
) -> None:
    model = onnx.load(job.model.text)
    for node in model.graph.node:
        node.name = "n"
    onnx.save(model, tmp_path / "named.onnx")
    assert run(
        replace(job, model=ModelSpec(str(tmp_path / "named.onnx"))), staging, Silent()
    ).coverage.startswith("3 of")


def test_a_model_that_no_runtime_takes_is_refused_by_its_own_name(
    job: Job, staging: Path, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["w"], ["v"], to=TensorProto.BFLOAT16),
        helper.make_node("MatMul", ["h", "v"], ["m"]),
        helper.make_node("Cast", ["m"], ["y"], to=TensorProto.FLOAT),
    ]
    ports: list[Any] = [(n, TensorProto.FLOAT, ["n", 1, 8, 8]) for n in ("x", "y")]
    path = tiny.save(tmp_path / "half.onnx", nodes, ports[:1], ports[1:], {"w": np.eye(8)})
    with pytest.raises(InputError, match=r"^[^ ]*half\.onnx: onnxruntime refuses .* in float32"):
        run(replace(job, model=ModelSpec(str(path))), staging, Silent())


def test_a_model_without_inputs_is_unsupported(job: Job, staging: Path, tmp_path: Path) -> None:
    nodes = [helper.make_node("Constant", [], ["y"], value_float=1.0)]
    path = tiny.save(tmp_path / "none.onnx", nodes, [], [("y", TensorProto.FLOAT, [])])
    with pytest.raises(UnsupportedError, match=r"none\.onnx: takes no inputs"):
        run(replace(job, model=ModelSpec(str(path))), staging, Silent())


def test_results_lie_in_the_staging_folder(job: Job, staging: Path) -> None:
    report = run(job, staging, Silent())
    assert {p.name for p in staging.iterdir()} == {
        "model.onnx",
        "model.fp32.onnx",
        "recipe.toml",
        "scratch",
    }
    # Nothing reads the copy of the source any more.
    assert not (staging / "scratch" / "source").exists()
    for model in (report.fp32, report.int8, *(x.variant.model for x in report.latencies)):
        assert (staging / model.path).is_file()
        assert model.path.parent == Path()


@pytest.mark.parametrize("target", ["vnni", "amx", "avx2", "portable"])
def test_a_named_target_is_the_only_one_tried(job: Job, staging: Path, target: str) -> None:
    report = run(replace(job, effort=replace(job.effort, target=target)), staging, Silent())
    assert report.target == target
    names = {t.name.removesuffix(", first") for t in report.trials}
    assert {n.rpartition(", ")[2] for n in names} == {target}


def test_two_runs_give_the_same_bytes(job: Job, staging: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    first, second = run(job, staging, Silent()), run(job, other, Silent())
    assert first.int8.sha256 == second.int8.sha256
    assert first.data == second.data
    assert first.verdict == second.verdict
    third = tmp_path / "third"
    third.mkdir()
    seeded = run(replace(job, data=replace(job.data, seed=1)), third, Silent())
    assert seeded.data.calibration_sha256 != first.data.calibration_sha256


# --- proof ---


def test_the_model_that_ships_is_proved_on_judged_samples(
    job: Job, staging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def prove_model(model: Path, samples: Samples, *rest: Any, cache: Path, stopped: Any) -> Any:
        asked.append((model.read_bytes(), len(samples), rest, cache))
        assert not stopped()
        compared = Compared("model", 32, 96, 0, 0.0, integer=True)
        return (Proof(VNNI_CPU, (), "1", "native", "exact", (compared,), image_cached=True),)

    monkeypatch.setattr(concluding, "prove_model", prove_model)
    monkeypatch.setattr(debian, "require_packages", lambda _: None)
    heard = Silent()
    effort = replace(job.effort, prove=tmp_path, target="vnni")
    report = run(replace(job, effort=effort), staging, heard)
    ((model, count, rest, cache),) = asked
    assert model == (staging / report.int8.path).read_bytes()
    assert (count, rest, cache) == (160, ({}, TARGETS["vnni"]), tmp_path)
    assert heard.stages[-1] == "prove"
    assert report.proofs[0].holds
    assert report.conclusion.ships


def test_nothing_is_begun_where_a_proof_is_impossible(
    job: Job, staging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debian, "NEEDED", {str(tmp_path / "bochs"): "bochs"})
    heard = Silent()
    effort = replace(job.effort, prove=tmp_path)
    with pytest.raises(UnfitError, match="missing here: bochs"):
        run(replace(job, effort=effort), staging, heard)
    assert heard.stages == []


# --- a run that ends early ---


def forbidden(*_: Any, **__: Any) -> Any:
    raise AssertionError("done before")


# Where the run ends, and what the next one has no need to do again.
POINTS = {
    "calibrate": ((ground, "evaluate"),),
    "search": ((ground, "evaluate"), (pipeline, "calibrate_for")),
    "benchmark": (
        (ground, "evaluate"),
        (pipeline, "calibrate_for"),
        (judging, "evaluate"),
        (trials, "glance"),
    ),
}


@pytest.mark.parametrize(("point", "metric"), [*((p, None) for p in POINTS), ("benchmark", "f1")])
def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(
    job: Job,
    staging: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
    metric: str | None,
) -> None:
    # Scores of f1 come with rows of their own, which the verdict draws from.
    job = replace(job, limits=replace(job.limits, metric=metric))
    # A profile says something else each time.
    monkeypatch.setattr(ranking, "node_times", lambda *_, **__: {})
    whole = run(job, staging, Silent())
    for name in ("killed", "resumed"):
        (tmp_path / name).mkdir()
    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        run(job, tmp_path / "killed", Ending(at=point), work=work)
    shutil.rmtree(tmp_path / "killed")
    for module, name in POINTS[point]:
        monkeypatch.setattr(module, name, forbidden)
    resumed = run(job, tmp_path / "resumed", Silent(), work=work)
    assert resumed.int8.sha256 == whole.int8.sha256
    assert resumed.verdict == whole.verdict
    assert timeless(resumed) == timeless(whole)


def timeless(report: Report) -> list[TrialRow]:
    """What was tried, without what it took."""
    return [replace(t, seconds=0.0, evaluation_seconds=0.0) for t in report.trials]


def test_another_option_does_not_take_over_what_it_changes(
    job: Job, staging: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        run(job, staging, Ending(at="benchmark"), work=work)
    (tmp_path / "other").mkdir()
    seeded = replace(job, data=replace(job.data, seed=1))
    resumed = run(seeded, tmp_path / "other", Silent(), work=work)
    (tmp_path / "plain").mkdir()
    plain = run(seeded, tmp_path / "plain", Silent())
    assert resumed.int8.sha256 == plain.int8.sha256
    assert resumed.data == plain.data


def test_an_interrupt_with_something_to_keep_ends_the_search_and_publishes(
    job: Job, staging: Path, stopwatch: Stopwatch
) -> None:
    interrupt = Interrupt()
    strict = replace(job, limits=replace(job.limits, max_drop="0.0001pt"))
    heard = Ending(at="static, portable, first in onnxruntime", interrupt=interrupt)
    report = run(strict, staging, heard, interrupt=interrupt)
    assert sum(t.outcome != "not evaluated" for t in report.trials) == 1
    assert "the search was interrupted; this is the best it had found" in report.notes
    assert len(report.latencies[0].rounds) == 2
    assert (staging / "refused" / "model.onnx").is_file()


def test_an_interrupt_with_nothing_to_keep_ends_the_run(job: Job, staging: Path) -> None:
    interrupt = Interrupt()
    with pytest.raises(KeyboardInterrupt):
        run(job, staging, Ending(at="first model", interrupt=interrupt), interrupt=interrupt)


def test_an_interrupt_after_the_first_model_publishes_it(job: Job, staging: Path) -> None:
    interrupt = Interrupt()
    report = run(job, staging, Ending(at="even out", interrupt=interrupt), interrupt=interrupt)
    (trial,) = report.trials
    assert trial.name == "static, portable, first"
    assert (trial.outcome, trial.latency_ms) == ("pass", {})
    assert report.served_by == "onnxruntime"
    assert (staging / "model.onnx").is_file()


def test_the_moment_of_the_first_passing_model_is_told(job: Job, staging: Path) -> None:
    heard = Silent()
    began_ns = perf_counter_ns()
    report = run(job, staging, heard, started_ns=began_ns - 3_000_000_000)
    whole_s = (perf_counter_ns() - began_ns) / 1e9
    assert report.first_pass_s is not None
    assert 3 < report.first_pass_s < 3 + whole_s
    before = {s.name: s.seconds for s in report.stages}
    later = sum(before[name] for name in ("even out", "search", "verify", "benchmark"))
    assert report.first_pass_s < 3 + whole_s - later
    assert f"first passing model after {report.first_pass_s:.1f} s" in heard.said


def test_the_best_so_far_lies_complete_on_disk(job: Job, staging: Path, tmp_path: Path) -> None:
    report = run(job, staging, Silent(), work=tmp_path / "work")
    best = tmp_path / "work" / "best"
    assert {p.name for p in best.iterdir()} == {"model.onnx", "recipe.toml", "verdict.json"}
    assert (best / "model.onnx").read_bytes() == (staging / "model.onnx").read_bytes()
    ours, theirs = ((f / "recipe.toml").read_text().partition("[made]") for f in (best, staging))
    assert ours[0] == theirs[0]
    assert load(Verdict, (best / "verdict.json").read_bytes(), best) == report.verdict


# --- runtimes ---


def test_a_runtime_that_is_missing_is_named_before_the_work(
    job: Job, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> str:
        raise UnfitError("no openvino here")

    @dataclass
    class Missing:
        name: str = "openvino"
        suffixes: tuple[str, ...] = (".onnx",)

        def version(self) -> str:
            return missing()

    monkeypatch.setitem(RUNTIMES, "openvino", Missing())  # type: ignore[arg-type]
    heard = Silent()
    wanted = replace(job.effort, runtimes=("onnxruntime", "openvino"))
    with pytest.raises(UnfitError, match="no openvino here"):
        run(replace(job, effort=wanted), staging, heard)
    assert heard.stages == []
    # Not asked for by name, it is left out.
    assert "openvino" not in installed_runtimes()


def test_the_model_is_judged_in_every_runtime_that_takes_it(job: Job, staging: Path) -> None:
    pytest.importorskip("openvino")
    both = replace(job.effort, runtimes=("onnxruntime", "openvino"))
    report = run(replace(job, effort=both), staging, Silent())
    assert report.conclusion.outcome == "pass"
    assert report.evaluations[0].model_sha256 == report.fp32.sha256
    assert report.evaluations[1].runtime == report.served_by
    assert len({e.runtime for e in report.evaluations[1:]}) == len(report.evaluations) - 1
    assert "static for OpenVINO, portable" in {t.name for t in report.trials}
    names = {x.variant.name for x in report.latencies}
    assert {"FP32 onnxruntime", "FP32 openvino"} <= names
    assert all(c.baseline.startswith("FP32") for c in report.comparisons)


@pytest.mark.parametrize("wrong", ["onnxruntime", "openvino"])
def test_a_runtime_that_errs_with_some_threads_does_not_serve(
    job: Job, staging: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    pytest.importorskip("openvino")

    def serve(few: Few, model: Any, runtime: str, threads: int) -> Served:
        found = served.serve(few, model, runtime, threads)
        return replace(found, noise_db={1: 30.0, 2: -5.0 if runtime == wrong else 30.0})

    monkeypatch.setattr(concluding, "serve", serve)
    both = replace(job.effort, runtimes=("onnxruntime", "openvino"))
    report = run(replace(job, effort=both), staging, Silent())
    (right,) = {"onnxruntime", "openvino"} - {wrong}
    assert report.served_by == right
    lines = " ".join(document(report).verdict.lines)
    assert f"Do not serve it there: {wrong} " in lines
    assert f"Checked in {right} " in lines


def test_openvino_does_not_serve_what_it_computes_wrong(
    job: Job, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")

    def serve(few: Few, model: Any, runtime: str, threads: int) -> Served:
        found = served.serve(few, model, runtime, threads)
        noise_db = 45.0 if runtime == "onnxruntime" else 12.0
        return replace(found, noise_db={1: noise_db, 2: noise_db}, beside_db=45.0)

    monkeypatch.setattr(concluding, "serve", serve)
    both = replace(job.effort, runtimes=("onnxruntime", "openvino"))
    report = run(replace(job, effort=both), staging, Silent())
    assert report.served_by == "onnxruntime"
    lines = " ".join(document(report).verdict.lines)
    assert "Do not serve it there: openvino " in lines
    assert "12 dB with 1, 12 dB with 2; ONNX Runtime 45 dB, against FP32" in lines
    assert "Checked in onnxruntime " in lines
    # Where it may serve nowhere else, it is refused.
    alone = replace(job.effort, runtimes=("openvino",))
    again = staging.with_name("again")
    again.mkdir()
    report = run(replace(job, effort=alone), again, Silent())
    assert report.conclusion.outcome == "refuse"


def test_a_model_that_is_wrong_with_some_threads_everywhere_is_refused(
    job: Job, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Served("onnxruntime", "1", 4, {1: 30.0, 2: -5.0}, {"logits": 30.0, "other": -5.0})
    monkeypatch.setattr(concluding, "serve", lambda *_: wrong)
    report = run(job, staging, Silent())
    assert (report.conclusion.exit_code, (staging / "model.onnx").exists()) == (3, False)
    assert "computes INT8 wrong with some numbers of threads" in report.conclusion.headline
    assert "Checked in" not in " ".join(document(report).verdict.lines)
    (note,) = [n for n in report.notes if n.startswith("top1 looks at one output only.")]
    assert "'other' -5 dB, 'logits' 30 dB" in note


def test_a_recipe_that_no_runtime_takes_is_unsupported(
    job: Job, staging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(job, staging, Silent())
    again = tmp_path / "again"
    again.mkdir()
    real = trials.serves
    monkeypatch.setattr(
        replaying,
        "serves",
        lambda r, m, *rest: not m.path.name.startswith("trial") and real(r, m, *rest),
    )
    replay = replace(job.effort, recipe=staging / "recipe.toml")
    with pytest.raises(UnsupportedError, match="opens in none of onnxruntime"):
        run(replace(job, effort=replay), again, Silent())


def with_strength(recipe: Path, layer: str, edits: Mapping[str, str]) -> Path:
    """The recipe, rewritten so that channels in front of a layer are evened out."""
    text = recipe.read_text(encoding="utf-8").partition("[strengths]")[0]
    mark = next(x for x in text.splitlines() if x.endswith(f"# {layer}")).partition(" =")[0]
    for old, new in edits.items():
        text = text.replace(old, new)
    recipe.write_text(f"{text}\n[strengths]\n{mark} = 0.5\n", encoding="utf-8")
    return recipe


def keeping(monkeypatch: pytest.MonkeyPatch) -> list[tuple[set[str], set[str]]]:
    """Filled with what graphs may divide, and what is to be kept of it, each time."""
    asked: list[tuple[set[str], set[str]]] = []
    real = kept.ValueStore.keeping

    def spied(self: kept.ValueStore, wanted: Iterable[str], samples: int) -> object:
        found = set(wanted)
        asked.append((set(self.axes), found))
        return real(self, found, samples)

    monkeypatch.setattr(kept.ValueStore, "keeping", spied)
    return asked


@pytest.mark.parametrize("fitted", [True, False])
def test_evened_out_channels_are_replayed(
    job: Job, staging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fitted: bool
) -> None:
    plain = run(job, staging, Silent())
    # Rows tell how far, and are taken while the samples calibrate; what is divided is kept then.
    monkeypatch.setattr(rows, "passes", lambda *_: pytest.fail("the rows are there"))
    monkeypatch.setattr(smoothing, "calibrate", lambda *_, **__: pytest.fail("values are there"))
    once, real, asked = list[object](), calibrating.passes, keeping(monkeypatch)
    monkeypatch.setattr(calibrating, "passes", lambda *a: (once.append(w) or w for w in real(*a)))
    nearest = {"correct_bias = true": "correct_bias = false", '"learned"': '"nearest"'}
    recipe = with_strength(staging / "recipe.toml", "second", {} if fitted else nearest)
    assert read_recipe(recipe).recipe.reads_rows == fitted
    again = tmp_path / "again"
    again.mkdir()
    effort = replace(job.effort, recipe=recipe)
    report = run(replace(job, effort=effort), again, Silent())
    assert len(once) == 1
    # What all groups of the graph divide shares the room.
    assert asked[0] == ({"r1", "features"}, {"r1"})
    assert report.recipe.strengths == {"second": 0.5}
    assert report.recipe.name.endswith("1 tensors evened out")
    assert "= 0.5  # second" in (again / "recipe.toml").read_text(encoding="utf-8")
    assert report.fp32.sha256 == plain.fp32.sha256
    assert report.int8.sha256 != plain.int8.sha256


def test_a_replay_without_static_layers_keeps_nothing_to_be_divided(
    job: Job, staging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(job, staging, Silent())
    dynamic = {'"static"  # head': '"dynamic"  # head', '"static"': '"float"'}
    recipe = with_strength(staging / "recipe.toml", "head", dynamic)
    asked, again = keeping(monkeypatch), tmp_path / "again"
    again.mkdir()
    report = run(replace(job, effort=replace(job.effort, recipe=recipe)), again, Silent())
    assert report.recipe.strengths == {"head": 0.5}
    assert asked == [(set(), set())]


def test_a_small_budget_leaves_channels_as_they_are(
    job: Job, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concluding, "even_out", lambda *_: pytest.fail("it was tried"))
    report = run(replace(job, effort=replace(job.effort, budget_s=1e-3)), staging, Silent())
    assert any("evened out" in note for note in report.notes)
    assert not any("--budget" in note for note in report.notes)


def test_a_search_that_its_budget_ended_without_a_pass_says_so(job: Job, staging: Path) -> None:
    strict = replace(job.limits, metric="sqnr", max_drop="200dB")
    hurried = replace(job, limits=strict, effort=replace(job.effort, budget_s=1e-3))
    report = run(hurried, staging, Silent())
    assert report.conclusion.outcome == "refuse"
    assert any("--budget of 0.001 s; with more" in note for note in report.notes)


def test_a_metric_that_does_not_fit_is_told_before_anything_is_scored_or_calibrated(
    job: Job, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.Run, "first_verdict", lambda *_: pytest.fail("it went on"))
    wrong = replace(job, limits=replace(job.limits, metric="logit"))
    with pytest.raises(InputError, match=r"sample 0: output .* does not fit"):
        run(wrong, staging, Silent())


def test_where_no_candidate_can_be_made_it_is_unsupported(
    job: Job, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantize.making.best_variant", lambda *_: None)
    monkeypatch.setattr("quantize.making.attempt_or_none", lambda *_: None)
    monkeypatch.setattr("quantize.early.attempt_or_none", lambda *_: None)
    with pytest.raises(UnsupportedError, match="no INT8 candidate could be made"):
        run(job, staging, Silent())


# --- recipes ---


def recipe_by(engine: Engine) -> str:
    return recipe_toml(Recipe("vnni", "mse", correct_bias=True, modes={}, engine=engine), {}, {})


@pytest.mark.parametrize("asked", ["inc", "native,inc", "a recipe"])
def test_an_engine_that_cannot_start_from_the_model_is_refused_before_anything_is_read(
    asked: str, job: Job, staging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "read", lambda *_: pytest.fail("the data was read"))
    if asked == "a recipe":
        (tmp_path / "recipe.toml").write_text(recipe_by("inc"), encoding="utf-8")
        effort = replace(job.effort, recipe=tmp_path / "recipe.toml")
    else:
        effort = replace(job.effort, engines=tuple(asked.split(",")))
    with pytest.raises(UsageError, match=r"net\.onnx: --engine inc quantizes a PyTorch module"):
        run(replace(job, effort=effort), staging, Silent())


def test_a_missing_engine_of_a_recipe_is_told_before_anything_is_read(
    job: Job, staging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "read", lambda *_: pytest.fail("the data was read"))
    monkeypatch.setitem(sys.modules, "nncf", None)
    (tmp_path / "recipe.toml").write_text(recipe_by("nncf"), encoding="utf-8")
    effort = replace(job.effort, recipe=tmp_path / "recipe.toml")
    with pytest.raises(UnfitError, match=r"pip install 'vnnify\[nncf\]'"):
        run(replace(job, effort=effort), staging, Silent())


def test_a_recipe_of_another_graph_is_refused_before_anything_is_calibrated(
    job: Job, staging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(job, staging, Silent())
    text = (staging / "recipe.toml").read_text()
    (staging / "other.toml").write_text(text.replace('"conv-', '"gone-'))
    (tmp_path / "again").mkdir()
    monkeypatch.setattr(pipeline, "calibrate_for", forbidden)
    replay = replace(job, effort=replace(job.effort, recipe=staging / "other.toml"))
    with pytest.raises(UsageError, match="made for another graph: node 'first' is new"):
        run(replay, tmp_path / "again", Silent())


def test_a_replay_evaluates_once_and_says_how_ranges_moved(
    job: Job,
    staging: Path,
    tmp_path: Path,
    stopwatch: Stopwatch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = run(job, staging, Silent())
    assert first.drift == ()
    classifier.network(tmp_path / "retrained.onnx", seed=5)
    (tmp_path / "again").mkdir()
    stopwatch.measured.clear()
    evaluated: list[str] = []
    real = judging.evaluate

    def evaluate(model: Any, *rest: Any, **options: Any) -> Any:
        evaluated.append(model.path.name)
        return real(model, *rest, **options)

    monkeypatch.setattr(judging, "evaluate", evaluate)
    retrained = replace(
        job,
        model=ModelSpec(str(tmp_path / "retrained.onnx")),
        effort=replace(job.effort, recipe=staging / "recipe.toml"),
    )
    report = run(retrained, tmp_path / "again", Silent())
    assert len(report.trials) == len(evaluated) == len(stopwatch.measured) == 1
    assert {d.name for d in report.drift} == {"first", "second", "head"}
    assert any(n.startswith("ranges against those of the recipe: ") for n in report.notes)
    # The images are the same ones.
    (image,) = (d for d in report.drift if d.name == "first")
    assert image.factor == 1.0


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_replay_serves_in_the_runtime_of_its_recipe(
    job: Job, staging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    pytest.importorskip("openvino")
    run(job, staging, Silent())
    opened: list[int] = []

    class Noting(type(RUNTIMES[runtime])):  # type: ignore[misc]
        def open(self, path: Path, settings: Settings) -> Session:
            if path.name.startswith("trial"):
                opened.append(settings.threads)
            return super().open(path, settings)  # type: ignore[no-any-return]

    monkeypatch.setitem(RUNTIMES, runtime, Noting())
    recipe = staging / "recipe.toml"
    text = recipe.read_text(encoding="utf-8")
    assert '"served_by" = "onnxruntime"' in text
    recipe.write_text(text.replace('"served_by" = "onnxruntime"', f'"served_by" = "{runtime}"'))
    (tmp_path / "again").mkdir()
    effort = replace(job.effort, recipe=recipe, runtimes=("onnxruntime", "openvino"), threads=2)
    report = run(replace(job, effort=effort), tmp_path / "again", Silent())
    assert report.served_by == runtime
    timed = [x.variant.name for x in report.latencies]
    assert timed == ["FP32 onnxruntime", "FP32 openvino", f"INT8 {runtime}"]
    assert list(report.served[0].noise_db) == [1, 2]
    if canary(runtime) == "exact":
        # All that is asked of it is asked of one session with each number of threads, and both are
        # opened side by side.
        assert sorted(opened) == [1, 2]


def replayed(job: Job, recipe: Path, out: Path, **effort: Any) -> Report:
    """A replay in a folder of its own."""
    out.mkdir()
    return run(replace(job, effort=replace(job.effort, recipe=recipe, **effort)), out, Silent())


def timed(report: Report) -> list[str]:
    return [x.variant.name for x in report.latencies]


def test_a_replay_takes_rows_while_it_calibrates_and_makes_the_same_file(
    job: Job, staging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(job, staging, Silent())
    assert found.recipe.reads_rows
    recipe, work, passes = staging / "recipe.toml", tmp_path / "work", rows.passes
    later: list[int] = []
    monkeypatch.setattr(rows, "passes", lambda *a: (later.append(1) or w for w in passes(*a)))
    replay = replace(job, effort=replace(job.effort, recipe=recipe))
    (tmp_path / "killed").mkdir()
    with pytest.raises(KeyboardInterrupt):
        run(replay, tmp_path / "killed", Ending(at="search"), work=work)
    whole = replayed(job, recipe, tmp_path / "whole")
    assert (whole.int8.sha256, later) == (found.int8.sha256, [])
    # Statistics are kept for a run that goes on, and rows are not.
    (tmp_path / "resumed").mkdir()
    resumed = run(replay, tmp_path / "resumed", Silent(), work=work)
    assert (resumed.int8.sha256, later) == (found.int8.sha256, [1])


@pytest.fixture
def ranked(job: Job, staging: Path) -> Path:
    """A recipe for both runtimes in which FP32 is surely slower in OpenVINO."""
    pytest.importorskip("openvino")
    both = replace(job.effort, runtimes=("onnxruntime", "openvino"))
    run(replace(job, effort=both), staging, Silent())
    recipe = staging / "recipe.toml"
    text = recipe.read_text(encoding="utf-8")
    found = read_speeds(read_recipe(recipe))
    assert found is not None
    slower = {"onnxruntime": Ratio(1.0, 1.0, 1.0), "openvino": Ratio(0.5, 0.4, 0.6)}
    edited = to_toml(replace(found, fp32=slower, int8=Ratio(3.0, 2.5, 3.5)))
    text = text.replace(to_toml(found), edited).replace('by" = "openvino"', 'by" = "onnxruntime"')
    recipe.write_text(text, encoding="utf-8")
    assert edited in text
    return recipe


def test_a_replay_times_int8_beside_the_fastest_fp32_of_its_recipe_alone(
    job: Job, ranked: Path, tmp_path: Path, stopwatch: Stopwatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreseen: list[Sequence[str]] = []
    start = pipeline.started_ahead

    def started(runtimes: Sequence[str]) -> Any:
        foreseen.append(runtimes)
        return start(runtimes)

    monkeypatch.setattr(pipeline, "started_ahead", started)
    report = replayed(job, ranked, tmp_path / "again", runtimes=("onnxruntime", "openvino"))
    assert timed(report) == ["FP32 onnxruntime", "INT8 onnxruntime"]
    assert foreseen == [["onnxruntime"] * 6]
    assert isinstance(stopwatch.haste[-1].ahead, Ahead)
    assert report.control is None
    assert report.remembered is not None
    (note,) = (n for n in report.notes if n.startswith("from the recipe"))
    assert note.startswith(
        "from the recipe, times as fast as FP32 in onnxruntime: FP32 in openvino 0.50 ("
    )
    assert (
        "INT8 3.00 (2.50 to 3.50). Timed here: INT8, and FP32 in onnxruntime; "
        "the fastest FP32 of this report is of these." in note
    )
    for form in ("text", "html", "markdown", "junit"):
        assert "Timed here" in render(document(report), form) or form == "junit"
    assert "as the recipe has it" in render(summary(report, "out"), "text")
    assert report.inspection is not None
    assert [k.runtime for k in report.inspection.kernels] == ["onnxruntime"]
    # The next replay knows as much.
    again = read_recipe(tmp_path / "again" / "recipe.toml")
    assert read_speeds(again) == read_speeds(read_recipe(ranked))


@pytest.mark.parametrize(
    ("before", "now", "says"),
    [
        (r'"isa_class" = "\w+"', '"isa_class" = "nine"', "found on nine, and this CPU is "),
        (r'"threads" = 1', '"threads" = 7', "found with 7 threads, and now it is 1"),
        (r'"openvino" = "[^"]+"', '"openvino" = "1"', "found with openvino 1, and now it is "),
        (r"(?s)\[made.speed\].*", "", "the recipe tells no speeds, so FP32 was timed in every"),
        (r'"fp32" = \{.*\}', '"fp32" = {}', "the recipe tells no speed of FP32 here, so FP32 was"),
    ],
)
def test_in_another_place_or_by_an_older_recipe_everything_is_timed_anew(
    job: Job,
    ranked: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: str,
    now: str,
    says: str,
) -> None:
    text, count = re.subn(before, now, ranked.read_text(encoding="utf-8"))
    assert count == 1
    ranked.write_text(text, encoding="utf-8")
    if "speed" not in text:
        monkeypatch.setattr(ahead, "head_start", lambda *_: pytest.fail("nothing is foreseen"))
    report = replayed(job, ranked, tmp_path / "again", runtimes=("onnxruntime", "openvino"))
    assert timed(report) == ["FP32 onnxruntime", "FP32 openvino", "INT8 onnxruntime"]
    assert report.control is not None
    assert report.remembered is None
    assert any(says in n for n in report.notes)
    # What was found here is what the next replay goes by.
    made = read_speeds(read_recipe(tmp_path / "again" / "recipe.toml"))
    assert made is not None
    assert made.place.threads == 1
    assert made.fp32["openvino"].times == 1.0


def test_no_process_starts_ahead_for_a_runtime_that_may_not_serve(
    job: Job, ranked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreseen: list[Sequence[str]] = []
    start = pipeline.started_ahead
    monkeypatch.setattr(pipeline, "started_ahead", lambda r: foreseen.append(r) or start(r))
    replayed(job, ranked, tmp_path / "again", runtimes=("openvino",))
    assert foreseen == [[]]


def test_a_replay_in_full_times_everything_and_looks_into_the_model(
    job: Job, ranked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "head_start", lambda *_: pytest.fail("each is started alone"))
    both = ("onnxruntime", "openvino")
    report = replayed(job, ranked, tmp_path / "again", runtimes=both, full=True)
    assert timed(report) == ["FP32 onnxruntime", "FP32 openvino", "INT8 onnxruntime"]
    assert report.control is not None
    assert report.inspection is not None
    assert report.inspection.noise
    assert [k.runtime for k in report.inspection.kernels] == list(both)


def test_a_baseline_needs_fp32_where_int8_is_served(job: Job, ranked: Path, tmp_path: Path) -> None:
    both = ("onnxruntime", "openvino")
    text = ranked.read_text(encoding="utf-8").replace('by" = "onnxruntime"', 'by" = "openvino"')
    ranked.write_text(text, encoding="utf-8")
    first = replayed(job, ranked, tmp_path / "first", runtimes=both)
    assert timed(first) == ["FP32 onnxruntime", "INT8 openvino"]
    write_lock(tmp_path / "lock.json", finishing.lock_of_report(first, tmp_path / "first"))
    held = replace(job, lock=tmp_path / "lock.json")
    report = replayed(held, ranked, tmp_path / "again", runtimes=both)
    assert timed(report) == ["FP32 onnxruntime", "FP32 openvino", "INT8 openvino"]


def test_a_retrained_model_that_is_slower_is_refused_by_a_short_replay_too(
    job: Job, ranked: Path, tmp_path: Path, stopwatch: Stopwatch
) -> None:
    classifier.network(tmp_path / "retrained.onnx", seed=5)
    retrained = replace(job, model=ModelSpec(str(tmp_path / "retrained.onnx")))
    stopwatch.speedup = 0.97
    both = ("onnxruntime", "openvino")
    report = replayed(retrained, ranked, tmp_path / "again", runtimes=both)
    assert timed(report) == ["FP32 onnxruntime", "INT8 onnxruntime"]
    assert report.conclusion.exit_code == ExitCode.REFUSED
    assert report.conclusion.too_slow
    assert (tmp_path / "again" / "refused" / "model.onnx").is_file()
    # --min-speedup is asked of it as of any model.
    stopwatch.speedup = 1.4
    strict = replace(retrained, bounds=GateBounds(min_speedup=1.5))
    report = replayed(strict, ranked, tmp_path / "strict", runtimes=both)
    assert report.conclusion.exit_code == ExitCode.REFUSED


def test_fp32_that_int8_surely_beats_is_not_timed_again_but_has_to_be_beaten(
    job: Job, ranked: Path, tmp_path: Path, stopwatch: Stopwatch
) -> None:
    text = ranked.read_text(encoding="utf-8")
    tied = re.sub(r'"openvino" = \[[^]]*\]', '"openvino" = [0.98, 0.92, 1.3]', text)
    assert tied != text
    ranked.write_text(tied, encoding="utf-8")
    both = ("onnxruntime", "openvino")
    report = replayed(job, ranked, tmp_path / "again", runtimes=both)
    assert timed(report) == ["FP32 onnxruntime", "INT8 onnxruntime"]
    assert {len(x.rounds) for x in report.latencies} == {3}
    (note,) = (n for n in report.notes if n.startswith("from the recipe"))
    assert (
        "times as fast as FP32 in onnxruntime: FP32 in openvino 0.98 (0.92 to 1.30), INT8 " in note
    )
    stopwatch.speedup, stopwatch.spread = 1.3, 0.02
    report = replayed(job, ranked, tmp_path / "open", runtimes=both)
    assert {len(x.rounds) for x in report.latencies} == {10}
    # A speed-up that is asked for is one over the fastest FP32 of this run.
    asked = replace(job, bounds=GateBounds(min_speedup=1.1))
    report = replayed(asked, ranked, tmp_path / "asked", runtimes=both)
    assert timed(report) == ["FP32 onnxruntime", "FP32 openvino", "INT8 onnxruntime"]


def test_what_the_recipe_left_open_is_timed_in_few_rounds(
    job: Job, ranked: Path, tmp_path: Path, stopwatch: Stopwatch
) -> None:
    text = ranked.read_text(encoding="utf-8")
    close = re.sub(r'"int8" = .*', '"int8" = [1.02, 0.95, 1.09]', text)
    ranked.write_text(close, encoding="utf-8")
    stopwatch.speedup = 1.0
    both = ("onnxruntime", "openvino")
    report = replayed(job, ranked, tmp_path / "again", runtimes=both)
    assert {len(x.rounds) for x in report.latencies} == {3}
    assert any("INT8 is about as fast as FP32, so 3 processes" in n for n in report.notes)
    asked = replace(job, bounds=GateBounds(min_speedup=1.0))
    report = replayed(asked, ranked, tmp_path / "asked", runtimes=both)
    assert {len(x.rounds) for x in report.latencies} == {10}


# --- objectives ---


def test_for_throughput_each_inference_has_one_thread(
    job: Job, staging: Path, tmp_path: Path
) -> None:
    wanted = replace(job, limits=replace(job.limits, objective="throughput"))
    many = replace(wanted, effort=replace(job.effort, threads=0))
    report = run(many, staging, Silent())
    assert {x.variant.threads for x in report.latencies} == {1}
    (tmp_path / "two").mkdir()
    report = run(replace(wanted, effort=replace(job.effort, threads=2)), tmp_path / "two", Silent())
    assert {x.variant.threads for x in report.latencies} == {2}


# --- candidates that are lost ---


def test_a_lost_candidate_is_not_run_on_every_sample_until_it_is_reported(
    job: Job, staging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = judging.evaluate, []

    def spoiled(model: Any, samples: Any, metric: Any, execution: Any, **options: Any) -> Any:
        wrong = replace(metric, function=lambda outputs, labels, *_: [0.0] * len(labels))
        found = real(model, samples, wrong, execution, **options)
        seen.append(found.count)
        return found

    plain = tmp_path / "plain"
    plain.mkdir()
    run(job, plain, Silent())
    monkeypatch.setattr(judging, "evaluate", spoiled)
    heard = Silent()
    report = run(job, staging, heard)
    assert seen[0] == 40
    assert any("refuse, drop 1 (limit 0.03)" in line for line in heard.said)
    # What is published was judged by all.
    assert seen[-1] == 160
    assert report.verdict.n == len(report.evaluations[1].scores) == 160
    assert report.conclusion.outcome == "refuse"
    # A replay has one candidate, which is published whatever becomes of it.
    seen.clear()
    report = replayed(job, plain / "recipe.toml", tmp_path / "again")
    assert seen == [160]
    assert report.conclusion.outcome == "refuse"


# --- arithmetic ---


@pytest.mark.parametrize("target", ["vnni", "portable"])
def test_on_a_cpu_that_saturates_both_arithmetics_are_shown(
    job: Job, staging: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    for module in (concluding, judging):
        monkeypatch.setattr(module, "canary", lambda _: "saturating")
    report = run(replace(job, effort=replace(job.effort, target=target)), staging, Silent())
    assert [e.arithmetic for e in report.evaluations[1:]] == ["exact", "native"]
    assert report.verdict.candidate_value == report.evaluations[1].value


def test_a_cpu_that_is_exact_needs_one_evaluation(
    job: Job, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (concluding, judging):
        monkeypatch.setattr(module, "canary", lambda _: "exact")
    report = run(job, staging, Silent())
    assert [e.arithmetic for e in report.evaluations[1:]] == ["exact"]


@pytest.mark.parametrize(("target", "where"), [("vnni", "onnxruntime"), ("portable", "openvino")])
def test_what_saturates_in_openvino_is_judged_where_it_does_not(
    job: Job, staging: Path, monkeypatch: pytest.MonkeyPatch, target: str, where: str
) -> None:
    pytest.importorskip("openvino")
    for module in (concluding, judging):
        monkeypatch.setattr(module, "canary", lambda _: "saturating")
    served = replace(job.effort, runtimes=("openvino",), target=target)
    report = run(replace(job, effort=served), staging, Silent())
    assert report.served_by == "openvino"
    assert report.evaluations[1].runtime == where
    assert report.evaluations[1].arithmetic == ("exact" if where == "onnxruntime" else "native")
    native = [e.arithmetic for e in report.evaluations[2:]]
    assert native == (["native"] if target == "vnni" else [])


# --- which runtime serves ---


def judged(report: Report, runtime: str, outcome: Outcome) -> Judged:
    trial = trials.Trial("t", None, 30.0, {})  # type: ignore[arg-type]
    verdict = replace(report.verdict, outcome=outcome)
    return Judged(trial, runtime, report.evaluations[1], verdict)


def test_the_best_verdict_serves_and_of_equals_the_fastest(job: Job, staging: Path) -> None:
    report = run(job, staging, Silent())
    slow = next(x for x in report.latencies if x.variant.name == "INT8 onnxruntime")
    quick = tuple(replace(r, samples_ns=tuple(s // 2 for s in r.samples_ns)) for r in slow.rounds)
    fast = replace(slow, variant=replace(slow.variant, name="INT8 openvino"), rounds=quick)
    ours, theirs = judged(report, "onnxruntime", "pass"), judged(report, "openvino", "pass")
    assert finishing.fastest((ours, theirs), (slow, fast)) is theirs
    refused = replace(theirs, verdict=replace(theirs.verdict, outcome="refuse"))
    assert finishing.fastest((ours, refused), (slow, fast)) is ours


# --- data ---


@given(st.integers(1, 500), st.integers(1, 500))
def test_a_spread_is_even_and_of_the_size_asked_for(total: int, count: int) -> None:
    found = starting.spread(total, count)
    assert found == sorted(set(found))
    assert len(found) == min(total, count)
    assert all(0 <= i < total for i in found)
    gaps = {b - a for a, b in itertools.pairwise(found)}
    assert max(gaps, default=0) - min(gaps, default=0) <= 1


def test_a_few_calibration_samples_are_said(job: Job, staging: Path) -> None:
    report = run(job, staging, Silent())
    assert "only 40 samples calibrate; ranges settle with 100 and more" in report.notes


def test_probes_did_not_calibrate(job: Job, staging: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    real = pipeline.calibrate_for

    def calibrate_for(rows: Any, *others: Any) -> Any:
        seen["calibrated"] = {s.feeds["x"].tobytes() for s in rows.samples}
        return real(rows, *others)

    def run_probes(model: Any, probes: Any, threads: int) -> Any:
        seen["probes"] = {p["x"].tobytes() for p in probes}
        return trials.run_probes(model, probes, threads)

    monkeypatch.setattr(pipeline, "calibrate_for", calibrate_for)
    monkeypatch.setattr(pipeline, "run_probes", run_probes)
    run(job, staging, Silent())
    assert len(seen["probes"]) == 8
    assert len(seen["calibrated"]) == 32
    assert not seen["probes"] & seen["calibrated"]


def test_the_tolerance_follows_the_metric(job: Job, staging: Path, tmp_path: Path) -> None:
    tiny.linear(tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 4)).astype(np.float32)
    labels = rng.standard_normal((80, 3)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, labels=labels)
    asked = replace(
        job,
        model=ModelSpec(str(tmp_path / "m.onnx")),
        data=DataSpec(str(tmp_path / "d.npz")),
        limits=Limits(inconclusive="pass"),
    )
    report = run(asked, staging, Silent())
    assert (report.metric, report.max_drop) == ("mse", "1%")
    assert not report.verdict.higher_is_better


def test_a_state_that_the_model_lacks_is_a_usage_error(job: Job, staging: Path) -> None:
    wrong = replace(job, data=replace(job.data, states={"hidden": "x"}))
    with pytest.raises(UsageError, match="--state hidden:x: the model has outputs"):
        run(wrong, staging, Silent())


# --- a model that breaks when it is quantized ---


@pytest.mark.parametrize("metric", ["cosine", "mse"])
def test_outputs_that_are_not_finite_are_refused(
    job: Job, staging: Path, tmp_path: Path, metric: str
) -> None:
    # The root of a sum that is positive in FP32, and negative once its weights are rounded:
    # 42.45 + 42.4 + 42.4 - 127 = 0.25 becomes 42 + 42 + 42 - 127 = -1.
    w = np.array([[42.45], [42.4], [42.4], [-127.0]], np.float32) / 127
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="product"),
        helper.make_node("Sqrt", ["p"], ["y"]),
    ]
    x: tiny.Port = ("x", TensorProto.FLOAT, ["n", 4])
    y: tiny.Port = ("y", TensorProto.FLOAT, ["n", 1])
    tiny.save(tmp_path / "m.onnx", nodes, [x], [y], {"w": w})
    values = np.random.default_rng(0).uniform(1, 100, (200, 1)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=np.repeat(values, 4, axis=1), labels=values / 50)
    asked = replace(
        job,
        model=ModelSpec(str(tmp_path / "m.onnx")),
        data=DataSpec(str(tmp_path / "d.npz"), calibration_count=40),
        limits=Limits(metric=metric, max_drop="50%", inconclusive="pass"),
        # Learned, it would be 42 + 42 + 43 - 127 = 0.
        effort=replace(job.effort, target="vnni", rounding="nearest"),
    )
    heard = Silent()
    report = run(asked, staging, heard)
    assert (report.conclusion.outcome, report.conclusion.exit_code) == ("refuse", 3)
    assert report.evaluations[1].nonfinite > 0
    assert "returned NaN or infinity" in report.verdict.reason
    assert (staging / "refused" / "model.onnx").is_file()
    assert load(Report, dump(report), "report") == report
    assert any("outputs are noise, not evaluated" in line for line in heard.said)


def test_the_report_says_which_kernels_run(job: Job, staging: Path) -> None:
    report = run(job, staging, Silent())
    found = report.inspection
    assert found is not None
    assert found.model == report.int8
    (kernels,) = found.kernels
    assert kernels.runtime == "onnxruntime"
    assert 0 < kernels.integer_products <= len(kernels.products)
    assert kernels.runs > 0
    assert len(found.layers) == len(report.layers) + len(report.left)
    text = render(document(report), "text")
    assert "Kernels that really run" in text
    assert "On CPUs without VNNI it gives the same answers" in text
    assert "Kernels that really run" not in render(
        document(replace(report, inspection=None)), "text"
    )


# --- what else was asked ---


def divided(tmp_path: Path, people: int) -> Path:
    path = tmp_path / "slices.csv"
    rows = [f"{i},{'day' if i % 2 else 'night'},p{i % people}" for i in range(200)]
    path.write_text("\n".join(["sample,light,person", *rows]), encoding="utf-8")
    return path


def test_slices_and_bounds_are_checks_of_the_model(job: Job, staging: Path, tmp_path: Path) -> None:
    limits = replace(job.limits, slices=divided(tmp_path, 2), max_slice_drop="20pt")
    asked = replace(job, limits=limits, bounds=GateBounds(1.2, 10**6, 1.1))
    report = run(asked, staging, Silent())
    assert {c.name: c.outcome for c in report.further} == {
        "threads": "pass",
        "slices": "pass",
        "speed": "pass",
        "size": "pass",
        "compression": "pass",
    }
    assert {s.column for s in report.slices} == {"light", "person", "class"}
    assert report.slice_limit == pytest.approx(0.2)
    assert report.conclusion.ships


def test_a_bound_that_is_missed_refuses_the_model(job: Job, staging: Path) -> None:
    report = run(replace(job, bounds=GateBounds(min_compression=50.0)), staging, Silent())
    assert (report.conclusion.outcome, report.conclusion.exit_code) == ("refuse", 3)
    assert "50 asked" in report.conclusion.headline
    assert (staging / "refused" / "model.onnx").is_file()


def test_units_are_what_the_verdict_counts(job: Job, staging: Path, tmp_path: Path) -> None:
    limits = replace(job.limits, slices=divided(tmp_path, 20), unit="person", max_drop="5pt")
    report = run(replace(job, limits=limits), staging, Silent())
    assert report.verdict.n == 20
    # Twenty persons without a loss prove no 5 pt, however many samples each gave.
    assert report.verdict.outcome == "inconclusive"


def test_a_column_that_is_missing_is_refused_before_the_search(
    job: Job, staging: Path, tmp_path: Path
) -> None:
    heard = Silent()
    limits = replace(job.limits, slices=divided(tmp_path, 20), unit="parson")
    with pytest.raises(UsageError, match="Did you mean 'person'"):
        run(replace(job, limits=limits), staging, heard)
    assert "search" not in heard.stages


def test_a_model_is_held_against_the_committed_baseline(
    job: Job, staging: Path, tmp_path: Path
) -> None:
    report = run(job, staging, Silent())
    lock = finishing.lock_of_report(report, staging)
    assert lock.entries[0].speedup == pytest.approx(report.comparisons[0].ratio)
    file = tmp_path / "vnnify.lock.json"
    for better, ends in ((lock, "pass"), (replace(lock, size_bytes=100), "refuse")):
        write_lock(file, better)
        folder = tmp_path / ends
        folder.mkdir()
        again = run(replace(job, lock=file), folder, Silent())
        assert again.conclusion.outcome == ends
        assert "baseline: size" in {c.name for c in again.further}
    write_lock(file, replace(lock, metric="top5"))
    heard = Silent()
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="its metric is top5"):
        run(replace(job, lock=file), tmp_path / "other", heard)
    assert "baseline" not in heard.stages


def test_on_a_busy_machine_no_limit_of_speed_near_by_is_decided(
    job: Job, staging: Path, tmp_path: Path, stopwatch: Stopwatch
) -> None:
    report = run(job, staging, Silent())
    assert "[made.speed]" in (staging / "recipe.toml").read_text(encoding="utf-8")
    file = tmp_path / "vnnify.lock.json"
    write_lock(file, finishing.lock_of_report(report, staging))
    stopwatch.speedup, stopwatch.held_up = 1.9, 0.6
    limited = replace(job, lock=file, bounds=GateBounds(min_speedup=1.5))
    (tmp_path / "busy").mkdir()
    found = run(limited, tmp_path / "busy", Silent())
    assert (found.conclusion.outcome, found.conclusion.exit_code) == ("inconclusive", 4)
    open_ = [c.name for c in found.further if c.outcome == "inconclusive"]
    assert open_ == ["speed", "baseline: speed in onnxruntime"]
    assert found.conclusion.headline.startswith("INT8 is 1.90 times as fast (0.76 to 4.75), at ")
    recipe = tmp_path / "busy" / "refused" / "recipe.toml"
    assert "[made.speed]" not in recipe.read_text(encoding="utf-8")


@pytest.mark.parametrize("limit", [None, "5pt"])
def test_slices_with_a_limit_are_held_to_the_confidence_of_the_chosen_model(
    job: Job, staging: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None
) -> None:
    asked: list[float] = []
    real = concluding.look_into

    def look_into(*parts: Any, share: float) -> Any:
        asked.append(level_of(parts[4], share, None))
        return real(*parts, share=share)

    monkeypatch.setattr(concluding, "look_into", look_into)
    report = run(replace(job, limits=replace(job.limits, max_slice_drop=limit)), staging, Silent())
    # The samples that judge slices have chosen the model, too.
    level, confidence = report.verdict.level, job.limits.confidence
    assert level > confidence
    assert asked == [confidence if limit is None else level]
