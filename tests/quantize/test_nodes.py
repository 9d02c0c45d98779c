"""Constants of nodes are read and set without touching what others read."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from quantize.nodes import float_constant, set_input, take_over
from tests import tiny

F = TensorProto.FLOAT
ONES = np.ones((2, 2), np.float32)


@pytest.fixture
def model(tmp_path: Path) -> ir.Model:
    """Two products with one weight, of which the second is an output."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("MatMul", ["a", "w"], ["y"], "second"),
        helper.make_node("Gather", ["y", "i"], ["z"], "third"),
    ]
    inputs: list[tiny.Port] = [("x", F, [2, 2])]
    outputs: list[tiny.Port] = [("y", F, [2, 2]), ("z", F, None)]
    constants = {"w": ONES, "i": np.array(0)}
    return ir.load(tiny.save(tmp_path / "m.onnx", nodes, inputs, outputs, constants))


def test_only_a_float_initializer_is_a_float_constant(model: ir.Model) -> None:
    first, _, third = model.graph
    np.testing.assert_array_equal(float_constant(first, 1), ONES)  # type: ignore[arg-type]
    assert float_constant(first, 0) is None
    assert float_constant(first, 2) is None
    assert float_constant(third, 1) is None


def test_new_constants_have_names_of_their_own_and_leave_the_old_to_others(
    model: ir.Model,
) -> None:
    first, second, _ = model.graph
    for factor in (2, 3):
        set_input(first, 1, factor * ONES, model.graph)
    made = [n for n in model.graph.initializers if n.startswith("first")]
    assert made == ["first_folded_1", "first_folded_1_1"]
    np.testing.assert_array_equal(float_constant(first, 1), 3 * ONES)  # type: ignore[arg-type]
    np.testing.assert_array_equal(float_constant(second, 1), ONES)  # type: ignore[arg-type]


def test_an_input_that_a_node_did_not_have_is_added(model: ir.Model) -> None:
    first, *_ = model.graph
    set_input(first, 3, ONES, model.graph)
    assert [v is None for v in first.inputs] == [False, False, True, False]


def test_a_node_takes_the_place_of_another_with_its_name_type_and_readers(
    model: ir.Model,
) -> None:
    _, second, third = model.graph
    new = ir.node("Relu", [second.inputs[0]], name="new")
    model.graph.insert_before(second, new)
    take_over(second, new, model.graph)
    value = new.outputs[0]
    assert [n.name for n in model.graph] == ["first", "new", "third"]
    assert third.inputs[0] is value
    assert model.graph.outputs[0] is value
    assert (value.name, value.dtype, value.shape) == ("y", ir.DataType.FLOAT, ir.Shape([2, 2]))
