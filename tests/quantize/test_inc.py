"""Conversions cost seconds, so each test that makes one looks at several properties of it."""

import importlib.util
import logging
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnx_ir.passes import common as passes

from bench.errors import InputError, UnfitError, UnsupportedError, UsageError
from bench.inputs import parse_input
from bench.models import Feeds, Model, read_model
from quantize.anchors import Anchor, find_anchors
from quantize.calibrate import Calibration, calibrate
from quantize.outputs import noise_shares, to_db
from quantize.placement import watch_list
from quantize.prepare import prepare
from quantize.quantizers import QUANTIZERS, QuantizedModel, find_engines, quantize
from quantize.quantizers.exported import take_in_pads
from quantize.recipe import Recipe, fingerprints, fit, recipe_in, to_toml
from quantize.sources import ModelSpec, convert
from quantize.targets import can_saturate
from quantize.trials import Trial, Workbench, run_probes
from quantize.variants import best_variant
from tests import tiny
from tests.int8 import samples_of

pytest.importorskip("torch", reason="needs torch: pip install 'vnnify[torch]'")
needs_inc = pytest.mark.skipif(
    any(importlib.util.find_spec(n) is None for n in ("neural_compressor", "torchao")),
    reason="the package neural-compressor is not installed: pip install '.[inc]'",
)
pytestmark = [
    pytest.mark.slow,
    # torch's own modules, torchao and INC use what Python, torch and numpy deprecate.
    pytest.mark.filterwarnings("ignore"),
]
Parts = tuple[Model, tuple[Anchor, ...], Calibration]

NETS = """
import torch
from torch import nn

class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, image):
        x = self.norm(self.stem(image)).relu()
        x = x + self.point(self.deep(x))
        return self.head(x.mean((2, 3)))

class Text(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(20, 8)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 8)

    def forward(self, ids, mask):
        x = self.table(ids)
        a = self.q(x) @ self.k(x).transpose(1, 2) + (1 - mask[:, None]) * -1e4
        x = self.norm(x + a.softmax(-1) @ self.v(x))
        return {"tokens": self.out(x)}

class Stubborn(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        return self.head(x)

class Loose(Stubborn):
    @torch._dynamo.disable
    def half(self, x):
        return x / 2

    def forward(self, x):
        return self.head(self.half(x))

cnn, text, stubborn, loose = Cnn, Text, Stubborn, Loose
"""


def image(seed: int) -> Feeds:
    return {"image": np.random.default_rng(seed).standard_normal((1, 3, 6, 6), np.float32)}


def words(seed: int) -> Feeds:
    ids = np.random.default_rng(seed).integers(0, 20, (1, 3 + seed % 4))
    return {"ids": ids, "mask": np.ones(ids.shape, np.float32)}


def parts(folder: Path, name: str, feeds: list[Feeds], *inputs: str) -> Parts:
    """A net of `NETS`, prepared and calibrated as the pipeline does it."""
    (folder / "nets.py").write_text(NETS, encoding="utf-8")
    spec = ModelSpec(f"{folder / 'nets.py'}:{name}", inputs=tuple(map(parse_input, inputs)))
    return known(folder, spec, feeds)


def known(folder: Path, spec: ModelSpec, feeds: list[Feeds]) -> Parts:
    samples = samples_of(feeds, spec.inputs)
    (folder / "source").mkdir(exist_ok=True)
    source = convert(spec, samples, folder / "source" / "model.onnx")
    model = prepare(source, folder / "fp32.onnx").model
    graph = ir.load(model.path)
    anchors, _ = find_anchors(graph)
    names = watch_list(graph, anchors)
    found = calibrate(model, names, samples, threads=1, scratch=folder, states={})
    return model, anchors, replace(found, origin=spec)


def recipe(
    anchors: tuple[Anchor, ...], target: str = "vnni", floats: tuple[str, ...] = ()
) -> Recipe:
    modes: dict[str, Any] = {a.name: "float" if a.name in floats else "static" for a in anchors}
    return Recipe(target, "minmax", correct_bias=True, modes=modes, engine="inc")


def made(given: Parts, *about: Any) -> QuantizedModel:
    model, anchors, found = given
    return quantize(
        model, anchors, found, recipe(anchors, *about), model.path.with_name("int8.onnx")
    )


def noise_db(given: Parts, quantized: QuantizedModel, feeds: list[Feeds]) -> float:
    wanted = run_probes(given[0], feeds, 1)
    return to_db(noise_shares(wanted, run_probes(quantized.model, feeds, 1)))


def layer(quantized: QuantizedModel, name: str) -> ir.Node:
    return next(n for n in ir.load(quantized.model.path).graph if n.name == name)


def codes(quantized: QuantizedModel) -> list[np.ndarray[Any, np.dtype[np.int8]]]:
    held = [v.const_value for v in ir.load(quantized.model.path).graph.initializers.values()]
    found = [t.numpy() for t in held if t is not None and t.dtype == ir.DataType.INT8]
    return [c for c in found if c.ndim > 1]


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    feeds = [image(i) for i in range(8)]
    return parts(tmp_path_factory.mktemp("cnn"), "cnn", feeds, "image:f32[N,3,H,W]")


@needs_inc
def test_every_layer_is_quantized_under_its_own_name(cnn: Parts, capfd: Any) -> None:
    found = made(cnn)
    assert [(x.name, x.mode) for x in found.layers] == [(a.name, "static") for a in cnn[1]]
    assert [x.channels for x in found.layers] == [8, 8, 8, 5]
    assert [c.shape for c in codes(found)] == [(8, 3, 3, 3), (8, 1, 3, 3), (8, 8, 1, 1), (5, 8)]
    assert noise_db(cnn, found, [image(i) for i in range(20, 24)]) > 15
    # Batch, height and width stay as free as they were.
    assert [s.shape for s in found.model.inputs] == [s.shape for s in cnn[0].inputs]
    two = {"image": np.concatenate([image(1)["image"]] * 2).repeat(2, axis=3)}
    assert run_probes(found.model, [two], 1)[0].keys() == run_probes(cnn[0], [two], 1)[0].keys()
    assert {n.op_type for n in ir.load(found.model.path).graph} <= {
        *("QuantizeLinear", "DequantizeLinear", "Conv", "Relu", "Add", "Gemm"),
        *("GlobalAveragePool", "Reshape", "Flatten", "Squeeze", "Shape", "ReduceMean"),
    }
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""


@needs_inc
def test_weights_are_those_of_the_layer_and_activations_unsigned(cnn: Parts) -> None:
    found = made(cnn)
    before = {str(n.name): n for n in ir.load(cnn[0].path).graph}
    for anchor in cnn[1]:
        pair = layer(found, anchor.name).inputs[1].producer()  # type: ignore[union-attr]
        assert pair is not None
        values, scales, points = (v.const_value.numpy() for v in pair.inputs)  # type: ignore[union-attr]
        assert not points.any()
        wanted = before[anchor.name].inputs[1].const_value.numpy()  # type: ignore[union-attr]
        again = values * scales.reshape(-1, *[1] * (values.ndim - 1))
        assert np.abs(again - wanted).max() <= scales.max() * 0.51
    points = [n.inputs[2] for n in ir.load(found.model.path).graph if n.op_type == "QuantizeLinear"]
    assert points
    assert all(p is not None and p.dtype == ir.DataType.UINT8 for p in points)
    assert len({p.name for p in points if p is not None}) == len(points)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    ort.InferenceSession(str(found.model.path), options, providers=["CPUExecutionProvider"])


@needs_inc
def test_ranges_hold_all_that_the_samples_showed(tmp_path: Path) -> None:
    feeds = [{"x": np.full((1, 4), high, np.float32)} for high in (1.0, -3.0, 7.0)]
    found = made(parts(tmp_path, "stubborn", feeds, "x:f32[N,4]"))
    first = next(n for n in ir.load(found.model.path).graph if n.op_type == "QuantizeLinear")
    scale, point = (v.const_value.numpy() for v in first.inputs[1:])  # type: ignore[union-attr]
    assert scale == pytest.approx(10 / 255)
    assert point == round(3 / scale)


@needs_inc
def test_a_layer_in_float_has_its_weights_and_its_input_back(cnn: Parts) -> None:
    depthwise = cnn[1][1].name
    found = made(cnn, "vnni", (depthwise,))
    assert found.recipe.modes[depthwise] == "float"
    assert found.int8_layers == 3
    node = layer(found, depthwise)
    held = node.inputs[1].const_value  # type: ignore[union-attr]
    assert held is not None
    assert held.dtype == ir.DataType.FLOAT
    maker = node.inputs[0].producer()  # type: ignore[union-attr]
    assert maker is not None
    assert maker.op_type != "DequantizeLinear"
    assert noise_db(cnn, found, [image(30)]) > 15
    with pytest.raises(UnsupportedError, match="none of the 4 layers"):
        made(cnn, "vnni", tuple(a.name for a in cnn[1]))


@needs_inc
def test_a_portable_model_cannot_saturate(cnn: Parts) -> None:
    assert any(can_saturate(c.reshape(len(c), -1)).any() for c in codes(made(cnn)))
    found = made(cnn, "portable")
    # Depthwise kernels cannot: the second layer's weights, [8, 1, 3, 3], keep 8 bits.
    assert [i for i, c in enumerate(codes(found)) if can_saturate(c).any()] == [1]
    assert noise_db(cnn, found, [image(40)]) > 12


@needs_inc
def test_its_recipe_makes_the_same_file_again(cnn: Parts, tmp_path: Path) -> None:
    model, anchors, found = cnn
    first = made(cnn, "portable", (anchors[0].name,))
    marks = fingerprints(ir.load(model.path), anchors)
    read = fit(recipe_in(tomllib.loads(to_toml(first.recipe, marks, {})), "r"), marks)
    fresh = calibrate(
        model,
        list(found.tensors),
        found.source,  # type: ignore[arg-type]
        threads=1,
        scratch=tmp_path,
        states={},
    )
    again = quantize(
        model, anchors, replace(fresh, origin=found.origin), read, tmp_path / "again.onnx"
    )
    assert again.recipe == first.recipe
    assert again.model.sha256 == first.model.sha256


@pytest.mark.parametrize(("value", "left"), [(0.0, 0), (1.0, 1)])
def test_zeros_before_a_pair_are_padded_by_the_convolution(
    tmp_path: Path, value: float, left: int
) -> None:
    nodes = [
        helper.make_node("Pad", ["x", "pads", "value"], ["p"], "pad"),
        helper.make_node("QuantizeLinear", ["p", "s", "z"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "dequantize"),
        helper.make_node("Conv", ["d", "w"], ["y"], "conv", pads=[1, 0, 0, 0], auto_pad="NOTSET"),
    ]
    constants = {
        "pads": np.array([0, 0, 1, 2, 0, 0, 0, 3]),
        "value": np.float32(value),
        "s": np.float32(0.02),
        "z": np.uint8(100),
        "w": np.random.default_rng(0).standard_normal((2, 3, 3, 3), np.float32),
    }
    ports: list[Any] = [("x", TensorProto.FLOAT, [1, 3, 6, 6]), ("y", TensorProto.FLOAT, None)]
    path = tiny.save(tmp_path / "pad.onnx", nodes, ports[:1], ports[1:], constants)
    model = ir.load(path)
    take_in_pads(model)
    passes.RemoveUnusedNodesPass()(model)
    assert sum(n.op_type == "Pad" for n in model.graph) == left
    ir.save(model, tmp_path / "after.onnx")
    feeds = {"x": image(0)["image"]}
    one, two = (
        ort.InferenceSession(str(p), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for p in (path, tmp_path / "after.onnx")
    )
    np.testing.assert_allclose(one, two, atol=1e-5)


@needs_inc
def test_layers_of_a_transformer_are_found_behind_their_transposes(tmp_path: Path) -> None:
    feeds = [words(i) for i in range(6)]
    given = parts(tmp_path, "text", feeds, "ids:i64[N,T]", "mask:f32[N,T]")
    found = made(given)
    assert {x.mode for x in found.layers} == {"static"}
    assert all(c.shape == (8, 8) for c in codes(found))
    assert noise_db(given, found, [words(i) for i in range(10, 16)]) > 15


@needs_inc
def test_a_module_that_only_a_loose_trace_takes_is_told_with_its_reason(tmp_path: Path) -> None:
    given = parts(tmp_path, "loose", [{"x": np.ones((1, 4), np.float32)}] * 2, "x:f32[N,4]")
    with pytest.raises(UnsupportedError, match=r"cannot trace it strictly: Export with .*native"):
        made(given)


@needs_inc
def test_what_pt2e_cannot_take_is_told_with_its_reason(
    cnn: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import neural_compressor.torch.quantization as package

    def fail(*_: object, **__: object) -> None:
        raise KeyError("an operator\nof its own")

    given = parts(tmp_path, "stubborn", [{"x": np.ones((1, 4), np.float32)}] * 2, "x:f32[N,4]")
    with monkeypatch.context() as patch:
        patch.setattr(package, "prepare", fail)
        with pytest.raises(UnsupportedError, match=r"cannot quantize this model: KeyError: .*nat"):
            made(given)
    # `export` returns nothing and tells why in its log alone.
    refused = "Failed to export the model: it branches"

    def silent(*_: object, **__: object) -> None:
        logging.getLogger("neural_compressor").error(refused)
        raise RuntimeError("Check the logs above")

    monkeypatch.setattr("neural_compressor.torch.export.export", silent)
    with pytest.raises(UnsupportedError, match=refused):
        made(given)


@pytest.fixture
def onnx_only(tmp_path: Path) -> Parts:
    path = tiny.save(
        tmp_path / "model.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"], "matmul")],
        [("x", TensorProto.FLOAT, ["n", 4])],
        [("y", TensorProto.FLOAT, ["n", 4])],
        {"w": np.eye(4, dtype=np.float32)},
    )
    model = read_model(path)
    spec = ModelSpec(str(path), inputs=model.inputs)
    return known(tmp_path, spec, [{"x": np.ones((1, 4), np.float32)}] * 2)


@pytest.mark.parametrize("file", ["model.onnx", "net.pt2"])
def test_a_file_is_refused_with_what_to_do(file: str) -> None:
    with pytest.raises(UsageError, match=rf"{file}: .*file\.py:factory.*Give the function"):
        find_engines(("inc",), ModelSpec(file))


def test_without_a_module_it_makes_nothing(onnx_only: Parts) -> None:
    bare = (onnx_only[0], onnx_only[1], replace(onnx_only[2], origin=None))
    with pytest.raises(InputError, match="Calibrate again"):
        made(bare)


def test_the_reason_of_the_only_engine_reaches_the_user(
    onnx_only: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, anchors, found = onnx_only
    bench = Workbench(model, anchors, found, (), (), ("onnxruntime",), 1, tmp_path)
    plan = recipe(anchors)
    refused = UnsupportedError("PT2E cannot take it")

    def refuse(*_: object) -> None:
        raise refused

    monkeypatch.setitem(QUANTIZERS, "inc", refuse)
    with pytest.raises(UnsupportedError, match="PT2E cannot take it"):
        best_variant(replace(bench, engines=("inc",)), plan, "inc")
    # Beside another engine it is one candidate less.
    assert best_variant(replace(bench, engines=("native", "inc")), plan, "inc") is None


@pytest.mark.parametrize(
    ("engine", "noise_db", "tried"),
    [
        ("inc", 20.0, ["nearest", "learned"]),
        ("inc", 40.0, ["nearest"]),
        # It rounds by itself.
        ("nncf", 20.0, ["nearest"]),
    ],
)
def test_rounding_is_learned_where_the_engine_is_noisy(
    onnx_only: Parts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: Any,
    noise_db: float,
    tried: list[str],
) -> None:
    model, anchors, found = onnx_only
    bench = Workbench(model, anchors, found, (), (), ("onnxruntime",), 1, tmp_path)
    seen: list[Recipe] = []

    def attempt(_: Workbench, plan: Recipe, name: str) -> Trial:
        seen.append(plan)
        file = replace(model, path=tmp_path / plan.rounding, sha256=plan.rounding)
        return Trial(name, QuantizedModel(file, plan, (), ""), noise_db + len(seen), {})

    monkeypatch.setattr("quantize.variants.attempt", attempt)
    monkeypatch.setattr("quantize.variants.attempt_or_none", attempt)
    plan = replace(recipe(anchors), engine=engine)
    best = best_variant(replace(bench, engines=(engine,)), plan, engine)
    assert [r.rounding for r in seen] == tried
    assert best is not None
    assert best.quantized.recipe.rounding == tried[-1]


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "neural_compressor", None)
    monkeypatch.setitem(sys.modules, "neural_compressor.common", None)
    with pytest.raises(UnfitError, match=r"pip install 'vnnify\[inc\]'"):
        find_engines(("inc",), ModelSpec("net.py:build"))


@needs_inc
def test_importing_it_prints_nothing() -> None:
    code = "import quantize.quantizers.inc as ours; ours.require(); ours.require()"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout == done.stderr == ""
