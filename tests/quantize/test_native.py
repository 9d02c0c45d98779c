"""INT8 files against integer arithmetic, layer by layer and graph by graph."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bench.models import Feeds
from quantize.targets import can_saturate
from tests import tiny
from tests.int8 import Made, convolve, fused, make, run, to_codes

FLOAT = TensorProto.FLOAT
Array = np.ndarray[Any, Any]


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def feeds(*shape: int, count: int = 4, seed: int = 100) -> list[Feeds]:
    return [{"x": normal(seed + i, *shape)} for i in range(count)]


def agree(found: Array, expected: Array, scale: float, *, ties: float = 0.02) -> None:
    """At most one code apart, and that only where rounding was a tie but for float32's error."""
    apart = np.abs(found.astype(np.float64) - expected) / scale
    assert apart.max() < 1.001
    assert (apart > 0.5).mean() <= ties


def signal_to_noise_db(made: Made, samples: list[Feeds]) -> float:
    signal = noise = 0.0
    for sample in samples:
        ours, theirs = run(made.path, sample), run(made.fp32, sample)
        for name, exact in theirs.items():
            signal += float(np.square(exact, dtype=np.float64).sum())
            noise += float(np.square(exact.astype(np.float64) - ours[name]).sum())
    return 10 * np.log10(signal / max(noise, 1e-30))


# Convolutions


CONVS = {
    "plain": ({"kernel": (6, 3, 3, 3)}, (2, 3, 9, 8)),
    "strided and padded": (
        {"kernel": (6, 3, 3, 3), "strides": [2, 1], "pads": [1, 0, 2, 1]},
        (1, 3, 9, 8),
    ),
    "grouped": ({"kernel": (6, 2, 3, 3), "group": 3, "pads": [1, 1, 1, 1]}, (1, 6, 7, 7)),
    "depthwise": ({"kernel": (8, 1, 3, 3), "group": 8, "pads": [1, 1, 1, 1]}, (1, 8, 7, 7)),
    "1-D": ({"kernel": (5, 4, 3), "pads": [1, 1]}, (1, 4, 11)),
    "pointwise without bias": ({"kernel": (16, 8, 1, 1), "bias": False}, (1, 8, 4, 4)),
    "Relu": ({"kernel": (6, 3, 3, 3), "after": "Relu"}, (1, 3, 8, 8)),
    "Relu6": ({"kernel": (6, 3, 3, 3), "after": "Clip"}, (1, 3, 8, 8)),
}


def conv(path: Path, kernel: tuple[int, ...], **options: Any) -> Path:
    """`y = after(conv(x))`; Clip's limits are 0 and 2, which its inputs exceed."""
    after, bias = options.pop("after", None), options.pop("bias", True)
    constants: dict[str, Any] = {"k": normal(1, *kernel) / 3}
    inputs = ["x", "k"]
    if bias:
        constants["b"] = normal(2, kernel[0])
        inputs.append("b")
    nodes = [helper.make_node("Conv", inputs, ["c" if after else "y"], "conv", **options)]
    if after == "Clip":
        constants |= {"zero": np.float32(0), "six": np.float32(2)}
        nodes.append(helper.make_node("Clip", ["c", "zero", "six"], ["y"], "clip"))
    elif after:
        nodes.append(helper.make_node(after, ["c"], ["y"], "after"))
    channels = kernel[1] * options.get("group", 1)
    size = [*("hw" if len(kernel) == 4 else "w")]
    x = ("x", FLOAT, ["n", channels, *size])
    return tiny.save(path, nodes, [x], [("y", FLOAT, ["n", kernel[0], *size])], constants)


@pytest.mark.parametrize("case", CONVS)
def test_a_convolution_is_integer_arithmetic(tmp_path: Path, case: str) -> None:
    options, shape = CONVS[case]
    samples = feeds(*shape)
    made = make(conv(tmp_path / "m.onnx", **options), samples)
    file = made.file
    assert made.modes == ["static"]
    (node,) = file.nodes("Conv")
    weights = file.held(node.input[1])
    in_scale, in_zero = file.grid("x")
    out_scale, out_zero = file.grid("y")
    assert weights.codes.dtype == np.int8
    assert not weights.zero.any()
    units, bias = in_scale * weights.scale, np.zeros(len(weights.scale), np.int64)
    assert len(node.input) > 2 or not options.get("bias", True)
    if len(node.input) > 2:
        held = file.held(node.input[2])
        assert held.codes.dtype == np.int32
        np.testing.assert_array_equal(held.scale, units)
        bias = held.codes.astype(np.int64)

    rank = len(shape) - 2
    for sample in samples:
        data = to_codes(sample["x"], in_scale, in_zero).centred
        sums = convolve(
            data,
            weights.codes.astype(np.int64),
            strides=options.get("strides", [1] * rank),
            pads=options.get("pads", [0] * 2 * rank),
            groups=options.get("group", 1),
        )
        along = (1, -1, *[1] * rank)
        sums += bias.reshape(along)
        real = sums * units.astype(np.float64).reshape(along)
        codes = np.clip(np.rint(real / out_scale) + out_zero, 0, 255)
        if options.get("after"):
            assert out_zero == 0
        agree(run(made.path, sample)["y"], (codes - out_zero) * float(out_scale), out_scale)
    # The file is a good copy of the FP32 model, not only true to itself.
    assert signal_to_noise_db(made, samples) > 30


def test_the_scale_of_a_clip_ends_at_its_limit(tmp_path: Path) -> None:
    options, shape = CONVS["Relu6"]
    file = make(conv(tmp_path / "m.onnx", **options), feeds(*shape)).file
    scale, zero = file.grid("y")
    assert (float(scale) * 255, zero) == (pytest.approx(2.0), 0)


@pytest.mark.parametrize("group", [1, 2])
def test_weights_and_biases_stand_for_the_fp32_ones(tmp_path: Path, group: int) -> None:
    samples = feeds(2, 4, 6, 6)
    source = conv(tmp_path / "m.onnx", (6, 4 // group, 3, 3), group=group)
    plain = make(source, samples, correct_bias=False).file
    (node,) = plain.nodes("Conv")
    weights, bias = plain.held(node.input[1]), plain.held(node.input[2])
    scales = weights.scale.reshape(-1, 1, 1, 1)
    exact, held = normal(1, 6, 4 // group, 3, 3) / 3, weights.codes * scales
    inside = np.abs(exact) <= 127 * scales
    assert (np.abs(held - exact) <= 0.501 * scales)[inside].all()
    assert np.abs(held - exact).max() < 0.2 * np.abs(exact).max()
    np.testing.assert_allclose(bias.codes * bias.scale, normal(2, 6), atol=bias.scale.max())


@pytest.mark.parametrize("bias", [True, False])
def test_bias_correction_takes_the_mean_error_away(tmp_path: Path, *, bias: bool) -> None:
    # Inputs far from zero, so that what rounding takes from the weights shows in the mean; padding,
    # so that the mean at the borders is another one.
    samples = [{"x": np.abs(normal(i, 2, 8, 6, 6)) + 2} for i in range(8)]
    source = conv(tmp_path / "m.onnx", (6, 8, 3, 3), pads=[1, 1, 1, 1], bias=bias)

    def mean_error(*, correct: bool) -> float:
        made = make(source, samples, target="portable", correct_bias=correct)
        errors = [run(made.fp32, s)["y"] - run(made.path, s)["y"] for s in samples]
        return float(np.abs(np.mean(errors, axis=(0, 1, 3, 4))).max())

    assert mean_error(correct=True) < 0.5 * mean_error(correct=False)


def test_portable_weights_never_saturate_and_are_counted(tmp_path: Path) -> None:
    samples = feeds(1, 3, 8, 8)
    source = conv(tmp_path / "m.onnx", (32, 3, 3, 3))
    for target, narrowed in (("vnni", 0), ("portable", 32)):
        made = make(source, samples, target=target)
        codes = made.file.held(made.file.nodes("Conv")[0].input[1]).codes
        assert can_saturate(codes).sum() == (0 if narrowed else can_saturate(codes).sum())
        (layer,) = made.quantized.layers
        assert layer.channels == 32
        assert (layer.narrowed > 16) == bool(narrowed)
    assert signal_to_noise_db(made, samples) > 25


@pytest.mark.parametrize(
    ("shape", "group", "narrowed"),
    [((16, 1, 3, 3), 16, False), ((16, 1, 3, 3), 8, True), ((16, 1, 3, 3), 1, True)],
)
def test_portable_depthwise_weights_keep_8_bits(
    tmp_path: Path, shape: tuple[int, ...], group: int, *, narrowed: bool
) -> None:
    made = make(
        conv(tmp_path / "m.onnx", shape, group=group), feeds(1, group, 8, 8), target="portable"
    )
    codes = made.file.held(made.file.nodes("Conv")[0].input[1]).codes
    assert can_saturate(codes).any() != narrowed
    assert bool(made.quantized.layers[0].narrowed) == narrowed


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_portable_products_never_saturate(tmp_path: Path, mode: Any) -> None:
    def worst(target: str) -> bool:
        made = make(gemm(tmp_path / "m.onnx"), feeds(7, 16), mode=mode, target=target)
        (codes,) = (v for v in made.file.constants.values() if v.dtype == np.int8 and v.ndim == 2)
        return bool(can_saturate(codes.T).any())

    assert worst("vnni")
    assert not worst("portable")


# Gemm and MatMul


GEMMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "transB": {"turned": 1},
    "factors": {"alpha": 0.5, "beta": 3.0},
    "factors and transB": {"alpha": -2.0, "beta": 0.25, "turned": 1},
    "no bias": {"bias": None},
    "no bias but factors": {"bias": None, "alpha": 4.0},
    "bias of one row": {"bias": (1, 5)},
    "one bias for all": {"bias": (1,)},
    "a scalar bias": {"bias": ()},
}


def gemm(path: Path, *, bias: tuple[int, ...] | None = (5,), turned: int = 0, **rest: Any) -> Path:
    shape = (5, 16) if turned else (16, 5)
    constants: dict[str, Any] = {"w": normal(3, *shape)}
    if bias is not None:
        constants["c"] = 3 * normal(4, *bias) if bias else np.float32(-2)
    inputs = ["x", "w", *(["c"] if bias is not None else [])]
    node = helper.make_node("Gemm", inputs, ["y"], "gemm", transB=turned, **rest)
    return tiny.save(path, [node], [("x", FLOAT, ["n", 16])], [("y", FLOAT, ["n", 5])], constants)


@pytest.mark.parametrize("case", GEMMS)
def test_a_gemm_is_integer_arithmetic(tmp_path: Path, case: str) -> None:
    samples = feeds(7, 16)
    made = make(gemm(tmp_path / "m.onnx", **GEMMS[case]), samples)
    file = made.file
    assert made.modes == ["static"]
    (node,) = file.nodes("Gemm")
    assert not {a.name for a in node.attribute} & {"alpha", "beta"}
    weights, (scale, zero) = file.held(node.input[1]), file.grid("x")
    matrix = weights.codes.T if GEMMS[case].get("turned") else weights.codes
    units = scale * weights.scale
    bias = file.held(node.input[2])
    np.testing.assert_array_equal(bias.scale, units)
    # Without a bias of the model's own, the zero point moves into one.
    moved = zero if GEMMS[case].get("bias", ()) is None else 0
    for sample in samples:
        codes = to_codes(sample["x"], scale, zero).centred + moved
        sums = codes @ matrix.astype(np.int64) + bias.codes
        # A float output is the integer sum times its unit, and nothing else.
        expected = sums * units.astype(np.float64)
        found = run(made.path, sample)["y"]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert signal_to_noise_db(made, samples) > 30


@pytest.mark.parametrize("case", GEMMS)
def test_a_dynamic_gemm_is_integer_arithmetic(tmp_path: Path, case: str) -> None:
    samples = feeds(7, 16)
    made = make(gemm(tmp_path / "m.onnx", **GEMMS[case]), samples, mode="dynamic")
    assert made.modes == ["dynamic"]
    file = made.file
    (node,) = file.nodes("MatMulInteger")
    scales = file.constants[next(n for n in file.constants if n.endswith("_weight_scale"))]
    added = file.nodes("Add")
    bias = file.constants[added[0].input[1]] if added else 0.0
    for sample in samples:
        codes, step = dynamic_codes(sample["x"])
        sums = codes @ file.constants[node.input[1]].astype(np.int64)
        expected = sums * (step * scales.astype(np.float64)) + bias
        np.testing.assert_allclose(run(made.path, sample)["y"], expected, rtol=1e-5, atol=1e-5)
    assert signal_to_noise_db(made, samples) > 30


def dynamic_codes(x: Array) -> tuple[Array, float]:
    """DynamicQuantizeLinear of the ONNX standard: codes without the zero point, and the step."""
    low, high = np.float32(min(x.min(), 0)), np.float32(max(x.max(), 0))
    step = np.float32((high - low) / np.float32(255))
    zero = np.clip(np.rint(-low / step), 0, 255)
    return (np.clip(np.rint(x / step) + zero, 0, 255) - zero).astype(np.int64), float(step)


def linear(path: Path, *, add: bool = True, first: str = "product") -> Path:
    """`y = x @ w + b` for x [n, t, 8], as exporters write a linear layer on 3-D activations."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p" if add else "y"], "matmul")]
    operands = ["p", "b"] if first == "product" else ["b", "p"]
    if add:
        nodes.append(helper.make_node("Add", operands, ["y"], "add"))
    x, y = ("x", FLOAT, ["n", "t", 8]), ("y", FLOAT, ["n", "t", 6])
    return tiny.save(path, nodes, [x], [y], {"w": normal(5, 8, 6), "b": normal(6, 6)})


@pytest.mark.parametrize("first", ["product", "bias"])
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_a_linear_layer_on_three_axes_is_integer_arithmetic(
    tmp_path: Path, mode: Any, first: str
) -> None:
    samples = [{"x": normal(i, 2, 3 + i, 8) + 1} for i in range(4)]
    made = make(linear(tmp_path / "m.onnx", first=first), samples, mode=mode)
    file = made.file
    assert made.modes == [mode]
    (add,) = file.nodes("Add")
    (bias,) = (file.constants[n] for n in add.input if n in file.constants)
    if mode == "static":
        weights = file.held(file.nodes("MatMul")[0].input[1])
        matrix, scales, (scale, zero) = weights.codes, weights.scale, file.grid("x")
    else:
        matrix = file.constants[file.nodes("MatMulInteger")[0].input[1]]
        scales = file.constants[next(n for n in file.constants if n.endswith("_weight_scale"))]
    for sample in samples:
        if mode == "static":
            codes, step = to_codes(sample["x"], scale, zero).centred, float(scale)
        else:
            codes, step = dynamic_codes(sample["x"])
        sums = codes @ matrix.astype(np.int64)
        expected = sums * (step * scales.astype(np.float64)) + bias
        np.testing.assert_allclose(run(made.path, sample)["y"], expected, rtol=1e-5, atol=1e-5)

    # Bias correction reaches the Add.
    assert np.abs(bias - normal(6, 6)).max() > 1e-4


@pytest.mark.parametrize("shape", [(6,), (1, 6), (1, 1, 6), (4, 6), (2, 4, 6)])
def test_a_shift_goes_into_whatever_is_added_per_channel(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], "matmul"),
        helper.make_node("Add", ["p", "b"], ["y"], "add"),
    ]
    x, y = ("x", FLOAT, ["n", 4, 8]), ("y", FLOAT, ["n", 4, 6])
    constants = {"w": normal(5, 8, 6), "b": normal(6, *shape)}
    source = tiny.save(tmp_path / "m.onnx", nodes, [x], [y], constants)
    samples = [{"x": normal(i, 2, 4, 8) + 3} for i in range(4)]
    biases = []
    for correct in (False, True):
        file = make(source, samples, mode="dynamic", correct_bias=correct).file
        biases += [file.constants[n] for n in file.nodes("Add")[0].input if n in file.constants]
    np.testing.assert_array_equal(biases[0], normal(6, *shape))
    moved = biases[1] - biases[0]
    assert moved.shape == shape
    assert np.abs(moved).max() > 1e-3
    np.testing.assert_allclose(moved, np.broadcast_to(moved.reshape(-1, 6)[0], shape), atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 1), (1,), ()])
def test_a_shift_leaves_alone_what_is_not_added_per_channel(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], "matmul"),
        helper.make_node("Add", ["p", "b"], ["y"], "add"),
    ]
    x, y = ("x", FLOAT, ["n", 4, 8]), ("y", FLOAT, ["n", 4, 6])
    constants = {"w": normal(5, 8, 6), "b": np.full(shape, 2, np.float32)}
    source = tiny.save(tmp_path / "m.onnx", nodes, [x], [y], constants)
    samples = [{"x": normal(i, 2, 4, 8) + 3} for i in range(4)]
    made = make(source, samples, mode="dynamic")
    (bias,) = (v for n, v in made.file.constants.items() if n == "b")
    np.testing.assert_array_equal(bias, np.full(shape, 2, np.float32))
    assert signal_to_noise_db(made, samples) > 30


def mlp(path: Path) -> Path:
    """Two linear layers on 3-D activations with a Relu between, then a third."""
    nodes = []
    for i, (x, y) in enumerate([("x", "h0"), ("r0", "h1"), ("r1", "y")]):
        nodes += [
            helper.make_node("MatMul", [x, f"w{i}"], [f"p{i}"], f"matmul{i}"),
            helper.make_node("Add", [f"p{i}", f"b{i}"], [y], f"add{i}"),
        ]
        if y != "y":
            nodes.append(helper.make_node("Relu", [y], [f"r{i}"], f"relu{i}"))
    constants = {f"w{i}": normal(70 + i, 8, 8) for i in range(3)}
    constants |= {f"b{i}": normal(80 + i, 8) - 1 for i in range(3)}
    x, y = ("x", FLOAT, ["n", "t", 8]), ("y", FLOAT, ["n", "t", 8])
    return tiny.save(path, nodes, [x], [y], constants)


def test_biases_of_products_stay_in_float(tmp_path: Path) -> None:
    # As fast as 8-bit sums, and 3 dB better.
    samples = feeds(2, 5, 8)
    made = make(mlp(tmp_path / "m.onnx"), samples, correct_bias=False)
    assert made.modes == ["static"] * 3
    file = made.file
    for i, add in enumerate(file.nodes("Add")):
        bias = file.constants[add.input[1]].reshape(-1)
        np.testing.assert_array_equal(bias, normal(80 + i, 8) - 1)
    ops = fused(made.path)
    assert ops.count("MatMulIntegerToFloat") == 3
    assert not {"MatMul", "Relu"} & set(ops)
    assert signal_to_noise_db(made, samples) > 35


def test_without_an_add_there_is_no_place_for_a_bias_shift(tmp_path: Path) -> None:
    made = make(linear(tmp_path / "m.onnx", add=False), [{"x": normal(1, 1, 4, 8)}])
    assert not made.file.nodes("Add")
    assert signal_to_noise_db(made, [{"x": normal(1, 1, 4, 8)}]) > 30


def test_a_shift_does_not_leak_through_a_shared_bias(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], "a"),
        helper.make_node("Add", ["p", "b"], ["y"], "a_add"),
        helper.make_node("Add", ["x", "b"], ["z"], "other"),
    ]
    path = tiny.save(
        tmp_path / "m.onnx",
        nodes,
        [("x", FLOAT, ["n", 1, 6])],
        [("y", FLOAT, None), ("z", FLOAT, None)],
        {"w": normal(5, 6, 6), "b": normal(6, 6)},
    )
    samples = [{"x": normal(1, 8, 1, 6) + 2}]
    made = make(path, samples, mode="dynamic")
    np.testing.assert_array_equal(run(made.path, samples[0])["z"], samples[0]["x"] + normal(6, 6))


def lstm(path: Path, *, directions: int = 2, nested: bool = False, dtype: int = FLOAT) -> Path:
    kind = np.float32 if dtype == FLOAT else np.float64
    constants: dict[str, Any] = {
        "W": (normal(7, directions, 16, 6) / 2).astype(kind),
        "R": (normal(8, directions, 16, 4) / 2).astype(kind),
        "B": (normal(9, directions, 32) / 4).astype(kind),
    }
    node = helper.make_node(
        "LSTM",
        ["x", "W", "R", "B"],
        ["y", "", "cell"],
        "lstm",
        hidden_size=4,
        direction="bidirectional" if directions == 2 else "forward",
    )
    outputs = [("y", dtype, ["t", directions, "n", 4]), ("cell", dtype, [directions, "n", 4])]
    return tiny.save(path, [node], [("x", dtype, ["t", "n", 6])], outputs, constants)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("directions", [1, 2])
def test_a_dynamic_lstm_is_integer_arithmetic(tmp_path: Path, directions: int) -> None:
    samples = feeds(5, 3, 6)
    made = make(lstm(tmp_path / "m.onnx", directions=directions), samples, target="portable")
    assert made.modes == ["dynamic"]
    # The checker knows no schema of this operator, so the file is read without it.
    proto = onnx.load(str(made.path))
    assert {o.domain for o in proto.opset_import} >= {"", "com.microsoft"}
    (node,) = (n for n in proto.graph.node if n.op_type == "DynamicQuantizeLSTM")
    held = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    parts = {label: held[node.input[i]] for i, label in ((1, "W"), (2, "R"), (8, "w"), (10, "r"))}
    exact = {"W": normal(7, directions, 16, 6) / 2, "R": normal(8, directions, 16, 4) / 2}
    for label, scale in (("W", "w"), ("R", "r")):
        codes, scales = parts[label], parts[scale]
        assert scales.shape == (directions, 16)
        stood = codes.transpose(0, 2, 1) * scales[:, :, None]
        assert np.abs(stood - exact[label]).max() <= scales.max() * 1.01
        assert not can_saturate(codes.transpose(0, 2, 1).reshape(directions * 16, -1)).any()
    assert made.quantized.layers[0].channels == directions * 32

    bias = normal(9, directions, 32) / 4
    for sample in samples:
        x = sample["x"]
        expected, cell = np.zeros((5, directions, 3, 4)), np.zeros((directions, 3, 4))
        for d in range(directions):
            h, c = np.zeros((3, 4), np.float32), np.zeros((3, 4))
            for t in range(5) if d == 0 else reversed(range(5)):
                # The kernel quantizes the whole input at once, and the state at each step.
                codes, step = dynamic_codes(x)
                gates = codes[t] @ parts["W"][d].astype(np.int64) * (step * parts["w"][d])
                if h.any():
                    codes, step = dynamic_codes(h)
                    gates += codes @ parts["R"][d].astype(np.int64) * (step * parts["r"][d])
                gates += bias[d, :16] + bias[d, 16:]
                i, o, f, g = np.split(gates, 4, axis=1)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = (sigmoid(o) * np.tanh(c)).astype(np.float32)
                expected[t, d], cell[d] = h, c
        found = run(made.path, sample)
        np.testing.assert_allclose(found["y"], expected, atol=2e-3)
        np.testing.assert_allclose(found["cell"], cell, atol=2e-3)
    assert signal_to_noise_db(made, samples) > 25


# Graphs


def outputs_of(path: Path) -> list[tuple[str, int, list[int | str]]]:
    graph = onnx.load(str(path)).graph
    return [
        (
            o.name,
            o.type.tensor_type.elem_type,
            [d.dim_value or d.dim_param for d in o.type.tensor_type.shape.dim],
        )
        for o in graph.output
    ]


def body(name: str, x: str, y: str, *, channels: int = 4, bias: bool = True) -> onnx.NodeProto:
    inputs = [x, f"{name}.k", *([f"{name}.b"] if bias else [])]
    return helper.make_node("Conv", inputs, [y], name, pads=[1, 1, 1, 1])


def kernels(*names: str, channels: int = 4, of: int = 4) -> dict[str, Array]:
    found = {}
    for i, name in enumerate(names):
        found[f"{name}.k"] = normal(20 + i, channels, of, 3, 3) / 3
        found[f"{name}.b"] = normal(40 + i, channels) / 3
    return found


IMAGE = ("x", FLOAT, ["n", 4, 6, 6])


def image(name: str, dtype: int = FLOAT) -> tuple[str, int, list[int | str]]:
    return (name, dtype, ["n", 4, 6, 6])


def residual(path: Path) -> Path:
    nodes = [
        body("a", "x", "a_out"),
        helper.make_node("Relu", ["a_out"], ["a_relu"], "a_r"),
        body("b", "a_relu", "b_out"),
        helper.make_node("Add", ["b_out", "a_relu"], ["sum"], "join"),
        helper.make_node("Relu", ["sum"], ["s"], "join_r"),
        body("c", "s", "y"),
    ]
    return tiny.save(path, nodes, [IMAGE], [image("y")], kernels("a", "b", "c"))


def silu(path: Path) -> Path:
    nodes = [
        body("a", "x", "a_out"),
        helper.make_node("Sigmoid", ["a_out"], ["gate"], "sig"),
        helper.make_node("Mul", ["a_out", "gate"], ["s"], "mul"),
        body("b", "s", "y"),
    ]
    return tiny.save(path, nodes, [IMAGE], [image("y")], kernels("a", "b"))


def hard_swish(path: Path) -> Path:
    nodes = [
        body("a", "x", "a_out"),
        helper.make_node("HardSwish", ["a_out"], ["s"], "act"),
        body("b", "s", "y"),
    ]
    return tiny.save(path, nodes, [IMAGE], [image("y")], kernels("a", "b"))


def pooled(path: Path) -> Path:
    nodes = [
        body("a", "x", "a_out"),
        helper.make_node("Relu", ["a_out"], ["r"], "relu"),
        helper.make_node("MaxPool", ["r"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        body("b", "p", "b_out"),
        helper.make_node("GlobalAveragePool", ["b_out"], ["g"], "mean"),
        helper.make_node("Flatten", ["g"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w", "c"], ["y"], "head"),
    ]
    constants = kernels("a", "b") | {"w": normal(60, 4, 3), "c": normal(61, 3)}
    return tiny.save(path, nodes, [IMAGE], [("y", FLOAT, ["n", 3])], constants)


def tail(path: Path) -> Path:
    """The end of a ResNet: a sum, its Relu, a mean over the image, and a Gemm."""
    nodes = [
        body("a", "x", "a_out"),
        helper.make_node("Relu", ["a_out"], ["r"], "relu"),
        body("b", "r", "b_out"),
        helper.make_node("Add", ["b_out", "r"], ["sum"], "join"),
        helper.make_node("Relu", ["sum"], ["s"], "join_r"),
        helper.make_node("GlobalAveragePool", ["s"], ["g"], "mean"),
        helper.make_node("Flatten", ["g"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w", "c"], ["y"], "head"),
    ]
    constants = kernels("a", "b") | {"w": normal(60, 4, 3), "c": normal(61, 3)}
    return tiny.save(path, nodes, [IMAGE], [("y", FLOAT, ["n", 3])], constants)


def two_outputs(path: Path) -> Path:
    """Both anchors' outputs are outputs of the graph, and one feeds the other."""
    nodes = [body("a", "x", "a_out"), body("b", "a_out", "y")]
    return tiny.save(path, nodes, [IMAGE], [image("y"), image("a_out")], kernels("a", "b"))


def twins(path: Path) -> Path:
    """Two outputs of one tensor."""
    nodes = [
        body("a", "x", "t"),
        helper.make_node("Identity", ["t"], ["y1"], "one"),
        helper.make_node("Identity", ["t"], ["y2"], "two"),
    ]
    return tiny.save(path, nodes, [IMAGE], [image("y1"), image("y2")], kernels("a"))


def passed_through(path: Path) -> Path:
    """The input is an output too."""
    nodes = [body("a", "x", "y")]
    return tiny.save(path, nodes, [IMAGE], [image("y"), image("x")], kernels("a"))


def shared(path: Path) -> Path:
    """Two layers with one set of weights."""
    nodes = [
        helper.make_node("Conv", ["x", "k", "b"], ["m"], "a", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["m", "k", "b"], ["y"], "b", pads=[1, 1, 1, 1]),
    ]
    constants = {"k": normal(20, 4, 4, 3, 3) / 3, "b": normal(40, 4)}
    return tiny.save(path, nodes, [IMAGE], [image("y")], constants)


def nameless(path: Path) -> Path:
    """Empty and repeated node names, a Constant node, weights listed as inputs."""
    nodes = [
        helper.make_node(
            "Constant", [], ["k"], "", value=onnx.numpy_helper.from_array(normal(20, 4, 4, 3, 3))
        ),
        helper.make_node("Conv", ["x", "k"], ["a_out"], "", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a_out"], ["r"], "same"),
        helper.make_node("Conv", ["r", "second"], ["b_out"], "same", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["b_out", "second"], ["y"], "", pads=[1, 1, 1, 1]),
    ]
    inputs = [IMAGE, ("second", FLOAT, [4, 4, 3, 3])]
    return tiny.save(path, nodes, inputs, [image("y")], {"second": normal(21, 4, 4, 3, 3) / 3})


def taken_names(path: Path) -> Path:
    """Every name that quantization would like to give is taken already."""
    nodes = [
        body("x", "x", "x_quantized"),
        helper.make_node("Relu", ["x_quantized"], ["x_dequantized"], "x_quantize"),
        body("x_dequantize", "x_dequantized", "x_weight"),
        helper.make_node("Add", ["x_weight", "x_scale"], ["x_zero_point"], "x_weight_dequantize"),
        body("x_bias", "x_zero_point", "x_float"),
        helper.make_node("Mul", ["x_float", "head_scale"], ["x_weight_dequantized"], "last"),
        helper.make_node("Mul", ["x_weight_dequantized", "x_weight_scale"], ["y"], "very_last"),
    ]
    constants = kernels("x", "x_dequantize", "x_bias")
    # A weight of the model that looks like a scale, and is no scale of a code.
    constants |= {"head_scale": np.float32([[[[-1, 0, 1e7, 1, 1, 2]]]])}
    inputs = [IMAGE, image("x_scale"), image("x_weight_scale")]
    return tiny.save(path, nodes, inputs, [image("y")], constants)


def between(path: Path, middle: list[onnx.NodeProto], **constants: Any) -> Path:
    """Conv a, `middle` from a_out to m, Conv b."""
    nodes = [body("a", "x", "a_out"), *middle, body("b", "m", "y")]
    return tiny.save(path, nodes, [IMAGE], [image("y")], kernels("a", "b") | constants)


def constants_between(path: Path) -> Path:
    """A factor and an offset that vary over the image, so that no convolution can take them."""
    middle = [
        helper.make_node("Mul", ["a_out", "factor"], ["t"], "times"),
        helper.make_node("Add", ["offset", "t"], ["m"], "plus"),
    ]
    return between(path, middle, factor=normal(4, 1, 4, 6, 6), offset=normal(5, 1, 1, 6, 6) - 1)


GRAPHS = {
    "residual": residual,
    "SiLU": silu,
    "HardSwish": hard_swish,
    "pooled": pooled,
    "tail": tail,
    "constants": constants_between,
    "two outputs": two_outputs,
    "twins": twins,
    "input passed through": passed_through,
    "shared weights": shared,
    "nameless": nameless,
    "taken names": taken_names,
}


def samples_for(name: str) -> list[Feeds]:
    found = feeds(1, 4, 6, 6)
    if name == "taken names":
        for i, sample in enumerate(found):
            sample |= {"x_scale": normal(i, 1, 4, 6, 6), "x_weight_scale": normal(9, 1, 4, 6, 6)}
    return found


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_keeps_its_face_and_its_answers(tmp_path: Path, name: str, runtime: str) -> None:
    samples = samples_for(name)
    source = GRAPHS[name](tmp_path / "m.onnx")
    made = make(source, samples, fused_for=runtime)
    assert set(made.modes) == {"static"}
    assert outputs_of(made.path) == outputs_of(source)
    graph, held = made.file.graph, made.file.constants
    assert [i.name for i in graph.input] == list(samples[0])
    names = [n.name for n in graph.node]
    assert len(set(names)) == len(names)
    assert "" not in names

    for sample in samples:
        fast, plain = run(made.path, sample), run(made.path, sample, optimize="none")
        exact = run(made.fp32, sample)
        for output, values in exact.items():
            # Integer kernels and the same graph node by node tell the same.
            spread = float(np.abs(values).max())
            assert np.abs(fast[output] - plain[output]).max() < 0.02 * spread
            noise = np.square(fast[output] - values).mean()
            assert noise < 6e-3 * np.square(values).mean()

    pairs = [n for n in graph.node if n.op_type == "QuantizeLinear"]
    # Exact mode refuses graphs in which two tensors share an initializer.
    used = [n for pair in pairs for n in pair.input[1:]]
    assert len(used) == len(set(used)) == 2 * len(pairs)
    assert all(n in held for n in used)
    # And nothing is left behind that nobody reads.
    read = {i for n in graph.node for i in n.input} | {o.name for o in graph.output}
    assert set(held) <= read


@pytest.mark.parametrize("name", ["residual", "pooled", "taken names", "two outputs"])
def test_openvino_reads_the_same_from_it(tmp_path: Path, name: str) -> None:
    openvino = pytest.importorskip("openvino")
    samples = samples_for(name)
    made = make(GRAPHS[name](tmp_path / "m.onnx"), samples, fused_for="openvino")
    compiled = openvino.Core().compile_model(
        str(made.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    )
    for sample in samples:
        found = compiled(sample)
        for output, values in run(made.path, sample).items():
            spread = float(np.abs(values).max())
            assert np.abs(found[output] - values).max() < 0.03 * spread


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib\n"
        "from tests.quantize.test_native import GRAPHS, make, samples_for\n"
        "folder = pathlib.Path(sys.argv[1]); folder.mkdir()\n"
        "for name in ('residual', 'SiLU', 'pooled', 'constants'):\n"
        "    made = make(GRAPHS[name](folder / f'{name}.onnx'), samples_for(name))\n"
        "    print(made.quantized.model.sha256)\n"
    )
    digests = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / seed)],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        digests.add(done.stdout)
    assert len(digests) == 1
    assert len(digests.pop().splitlines()) == 4


def test_tied_weights_stay_for_the_embedding(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], "embed"),
        helper.make_node("Transpose", ["table"], ["back"], "t", perm=[1, 0]),
        helper.make_node("MatMul", ["e", "back"], ["y"], "head"),
    ]
    path = tiny.save(
        tmp_path / "m.onnx",
        nodes,
        [("ids", TensorProto.INT64, ["n", "t"])],
        [("y", FLOAT, ["n", "t", 20])],
        {"table": normal(1, 20, 8)},
    )
    samples = [{"ids": np.array([[i, 3, 19 - i]])} for i in range(4)]
    for mode in ("static", "dynamic"):
        made = make(path, samples, mode=mode)
        assert made.modes == [mode]
        assert any(
            v.shape == (20, 8) and v.dtype == np.float32 for v in made.file.constants.values()
        )
        assert signal_to_noise_db(made, samples) > 30


def branches(path: Path) -> Path:
    """If with a MatMul in one branch and another of the same name and input in the other."""

    def branch(label: str, seed: int) -> onnx.GraphProto:
        node = helper.make_node("MatMul", ["x", f"w_{label}"], [f"out_{label}"], "product")
        extra = helper.make_node("MatMul", ["x", f"v_{label}"], [f"side_{label}"], "side")
        total = helper.make_node("Add", [f"out_{label}", f"side_{label}"], [f"sum_{label}"], "sum")
        constants = [
            onnx.numpy_helper.from_array(normal(seed, 8, 5), f"w_{label}"),
            onnx.numpy_helper.from_array(normal(seed + 1, 8, 5), f"v_{label}"),
        ]
        value = helper.make_tensor_value_info(f"sum_{label}", FLOAT, ["n", 5])
        return helper.make_graph([node, extra, total], label, [], [value], constants)

    node = helper.make_node(
        "If", ["yes"], ["y"], "choice", then_branch=branch("a", 1), else_branch=branch("b", 3)
    )
    inputs = [("x", FLOAT, ["n", 8]), ("yes", TensorProto.BOOL, [])]
    return tiny.save(path, [node], inputs, [("y", FLOAT, ["n", 5])])


def test_products_inside_branches_are_dynamic(tmp_path: Path) -> None:
    samples = [{"x": normal(i, 3, 8), "yes": np.array(bool(i % 2))} for i in range(4)]
    made = make(branches(tmp_path / "m.onnx"), samples)
    assert made.modes == ["dynamic"] * 4
    assert signal_to_noise_db(made, samples) > 30
    (choice,) = made.file.nodes("If")
    for attribute in choice.attribute:
        ops = [n.op_type for n in attribute.g.node]
        assert ops.count("MatMulInteger") == 2
        # Both products of a branch read one set of codes.
        assert ops.count("DynamicQuantizeLinear") == 1
        assert "MatMul" not in ops
        # The float weights are gone.
        assert not attribute.g.initializer


def test_an_lstm_inside_a_branch_is_dynamic(tmp_path: Path) -> None:
    inner = onnx.load(str(lstm(tmp_path / "lstm.onnx", directions=1))).graph
    then = helper.make_graph(
        inner.node, "then", [], [helper.make_tensor_value_info("y", FLOAT, None)], inner.initializer
    )
    other = helper.make_graph(
        [
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("ConstantOfShape", ["s"], ["z"]),
            helper.make_node("Unsqueeze", ["z", "one"], ["zero"]),
        ],
        "other",
        [],
        [helper.make_tensor_value_info("zero", FLOAT, None)],
        [onnx.numpy_helper.from_array(np.array([1]), "one")],
    )
    path = tiny.save(
        tmp_path / "m.onnx",
        [helper.make_node("If", ["yes"], ["out"], "if", then_branch=then, else_branch=other)],
        [("x", FLOAT, ["t", "n", 6]), ("yes", TensorProto.BOOL, [])],
        [("out", FLOAT, None)],
    )
    samples = [{"x": normal(i, 5, 3, 6), "yes": np.ones((), bool)} for i in range(2)]
    made = make(path, samples)
    assert made.modes == ["dynamic"]
    assert signal_to_noise_db(made, samples) > 25
    # The untaken branch still works.
    run(made.path, {"x": normal(0, 5, 3, 6), "yes": np.zeros((), bool)})


def test_a_mask_of_minus_infinity_stays_in_float(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "wq"], ["q"], "q_proj"),
        helper.make_node("MatMul", ["x", "wk"], ["k"], "k_proj"),
        helper.make_node("Transpose", ["k"], ["kt"], "kt_node", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"], "qk"),
        helper.make_node("Add", ["scores", "mask"], ["masked"], "mask_add"),
        helper.make_node("Softmax", ["masked"], ["p"], "softmax", axis=-1),
        helper.make_node("MatMul", ["p", "x"], ["mixed"], "pv"),
        helper.make_node("MatMul", ["mixed", "wo"], ["y"], "out_proj"),
    ]
    mask = np.triu(np.full((5, 5), -np.inf, np.float32), 1)
    path = tiny.save(
        tmp_path / "m.onnx",
        nodes,
        [("x", FLOAT, ["n", 5, 8])],
        [("y", FLOAT, ["n", 5, 8])],
        {"wq": normal(1, 8, 8), "wk": normal(2, 8, 8), "wo": normal(3, 8, 8), "mask": mask},
    )
    samples = feeds(2, 5, 8)
    made = make(path, samples)
    assert made.modes == ["static"] * 3
    assert made.calibration.tensors.get("masked") is None
    for sample in samples:
        assert np.isfinite(run(made.path, sample)["y"]).all()
    assert signal_to_noise_db(made, samples) > 25
    for node in made.file.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert np.isfinite(made.file.constants[node.input[1]]).all()


def test_a_layer_whose_tensors_are_not_finite_stays_in_float(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Log", ["x"], ["l"], "log"),
        helper.make_node("MatMul", ["l", "w"], ["a"], "after_log"),
        helper.make_node("MatMul", ["x", "w"], ["b"], "direct"),
    ]
    path = tiny.save(
        tmp_path / "m.onnx",
        nodes,
        [("x", FLOAT, ["n", 1, 4])],
        [("a", FLOAT, None), ("b", FLOAT, None)],
        {"w": normal(1, 4, 3)},
    )
    made = make(path, [{"x": np.float32([[[0, 1, 2, 3]]])}])
    assert dict(zip([x.name for x in made.quantized.layers], made.modes, strict=True)) == {
        "after_log": "float",
        "direct": "static",
    }
    assert "non-finite" in str(made.quantized.layers[0].reason)
    assert made.quantized.recipe.modes["after_log"] == "float"
    assert made.quantized.int8_layers == 1


def test_a_spectrogram_in_front_stays_in_float(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "stft"], ["spectrum"], "stft_conv", strides=[4]),
        helper.make_node("Pow", ["spectrum", "two"], ["power"], "square"),
        helper.make_node("Conv", ["power", "mel"], ["mels"], "mel_conv"),
        helper.make_node("Add", ["mels", "tiny"], ["lifted"], "lift"),
        helper.make_node("Sqrt", ["lifted"], ["root"], "root_node"),
        helper.make_node("Log", ["root"], ["logs"], "log"),
        helper.make_node("Conv", ["logs", "k"], ["y"], "body"),
    ]
    constants = {
        "stft": normal(1, 6, 1, 8),
        "two": np.float32(2),
        "mel": np.abs(normal(2, 4, 6, 1)),
        "tiny": np.float32(1e-6),
        "k": normal(3, 5, 4, 3),
    }
    path = tiny.save(
        tmp_path / "m.onnx", nodes, [("x", FLOAT, [1, 1, 64])], [("y", FLOAT, None)], constants
    )
    made = make(path, feeds(1, 1, 64))
    modes = {x.name: x.mode for x in made.quantized.layers}
    assert modes == {"stft_conv": "float", "mel_conv": "float", "body": "static"}
    assert signal_to_noise_db(made, feeds(1, 1, 64)) > 25


def test_a_large_bias_beside_tiny_weights_survives(tmp_path: Path) -> None:
    # As in MobileNetV3: one nearly dead channel whose bias would overflow int32.
    constants = kernels("a", "b")
    constants["a.k"][1] *= 1e-9
    constants["a.b"][1] = 5.0
    nodes = [body("a", "x", "a_out"), body("b", "a_out", "y")]
    path = tiny.save(tmp_path / "m.onnx", nodes, [IMAGE], [image("y"), image("a_out")], constants)
    made = make(path, feeds(1, 4, 6, 6))
    found = run(made.path, feeds(1, 4, 6, 6)[0])["a_out"]
    np.testing.assert_allclose(found[:, 1], 5.0, rtol=0.01)


@pytest.mark.parametrize(
    ("name", "has", "lacks"),
    [
        ("residual", {"QLinearConv": 3, "QLinearAdd": 1}, {"Conv", "Add", "Relu"}),
        ("pooled", {"QLinearConv": 2, "QGemm": 1, "QLinearGlobalAveragePool": 1}, {"Conv", "Gemm"}),
        (
            "tail",
            {"QLinearConv": 2, "QLinearAdd": 1, "QLinearGlobalAveragePool": 1, "QGemm": 1},
            {"Conv", "Add", "Relu", "GlobalAveragePool"},
        ),
        ("shared weights", {"QLinearConv": 2}, {"Conv"}),
        ("nameless", {"QLinearConv": 3}, {"Conv", "Relu"}),
        ("two outputs", {"QLinearConv": 2}, {"Conv"}),
        ("twins", {"QLinearConv": 1}, {"Conv"}),
        ("input passed through", {"QLinearConv": 1}, {"Conv"}),
        ("SiLU", {"QLinearConv": 2}, {"Conv"}),
        ("HardSwish", {"QLinearConv": 2}, {"Conv"}),
    ],
)
def test_onnxruntime_runs_integer_kernels(
    tmp_path: Path, name: str, has: dict[str, int], lacks: set[str]
) -> None:
    ops = fused(make(GRAPHS[name](tmp_path / "m.onnx"), samples_for(name)).path)
    assert {op: ops.count(op) for op in has} == has
    assert not lacks & set(ops)


def test_constants_between_integers_are_integers_too(tmp_path: Path) -> None:
    samples = feeds(2, 4, 6, 6)
    made = make(constants_between(tmp_path / "m.onnx"), samples)
    file = made.file
    ((mul,), (add,)) = file.nodes("Mul"), file.nodes("Add")
    exact = {mul.input[1]: normal(4, 1, 4, 6, 6), add.input[0]: normal(5, 1, 1, 6, 6) - 1}
    for name, values in exact.items():
        held = file.held(name)
        assert held.codes.dtype == np.uint8
        assert held.zero > 100
        np.testing.assert_allclose(held.centred * held.scale, values, atol=0.51 * float(held.scale))
    ops = fused(made.path)
    assert {"QLinearMul", "QLinearAdd"} <= set(ops)
    assert signal_to_noise_db(made, samples) > 25


@pytest.mark.parametrize("op", ["Conv", "grouped Conv", "ConvTranspose"])
def test_onnxruntime_leaves_float_layers_in_float(tmp_path: Path, op: str) -> None:
    # Between integers it would quantize their weights itself, one scale for all channels.
    groups = 4 if op == "grouped Conv" else 1
    middle = helper.make_node(
        op.split()[-1], ["a_out", "fk"], ["m"], "kept", group=groups, pads=[1, 1, 1, 1]
    )
    source = between(tmp_path / "m.onnx", [middle], fk=normal(3, 4, 4 // groups, 3, 3))
    samples = feeds(2, 4, 6, 6)
    made = make(source, samples, modes={"kept": "float"})
    ops = fused(made.path)
    assert ops.count(op.split()[-1]) == 1
    assert ops.count("QLinearConv") == 2
    for sample in samples:
        fast, plain = run(made.path, sample), run(made.path, sample, optimize="none")
        assert np.abs(fast["y"] - plain["y"]).max() < 0.02 * np.abs(plain["y"]).max()
    assert signal_to_noise_db(made, samples) > 25


@pytest.mark.parametrize("turned", [0, 1])
def test_onnxruntime_leaves_a_float_gemm_in_float(tmp_path: Path, turned: int) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["a"], "one"),
        helper.make_node("Gemm", ["a", "w2"], ["b"], "kept", transB=turned),
        helper.make_node("Gemm", ["b", "w3"], ["y"], "three"),
    ]
    constants = {
        "w1": normal(1, 16, 6),
        "w2": normal(2, *((8, 6) if turned else (6, 8))),
        "w3": normal(3, 8, 5),
    }
    x, y = ("x", FLOAT, ["n", 16]), ("y", FLOAT, ["n", 5])
    source = tiny.save(tmp_path / "m.onnx", nodes, [x], [y], constants)
    made = make(source, feeds(7, 16), modes={"kept": "float"})
    assert made.modes == ["static", "float", "static"]
    ops = fused(made.path)
    assert (ops.count("QGemm"), ops.count("Gemm")) == (2, 1)


def test_float_readers_of_a_float_tensor_do_not_read_through_its_pair(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Tanh", ["x"], ["t"], "tanh"),
        helper.make_node("MatMul", ["t", "w"], ["y"], "product"),
        helper.make_node("Exp", ["t"], ["z"], "exp"),
    ]
    outputs = [("y", FLOAT, ["n", 1, 5]), ("z", FLOAT, ["n", 1, 8]), ("t", FLOAT, ["n", 1, 8])]
    path = tiny.save(
        tmp_path / "m.onnx", nodes, [("x", FLOAT, ["n", 1, 8])], outputs, {"w": normal(1, 8, 5)}
    )
    samples = feeds(3, 1, 8)
    made = make(path, samples)
    assert outputs_of(made.path) == outputs_of(path)
    found, exact = run(made.path, samples[0]), run(made.fp32, samples[0])
    np.testing.assert_array_equal(found["z"], exact["z"])
    np.testing.assert_array_equal(found["t"], exact["t"])
    assert (found["y"] != exact["y"]).any()


@pytest.mark.parametrize("case", CONVS)
def test_onnxruntime_fuses_every_kind_of_convolution(tmp_path: Path, case: str) -> None:
    options, shape = CONVS[case]
    ops = fused(make(conv(tmp_path / "m.onnx", **options), feeds(*shape)).path)
    assert ops == ["QuantizeLinear", "QLinearConv", "DequantizeLinear"]


def test_onnxruntime_fuses_products(tmp_path: Path) -> None:
    static, dynamic = ({"mode": m} for m in ("static", "dynamic"))
    rows, steps = feeds(7, 16), [{"x": normal(1, 2, 3, 8)}]
    for case, options in GEMMS.items():
        ops = fused(make(gemm(tmp_path / "g.onnx", **options), rows, **static).path)
        assert "QGemm" in ops, case
        ops = fused(make(gemm(tmp_path / "g.onnx", **options), rows, **dynamic).path)
        assert ops == ["DynamicQuantizeMatMul"], case
    made = make(linear(tmp_path / "l.onnx"), steps, **static)
    assert {"MatMulIntegerToFloat", "QLinearMatMul"} & set(fused(made.path))
    assert "MatMul" not in fused(made.path)
    ops = fused(make(linear(tmp_path / "l.onnx"), steps, **dynamic).path)
    assert "DynamicQuantizeMatMul" in ops
    assert not {"MatMul", "MatMulInteger", "Mul"} & set(ops)
    ops = fused(make(lstm(tmp_path / "r.onnx"), feeds(5, 3, 6)).path)
    assert ops == ["DynamicQuantizeLSTM"]
