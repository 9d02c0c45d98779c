"""Each cause of lost accuracy is named with its numbers, whoever made the file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from bench.models import read_model
from quantize.findings import Finding
from quantize.inspection import Inspection, Means, inspect_model
from quantize.inspection.document import inspection_document, inspection_summary
from tests import tiny

FLOAT = TensorProto.FLOAT
node = helper.make_node
EVEN = np.tile(np.int8([60, -60]), (8, 4))


def findings(path: Path) -> dict[str, Finding]:
    return {f.cause.partition(":")[0]: f for f in look(path).findings}


def look(path: Path) -> Inspection:
    return inspect_model(read_model(path), Means((), 1, path.parent), command="", told={})


def gemm(path: Path, **changes: Any) -> Path:
    """`Relu(y) = x @ w + b` between pairs; weights [in 8, out 8], a scale per channel."""
    nodes = [
        node("QuantizeLinear", ["x", "sx", "zx"], ["xq"], "q"),
        node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"], "d"),
        node("DequantizeLinear", ["w", "sw", "zw"], ["wd"], "wd", axis=1),
        node("DequantizeLinear", ["b", "sb"], ["bd"], "bd", axis=0),
        node("Gemm", ["xd", "wd", "bd"], ["y"], "dense"),
        node("Relu", ["y"], ["r"], "relu"),
        node("QuantizeLinear", ["r", "sy", "zy"], ["yq"], "yq"),
        node("DequantizeLinear", ["yq", "sy", "zy"], ["z"], "yd"),
    ]
    held: Mapping[str, Any] = {
        "sx": np.float32(0.1), "zx": np.uint8(0), "w": EVEN, "sw": np.full(8, 0.01, np.float32),
        "zw": np.zeros(8, np.int8), "b": np.zeros(8, np.int32), "sb": np.full(8, 1e-3, np.float32),
        "sy": np.float32(0.2), "zy": np.uint8(0),
    } | changes  # fmt: skip
    ends = [("x", FLOAT, ["n", 8])], [("z", FLOAT, ["n", 8])]
    return tiny.save(path, nodes, *ends, dict(held))


def test_an_easy_file_has_none(tmp_path: Path) -> None:
    assert findings(gemm(tmp_path / "m.onnx")) == {}


def test_an_outlier_channel_with_a_scale_of_its_own(tmp_path: Path) -> None:
    scales = np.where(np.arange(8) == 5, 1.0, 0.01).astype(np.float32)
    (found,) = findings(gemm(tmp_path / "m.onnx", sw=scales)).values()
    assert found.layer == "dense"
    assert found.cause == (
        "outlier channel: weights of output channel 5 are 100 times as large as most"
    )
    assert found.done == "each channel has a scale of its own"


@pytest.mark.parametrize(("others", "times"), [(3, "20"), (0, "at least 120")])
def test_an_outlier_channel_that_shares_its_scale(tmp_path: Path, others: int, times: str) -> None:
    codes = np.full((8, 8), others, np.int8)
    codes[:, 2] = 60
    one = {"sw": np.float32(0.01), "zw": np.int8(0)}
    found = findings(gemm(tmp_path / "m.onnx", w=codes, **one))["outlier channel"]
    assert f"output channel 2 are {times} times as large as most" in found.cause
    assert found.done == "nothing: all have one scale, and 7 of 8 keep under 5 bits"


def test_a_bias_that_was_cut_off(tmp_path: Path) -> None:
    bias = np.array([0, 2**31 - 1, 5, -(2**31), 0, 0, 0, 0], np.int64).astype(np.int32)
    (found,) = findings(gemm(tmp_path / "m.onnx", b=bias)).values()
    assert found.cause == "bias overflow: in 2 of 8 channels the bias does not fit 32 bits"
    assert found.done == "nothing: it was cut off"


def test_a_bias_that_coarser_weights_made_fit(tmp_path: Path) -> None:
    codes = EVEN.copy()
    codes[:, 3] = 1
    bias = np.where(np.arange(8) == 3, 2**30, 7).astype(np.int32)
    (found,) = findings(gemm(tmp_path / "m.onnx", w=codes, b=bias)).values()
    assert found.cause == "bias overflow: in 1 of 8 channels the bias would not fit 32 bits"
    assert found.done == "their weights got coarser scales: codes up to 1 of 127"


@pytest.mark.parametrize("scale", [1.0, 3e-7])
def test_a_range_that_never_moved(tmp_path: Path, scale: float) -> None:
    (found,) = findings(gemm(tmp_path / "m.onnx", sy=np.float32(scale))).values()
    assert (found.layer, found.cause.partition(":")[0]) == ("r", "dead range")
    assert f"its scale is {scale:.3g}" in found.cause
    # Pixels from 0 to 255 have that scale, too.
    assert findings(gemm(tmp_path / "n.onnx", sx=np.float32(1.0))) == {}


def test_ranges_that_are_none(tmp_path: Path) -> None:
    found = findings(gemm(tmp_path / "m.onnx", sy=np.float32(np.inf)))
    assert found["non-finite range"] == Finding(
        "r", "non-finite range: its scale is inf", "nothing"
    )
    found = findings(gemm(tmp_path / "n.onnx", sy=np.float32(1e9)))
    assert found["absurd range"].cause == "absurd range: its scale is 1e+09"


def test_pairs_that_saturate_come_last(tmp_path: Path) -> None:
    codes = np.full((8, 8), 127, np.int8)
    scales = np.where(np.arange(8) == 5, 1.0, 0.01).astype(np.float32)
    found = list(findings(gemm(tmp_path / "m.onnx", w=codes, sw=scales)).values())
    assert [f.cause.partition(":")[0] for f in found] == ["outlier channel", "saturating pairs"]
    assert found[1].cause.startswith("saturating pairs: in 8 of 8 channels")


def test_one_scale_for_all_that_a_concat_joins(tmp_path: Path) -> None:
    nodes = [
        node("QuantizeLinear", ["x", "small", "z"], ["aq"], "aq"),
        node("DequantizeLinear", ["aq", "small", "z"], ["a"], "ad"),
        node("QuantizeLinear", ["x", "large", "z"], ["bq"], "bq"),
        node("DequantizeLinear", ["bq", "large", "z"], ["b"], "bd"),
        node("Concat", ["a", "b"], ["c"], "join", axis=1),
        node("QuantizeLinear", ["c", "large", "z"], ["cq"], "cq"),
        node("DequantizeLinear", ["cq", "large", "z"], ["y"], "cd"),
        node("DequantizeLinear", ["w", "small", "zw"], ["wd"], "wd"),
        node("MatMul", ["y", "wd"], ["p"], "product"),
    ]
    held = {"small": np.float32(0.01), "large": np.float32(2), "z": np.uint8(0)}
    held |= {"w": np.tile(EVEN, (2, 1)), "zw": np.int8(0)}
    ends = [("x", FLOAT, ["n", 8])], [("p", FLOAT, ["n", 8])]
    found = findings(tiny.save(tmp_path / "m.onnx", nodes, *ends, held))["shared Concat scale"]
    assert found.layer == "join"
    assert found.cause == "shared Concat scale: ranges from 2.55 to 510 have one scale"


def test_documents_show_them(tmp_path: Path) -> None:
    scales = np.where(np.arange(8) == 5, 1.0, 0.01).astype(np.float32)
    found = look(gemm(tmp_path / "m.onnx", sw=scales))
    for document in (inspection_summary(found), inspection_document(found)):
        (section,) = (s for s in document.sections if s.title == "Hard for 8 bits")
        assert section.blocks[0].rows[0][0] == "dense"  # type: ignore[union-attr]
