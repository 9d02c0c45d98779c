"""What `vnnify inspect` reads from a file, whoever made it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from bench.errors import InputError
from bench.kernels import find_kernels
from bench.models import Feeds, read_model
from bench.store import dump, load
from quantize import inspection, quantizers
from quantize.findings import Finding
from quantize.inspection import Inspection, Layer, Means, inspect_model
from quantize.inspection.causes import told_beside
from quantize.inspection.flags import find_flags, lost_channels
from quantize.inspection.products import Product, lifted, products
from quantize.inspection.saturation import risk_of, worst_errors
from quantize.targets import can_saturate, exact_matmul, saturating_matmul
from tests import tiny
from tests.graphs import GRAPHS, feeds_for
from tests.int8 import make

FLOAT, U8, S8 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8
ONE = np.float32(1)
LARGE = np.full((8, 4), 127, np.int8)
node = helper.make_node


def read(path: Path) -> tuple[Product, ...]:
    return products(lifted(ir.load(path)))


def look(path: Path, *, samples: Any = (), timing: Feeds | None = None) -> Inspection:
    means = Means(("onnxruntime",), 1, path.parent, samples, timing)
    return inspect_model(read_model(path), means, command="vnnify inspect m.onnx")


def save(path: Path, nodes: list[onnx.NodeProto], constants: dict[str, Any], **rest: Any) -> Path:
    """From x, float or as told, to y; contrib operators allowed."""
    x = rest.get("x", ("x", FLOAT, ["n", 8]))
    y = rest.get("y", ("y", FLOAT, None))
    tiny.save(path, nodes, [x], [y], constants)
    model = onnx.load(str(path))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, str(path))
    return path


def pair(x: str, y: str, scale: str = "one", zero: str = "z") -> list[onnx.NodeProto]:
    return [
        node("QuantizeLinear", [x, scale, zero], [f"{y}_q"], f"{y}_q"),
        node("DequantizeLinear", [f"{y}_q", scale, zero], [y], f"{y}_d"),
    ]


def static(path: Path, weights: Any = LARGE, **constants: Any) -> Path:
    """`y = x @ w` between pairs."""
    nodes = [
        *pair("x", "xd"),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wd"]),
        node("MatMul", ["xd", "wd"], ["m"], "product"),
        *pair("m", "y", "ys"),
    ]
    held = {
        "one": ONE,
        "z": np.uint8(0),
        "w": weights,
        "ws": ONE,
        "wz": np.int8(0),
        "ys": np.float32(40),
    }
    return save(path, nodes, held | constants)


# Products


def test_pairs_make_a_static_product(tmp_path: Path) -> None:
    (found,) = read(static(tmp_path / "m.onnx"))
    assert (found.name, found.op, found.mode) == ("product", "MatMul", "static")
    assert found.activation is not None
    assert (found.activation.dtype, found.activation.scale, found.activation.tensor) == (
        "u8",
        1.0,
        "xd_q",
    )
    assert found.weights is not None
    assert found.weights.codes.shape == (4, 8)
    assert found.weights.symmetric
    assert not found.weights.per_channel
    assert (found.channels, found.weight_count) == (4, 32)
    assert found.out_range == pytest.approx(255 * 40)


def test_weights_alone_in_integers_are_weight_only(tmp_path: Path) -> None:
    nodes = [
        node("DequantizeLinear", ["w", "one", "z"], ["wd"]),
        node("Transpose", ["wd"], ["wt"]),
        node("MatMul", ["x", "wt"], ["y"], "product"),
    ]
    held = {"w": LARGE.T.copy(), "one": ONE, "z": np.int8(0)}
    (found,) = read(save(tmp_path / "m.onnx", nodes, held))
    assert found.mode == "weight-only"
    assert found.weights is not None
    assert found.weights.codes.shape == (4, 8)
    assert risk_of(found) is None


def test_float_weights_that_the_graph_rounds_are_integers(tmp_path: Path) -> None:
    """As NNCF writes them."""
    nodes = [
        *pair("x", "xd"),
        node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], axis=1),
        node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=1),
        node("MatMul", ["xd", "wd"], ["y"], "product"),
    ]
    values = np.tile(np.float32([1, -2, 300]), (8, 1))
    held = {
        "w": values,
        "ws": np.float32([0.5, 0.5, 1]),
        "wz": np.zeros(3, np.int8),
        "one": ONE,
        "z": np.int8(0),
    }
    (found,) = read(save(tmp_path / "m.onnx", nodes, held))
    assert found.mode == "static"
    assert found.activation is not None
    assert found.activation.dtype == "s8"
    assert found.weights is not None
    assert found.weights.per_channel
    np.testing.assert_array_equal(found.weights.codes[:, 0], [2, -4, 127])


def test_codes_pass_through_what_only_moves_them(tmp_path: Path) -> None:
    nodes = [
        *pair("x", "xd"),
        node("Reshape", ["xd", "shape"], ["r"]),
        node("DequantizeLinear", ["w", "one", "wz"], ["wd"]),
        node("MatMul", ["r", "wd"], ["y"], "product"),
    ]
    held = {"one": ONE, "z": np.uint8(3), "wz": np.int8(0), "w": LARGE}
    held["shape"] = np.array([-1, 8])
    (found,) = read(save(tmp_path / "m.onnx", nodes, held))
    assert found.mode == "static"
    assert found.activation is not None
    assert found.activation.zero == 3


INTEGER_FORMS = {
    "QLinearMatMul": (
        ["QuantizeLinear x one z xq", "QLinearMatMul xq one z w ws wz one z yq",
         "DequantizeLinear yq one z y"],
        "static",
    ),
    "QGemm": (
        ["QuantizeLinear x one z xq", "QGemm xq one z w ws wz  one z yq",
         "DequantizeLinear yq one z y"],
        "static",
    ),
    "MatMulInteger": (
        ["DynamicQuantizeLinear x xq,s,xz", "MatMulInteger xq w xz wz i", "Cast i c",
         "Mul s ws f", "Mul c f y"],
        "dynamic",
    ),
    "DynamicQuantizeMatMul": (["DynamicQuantizeMatMul x w ws wz y"], "dynamic"),
    "MatMulIntegerToFloat": (
        ["DynamicQuantizeLinear x xq,s,xz", "MatMulIntegerToFloat xq w s ws xz wz y"],
        "dynamic",
    ),
}  # fmt: skip


def written(line: str) -> onnx.NodeProto:
    op, *names = line.split(" ")
    contrib = op in ("QGemm", "DynamicQuantizeMatMul", "MatMulIntegerToFloat")
    rest = {"to": FLOAT} if op == "Cast" else {}
    domain = "com.microsoft" if contrib else ""
    return node(op, names[:-1], names[-1].split(","), f"n_{op}", domain=domain, **rest)


@pytest.mark.parametrize("op", INTEGER_FORMS)
def test_integer_operators_are_products(op: str, tmp_path: Path) -> None:
    lines, mode = INTEGER_FORMS[op]
    held = {"one": ONE, "z": np.uint8(0), "wz": np.int8(0), "w": LARGE, "ws": np.full(1, ONE)}
    (found,) = read(save(tmp_path / "m.onnx", [written(s) for s in lines], held))
    assert (found.op, found.mode) == (op, mode)
    assert found.activation is not None
    assert found.activation.dtype == "u8"
    assert found.weights is not None
    assert found.weights.codes.shape == (4, 8)
    np.testing.assert_array_equal(found.weights.scales, [1])
    risk = risk_of(found)
    assert risk is not None
    assert risk.channels == 4


def test_every_layer_that_vnnify_makes_is_read_back(tmp_path: Path) -> None:
    for name in ("depthwise residual", "recurrent"):
        made = make(GRAPHS[name](tmp_path / "m.onnx"), feeds_for(name))
        found = read(made.path)
        assert [p.mode for p in found] == made.modes
        assert all(p.weights is not None and p.weights.symmetric for p in found)
    made = make(GRAPHS["depthwise residual"](tmp_path / "m.onnx"), feeds_for("depthwise residual"))
    assert sum(p.depthwise for p in read(made.path)) == 2


# Saturation


@given(
    hnp.arrays(np.int8, st.tuples(st.integers(1, 3), st.integers(1, 9))),
    st.integers(0, 2**32 - 1),
)
def test_no_input_is_worse_than_the_worst_error(codes: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.choice(np.array([0, 255], np.uint8), (16, codes.shape[1]))
    wrong = np.abs(exact_matmul(rows, codes.T) - saturating_matmul(rows, codes.T)).max(axis=0)
    bound = worst_errors(codes)
    assert (wrong <= bound).all()
    assert ((bound > 0) == can_saturate(codes)).all()


def test_the_worst_error_is_reached() -> None:
    codes = np.array([[127, 127, -128, -128]], np.int8)
    rows = np.array([[255, 255, 0, 0], [0, 0, 255, 255]], np.uint8)
    wrong = np.abs(exact_matmul(rows, codes.T) - saturating_matmul(rows, codes.T))
    assert worst_errors(codes)[0] == wrong.max() == 255 * 256 - 32768


def test_the_risk_names_channels_codes_and_share(tmp_path: Path) -> None:
    weights = LARGE.copy()
    weights[:, 1:] = 10
    (found,) = read(static(tmp_path / "m.onnx", weights))
    risk = risk_of(found)
    assert risk is not None
    assert (risk.channels, risk.of, risk.pair_sum) == (1, 4, 254)
    assert risk.worst_codes == 4 * (255 * 254 - 32767)
    assert risk.worst_share == pytest.approx(risk.worst_codes / (255 * 40))
    assert risk.reason == ""


def test_both_products_of_an_lstm_are_looked_at(tmp_path: Path) -> None:
    small, large = np.full((2, 3, 16), 60, np.int8), np.full((2, 4, 16), 60, np.int8)
    # One gate of one direction, and in what it reads of its own output alone.
    large[1, 2:, 5] = 127
    unit, zero = np.full((2, 16), 0.01, np.float32), np.zeros((2, 16), np.int8)
    constants = {"w": small, "r": large, "ws": unit, "wz": zero, "rs": unit, "rz": zero}
    inputs = ["x", "w", "r", "", "", "", "", "", "ws", "wz", "rs", "rz"]
    lstm = node("DynamicQuantizeLSTM", inputs, ["y"], "lstm", domain="com.microsoft", hidden_size=4)
    x = ("x", FLOAT, ["t", "n", 3])
    (product,) = read(save(tmp_path / "m.onnx", [lstm], constants, x=x))
    risk = risk_of(product)
    assert risk is not None
    assert (risk.channels, risk.of, risk.pair_sum) == (1, 64, 254)
    assert product.weight_count == small.size + large.size


def test_small_weights_cannot_saturate(tmp_path: Path) -> None:
    (found,) = read(static(tmp_path / "m.onnx", LARGE // 2))
    risk = risk_of(found)
    assert risk is not None
    assert risk.channels == 0
    assert "large enough" in risk.reason


def test_kernels_that_do_not_add_pairs_cannot_saturate(tmp_path: Path) -> None:
    unsigned = static(tmp_path / "u.onnx", LARGE.astype(np.uint8), wz=np.uint8(0))
    (found,) = read(unsigned)
    risk = risk_of(found)
    assert risk is not None
    assert (risk.channels, risk.reason[:10]) == (0, "u8 weights")
    made = make(GRAPHS["depthwise residual"](tmp_path / "m.onnx"), feeds_for("depthwise residual"))
    deep = [risk_of(p) for p in read(made.path) if p.depthwise]
    assert all(r is not None and r.reason.startswith("depthwise") for r in deep)


def test_samples_show_what_saturates(tmp_path: Path) -> None:
    path = static(tmp_path / "m.onnx")
    full = [{"x": np.full((2, 8), 255, np.float32)}, {"x": np.zeros((2, 8), np.float32)}]
    (layer,) = look(path, samples=full).layers
    assert layer.observed is not None
    # Two rows of the first sample, four channels each; a share of what the sums span.
    assert (layer.observed.looked_at, layer.observed.wrong) == (16, 8)
    assert layer.observed.worst_codes == 4 * (255 * 254 - 32767)
    assert layer.observed.worst_share == pytest.approx(layer.observed.worst_codes / (8 * 255 * 127))
    (layer,) = look(path, samples=full[1:]).layers
    assert layer.observed is not None
    assert layer.observed.wrong == 0


@pytest.mark.parametrize("group", [1, 2])
def test_convolutions_are_observed_place_by_place(group: int, tmp_path: Path) -> None:
    weights = np.full((4, 4 // group, 3, 3), 127, np.int8)
    weights[2:] = 1
    nodes = [
        *pair("x", "xd"),
        node("DequantizeLinear", ["w", "one", "wz"], ["wd"]),
        node("Conv", ["xd", "wd"], ["y"], "conv", pads=[1] * 4, strides=[2, 2], group=group),
    ]
    held = {"one": ONE, "z": np.uint8(0), "wz": np.int8(0), "w": weights}
    path = save(tmp_path / "m.onnx", nodes, held, x=("x", FLOAT, ["n", 4, 6, 6]))
    x = np.full((1, 4, 6, 6), 255, np.float32)
    (layer,) = look(path, samples=[{"x": x}]).layers
    assert layer.risk is not None
    assert layer.risk.channels == 2
    assert layer.observed is not None
    assert layer.observed.wrong == layer.observed.looked_at > 0


def test_operators_that_quantize_themselves_are_observed(tmp_path: Path) -> None:
    held = {"w": LARGE, "ws": np.full(1, ONE), "wz": np.int8(0)}
    line = written("DynamicQuantizeMatMul x w ws wz y")
    path = save(tmp_path / "m.onnx", [line], held)
    (layer,) = look(path, samples=[{"x": np.full((1, 8), 3, np.float32)}]).layers
    assert layer.observed is not None
    assert layer.observed.wrong == 4


# Causes, kernels, flags


def test_a_float_file_says_what_could_be_done(tmp_path: Path) -> None:
    found = look(GRAPHS["transformer"](tmp_path / "m.onnx"))
    causes = [x.cause for x in found.layers]
    assert causes.count("can run in INT8 (static or dynamic)") == 6
    assert causes.count("both factors are activations") == 2
    assert not found.quantized
    assert found.risky == ()


def test_causes_are_taken_from_the_report_beside_the_file(tmp_path: Path) -> None:
    told: dict[str, Any] = {
        "int8": {"sha256": "abc"},
        "left": {"gru": "recurrent"},
        "layers": [
            {"name": "a", "mode": "float", "reason": None},
            {"name": "b", "mode": "float", "reason": "a signal front end"},
            {"name": "c", "mode": "static", "reason": None},
        ],
    }
    told["findings"] = [{"layer": "c", "cause": "dead range: …", "done": "nothing"}]
    (tmp_path / "report.json").write_text(json.dumps(told))
    floats, hard = told_beside(tmp_path / "m.onnx", "abc")
    assert floats == {
        "gru": "recurrent",
        "a": "the recipe leaves it in float",
        "b": "a signal front end",
    }
    assert hard == (Finding("c", "dead range: …", "nothing"),)
    assert told_beside(tmp_path / "refused" / "m.onnx", "abc") == (floats, hard)
    assert told_beside(tmp_path / "m.onnx", "other") == ({}, ())
    # Reports of older versions have no findings.
    del told["findings"]
    (tmp_path / "report.json").write_text(json.dumps(told))
    assert told_beside(tmp_path / "m.onnx", "abc") == (floats, ())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"int8": 3}', '{"int8": {"sha256": "abc"}}'])
def test_a_stranger_s_report_is_left_alone(text: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    assert told_beside(tmp_path / "m.onnx", "abc") == ({}, ())


def test_a_layer_knows_the_kernel_that_runs_it(tmp_path: Path) -> None:
    path = static(tmp_path / "m.onnx")
    sample = {"x": np.ones((1, 8), np.float32)}
    found = look(path, timing=sample)
    (layer,) = found.layers
    kernel = layer.kernels["onnxruntime"]
    assert kernel.integer
    assert kernel.ms is not None
    assert found.in_float("onnxruntime") == ()
    assert load(Inspection, dump(found), "it") == found


def test_a_layer_that_is_stored_in_int8_but_runs_in_float_is_named(tmp_path: Path) -> None:
    # Several readers of one s8 pair keep ONNX Runtime from making it u8.
    nodes = [
        *pair("x", "xd"),
        node("DequantizeLinear", ["w", "one", "wz"], ["wd"]),
        node("Conv", ["xd", "wd"], ["a"], "conv"),
        *pair("a", "ad"),
        node("Sin", ["ad"], ["s"]),
        node("Cos", ["ad"], ["c"]),
        node("Add", ["s", "c"], ["y"]),
    ]
    held = {"one": ONE, "z": np.int8(0), "wz": np.int8(0), "w": np.ones((4, 4, 3, 3), np.int8)}
    path = save(tmp_path / "m.onnx", nodes, held, x=("x", FLOAT, ["n", 4, 6, 6]))
    found = look(path)
    assert [x.name for x in found.in_float("onnxruntime")] == ["conv"]
    assert "s8 activations between Q/DQ pairs" in [f.title for f in found.flags]


def flags_of(path: Path) -> dict[str, tuple[str, ...]]:
    model = lifted(ir.load(path))
    return {f.title: f.where for f in find_flags(model, products(model))}


def test_a_sound_file_has_no_flag(tmp_path: Path) -> None:
    for name, graph in GRAPHS.items():
        made = make(graph(tmp_path / "m.onnx"), feeds_for(name))
        assert flags_of(made.path) == {}, name


@pytest.mark.parametrize("scale", [0.0, -1.0, np.inf, np.nan, 1e30])
def test_absurd_scales_are_flagged(scale: float, tmp_path: Path) -> None:
    found = flags_of(static(tmp_path / "m.onnx", ys=np.float32(scale)))
    assert found["Absurd scale"] == ("m", "y")


def test_what_openvino_computes_wrong_is_flagged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = np.random.default_rng(0).standard_normal((8, 16, 8)).astype(np.float32)
    nodes = [node("Conv", ["x", "k"], ["y"])]
    port: tiny.Port = ("x", FLOAT, [1, 16, 20])
    source = tiny.save(tmp_path / "m.onnx", nodes, [port], [("y", FLOAT, None)], {"k": kernel})
    samples: list[Feeds] = [{"x": np.linspace(-1, 1, 320, dtype=np.float32).reshape(1, 16, 20)}]
    assert flags_of(make(source, samples).path) == {}
    monkeypatch.setattr(quantizers, "sidestep", lambda _: None)
    made = make(source, samples)
    assert flags_of(made.path) == {"Garbage in OpenVINO": (made.anchors[0].name,)}


def test_dead_ranges_are_flagged(tmp_path: Path) -> None:
    assert flags_of(static(tmp_path / "m.onnx", ys=np.float32(1e-30)))["Dead range"] == ("m",)


def test_masks_in_the_range_are_flagged(tmp_path: Path) -> None:
    nodes = [*pair("x", "xd", zero="z"), node("Softmax", ["xd"], ["y"])]
    held = {"one": np.float32(100), "z": np.uint8(250)}
    assert flags_of(save(tmp_path / "m.onnx", nodes, held))["Mask in 8 bits"] == ("x",)
    held["one"] = ONE
    assert flags_of(save(tmp_path / "m.onnx", nodes, held)) == {}


def test_biases_that_do_not_fit_are_flagged(tmp_path: Path) -> None:
    nodes = [node("DequantizeLinear", ["b", "one"], ["bd"]), node("Add", ["x", "bd"], ["y"])]
    held = {"one": ONE, "b": np.array([3, -(2**31)] * 4, np.int32)}
    path = save(tmp_path / "m.onnx", nodes, held)
    assert flags_of(path)["Bias at the end of 32 bits"] == ("bd",)


def test_channels_that_one_scale_starves_are_flagged(tmp_path: Path) -> None:
    weights = LARGE.copy()
    weights[:, 0] = 3
    found = flags_of(static(tmp_path / "m.onnx", weights))
    assert found == {"Channels with under 5 bits": ("product",)}
    scales = {"ws": np.ones(4, np.float32), "wz": np.zeros(4, np.int8)}
    assert flags_of(static(tmp_path / "m.onnx", weights, **scales)) == {}
    assert lost_channels(weights.T, np.zeros(1, np.int64)).tolist() == [True, False, False, False]


def test_depthwise_weights_with_one_scale_are_flagged(tmp_path: Path) -> None:
    nodes = [
        *pair("x", "xd"),
        node("DequantizeLinear", ["w", "one", "wz"], ["wd"]),
        node("Conv", ["xd", "wd"], ["y"], "conv", group=4),
    ]
    held = {"one": ONE, "z": np.uint8(0), "wz": np.int8(0), "w": np.ones((4, 1, 3, 3), np.int8)}
    path = save(tmp_path / "m.onnx", nodes, held, x=("x", FLOAT, ["n", 4, 6, 6]))
    assert flags_of(path) == {"Depthwise weights with one scale": ("conv",)}


def test_concats_of_unequal_ranges_are_flagged(tmp_path: Path) -> None:
    nodes = [
        *pair("x", "a"),
        *pair("x", "b", "tiny"),
        node("Concat", ["a", "b"], ["c"], "join", axis=1),
        *pair("c", "y"),
    ]
    held = {"one": ONE, "z": np.uint8(0), "tiny": np.float32(0.01)}
    path = save(tmp_path / "m.onnx", nodes, held)
    assert flags_of(path) == {"Concat of unequal ranges": ("join",)}


def test_rounded_softmax_is_flagged(tmp_path: Path) -> None:
    nodes = [*pair("x", "a"), node("Softmax", ["a"], ["s"], "soft"), *pair("s", "y")]
    path = save(tmp_path / "m.onnx", nodes, {"one": ONE, "z": np.uint8(0)})
    assert flags_of(path) == {"Normalization or softmax in 8 bits": ("soft",)}


def test_signed_activations_of_integer_operators_are_flagged(tmp_path: Path) -> None:
    lines = INTEGER_FORMS["QLinearMatMul"][0]
    held = {"one": ONE, "z": np.int8(0), "wz": np.int8(0), "w": LARGE, "ws": np.full(1, ONE)}
    path = save(tmp_path / "m.onnx", [written(s) for s in lines], held)
    assert flags_of(path) == {"s8 activations in integer operators": ("n_QLinearMatMul",)}
    (found,) = read(path)
    risk = risk_of(found)
    assert risk is not None
    assert risk.reason.startswith("s8 activations: exact")


def test_shared_zero_points_of_weights_are_flagged(tmp_path: Path) -> None:
    nodes = [
        *pair("x", "xd"),
        node("DequantizeLinear", ["w", "one", "wz"], ["wd"]),
        node("DequantizeLinear", ["v", "one", "wz"], ["vd"]),
        node("MatMul", ["xd", "wd"], ["a"]),
        node("MatMul", ["xd", "vd"], ["b"]),
        node("Add", ["a", "b"], ["y"]),
    ]
    held = {"one": ONE, "z": np.uint8(0), "wz": np.int8(0), "w": LARGE, "v": LARGE}
    assert flags_of(save(tmp_path / "m.onnx", nodes, held)) == {"Shared zero points": ("wz",)}


def test_a_layer_is_a_plain_record(tmp_path: Path) -> None:
    (layer,) = look(static(tmp_path / "m.onnx")).layers
    assert isinstance(layer, Layer)
    assert (layer.activation, layer.weights, layer.per_channel) == ("u8", "s8", False)


@pytest.mark.parametrize("damage", ["no input", "another operator", "half a tensor"])
def test_a_damaged_graph_is_refused(damage: str, tmp_path: Path) -> None:
    path = static(tmp_path / "m.onnx")
    model = onnx.load(str(path))
    if damage == "no input":
        del model.graph.node[3].input[1]
    elif damage == "another operator":
        model.graph.node[3].op_type = "Conv"
        model.graph.node[3].input[1] = "one"
    else:
        (weights,) = (t for t in model.graph.initializer if t.name == "w")
        weights.raw_data = weights.raw_data[:5]
    onnx.save(model, str(path))
    with pytest.raises(InputError, match="onnxruntime refuses the model"):
        look(path)


def test_a_bug_in_reading_a_sound_graph_stays_a_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(_: Any) -> Any:
        raise IndexError("ours")

    monkeypatch.setattr(inspection, "products", wrong)
    with pytest.raises(IndexError, match="ours"):
        look(static(tmp_path / "m.onnx"))


def test_kernels_that_were_read_before_are_not_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.linear(tmp_path / "m.onnx")
    known = find_kernels(path, "openvino", threads=1, scratch=tmp_path)
    asked: list[str] = []
    monkeypatch.setattr(
        inspection, "find_kernels", lambda _, name, **__: asked.append(name) or known
    )
    means = Means(("onnxruntime", "openvino"), 1, tmp_path, known={"openvino": known})
    found = inspect_model(read_model(path), means, command="")
    assert asked == ["onnxruntime"]
    assert found.kernels == (known, known)


def test_a_runtime_that_refuses_is_told_without_the_place_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.linear(tmp_path / "m.onnx")

    def refuse(*_: Any, **__: Any) -> Any:
        raise InputError(f"{path}: openvino refuses the model: no such operator")

    monkeypatch.setattr(inspection, "find_kernels", refuse)
    found = inspect_model(read_model(path), Means(("openvino",), 1, tmp_path), command="")
    assert found.unread == {"openvino": "openvino refuses the model: no such operator"}
