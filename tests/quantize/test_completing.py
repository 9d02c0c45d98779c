"""Pairs that another compiler leaves out, and the kernels that ONNX Runtime then runs."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper

from bench.models import Feeds, read_model
from quantize.anchors import Anchor, find_anchors
from quantize.histograms import TensorStatistics
from quantize.quantizers.completing import complete
from quantize.watching import expose
from tests import tiny
from tests.int8 import fused, run

F = TensorProto.FLOAT
SHAPE = [1, 8, 6, 6]


def weights(seed: int, *shape: int) -> np.ndarray[Any, np.dtype[np.int8]]:
    return np.random.default_rng(seed).integers(-60, 61, shape).astype(np.int8)


def pair(name: str, zero: int = 128) -> list[Any]:
    """Q and DQ of a tensor `name`, whose codes count from `zero` in steps of 0.05."""
    scales = [f"{name}_s", f"{name}_z{zero}"]
    return [
        helper.make_node("QuantizeLinear", [name, *scales], [f"{name}_q"], f"{name}_q"),
        helper.make_node("DequantizeLinear", [f"{name}_q", *scales], [f"{name}_d"], f"{name}_d"),
    ]


def layer(op: str, name: str, *inputs: str, **attributes: Any) -> list[Any]:
    """A layer with INT8 weights `NAME_w`."""
    back = ["DequantizeLinear", [f"{name}_w", f"{name}_ws", f"{name}_wz"], [f"{name}_wd"]]
    data, *rest = inputs
    return [
        helper.make_node(*back, f"{name}_back"),
        helper.make_node(op, [data, f"{name}_wd", *rest], [f"{name}_y"], name, **attributes),
    ]


def constants() -> dict[str, Any]:
    """Of `inductor_like`."""
    made: dict[str, Any] = {}
    for name in ("x", "a_y", "sum", "g"):
        made |= {f"{name}_s": np.float32(0.05), f"{name}_z128": np.uint8(128)}
    shapes = {"a": (8, 8, 3, 3), "b": (8, 8, 1, 1), "head": (8, 5)}
    for i, (name, shape) in enumerate(shapes.items()):
        made |= {f"{name}_w": weights(i, *shape), f"{name}_ws": np.float32(0.002)}
        made[f"{name}_wz"] = np.int8(0)
    made["flat"], made["bias"] = np.array([1, 8]), np.linspace(-1, 1, 5, dtype=np.float32)
    return made


def inductor_like(path: Path) -> Path:
    """x + conv(conv(x)), pooled, into a Gemm: pairs where Inductor's quantizer puts them."""
    nodes = [
        *pair("x"),
        *layer("Conv", "a", "x_d", pads=[1, 1, 1, 1]),
        *pair("a_y"),
        *layer("Conv", "b", "a_y_d"),
        helper.make_node("Add", ["b_y", "x_d"], ["sum"], "add"),
        *pair("sum"),
        helper.make_node("GlobalAveragePool", ["sum_d"], ["g"], "pool"),
        *pair("g"),
        helper.make_node("Reshape", ["g_d", "flat"], ["r"], "reshape"),
        *layer("Gemm", "head", "r", "bias"),
    ]
    ports: list[Any] = [("x", F, SHAPE), ("head_y", F, [1, 5])]
    return tiny.save(path, nodes, ports[:1], ports[1:], constants())


def statistics(path: Path, names: list[str], feeds: list[Feeds]) -> dict[str, TensorStatistics]:
    found = {n: TensorStatistics() for n in names}
    expose(path, names, path.with_name("seen.onnx"))
    for sample in feeds:
        outputs = run(path.with_name("seen.onnx"), sample)
        for name in names:
            found[name].add(outputs[name])
    return found


def anchors() -> tuple[Anchor, ...]:
    """As `find_anchors` gives them of the FP32 graph."""
    a = Anchor("a", "Conv", "x", "a_y", "a_y", 0, 576)
    b = Anchor("b", "Conv", "a_y", "b_y", "b_y", 0, 64)
    return a, b, Anchor("head", "Gemm", "r", "head_y", "head_y", 1, 40)


def feeds() -> list[Feeds]:
    random = np.random.default_rng(9)
    return [{"x": random.standard_normal(SHAPE).astype(np.float32)} for _ in range(4)]


def completed(tmp_path: Path) -> tuple[Path, Path]:
    before, after = inductor_like(tmp_path / "m.onnx"), tmp_path / "completed.onnx"
    model = ir.load(before)
    complete(model, anchors(), statistics(before, ["a_y", "b_y"], feeds()))
    ir.save(model, after)
    read_model(after)
    return before, after


def test_every_layer_with_int8_weights_runs_in_integers(tmp_path: Path) -> None:
    before, after = completed(tmp_path)
    # The convolution before the sum, the sum itself and the Gemm were floats.
    assert [fused(before).count(op) for op in ("QLinearConv", "QLinearAdd", "QGemm")] == [1, 0, 0]
    assert [fused(after).count(op) for op in ("QLinearConv", "QLinearAdd", "QGemm")] == [2, 1, 1]
    assert "Gemm" not in fused(after)
    assert not {"Conv", "FusedConv", "Add"} & set(fused(after))


def test_new_pairs_cost_no_more_than_their_rounding(tmp_path: Path) -> None:
    before, after = completed(tmp_path)
    for sample in feeds():
        ours, theirs = run(after, sample)["head_y"], run(before, sample)["head_y"]
        assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()


def test_a_complete_graph_stays_as_it_is(tmp_path: Path) -> None:
    _, after = completed(tmp_path)
    model = ir.load(after)
    count = len(list(model.graph))
    complete(model, anchors(), {})
    assert len(list(model.graph)) == count


def test_without_statistics_a_convolution_keeps_what_it_has(tmp_path: Path) -> None:
    model = ir.load(inductor_like(tmp_path / "m.onnx"))
    complete(model, anchors()[:2], {})
    ir.save(model, tmp_path / "after.onnx")
    assert fused(tmp_path / "after.onnx") == fused(tmp_path / "m.onnx")


def test_a_bias_beyond_int32_stays_in_float(tmp_path: Path) -> None:
    model = ir.load(inductor_like(tmp_path / "m.onnx"))
    large = np.full(5, 1e9, np.float32)
    model.graph.initializers["bias"].const_value = ir.Tensor(large, name="bias")
    complete(model, anchors()[2:], {})
    gemm = next(n for n in model.graph if n.name == "head")
    assert gemm.inputs[2] is model.graph.initializers["bias"]


def test_a_layer_that_gives_the_output_of_the_model_gives_it_still(tmp_path: Path) -> None:
    nodes = [*pair("x"), *layer("Conv", "b", "x_d")]
    path = tiny.save(
        tmp_path / "m.onnx", nodes, [("x", F, SHAPE)], [("b_y", F, SHAPE)], constants()
    )
    anchor = anchors()[1]
    model = ir.load(path)
    complete(model, (anchor,), statistics(path, ["b_y"], feeds()))
    ir.save(model, tmp_path / "after.onnx")
    assert find_anchors(model)[0] == ()
    assert [o.name for o in model.graph.outputs] == ["b_y"]
    assert fused(tmp_path / "after.onnx").count("QLinearConv") == 1
    ours, theirs = (run(p, feeds()[0])["b_y"] for p in (tmp_path / "after.onnx", path))
    assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()
