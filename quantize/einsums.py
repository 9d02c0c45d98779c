"""Einsums that multiply by constant weights, written as the MatMul that they are.

    Einsum("bld,hde->bhle") ─▶ MatMul with weights [d, h·e] ─▶ Reshape [b, l, h, e] ─▶ Transpose

No runtime has an INT8 kernel for Einsum, and ONNX Runtime's float one moves its operands about in
every run. Weights are arranged here once; what is left to do for the data costs a Reshape, and a
Transpose where the output wants its axes in another order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.nodes import set_input, take_over

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class _Product:
    """One linear layer.

    Attributes:
        data: What is multiplied, and its axes as letters.
        kept: Axes of the data that the output has too, in the output's order.
        summed: Axes that are summed over.
        made: Axes that the weights bring, in the output's order.
        output: Axes of the output.
        weights: [summed…, made…].
    """

    data: tuple[ir.Value, str]
    kept: str
    summed: str
    made: str
    output: str
    weights: NDArray[np.float32]


def write_out_einsums(model: ir.Model) -> int:
    """Replace every Einsum that is a product with constant weights, in place.

    Returns:
        How many were replaced.
    """
    changed = 0
    for node in list(model.graph):
        if node.op_type != "Einsum" or node.domain:
            continue
        product = _product(node)
        if product is not None:
            _replace(node, product, model.graph)
            changed += 1
    return changed


def _product(node: ir.Node) -> _Product | None:
    """What an Einsum computes, if it is one value times constant weights."""
    terms = _terms(node)
    if terms is None or len(node.inputs) != 2:
        return None
    *operands, output = terms
    constants = [
        v.const_value if v is not None and v.is_initializer() else None for v in node.inputs
    ]
    place = 1 if constants[1] is not None else 0
    data, tensor = node.inputs[1 - place], constants[place]
    if data is None or tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return None
    given, axes = operands[1 - place], operands[place]
    summed = "".join(a for a in axes if a in given and a not in output)
    kept = "".join(a for a in output if a in given and a not in axes)
    made = "".join(a for a in output if a in axes and a not in given)
    # Any other axis is one of a batch of products, or is summed over in one operand alone.
    plain = sorted(given) == sorted(kept + summed) and sorted(axes) == sorted(summed + made)
    if not (plain and kept and summed and made and sorted(output) == sorted(kept + made)):
        return None
    order = [axes.index(a) for a in summed + made]
    weights = np.asarray(tensor.numpy(), np.float32).transpose(order)
    return _Product((data, given), kept, summed, made, output, weights)


def _terms(node: ir.Node) -> list[str] | None:
    """Axes of every operand and of the output as letters; None where they cannot be told."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    if equation.count("->") != 1:
        return None
    inputs, output = equation.split("->")
    terms = [*inputs.split(","), output]
    if any("..." in t for t in terms):
        terms = _spelled_out(terms, node.inputs)
    return None if any("." in t for t in terms) else terms


def _spelled_out(terms: list[str], operands: Sequence[ir.Value | None]) -> list[str]:
    """The terms with letters for `...`, if the rank of the first operand that has it is known."""
    first = next((i for i, t in enumerate(terms[:-1]) if "..." in t), None)
    value = operands[first] if first is not None else None
    if first is None or value is None or value.shape is None:
        return terms
    free = [a for a in _LETTERS if not any(a in t for t in terms)]
    letters = "".join(free[: len(value.shape) - len(terms[first].replace("...", ""))])
    return [t.replace("...", letters) for t in terms]


def _replace(node: ir.Node, product: _Product, graph: ir.Graph) -> None:
    """Transpose ─▶ Reshape ─▶ MatMul ─▶ Reshape ─▶ Transpose, each only where it does something."""
    value, axes = product.data
    sizes = product.weights.shape
    rows = int(np.prod(sizes[: len(product.summed)]))
    steps = _Steps(node, graph, value)
    steps.transpose(axes, product.kept + product.summed)
    if len(product.summed) > 1:
        steps.reshape([0] * len(product.kept) + [rows])
    matmul = steps.add("MatMul", [steps.value, None], {})
    set_input(matmul, 1, product.weights.reshape(rows, -1), graph)
    if len(product.made) > 1:
        # A zero keeps the size that the axis has.
        steps.reshape([0] * len(product.kept) + list(sizes[len(product.summed) :]))
    steps.transpose(product.kept + product.made, product.output)
    take_over(node, steps.last, graph)


class _Steps:
    """Nodes put before another one, each reading the last."""

    def __init__(self, before: ir.Node, graph: ir.Graph, value: ir.Value) -> None:
        self.before, self.graph, self.value = before, graph, value
        self.count = 0
        self.last = before

    def add(
        self, op: str, inputs: Sequence[ir.Value | None], attributes: dict[str, list[int]]
    ) -> ir.Node:
        name = f"{self.before.name}_{op.lower()}_{self.count}"
        made = ir.node(op, inputs, attributes=attributes, name=name)
        made.outputs[0].name, made.outputs[0].dtype = f"{name}_out", ir.DataType.FLOAT
        self.graph.insert_before(self.before, made)
        self.count, self.last, self.value = self.count + 1, made, made.outputs[0]
        return made

    def transpose(self, now: str, wanted: str) -> None:
        if now != wanted:
            self.add("Transpose", [self.value], {"perm": [now.index(a) for a in wanted]})

    def reshape(self, sizes: list[int]) -> None:
        name = f"{self.before.name}_shape_{self.count}"
        tensor = ir.Tensor(np.array(sizes, np.int64), name=name)
        shape = ir.Value(
            name=name, shape=tensor.shape, const_value=tensor, type=ir.TensorType(ir.DataType.INT64)
        )
        self.graph.register_initializer(shape)
        self.add("Reshape", [self.value, shape], {})
