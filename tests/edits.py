"""Graphs edited in place and compared with what they were."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from tests import tiny

Nodes = list[onnx.NodeProto]


@dataclass(frozen=True, slots=True)
class Edited:
    """A graph after an edit.

    Attributes:
        told: What the edit returned.
        proto: The graph.
    """

    told: Any
    proto: onnx.ModelProto

    @property
    def ops(self) -> dict[str, int]:
        """How often each operator stands in it."""
        return dict(Counter(n.op_type for n in self.proto.graph.node))


def edited(
    folder: Path,
    edit: Callable[[ir.Model], object],
    nodes: Nodes,
    constants: dict[str, Any],
    *,
    shape: Sequence[int] = (2, 3, 6, 6),
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
) -> Edited:
    """Edit a graph of one input `x`, and compare the two on random input."""
    ports: list[tiny.Port] = [(name, TensorProto.FLOAT, None) for name in outputs]
    inputs: list[tiny.Port] = [("x", TensorProto.FLOAT, list(shape))]
    before = tiny.save(folder / "before.onnx", nodes, inputs, ports, constants, opset)
    model = ir.load(before)
    told = edit(model)
    after = folder / "after.onnx"
    ir.save(model, after)
    proto = onnx.load(str(after))
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(proto))
    x = (4 * np.random.default_rng(1).standard_normal(shape)).astype(np.float32)
    for name, a, b in zip(outputs, _run(before, x), _run(after, x), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5, err_msg=name)
    assert [o.name for o in proto.graph.output] == list(outputs)
    return Edited(told, proto)


def _run(path: Path, x: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    found: list[np.ndarray[Any, Any]] = ort.InferenceSession(str(path), options).run(None, {"x": x})
    return found


def node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """A node named after its operator and its output."""
    return helper.make_node(op, list(inputs), [output], name=f"{op}_{output}", **attributes)


def f32(*values: Any) -> np.ndarray[Any, Any]:
    """Values as float32."""
    return np.asarray(*values, dtype=np.float32)


def small(random: np.random.Generator, *shape: int) -> np.ndarray[Any, Any]:
    """Weights whose sums stay near 1, so that rounding stays within the tolerance."""
    return (random.standard_normal(shape) / 30).astype(np.float32)
