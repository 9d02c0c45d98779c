"""NNCF as an engine: our samples, our conditions, its quantization."""

import hashlib
import importlib.util
import logging
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from bench.errors import InputError, UnfitError, UnsupportedError, UsageError
from bench.models import Feeds, Model, read_model
from quantize.anchors import Anchor, find_anchors
from quantize.calibrate import Calibration, calibrate
from quantize.outputs import noise_shares, to_db
from quantize.placement import watch_list
from quantize.quantizers import QuantizedModel, find_engines, nncf, pairs, quantize
from quantize.quantizers.feeding import Replay
from quantize.recipe import Recipe, fingerprints, fit, recipe_in, to_toml
from quantize.sources import ModelSpec
from quantize.targets import can_saturate
from quantize.trials import run_probes
from tests import tiny
from tests.int8 import File, samples_of

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
ONNX = ModelSpec("net.onnx")

needs_nncf = pytest.mark.skipif(
    importlib.util.find_spec("nncf") is None,
    reason="the package nncf is not installed: pip install '.[nncf]'",
)
Parts = tuple[Model, tuple[Anchor, ...], Calibration]


def random(*shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def cnn(path: Path) -> Path:
    """Two convolutions, a pooled product: x float32 [1, 3, h, w] with h and w free."""
    nodes = [
        helper.make_node("Conv", ["x", "k", "b"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "d"], ["e"], "depthwise", group=8),
        helper.make_node("GlobalAveragePool", ["e"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w"], ["y"], "gemm"),
    ]
    constants = {
        "k": random(8, 3, 3, 3),
        "b": random(8, seed=1),
        "d": random(8, 1, 3, 3, seed=2),
        "w": random(8, 5, seed=3),
    }
    return tiny.save(
        path, nodes, [("x", FLOAT, [1, 3, "h", "w"])], [("y", FLOAT, [1, 5])], constants
    )


def images(count: int, *, ragged: bool = False) -> list[Feeds]:
    sides = [6 + (i % 3 if ragged else 0) for i in range(count)]
    return [{"x": random(1, 3, s, s, seed=i)} for i, s in enumerate(sides)]


def parts(path: Path, feeds: list[Feeds], states: Mapping[str, str] | None = None) -> Parts:
    model = read_model(path)
    graph = ir.load(path)
    anchors, _ = find_anchors(graph)
    samples = samples_of(feeds, model.inputs)
    names = watch_list(graph, anchors)
    found = calibrate(model, names, samples, threads=1, scratch=path.parent, states=states or {})
    return model, anchors, found


def made(known: Parts, target: str = "vnni", floats: tuple[str, ...] = ()) -> QuantizedModel:
    model, anchors, found = known
    modes: dict[str, Any] = {
        a.name: "float" if a.name in floats or "static" not in a.modes else "static"
        for a in anchors
    }
    recipe = Recipe(target, "minmax", correct_bias=True, modes=modes, engine="nncf")
    return quantize(model, anchors, found, recipe, model.path.with_name("int8.onnx"))


def noise_db(known: Parts, quantized: QuantizedModel, feeds: list[Feeds]) -> float:
    wanted = run_probes(known[0], feeds, 1)
    return to_db(noise_shares(wanted, run_probes(quantized.model, feeds, 1)))


@needs_nncf
def test_it_quantizes_what_it_was_asked_to(tmp_path: Path) -> None:
    known = parts(cnn(tmp_path / "fp32.onnx"), images(8))
    found = made(known)
    assert [(x.name, x.mode, x.channels, x.narrowed) for x in found.layers] == [
        ("conv", "static", 8, 0),
        ("depthwise", "static", 8, 0),
        ("gemm", "static", 5, 0),
    ]
    assert found.recipe.engine == "nncf"
    assert found.samples_sha256 == known[2].samples_sha256
    assert noise_db(known, found, images(4)) > 5


@needs_nncf
def test_its_recipe_makes_the_same_file_again(tmp_path: Path) -> None:
    known = parts(cnn(tmp_path / "fp32.onnx"), images(4))
    model, anchors, found = known
    first = made(known, "portable", floats=("gemm",))
    marks = fingerprints(ir.load(model.path), anchors)
    recipe = fit(recipe_in(tomllib.loads(to_toml(first.recipe, marks, {})), "r"), marks)
    again = quantize(model, anchors, found, recipe, tmp_path / "again.onnx")
    assert again.recipe == first.recipe
    assert again.model.sha256 == first.model.sha256


@needs_nncf
def test_layers_kept_in_float_stay_in_float(tmp_path: Path) -> None:
    known = parts(cnn(tmp_path / "fp32.onnx"), images(4))
    found = made(known, floats=("conv",))
    assert found.recipe.modes == {"conv": "float", "depthwise": "static", "gemm": "static"}
    file = File.read(found.model.path)
    (conv,) = (n for n in file.nodes("Conv") if n.name == "conv")
    assert conv.input[1] == "k"


@needs_nncf
def test_a_portable_model_cannot_saturate(tmp_path: Path) -> None:
    known = parts(cnn(tmp_path / "fp32.onnx"), images(4))
    loose, tight = (_weights(made(known, target)) for target in ("vnni", "portable"))
    assert any(can_saturate(w).any() for w in loose)
    # Depthwise kernels cannot: their weights, [8, 1, 3, 3], keep 8 bits.
    assert [can_saturate(w).any() for w in tight] == [w.shape[1:2] == (1,) for w in tight]
    found = made(known, "portable")
    assert all(x.narrowed == x.channels > 0 for x in found.layers if x.name != "depthwise")
    assert noise_db(known, found, images(4)) > 5


def _weights(quantized: QuantizedModel) -> list[np.ndarray[Any, np.dtype[np.int8]]]:
    held = [v.const_value for v in ir.load(quantized.model.path).graph.initializers.values()]
    codes = [t.numpy() for t in held if t is not None and t.dtype == ir.DataType.INT8]
    return [c for c in codes if c.ndim > 1]


@needs_nncf
def test_activations_are_unsigned_and_mean_the_same(tmp_path: Path) -> None:
    known = parts(cnn(tmp_path / "fp32.onnx"), images(4))
    path = made(known).model.path
    plain = ir.load(path)
    points = [n.inputs[2] for n in plain.graph if n.op_type == "QuantizeLinear"]
    assert points
    assert all(p is not None and p.dtype == ir.DataType.UINT8 for p in points)


def test_writing_signed_codes_as_unsigned_changes_no_value(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], "dequantize"),
    ]
    constants = {"s": np.float32(0.1), "z": np.int8(-7)}
    ports: tuple[tiny.Port, tiny.Port] = (("x", FLOAT, ["n"]), ("y", FLOAT, ["n"]))
    path = tiny.save(tmp_path / "signed.onnx", nodes, [ports[0]], [ports[1]], constants)
    model = ir.load(path)
    pairs.unsign(model)
    out = tmp_path / "unsigned.onnx"
    ir.save(model, out)
    feeds = {"x": np.linspace(-20, 20, 999, dtype=np.float32)}
    one, two = (
        ort.InferenceSession(str(p), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for p in (path, out)
    )
    assert np.array_equal(one, two)
    assert model.graph.initializers["z"].dtype == ir.DataType.UINT8


@needs_nncf
def test_the_exact_mode_takes_the_file_and_no_two_tensors_share_a_zero_point(
    tmp_path: Path,
) -> None:
    known = parts(cnn(tmp_path / "fp32.onnx"), images(4))
    path = made(known).model.path
    owners: dict[str, set[str]] = {}
    for node in ir.load(path).graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            quantizes = node.op_type == "QuantizeLinear"
            codes = node.outputs[0] if quantizes else node.inputs[0]
            point = node.inputs[2]
            assert codes is not None
            assert point is not None
            owners.setdefault(str(point.name), set()).add(str(codes.name))
    assert owners
    assert all(len(o) == 1 for o in owners.values())
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert np.isfinite(session.run(None, images(1)[0])[0]).all()


def test_a_shared_zero_point_is_copied_for_each_tensor(tmp_path: Path) -> None:
    """Written by hand: the NNCF of today names its constants apart, but does not promise to."""
    path = tiny.qdq_matmul(tmp_path / "shared.onnx", np.ones((4, 3), np.int8))
    after = ir.load(path)
    pairs.own_constants(after)
    found = [n for n in after.graph if n.op_type.endswith("Linear")]
    scales = [str(n.inputs[1].name) for n in found if n.inputs[1] is not None]
    # The pair of x keeps the one scale of before; the weights have their own now.
    assert scales[0] == scales[1] != scales[2]
    out = tmp_path / "apart.onnx"
    ir.save(after, out)
    feeds = {"x": np.array([[1, 2, 3, 4]], np.float32)}
    (one,), (two,) = (
        ort.InferenceSession(str(p), providers=["CPUExecutionProvider"]).run(None, feeds)
        for p in (path, out)
    )
    assert np.array_equal(one, two)


@needs_nncf
def test_samples_of_many_shapes_calibrate(tmp_path: Path) -> None:
    feeds = images(6, ragged=True)
    known = parts(cnn(tmp_path / "fp32.onnx"), feeds)
    assert noise_db(known, made(known), feeds) > 5


@needs_nncf
def test_several_inputs_of_several_types_calibrate(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["t"], "look"),
        helper.make_node("Add", ["t", "x"], ["s"], "add"),
        helper.make_node("MatMul", ["s", "w"], ["y"], "matmul"),
    ]
    path = tiny.save(
        tmp_path / "fp32.onnx",
        nodes,
        [("ids", INT64, [1, "n"]), ("x", FLOAT, [1, "n", 8])],
        [("y", FLOAT, [1, "n", 4])],
        {"table": random(10, 8), "w": random(8, 4, seed=1)},
    )
    feeds = [
        {"ids": np.arange(n, dtype=np.int64)[None] % 10, "x": random(1, n, 8, seed=n)}
        for n in (3, 5, 4, 6)
    ]
    known = parts(path, feeds)
    assert noise_db(known, made(known), feeds) > 5


def recurrent(path: Path) -> Path:
    """`state_out = y = w · (x + state)`, with w large, so that states outgrow every x."""
    nodes = [
        helper.make_node("Add", ["x", "state"], ["s"], "add"),
        helper.make_node("MatMul", ["s", "w"], ["y"], "matmul"),
        helper.make_node("Identity", ["y"], ["state_out"], "keep"),
    ]
    ports: list[tiny.Port] = [("x", FLOAT, [1, 4]), ("state", FLOAT, [1, 4])]
    results: list[tiny.Port] = [("y", FLOAT, [1, 4]), ("state_out", FLOAT, [1, 4])]
    return tiny.save(path, nodes, ports, results, {"w": 2 * np.eye(4, dtype=np.float32)})


@needs_nncf
def test_states_are_carried_while_it_calibrates(tmp_path: Path) -> None:
    feeds: list[Feeds] = [
        {"x": np.ones((1, 4), np.float32), "state": np.zeros((1, 4), np.float32)}
    ] * 5
    known = parts(recurrent(tmp_path / "fp32.onnx"), feeds, {"state_out": "state"})
    source = known[2].source
    assert source is not None
    seen = list(Replay(known[0], source, {"state_out": "state"}))
    assert [float(f["state"][0, 0]) for f in seen] == [0, 2, 6, 14, 30]
    # And again from the start: NNCF reads the samples once for each of its algorithms.
    again = Replay(known[0], source, {"state_out": "state"})
    assert [float(f["state"][0, 0]) for f in again] == [0, 2, 6, 14, 30]
    found = made(known)
    late: Feeds = {"x": np.ones((1, 4), np.float32), "state": np.full((1, 4), 12.0, np.float32)}
    (answer,) = run_probes(found.model, [late], 1)
    # Ranges of x alone would clip 13 to 1.
    assert answer["y"][0, 0] > 20


@needs_nncf
def test_attention_is_quantized_as_a_transformer(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "wq"], ["q"], "q"),
        helper.make_node("MatMul", ["x", "wk"], ["k"], "k"),
        helper.make_node("Transpose", ["k"], ["kt"], "turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["a"], "scores"),
        helper.make_node("Softmax", ["a"], ["p"], "softmax", axis=-1),
        helper.make_node("MatMul", ["p", "x"], ["v"], "mix"),
        helper.make_node("MatMul", ["v", "wo"], ["y"], "out"),
    ]
    constants = {n: random(8, 8, seed=i) for i, n in enumerate(("wq", "wk", "wo"))}
    path = tiny.save(
        tmp_path / "fp32.onnx",
        nodes,
        [("x", FLOAT, [1, "n", 8])],
        [("y", FLOAT, [1, "n", 8])],
        constants,
    )
    assert nncf._has_attention(ir.load(path))
    assert not nncf._has_attention(ir.load(cnn(tmp_path / "cnn.onnx")))
    feeds = [{"x": random(1, n, 8, seed=n)} for n in (3, 5, 4)]
    known = parts(path, feeds)
    assert noise_db(known, made(known), feeds) > 5


@needs_nncf
def test_what_nncf_cannot_do_is_unsupported(tmp_path: Path) -> None:
    model, anchors, found = parts(cnn(tmp_path / "fp32.onnx"), images(2))
    with pytest.raises(UnsupportedError, match="none of the 3 layers"):
        made((model, anchors, found), floats=("conv", "depthwise", "gemm"))
    large = replace(model, size_bytes=3 << 30)
    with pytest.raises(UnsupportedError, match=r"3,221,225,472 bytes.*--engine native"):
        made((large, anchors, found))


@needs_nncf
def test_whatever_it_raises_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nncf as package

    def fail(*_: object, **__: object) -> None:
        raise KeyError("a\nname")

    known = parts(cnn(tmp_path / "fp32.onnx"), images(2))
    monkeypatch.setattr(package, "quantize", fail)
    with pytest.raises(UnsupportedError, match=r"cannot quantize this model: KeyError: .*native"):
        made(known)


@needs_nncf
def test_a_sample_that_the_model_refuses_is_unsupported(tmp_path: Path) -> None:
    model, anchors, found = parts(cnn(tmp_path / "fp32.onnx"), images(2))
    bad = samples_of([{"x": random(1, 4, 6, 6)}], model.inputs)
    with pytest.raises(UnsupportedError, match="NNCF cannot quantize"):
        made((model, anchors, replace(found, source=bad)))


def test_statistics_without_samples_are_refused(tmp_path: Path) -> None:
    model, anchors, found = parts(cnn(tmp_path / "fp32.onnx"), images(2))
    bare = replace(found, source=None)
    if importlib.util.find_spec("nncf") is None:
        pytest.skip("the package nncf is not installed: pip install '.[nncf]'")
    with pytest.raises(InputError, match="samples themselves"):
        made((model, anchors, bare))


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(UnfitError, match=r"pip install 'vnnify\[nncf\]'"):
        find_engines(("native", "nncf"), ONNX)


def test_engines_are_known_by_name() -> None:
    assert find_engines((), ONNX) == find_engines(("native", "native"), ONNX) == ("native",)
    with pytest.raises(UsageError, match="unknown engine 'xyz'; known: native, nncf, inc"):
        find_engines(("xyz",), ONNX)


@needs_nncf
def test_handlers_of_others_keep_their_level() -> None:
    nncf.require()
    log, handler = logging.getLogger("nncf"), logging.NullHandler(logging.INFO)
    log.addHandler(handler)
    try:
        nncf.require()
        assert (log.level, handler.level) == (logging.ERROR, logging.INFO)
    finally:
        log.removeHandler(handler)


@needs_nncf
def test_its_telemetry_is_a_stub_and_stdout_stays_empty(tmp_path: Path) -> None:
    """In a process of its own: NNCF switches telemetry off by itself where pytest is loaded."""
    code = (
        "import sys, quantize.quantizers.nncf as ours; ours.require(); import nncf.telemetry as t; "
        "print(type(t.telemetry).__name__, file=sys.stderr)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout == ""
    assert done.stderr.split()[-1] == "MagicMock"


@needs_nncf
def test_it_leaves_nothing_beside_the_model(tmp_path: Path, capfd: Any) -> None:
    known = parts(cnn(tmp_path / "fp32.onnx"), images(2))
    before = {f.name for f in tmp_path.iterdir()}
    digest = hashlib.sha256((tmp_path / "fp32.onnx").read_bytes()).hexdigest()
    made(known)
    assert {f.name for f in tmp_path.iterdir()} - before == {"int8.onnx"}
    assert hashlib.sha256((tmp_path / "fp32.onnx").read_bytes()).hexdigest() == digest
    assert capfd.readouterr().out == ""
