"""Which nodes are anchors, and where Q/DQ pairs go around them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from quantize.anchors import Anchor, find_anchors
from quantize.placement import Placement, place, watch_list
from tests import tiny

FLOAT = TensorProto.FLOAT
IMAGE = ("x", FLOAT, ["n", 4, 6, 6])


def weight(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def load(
    folder: Path,
    nodes: list[onnx.NodeProto],
    constants: dict[str, Any],
    outputs: str = "y",
    x: tiny.Port = IMAGE,
) -> ir.Model:
    ports: list[tiny.Port] = [(name, FLOAT, None) for name in outputs.split()]
    return ir.load(tiny.save(folder / "m.onnx", nodes, [x], ports, constants))


def conv(name: str, x: str, y: str, weights: str = "k", **options: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [x, weights], [y], name, pads=[1, 1, 1, 1], **options)


def node(op: str, inputs: str, y: str, **options: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(" "), [y], f"{y}_{op}", **options)


K = {"k": weight(4, 4, 3, 3)}


def placed(model: ir.Model, magnitudes: Any = None, **options: Any) -> Placement:
    anchors, _ = find_anchors(model)
    modes = options.pop("modes", {a.name: a.modes[0] for a in anchors})
    return place(model, anchors, modes, magnitudes, **options)


def pairs(found: Placement) -> set[str]:
    return set(found.tensors)


# Anchors


def test_anchors_are_found_with_what_they_are(tmp_path: Path) -> None:
    nodes = [
        conv("dense", "x", "a"),
        conv("deep", "a", "b", "d", group=4),
        node("Relu", "b", "r"),
        node("Flatten", "r", "f"),
        helper.make_node("Gemm", ["f", "w", "c"], ["g"], "gemm"),
        helper.make_node("Gemm", ["g", "wt"], ["h"], "turned", transB=1),
        helper.make_node("MatMul", ["h", "m"], ["y"], "product"),
    ]
    constants = K | {
        "d": weight(4, 1, 3, 3),
        "w": weight(144, 5),
        "c": weight(5),
        "wt": weight(3, 5),
        "m": weight(3, 2),
    }
    found, left = find_anchors(load(tmp_path, nodes, constants))
    assert left == {}
    assert found == (
        Anchor("dense", "Conv", "x", "a", "a", 0, 144),
        Anchor("deep", "Conv", "a", "b", "r", 0, 36, depthwise=True),
        Anchor("gemm", "Gemm", "f", "g", "g", 1, 720),
        Anchor("turned", "Gemm", "g", "h", "h", 0, 15),
        Anchor("product", "MatMul", "h", "y", "y", 1, 6),
    )
    assert [a.modes for a in found] == [("static", "float")] * 2 + [
        ("static", "dynamic", "float")
    ] * 3


ROWS = ("x", FLOAT, ["n", 4])
STEPS = ("x", FLOAT, ["t", "n", 4])
GRU = {"W": weight(1, 6, 4), "R": weight(1, 6, 2)}
LSTM = {"W": weight(1, 8, 4), "R": weight(1, 8, 2)}


@pytest.mark.parametrize(
    ("nodes", "x", "constants", "reason"),
    [
        ([node("MatMul", "x x", "y")], ("x", FLOAT, [4, 4]), {}, "both factors are activations"),
        ([node("MatMul", "w x", "y")], ("x", FLOAT, [4, 4]), {"w": weight(4, 4)}, "activations"),
        (
            [node("MatMul", "x w", "y")],
            ("x", FLOAT, [3, 2, 4]),
            {"w": weight(3, 4, 2)},
            "weights of rank 3",
        ),
        ([node("MatMul", "x w", "y")], ROWS, {"w": weight(4, 0)}, "weights are empty"),
        (
            [node("Gemm", "x w", "y", transA=1)],
            ROWS,
            {"w": weight(4, 2)},
            "transposed activations",
        ),
        (
            [node("Relu", "c", "b"), node("Gemm", "x w b", "y")],
            ROWS,
            {"w": weight(4, 2), "c": weight(2)},
            "bias is computed",
        ),
        (
            [node("Gemm", "x w c", "y")],
            ("x", FLOAT, [3, 4]),
            {"w": weight(4, 2), "c": weight(3, 2)},
            "not one value per channel",
        ),
        (
            [node("Gemm", "x w c", "y")],
            ("x", FLOAT, [2, 4]),
            {"w": weight(4, 3), "c": weight(2, 1)},
            "not one value per channel",
        ),
        ([node("Relu", "x", "r"), node("Conv", "x r", "y")], IMAGE, {}, "weights are computed"),
        (
            [node("MatMul", "x w", "y")],
            ("x", TensorProto.DOUBLE, ["n", 4]),
            {"w": weight(4, 2).astype(np.float64)},
            "weights are double",
        ),
        ([node("ConvTranspose", "x k", "y")], IMAGE, K, "no INT8 kernel"),
        ([node("GRU", "x W R", "y", hidden_size=2)], STEPS, GRU, "recurrent"),
        ([node("LSTM", "x W R", "y", hidden_size=2, layout=1)], STEPS, LSTM, "layout"),
        ([node("LSTM", "x W R", "y", hidden_size=2, input_forget=1)], STEPS, LSTM, "layout"),
        ([node("LSTM", "x W R", "y", hidden_size=2, clip=1.0)], STEPS, LSTM, "clipping"),
        (
            [node("LSTM", "x W R     p", "y", hidden_size=2)],
            STEPS,
            LSTM | {"p": weight(1, 6)},
            "peepholes",
        ),
        (
            [node("Relu", "W", "V"), node("LSTM", "x V R", "y", hidden_size=2)],
            STEPS,
            LSTM,
            "weights are computed",
        ),
        (
            [node("LSTM", "x W R", "y", hidden_size=2)],
            ("x", TensorProto.DOUBLE, ["t", "n", 4]),
            {k: v.astype(np.float64) for k, v in LSTM.items()},
            "weights are double",
        ),
    ],
)  # fmt: skip
def test_what_is_no_anchor_says_why(
    tmp_path: Path, nodes: list[onnx.NodeProto], x: tiny.Port, constants: Any, reason: str
) -> None:
    found, left = find_anchors(load(tmp_path, nodes, constants, x=x))
    assert found == ()
    assert list(left) == [nodes[-1].name]
    assert reason in left[nodes[-1].name]


def test_operators_of_other_domains_are_not_looked_at(tmp_path: Path) -> None:
    odd = helper.make_node("Conv", ["x", "k"], ["y"], "odd", domain="my.company")
    assert find_anchors(load(tmp_path, [odd], K)) == ((), {})


def test_anchors_in_branches_are_dynamic_or_nothing(tmp_path: Path) -> None:
    def branch(op: str) -> onnx.GraphProto:
        inner = helper.make_node(op, ["x", "w"], [f"{op}_y"], f"{op}_inside")
        value = helper.make_tensor_value_info(f"{op}_y", FLOAT, None)
        return helper.make_graph([inner], op, [], [value])

    choice = helper.make_node(
        "If", ["yes"], ["y"], "if", then_branch=branch("MatMul"), else_branch=branch("Gemm")
    )
    constants = {"w": weight(4, 2), "yes": np.ones((), bool)}
    model = load(tmp_path, [choice], constants, x=ROWS)
    (found,), left = find_anchors(model)
    assert (found.name, found.nested, found.modes) == ("MatMul_inside", True, ("dynamic", "float"))
    assert "subgraph" in left["Gemm_inside"]
    assert watch_list(model, (found,)) == ()


# Placement


def chain(folder: Path, middle: list[onnx.NodeProto], **constants: Any) -> ir.Model:
    """Conv a, `middle` from a to s, Conv b."""
    nodes = [conv("first", "x", "a"), *middle, conv("second", "s", "y")]
    return load(folder, nodes, K | constants)


def test_a_plain_chain_has_a_pair_at_every_edge(tmp_path: Path) -> None:
    found = placed(load(tmp_path, [conv("one", "x", "a"), conv("two", "a", "y")], K))
    assert pairs(found) == {"x", "a", "y"}
    assert found.glue == frozenset()
    assert found.rectified == {}


@pytest.mark.parametrize("low", [0.0, None, -1.0])
def test_rectifiers_from_zero_are_folded_into_the_scale(tmp_path: Path, low: float | None) -> None:
    clip = helper.make_node("Clip", ["a", "" if low is None else "low", "six"], ["s"], "clip")
    constants = {"six": np.float32(6)} | ({} if low is None else {"low": np.float32(low)})
    found = placed(chain(tmp_path, [clip], **constants))
    if low == 0.0:
        assert pairs(found) == {"x", "s", "y"}
        assert found.rectified == {"first": "s"}
    else:
        # The convolution still gets a pair of its own, since nothing is folded.
        assert pairs(found) == {"x", "a", "s", "y"}
        assert found.rectified == {}


def test_a_relu_beside_another_reader_is_not_folded(tmp_path: Path) -> None:
    middle = [node("Relu", "a", "r"), node("Add", "a r", "s")]
    found = placed(chain(tmp_path, middle))
    assert "a" in pairs(found)
    assert "first" not in found.rectified


def test_a_relu_behind_an_output_of_the_graph_is_not_folded(tmp_path: Path) -> None:
    nodes = [conv("first", "x", "a"), node("Relu", "a", "s"), conv("second", "s", "y")]
    found = placed(load(tmp_path, nodes, K, outputs="y a"))
    assert {"a", "s"} <= pairs(found)
    assert "first" not in found.rectified


def test_residual_sums_between_anchors_run_in_integers(tmp_path: Path) -> None:
    middle = [node("Relu", "a", "r"), conv("body", "r", "b"), node("Add", "b r", "s")]
    found = placed(chain(tmp_path, middle))
    assert found.glue == {"s_Add"}
    assert pairs(found) == {"x", "r", "b", "s", "y"}
    assert found.rectified["first"] == "r"


def test_what_only_moves_bytes_shares_its_input_s_scale(tmp_path: Path) -> None:
    middle = [
        node("Relu", "a", "r"),
        node("MaxPool", "r", "p", kernel_shape=[1, 1]),
        node("Transpose", "p", "s", perm=[0, 1, 3, 2]),
    ]
    found = placed(chain(tmp_path, middle))
    assert found.glue == {"p_MaxPool", "s_Transpose"}
    assert found.tensors == {"x": "x", "r": "r", "p": "r", "s": "r", "y": "y"}


def test_glue_that_leads_nowhere_stays_in_float(tmp_path: Path) -> None:
    nodes = [conv("first", "x", "a"), node("MaxPool", "a", "p", kernel_shape=[2, 2])]
    nodes += [node("Tanh", "p", "y")]
    found = placed(load(tmp_path, nodes, K))
    assert found.glue == frozenset()
    assert pairs(found) == {"x", "a"}


def test_glue_with_one_float_input_stays_in_float(tmp_path: Path) -> None:
    middle = [node("Tanh", "x", "t"), node("Add", "a t", "s")]
    found = placed(chain(tmp_path, middle))
    assert "s_Add" not in found.glue
    assert "t" not in pairs(found)


def test_an_unknown_operator_between_anchors_stays_in_float(tmp_path: Path) -> None:
    found = placed(chain(tmp_path, [node("Tanh", "a", "s")]))
    assert found.glue == frozenset()
    assert pairs(found) == {"x", "a", "s", "y"}


def concat(folder: Path) -> ir.Model:
    middle = [conv("other", "x", "b"), node("Concat", "a b", "c", axis=1)]
    middle += [node("MaxPool", "c", "p", kernel_shape=[1, 1]), conv("wide", "p", "s", "k8")]
    return chain(folder, middle, k8=weight(4, 8, 3, 3))


@pytest.mark.parametrize(
    ("other", "joined"), [(1.0, True), (7.9, True), (8.1, False), (0.1, False)]
)
def test_a_concat_of_unlike_ranges_stays_in_float(
    tmp_path: Path,
    other: float,
    joined: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    ranges = dict.fromkeys(["x", "a", "c", "p", "s", "y"], 1.0) | {"b": other}
    found = placed(concat(tmp_path), ranges)
    assert ("c_Concat" in found.glue) == joined
    assert ("c" in pairs(found)) == joined
    assert "c_Concat" in placed(concat(tmp_path)).glue


def test_tensors_without_a_range_take_their_anchors_to_float(tmp_path: Path) -> None:
    model = load(
        tmp_path, [conv("one", "x", "a"), conv("two", "a", "b"), conv("three", "b", "y")], K
    )
    found = placed(model, {"x": 1.0, "a": 1.0, "y": 1.0})
    assert found.modes == {"one": "static", "two": "float", "three": "float"}
    assert "output holds non-finite" in found.reasons["two"]
    assert "input holds non-finite" in found.reasons["three"]
    assert pairs(found) == {"x", "a"}


def test_glue_without_a_range_stays_in_float(tmp_path: Path) -> None:
    middle = [
        conv("body", "a", "b"),
        node("Add", "b a", "t"),
        node("MaxPool", "t", "s", kernel_shape=[1, 1]),
    ]
    ranges = dict.fromkeys(["x", "a", "b", "s", "y"], 1.0)
    assert "t_Add" in placed(chain(tmp_path, middle), ranges | {"t": 1.0}).glue
    found = placed(chain(tmp_path, middle), ranges)
    assert found.glue == frozenset()
    assert "t" not in pairs(found)


@pytest.mark.parametrize(
    ("tail", "front_end"),
    [
        ([node("Log", "a", "y")], True),
        ([node("Sqrt", "a", "y")], True),
        ([node("Pow", "a two", "y")], True),
        ([node("Mul", "a a", "y")], True),
        ([node("Transpose", "a", "t"), node("Abs", "t", "u"), node("Log", "u", "y")], True),
        # A layer norm's square and root tolerate 8 bits.
        ([node("Pow", "a two", "p"), node("ReduceMean", "p", "y", axes=[1])], False),
        ([node("Sqrt", "a", "q"), node("Div", "a q", "y")], False),
        ([node("Relu", "a", "y")], False),
        ([node("Tanh", "a", "t"), node("Log", "t", "y")], False),
    ],
)  # fmt: skip
def test_signal_front_ends_stay_in_float(
    tmp_path: Path,
    tail: list[onnx.NodeProto],
    front_end: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    model = load(tmp_path, [conv("first", "x", "a"), *tail], K | {"two": np.float32(2)})
    found = placed(model)
    assert found.modes["first"] == ("float" if front_end else "static")
    assert ("signal front end" in found.reasons.get("first", "")) == front_end
    # Nobody watches what stays in float anyway; the reason is still this one.
    later = placed(model, magnitudes={"x": 1.0})
    assert ("signal front end" in later.reasons["first"]) == front_end


def test_openvino_gets_pairs_on_anchors_inputs_alone(tmp_path: Path) -> None:
    middle = [node("Relu", "a", "r"), conv("body", "r", "b"), node("Add", "b r", "s")]
    found = placed(chain(tmp_path, middle), fused_for="openvino")
    assert pairs(found) == {"x", "r", "s"}
    assert found.glue == frozenset()
    assert found.rectified == {}


def test_float_and_dynamic_anchors_ask_for_no_pairs(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "a w", "y")]
    model = load(tmp_path, nodes, {"w": weight(4, 4)}, x=ROWS)
    found = placed(model, modes={"a_MatMul": "static", "y_MatMul": "dynamic"})
    assert pairs(found) == {"x"}
    assert placed(model, modes={}).modes == {"a_MatMul": "float", "y_MatMul": "float"}
    assert pairs(placed(model, modes={})) == set()
    assert pairs(placed(model)) == {"x", "a"}


def test_the_watch_list_holds_whatever_a_placement_could_ask_for(tmp_path: Path) -> None:
    middle = [node("Relu", "a", "r"), conv("body", "r", "b"), node("Add", "b r", "s")]
    model = chain(tmp_path, middle)
    anchors, _ = find_anchors(model)
    watched = watch_list(model, anchors)
    assert watched == ("b", "r", "s", "x", "y")
    for kept in anchors:
        for runtime in ("onnxruntime", "openvino"):
            for modes in (
                {kept.name: "static"},
                {a.name: "static" for a in anchors if a is not kept},
            ):
                some = placed(
                    model, modes=modes, fused_for=runtime, magnitudes=dict.fromkeys(watched, 1.0)
                )
                assert set(some.tensors.values()) <= set(watched)


def test_nobody_watches_what_an_lstm_reads(tmp_path: Path) -> None:
    # Its scale is found at run time.
    nodes = [node("Relu", "x", "r"), node("LSTM", "r W R", "y", hidden_size=2)]
    model = load(tmp_path, nodes, LSTM, x=STEPS)
    (found,), _ = find_anchors(model)
    assert found.data == "r"
    assert watch_list(model, (found,)) == ()


def test_what_moves_bytes_into_a_relu_has_the_scale_of_the_relu(tmp_path: Path) -> None:
    middle = [node("MaxPool", "a", "p", kernel_shape=[1, 1]), node("Relu", "p", "s")]
    found = placed(chain(tmp_path, middle))
    assert found.glue == {"p_MaxPool"}
    assert found.rectified == {"p_MaxPool": "s"}
    # Between the two, which are one kernel, there is no pair.
    assert found.tensors == {"x": "x", "a": "a", "s": "s", "y": "y"}


def test_tensors_of_integers_are_no_glue(tmp_path: Path) -> None:
    nodes = [
        node("Shape", "x", "size"),
        node("Reshape", "x size", "r"),
        conv("only", "r", "y"),
    ]
    model = load(tmp_path, nodes, K)
    assert pairs(placed(model)) == {"r", "y"}


def test_a_sum_is_looked_up_by_the_relu_that_ends_it(tmp_path: Path) -> None:
    # Only what may be quantized is watched, and that is the Relu's output, never the sum's.
    middle = [
        node("Relu", "a", "r"),
        conv("body", "r", "b"),
        node("Add", "b r", "sum"),
        node("Relu", "sum", "t"),
        node("MaxPool", "t", "s", kernel_shape=[1, 1]),
    ]
    model = chain(tmp_path, middle)
    watched = watch_list(model, find_anchors(model)[0])
    assert "sum" not in watched
    found = placed(model, dict.fromkeys(watched, 1.0))
    assert found.glue == placed(model).glue == {"sum_Add", "s_MaxPool"}


def pooled(folder: Path, op: str, **options: Any) -> ir.Model:
    """Two convolutions, one of them pooled and turned, joined by `op` and read by a third."""
    middle = [
        conv("other", "x", "b"),
        node("Add", "a b", "t"),
        node("MaxPool", "t", "p", kernel_shape=[1, 1]),
        node("Transpose", "p", "q", perm=[0, 1, 3, 2]),
        node(op, "q b", "j", **options),
        node("MaxPool", "j", "o", kernel_shape=[1, 1]),
        conv("last", "o", "s", "k8" if op == "Concat" else "k"),
    ]
    return chain(folder, middle, k8=weight(4, 8, 3, 3))


@pytest.mark.parametrize(("op", "options"), [("Add", {}), ("Concat", {"axis": 1})])
def test_what_was_only_moved_has_the_range_of_what_it_was(
    tmp_path: Path, op: str, options: dict[str, Any]
) -> None:
    model = pooled(tmp_path, op, **options)
    watched = watch_list(model, find_anchors(model)[0])
    assert not {"p", "q"} & set(watched)
    found = placed(model, dict.fromkeys(watched, 1.0))
    assert found == placed(model)
    assert found.glue == {"t_Add", "p_MaxPool", "q_Transpose", f"j_{op}", "o_MaxPool"}
    # Where that is not known, its own is not either.
    unknown = {name: 1.0 for name in watched if name != "t"}
    assert not {"p_MaxPool", "q_Transpose", f"j_{op}"} & placed(model, unknown).glue


@pytest.mark.parametrize(("other", "joined"), [(7.9, True), (8.1, False)])
def test_a_concat_of_unlike_ranges_is_seen_behind_what_only_moves(
    tmp_path: Path,
    other: float,
    joined: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    model = pooled(tmp_path, "Concat", axis=1)
    watched = watch_list(model, find_anchors(model)[0])
    found = placed(model, dict.fromkeys(watched, 1.0) | {"t": other})
    assert ("j_Concat" in found.glue) == joined


def test_a_bias_behind_a_product_stays_in_float(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "p"), node("Add", "p c", "a"), node("MatMul", "a w", "y")]
    constants = {"w": weight(4, 4), "c": weight(4)}
    found = placed(load(tmp_path, nodes, constants, x=("x", FLOAT, ["n", 1, 4])))
    assert found.glue == frozenset()
    assert pairs(found) == {"x", "a"}


@pytest.mark.parametrize(("largest", "in_integers"), [(2.0, True), (30.0, False)])
def test_factors_that_magnify_single_channels_stay_in_float(
    tmp_path: Path,
    largest: float,
    in_integers: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    factors = np.array([0.5, 1, 1, largest], np.float32).reshape(4, 1, 1)
    nodes = [conv("first", "x", "a"), node("Mul", "a f", "b")]
    model = load(tmp_path, [*nodes, conv("last", "b", "y")], K | {"f": factors})
    assert ("b_Mul" in placed(model).glue) == in_integers
