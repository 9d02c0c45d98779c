"""Constants that go into the layers beside them, and those that have to stay."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from quantize.folding import fold_affine, fold_late_norms
from tests.edits import Nodes, edited, f32, node, small

RNG = np.random.default_rng(0)
W = RNG.standard_normal((5, 3, 3, 3)).astype(np.float32)
B = RNG.standard_normal(5).astype(np.float32)
PADS = {"pads": [1, 1, 1, 1]}


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
    found = edited(tmp_path, fold_affine, nodes, constants)
    assert found.ops == {"Conv": 1}
    assert found.told == 1


def test_a_chain_of_constants_goes_in_whole(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], "c", **PADS),
        node("Mul", ["c", "k"], "m"),
        node("Add", ["m", "o"], "a"),
        node("Mul", ["s", "a"], "z"),
        node("Relu", ["z"], "y"),
    ]
    constants = {"w": W, "k": FOLDED["rank 3"], "o": FOLDED["rank 4"], "s": f32(-2.0)}
    found = edited(tmp_path, fold_affine, nodes, constants)
    assert (found.ops, found.told) == ({"Conv": 1, "Relu": 1}, 3)


def test_grouped_and_one_dimensional_convolutions_fold_too(tmp_path: Path) -> None:
    depthwise = RNG.standard_normal((3, 1, 3, 3)).astype(np.float32)
    factors = f32([1.0, -2.0, 0.5]).reshape(3, 1, 1)
    nodes = [node("Conv", ["x", "w"], "c", group=3, **PADS), node("Mul", ["c", "k"], "y")]
    assert edited(tmp_path, fold_affine, nodes, {"w": depthwise, "k": factors}).ops == {"Conv": 1}
    narrow = RNG.standard_normal((3, 3, 3)).astype(np.float32)
    nodes = [node("Conv", ["x", "w"], "c", pads=[1, 1]), node("Mul", ["c", "k"], "y")]
    constants = {"w": narrow, "k": factors.reshape(3, 1)}
    assert edited(tmp_path, fold_affine, nodes, constants, shape=(2, 3, 6)).ops == {"Conv": 1}


def test_shared_weights_stay_as_they_are_for_the_other(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w", "b"], "c", **PADS),
        node("Mul", ["c", "k"], "y"),
        node("Conv", ["x", "w", "b"], "z", **PADS),
    ]
    constants = {"w": W, "b": B, "k": f32(3.0)}
    found = edited(tmp_path, fold_affine, nodes, constants, outputs=("y", "z"))
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
    found = edited(tmp_path, fold_affine, nodes, {"w": W, "k": constant}, shape=shape)
    assert found.ops == {"Conv": 1, "Mul": 1}
    assert found.told == 0


def test_one_channel_grows_to_many_and_so_stays(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w"], "c", **PADS), node("Mul", ["c", "k"], "y")]
    constants = {"w": W[:1], "k": FOLDED["rank 3"]}
    assert edited(tmp_path, fold_affine, nodes, constants).ops == {"Conv": 1, "Mul": 1}


def test_an_output_that_others_read_stays(tmp_path: Path) -> None:
    conv = node("Conv", ["x", "w"], "c", **PADS)
    mul = node("Mul", ["c", "k"], "y")
    constants = {"w": W, "k": f32(2.0)}
    read_twice = [conv, mul, node("Relu", ["c"], "z")]
    assert edited(tmp_path, fold_affine, read_twice, constants, outputs=("y", "z")).ops["Mul"] == 1
    assert edited(tmp_path, fold_affine, [conv, mul], constants, outputs=("y", "c")).ops["Mul"] == 1
    squared = [conv, node("Mul", ["c", "c"], "y")]
    assert edited(tmp_path, fold_affine, squared, {"w": W}).ops == {"Conv": 1, "Mul": 1}


def test_what_is_not_constant_stays(tmp_path: Path) -> None:
    square = RNG.standard_normal((3, 3, 3, 3)).astype(np.float32)
    nodes = [node("Conv", ["x", "w"], "c", **PADS), node("Add", ["c", "x"], "y")]
    assert edited(tmp_path, fold_affine, nodes, {"w": square}).ops == {"Conv": 1, "Add": 1}
    computed = [
        node("Relu", ["w0"], "w"),
        node("Conv", ["x", "w"], "c", **PADS),
        node("Mul", ["c", "k"], "y"),
    ]
    assert edited(tmp_path, fold_affine, computed, {"w0": square, "k": f32(2.0)}).ops["Mul"] == 1
    biased = [
        node("Relu", ["b0"], "b"),
        node("Conv", ["x", "w", "b"], "c", **PADS),
        node("Mul", ["c", "k"], "y"),
    ]
    constants = {"w": W, "b0": B, "k": f32(2.0)}
    assert edited(tmp_path, fold_affine, biased, constants).ops["Mul"] == 1


# --- batch norms behind an activation ---

NORM = {
    "s": np.array([0.5, 1.0, 2.0, 0.1, 3.0], np.float32),
    "o": RNG.standard_normal(5).astype(np.float32),
    "m": RNG.standard_normal(5).astype(np.float32),
    "v": np.square(RNG.standard_normal(5)).astype(np.float32) + 1,
}
NEGATIVE = {**NORM, "s": np.array([0.5, -1.0, 2.0, 0.1, 3.0], np.float32)}


def late_norm(act: str = "Relu") -> Nodes:
    return [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], name="first", **PADS),
        helper.make_node(act, ["a", "slope"] if act == "PRelu" else ["a"], ["r"]),
        helper.make_node("BatchNormalization", ["r", "s", "o", "m", "v"], ["n"], epsilon=1e-3),
    ]


@pytest.mark.parametrize("act", ["Relu", "LeakyRelu", "PRelu"])
def test_a_positive_norm_behind_an_activation_leaves_an_addition(tmp_path: Path, act: str) -> None:
    wk = small(RNG, 2, 5, 3, 3)
    nodes = [
        *late_norm(act),
        helper.make_node("MaxPool", ["n"], ["p"], kernel_shape=[2, 2]),
        helper.make_node("Conv", ["p", "k"], ["y"], **PADS),
    ]
    slope = {"slope": np.full((5, 1, 1), 0.1, np.float32)} if act == "PRelu" else {}
    found = edited(tmp_path, fold_late_norms, nodes, {"w": W, "b": B, "k": wk, **slope, **NORM})
    assert found.ops == {"Conv": 2, act: 1, "Add": 1, "MaxPool": 1}
    assert found.told == 1


def test_a_negative_norm_stays_before_what_pads(tmp_path: Path) -> None:
    wk = small(RNG, 2, 5, 3, 3)
    nodes = [*late_norm(), helper.make_node("Conv", ["n", "k"], ["y"], **PADS)]
    found = edited(tmp_path, fold_late_norms, nodes, {"w": W, "b": B, "k": wk, **NEGATIVE})
    assert found.ops["BatchNormalization"] == 1
    auto = [*late_norm(), helper.make_node("Conv", ["n", "k"], ["y"], auto_pad="SAME_UPPER")]
    found = edited(tmp_path, fold_late_norms, auto, {"w": W, "b": B, "k": wk, **NEGATIVE})
    assert found.ops["BatchNormalization"] == 1


@pytest.mark.parametrize("group", [1, 5])
@pytest.mark.parametrize("bias", ["", "kb"])
def test_what_does_not_pad_takes_any_norm(tmp_path: Path, group: int, bias: str) -> None:
    constants = {
        "k": small(RNG, 10, 5 // group, 3, 3),
        "kb": RNG.standard_normal(10).astype(np.float32),
    }
    inputs = ["n", "k", bias] if bias else ["n", "k"]
    nodes = [
        *late_norm(),
        helper.make_node("Conv", inputs, ["c"], group=group),
        helper.make_node("Conv", ["n", "q"], ["d"], kernel_shape=[3, 3]),
        helper.make_node("Add", ["c", "d"], ["y"]),
    ]
    constants["q"] = small(RNG, 10, 5, 3, 3)
    found = edited(tmp_path, fold_late_norms, nodes, {"w": W, "b": B, **constants, **NEGATIVE})
    assert found.ops == {"Conv": 3, "Relu": 1, "Add": 1}


@pytest.mark.parametrize("turned", [0, 1])
def test_a_gemm_takes_the_norm_before_it(tmp_path: Path, turned: int) -> None:
    shape = (3, 5) if turned else (5, 3)
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("BatchNormalization", ["r", "s", "o", "m", "v"], ["n"]),
        helper.make_node("Gemm", ["n", "g"], ["y"], transB=turned),
    ]
    constants = {"g": small(RNG, *shape), **NEGATIVE}
    assert edited(tmp_path, fold_late_norms, nodes, constants, shape=(4, 5)).ops == {
        "Relu": 1,
        "Gemm": 1,
    }


@pytest.mark.parametrize("options", [{"alpha": 2.0}, {"beta": 0.5}, {"transA": 1}])
def test_a_gemm_that_scales_or_turns_leaves_the_norm(tmp_path: Path, options: Any) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("BatchNormalization", ["r", "s", "o", "m", "v"], ["n"]),
        helper.make_node("Gemm", ["n", "g"], ["y"], **options),
    ]
    constants = {"g": small(RNG, 5, 3), **NEGATIVE}
    found = edited(tmp_path, fold_late_norms, nodes, constants, shape=(5, 5))
    assert found.ops["BatchNormalization"] == 1


def test_a_norm_that_others_see_stays(tmp_path: Path) -> None:
    constants = {"w": W, "b": B, "k": small(RNG, 2, 5, 1, 1)}
    reader = helper.make_node("Conv", ["n", "k"], ["y"])
    found = edited(
        tmp_path,
        fold_late_norms,
        [*late_norm(), reader],
        {**constants, **NEGATIVE},
        outputs=("y", "n"),
    )
    assert found.ops["BatchNormalization"] == 1
    # The activation is read as well, so the convolution cannot take the factor.
    found = edited(
        tmp_path, fold_late_norms, late_norm(), {**constants, **NORM}, outputs=("n", "r")
    )
    assert found.ops["BatchNormalization"] == 1
