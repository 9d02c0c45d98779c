"""A range method per tensor, by what it does to the layers that read it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from bench.models import read_model
from quantize.quantizers.choosing import least_error_ranges
from quantize.ranges import RANGE_METHODS
from quantize.recipe import Recipe
from tests import tiny
from tests.int8 import Made, make

FLOAT = TensorProto.FLOAT


def siblings(path: Path) -> Path:
    """Two products of one tensor whose outliers meet weights of zero, and one of another tensor."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["p"], "first"),
        helper.make_node("MatMul", ["x", "w"], ["q"], "second"),
        helper.make_node("MatMul", ["z", "w"], ["r"], "third"),
    ]
    ports = [("x", FLOAT, ["n", 8]), ("z", FLOAT, ["n", 8])]
    outputs = [(name, FLOAT, None) for name in "pqr"]
    constants = {n: random.standard_normal((8, 4)).astype(np.float32) for n in "vw"}
    for values in constants.values():
        values[0] = 0
    return tiny.save(path, nodes, ports, outputs, constants)


def calibrated(path: Path) -> Made:
    random = np.random.default_rng(1)
    feeds = []
    for i in range(40):
        x = random.standard_normal((50, 8)).astype(np.float32)
        x[0, 0] = 60 if i % 10 == 0 else 0
        # Two values, so that nothing can be cut off.
        z = np.where(random.random((50, 8)) < 0.5, -1, 1).astype(np.float32)
        feeds.append({"x": x, "z": z})
    return make(siblings(path), feeds, ranges="minmax")


def test_each_tensor_gets_the_method_that_hurts_its_readers_least(tmp_path: Path) -> None:
    made = calibrated(tmp_path / "m.onnx")
    recipe = made.quantized.recipe
    fp32 = read_model(made.fp32)
    found = least_error_ranges(fp32, made.anchors, made.calibration, recipe)
    # Readers of one tensor decide together; the first stands for it.
    assert set(found) == {"first"}
    seen = made.calibration.tensors["x"]
    chosen = RANGE_METHODS[found["first"]](seen)
    assert chosen.high < seen.high
    # With that method for all, nothing is left to choose for this tensor.
    again = replace(recipe, ranges=found["first"])
    assert "first" not in least_error_ranges(fp32, made.anchors, made.calibration, again)


def test_only_layers_with_codes_of_their_own_are_looked_at(tmp_path: Path) -> None:
    made = calibrated(tmp_path / "m.onnx")
    fp32 = read_model(made.fp32)
    dynamic = Recipe("vnni", "minmax", correct_bias=True, modes={"first": "dynamic"})
    assert least_error_ranges(fp32, made.anchors, made.calibration, dynamic) == {}
    unknown = replace(made.calibration, rows=None)
    assert least_error_ranges(fp32, made.anchors, unknown, made.quantized.recipe) == {}
