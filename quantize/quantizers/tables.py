"""Embedding tables in 8 bits: half of a small language model's file, and never multiplied.

    Gather(table f32 [rows, width], i) ─▶ Gather(codes s8) · Gather(scales f32 [rows, 1])

A row is looked up and scaled, so no activation is rounded and no kernel can saturate.
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.quantizers.rounding import S8_MAX

# Smaller tables are not worth two more operators.
_LEAST_ELEMENTS = 1 << 16
# Elements rounded together; 256 kB of float32.
_BLOCK = 1 << 16


def compress_tables(model: ir.Model) -> int:
    """Store the constant tables of Gather nodes as int8 with one scale per row, in place.

    A table that something else reads too (a tied output layer) stays as it is: it would have to be
    stored twice.

    Returns:
        How many tables were compressed.
    """
    graph = model.graph
    tables = [v for v in graph.initializers.values() if _is_table(v)]
    for table in tables:
        assert table.const_value is not None
        codes, scales = _rounded(table.const_value.numpy())
        held = _constant(graph, f"{table.name}_codes", codes)
        units = _constant(graph, f"{table.name}_row_scales", scales)
        for use in list(table.uses()):
            _look_up(use.node, held, units)
        del graph.initializers[str(table.name)]
    return len(tables)


def _rounded(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes and scales [rows, 1] of a table, some rows at a time: copies of them stay in cache."""
    codes = np.empty(values.shape, np.int8)
    scales = np.empty((len(values), 1), np.float32)
    some = max(1, _BLOCK // values.shape[1])
    for start in range(0, len(values), some):
        part = values[start : start + some]
        scale = np.maximum(np.abs(part).max(axis=1, keepdims=True) / S8_MAX, 1e-12)
        scales[start : start + some] = scale
        np.rint(part / scale, out=codes[start : start + some], casting="unsafe")
    return codes, scales


def _is_table(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2:
        return False
    uses = list(value.uses())
    return (
        tensor.size >= _LEAST_ELEMENTS
        and bool(uses)
        and all(_looks_up(u.node) and u.idx == 0 for u in uses)
    )


def _looks_up(node: ir.Node) -> bool:
    if node.op_type != "Gather" or node.domain:
        return False
    axis = node.attributes.get("axis")
    return axis is None or axis.as_int() == 0


def _look_up(node: ir.Node, codes: ir.Value, scales: ir.Value) -> None:
    graph, name, indices = node.graph, node.name, node.inputs[1]
    assert isinstance(graph, ir.Graph)
    row = ir.node("Gather", [codes, indices], name=f"{name}_codes")
    wide = ir.node(
        "Cast", row.outputs, attributes={"to": int(ir.DataType.FLOAT)}, name=f"{name}_cast"
    )
    unit = ir.node("Gather", [scales, indices], name=f"{name}_scales")
    result = ir.node("Mul", [wide.outputs[0], unit.outputs[0]], name=f"{name}_scaled")
    for part in (row, wide, unit, result):
        part.outputs[0].name = f"{part.name}_output"
    graph.insert_before(node, [row, wide, unit, result])
    was, now = node.outputs[0], result.outputs[0]
    label, shape, kind = was.name, was.shape, was.type
    was.replace_all_uses_with(now, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    now.name, now.shape, now.type = label, shape, kind


def _constant(graph: ir.Graph, name: str, values: NDArray[np.generic]) -> ir.Value:
    tensor = ir.Tensor(values, name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
    )
    graph.register_initializer(value)
    return value
