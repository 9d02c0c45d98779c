"""Values that go round in a Loop and never change."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bench.models import read_model
from quantize.outputs import noise_shares, to_db
from quantize.prepare import prepare
from tests import tiny
from tests.int8 import make, run

F, N = TensorProto.FLOAT, helper.make_node


def recurrent(path: Path, *, through: str = "", read: str = "", shown: bool = False) -> Path:
    """s = tanh(s @ w + step @ w) three times, where the Loop hands w round.

    Args:
        path: Where to write.
        through: The operator that w goes through in each turn, if any.
        read: Which output of the Loop the model's own is computed from, besides the state.
        shown: Whether the last w is an output of the model.
    """
    inside = [N("MatMul", ["s", "w_in"], ["m"]), N("MatMul", ["by", "w_in"], ["a"])]
    inside += [N("Add", ["m", "a"], ["b"]), N("Tanh", ["b"], ["t"]), N("Identity", ["c"], ["d"])]
    inside += [N(through, ["w_in"], ["w_out"])] if through else []
    back = "w_out" if through else "w_in"
    takes: list[Any] = [("i", TensorProto.INT64, []), ("c", TensorProto.BOOL, [])]
    takes += [("w_in", F, [8, 8]), ("s", F, [1, 8]), ("by", F, [1, 8])]
    gives: list[Any] = [("d", TensorProto.BOOL, []), (back, F, [8, 8])]
    gives += [("t", F, [1, 8]), ("by", F, [1, 8])]
    body = helper.make_graph(
        inside, "body", *([helper.make_tensor_value_info(*p) for p in q] for q in (takes, gives))
    )
    loop = N("Loop", ["times", "go", "w", "x", "step"], ["last_w", "h", "by_last"], "l", body=body)
    nodes = [N("Sigmoid", ["x"], ["step"]), loop]
    nodes.append(N("MatMul", ["h", read or "w"], ["y"]))
    outputs: list[Any] = [("y", F, [1, 8]), *([("last_w", F, [8, 8])] if shown else [])]
    w = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32) / 3
    constants = {"w": w, "times": np.int64(3), "go": np.bool_(1)}
    return tiny.save(path, nodes, [("x", F, [1, 8])], outputs, constants)


def handed_on(path: Path) -> Path:
    """A Loop that returns the first of its states as both: the second changes after one turn."""
    inside = [N("MatMul", ["b_in", "a_in"], ["m"]), N("Identity", ["c"], ["d"])]
    takes: list[Any] = [("i", TensorProto.INT64, []), ("c", TensorProto.BOOL, [])]
    takes += [("a_in", F, [8, 8]), ("b_in", F, [8, 8])]
    gives: list[Any] = [("d", TensorProto.BOOL, []), ("a_in", F, [8, 8]), ("a_in", F, [8, 8])]
    gives.append(("m", F, [8, 8]))
    body = helper.make_graph(
        inside, "body", *([helper.make_tensor_value_info(*p) for p in q] for q in (takes, gives))
    )
    loop = N("Loop", ["times", "go", "a", "b"], ["last_a", "last_b", "all"], "l", body=body)
    a, b = np.random.default_rng(0).standard_normal((2, 8, 8)).astype(np.float32)
    nodes = [loop, N("MatMul", ["x", "last_b"], ["p"]), N("ReduceSum", ["all"], ["q"], keepdims=0)]
    nodes.append(N("Add", ["p", "q"], ["y"]))
    constants = {"a": a, "b": b, "times": np.int64(3), "go": np.bool_(1)}
    return tiny.save(path, nodes, [("x", F, [1, 8])], [("y", F, [1, 8])], constants)


def rows(count: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(1)
    return [{"x": random.standard_normal((1, 8)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({}, 2),
        ({"through": "Identity"}, 2),
        ({"read": "last_w"}, 2),
        ({"through": "Neg"}, 1),  # only the step stays the same
        ({"shown": True}, 1),
    ],
)
def test_what_never_changes_is_taken_out_of_a_loop(
    options: dict[str, Any], taken: int, tmp_path: Path
) -> None:
    source = recurrent(tmp_path / "m.onnx", **options)
    found = prepare(read_model(source), tmp_path / "out.onnx")
    assert any(n.startswith(f"{taken} values that never change") for n in found.notes)
    graph = onnx.load(str(found.model.path)).graph
    (loop,) = (n for n in graph.node if n.op_type == "Loop")
    assert len(loop.input) == 5 - taken
    for sample in rows(3):
        ours, theirs = run(found.model.path, sample), run(source, sample)
        assert list(ours) == list(theirs)
        for name, wanted in theirs.items():
            np.testing.assert_allclose(ours[name], wanted, atol=1e-6)


def test_what_is_returned_twice_goes_on_round(tmp_path: Path) -> None:
    source = handed_on(tmp_path / "m.onnx")
    found = prepare(read_model(source), tmp_path / "out.onnx")
    assert not any("never change" in n for n in found.notes)
    (sample,) = rows(1)
    np.testing.assert_allclose(
        run(found.model.path, sample)["y"], run(source, sample)["y"], rtol=1e-5
    )


def test_its_products_run_in_int8(tmp_path: Path) -> None:
    made = make(recurrent(tmp_path / "m.onnx"), rows(16))
    assert made.quantized.int8_layers == 3
    wanted, found = ([run(p, f) for f in rows(4)] for p in (made.fp32, made.path))
    assert to_db(noise_shares(wanted, found)) > 20
