"""Tiny ONNX models, built in code."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Port = tuple[str, int, list[int | str] | None]


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[Port],
    outputs: list[Port],
    constants: dict[str, Any] | None = None,
    opset: int = 17,
) -> Path:
    """Write a model of these parts."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(*p) for p in inputs],
        [helper.make_tensor_value_info(*p) for p in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def linear(path: Path, *, size: int = 4, seed: int = 0) -> Path:
    """`y = x @ w`: float32 [n, size] to float32 [n, 3]."""
    w = np.random.default_rng(seed).standard_normal((size, 3)).astype(np.float32)
    return save(
        path,
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", TensorProto.FLOAT, ["n", size])],
        [("y", TensorProto.FLOAT, ["n", 3])],
        {"w": w},
    )


def unary(path: Path, op: str, dtype: int, shape: list[int | str] | None) -> Path:
    """`y = op(x)`, same type and shape."""
    nodes = [helper.make_node(op, ["x"], ["y"])]
    return save(path, nodes, [("x", dtype, shape)], [("y", dtype, shape)])


def qdq_matmul(path: Path, w: np.ndarray[Any, np.dtype[np.int8]]) -> Path:
    """`y = x @ w` between u8 Q/DQ and s8 DQ with scales of 1: x float32 [n, k]."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero_u8"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "one", "zero_u8"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "one", "zero_s8"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    constants = {
        "w": w,
        "one": np.float32(1),
        "zero_u8": np.uint8(0),
        "zero_s8": np.int8(0),
    }
    k, n = w.shape
    x, y = ("x", TensorProto.FLOAT, ["n", k]), ("y", TensorProto.FLOAT, ["n", n])
    return save(path, nodes, [x], [y], constants, opset=13)
