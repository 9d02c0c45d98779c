"""Forms that OpenVINO computes right, beside those that it computes wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import quantize.quantizers as quantizers
from bench.models import Feeds
from bench.runtimes import RUNTIMES, Settings
from quantize.quantizers.sidestepping import is_misread, misread
from tests import tiny
from tests.int8 import Made, fused, make, run

FLOAT = TensorProto.FLOAT
Array = np.ndarray[Any, Any]
# Of the outputs' range: what rounding may move.
_NEAR = 0.05
_GROSS = 0.3


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def feeds(*shape: int) -> list[Feeds]:
    return [{"x": normal(100 + i, *shape)} for i in range(4)]


def mlp(path: Path, op: str, rows: int, bias: float | None = None) -> Path:
    """`y = relu(x @ w) @ v`, perhaps with a bias; x is signed, so it has a zero point."""
    nodes = [
        helper.make_node(op, ["x", "w"], ["p"], "first"),
        helper.make_node("Add", ["p", "b"], ["h"], "add"),
        helper.make_node("Relu", ["p" if bias is None else "h"], ["k"], "relu"),
        helper.make_node(op, ["k", "v"], ["y"], "second"),
    ]
    constants = {"w": normal(1, 64, 48) / 8, "v": normal(2, 48, 10) / 7}
    if bias is None:
        nodes.pop(1)
    else:
        constants["b"] = np.float32(bias) * normal(3, 48)
    x: tiny.Port = ("x", FLOAT, [rows, 64])
    y: tiny.Port = ("y", FLOAT, [rows, 10])
    return tiny.save(path, nodes, [x], [y], constants)


def conv(path: Path, taps: tuple[int, ...], size: tuple[int, ...], **options: Any) -> Path:
    """`y = conv(x)`, 16 channels per group."""
    kernel = normal(1, 16, 16 // options.get("group", 1), *taps) / 10
    node = helper.make_node("Conv", ["x", "k"], ["y"], "conv", **options)
    x: tiny.Port = ("x", FLOAT, [1, 16, *size])
    y: tiny.Port = ("y", FLOAT, None)
    return tiny.save(path, [node], [x], [y], {"k": kernel})


def apart(made: Made, samples: list[Feeds], threads: int) -> float:
    """Largest difference of OpenVINO's outputs to exact ones, as a share of their range."""
    session = RUNTIMES["openvino"].open(made.path, Settings(threads=threads))
    pairs = [(run(made.path, s)["y"], session.run(s)["y"]) for s in samples]
    session.close()
    return max(float(np.abs(a - b).max() / np.ptp(a)) for a, b in pairs)


CASES: dict[str, tuple[Callable[[Path], Path], tuple[int, ...]]] = {
    "Gemm": (lambda p: mlp(p, "Gemm", 1), (1, 64)),
    "MatMul": (lambda p: mlp(p, "MatMul", 4), (4, 64)),
    "zeros for a bias": (lambda p: mlp(p, "MatMul", 1, 0.0), (1, 64)),
    "1-D kernel": (lambda p: conv(p, (16,), (64,), pads=[3, 8]), (1, 16, 64)),
    "strided rows": (
        lambda p: conv(p, (3, 8), (9, 40), strides=[1, 2], pads=[1, 4, 1, 4]),
        (1, 16, 9, 40),
    ),
    "SAME": (lambda p: conv(p, (8,), (40,), auto_pad="SAME_UPPER"), (1, 16, 40)),
}


@pytest.mark.parametrize("case", CASES)
def test_openvino_computes_the_form_that_is_written(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    build, shape = CASES[case]
    samples = feeds(*shape)
    made = make(build(tmp_path / "m.onnx"), samples, correct_bias=False)
    assert list(misread(ir.load(made.path))) == []
    for threads in (1, 2):
        assert apart(made, samples, threads) < _NEAR
    monkeypatch.setattr(quantizers, "sidestep", lambda _: None)
    plain = make(build(tmp_path / "plain.onnx"), samples, correct_bias=False)
    assert list(misread(ir.load(plain.path))) == [plain.anchors[0].name]
    if apart(plain, samples, 1) < _GROSS:
        version = RUNTIMES["openvino"].version()
        pytest.skip(f"OpenVINO {version} computes the plain form right on this CPU")


@pytest.mark.parametrize("case", CASES)
def test_both_forms_are_the_same_function(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, shape = CASES[case]
    samples = feeds(*shape)
    made = make(build(tmp_path / "m.onnx"), samples, correct_bias=False)
    monkeypatch.setattr(quantizers, "sidestep", lambda _: None)
    plain = make(build(tmp_path / "plain.onnx"), samples, correct_bias=False)
    assert made.path.read_bytes() != plain.path.read_bytes()
    for sample in samples:
        np.testing.assert_allclose(
            run(made.path, sample)["y"], run(plain.path, sample)["y"], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("case", CASES)
def test_files_without_shapes_inside_are_flagged_too(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, shape = CASES[case]
    monkeypatch.setattr(quantizers, "sidestep", lambda _: None)
    made = make(build(tmp_path / "m.onnx"), feeds(*shape), correct_bias=False)
    bare = onnx.load(made.path)
    del bare.graph.value_info[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    assert list(misread(ir.load(tmp_path / "bare.onnx"))) == [made.anchors[0].name]


def test_a_product_with_a_new_bias_still_runs_in_integers(tmp_path: Path) -> None:
    made = make(mlp(tmp_path / "m.onnx", "MatMul", 4), feeds(4, 64), correct_bias=False)
    assert made.modes == ["static", "static"]
    assert "QGemm" in fused(made.path)
    assert not {"Gemm", "MatMul"} & set(fused(made.path))


@pytest.mark.parametrize("bias", [None, 0.0, 1.0])
def test_zero_points_move_only_where_there_is_no_bias(tmp_path: Path, bias: float | None) -> None:
    source = mlp(tmp_path / "m.onnx", "MatMul", 4, bias)
    made = make(source, feeds(4, 64), correct_bias=False)
    nodes = onnx.load(made.path).graph.node
    (quantize,) = (n for n in nodes if n.op_type == "QuantizeLinear" and n.input[0] == "x")
    (back,) = (n for n in nodes if n.input[0] == quantize.output[0])
    assert (back.input[2] == quantize.input[2]) is (bias == 1)


@pytest.mark.parametrize(
    ("options", "taps"),
    [({"dilations": [2]}, 8), ({"group": 16}, 8), ({"group": 8}, 64), ({}, 4), ({}, 7)],
)
def test_other_kernels_keep_their_taps(tmp_path: Path, options: dict[str, Any], taps: int) -> None:
    source = conv(tmp_path / "m.onnx", (taps,), (140,), **options)
    made = make(source, feeds(1, 16, 140))
    graph = onnx.load(made.path).graph
    kernels = [numpy_helper.to_array(t).shape for t in graph.initializer if len(t.dims) == 3]
    assert [k[-1] for k in kernels] == [taps]


@pytest.mark.parametrize(
    ("kernel", "misread"),
    [
        ((8, 16, 8), True),
        ((8, 16, 3, 12), True),
        ((8, 4, 32), True),
        ((8, 28, 16), True),
        ((8, 24, 8), True),
        # One tile alone, and rows that leave a rest.
        ((8, 16, 4), False),
        ((8, 16, 9), False),
        ((8, 24, 9), False),
        # Rows of kernels are not joined.
        ((8, 32, 8), False),
        ((8, 15, 64), False),
        ((8, 2, 64), False),
    ],
)
def test_full_tiles_are_what_amx_misreads(kernel: tuple[int, ...], *, misread: bool) -> None:
    assert is_misread(kernel) is misread
    assert not is_misread(kernel, dilation=2)
