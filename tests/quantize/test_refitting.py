"""What another package rounded, rounded anew; its files are played by the native engine's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

import quantize.quantizers as quantizers
from bench.models import Feeds, Model, read_model
from quantize.nodes import set_input
from quantize.quantizers.pairs import held, weight_pair
from quantize.quantizers.refitting import refit
from quantize.recipe import Recipe
from tests import tiny
from tests.int8 import Made, make, run

RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.standard_normal((6, 16), np.float32)
BIAS = np.linspace(-20, 20, 6, dtype=np.float32)
# Inputs that go together, far from zero: what learned rounding and a shift of the bias live on.
MIXED = RANDOM.standard_normal((3, 16))


def rows(seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    random = np.random.default_rng(seed)
    return (random.standard_normal((40, 3)) @ MIXED + 6).astype(np.float32)


def feeds_of(op: str, seed: int) -> Feeds:
    x = rows(seed)
    # With three axes, so that MatMul and Add do not become a Gemm.
    return {"x": {"Conv": x.T.reshape(1, 16, 8, 5), "MatMul": x[None]}.get(op, x)}


def written(folder: Path, op: str, *, biased: bool = False, **attributes: Any) -> Made:
    """A model of one layer, and what the native engine makes of it."""
    shape: list[int | str] = {"Conv": ["n", 16, "h", "w"], "Gemm": ["n", 16]}.get(op, [1, "n", 16])
    weights = {"Conv": WEIGHTS[:, :, None, None], "Gemm": WEIGHTS}.get(op, WEIGHTS.T)
    attributes |= {"transB": 1} if op == "Gemm" else {}
    inputs = ["x", "w", *(["b"] if biased else [])]
    nodes = [helper.make_node(op, inputs, ["p"], "layer", **attributes)]
    constants = {"w": np.ascontiguousarray(weights)}
    if op == "MatMul":
        nodes.append(helper.make_node("Add", ["p", "b"], ["y"], "add"))
    if op == "MatMul" or biased:
        constants["b"] = BIAS * biased
    path = tiny.save(
        folder / "model.onnx",
        nodes,
        [("x", TensorProto.FLOAT, shape)],
        [(nodes[-1].output[0], TensorProto.FLOAT, None)],
        constants,
    )
    with pytest.MonkeyPatch.context() as patch:
        # Which comes after the engine, and so after it is refitted.
        patch.setattr(quantizers, "sidestep", lambda _: None)
        return make(path, [feeds_of(op, i) for i in range(8)], mode="static", correct_bias=False)


@pytest.fixture(
    scope="module",
    params=[("Conv", False), ("Conv", True), ("Gemm", False), ("Gemm", True), ("MatMul", False)],
    ids=["Conv", "Conv with a bias", "Gemm", "Gemm with a bias", "MatMul"],
)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    op, biased = request.param
    found = written(tmp_path_factory.mktemp(op), op, biased=biased)
    if biased:
        # The package leaves biases in float.
        model = ir.load(found.path)
        layer = next(n for n in model.graph if n.name == "layer")
        set_input(layer, 2, BIAS, model.graph)
        ir.save(model, found.path)
    return found


def refitted(given: Made, fp32: Model | None = None, **how: Any) -> tuple[Path, ir.Node]:
    """The file and the pair of its weights."""
    model = ir.load(given.path)
    recipe = replace(given.quantized.recipe, **how)
    refit(model, fp32 or read_model(given.fp32), given.anchors, given.calibration, recipe)
    out = given.path.with_name("refitted.onnx")
    ir.save(model, out)
    layer = next(n for n in ir.load(out).graph if n.name == "layer")
    pair = weight_pair(layer)
    assert pair is not None
    return out, pair


def noise(given: Made, path: Path) -> float:
    op = given.anchors[0].op
    feeds = [feeds_of(op, i) for i in range(50, 54)]
    pairs = [(run(given.fp32, f), run(path, f)) for f in feeds]
    return sum(float(np.square(a[n] - b[n]).sum()) for a, b in pairs for n in a)


def codes(given: Made) -> np.ndarray[Any, Any]:
    pair = weight_pair(next(n for n in ir.load(given.path).graph if n.name == "layer"))
    assert pair is not None
    return held(pair.inputs[0])


def test_a_bias_takes_up_the_mean_error(made: Made) -> None:
    path, pair = refitted(made, correct_bias=True)
    np.testing.assert_array_equal(held(pair.inputs[0]), codes(made))
    assert noise(made, path) < 0.9 * noise(made, made.path)


def test_rounding_is_learned(made: Made) -> None:
    path, pair = refitted(made, correct_bias=True, rounding="learned")
    assert (held(pair.inputs[0]) != codes(made)).any()
    assert noise(made, path) < 0.9 * noise(made, made.path)


def test_weights_of_another_layer_are_left_alone(made: Made) -> None:
    fp32 = ir.load(made.fp32)
    for value in fp32.graph.initializers.values():
        if value.const_value is not None and value.const_value.size == WEIGHTS.size:
            value.const_value = ir.Tensor(value.const_value.numpy() * 1.1, name=value.name)
    ir.save(fp32, made.fp32.with_name("other.onnx"))
    other = read_model(made.fp32.with_name("other.onnx"))
    path, pair = refitted(made, other, correct_bias=True, rounding="learned")
    np.testing.assert_array_equal(held(pair.inputs[0]), codes(made))
    assert noise(made, path) == noise(made, made.path)


def test_a_product_that_is_scaled_is_left_alone(tmp_path: Path) -> None:
    made = written(tmp_path, "Gemm")
    model = ir.load(made.path)
    layer = next(n for n in model.graph if n.name == "layer")
    layer.attributes["alpha"] = ir.AttrFloat32("alpha", 0.5)
    before = held(weight_pair(layer).inputs[0])  # type: ignore[union-attr]
    recipe = replace(made.quantized.recipe, correct_bias=True, rounding="learned")
    refit(model, read_model(made.fp32), made.anchors, made.calibration, recipe)
    np.testing.assert_array_equal(held(weight_pair(layer).inputs[0]), before)  # type: ignore[union-attr]
    assert len(layer.inputs) == 2


def test_a_bias_of_integers_stays(tmp_path: Path) -> None:
    made = written(tmp_path, "Conv", biased=True)
    path, _ = refitted(made, correct_bias=True)
    layer = next(n for n in ir.load(path).graph if n.name == "layer")
    bias = layer.inputs[2]
    assert bias is not None
    assert bias.producer() is not None
    assert noise(made, path) == noise(made, made.path)


def test_a_recipe_that_asks_for_neither_changes_nothing(made: Made) -> None:
    path, _ = refitted(made)
    assert noise(made, path) == pytest.approx(noise(made, made.path))


def test_the_name_of_a_recipe_says_that_rounding_was_learned() -> None:
    recipe = Recipe(
        "vnni", "minmax", correct_bias=True, modes={"a": "static"}, engine="inc", rounding="learned"
    )
    assert recipe.name == "static 1; by inc; learned rounding; vnni"
