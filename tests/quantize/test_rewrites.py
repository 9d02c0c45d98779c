"""Rewrites keep what a graph computes, to the last bits, and do nothing where they would not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantize.rewrites import rewrite
from tests.edits import Nodes, edited, f32, node, small

RNG = np.random.default_rng(0)
KERNEL = small(RNG, 5, 3, 3, 3)


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
    found = edited(tmp_path, rewrite, written(swap=swap, **options), CONSTANTS)
    assert found.ops == {"HardSwish": 1}
    assert found.told == ["1 written-out hard-swish activations fused into HardSwish"]


@pytest.mark.parametrize(("axes", "fused"), [(2, True), (3, False)])
@pytest.mark.parametrize("raised", ["three", "sixth"])
def test_a_constant_that_adds_an_axis_is_no_part_of_a_hard_swish(
    tmp_path: Path,
    raised: str,
    axes: int,
    fused: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    constants = CONSTANTS | {raised: CONSTANTS[raised].reshape((1,) * axes)}
    nodes = written(gate=(), end=("Mul", "sixth"))
    found = edited(tmp_path, rewrite, nodes, constants, shape=(2, 4))
    assert ("HardSwish" in found.ops) == fused


@pytest.mark.parametrize("swap", [False, True])
def test_x_times_hard_sigmoid_is_fused(tmp_path: Path, *, swap: bool) -> None:
    gate = node("HardSigmoid", ["x"], "g", alpha=1 / 6, beta=0.5)
    nodes = [gate, node("Mul", ["g", "x"] if swap else ["x", "g"], "y")]
    assert edited(tmp_path, rewrite, nodes, {}).ops == {"HardSwish": 1}


@pytest.mark.parametrize("attributes", [{}, {"alpha": 1 / 6, "beta": 0.4}, {"beta": 0.5}])
def test_another_hard_sigmoid_stays(tmp_path: Path, attributes: dict[str, float]) -> None:
    nodes = [node("HardSigmoid", ["x"], "g", **attributes), node("Mul", ["x", "g"], "y")]
    assert edited(tmp_path, rewrite, nodes, {}).ops == {"HardSigmoid": 1, "Mul": 1}


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
    found = edited(tmp_path, rewrite, written(gate=(), end=end), constants)
    assert "HardSwish" not in found.ops
    assert found.told == []


def test_two_sixths_and_none_are_no_hard_swish(tmp_path: Path) -> None:
    twice = written(gate=("Div", "six"), end=("Mul", "sixth"))
    # The inner product alone is a hard-swish; the second sixth has to stay.
    assert edited(tmp_path, rewrite, twice, CONSTANTS).ops == {"HardSwish": 1, "Mul": 1}
    assert "HardSwish" not in edited(tmp_path, rewrite, written(gate=()), CONSTANTS).ops
    of_another = [
        node("Relu", ["x"], "r"),
        node("Add", ["r", "three"], "s"),
        node("Clip", ["s", "zero", "six"], "g"),
        node("Mul", ["x", "g"], "p"),
        node("Div", ["p", "six"], "y"),
    ]
    assert "HardSwish" not in edited(tmp_path, rewrite, of_another, CONSTANTS).ops


def test_six_divided_by_the_product_is_no_hard_swish(tmp_path: Path) -> None:
    # 6 / p, not p / 6.
    nodes = [
        node("Abs", ["x"], "a"),
        node("Add", ["a", "three"], "s"),
        node("Clip", ["s", "zero", "six"], "g"),
        node("Mul", ["a", "g"], "p"),
        node("Div", ["six", "p"], "y"),
    ]
    assert "HardSwish" not in edited(tmp_path, rewrite, nodes, CONSTANTS).ops


def test_steps_that_others_read_are_kept(tmp_path: Path) -> None:
    nodes = [*written(gate=(), end=("Div", "six")), node("Relu", ["g"], "z")]
    found = edited(tmp_path, rewrite, nodes, CONSTANTS, outputs=("y", "z"))
    assert found.ops == {"HardSwish": 1, "Add": 1, "Clip": 1, "Relu": 1}


def test_before_opset_14_there_is_no_hard_swish(tmp_path: Path) -> None:
    found = edited(tmp_path, rewrite, written(gate=(), end=("Div", "six")), CONSTANTS, opset=13)
    assert "HardSwish" not in found.ops


def test_a_factor_after_a_convolution_does_not_hide_the_activation(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], "c"),
        node("Mul", ["c", "k"], "m"),
        node("Add", ["m", "three"], "s"),
        node("Clip", ["s", "zero", "six"], "g"),
        node("Mul", ["m", "g"], "p"),
        node("Div", ["p", "six"], "y"),
    ]
    found = edited(tmp_path, rewrite, nodes, {**CONSTANTS, "w": KERNEL, "k": f32([0.5])})
    assert found.ops == {"Conv": 1, "HardSwish": 1}
    assert found.told == [
        "1 constant factors and offsets folded into convolutions",
        "1 written-out hard-swish activations fused into HardSwish",
    ]


def test_a_batch_norm_behind_an_activation_is_told(tmp_path: Path) -> None:
    nodes = [
        node("Relu", ["x"], "r"),
        node("BatchNormalization", ["r", *"somv"], "n"),
        node("Conv", ["n", "w"], "y"),
    ]
    norm = {"s": f32([1, 2, 3]), "o": f32([4, 5, 6]), "m": f32([1, 1, 1]), "v": f32([1, 2, 1])}
    found = edited(tmp_path, rewrite, nodes, {"w": KERNEL, **norm})
    assert found.ops == {"Relu": 1, "Conv": 1}
    assert found.told == ["1 batch norms behind an activation folded into convolutions"]


# --- means ---


@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [3, 2], [2, -1]])
@pytest.mark.parametrize("keep", [0, 1])
def test_the_mean_of_an_image_is_a_pool(tmp_path: Path, axes: list[int], keep: int) -> None:
    nodes = [node("ReduceMean", ["x"], "y", axes=axes, keepdims=keep)]
    found = edited(tmp_path, rewrite, nodes, {})
    assert found.ops == {"GlobalAveragePool": 1} | ({} if keep else {"Flatten": 1})
    assert found.told == ["GlobalAveragePool takes the place of means over height and width (1)"]


def test_axes_may_be_an_input(tmp_path: Path) -> None:
    nodes = [node("ReduceMean", ["x", "axes"], "m"), node("Relu", ["m"], "y")]
    found = edited(tmp_path, rewrite, nodes, {"axes": np.array([2, 3])}, opset=18)
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
    assert edited(tmp_path, rewrite, nodes, {}, shape=shape).ops == {"ReduceMean": 1}


def test_a_mean_over_everything_stays(tmp_path: Path) -> None:
    nodes = [node("ReduceMean", ["x"], "y")]
    assert edited(tmp_path, rewrite, nodes, {}).ops == {"ReduceMean": 1}
    # No axes and noop_with_empty_axes: nothing is averaged.
    empty = [node("ReduceMean", ["x"], "y", noop_with_empty_axes=1)]
    assert edited(tmp_path, rewrite, empty, {}, opset=18).ops == {"ReduceMean": 1}


def test_a_graph_without_such_patterns_is_left_alone(tmp_path: Path) -> None:
    found = edited(tmp_path, rewrite, [node("Relu", ["x"], "y")], {})
    assert (found.ops, found.told) == ({"Relu": 1}, [])


@pytest.mark.parametrize("inputs", [["p", "b"], ["b", "p"]])
def test_rows_times_weights_plus_a_bias_are_one_gemm(tmp_path: Path, inputs: list[str]) -> None:
    nodes = [node("MatMul", ["x", "w"], "p"), node("Add", inputs, "y")]
    constants = {"w": small(RNG, 5, 3), "b": f32([1, 2, 3])}
    assert edited(tmp_path, rewrite, nodes, constants, shape=(4, 5)).ops == {"Gemm": 1}


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
    constants = {"w": small(RNG, 5, 3), "b": bias}
    found = edited(tmp_path, rewrite, nodes, constants, shape=shape, outputs=outputs)
    assert found.ops == {"MatMul": 1, "Add": 1}
