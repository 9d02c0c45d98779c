"""Evened-out graphs compute the same; what would not is left alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from quantize.anchors import find_anchors
from quantize.equalize import Group, apply, find_groups
from quantize.watching import expose
from tests import tiny
from tests.int8 import run

F = TensorProto.FLOAT
RNG = np.random.default_rng(0)
IMAGE = (2, 3, 8, 8)
ROWS = (2, 5, 6)


def normal(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return RNG.standard_normal(shape).astype(np.float32)


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], name=output, **attributes)


CONVS = {"w1": normal(6, 3, 3, 3), "b1": normal(6), "w2": normal(4, 6, 3, 3), "b2": normal(4)}
FIRST = node("Conv", "x w1 b1", "a", pads=[1, 1, 1, 1])
SQUARE = {"m": normal(6, 6), "n": normal(6, 4), "g": normal(6) + 2, "h": normal(6)}


def groups_of(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, Any],
    shape: Sequence[int] = IMAGE,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
) -> tuple[Group, ...]:
    """The groups of a graph, after a check that dividing each by random factors changes nothing."""
    ports: list[tiny.Port] = [(name, F, None) for name in outputs]
    inputs: list[tiny.Port] = [("x", F, list(shape))]
    path = tiny.save(folder / "before.onnx", list(nodes), inputs, ports, dict(constants), opset)
    model = ir.load(path)
    groups = find_groups(model, find_anchors(model)[0])
    rng = np.random.default_rng(1)
    factors = {g.name: rng.uniform(0.1, 10, g.channels).astype(np.float32) for g in groups}
    apply(model, groups, factors)
    after = folder / "after.onnx"
    ir.save(model, after)
    inner = {t: (g, axis) for g in groups for t, axis in g.tensors.items() if t != "x"}
    expose(path, list(inner), folder / "before_all.onnx")
    expose(after, list(inner), folder / "after_all.onnx")
    x = rng.standard_normal(shape).astype(np.float32)
    wanted, found = (run(folder / f"{n}_all.onnx", {"x": x}) for n in ("before", "after"))
    for name, values in found.items():
        if name in inner and not inner[name][0].inserted:
            group, axis = inner[name]
            values = np.moveaxis(np.moveaxis(values, axis, -1) * factors[group.name], -1, axis)
        assert np.abs(values - wanted[name]).max() < 1e-4 * max(np.abs(wanted[name]).max(), 1)
    return groups


def test_a_convolution_gives_to_the_next_through_what_is_homogeneous(tmp_path: Path) -> None:
    nodes = [
        FIRST,
        node("LeakyRelu", "a", "r", alpha=0.1),
        node("PRelu", "r slope", "p"),
        node("MaxPool", "p", "q", kernel_shape=[2, 2]),
        node("Conv", "q w2 b2", "y", pads=[1, 1, 1, 1]),
    ]
    (group,) = groups_of(tmp_path, nodes, {**CONVS, "slope": normal(6, 1, 1)})
    assert group.reads == (("q", "y"),)
    assert group.tensors == dict.fromkeys("arpq", 1)
    assert (group.channels, group.inserted) == (6, False)


def test_depthwise_layers_take_from_before_and_give_behind(tmp_path: Path) -> None:
    depthwise = {"wd": normal(12, 2, 3, 3), "bd": normal(12), "w3": normal(4, 12, 1, 1)}
    nodes = [
        FIRST,
        node("Relu", "a", "r"),
        node("Conv", "r wd bd", "d", group=3),
        node("Relu", "d", "s"),
        node("Conv", "s w3", "y"),
    ]
    first, second = groups_of(tmp_path, nodes, {**CONVS, **depthwise})
    assert (first.name, first.channels) == ("d", 6)
    assert (second.name, second.channels) == ("y", 12)


def test_all_of_a_residual_stream_shares_its_factors(tmp_path: Path) -> None:
    nodes = [
        FIRST,
        node("Conv", "a w", "b", pads=[1, 1, 1, 1]),
        node("Add", "a b", "c"),
        node("Conv", "c w2 b2", "y"),
    ]
    (group,) = groups_of(tmp_path, nodes, {**CONVS, "w": normal(6, 6, 3, 3)})
    assert group.tensors == dict.fromkeys("abc", 1)
    assert group.reads == (("a", "b"), ("c", "y"))


def test_a_gate_that_is_computed_from_pooled_channels_is_no_hindrance(tmp_path: Path) -> None:
    nodes = [
        FIRST,
        node("Relu", "a", "r"),
        node("GlobalAveragePool", "r", "p"),
        node("Conv", "p ws", "s"),
        node("Sigmoid", "s", "g"),
        node("Mul", "r g", "m"),
        node("Conv", "m w2 b2", "y"),
    ]
    (group,) = groups_of(tmp_path, nodes, {**CONVS, "ws": normal(6, 6, 1, 1)})
    assert group.tensors == dict.fromkeys("arpm", 1)
    assert [t for t, _ in group.reads] == ["p", "m"]


@pytest.mark.parametrize("flat", ["Flatten", "Reshape"])
def test_pooled_channels_reach_a_gemm(tmp_path: Path, flat: str) -> None:
    shape = {"shape": np.array([2, 6], np.int64)} if flat == "Reshape" else {}
    nodes = [
        FIRST,
        node("GlobalAveragePool", "a", "p"),
        node(flat, f"p {' '.join(shape)}".strip(), "f"),
        node("Gemm", "f wg", "y", transB=1),
    ]
    groups = groups_of(tmp_path, nodes, {**CONVS, **shape, "wg": normal(4, 6)})
    folded = [g for g in groups if not g.inserted]
    assert [g.tensors for g in folded] == ([{"a": 1, "p": 1, "f": -1}] if flat == "Flatten" else [])


def test_relu6_and_what_is_not_homogeneous_are_left_alone(tmp_path: Path) -> None:
    limits = {"low": np.float32(0), "high": np.float32(1)}
    for middle in (node("Clip", "a low high", "r"), node("Sigmoid", "a", "r")):
        nodes = [FIRST, middle, node("Conv", "r w2 b2", "y")]
        assert groups_of(tmp_path, nodes, {**CONVS, **limits}) == ()


def test_a_tensor_that_others_see_is_left_alone(tmp_path: Path) -> None:
    nodes = [FIRST, node("Conv", "a w2 b2", "y"), node("ReduceMean", "a", "z")]
    assert groups_of(tmp_path, nodes, CONVS, outputs=("y", "z")) == ()
    assert groups_of(tmp_path, nodes[:2], CONVS, outputs=("y", "a")) == ()
    square = [FIRST, node("Mul", "a a", "r"), node("Conv", "r w2 b2", "y")]
    assert groups_of(tmp_path, square, CONVS) == ()
    assert groups_of(tmp_path, [node("Conv", "x w1 b1", "y")], CONVS) == ()


def test_a_norm_gives_to_all_products_behind_it(tmp_path: Path) -> None:
    nodes = [
        node("LayerNormalization", "x g h", "l"),
        *(node("MatMul", "l m", name) for name in ("q", "k", "v")),
        node("Add", "q k", "s"),
        node("Add", "s v", "y"),
    ]
    (group,) = groups_of(tmp_path, nodes, SQUARE, ROWS)
    assert group.reads == (("l", "q"), ("l", "k"), ("l", "v"))
    assert not group.inserted


def test_a_norm_that_is_written_out_gives_as_well(tmp_path: Path) -> None:
    nodes = [
        node("Tanh", "x", "t"),
        node("Mul", "t g", "u"),
        node("Add", "u h", "l"),
        node("MatMul", "l n", "y"),
    ]
    (group,) = groups_of(tmp_path, nodes, SQUARE, ROWS)
    assert group.tensors == {"l": -1, "u": -1}
    assert not group.inserted


def test_one_number_of_a_written_out_gelu_stays_one_number(tmp_path: Path) -> None:
    nodes = [node("Tanh", "x", "t"), node("Mul", "t half", "u"), node("MatMul", "u n", "y")]
    (group,) = groups_of(tmp_path, nodes, {**SQUARE, "half": np.float32(0.5)}, ROWS)
    assert group.inserted


def test_a_residual_beside_products_asks_for_a_mul(tmp_path: Path) -> None:
    nodes = [
        node("LayerNormalization", "x g h", "l"),
        node("MatMul", "l m", "q"),
        node("MatMul", "l m", "k"),
        node("Add", "q k", "s"),
        node("Add", "s l", "t"),
        node("Relu", "t", "y"),
    ]
    (group,) = groups_of(tmp_path, nodes, SQUARE, ROWS)
    assert group.inserted
    assert group.tensors == {"l": -1}
    assert group.reads == (("l", "q"), ("l", "k"))


def test_a_model_input_can_be_divided_by_a_mul(tmp_path: Path) -> None:
    (group,) = groups_of(tmp_path, [node("MatMul", "x n", "y")], SQUARE, ROWS)
    assert group.inserted


def test_a_transpose_takes_channels_along(tmp_path: Path) -> None:
    nodes = [
        FIRST,
        node("Transpose", "a", "t", perm=[0, 2, 3, 1]),
        node("Add", "t h", "u"),
        node("MatMul", "u n", "y"),
    ]
    (group,) = groups_of(tmp_path, nodes, {**CONVS, **SQUARE})
    assert group.tensors == {"a": 1, "t": -1, "u": -1}
    moved = [FIRST, node("Transpose", "a", "t", perm=[0, 2, 1, 3]), node("MatMul", "t e", "y")]
    groups = groups_of(tmp_path, moved, {**CONVS, "e": normal(8, 4)})
    assert all(g.inserted for g in groups)


def test_a_factor_per_channel_is_divided_where_a_convolution_tells_the_axes(tmp_path: Path) -> None:
    nodes = [
        FIRST,
        node("Mul", "a k", "u"),
        node("GlobalAveragePool", "u", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f wg", "y", transB=1),
    ]
    constants = {**CONVS, "k": normal(6, 1, 1), "wg": normal(4, 6)}
    # Nothing says how many axes the channels have behind them, but for a convolution.
    assert all(g.inserted for g in groups_of(tmp_path, nodes, constants))
    nodes += [node("Conv", "u w2", "z")]
    (group,) = groups_of(tmp_path, nodes, constants, outputs=("y", "z"))
    assert group.tensors == {"u": 1, "p": 1, "f": -1}


def test_a_slope_may_be_computed(tmp_path: Path) -> None:
    nodes = [
        FIRST,
        node("ReduceMean", "x", "slope"),
        node("PRelu", "a slope", "p"),
        node("Conv", "p w2 b2", "y"),
    ]
    (group,) = groups_of(tmp_path, nodes, CONVS)
    assert group.tensors == {"a": 1, "p": 1}


def test_a_tensor_and_its_multiple_are_divided_once(tmp_path: Path) -> None:
    """The multiple could be divided in its constant too, but not what it is added to then."""
    nodes = [
        FIRST,
        node("Mul", "a k", "u"),
        node("Conv", "u w2", "c"),
        node("Add", "u a", "s"),
        node("Conv", "s w2", "d"),
    ]
    (group,) = groups_of(tmp_path, nodes, {**CONVS, "k": normal(6, 1, 1)}, outputs=("c", "d"))
    assert group.tensors == dict.fromkeys("sau", 1)
    assert [e.node for e in group.edits].count("u") == 0


PAIR = [FIRST, node("Conv", "a w", "b", pads=[1, 1, 1, 1]), node("Add", "a b", "c")]
FORBIDDEN: dict[str, tuple[list[onnx.NodeProto], str]] = {
    "a product of two of them": (
        [*PAIR, node("Mul", "a b", "ab"), node("Conv", "ab w2", "d"), node("Conv", "c w2", "e")],
        "d e",
    ),
    "channels moved to where rows were": (
        [FIRST, node("Transpose", "a", "t", perm=[0, 2, 1, 3]), node("Conv", "t w2", "y")],
        "y",
    ),
    "a pool across channels": (
        [
            FIRST,
            node("Transpose", "a", "t", perm=[0, 2, 3, 1]),
            node("MaxPool", "t", "p", kernel_shape=[1, 3], pads=[0, 1, 0, 1]),
            node("MatMul", "p n", "y"),
        ],
        "y",
    ),
    "samples flattened into channels": (
        [
            node("BatchNormalization", "x s3 s3 s3 s3", "a"),
            node("GlobalAveragePool", "a", "p"),
            node("Flatten", "p", "f", axis=0),
            node("Gemm", "f m", "y"),
        ],
        "y",
    ),
    "one channel": ([node("Conv", "x one", "a"), node("Conv", "a turn", "y")], "y"),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_would_compute_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    nodes, outputs = FORBIDDEN[name]
    more = {"w": normal(6, 6, 3, 3), "one": normal(1, 3, 1, 1), "turn": normal(4, 1, 1, 1)}
    more |= {"s3": np.abs(normal(3)), "b1": normal(6)}
    used = {i for n in nodes for i in n.input}
    constants = {k: v for k, v in {**CONVS, **SQUARE, **more}.items() if k in used}
    groups = groups_of(tmp_path, nodes, constants, (2, 3, 6, 6), outputs.split())
    assert all(g.inserted for g in groups)


def test_a_product_of_columns_does_not_read_channels(tmp_path: Path) -> None:
    nodes = [
        node("LayerNormalization", "x g h", "l"),
        node("MatMul", "l n", "y"),
        node("Gemm", "l m", "z", transA=1),
    ]
    groups = groups_of(tmp_path, nodes, SQUARE, (6, 6), ("y", "z"))
    assert all(g.inserted for g in groups)


def test_a_tensor_that_a_branch_reads_is_left_alone(tmp_path: Path) -> None:
    def branch(name: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, F, None)
        return helper.make_graph([node("Conv", "a w2 b2", name)], name, [], [out])

    nodes = [
        FIRST,
        node("ReduceMax", "x", "most", keepdims=0),
        node("Cast", "most", "c", to=TensorProto.BOOL),
        node("If", "c", "z", then_branch=branch("yes"), else_branch=branch("no")),
        node("Conv", "a w2 b2", "y"),
    ]
    assert groups_of(tmp_path, nodes, CONVS, outputs=("y", "z")) == ()


def test_shared_weights_change_for_one_reader_only(tmp_path: Path) -> None:
    """`m` makes one group's tensor, is read by another's, and is read behind a sigmoid too."""
    nodes = [
        node("MatMul", "x m", "a"),
        node("Relu", "a", "b"),
        node("MatMul", "b m", "c"),
        node("Sigmoid", "c", "d"),
        node("MatMul", "d m", "y"),
    ]
    groups = groups_of(tmp_path, nodes, SQUARE, ROWS)
    assert [g.inserted for g in groups] == [True, False, True]


@settings(max_examples=15)
@given(
    bias=st.booleans(),
    norm=st.booleans(),
    constant=st.sampled_from(["Mul", "Add", None]),
    group=st.sampled_from([1, 2, 6]),
    rank=st.sampled_from([3, 4]),
)
def test_no_chain_changes_what_it_computes(
    tmp_path_factory: pytest.TempPathFactory,
    *,
    bias: bool,
    norm: bool,
    constant: str | None,
    group: int,
    rank: int,
) -> None:
    kernel = [3] * (rank - 2)
    channel = (6, *[1] * (rank - 2))
    constants = {
        "w1": normal(6, 3, *kernel),
        "b1": normal(6),
        "k": normal(*channel),
        "w2": normal(12, 6 // group, *kernel),
        "b2": normal(12),
        "s": normal(6),
        "o": normal(6),
        "mean": normal(6),
        "var": normal(6) ** 2 + 1,
    }
    nodes, last = [node("Conv", "x w1 b1" if bias else "x w1", "a")], "a"
    if norm:
        nodes.append(node("BatchNormalization", f"{last} s o mean var", "n"))
        last = "n"
    nodes.append(node("Relu", last, "r"))
    last = "r"
    if constant is not None:
        nodes.append(node(constant, f"{last} k", "c"))
        last = "c"
    nodes.append(node("Conv", f"{last} w2 b2" if bias else f"{last} w2", "y", group=group))
    folder = tmp_path_factory.mktemp("chain")
    groups = groups_of(folder, nodes, constants, (2, 3, *[9] * (rank - 2)))
    assert [g.name for g in groups] == ["y"]
