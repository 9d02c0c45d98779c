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
from quantize import kept, smoothing, strengths
from quantize.anchors import Mode, find_anchors
from quantize.calibrate import calibrate
from quantize.equalize import Group, axes_of, find_groups
from quantize.placement import watch_list
from quantize.prepare import prepare
from quantize.recipe import Recipe
from quantize.rows import RowStore, Window, windows_of
from quantize.smoothing import even_out, even_out_as
from quantize.strengths import Captured, Reader, captured_by
from quantize.trials import Workbench, attempt, run_probes
from quantize.variants import best_variant, smoothed
from tests import tiny
from tests.int8 import run, samples_of
from tests.streams import same

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
    return even_out(bench, "vnni")


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
    evened = even_out(bench, "vnni")
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
    plain = replace(bench, starts=())
    again = even_out_as(plain, static(bench, strengths=start.strengths))
    assert [s.strengths for s in again.starts] == [start.strengths]
    assert again.starts[0].model.sha256 == start.model.sha256
    with pytest.raises(UnsupportedError, match="node 'k'"):
        even_out_as(plain, static(bench, strengths={"q": 0.5, "k": 0.5}))


def test_where_nothing_is_static_no_sample_runs_again_and_the_file_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = made(tmp_path)
    (start,) = bench.starts
    modes: dict[str, Mode] = dict.fromkeys(("q", "k"), "dynamic")
    recipe = replace(static(bench, strengths=start.strengths), modes=modes, fused_for="onnxruntime")
    recipe = replace(recipe, rounding="learned")
    searched = attempt(bench, recipe, "searched")
    monkeypatch.setattr(smoothing, "calibrate", lambda *_, **__: pytest.fail("no range is needed"))
    again = even_out_as(replace(bench, starts=()), recipe)
    # What is said of a tensor that was divided would be said of another one.
    assert "l" in bench.calibration.tensors
    assert "l" not in again.starts[0].calibration.tensors
    replayed = attempt(again, recipe, "replayed")
    assert replayed.quantized.model.sha256 == searched.quantized.model.sha256
    assert searched.noise_db > 30


def two_norms(folder: Path) -> Workbench:
    """A group for each.

    The first norm's output is read beside the products, so that a Mul has to divide it; what the
    second one makes changes by the last bits with it.
    """
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "h"], ["l"], name="l"),
        helper.make_node("MatMul", ["l", "m"], ["q"], name="q"),
        helper.make_node("Add", ["q", "l"], ["t"], name="t"),
        helper.make_node("LayerNormalization", ["t", "g", "h"], ["o"], name="o"),
        helper.make_node("MatMul", ["o", "n"], ["k"], name="k"),
        helper.make_node("Tanh", ["k"], ["y"], name="y"),
    ]
    ports: list[tiny.Port] = [("x", F, ["b", "n", WIDTH]), ("y", F, ["b", "n", WIDTH])]
    path = tiny.save(folder / "b.onnx", nodes, [ports[0]], [ports[1]], constants(60.0))
    return workbench(folder, path, inputs())


@pytest.mark.parametrize("kept_bytes", [0, 24 << 20])
def test_a_replay_has_the_statistics_of_the_start_that_its_search_chose(
    kept_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_TENSOR_BYTES", kept_bytes)
    bench = two_norms(tmp_path)
    every, folded = even_out(bench, "vnni").starts
    assert (every.muls, folded.muls) == (1, 0)
    for start in (every, folded):
        recipe = static(bench, strengths=start.strengths)
        (again,) = even_out_as(replace(bench, starts=()), recipe).starts
        assert again.model.sha256 == start.model.sha256
        old, new = start.calibration.tensors, again.calibration.tensors
        assert old.keys() == new.keys()
        for name, seen in old.items():
            same(seen, new[name])


def test_statistics_of_a_divided_tensor_are_those_that_its_graph_would_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = workbench(tmp_path, block(tmp_path / "b.onnx", outlier=60.0, residual=True), inputs())
    with monkeypatch.context() as patch:
        patch.setattr(smoothing, "calibrate", lambda *_, **__: pytest.fail("they were kept"))
        (start,) = even_out(bench, "vnni").starts
    assert start.muls == 2
    new = {a.data for a in start.anchors} - {a.data for a in bench.anchors}
    samples = samples_of(inputs()[4:], start.model.inputs)
    own = calibrate(start.model, sorted(new), samples, threads=1, scratch=tmp_path, states={})
    for name in new:
        found, expected = start.calibration.tensors[name], own.tensors[name]
        assert found.count == expected.count
        assert found.samples == expected.samples
        np.testing.assert_allclose(
            [found.low, found.high], [expected.low, expected.high], rtol=1e-5
        )


def test_tensors_of_all_groups_share_the_room_whichever_of_them_are_divided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = two_norms(tmp_path)
    # Of 20 samples 12 rows of 16 values, and the extremes of 16 channels: more than a half of it.
    monkeypatch.setattr(kept, "_TOTAL_BYTES", int(1.5 * 20 * 4 * (12 * 16 + 32)))
    monkeypatch.setattr(smoothing, "best_strength", lambda g, *_: None if g.inserted else 1.0)
    calls, real = list[Sequence[str]](), smoothing.calibrate
    monkeypatch.setattr(
        smoothing, "calibrate", lambda m, t, *_, **o: calls.append(t) or real(m, t, *_, **o)
    )
    (start,) = even_out(bench, "vnni").starts
    recipe = static(bench, strengths=start.strengths)
    (again,) = even_out_as(replace(bench, starts=()), recipe).starts
    assert calls == [["o"], ["o"]]
    same(start.calibration.tensors["o"], again.calibration.tensors["o"])
    # A tensor that nobody watches is never kept, and takes no room.
    assert axes_of([Group((), {"a": 1, "b": -1}, (), 2)], ["b"]) == {"b": -1}


def test_what_was_too_much_to_keep_is_calibrated_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kept_start,) = made(tmp_path).starts
    monkeypatch.setattr(kept, "_TENSOR_BYTES", 0)
    calls, real = list[Sequence[str]](), smoothing.calibrate
    monkeypatch.setattr(
        smoothing, "calibrate", lambda m, t, *_, **o: calls.append(t) or real(m, t, *_, **o)
    )
    (start,) = made(tmp_path).starts
    assert calls == [["l"]]
    found, expected = (s.calibration.tensors["l"] for s in (start, kept_start))
    np.testing.assert_allclose([found.low, found.high], [expected.low, expected.high], rtol=1e-5)


def test_rows_of_an_evened_out_graph_are_those_that_it_would_feed_its_layers(
    tmp_path: Path,
) -> None:
    bench = made(tmp_path, residual=True)
    own_rows_are_near(bench)
    with_convs = workbench(tmp_path, convs(tmp_path / "c.onnx"), images())
    evened = even_out(with_convs, "vnni")
    assert set(evened.starts[0].strengths) == {"depthwise"}
    own_rows_are_near(evened)


def test_who_reads_a_tensor_beside_a_mul_has_rows_that_are_not_divided(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "h"], ["l"], name="l"),
        helper.make_node("MatMul", ["l", "m"], ["q"], name="q"),
        # Its channels stand on another axis, so that nothing can be folded.
        helper.make_node("Conv", ["l", "w"], ["c"], name="conv"),
        helper.make_node("Tanh", ["q"], ["y"]),
        helper.make_node("Tanh", ["c"], ["z"]),
    ]
    weights = np.random.default_rng(0).standard_normal((2, 12, 3)).astype(np.float32)
    shape = ["b", 12, WIDTH]
    outputs: list[tiny.Port] = [("y", F, shape), ("z", F, ["b", 2, WIDTH - 2])]
    made = constants(60.0) | {"w": weights}
    path = tiny.save(tmp_path / "b.onnx", nodes, [("x", F, shape)], outputs, made)
    bench = workbench(tmp_path, path, inputs())
    evened = even_out(bench, "vnni")
    (start,) = evened.starts
    assert start.muls == 1
    own_rows_are_near(evened)
    # What it reads is what it was, and has been seen.
    old, new = bench.calibration.tensors, start.calibration.tensors
    assert new["l"] is old["l"]
    assert new.keys() - old.keys() == {a.data for a in start.anchors if a.name == "q"}


def own_rows_are_near(bench: Workbench) -> None:
    """Whether the rows of each start are near those taken of its own graph."""
    for start in bench.starts:
        found, plain = start.calibration.rows, bench.calibration.rows
        assert found is not None
        assert plain is not None
        graph = ir.load(start.model.path).graph
        windows = windows_of({str(n.name): n for n in graph}, start.anchors)
        folder = bench.scratch / start.model.sha256[:8]
        folder.mkdir()
        own = RowStore(start.model, plain.samples, {}, 1, folder)
        own.capture(windows.values())
        found.capture(windows.values())
        for window in windows.values():
            assert np.allclose(found.rows(window), own.rows(window), rtol=1e-4, atol=1e-5)


def convs(path: Path) -> Path:
    """A convolution whose channels differ, in front of a padded depthwise one and a grouped one."""
    rng = np.random.default_rng(0)
    sizes = np.geomspace(0.1, 90, 8).astype(np.float32).reshape(8, 1, 1, 1)
    weights = {
        "w1": (sizes * rng.standard_normal((8, 3, 1, 1))).astype(np.float32),
        "w2": (rng.standard_normal((8, 1, 3, 3)) / sizes).astype(np.float32),
        "w3": (rng.standard_normal((4, 2, 3, 2)) / sizes[:4, :1]).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w2"], ["d"], name="depthwise", group=8, pads=[1] * 4),
        helper.make_node("Conv", ["r", "w3"], ["g"], name="grouped", group=4),
        helper.make_node("Tanh", ["d"], ["y"], name="tanh"),
        helper.make_node("Tanh", ["g"], ["z"], name="other"),
    ]
    shape = ["n", 3, "h", "w"]
    outputs: list[tiny.Port] = [("y", F, ["n", 8, "h", "w"]), ("z", F, ["n", 4, "i", "j"])]
    return tiny.save(path, nodes, [("x", F, shape)], outputs, weights)


def images() -> list[Feeds]:
    rng = np.random.default_rng(2)
    return [{"x": rng.uniform(0, 1, (1, 3, 5 + i, 4)).astype(np.float32)} for i in range(12)]


def test_what_tells_of_channels_are_their_rows_and_largest_values(tmp_path: Path) -> None:
    bench = workbench(tmp_path, block(tmp_path / "b.onnx", outlier=60.0, residual=False), inputs())
    store = bench.calibration.rows
    assert store is not None
    nodes = {str(n.name): n for n in ir.load(bench.fp32.path).graph}
    window = windows_of(nodes, bench.anchors)["q"]
    store.capture([window])
    found = captured_by(store.rows(window), window)
    seen = np.concatenate([norm(s.feeds["x"]) for s in samples_of(inputs()[4:], bench.fp32.inputs)])
    assert np.allclose(found.largest, np.abs(seen).max(axis=0), rtol=1e-4)
    distances = np.abs(found.rows[:, None] - seen[None]).max(axis=2).min(axis=1)
    assert distances.max() < 1e-3
    assert len(found.rows) == 12 * 20


def test_of_many_rows_some_are_kept_and_the_largest_value_of_all() -> None:
    window = Window("r", 2 * 9, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    patches = np.zeros((2000, 1, 18), np.float32)
    patches[:, 0, 4], patches[:, 0, 13] = np.arange(2000), -1.0
    patches[1999, 0, 9] = -7.0
    found = captured_by(patches, window)
    assert 512 <= len(found.rows) < 1024
    # In the middle of the kernel, and spread over all rows.
    assert found.rows[0].tolist() == [0.0, -1.0]
    assert found.rows[-1, 0] > 1990
    assert found.largest.tolist() == [1999.0, 7.0]


def test_readers_of_one_tensor_tell_of_it_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "w1": np.diag([1.0, 8.0, 64.0]).astype(np.float32).reshape(3, 3, 1, 1),
        "w2": rng.standard_normal((2, 3, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        # It skips what lies between.
        helper.make_node("Conv", ["r", "w2"], ["y"], name="some", strides=[2, 2]),
        helper.make_node("Conv", ["r", "w2"], ["z"], name="all"),
    ]
    outputs: list[tiny.Port] = [("y", F, None), ("z", F, None)]
    path = tmp_path / "c.onnx"
    tiny.save(path, nodes, [("x", F, ["n", 3, "h", "w"])], outputs, weights)
    feeds = images()
    for feed in feeds:
        feed["x"][:, :, 1, 1] = 3.0
    bench = workbench(tmp_path, path, feeds)
    graph = ir.load(bench.fp32.path)
    (group,) = find_groups(graph, bench.anchors)
    assert [a for _, a in group.reads] == ["some", "all"]
    (found,) = smoothing._captured(bench, (group,), graph).values()
    assert found.largest.tolist() == [3.0, 24.0, 192.0]


def test_a_tensor_that_was_not_finite_is_left_alone(tmp_path: Path) -> None:
    source = block(tmp_path / "b.onnx", outlier=60.0, residual=False)
    bench = workbench(tmp_path, source, inputs())
    graph = ir.load(bench.fp32.path)
    groups = find_groups(graph, bench.anchors)
    assert set(smoothing._captured(bench, groups, graph)) == {"l"}
    bench.calibration.tensors["l"].nonfinite = 1
    assert smoothing._captured(bench, groups, graph) == {}


def test_noise_is_that_of_codes_that_hold_zero() -> None:
    rows = np.linspace(100, 101, 400, dtype=np.float32).reshape(100, 4)
    captured = {"t": Captured(rows, rows.max(axis=0))}
    exact = Reader(np.full((1, 2, 4), 1e-9, np.float32), np.ones((1, 4), np.float32), 1)
    noise = strengths._noise([("t", exact)], captured, np.ones(4, np.float32))
    # A step of 101 / 255, not of 1 / 255.
    assert noise == pytest.approx((101 / 255) ** 2 / 12 / 100.5**2, rel=0.2)


def norm(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    rows = x.reshape(-1, WIDTH)
    centred = rows - rows.mean(axis=1, keepdims=True)
    even = centred / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + 1e-5)
    return even * constants(60.0)["g"]


def test_channels_of_images_are_evened_out(tmp_path: Path) -> None:
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
    even = even_out(bench, "vnni")
    (start,) = even.starts
    plain = attempt(even, static(even), "plain")
    assert (
        attempt(even, static(even, strengths=start.strengths), "even").noise_db
        > 10 + plain.noise_db
    )
