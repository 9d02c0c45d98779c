"""Rewrites keep what a graph computes, to the last bits, and do nothing where they would not."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from quantize.rewrites import rewrite
from tests import tiny

F = TensorProto.FLOAT
Nodes = list[onnx.NodeProto]
RNG = np.random.default_rng(0)
W = RNG.standard_normal((5, 3, 3, 3)).astype(np.float32)
B = RNG.standard_normal(5).astype(np.float32)
PADS = {"pads": [1, 1, 1, 1]}


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A graph after the rewrites."""

    notes: list[str]
    proto: onnx.ModelProto

    @property
    def ops(self) -> dict[str, int]:
        """How often each operator stands in it."""
        return dict(Counter(n.op_type for n in self.proto.graph.node))


def check(
    folder: Path,
    nodes: Nodes,
    constants: dict[str, Any],
    *,
    shape: Sequence[int] = (2, 3, 6, 6),
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
) -> Rewritten:
    """Rewrite a graph of one input `x`, and compare the two on random input."""
    ports: list[tiny.Port] = [(name, F, None) for name in outputs]
    before = tiny.save(
        folder / "before.onnx", nodes, [("x", F, list(shape))], ports, constants, opset
    )
    model = ir.load(before)
    notes = rewrite(model)
    after = folder / "after.onnx"
    ir.save(model, after)
    proto = onnx.load(str(after))
    onnx.checker.check_model(proto)
    x = (4 * np.random.default_rng(1).standard_normal(shape)).astype(np.float32)
    for name, a, b in zip(outputs, run(before, x), run(after, x), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5, err_msg=name)
    assert [o.name for o in proto.graph.output] == list(outputs)
    return Rewritten(notes, proto)


def run(path: Path, x: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    found: list[np.ndarray[Any, Any]] = ort.InferenceSession(str(path), options).run(None, {"x": x})
    return found


def node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), [output], name=f"{op}_{output}", **attributes)


def f32(*values: Any) -> np.ndarray[Any, Any]:
    return np.asarray(*values, dtype=np.float32)


# --- constants into convolutions ---

CHANNELS = RNG.standard_normal(5).astype(np.float32)
FOLDED = {
    "scalar": f32(0.7),
    "one": f32([0.7]),
    "rank 3": CHANNELS.reshape(5, 1, 1),
    "rank 4": CHANNELS.reshape(1, 5, 1, 1),
    "one of rank 4": f32([[[[0.7]]]]),
}


@pytest.mark.parametrize("shape", FOLDED)
@pytest.mark.parametrize("op", ["Mul", "Add"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_a_constant_goes_into_the_convolution(
    tmp_path: Path, shape: str, op: str, *, bias: bool, first: bool
) -> None:
    constants = {"w": W, "b": B, "k": FOLDED[shape]} if bias else {"w": W, "k": FOLDED[shape]}
    nodes = [
        node("Conv", ["x", "w", "b"] if bias else ["x", "w"], "c", **PADS),
        node(op, ["k", "c"] if first else ["c", "k"], "y"),
    ]
    found = check(tmp_path, nodes, constants)
    assert found.ops == {"Conv": 1}
    assert found.notes == ["1 constant factors and offsets folded into convolutions"]


def test_a_chain_of_constants_goes_in_whole(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], "c", **PADS),
        node("Mul", ["c", "k"], "m"),
        node("Add", ["m", "o"], "a"),
        node("Mul", ["s", "a"], "z"),
        node("Relu", ["z"], "y"),
    ]
    constants = {"w": W, "k": FOLDED["rank 3"], "o": FOLDED["rank 4"], "s": f32(-2.0)}
    assert check(tmp_path, nodes, constants).ops == {"Conv": 1, "Relu": 1}


def test_grouped_and_one_dimensional_convolutions_fold_too(tmp_path: Path) -> None:
    depthwise = RNG.standard_normal((3, 1, 3, 3)).astype(np.float32)
    factors = f32([1.0, -2.0, 0.5]).reshape(3, 1, 1)
    nodes = [node("Conv", ["x", "w"], "c", group=3, **PADS), node("Mul", ["c", "k"], "y")]
    assert check(tmp_path, nodes, {"w": depthwise, "k": factors}).ops == {"Conv": 1}
    narrow = RNG.standard_normal((3, 3, 3)).astype(np.float32)
    nodes = [node("Conv", ["x", "w"], "c", pads=[1, 1]), node("Mul", ["c", "k"], "y")]
    constants = {"w": narrow, "k": factors.reshape(3, 1)}
    assert check(tmp_path, nodes, constants, shape=(2, 3, 6)).ops == {"Conv": 1}


def test_shared_weights_stay_as_they_are_for_the_other(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w", "b"], "c", **PADS),
        node("Mul", ["c", "k"], "y"),
        node("Conv", ["x", "w", "b"], "z", **PADS),
    ]
    constants = {"w": W, "b": B, "k": f32(3.0)}
    found = check(tmp_path, nodes, constants, outputs=("y", "z"))
    assert found.ops == {"Conv": 2}


@pytest.mark.parametrize(
    ("shape", "constant"),
    [
        # Aligned from the right, it stands along the width, though it is as long as the channels.
        ((2, 3, 6, 5), CHANNELS),
        ((2, 3, 6, 5), CHANNELS.reshape(1, 5)),
        ((2, 3, 5, 6), CHANNELS.reshape(5, 1)),
        ((2, 3, 6, 6), RNG.standard_normal((1, 5, 6, 6)).astype(np.float32)),
        ((5, 3, 6, 6), CHANNELS.reshape(5, 1, 1, 1)),
        # It makes the result one axis deeper.
        ((2, 3, 6, 6), CHANNELS.reshape(1, 1, 5, 1, 1)),
        ((2, 3, 6, 6), f32(0.5).reshape(1, 1, 1, 1, 1)),
    ],
)
def test_a_constant_along_another_axis_stays(
    tmp_path: Path, shape: tuple[int, ...], constant: np.ndarray[Any, Any]
) -> None:
    nodes = [node("Conv", ["x", "w"], "c", **PADS), node("Mul", ["c", "k"], "y")]
    found = check(tmp_path, nodes, {"w": W, "k": constant}, shape=shape)
    assert found.ops == {"Conv": 1, "Mul": 1}
    assert found.notes == []


def test_one_channel_grows_to_many_and_so_stays(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w"], "c", **PADS), node("Mul", ["c", "k"], "y")]
    constants = {"w": W[:1], "k": FOLDED["rank 3"]}
    assert check(tmp_path, nodes, constants).ops == {"Conv": 1, "Mul": 1}


def test_an_output_that_others_read_stays(tmp_path: Path) -> None:
    conv = node("Conv", ["x", "w"], "c", **PADS)
    mul = node("Mul", ["c", "k"], "y")
    constants = {"w": W, "k": f32(2.0)}
    read_twice = [conv, mul, node("Relu", ["c"], "z")]
    assert check(tmp_path, read_twice, constants, outputs=("y", "z")).ops["Mul"] == 1
    assert check(tmp_path, [conv, mul], constants, outputs=("y", "c")).ops["Mul"] == 1
    squared = [conv, node("Mul", ["c", "c"], "y")]
    assert check(tmp_path, squared, {"w": W}).ops == {"Conv": 1, "Mul": 1}


def test_what_is_not_constant_stays(tmp_path: Path) -> None:
    square = RNG.standard_normal((3, 3, 3, 3)).astype(np.float32)
    nodes = [node("Conv", ["x", "w"], "c", **PADS), node("Add", ["c", "x"], "y")]
    assert check(tmp_path, nodes, {"w": square}).ops == {"Conv": 1, "Add": 1}
    computed = [
        node("Relu", ["w0"], "w"),
        node("Conv", ["x", "w"], "c", **PADS),
        node("Mul", ["c", "k"], "y"),
    ]
    assert check(tmp_path, computed, {"w0": square, "k": f32(2.0)}).ops["Mul"] == 1
    biased = [
        node("Relu", ["b0"], "b"),
        node("Conv", ["x", "w", "b"], "c", **PADS),
        node("Mul", ["c", "k"], "y"),
    ]
    constants = {"w": W, "b0": B, "k": f32(2.0)}
    assert check(tmp_path, biased, constants).ops["Mul"] == 1


# --- hard-swish ---

CONSTANTS = {
    "zero": f32(0.0),
    "three": f32(3.0),
    "six": f32(6.0),
    "sixth": f32(1 / 6),
    "six1": f32([6.0]),
}


def written(
    *, gate: Sequence[str], swap: bool = False, end: tuple[str, str] | None = None
) -> Nodes:
    """X times relu6(x + 3), with a sixth on the gate or at the end.

    Args:
        gate: Operator and constant that scale the gate, or nothing.
        swap: Exchange the operands of whatever commutes.
        end: Operator and constant that scale the product.
    """

    def pair(a: str, b: str) -> list[str]:
        return [b, a] if swap else [a, b]

    nodes = [node("Add", pair("x", "three"), "s"), node("Clip", ["s", "zero", "six"], "g")]
    last = "g"
    if gate:
        inputs = pair("g", gate[1]) if gate[0] == "Mul" else ["g", gate[1]]
        nodes.append(node(gate[0], inputs, "h"))
        last = "h"
    nodes.append(node("Mul", pair("x", last), "p" if end else "y"))
    if end:
        inputs = pair("p", end[1]) if end[0] == "Mul" else ["p", end[1]]
        nodes.append(node(end[0], inputs, "y"))
    return nodes


FORMS = {
    "divided last": {"gate": (), "end": ("Div", "six")},
    "times a sixth last": {"gate": (), "end": ("Mul", "sixth")},
    "gate divided": {"gate": ("Div", "six"), "end": None},
    "gate times a sixth": {"gate": ("Mul", "sixth"), "end": None},
    "constant of shape [1]": {"gate": ("Div", "six1"), "end": None},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("swap", [False, True])
def test_every_way_to_write_hard_swish_is_fused(tmp_path: Path, form: str, *, swap: bool) -> None:
    options: dict[str, Any] = FORMS[form]
    found = check(tmp_path, written(swap=swap, **options), CONSTANTS)
    assert found.ops == {"HardSwish": 1}
    assert found.notes == ["1 written-out hard-swish activations fused into HardSwish"]


@pytest.mark.parametrize("swap", [False, True])
def test_x_times_hard_sigmoid_is_fused(tmp_path: Path, *, swap: bool) -> None:
    gate = node("HardSigmoid", ["x"], "g", alpha=1 / 6, beta=0.5)
    nodes = [gate, node("Mul", ["g", "x"] if swap else ["x", "g"], "y")]
    assert check(tmp_path, nodes, {}).ops == {"HardSwish": 1}


@pytest.mark.parametrize("attributes", [{}, {"alpha": 1 / 6, "beta": 0.4}, {"beta": 0.5}])
def test_another_hard_sigmoid_stays(tmp_path: Path, attributes: dict[str, float]) -> None:
    nodes = [node("HardSigmoid", ["x"], "g", **attributes), node("Mul", ["x", "g"], "y")]
    assert check(tmp_path, nodes, {}).ops == {"HardSigmoid": 1, "Mul": 1}


@pytest.mark.parametrize(
    ("name", "value"),
    [("three", 2.9), ("zero", -0.1), ("six", 5.9), ("sixth", 0.17)],
)
@pytest.mark.parametrize("end", [("Mul", "sixth"), ("Div", "divisor")])
def test_other_constants_are_no_hard_swish(
    tmp_path: Path, name: str, value: float, end: tuple[str, str]
) -> None:
    constants = {**CONSTANTS, "divisor": f32(6.0), name: f32(value)}
    if name == "sixth":
        constants["divisor"] = f32(1 / value)
    found = check(tmp_path, written(gate=(), end=end), constants)
    assert "HardSwish" not in found.ops
    assert found.notes == []


def test_two_sixths_and_none_are_no_hard_swish(tmp_path: Path) -> None:
    twice = written(gate=("Div", "six"), end=("Mul", "sixth"))
    # The inner product alone is a hard-swish; the second sixth has to stay.
    assert check(tmp_path, twice, CONSTANTS).ops == {"HardSwish": 1, "Mul": 1}
    assert "HardSwish" not in check(tmp_path, written(gate=()), CONSTANTS).ops
    of_another = [
        node("Relu", ["x"], "r"),
        node("Add", ["r", "three"], "s"),
        node("Clip", ["s", "zero", "six"], "g"),
        node("Mul", ["x", "g"], "p"),
        node("Div", ["p", "six"], "y"),
    ]
    assert "HardSwish" not in check(tmp_path, of_another, CONSTANTS).ops


def test_six_divided_by_the_product_is_no_hard_swish(tmp_path: Path) -> None:
    # 6 / p, not p / 6.
    nodes = [
        node("Abs", ["x"], "a"),
        node("Add", ["a", "three"], "s"),
        node("Clip", ["s", "zero", "six"], "g"),
        node("Mul", ["a", "g"], "p"),
        node("Div", ["six", "p"], "y"),
    ]
    assert "HardSwish" not in check(tmp_path, nodes, CONSTANTS).ops


def test_steps_that_others_read_are_kept(tmp_path: Path) -> None:
    nodes = [*written(gate=(), end=("Div", "six")), node("Relu", ["g"], "z")]
    found = check(tmp_path, nodes, CONSTANTS, outputs=("y", "z"))
    assert found.ops == {"HardSwish": 1, "Add": 1, "Clip": 1, "Relu": 1}


def test_before_opset_14_there_is_no_hard_swish(tmp_path: Path) -> None:
    found = check(tmp_path, written(gate=(), end=("Div", "six")), CONSTANTS, opset=13)
    assert "HardSwish" not in found.ops


def test_a_factor_after_a_convolution_does_not_hide_the_activation(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], "c", **PADS),
        node("Mul", ["c", "k"], "m"),
        node("Add", ["m", "three"], "s"),
        node("Clip", ["s", "zero", "six"], "g"),
        node("Mul", ["m", "g"], "p"),
        node("Div", ["p", "six"], "y"),
    ]
    found = check(tmp_path, nodes, {**CONSTANTS, "w": W, "k": f32([0.5])})
    assert found.ops == {"Conv": 1, "HardSwish": 1}
    assert len(found.notes) == 2


# --- means ---


@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [3, 2], [2, -1]])
@pytest.mark.parametrize("keep", [0, 1])
def test_the_mean_of_an_image_is_a_pool(tmp_path: Path, axes: list[int], keep: int) -> None:
    nodes = [node("ReduceMean", ["x"], "y", axes=axes, keepdims=keep)]
    found = check(tmp_path, nodes, {})
    assert found.ops == {"GlobalAveragePool": 1} | ({} if keep else {"Flatten": 1})
    assert found.notes == ["GlobalAveragePool takes the place of means over height and width (1)"]


def test_axes_may_be_an_input(tmp_path: Path) -> None:
    nodes = [node("ReduceMean", ["x", "axes"], "m"), node("Relu", ["m"], "y")]
    found = check(tmp_path, nodes, {"axes": np.array([2, 3])}, opset=18)
    assert found.ops == {"GlobalAveragePool": 1, "Relu": 1}


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((2, 3, 6, 6), [1, 2]),
        ((2, 3, 6, 6), [3]),
        ((2, 3, 6, 6), [1, 2, 3]),
        ((2, 3, 6), [1, 2]),
        ((2, 3, 6, 6, 2), [2, 3]),
    ],
)
def test_other_means_stay(tmp_path: Path, shape: tuple[int, ...], axes: list[int]) -> None:
    nodes = [node("ReduceMean", ["x"], "y", axes=axes)]
    assert check(tmp_path, nodes, {}, shape=shape).ops == {"ReduceMean": 1}


def test_a_mean_over_everything_stays(tmp_path: Path) -> None:
    nodes = [node("ReduceMean", ["x"], "y")]
    assert check(tmp_path, nodes, {}).ops == {"ReduceMean": 1}
    # No axes and noop_with_empty_axes: nothing is averaged.
    empty = [node("ReduceMean", ["x"], "y", noop_with_empty_axes=1)]
    assert check(tmp_path, empty, {}, opset=18).ops == {"ReduceMean": 1}


def test_a_graph_without_such_patterns_is_left_alone(tmp_path: Path) -> None:
    found = check(tmp_path, [node("Relu", ["x"], "y")], {})
    assert (found.ops, found.notes) == ({"Relu": 1}, [])


# --- batch norms behind an activation ---

NORM = {
    "s": np.array([0.5, 1.0, 2.0, 0.1, 3.0], np.float32),
    "o": RNG.standard_normal(5).astype(np.float32),
    "m": RNG.standard_normal(5).astype(np.float32),
    "v": np.square(RNG.standard_normal(5)).astype(np.float32) + 1,
}
NEGATIVE = {**NORM, "s": np.array([0.5, -1.0, 2.0, 0.1, 3.0], np.float32)}


def small(*shape: int) -> np.ndarray[Any, Any]:
    """Weights whose sums stay near 1, so that rounding stays within the tolerance."""
    weights = RNG.standard_normal(shape) / 30
    return weights.astype(np.float32)


def late_norm(act: str = "Relu") -> Nodes:
    return [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], name="first", **PADS),
        helper.make_node(act, ["a", "slope"] if act == "PRelu" else ["a"], ["r"]),
        helper.make_node("BatchNormalization", ["r", "s", "o", "m", "v"], ["n"], epsilon=1e-3),
    ]


@pytest.mark.parametrize("act", ["Relu", "LeakyRelu", "PRelu"])
def test_a_positive_norm_behind_an_activation_leaves_an_addition(tmp_path: Path, act: str) -> None:
    wk = small(2, 5, 3, 3)
    nodes = [
        *late_norm(act),
        helper.make_node("MaxPool", ["n"], ["p"], kernel_shape=[2, 2]),
        helper.make_node("Conv", ["p", "k"], ["y"], **PADS),
    ]
    slope = {"slope": np.full((5, 1, 1), 0.1, np.float32)} if act == "PRelu" else {}
    found = check(tmp_path, nodes, {"w": W, "b": B, "k": wk, **slope, **NORM})
    assert found.ops == {"Conv": 2, act: 1, "Add": 1, "MaxPool": 1}
    assert any("1 batch norms" in note for note in found.notes)


def test_a_negative_norm_stays_before_what_pads(tmp_path: Path) -> None:
    wk = small(2, 5, 3, 3)
    nodes = [*late_norm(), helper.make_node("Conv", ["n", "k"], ["y"], **PADS)]
    found = check(tmp_path, nodes, {"w": W, "b": B, "k": wk, **NEGATIVE})
    assert found.ops["BatchNormalization"] == 1
    auto = [*late_norm(), helper.make_node("Conv", ["n", "k"], ["y"], auto_pad="SAME_UPPER")]
    found = check(tmp_path, auto, {"w": W, "b": B, "k": wk, **NEGATIVE})
    assert found.ops["BatchNormalization"] == 1


@pytest.mark.parametrize("group", [1, 5])
@pytest.mark.parametrize("bias", ["", "kb"])
def test_what_does_not_pad_takes_any_norm(tmp_path: Path, group: int, bias: str) -> None:
    constants = {
        "k": small(10, 5 // group, 3, 3),
        "kb": RNG.standard_normal(10).astype(np.float32),
    }
    inputs = ["n", "k", bias] if bias else ["n", "k"]
    nodes = [
        *late_norm(),
        helper.make_node("Conv", inputs, ["c"], group=group),
        helper.make_node("Conv", ["n", "q"], ["d"], kernel_shape=[3, 3]),
        helper.make_node("Add", ["c", "d"], ["y"]),
    ]
    constants["q"] = small(10, 5, 3, 3)
    found = check(tmp_path, nodes, {"w": W, "b": B, **constants, **NEGATIVE})
    assert found.ops == {"Conv": 3, "Relu": 1, "Add": 1}


@pytest.mark.parametrize("turned", [0, 1])
def test_a_gemm_takes_the_norm_before_it(tmp_path: Path, turned: int) -> None:
    shape = (3, 5) if turned else (5, 3)
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("BatchNormalization", ["r", "s", "o", "m", "v"], ["n"]),
        helper.make_node("Gemm", ["n", "g"], ["y"], transB=turned),
    ]
    constants = {"g": small(*shape), **NEGATIVE}
    assert check(tmp_path, nodes, constants, shape=(4, 5)).ops == {"Relu": 1, "Gemm": 1}


@pytest.mark.parametrize("options", [{"alpha": 2.0}, {"beta": 0.5}, {"transA": 1}])
def test_a_gemm_that_scales_or_turns_leaves_the_norm(tmp_path: Path, options: Any) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("BatchNormalization", ["r", "s", "o", "m", "v"], ["n"]),
        helper.make_node("Gemm", ["n", "g"], ["y"], **options),
    ]
    constants = {"g": small(5, 3), **NEGATIVE}
    found = check(tmp_path, nodes, constants, shape=(5, 5))
    assert found.ops["BatchNormalization"] == 1


def test_a_norm_that_others_see_stays(tmp_path: Path) -> None:
    constants = {"w": W, "b": B, "k": small(2, 5, 1, 1)}
    reader = helper.make_node("Conv", ["n", "k"], ["y"])
    found = check(tmp_path, [*late_norm(), reader], {**constants, **NEGATIVE}, outputs=("y", "n"))
    assert found.ops["BatchNormalization"] == 1
    # The activation is read as well, so the convolution cannot take the factor.
    found = check(tmp_path, late_norm(), {**constants, **NORM}, outputs=("n", "r"))
    assert found.ops["BatchNormalization"] == 1


@pytest.mark.parametrize("inputs", [["p", "b"], ["b", "p"]])
def test_rows_times_weights_plus_a_bias_are_one_gemm(tmp_path: Path, inputs: list[str]) -> None:
    nodes = [node("MatMul", ["x", "w"], "p"), node("Add", inputs, "y")]
    constants = {"w": small(5, 3), "b": f32([1, 2, 3])}
    assert check(tmp_path, nodes, constants, shape=(4, 5)).ops == {"Gemm": 1}


@pytest.mark.parametrize(
    ("shape", "bias", "outputs"),
    [
        ((2, 4, 5), f32([1, 2, 3]), ("y",)),
        ((4, 5), f32([[1, 2, 3]] * 4), ("y",)),
        ((4, 5), f32(7), ("y",)),
        ((4, 5), f32([1, 2, 3]), ("y", "p")),
    ],
    ids=["three axes", "another bias per row", "one bias for all", "product seen"],
)
def test_other_products_stay_as_they_are(
    tmp_path: Path, shape: tuple[int, ...], bias: Any, outputs: tuple[str, ...]
) -> None:
    nodes = [node("MatMul", ["x", "w"], "p"), node("Add", ["p", "b"], "y")]
    constants = {"w": small(5, 3), "b": bias}
    found = check(tmp_path, nodes, constants, shape=shape, outputs=outputs)
    assert found.ops == {"MatMul": 1, "Add": 1}
