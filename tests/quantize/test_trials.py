"""Trials of a real, tiny network; only clocks are faked."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from bench.errors import InputError, UnsupportedError
from bench.islands import Kernel
from bench.kernels import Kernels, find_kernels
from bench.models import Feeds, Model, read_model
from bench.runtimes import Settings
from bench.runtimes.onnxruntime import OnnxRuntime
from quantize import ranking, served, trials, variants
from quantize.anchors import Mode, find_anchors
from quantize.calibrate import calibrate
from quantize.candidates import Aim
from quantize.evaluate import Evaluation
from quantize.gate import Verdict
from quantize.outputs import noise_shares, to_db
from quantize.placement import watch_list
from quantize.prepare import prepare
from quantize.quantizers import QuantizedLayer, QuantizedModel
from quantize.ranking import fusion_groups, paying, single_noise
from quantize.recipe import Recipe
from quantize.search import search
from quantize.trials import (
    Start,
    Trial,
    Workbench,
    attempt,
    attempt_or_none,
    run_probes,
    time_quickly,
)
from quantize.variants import RANGE_CHOICES, best_variant, refined, smoothed
from tests import classifier, tiny
from tests.int8 import samples_of
from tests.quantize.test_search import EVALUATION, verdict
from tests.timing import Stopwatch

STATIC: dict[str, Mode] = {"first": "static", "second": "static", "head": "static"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    folder = tmp_path_factory.mktemp("bench")
    source = read_model(classifier.network(folder / "net.onnx"))
    fp32 = prepare(source, folder / "fp32.onnx").model
    graph = ir.load(fp32.path)
    anchors, _ = find_anchors(graph)
    x, _ = classifier.images(40, seed=4)
    feeds: list[Feeds] = [{"x": row[None]} for row in x]
    found = calibrate(
        fp32,
        watch_list(graph, anchors),
        samples_of(feeds[8:], fp32.inputs),
        threads=1,
        scratch=folder,
        states={},
    )
    probes = tuple(feeds[:8])
    outputs = run_probes(fp32, probes, 1)
    return Workbench(fp32, anchors, found, probes, outputs, ("onnxruntime",), 1, folder)


@pytest.fixture
def bench(shared: Workbench, tmp_path: Path) -> Workbench:
    """The same with a scratch folder of its own, where nothing was tried."""
    return replace(shared, scratch=tmp_path, tried={})


def recipe(modes: dict[str, Mode] | None = None, **options: Any) -> Recipe:
    plain = {"target": "portable", "ranges": "minmax", "correct_bias": True}
    return Recipe(modes=modes or STATIC, **{**plain, **options})


# --- candidates ---


def test_a_candidate_is_a_file_with_its_noise(bench: Workbench) -> None:
    first = attempt(bench, recipe(), "one")
    second = attempt(bench, recipe(ranges="mse"), "two")
    assert first.quantized.model.path != second.quantized.model.path
    assert first.quantized.model.path.parent == bench.scratch
    assert first.latency_ms == {}
    assert first.fastest is None
    again = noise_shares(
        bench.probe_outputs, run_probes(first.quantized.model, bench.probes, bench.threads)
    )
    assert first.noise_db == to_db(again)
    assert 20 < first.noise_db < 70


def test_a_recipe_that_leaves_nothing_is_no_candidate(bench: Workbench) -> None:
    nothing = recipe({"first": "float", "second": "float", "head": "float"})
    with pytest.raises(UnsupportedError):
        attempt(bench, nothing, "nothing")
    assert attempt_or_none(bench, nothing, "nothing") is None
    assert best_variant(bench, nothing, "nothing") is None


def test_a_candidate_that_does_not_run_is_none(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise InputError("it does not run")

    monkeypatch.setattr(trials, "run_probes", refuse)
    assert attempt_or_none(bench, recipe(), "broken") is None


def test_the_least_noisy_ranges_are_chosen(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = replace(bench, rounding="nearest")
    noise = {("mse", True): 30.0, ("minmax", True): 35.0, ("percentile", True): 20.0}
    tried = []
    real = trials.attempt

    def attempt(bench: Workbench, recipe: Recipe, name: str) -> trials.Trial:
        tried.append((recipe.ranges, recipe.correct_bias))
        return replace(real(bench, recipe, name), noise_db=noise[tried[-1]])

    monkeypatch.setattr(trials, "attempt", attempt)
    best = best_variant(bench, recipe(ranges="mse"), "static")
    assert best is not None
    chosen = best.quantized.recipe
    assert (chosen.ranges, best.noise_db) == ("minmax", 35.0)
    # Where a bias does not help, its layer goes without; see test_fitting.
    assert tried == [(r, True) for r in RANGE_CHOICES]


@pytest.mark.parametrize(
    ("wanted", "nearest_db", "learned_db", "tried", "kept"),
    [
        ("auto", 25.0, 33.0, True, "learned"),
        # Held-out rows of each layer count for more than a few probes, up to a point.
        ("auto", 25.0, 24.5, True, "learned"),
        ("auto", 25.0, 23.5, True, "nearest"),
        ("auto", 60.0, 70.0, False, "nearest"),
        ("nearest", 25.0, 33.0, False, "nearest"),
        ("learned", 60.0, 70.0, True, "learned"),
    ],
)
def test_learned_rounding_is_tried_where_outputs_are_noisy(
    bench: Workbench,
    monkeypatch: pytest.MonkeyPatch,
    wanted: Any,
    nearest_db: float,
    learned_db: float,
    *,
    tried: bool,
    kept: str,
) -> None:
    seen = []
    real = trials.attempt

    def attempt(bench: Workbench, recipe: Recipe, name: str) -> trials.Trial:
        seen.append(recipe.rounding)
        noise = learned_db if recipe.rounding == "learned" else nearest_db
        return replace(real(bench, recipe, name), noise_db=noise)

    monkeypatch.setattr(trials, "attempt", attempt)
    best = best_variant(replace(bench, rounding=wanted), recipe(), "static")
    assert best is not None
    assert ("learned" in seen) == tried
    assert best.quantized.recipe.rounding == kept


def test_learned_rounding_that_would_come_too_late_is_not_begun(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    monkeypatch.setattr(variants, "attempt_or_none", lambda _, r, __: tried.append(r.rounding))
    large = tuple(replace(a, weight_count=36_000_000) for a in bench.anchors)
    bench = replace(bench, anchors=large, threads=1, deadline_s=perf_counter() + 10)
    trial = attempt(bench, recipe(), "static")
    assert variants._learned(bench, trial, trial.quantized.recipe.modes) is trial
    assert tried == []
    longer = replace(bench, deadline_s=perf_counter() + 1000)
    variants._learned(longer, trial, trial.quantized.recipe.modes)
    assert tried == ["learned"]


def evened(bench: Workbench) -> Workbench:
    """With a start whose graph is the plain one under another name."""
    start = Start({"second": 0.5}, 0, bench.fp32, bench.anchors, bench.calibration)
    return replace(bench, starts=(start,), rounding="nearest")


@pytest.mark.parametrize(
    ("even_db", "tried"),
    [
        # Not even with the best ranges: others are not tried.
        (34.0, [("minmax", True)]),
        (36.0, [("minmax", True), ("mse", True), ("percentile", True)]),
    ],
)
def test_evened_channels_are_tried_with_the_ranges_that_suit_the_plain_ones_first(
    bench: Workbench,
    monkeypatch: pytest.MonkeyPatch,
    even_db: float,
    tried: list[tuple[str, bool]],
) -> None:
    plain_db = {"mse": 30.0, "minmax": 35.0, "percentile": 20.0}
    seen = []
    real = trials.attempt

    def attempt(bench: Workbench, recipe: Recipe, name: str) -> trials.Trial:
        even = bool(recipe.strengths)
        seen.append((recipe.ranges, even))
        noise_db = even_db if even else plain_db[recipe.ranges]
        return replace(real(bench, recipe, name), noise_db=noise_db)

    monkeypatch.setattr(trials, "attempt", attempt)
    best = best_variant(evened(bench), recipe(ranges="mse"), "static")
    assert seen == [*((r, False) for r in RANGE_CHOICES), *tried]
    assert best is not None
    assert bool(best.quantized.recipe.strengths) == (even_db > 35)
    assert best.quantized.recipe.ranges == "minmax"
    assert best.quantized.model.path.is_file()


def test_a_refined_candidate_leaves_the_file_of_one_that_was_judged(bench: Workbench) -> None:
    base = attempt(bench, recipe(), "base")
    pinned = replace(bench, pinned=frozenset({base.quantized.model.sha256}))
    found = refined(pinned, base, STATIC)
    assert found.quantized.recipe.rounding == "learned"
    assert found.quantized.model.path.is_file()
    assert base.quantized.model.path.is_file()
    refined(bench, base, STATIC)
    assert not base.quantized.model.path.is_file()


def test_ranges_do_not_matter_where_nothing_is_static(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    real = trials.attempt
    monkeypatch.setattr(trials, "attempt", lambda *a: made.append(a[1]) or real(*a))
    dynamic = recipe({"first": "float", "second": "float", "head": "dynamic"})
    assert best_variant(bench, dynamic, "dynamic") is not None
    assert len(made) == 1


def test_another_engine_is_tried_once_with_ranges_of_its_own(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(variants, "attempt_or_none", lambda *a: made.append(a[1]))
    best_variant(bench, recipe(engine="nncf"), "nncf")
    assert made == [recipe(engine="nncf")]


def test_the_native_engine_tells_which_layers_of_another_are_delicate(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = attempt(bench, recipe(), "native")
    theirs = replace(ours, quantized=replace(ours.quantized, recipe=recipe(engine="nncf")))
    asked = []
    real = ranking.quantize
    monkeypatch.setattr(ranking, "quantize", lambda *a: asked.append(a[3].engine) or real(*a))
    wanted = noises(bench, ours, enough=False)
    assert noises(bench, theirs, enough=False) == wanted
    assert set(asked) == {"native"}


def test_once_it_is_late_the_first_candidate_is_all(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Recipe] = []

    def once(bench: Workbench, recipe: Recipe, name: str) -> Trial | None:
        made.append(recipe)
        return attempt(bench, recipe, name)

    monkeypatch.setattr(variants, "attempt_or_none", once)
    late = replace(bench, deadline_s=perf_counter() - 1)
    best = best_variant(late, recipe(ranges="mse"), "static")
    assert best is not None
    assert len(made) == 1
    assert best.quantized.model.path.is_file()
    muls = replace(
        late, starts=(Start({"x": 0.5}, 1, bench.fp32, bench.anchors, bench.calibration),)
    )
    assert smoothed(muls, [best]) == []
    assert len(made) == 1


def noise_of(quantized: QuantizedModel, fp32: Model) -> float:
    """Noise over signal on a hundred images that neither calibrated nor chose anything."""
    x, _ = classifier.images(100, seed=9)
    feeds = tuple({"x": row[None]} for row in x)
    wanted, found = (run_probes(m, feeds, 1) for m in (fp32, quantized.model))
    return noise_shares(wanted, found)["logits"]


def test_a_quiet_model_that_fails_its_limit_is_learned_before_layers_go_to_float(
    bench: Workbench, stopwatch: Stopwatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantize.making.plans", lambda *_: {"static": recipe(ranges="mse")})
    plain = best_variant(replace(bench, rounding="nearest"), recipe(ranges="mse"), "plain")
    assert plain is not None
    assert plain.noise_db > 40
    # A tenth less noise than the best that rounding to the nearest leaves.
    limit = 0.9 * noise_of(plain.quantized, bench.fp32)

    def judge(
        quantized: QuantizedModel, runtime: str, *, unlikely: bool = False
    ) -> tuple[Evaluation, Verdict]:
        drop = noise_of(quantized, bench.fp32)
        return EVALUATION, verdict("pass" if drop <= limit else "refuse", drop, limit)

    aim = Aim(can_pass=lambda: True, need_speed=False, say=lambda _: None)
    found = search(bench, judge, ("portable",), aim)
    assert found.best is not None
    chosen = found.best.trial.quantized.recipe
    assert (found.best.verdict.outcome, chosen.rounding) == ("pass", "learned")
    assert "float" not in chosen.modes.values()
    assert found.judged[0].verdict.outcome == "refuse"
    assert all(j.trial.quantized.model.path.is_file() for j in found.judged)


# --- time ---


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    made = Stopwatch(speedup=4.0)
    monkeypatch.setattr(trials, "glance", made.glance)
    return made


def test_candidates_are_timed_beside_fp32(bench: Workbench, stopwatch: Stopwatch) -> None:
    made = [attempt(bench, recipe(), "a"), attempt(bench, recipe(ranges="mse"), "b")]
    timed, fp32_ms = time_quickly(bench, made)
    assert [t.name for t in timed] == ["a", "b"]
    assert [t.latency_ms for t in timed] == [{"onnxruntime": 0.25}] * 2
    assert timed[0].fastest == "onnxruntime"
    assert fp32_ms == {"onnxruntime": 1.0}
    assert stopwatch.measured == [["fp32 onnxruntime", "0 onnxruntime", "1 onnxruntime"]]


def test_a_file_is_timed_only_where_it_belongs_and_opens(
    bench: Workbench, stopwatch: Stopwatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = replace(bench, runtimes=("onnxruntime", "openvino"))
    dynamic: dict[str, Mode] = {"first": "float", "second": "float", "head": "dynamic"}
    made = [
        attempt(bench, recipe(), "static"),
        attempt(bench, recipe(fused_for="openvino"), "for openvino"),
        attempt(bench, recipe(dynamic), "contrib"),
    ]
    closed = ("openvino", made[2].quantized.model.path)
    monkeypatch.setattr(trials, "serves", lambda r, m, *_: (r, m.path) != closed)
    timed, fp32_ms = time_quickly(both, made)
    assert [set(t.latency_ms) for t in timed] == [
        {"onnxruntime", "openvino"},
        {"openvino"},
        {"onnxruntime"},
    ]
    assert set(fp32_ms) == {"onnxruntime", "openvino"}
    # A second look asks of FP32 only what the first one told of the others.
    asked: list[Path] = []

    def serves(_runtime: str, model: Model, *_: Any) -> bool:
        asked.append(model.path)
        return True

    monkeypatch.setattr(trials, "serves", serves)
    again, _ = time_quickly(both, timed, rounds=3)
    assert [set(t.latency_ms) for t in again] == [set(t.latency_ms) for t in timed]
    assert set(asked) == {bench.fp32.path}


def test_where_no_runtime_takes_fp32_it_is_unsupported(
    bench: Workbench, stopwatch: Stopwatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [attempt(bench, recipe(), "a")]
    monkeypatch.setattr(trials, "serves", lambda *_: False)
    with pytest.raises(UnsupportedError, match="onnxruntime"):
        time_quickly(bench, made)


def test_what_is_float_in_openvino_is_not_tried_there(bench: Workbench) -> None:
    dynamic = recipe({"first": "float", "second": "float", "head": "dynamic"})
    mixed = recipe({"first": "static", "second": "static", "head": "dynamic"})
    both = replace(bench, runtimes=("onnxruntime", "openvino"))
    assert not trials.may_serve("openvino", dynamic, both)
    assert trials.may_serve("onnxruntime", dynamic, both)
    assert trials.may_serve("openvino", mixed, both)
    # A small file may be what is asked for, and OpenVINO the only one that may serve it.
    assert trials.may_serve("openvino", dynamic, replace(both, need_speed=False))
    assert trials.may_serve("openvino", dynamic, replace(bench, runtimes=("openvino",)))


def test_openvino_multiplies_dynamic_layers_in_float(bench: Workbench, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    modes: dict[str, Mode] = {"first": "float", "second": "float", "head": "dynamic"}
    made = attempt(bench, recipe(modes), "dynamic").quantized.model.path
    assert products(made, "onnxruntime", tmp_path) == [False, False, True]
    assert not any(products(made, "openvino", tmp_path))


def products(path: Path, runtime: str, scratch: Path) -> list[bool]:
    found = find_kernels(path, runtime, threads=1, scratch=scratch)
    return [k.integer for k in found.products]


def test_contrib_operators_open_in_their_own_runtime_only(bench: Workbench) -> None:
    pytest.importorskip("openvino")
    dynamic: dict[str, Mode] = {"first": "float", "second": "float", "head": "dynamic"}
    made = attempt(bench, recipe(dynamic), "dynamic").quantized.model
    assert trials.serves("onnxruntime", made, bench, 30.0)
    assert trials.serves("openvino", bench.fp32, bench, 200.0)


# --- single layers ---


def noises(bench: Workbench, trial: Trial, *, enough: bool) -> dict[str, float]:
    groups = fusion_groups(bench, trial.quantized.recipe)
    found = single_noise(bench, trial, groups, lambda: enough)
    assert all(len(g) == 1 for g in found)
    return {g[0]: share for g, share in found.items()}


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("join", ["Add", "Mul", "Concat"])
def test_anchors_that_one_node_takes_in_integers_are_one_group(
    tmp_path: Path, join: str, *, moved: bool
) -> None:
    rng = np.random.default_rng(0)
    wide = 8 if join == "Concat" else 4
    shapes = {n: (4, wide if n == "c" else 4, 3, 3) for n in "abcd"}
    constants = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    axis = {"axis": 1} if join == "Concat" else {}
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["a_out"], name="a", pads=[1] * 4),
        helper.make_node("Conv", ["x", "b"], ["b_out"], name="b", pads=[1] * 4),
        helper.make_node("MaxPool", ["b_out"], ["b_moved"], name="move", kernel_shape=[1, 1]),
        helper.make_node("MaxPool", ["b_moved"], ["b_again"], name="more", kernel_shape=[1, 1]),
        helper.make_node(
            join, ["a_out", "b_again" if moved else "b_out"], ["joined"], name="join", **axis
        ),
        helper.make_node("Conv", ["joined", "c"], ["c_out"], name="c", pads=[1] * 4),
        helper.make_node("Conv", ["c_out", "d"], ["y"], name="d", pads=[1] * 4),
    ]
    port = ["n", 4, 6, 6]
    path = tiny.save(
        tmp_path / "net.onnx",
        nodes,
        [("x", TensorProto.FLOAT, port)],
        [("y", TensorProto.FLOAT, port)],
        constants,
    )
    fp32 = prepare(read_model(path), tmp_path / "fp32.onnx").model
    graph = ir.load(fp32.path)
    anchors, _ = find_anchors(graph)
    feeds = [{"x": rng.standard_normal((1, 4, 6, 6)).astype(np.float32)} for _ in range(4)]
    found = calibrate(
        fp32,
        watch_list(graph, anchors),
        samples_of(feeds, fp32.inputs),
        threads=1,
        scratch=tmp_path,
        states={},
    )
    made = Workbench(fp32, anchors, found, (), (), ("onnxruntime",), 1, tmp_path)
    every = recipe(dict.fromkeys("abcd", "static"))
    assert fusion_groups(made, every) == (("a", "b"), ("c",), ("d",))
    without = recipe({**dict.fromkeys("abcd", "static"), "b": "float"})
    assert fusion_groups(made, without) == (("a",), ("c",), ("d",))


def test_noise_of_layers_alone_adds_up_to_about_the_whole(bench: Workbench) -> None:
    trial = attempt(bench, recipe(), "static")
    alone = noises(bench, trial, enough=False)
    assert set(alone) == set(STATIC)
    assert all(0 < share < 0.1 for share in alone.values())
    whole = 10 ** (-trial.noise_db / 10)
    assert 0.3 < sum(alone.values()) / whole < 3


def test_layers_in_float_and_after_the_deadline_are_left_out(bench: Workbench) -> None:
    trial = attempt(bench, recipe({**STATIC, "second": "float"}), "static")
    assert set(noises(bench, trial, enough=False)) == {"first", "head"}
    assert noises(bench, trial, enough=True) == {}


# --- kernels that do not pay ---


Times = Callable[..., dict[str, float]]


def profiles(fp32: dict[str, float], int8: dict[str, float]) -> Times:
    def node_times(path: Path, *_: Any, **__: Any) -> dict[str, float]:
        return int8 if path.name.startswith("trial") else fp32

    return node_times


def test_a_layer_whose_int8_kernel_gains_nothing_goes_back_to_float(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = attempt(bench, recipe(), "static")
    end = next(a.end for a in bench.anchors if a.name == "first")
    fp32 = {f"{end}_nchwc": 1.0, "second": 1.0, "head": 1.0, "other": 9.0}
    int8 = {"first_token_3": 0.5, "second_token_12": 0.95, "head_token_1": 0.89}
    monkeypatch.setattr(ranking, "node_times", profiles(fp32, int8))
    assert paying(bench, trial, "onnxruntime") == {**STATIC, "second": "float"}


def test_in_openvino_the_kernels_of_openvino_are_looked_at(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    trial = attempt(bench, recipe(fused_for="openvino"), "static for OpenVINO")
    monkeypatch.setattr(ranking, "node_times", None)
    monkeypatch.setattr(ranking, "_GAIN", 1e9)
    assert paying(bench, trial, "openvino") == STATIC
    monkeypatch.setattr(ranking, "_GAIN", 1e-9)
    back = {n for n, m in paying(bench, trial, "openvino").items() if m == "float"}
    assert {"first", "second"} <= back


def test_a_convolution_of_openvino_goes_by_its_name_without_its_bias(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kernel(kind: Any, ms: float | None, *origins: str) -> Kernel:
        return Kernel("fused", "Convolution", kind, False, "", origins, ms)  # noqa: FBT003

    told = (kernel("product", 2.0, "first/WithoutBiases", "relu"), kernel("product", 3.0))
    told += (kernel("product", None, "untimed"), kernel("other", 4.0, "pool"))
    monkeypatch.setattr(
        ranking, "find_kernels", lambda *_, **__: Kernels("openvino", "1", told, (), 0, 3)
    )
    found = ranking.kernel_times(bench, Path("m.onnx"), "openvino")
    assert found == {"first,relu": 2.0, "fused": 3.0}


def test_a_layer_whose_ranges_are_found_at_run_time_keeps_its_mode(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed: dict[str, Mode] = {**STATIC, "head": "dynamic"}
    trial = attempt(bench, recipe(mixed), "mixed")
    monkeypatch.setattr(ranking, "_time_of", lambda *_: 1.0)
    back = paying(bench, trial, "onnxruntime")
    assert back == {"first": "float", "second": "float", "head": "dynamic"}


def test_a_runtime_that_refuses_to_tell_changes_nothing(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise InputError("no")

    monkeypatch.setattr(ranking, "find_kernels", refuse)
    assert paying(bench, attempt(bench, recipe(), "static"), "openvino") == STATIC


def test_a_layer_that_a_profile_does_not_show_keeps_its_mode(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = attempt(bench, recipe(), "static")
    # "first_token_1" is of the first; "first2" is another node.
    fp32 = {"first": 1.0, "second": 1.0}
    int8 = {"first2": 9.0, "head_token_1": 9.0}
    monkeypatch.setattr(ranking, "node_times", profiles(fp32, int8))
    assert paying(bench, trial, "onnxruntime") == STATIC


def test_the_real_profiler_finds_every_layer_in_both_models(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = attempt(bench, recipe(), "static")
    # Whatever gains, nothing gains this much: each layer that is found goes back.
    monkeypatch.setattr(ranking, "_GAIN", 1e-9)
    assert set(paying(bench, trial, "onnxruntime").values()) == {"float"}
    assert list(bench.scratch.glob("profile*")) == []


def test_a_layer_in_float_is_explained_once_and_others_are_left_alone() -> None:
    layers = (
        QuantizedLayer("a", "Conv", "float", 0, 0, None),
        QuantizedLayer("b", "Conv", "float", 0, 0, "not finite"),
        QuantizedLayer("c", "Conv", "static", 0, 4, None),
    )
    made = QuantizedModel(None, None, layers, "")  # type: ignore[arg-type]
    reasons = {"a": "noisy", "b": "slow", "c": "slow"}
    trial = trials.explained(trials.Trial("t", made, 30.0, {}), reasons)
    assert [x.reason for x in trial.quantized.layers] == ["noisy", "not finite", None]


@pytest.mark.parametrize("error", [InputError, UnsupportedError])
def test_a_runtime_that_refuses_a_file_does_not_serve_it(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    class Refusing:
        def open(self, path: Path, settings: Settings) -> Any:
            raise error("no such operator")

    monkeypatch.setitem(trials.RUNTIMES, "openvino", Refusing())
    assert not trials.serves("openvino", bench.fp32, bench, 30.0)


def test_a_runtime_that_computes_garbage_does_not_serve(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def open(self, path: Path, settings: Settings) -> Any:
            return self

        def run(self, feeds: Feeds) -> Feeds:
            return {n: v + 1e6 for n, v in bench.probe_outputs[0].items()}

        def close(self) -> None:
            pass

    monkeypatch.setitem(trials.RUNTIMES, "openvino", Broken())
    assert not trials.serves("openvino", bench.fp32, bench, 30.0)
    assert trials.serves("onnxruntime", bench.fp32, bench, 30.0)
    # A candidate that is noise everywhere is not the runtime's fault.
    assert trials.serves("openvino", bench.fp32, bench, -150.0)


@pytest.mark.parametrize(("arithmetic", "opened"), [("exact", 0), ("saturating", 1)])
def test_what_ran_in_onnxruntime_is_opened_again_only_where_its_arithmetic_differs(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, arithmetic: str, opened: int
) -> None:
    class Counting(OnnxRuntime):
        count = 0

        def open(self, path: Path, settings: Settings) -> Any:
            self.count += 1
            return super().open(path, settings)

    monkeypatch.setattr(served, "canary", lambda _: arithmetic)
    made = attempt(bench, recipe(), "a")
    monkeypatch.setitem(trials.RUNTIMES, "onnxruntime", counting := Counting())
    for _ in range(2):
        assert trials.serves("onnxruntime", made.quantized.model, bench, made.noise_db)
        assert trials.serves("onnxruntime", bench.fp32, bench, 200.0)
    assert counting.count == opened
    (noise,) = (t.noise for t in bench.tried.values())
    assert to_db(noise or {}) == pytest.approx(made.noise_db, abs=6)
