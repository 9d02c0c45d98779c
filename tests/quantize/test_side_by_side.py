"""Noise that a layer makes is told from noise that it inherits."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from bench.errors import UnsupportedError
from bench.models import Feeds, read_model
from bench.runtimes.onnxruntime import OnnxRuntime
from bench.runtimes.seam import Session, Settings
from quantize.inspection import Means, inspect_model
from quantize.inspection.document import inspection_document, inspection_summary
from quantize.inspection.side_by_side import LayerNoise, side_by_side
from tests import tiny
from tests.int8 import make

FLOAT = TensorProto.FLOAT
RNG = np.random.default_rng(0)
W1, W2 = (RNG.standard_normal((8, 8)).astype(np.float32) for _ in range(2))
SAMPLES: list[Feeds] = [{"x": RNG.standard_normal((4, 8)).astype(np.float32)} for _ in range(3)]


def fp32(path: Path) -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["h"], "relu"),
        helper.make_node("MatMul", ["h", "w2"], ["b"], "second"),
        helper.make_node("Add", ["b", "bias"], ["y"], "add"),
    ]
    held = {"w1": W1, "w2": W2, "bias": np.zeros(8, np.float32)}
    return tiny.save(path, nodes, [("x", FLOAT, ["n", 8])], [("y", FLOAT, ["n", 8])], held)


def rounded(values: Any, scale: float, zero: int) -> Any:
    codes = np.clip(np.rint(values / np.float32(scale)) + zero, 0, 255)
    return ((codes - zero) * np.float32(scale)).astype(np.float32)


def int8(path: Path, *, bias: float = 0.0) -> Path:
    """Both products read 8 bits; the first one's weights are rounded, too. As any tool writes."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"], ""),
        helper.make_node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"], ""),
        helper.make_node("DequantizeLinear", ["w1q", "sw", "zw"], ["w1d"], "weights"),
        helper.make_node("MatMul", ["xd", "w1d"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["h"], "relu"),
        helper.make_node("QuantizeLinear", ["h", "sh", "zh"], ["hq"], "hq"),
        helper.make_node("DequantizeLinear", ["hq", "sh", "zh"], ["hd"], "hd"),
        helper.make_node("MatMul", ["hd", "w2"], ["b"], "second"),
        helper.make_node("Add", ["b", "bias"], ["y"], "add"),
    ]
    held = {
        "sx": np.float32(0.03), "zx": np.uint8(128), "sh": np.float32(0.04), "zh": np.uint8(0),
        "sw": np.float32(0.02), "zw": np.int8(0), "w2": W2, "bias": np.full(8, bias, np.float32),
        "w1q": np.clip(np.rint(W1 / 0.02), -128, 127).astype(np.int8),
    }  # fmt: skip
    return tiny.save(path, nodes, [("x", FLOAT, ["n", 8])], [("y", FLOAT, ["n", 8])], held)


def compared(a: Path, b: Path, samples: list[Feeds] = SAMPLES) -> tuple[LayerNoise, ...]:
    return side_by_side(ir.load(a), ir.load(b), samples, threads=1, scratch=a.parent)


def test_weights_that_lie_in_the_scratch_folder_are_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("quantize.inspection.side_by_side")
    monkeypatch.setattr(module, "_INLINE_BYTES", 16)
    real, written = OnnxRuntime.open, []

    def open_(self: OnnxRuntime, path: Path, settings: Settings) -> Session:
        if path.name == "side-by-side.onnx":
            written.append(path.with_name(f"{path.name}.data").stat().st_size)
        return real(self, path, settings)

    monkeypatch.setattr(OnnxRuntime, "open", open_)
    a, b = fp32(tmp_path / "a.onnx"), int8(tmp_path / "b.onnx")
    beside = tmp_path / "beside.onnx"
    ir.save(ir.load(a), beside, external_data="beside.data", size_threshold_bytes=16)
    assert compared(beside, b) == compared(a, b)
    few, all_ = written
    assert few + W1.nbytes + W2.nbytes <= all_
    # They stay there; what lies elsewhere does not, however small it is.
    elsewhere = tmp_path / "elsewhere" / "b.onnx"
    elsewhere.parent.mkdir()
    ir.save(ir.load(b), elsewhere, external_data="b.data", size_threshold_bytes=0)
    assert compared(beside, elsewhere) == compared(a, b)


def share(noisy: Any, clean: Any) -> float:
    return float(np.square(noisy - clean).sum() / np.square(clean).sum())


def test_what_a_layer_makes_and_what_it_inherits(tmp_path: Path) -> None:
    x = np.concatenate([s["x"] for s in SAMPLES])
    w1 = np.clip(np.rint(W1 / 0.02), -128, 127).astype(np.float32) * np.float32(0.02)
    clean = np.maximum(x @ W1, 0)
    # The end of the first layer is what the second one reads: 8 bits.
    first = rounded(np.maximum(rounded(x, 0.03, 128) @ w1, 0), 0.04, 0)
    alone = rounded(clean, 0.04, 0) @ W2
    both = compared(fp32(tmp_path / "a.onnx"), int8(tmp_path / "b.onnx"))
    assert [n.layer for n in both] == ["first", "second"]
    assert both[0].local == pytest.approx(share(first, clean), rel=1e-3)
    assert both[0].accumulated == pytest.approx(both[0].local, rel=1e-6)
    assert both[1].local == pytest.approx(share(alone, clean @ W2), rel=1e-3)
    assert both[1].accumulated == pytest.approx(share(first @ W2, clean @ W2), rel=1e-3)
    assert both[1].accumulated > 2 * both[1].local
    assert [f.name for f in tmp_path.iterdir()] == ["a.onnx", "b.onnx"]


def test_weights_lie_beside_the_graph_and_are_not_kept_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, Settings]] = []
    real = OnnxRuntime.open

    def opened(self: OnnxRuntime, path: Path, settings: Settings) -> Session:
        held = onnx.load(path, load_external_data=False).graph.initializer
        seen.append((max(len(t.raw_data) for t in held), settings))
        return real(self, path, settings)

    monkeypatch.setattr(OnnxRuntime, "open", opened)
    width = 32
    weights = RNG.standard_normal((width, width)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "first")
    ends = [("x", FLOAT, ["n", width])], [("y", FLOAT, ["n", width])]
    path = tiny.save(tmp_path / "a.onnx", [node], *ends, {"w": weights})
    compared(path, path, [{"x": weights}])
    ((largest, settings),) = seen
    assert largest < weights.nbytes
    assert not settings.arena


def test_a_corrected_bias_counts_to_its_product(tmp_path: Path) -> None:
    plain = compared(fp32(tmp_path / "a.onnx"), int8(tmp_path / "b.onnx"))
    moved = compared(tmp_path / "a.onnx", int8(tmp_path / "c.onnx", bias=0.5))
    assert moved[0] == plain[0]
    assert moved[1].local > 2 * plain[1].local


def test_a_file_against_itself_has_no_noise(tmp_path: Path) -> None:
    found = compared(fp32(tmp_path / "a.onnx"), tmp_path / "a.onnx")
    assert [(n.local, n.accumulated) for n in found] == [(0.0, 0.0)] * 2


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_what_vnnify_makes_has_noise_in_every_layer(tmp_path: Path, mode: Any) -> None:
    made = make(fp32(tmp_path / "a.onnx"), SAMPLES, modes={"first": mode, "second": "float"})
    found = {n.layer: n for n in compared(made.fp32, made.path)}
    assert 1e-7 < found["first"].local < 1e-2
    # In float it adds nothing of its own.
    assert found["second"].local < 1e-12
    assert found["second"].accumulated > 1e-7


def test_noise_that_is_not_finite_counts_as_much(tmp_path: Path) -> None:
    found = compared(fp32(tmp_path / "a.onnx"), int8(tmp_path / "b.onnx", bias=np.inf))
    assert (found[1].local, found[1].accumulated) == (1e6, 1e6)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    fp32(tmp_path / "a.onnx")
    other = onnx.load(str(int8(tmp_path / "b.onnx")))
    other.opset_import[0].version -= 1
    onnx.save(other, str(tmp_path / "old.onnx"))
    with pytest.raises(UnsupportedError, match="one opset; FP32 has"):
        compared(tmp_path / "a.onnx", tmp_path / "old.onnx")
    stranger = tiny.save(
        tmp_path / "c.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["z"], "only")],
        [("x", FLOAT, ["n", 8])],
        [("z", FLOAT, ["n", 8])],
        {"w": W1},
    )
    with pytest.raises(UnsupportedError, match="no layer of the INT8 file"):
        compared(tmp_path / "a.onnx", stranger)


def test_an_inspection_shows_it_or_says_why_not(tmp_path: Path) -> None:
    model = read_model(int8(tmp_path / "b.onnx"))
    means = Means(("onnxruntime",), 1, tmp_path, SAMPLES, None, fp32(tmp_path / "a.onnx"))
    found = inspect_model(model, means, command="")
    assert [n.layer for n in found.noise] == ["first", "second"]
    for document in (inspection_summary(found), inspection_document(found)):
        (section,) = (s for s in document.sections if s.title == "Where noise is made")
        rows = {r[0]: r for r in section.blocks[0].rows}  # type: ignore[union-attr]
        assert float(rows["second"][1]) > float(rows["second"][2])
    lost = Means(("onnxruntime",), 1, tmp_path, SAMPLES, None, tmp_path / "gone.onnx")
    found = inspect_model(model, lost, command="")
    assert found.noise == ()
    assert found.notes[0].startswith("noise of single layers is unknown: ")
