"""What should gain from INT8 is told by sizes alone: work saved against conversions."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.passes import common as passes

from quantize.anchors import Anchor, find_anchors
from quantize.calibrate import Calibration
from quantize.gains import Expected, expect, find_regions
from quantize.histograms import TensorStatistics
from tests import tiny
from tests.graphs import GRAPHS, Builder

_FLOAT = TensorProto.FLOAT


def seen(path: Path) -> tuple[ir.Model, tuple[Anchor, ...], Calibration]:
    """A graph, and statistics as if one sample of its shapes had run through it."""
    model = ir.load(path)
    anchors, _ = find_anchors(model)
    passes.ShapeInferencePass()(model)
    tensors = {}
    for value in [*model.graph.inputs, *(v for n in model.graph for v in n.outputs)]:
        count = int(np.prod([n for n in value.shape or () if isinstance(n, int)]))
        tensors[str(value.name)] = TensorStatistics(-1.0, 1.0, count=count, samples=1)
    return model, anchors, Calibration(tensors, "", "", 1)


def judged(
    build: Callable[[Builder, str], str], folder: Path, channels: int, side: int
) -> Expected:
    b = Builder()
    path = b.save(folder / "m.onnx", ("x", _FLOAT, [1, channels, side, side]), build(b, "x"))
    return expect(*seen(path))


def floats(found: Expected) -> list[str]:
    return [name for name, mode in found.modes.items() if mode == "float"]


@pytest.mark.parametrize(("side", "gains"), [(2, False), (28, True)])
def test_a_convolution_gains_where_it_is_large(tmp_path: Path, side: int, *, gains: bool) -> None:
    found = judged(lambda b, x: b.conv(x, 64, 64, 1), tmp_path, 64, side)
    assert found.gains == gains


def test_where_nothing_gains_the_region_that_costs_least_is_in_int8(tmp_path: Path) -> None:
    def build(b: Builder, x: str) -> str:
        # Two regions, parted by a float operator; the first has more to convert.
        x = b.op("Tanh", b.conv(x, 4, 4, 1))
        return b.conv(b.op("GlobalAveragePool", x), 4, 4, 1)

    found = judged(build, tmp_path, 4, 16)
    assert not found.gains
    assert floats(found) == ["conv_0"]


def test_a_first_layer_of_few_channels_stays_in_float(tmp_path: Path) -> None:
    def build(b: Builder, x: str) -> str:
        x = b.op("Relu", b.conv(x, 3, 16))
        return b.conv(b.op("Relu", b.conv(x, 16, 64)), 64, 64)

    found = judged(build, tmp_path, 3, 32)
    assert found.gains
    assert floats(found) == ["conv_0"]


@pytest.mark.parametrize(("kernel", "left"), [((1, 9), []), ((9, 1), ["conv_0"])])
def test_a_first_layer_pays_for_the_rows_of_its_kernel(
    tmp_path: Path, kernel: tuple[int, int], left: list[str]
) -> None:
    def build(b: Builder, x: str) -> str:
        pads = [kernel[0] // 2, kernel[1] // 2] * 2
        x = b.op("Relu", b.op("Conv", x, b.weight(32, 3, *kernel), pads=pads))
        return b.conv(x, 32, 64)

    assert floats(judged(build, tmp_path, 3, 32)) == left


def test_a_first_layer_of_many_products_gains(tmp_path: Path) -> None:
    found = judged(lambda b, x: b.conv(x, 3, 64, 7, strides=[2, 2]), tmp_path, 3, 112)
    assert found.gains


def test_a_kernel_of_very_many_taps_is_slow_in_float_too(tmp_path: Path) -> None:
    def build(b: Builder, x: str) -> str:
        return b.op("Conv", x, b.weight(64, 1, 128, 1), pads=[63, 0, 64, 0])

    b = Builder()
    path = b.save(tmp_path / "m.onnx", ("x", _FLOAT, [1, 1, 1024, 1]), build(b, "x"))
    assert expect(*seen(path)).gains


def test_depthwise_layers_between_others_stay_with_them(tmp_path: Path) -> None:
    def build(b: Builder, x: str) -> str:
        x = b.op("Relu", b.conv(x, 64, 128, 1))
        x = b.op("Relu", b.conv(x, 128, 128, group=128))
        return b.conv(x, 128, 64, 1)

    assert floats(judged(build, tmp_path, 64, 28)) == []


def test_a_depthwise_layer_between_float_operators_does_not_gain(tmp_path: Path) -> None:
    def build(b: Builder, x: str) -> str:
        x = b.op("HardSwish", b.conv(x, 128, 128, 1))
        x = b.op("HardSwish", b.conv(x, 128, 128, group=128))
        return b.conv(x, 128, 128, 1)

    found = judged(build, tmp_path, 128, 28)
    assert floats(found) == ["conv_2"]


def test_a_pool_of_floats_is_no_place_to_become_integers(tmp_path: Path) -> None:
    def build(b: Builder, x: str) -> str:
        x = b.op("Tanh", b.conv(x, 3, 16))
        x = b.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        x = b.op("Tanh", b.conv(x, 16, 16))
        return b.conv(x, 16, 256)

    found = judged(build, tmp_path, 3, 32)
    # The first is too thin, so the second reads pooled floats.
    assert floats(found) == ["conv_0", "conv_3"]


def test_a_pool_near_an_integer_convolution_is_fast(tmp_path: Path) -> None:
    def build(b: Builder, x: str) -> str:
        x = b.op("Tanh", b.conv(x, 64, 64))
        x = b.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        return b.conv(x, 64, 64, 1)

    assert floats(judged(build, tmp_path, 64, 32)) == []


@pytest.mark.parametrize(("channels", "gains"), [(40, False), (64, True)])
def test_conversions_on_both_sides_are_counted(
    tmp_path: Path, channels: int, *, gains: bool
) -> None:
    found = judged(lambda b, x: b.conv(x, channels, channels, 1), tmp_path, channels, 28)
    assert found.gains == gains


@pytest.mark.parametrize(("after", "gains"), [("Tanh", True), ("HardSwish", False)])
def test_what_float_convolutions_compute_on_the_way_is_counted(
    tmp_path: Path, after: str, *, gains: bool
) -> None:
    found = judged(lambda b, x: b.op(after, b.conv(x, 64, 64, 1)), tmp_path, 64, 28)
    assert found.gains == gains


def test_a_layer_that_costs_less_than_conversions_around_it_stays(tmp_path: Path) -> None:
    def build(b: Builder, x: str) -> str:
        x = b.op("Relu", b.conv(x, 64, 4))
        x = b.op("Relu", b.conv(x, 4, 32))
        return b.conv(x, 32, 64)

    assert floats(judged(build, tmp_path, 64, 28)) == []


def test_a_depthwise_layer_at_the_edge_stays_for_openvino(tmp_path: Path) -> None:
    def build(b: Builder, x: str) -> str:
        x = b.op("Relu", b.conv(x, 64, 64, group=64))
        return b.conv(x, 64, 256, 1)

    assert floats(judged(build, tmp_path, 64, 28)) == []


def test_layers_in_subgraphs_are_expected_to_gain(tmp_path: Path) -> None:
    def branch(bias: float) -> onnx.GraphProto:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["p"], f"product_{bias}")]
        nodes.append(helper.make_node("Add", ["p", f"b_{bias}"], ["q"]))
        held = numpy_helper.from_array(np.full(8, bias, np.float32), f"b_{bias}")
        return helper.make_graph(
            nodes, f"branch_{bias}", [], [helper.make_tensor_value_info("q", _FLOAT, None)], [held]
        )

    choose = helper.make_node("If", ["yes"], ["y"], then_branch=branch(1), else_branch=branch(2))
    ports: list[list[tiny.Port]] = [[("x", _FLOAT, [1, 8])], [("y", _FLOAT, None)]]
    constants = {"yes": np.bool_(1), "w": np.ones((8, 8), np.float32)}
    found = expect(*seen(tiny.save(tmp_path / "m.onnx", [choose], *ports, constants)))
    assert found.gains
    assert found.modes
    assert floats(found) == []


def test_products_that_share_an_input_share_its_conversion(tmp_path: Path) -> None:
    b = Builder()
    x = b.op("Tanh", "x")
    parts = [b.linear(x, 64, 64) for _ in range(3)]
    y = b.op("Add", b.op("Add", parts[0], parts[1]), parts[2])
    path = b.save(tmp_path / "m.onnx", ("x", _FLOAT, [1, 32, 64]), y)
    model, anchors, calibration = seen(path)
    modes = {a.name: a.modes[0] for a in anchors}
    (region,) = find_regions(model, anchors, modes, calibration)
    assert len(region.anchors) == 3
    alone = find_regions(model, anchors, {**modes, anchors[0].name: "float"}, calibration)
    # 32 x 64 x 64 products, saved without one more conversion.
    assert region.gain_ns - alone[0].gain_ns > 1000


@pytest.mark.parametrize(("hidden", "kept"), [(32, False), (256, True)])
def test_an_lstm_gains_where_its_weights_are_many(
    tmp_path: Path, hidden: int, *, kept: bool
) -> None:
    w, r = (np.ones((1, 4 * hidden, n), np.float32) for n in (8, hidden))
    b = Builder()
    b.nodes.append(helper.make_node("LSTM", ["x", "w", "r"], ["y"], "lstm", hidden_size=hidden))
    y = b.op("Squeeze", "y", b.constant(np.array([1], np.int64)))
    b.constants |= {"w": w, "r": r}
    path = b.save(tmp_path / "m.onnx", ("x", _FLOAT, [6, 1, 8]), b.linear(y, hidden, 4))
    found = expect(*seen(path))
    assert (found.modes["lstm"] == "dynamic") == kept
    assert found.gains == kept


@pytest.mark.parametrize("name", GRAPHS)
def test_what_was_never_seen_stays_in_int8(name: str, tmp_path: Path) -> None:
    model, anchors, _ = seen(GRAPHS[name](tmp_path / "m.onnx"))
    tensors = {str(v.name): TensorStatistics(-1.0, 1.0) for v in model.graph.inputs}
    found = expect(model, anchors, Calibration(tensors, "", "", 1))
    products = [a.name for a in anchors if a.op != "LSTM"]
    # Nothing has a range, so nothing can be placed; that is for whoever quantizes to say.
    assert all(found.modes[n] != "float" for n in products)


def test_a_graph_without_layers_has_nothing_to_expect(tmp_path: Path) -> None:
    path = tiny.unary(tmp_path / "m.onnx", "Relu", _FLOAT, [1, 4])
    assert expect(*seen(path)) == Expected({}, gains=False)
