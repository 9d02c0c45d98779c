"""Graphs whose weights go when nobody needs them, and those in graphs inside."""

import gc
import weakref
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper

from quantize.graphs import opened, save, weight_bytes
from tests import tiny

FLOAT = TensorProto.FLOAT


def linear(path: Path) -> Path:
    return tiny.save(
        path,
        [helper.make_node("MatMul", ["x", "w"], ["y"], "mm")],
        [("x", FLOAT, ["n", 64])],
        [("y", FLOAT, ["n", 64])],
        {"w": np.eye(64, dtype=np.float32)},
    )


def test_weights_go_when_the_block_ends_though_the_graph_refers_to_itself(tmp_path: Path) -> None:
    gc.disable()
    try:
        with opened(linear(tmp_path / "m.onnx")) as model:
            held = model.graph.initializers["w"].const_value
            assert held is not None
            np.testing.assert_array_equal(held.numpy(), np.eye(64))
            gone = weakref.ref(held)
            del held
            assert gone() is not None
        assert gone() is None
    finally:
        gc.enable()


def test_weights_of_a_branch_are_taken_into_the_file_as_well(tmp_path: Path) -> None:
    def branch(name: str) -> ir.Graph:
        source = ir.load(linear(tmp_path / f"{name}.onnx")).graph
        inside = source.initializers["w"]
        node = ir.node("Identity", [inside], name=f"{name}_node")
        node.outputs[0].name = f"{name}_out"
        del source.initializers["w"]
        inside.name = f"{name}_w"
        for use in list(inside.uses()):
            if use.node is not node:
                use.node.replace_input_with(use.idx, None)
        return ir.Graph([], [node.outputs[0]], nodes=[node], initializers=[inside], name=name)

    condition = ir.Value(name="c", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    choice = ir.node(
        "If", [condition], attributes={"then_branch": branch("a"), "else_branch": branch("b")}
    )
    choice.outputs[0].name = "y"
    choice.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([condition], [choice.outputs[0]], nodes=[choice], opset_imports={"": 17})
    model = ir.Model(graph, ir_version=8)
    assert weight_bytes(model) == 2 * 64 * 64 * 4
    ir.save(model, tmp_path / "apart.onnx", external_data="apart.data")
    save(ir.load(tmp_path / "apart.onnx"), tmp_path / "whole.onnx")
    (tmp_path / "apart.data").unlink()
    whole = ir.load(tmp_path / "whole.onnx")
    inside = [v for g in whole.graph.subgraphs() for v in g.initializers.values()]
    assert len(inside) == 2
    for value in inside:
        assert value.const_value is not None
        np.testing.assert_array_equal(value.const_value.numpy(), np.eye(64))
