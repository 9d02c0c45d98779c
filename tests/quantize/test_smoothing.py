"""Strengths are chosen by noise, and a graph evened out by them makes less of it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from bench.errors import UnsupportedError
from bench.models import Feeds, read_model
from quantize import smoothing
from quantize.anchors import Mode, find_anchors
from quantize.calibrate import calibrate
from quantize.equalize import find_groups
from quantize.placement import watch_list
from quantize.prepare import prepare
from quantize.recipe import Recipe
from quantize.smoothing import capture, even_out, even_out_as
from quantize.trials import Workbench, attempt, run_probes
from quantize.variants import best_variant, smoothed
from tests import tiny
from tests.int8 import run, samples_of

F = TensorProto.FLOAT
WIDTH = 16


def constants(outlier: float) -> dict[str, Any]:
    """Of a block whose norm makes one channel `outlier` times larger than the others."""
    rng = np.random.default_rng(0)
    scale = np.ones(WIDTH, np.float32)
    scale[3] = outlier
    return {
        "g": scale,
        "h": np.zeros(WIDTH, np.float32),
        "m": (rng.standard_normal((WIDTH, WIDTH)) / 4).astype(np.float32),
        "n": (rng.standard_normal((WIDTH, WIDTH)) / 4).astype(np.float32),
    }


def block(path: Path, *, outlier: float, residual: bool, opset: int = 17) -> Path:
    """Norm, two products, and their sum, with the norm's output added where `residual`."""
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "h"], ["l"], name="l"),
        helper.make_node("MatMul", ["l", "m"], ["q"], name="q"),
        helper.make_node("MatMul", ["l", "n"], ["k"], name="k"),
        helper.make_node("Add", ["q", "k"], ["s"], name="s"),
        helper.make_node("Add" if residual else "Mul", ["s", "l" if residual else "q"], ["t"]),
        helper.make_node("Tanh", ["t"], ["y"]),
    ]
    shape = ["b", "n", WIDTH]
    made = constants(outlier)
    return tiny.save(path, nodes, [("x", F, shape)], [("y", F, shape)], made, opset)


def workbench(folder: Path, source: Path, feeds: Sequence[Feeds]) -> Workbench:
    fp32 = prepare(read_model(source), folder / "fp32.onnx").model
    graph = ir.load(fp32.path)
    anchors, _ = find_anchors(graph)
    rest = samples_of(feeds[4:], fp32.inputs)
    watch = watch_list(graph, anchors)
    found = calibrate(fp32, watch, rest, threads=1, scratch=folder, states={})
    probes = tuple(feeds[:4])
    outputs = run_probes(fp32, probes, 1)
    return Workbench(fp32, anchors, found, probes, outputs, ("onnxruntime",), 1, folder)


def inputs(count: int = 24) -> list[Feeds]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 12, WIDTH)).astype(np.float32)} for _ in range(count)]


def made(folder: Path, *, outlier: float = 60.0, residual: bool = False) -> Workbench:
    bench = workbench(
        folder, block(folder / "b.onnx", outlier=outlier, residual=residual), inputs()
    )
    return even_out(bench, "vnni", samples_of(inputs()[4:], bench.fp32.inputs), {})


def static(bench: Workbench, **options: Any) -> Recipe:
    modes: dict[str, Mode] = dict.fromkeys((a.name for a in bench.anchors), "static")
    return Recipe("vnni", "minmax", correct_bias=True, modes=modes, **options)


def test_an_outlier_is_folded_into_the_norm_and_int8_gets_better(tmp_path: Path) -> None:
    bench = made(tmp_path)
    (start,) = bench.starts
    assert start.muls == 0
    assert set(start.strengths) == {"q"}
    assert 0.5 <= start.strengths["q"] <= 1.0
    # Weights lie beside the graph, so that writing it holds none of them in memory.
    assert start.model.path.stat().st_size < WIDTH * WIDTH * 4 < start.model.size_bytes
    operators = [[n.op_type for n in ir.load(m.path).graph] for m in (bench.fp32, start.model)]
    assert operators[0] == operators[1]
    plain = attempt(bench, static(bench), "plain")
    even = attempt(bench, static(bench, strengths=start.strengths), "even")
    assert even.noise_db > plain.noise_db + 10
    best = best_variant(bench, static(bench), "best")
    assert best is not None
    assert best.quantized.recipe.strengths == start.strengths
    # A Mul in front costs nothing here that the norm does not take.
    assert smoothed(bench, [best]) == []


def test_beside_a_residual_a_mul_is_a_candidate_of_its_own(tmp_path: Path) -> None:
    bench = made(tmp_path, residual=True)
    (start,) = bench.starts
    assert start.muls == 2
    best = best_variant(bench, static(bench), "best")
    assert best is not None
    assert best.quantized.recipe.strengths == {}
    other, again = smoothed(bench, [best, best])
    assert other.quantized.recipe == again.quantized.recipe
    assert other.name == "best, smoothed"
    assert other.quantized.recipe.strengths == start.strengths
    assert other.noise_db > best.noise_db + 10
    feeds = bench.probes[0]
    assert np.allclose(
        run(start.model.path, feeds)["y"], run(bench.fp32.path, feeds)["y"], atol=1e-5
    )


def test_the_baseline_stays_as_it_was(tmp_path: Path) -> None:
    bench = made(tmp_path)
    assert bench.start(static(bench)).model is bench.fp32
    assert bench.start(static(bench)).calibration is bench.calibration
    assert bench.starts[0].calibration.samples_sha256 == bench.calibration.samples_sha256
    with pytest.raises(UnsupportedError, match="1 nodes"):
        bench.start(static(bench, strengths={"q": 0.123}))


def test_only_tensors_of_the_group_have_new_statistics(tmp_path: Path) -> None:
    bench = made(tmp_path)
    old, new = bench.calibration.tensors, bench.starts[0].calibration.tensors
    assert {t for t in new if new[t] is not old.get(t)} == {"l"}
    assert new["l"].high < old["l"].high / 2


def test_what_would_come_too_late_is_not_begun(tmp_path: Path) -> None:
    source = block(tmp_path / "b.onnx", outlier=60.0, residual=False)
    bench = replace(workbench(tmp_path, source, inputs()), deadline_s=0.0)
    evened = even_out(bench, "vnni", samples_of(inputs()[4:], bench.fp32.inputs), {})
    assert evened.starts == ()
    assert not list(tmp_path.glob("even-*.onnx"))


def test_even_channels_are_left_alone(tmp_path: Path) -> None:
    assert made(tmp_path, outlier=1.0).starts == ()


def test_a_quiet_model_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoothing, "_QUIET_DB", 5.0)
    assert made(tmp_path).starts == ()


def test_a_rewrite_that_changes_outputs_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(model: ir.Model, *_: Any) -> None:
        next(iter(model.graph.initializers.values())).const_value = ir.Tensor(
            np.full(WIDTH, 9, np.float32)
        )

    monkeypatch.setattr(smoothing, "apply", wrong)
    assert made(tmp_path).starts == ()
    assert "outputs differ" in caplog.text


def test_a_recipe_brings_back_the_same_graph(tmp_path: Path) -> None:
    bench = made(tmp_path)
    (start,) = bench.starts
    rest = samples_of(inputs()[4:], bench.fp32.inputs)
    again = even_out_as(replace(bench, starts=()), start.strengths, rest, {})
    assert [s.strengths for s in again.starts] == [start.strengths]
    assert again.starts[0].model.sha256 == start.model.sha256
    with pytest.raises(UnsupportedError, match="node 'k'"):
        even_out_as(replace(bench, starts=()), {"q": 0.5, "k": 0.5}, rest, {})


def test_a_replay_has_the_statistics_of_the_start_that_its_search_chose(tmp_path: Path) -> None:
    # The first norm's output is read beside the products, so that a Mul has to divide it; what the
    # second one makes changes by the last bits with it.
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "h"], ["l"], name="l"),
        helper.make_node("MatMul", ["l", "m"], ["q"], name="q"),
        helper.make_node("Add", ["q", "l"], ["t"], name="t"),
        helper.make_node("LayerNormalization", ["t", "g", "h"], ["o"], name="o"),
        helper.make_node("MatMul", ["o", "n"], ["k"], name="k"),
        helper.make_node("Tanh", ["k"], ["y"], name="y"),
    ]
    ports: list[tiny.Port] = [("x", F, ["b", "n", WIDTH]), ("y", F, ["b", "n", WIDTH])]
    path = tiny.save(tmp_path / "b.onnx", nodes, [ports[0]], [ports[1]], constants(60.0))
    bench = workbench(tmp_path, path, inputs())
    rest = samples_of(inputs()[4:], bench.fp32.inputs)
    every, folded = even_out(bench, "vnni", rest, {}).starts
    assert (every.muls, folded.muls) == (1, 0)
    for start in (every, folded):
        (again,) = even_out_as(bench, start.strengths, rest, {}).starts
        assert again.model.sha256 == start.model.sha256
        old, new = start.calibration.tensors, again.calibration.tensors
        assert old.keys() == new.keys()
        for name, seen in old.items():
            assert (seen.low, seen.high) == (new[name].low, new[name].high), name
            assert np.array_equal(seen.bins, new[name].bins), name


@pytest.mark.parametrize("opset", [17, 18])
def test_captured_rows_are_rows_of_the_tensor(tmp_path: Path, opset: int) -> None:
    source = block(tmp_path / "b.onnx", outlier=60.0, residual=False, opset=opset)
    bench = workbench(tmp_path, source, inputs())
    model = ir.load(bench.fp32.path)
    groups = find_groups(model, bench.anchors)
    samples = samples_of(inputs()[4:], bench.fp32.inputs)
    found = capture(bench, groups, samples, {})["l"]
    seen = np.concatenate([norm(s.feeds["x"]) for s in samples])
    assert np.allclose(found.largest, np.abs(seen).max(axis=0), rtol=1e-4)
    distances = np.abs(found.rows[:, None] - seen[None]).max(axis=2).min(axis=1)
    assert distances.max() < 1e-3
    assert len(found.rows) == 16 * len(samples)


def norm(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    rows = x.reshape(-1, WIDTH)
    centred = rows - rows.mean(axis=1, keepdims=True)
    even = centred / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + 1e-5)
    return even * constants(60.0)["g"]


def test_captured_channels_of_images_are_theirs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    size = np.array([1, 8, 64], np.float32).reshape(1, 3, 1, 1)
    weights = {
        "w1": np.diag(size.reshape(-1)).reshape(3, 3, 1, 1),
        "w2": (rng.standard_normal((2, 3, 1, 1)) / size).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w2"], ["y"], name="second"),
    ]
    shape = ["n", 3, "h", "w"]
    path = tmp_path / "c.onnx"
    tiny.save(path, nodes, [("x", F, shape)], [("y", F, ["n", 2, "h", "w"])], weights)
    feeds: list[Feeds] = [
        {"x": rng.uniform(0, 1, (1, 3, 5 + i, 4)).astype(np.float32)} for i in range(12)
    ]
    bench = workbench(tmp_path, path, feeds)
    samples = samples_of(feeds[4:], bench.fp32.inputs)
    groups = find_groups(ir.load(bench.fp32.path), bench.anchors)
    found = capture(bench, groups, samples, {})["r"]
    assert (found.rows.max(axis=0) <= found.largest).all()
    assert np.allclose(found.largest, size.reshape(-1), rtol=0.1)
    even = even_out(bench, "vnni", samples, {})
    (start,) = even.starts
    plain = attempt(even, static(even), "plain")
    assert (
        attempt(even, static(even, strengths=start.strengths), "even").noise_db
        > 10 + plain.noise_db
    )
