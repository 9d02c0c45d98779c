from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantize.quantizers import tables
from quantize.quantizers.tables import compress_tables

ROWS, WIDTH = 512, 128
RNG = np.random.default_rng(3)


def _model(nodes: list[onnx.NodeProto], table: np.ndarray, extra: int = 0) -> ir.Model:
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    outputs += [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)] * extra
    initializers = [numpy_helper.from_array(table.astype(np.float32), "table")]
    graph = helper.make_graph(nodes, "g", [ids], outputs, initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    proto.ir_version = 9
    return ir.from_proto(proto)


def _run(model: ir.Model, path: Path, ids: np.ndarray) -> np.ndarray:
    ir.save(model, path)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"ids": ids})[0])


def test_rows_of_any_scale_are_looked_up_within_half_a_step(tmp_path: Path) -> None:
    # Rows differ by a factor of a million: one scale for all would round most of them to zero.
    table = RNG.standard_normal((ROWS, WIDTH)) * np.logspace(-3, 3, ROWS)[:, None]
    table[7] = 0.0
    model = _model([helper.make_node("Gather", ["table", "ids"], ["y"], name="look")], table)
    assert compress_tables(model) == 1
    ids = np.array([0, 7, 255, 511, 0])
    found = _run(model, tmp_path / "m.onnx", ids)
    step = np.abs(table[ids]).max(axis=1, keepdims=True) / 127
    assert (np.abs(found - table[ids]) <= step / 2 * 1.001 + 1e-12).all()
    assert (tmp_path / "m.onnx").stat().st_size < 1.2 * ROWS * WIDTH


def test_rows_rounded_some_at_a_time_are_rounded_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    table = RNG.standard_normal((ROWS, WIDTH)).astype(np.float32)
    whole = tables._rounded(table)
    for size in (1, 7 * WIDTH, ROWS * WIDTH):
        monkeypatch.setattr(tables, "_BLOCK", size)
        for found, expected in zip(tables._rounded(table), whole, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_table_that_is_also_multiplied_stays_float() -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["y"]),
        helper.make_node("Transpose", ["table"], ["t"]),
        helper.make_node("MatMul", ["y", "t"], ["z"]),
    ]
    assert compress_tables(_model(nodes, np.ones((ROWS, WIDTH)), extra=1)) == 0


def test_a_small_table_and_another_axis_stay_float() -> None:
    look = helper.make_node("Gather", ["table", "ids"], ["y"])
    assert compress_tables(_model([look], np.ones((16, 16)))) == 0
    across = helper.make_node("Gather", ["table", "ids"], ["y"], axis=1)
    assert compress_tables(_model([across], np.ones((ROWS, WIDTH)))) == 0


def test_two_lookups_share_one_compressed_table(tmp_path: Path) -> None:
    table = RNG.standard_normal((ROWS, WIDTH))
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["a"], name="one"),
        helper.make_node("Gather", ["table", "ids"], ["b"], name="two"),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    model = _model(nodes, table)
    assert compress_tables(model) == 1
    assert sum(v.dtype == ir.DataType.INT8 for v in model.graph.initializers.values()) == 1
    found = _run(model, tmp_path / "m.onnx", np.arange(4))
    np.testing.assert_allclose(found, 2 * table[:4], atol=0.06)
