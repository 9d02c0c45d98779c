"""Causes are found where they are, and nowhere else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from bench.models import Feeds, read_model
from quantize.anchors import Mode, find_anchors
from quantize.calibrate import calibrate
from quantize.findings import COSTLY, Finding, find_causes
from quantize.placement import watch_list
from quantize.prepare import prepare
from quantize.quantizers import quantize
from quantize.recipe import Recipe
from quantize.trials import Workbench
from tests import tiny
from tests.int8 import make, samples_of


def causes(
    folder: Path, weights: Any, bias: Any, feeds: list[Feeds], target: str = "vnni"
) -> list[Finding]:
    """Findings on a Gemm with these weights [8, 8] and bias [8]."""
    path = tiny.save(
        folder / "net.onnx",
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="dense")],
        [("x", TensorProto.FLOAT, ["n", 8])],
        [("y", TensorProto.FLOAT, ["n", 8])],
        {"w": np.asarray(weights, np.float32), "b": np.asarray(bias, np.float32)},
    )
    fp32 = prepare(read_model(path), folder / "fp32.onnx").model
    graph = ir.load(fp32.path)
    anchors, _ = find_anchors(graph)
    found = calibrate(
        fp32,
        watch_list(graph, anchors),
        samples_of(feeds, fp32.inputs),
        threads=1,
        scratch=folder,
        states={},
    )
    modes: dict[str, Mode] = {"dense": "static"}
    recipe = Recipe(target, "mse", correct_bias=False, modes=modes)
    made = quantize(fp32, anchors, found, recipe, folder / "int8.onnx")
    bench = Workbench(fp32, anchors, found, (), (), ("onnxruntime",), 1, folder)
    return list(find_causes(bench, made))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def normal(rng: np.random.Generator, count: int = 400) -> list[Feeds]:
    return [{"x": rng.standard_normal((1, 8)).astype(np.float32)} for _ in range(count)]


def weights_of(rng: np.random.Generator) -> Any:
    return rng.uniform(-0.5, 0.5, (8, 8))


def test_an_easy_layer_has_none(tmp_path: Path, rng: np.random.Generator) -> None:
    assert causes(tmp_path, weights_of(rng), np.zeros(8), normal(rng)) == []


def test_a_few_outliers_of_the_input_are_named(tmp_path: Path, rng: np.random.Generator) -> None:
    feeds = normal(rng, 4000)
    feeds[7]["x"][0, 0] = 500.0
    (found,) = causes(tmp_path, weights_of(rng), np.zeros(8), feeds)
    assert found.layer == "dense"
    assert found.cause.startswith("outliers: one in ten thousand values")
    assert "(mse)" in found.done


def test_a_dead_input_is_named(tmp_path: Path, rng: np.random.Generator) -> None:
    feeds: list[Feeds] = [{"x": np.zeros((1, 8), np.float32)} for _ in range(4)]
    (found,) = causes(tmp_path, weights_of(rng), np.zeros(8), feeds)
    assert found.cause == "dead range: its input was zero in every one of 4 calibration samples"


def test_a_loud_channel_is_named(tmp_path: Path, rng: np.random.Generator) -> None:
    weights = weights_of(rng)
    weights[:, 5] *= 100
    (found,) = causes(tmp_path, weights, np.zeros(8), normal(rng))
    assert found.cause.startswith("outlier channel: weights of output channel 5")


def test_a_bias_that_overflows_is_named(tmp_path: Path, rng: np.random.Generator) -> None:
    weights, bias = weights_of(rng), np.zeros(8)
    weights[:, 2], bias[2] = 1e-9, 1.0
    found = causes(tmp_path, weights, bias, normal(rng))
    assert "bias overflow: in 1 of 8 channels" in found[0].cause


def test_saturating_pairs_are_named(tmp_path: Path, rng: np.random.Generator) -> None:
    found = causes(tmp_path, np.ones((8, 8)), np.zeros(8), normal(rng), "portable")
    assert [f.cause.partition(":")[0] for f in found] == ["saturating pairs"]
    assert causes(tmp_path, np.ones((8, 8)), np.zeros(8), normal(rng)) == []


def test_an_input_that_is_not_finite_is_counted(tmp_path: Path) -> None:
    feeds: list[Feeds] = [{"x": np.full((1, 8), v, np.float32)} for v in (1.0, 2.0, 0.0, 3.0)]
    nodes = [
        helper.make_node("Log", ["x"], ["l"], name="log"),
        helper.make_node("Gemm", ["l", "w", "b"], ["y"], name="dense"),
        helper.make_node("Gemm", ["x", "w", "b"], ["z"], name="sound"),
    ]
    held = {"w": np.eye(8, dtype=np.float32), "b": np.zeros(8, np.float32)}
    shape = ["n", 8]
    outputs = [(n, TensorProto.FLOAT, shape) for n in "yz"]
    x = [("x", TensorProto.FLOAT, shape)]
    path = tiny.save(tmp_path / "net.onnx", nodes, x, outputs, held)
    made = make(path, feeds, modes={"dense": "static", "sound": "static"})
    bench = Workbench(
        read_model(made.fp32), made.anchors, made.calibration, (), (), (), 1, tmp_path
    )
    (found,) = find_causes(bench, made.quantized)
    cause = "non-finite range: its input was NaN or infinite in 1 of 4 calibration samples"
    assert found == Finding("dense", cause, "it runs in float")


def test_a_layer_that_went_to_float_for_its_noise_tells_why(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "loud"], ["y"], name="loud"),
        helper.make_node("MatMul", ["x", "loud"], ["z"], name="kept"),
        helper.make_node("MatMul", ["x", "w"], ["u"], name="sound"),
    ]
    weights = weights_of(rng).astype(np.float32)
    held = {"w": weights, "loud": weights * np.where(np.arange(8) == 5, 100, 1).astype(np.float32)}
    shape = ["n", 8]
    outputs = [(n, TensorProto.FLOAT, shape) for n in "yzu"]
    x = [("x", TensorProto.FLOAT, shape)]
    path = tiny.save(tmp_path / "net.onnx", nodes, x, outputs, held)
    modes: dict[str, Mode] = {"loud": "float", "kept": "float", "sound": "static"}
    made = make(path, normal(rng), modes=modes)
    bench = Workbench(
        read_model(made.fp32), made.anchors, made.calibration, (), (), (), 1, tmp_path
    )
    # A layer that was left in float for another reason is not hard.
    assert find_causes(bench, made.quantized) == ()
    layers = [
        replace(x, reason=f"{COSTLY}: 90% of the noise") if x.name == "loud" else x
        for x in made.quantized.layers
    ]
    (found,) = find_causes(bench, replace(made.quantized, layers=tuple(layers)))
    assert found.cause.startswith("outlier channel: weights of output channel 5 are 1")
    assert (found.layer, found.done) == ("loud", "it runs in float")
