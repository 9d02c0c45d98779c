"""What holds for every INT8 model, whoever made it."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from bench.errors import InputError, UnsupportedError, UsageError
from bench.models import Feeds, Model, read_model
from quantize.anchors import Anchor, find_anchors
from quantize.calibrate import Calibration, calibrate
from quantize.placement import watch_list
from quantize.quantizers import QUANTIZERS, quantize
from quantize.ranges import minmax_range, mse_range
from quantize.recipe import Engine, Recipe
from tests import tiny
from tests.int8 import File, samples_of

FLOAT = TensorProto.FLOAT
MODES: dict[str, Any] = {"conv": "static", "matmul": "static"}
RECIPE = Recipe("vnni", "minmax", correct_bias=True, modes=MODES)


def net(path: Path, seed: int = 0) -> Model:
    random = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], "conv"),
        helper.make_node("Tanh", ["c"], ["t"], "tanh"),
        helper.make_node("MatMul", ["t", "w"], ["y"], "matmul"),
    ]
    constants = {
        "k": random.standard_normal((2, 3, 3, 3)).astype(np.float32),
        "w": random.standard_normal((4, 5)).astype(np.float32),
    }
    tiny.save(path, nodes, [("x", FLOAT, [1, 3, 6, 6])], [("y", FLOAT, [1, 2, 4, 5])], constants)
    return read_model(path)


def parts(
    folder: Path, feeds: list[Feeds] | None = None
) -> tuple[Model, tuple[Anchor, ...], Calibration]:
    model = net(folder / "fp32.onnx")
    graph = ir.load(model.path)
    anchors, _ = find_anchors(graph)
    random = np.random.default_rng(1)
    feeds = feeds or [
        {"x": random.standard_normal((1, 3, 6, 6)).astype(np.float32)} for _ in range(4)
    ]
    found = calibrate(
        model,
        watch_list(graph, anchors),
        samples_of(feeds, model.inputs),
        threads=1,
        scratch=folder,
        states={},
    )
    return model, anchors, found


def test_an_int8_model_knows_how_it_was_made(tmp_path: Path) -> None:
    model, anchors, found = parts(tmp_path)
    made = quantize(model, anchors, found, RECIPE, tmp_path / "int8.onnx")
    assert made.model == read_model(tmp_path / "int8.onnx")
    assert made.recipe == RECIPE
    assert made.samples_sha256 == found.samples_sha256
    assert [(x.name, x.op, x.mode, x.channels, x.reason) for x in made.layers] == [
        ("conv", "Conv", "static", 2, None),
        ("matmul", "MatMul", "static", 5, None),
    ]
    assert made.int8_layers == 2
    assert set(QUANTIZERS) == set(get_args(Engine))


def test_modes_that_the_recipe_leaves_out_are_float(tmp_path: Path) -> None:
    model, anchors, found = parts(tmp_path)
    only = replace(RECIPE, modes={"matmul": "dynamic"})
    made = quantize(model, anchors, found, only, tmp_path / "int8.onnx")
    assert [x.mode for x in made.layers] == ["float", "dynamic"]
    assert made.int8_layers == 1
    assert made.recipe.modes == {"conv": "float", "matmul": "dynamic"}
    graph = File.read(made.model.path)
    assert graph.nodes("Conv")
    assert not graph.nodes("QuantizeLinear")


def test_ranges_follow_the_recipe_tensor_by_tensor(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    # One value far out, so that the methods differ.
    x = random.standard_normal((1, 3, 6, 6)).astype(np.float32)
    x[0, 0, 0, 0] = 9.0
    feeds = [
        {"x": x},
        *({"x": random.standard_normal(x.shape).astype(np.float32)} for _ in range(999)),
    ]
    model, anchors, found = parts(tmp_path, feeds)
    plain, tight = (f(found.tensors["x"]) for f in (minmax_range, mse_range))
    assert tight.high < plain.high

    def grid(recipe: Recipe) -> np.float32:
        made = quantize(model, anchors, found, recipe, tmp_path / "int8.onnx")
        return File.read(made.model.path).grid("x")[0]

    assert grid(RECIPE) == plain.scale
    assert grid(replace(RECIPE, ranges="mse")) == tight.scale
    assert grid(replace(RECIPE, ranges_by_tensor={anchors[0].name: "mse"})) == tight.scale
    assert (
        grid(replace(RECIPE, ranges="mse", ranges_by_tensor={anchors[0].name: "minmax"}))
        == plain.scale
    )


def test_statistics_of_another_model_are_refused(tmp_path: Path) -> None:
    _, anchors, found = parts(tmp_path)
    other = net(tmp_path / "retrained.onnx", seed=1)
    with pytest.raises(InputError, match=f"{found.model_sha256[:12]}.*Calibrate again"):
        quantize(other, anchors, found, RECIPE, tmp_path / "int8.onnx")
    assert not (tmp_path / "int8.onnx").exists()


def test_nothing_to_quantize_is_unsupported(tmp_path: Path) -> None:
    model, anchors, found = parts(tmp_path)
    with pytest.raises(UnsupportedError, match=r"\(0 of 2\): every layer was kept in float"):
        quantize(model, anchors, found, replace(RECIPE, modes={}), tmp_path / "int8.onnx")
    for stats in found.tensors.values():
        stats.nonfinite = 1
    with pytest.raises(UnsupportedError, match="holds non-finite values"):
        quantize(model, anchors, found, RECIPE, tmp_path / "int8.onnx")


def test_a_mode_that_an_operator_does_not_have_is_a_usage_error(tmp_path: Path) -> None:
    model, anchors, found = parts(tmp_path)
    recipe = replace(RECIPE, modes=MODES | {"conv": "dynamic"})
    with pytest.raises(
        UsageError, match=r"'conv' \(Conv\) cannot be 'dynamic', only static, float"
    ):
        quantize(model, anchors, found, recipe, tmp_path / "int8.onnx")


def test_an_absurd_scale_is_refused_by_name(tmp_path: Path) -> None:
    feeds = [{"x": np.full((1, 3, 6, 6), 1e12, np.float32)}]
    model, anchors, found = parts(tmp_path, feeds)
    with pytest.raises(InputError, match=r"scale 'x_scale' came out as 3.9.*outliers"):
        quantize(model, anchors, found, RECIPE, tmp_path / "int8.onnx")
    assert not (tmp_path / "int8.onnx").exists()
