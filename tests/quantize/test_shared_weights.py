"""Weights that several layers read, as in ALBERT, are stored once in INT8 too."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from bench.models import read_model
from bench.runtimes import installed_runtimes
from quantize.anchors import Mode, find_anchors
from quantize.equalize import find_groups
from quantize.quantizers import quantize
from quantize.recipe import Recipe
from quantize.sources import ModelSpec, convert
from quantize.trials import noise_shares, run_probes, to_db
from tests import tiny
from tests.int8 import Made, make, run, samples_of

FLOAT = TensorProto.FLOAT
WIDTH, LAYERS = 128, 6
RNG = np.random.default_rng(0)
MIXED = RNG.standard_normal((3, WIDTH))


def correlated() -> np.ndarray[Any, Any]:
    """Inputs that go together, as real ones do: learned rounding makes use of that."""
    x = RNG.standard_normal((1, 8, 3)) @ MIXED + 0.05 * RNG.standard_normal((1, 8, WIDTH)) + 1
    return np.asarray(x, np.float32)


SAMPLES = [{"x": correlated()} for _ in range(40)]


def layers(path: Path, count: int = LAYERS) -> Path:
    """Products of the same weights, one after the other, each with a normalization behind it."""
    nodes, last = [], "x"
    for i in range(count):
        nodes += [
            helper.make_node("MatMul", [last, "w"], [f"m{i}"], f"product{i}"),
            helper.make_node("Add", [f"m{i}", "b"], [f"a{i}"], f"add{i}"),
            helper.make_node("LayerNormalization", [f"a{i}", "g", "z"], [f"n{i}"], f"norm{i}"),
        ]
        last = f"n{i}"
    nodes.append(helper.make_node("Identity", [last], ["y"], "end"))
    held = {
        "w": (RNG.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32),
        "b": RNG.standard_normal(WIDTH).astype(np.float32),
        "g": np.ones(WIDTH, np.float32),
        "z": np.zeros(WIDTH, np.float32),
    }
    ends = [("x", FLOAT, [1, 8, WIDTH])], [("y", FLOAT, [1, 8, WIDTH])]
    return tiny.save(path, nodes, *ends, held, opset=17)


def learned(made: Made, mode: Mode, out: Path) -> Path:
    modes: dict[str, Mode] = {a.name: mode for a in made.anchors}
    recipe = Recipe("vnni", "mse", correct_bias=True, modes=modes, rounding="learned")
    return quantize(read_model(made.fp32), made.anchors, made.calibration, recipe, out).model.path


def tables(path: Path) -> list[str]:
    """Initializers of codes of large weights."""
    held = onnx.load(path).graph.initializer
    return [t.name for t in held if t.data_type == TensorProto.INT8 and len(t.dims) == 2]


def unshared(path: Path, out: Path) -> Path:
    """The same model with codes of its own for each layer."""
    model = onnx.load(path)
    held = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name in held and len(held[name].dims) == 2:
                copy = model.graph.initializer.add()
                copy.CopyFrom(held[name])
                copy.name = node.input[i] = f"{name}_of_{node.name}"
    onnx.save(model, out)
    return out


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_codes_are_stored_once_and_compute_the_same(tmp_path: Path, mode: Mode) -> None:
    made = make(layers(tmp_path / "m.onnx"), SAMPLES, mode=mode)
    assert made.modes == [mode] * LAYERS
    assert len(tables(made.path)) == 1
    apart = unshared(made.path, tmp_path / "apart.onnx")
    assert len(tables(apart)) > LAYERS
    for feeds in SAMPLES[:3]:
        np.testing.assert_array_equal(run(made.path, feeds)["y"], run(apart, feeds)["y"])


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_rounding_is_not_learned_for_each_reader(tmp_path: Path, mode: Mode) -> None:
    made = make(layers(tmp_path / "m.onnx"), SAMPLES, mode=mode)
    assert len(tables(learned(made, mode, tmp_path / "learned.onnx"))) == 1


def test_small_weights_are_rounded_for_each_reader(tmp_path: Path) -> None:
    # Two readers of 16 kB: what is learned for each of them costs little.
    made = make(layers(tmp_path / "m.onnx", 2), SAMPLES, mode="static")
    assert len(tables(made.path)) == 1
    assert len(tables(learned(made, "static", tmp_path / "learned.onnx"))) == 2


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_cpus_that_saturate_judge_shared_codes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    made = make(layers(tmp_path / "m.onnx"), SAMPLES, mode=mode)
    here = [run(made.path, feeds)["y"] for feeds in SAMPLES[:3]]
    monkeypatch.setattr("bench.machine.canary", lambda _: "saturating")
    there = [run(made.path, feeds)["y"] for feeds in SAMPLES[:3]]
    np.testing.assert_allclose(there, here, atol=1e-5)


def test_channels_are_not_evened_out_where_that_copies_weights(tmp_path: Path) -> None:
    alone, shared = (
        ir.load(make(layers(tmp_path / f"{n}.onnx", n), SAMPLES).fp32) for n in (1, LAYERS)
    )
    # The input of the model cannot be divided; a Mul could divide it in front of the product.
    assert find_groups(alone, find_anchors(alone)[0])
    assert not find_groups(shared, find_anchors(shared)[0])


ALBERT = """
import torch

class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.wide, self.back = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)
        self.first, self.second = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
        x = self.first(x + self.out(weights @ v))
        return self.second(x + self.back(torch.nn.functional.gelu(self.wide(x))))

class Albert(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.block, self.head = Block(128), torch.nn.Linear(128, 4)

    def forward(self, x):
        for _ in range(4):
            x = self.block(x)
        return self.head(x[:, 0])
"""


def test_an_albert_of_pytorch_shrinks(tmp_path: Path) -> None:
    (tmp_path / "albert.py").write_text(ALBERT, encoding="utf-8")
    feeds: list[dict[str, Any]] = [{"x": s["x"]} for s in SAMPLES]
    inputs = (read_model(layers(tmp_path / "i.onnx")).inputs[0],)
    spec = ModelSpec(f"{tmp_path}/albert.py:Albert")
    source = convert(spec, samples_of(feeds, inputs), tmp_path / "source" / "m.onnx")
    made = make(source.path, feeds, mode="static")
    assert "float" not in made.modes
    assert made.quantized.model.size_bytes < 0.45 * made.fp32.stat().st_size
    rounded = learned(made, "static", tmp_path / "learned.onnx")
    assert rounded.stat().st_size < 0.45 * made.fp32.stat().st_size
    wanted = run_probes(read_model(made.fp32), feeds, 1)
    assert to_db(noise_shares(wanted, run_probes(made.quantized.model, feeds, 1))) > 20
    if "openvino" in installed_runtimes():
        from bench.runtimes import RUNTIMES, Settings

        session = RUNTIMES["openvino"].open(made.path, Settings(threads=1))
        assert to_db(noise_shares(wanted, [session.run(f) for f in feeds])) > 20
