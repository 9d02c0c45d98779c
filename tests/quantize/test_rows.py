"""Rows that layers read, taken from tensors and from a running model."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from bench.models import read_model
from quantize import rows as module
from quantize import watching
from quantize.anchors import find_anchors
from quantize.calibrate import calibrate_for
from quantize.rows import Divided, RowStore, Window, rows_of, window_of, windows_of
from tests import tiny
from tests.int8 import residual, samples_of
from tests.streams import same

FLOAT = TensorProto.FLOAT


@given(data=st.data())
def test_rows_times_weights_are_outputs_of_the_convolution(data: st.DataObject) -> None:
    import onnxruntime as ort

    draw = data.draw
    rank, groups = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    attributes = {
        "strides": [draw(st.integers(1, 2)) for _ in range(rank)],
        "dilations": [draw(st.integers(1, 2)) for _ in range(rank)],
        "group": groups,
    }
    kind = draw(st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if kind == "NOTSET":
        attributes["pads"] = [draw(st.integers(0, 2)) for _ in range(2 * rank)]
    else:
        attributes["auto_pad"] = kind
    if kind.startswith("SAME"):
        # ONNX Runtime refuses SAME together with dilations.
        attributes["dilations"] = [1] * rank
    random = np.random.default_rng(draw(st.integers(0, 99)))
    x = random.standard_normal((2, 2 * groups, *([7] * rank))).astype(np.float32)
    w = random.standard_normal((3 * groups, 2, *kernel)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv", **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [helper.make_tensor("w", FLOAT, w.shape, w.reshape(-1))],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = np.moveaxis(session.run(None, {"x": x})[0], 1, -1).reshape(-1, 3 * groups)

    model = ir.from_proto(proto)
    (anchor,) = find_anchors(model)[0]
    window = window_of(next(iter(model.graph)), anchor)
    found = rows_of(x, window, 10**6, np.random.default_rng(0))
    turned = w.reshape(groups, 3, -1).transpose(0, 2, 1)
    outputs = np.matmul(found.transpose(1, 0, 2), turned).transpose(1, 0, 2)
    np.testing.assert_allclose(outputs.reshape(expected.shape), expected, atol=1e-4)


def test_rows_are_drawn_without_repetition_and_leave_out_what_is_not_finite() -> None:
    values = np.arange(30, dtype=np.float32).reshape(2, 5, 3)
    found = rows_of(values, Window("x", 3), 4, np.random.default_rng(0))
    assert found.shape == (4, 1, 3)
    assert len(np.unique(found[:, 0, 0])) == 4
    values[0, 2, 1] = np.inf
    assert rows_of(values, Window("x", 3), 99, np.random.default_rng(0)).shape == (9, 1, 3)


def net(path: Path) -> Path:
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "w"], ["p"], "one"),
        helper.make_node("MatMul", ["r", "w"], ["q"], "other"),
    ]
    random = np.random.default_rng(0)
    constants = {
        "k": random.standard_normal((4, 2, 3, 3)).astype(np.float32),
        "w": random.standard_normal((6, 5)).astype(np.float32),
    }
    ports = [("p", FLOAT, None), ("q", FLOAT, None)]
    return tiny.save(path, nodes, [("x", FLOAT, [1, 2, "h", 6])], ports, constants)


def store(path: Path, count: int = 6) -> RowStore:
    model = read_model(path)
    random = np.random.default_rng(1)
    feeds = [
        {"x": random.standard_normal((1, 2, 4 + i % 3, 6)).astype(np.float32)} for i in range(count)
    ]
    return RowStore(model, samples_of(feeds, model.inputs), {}, 1, path.parent)


def windows(path: Path) -> dict[str, Window]:
    model = ir.load(path)
    return windows_of({str(n.name): n for n in model.graph}, find_anchors(model)[0])


def test_layers_that_read_alike_share_their_rows(tmp_path: Path) -> None:
    path = net(tmp_path / "m.onnx")
    found, taken = windows(path), store(path)
    assert found["one"] == found["other"]
    taken.capture(found.values())
    # 6 samples of 4 to 6 lines: every output position of 6 columns, every row of 4 channels.
    assert taken.rows(found["conv"]).shape == (180, 1, 18)
    assert taken.rows(found["one"]).shape == (120, 1, 6)
    before = sorted(f.name for f in tmp_path.iterdir())
    taken.capture(found.values())
    assert sorted(f.name for f in tmp_path.iterdir()) == before


def test_all_layers_get_their_rows_in_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = net(tmp_path / "m.onnx"), []
    real = module.passes
    monkeypatch.setattr(module, "passes", lambda *a: (seen.append(w) or w for w in real(*a)))
    taken = store(path)
    taken.capture(windows(path).values())
    assert len(seen) == 1
    # The graphs that were run for it are gone, but for the copy that they share their weights with.
    left = [f for f in tmp_path.iterdir() if f != path and not f.name.startswith("light-")]
    assert {f.suffix for f in left} == {".raw"}


def test_rows_are_the_same_whatever_runs_side_by_side(tmp_path: Path) -> None:
    path = net(tmp_path / "m.onnx")
    found = [replace(store(path, 40), threads=n, scratch=tmp_path / str(n)) for n in (1, 3)]
    for taken in found:
        taken.scratch.mkdir()
        taken.capture(windows(path).values())
    for window in windows(path).values():
        np.testing.assert_array_equal(*(taken.rows(window) for taken in found))


def test_rows_stay_within_their_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = net(tmp_path / "m.onnx")
    monkeypatch.setattr(module, "_LAYER_BYTES", 18 * 4 * 60)
    monkeypatch.setattr(module, "MAX_ROWS", 100)
    taken = store(path)
    taken.capture(windows(path).values())
    shapes = [taken.rows(w).shape for w in dict.fromkeys(windows(path).values())]
    assert shapes == [(60, 1, 18), (96, 1, 6)]
    for shape in shapes:
        assert math.prod(shape) * 4 <= max(18 * 4 * 60, 100 * 6 * 4)


@pytest.mark.parametrize("group_bytes", [1, 128 << 20])
@pytest.mark.parametrize("states", [{}, {"y": "x"}])
def test_rows_taken_while_calibrating_are_those_taken_later(
    states: dict[str, str], group_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "GROUP_BYTES", group_bytes)
    path = tmp_path / "m.onnx"
    meanwhile, later = (
        replace(residual(path), states=states, scratch=tmp_path / n) for n in ("a", "b")
    )
    for each in (meanwhile, later):
        each.scratch.mkdir()
    found = windows(path).values()
    plain, both = calibrate_for(later), calibrate_for(meanwhile, found)
    monkeypatch.setattr(module, "passes", lambda *_: pytest.fail("the rows are there"))
    meanwhile.capture(found)
    monkeypatch.undo()
    monkeypatch.setattr(watching, "GROUP_BYTES", group_bytes)
    later.capture(found)
    for window in found:
        assert len(meanwhile.rows(window)) == 64 * 32
        np.testing.assert_array_equal(meanwhile.rows(window), later.rows(window))
    for name, stats in plain.tensors.items():
        same(both.tensors[name], stats)


def test_what_was_not_finished_is_taken_again(tmp_path: Path) -> None:
    store, found = residual(tmp_path / "m.onnx"), windows(tmp_path / "m.onnx").values()

    def interrupt(done: int, _: int) -> None:
        if done == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate_for(store, found, interrupt)
    store.capture(found)
    assert {len(store.rows(w)) for w in found} == {64 * 32}


def test_a_divided_tensor_has_the_rows_of_fp32_divided_and_answers_of_its_own(
    tmp_path: Path,
) -> None:
    path = net(tmp_path / "m.onnx")
    taken, window = store(path), windows(path)["conv"]
    assert taken.once("key", lambda: 1) == 1
    factors = np.array([2.0, 0.25], np.float32)
    evened = taken.evened({"there": Divided(window.tensor, factors)})
    moved = replace(window, tensor="there")
    evened.capture([moved])
    by_tap = np.repeat(factors, 9)
    np.testing.assert_array_equal(evened.rows(moved), taken.rows(window) / by_tap)
    # What is not divided is read as it is, by either.
    np.testing.assert_array_equal(evened.rows(window), taken.rows(window))
    assert evened.once("key", lambda: 2) == 2


def test_an_answer_is_worked_out_once() -> None:
    calls: list[int] = []
    taken = RowStore(None, None, {}, 1, Path())  # type: ignore[arg-type]
    for _ in range(2):
        assert taken.once("key", lambda: calls.append(1)) is None
    assert calls == [1]
