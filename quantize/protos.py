"""An ONNX file as a graph of a recent opset, whatever the format allows in it.

    file ─▶ sparse tensors written out ─▶ functions of another opset inlined ─▶ opset ≥ 13 ─▶ graph

What none of these has is read without its weights; the others need the whole model in one protobuf.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from bench.errors import UnsupportedError
from bench.models import Model, without_weights
from quantize.graphs import load, too_large

# Per-channel DequantizeLinear needs opset 13. 17 is preferred: newer LayerNormalization, same Q/DQ.
_OPSETS = (17, 15, 13)
_LOWEST_OPSET = 13


def load_graph(source: Model, notes: list[str], shown: str) -> ir.Model:
    """Read a model.

    Args:
        source: The model.
        notes: Gets a sentence where something was changed.
        shown: What the user calls the model.

    Raises:
        UnsupportedError: Its opset cannot be raised, or it is too large for what has to be done.
    """
    import onnx

    bare, large = without_weights(source.path), too_large(source.size_bytes)
    # 13 would do for Q/DQ, but HardSwish came with 14.
    old = source.opset < _LOWEST_OPSET or (source.opset == _LOWEST_OPSET and not large)
    why = f"its opset {source.opset} has to be raised to {_LOWEST_OPSET}" if old else ""
    if sparse := any(_sparse(bare)):
        why = "its sparse tensors have to be written out"
    if mixed := any(_opset(f) not in (None, source.opset) for f in bare.functions):
        why = "it has functions of another opset than its graph"
    if not why:
        return load(source.path)
    if large:
        raise UnsupportedError(
            f"{shown}: {why}, which needs the whole model in one protobuf (2 GB). Export it again "
            "with opset 17 or newer and dense weights."
        )
    proto = onnx.load(str(source.path))
    if sparse:
        _write_out(proto)
        notes.append("sparse tensors written out")
    if mixed:
        proto = _inlined(proto, shown)
    graph: ir.Model = ir.from_proto(_raised(proto, source.opset, notes, shown) if old else proto)
    return graph


def _raised(proto: Any, opset: int, notes: list[str], shown: str) -> Any:
    from onnx import version_converter

    # Up to IR 3 the converter looks for weights among the inputs, which not all exporters list.
    proto.ir_version = max(proto.ir_version, 4)
    failures = []
    for wanted in _OPSETS:
        try:
            converted = version_converter.convert_version(proto, wanted)
        except Exception as e:  # noqa: BLE001 - what C++ throws here has no common root
            failures.append(str(e).strip().splitlines()[0])
            continue
        notes.append(f"opset raised from {opset} to {wanted}")
        return converted
    if opset == _LOWEST_OPSET:
        return proto
    raise UnsupportedError(
        f"{shown}: opset {opset} cannot be raised to {_LOWEST_OPSET}, which 8-bit weights per "
        f"channel need: {failures[-1]}. Export it again with opset 17 or newer."
    )


def _inlined(proto: Any, shown: str) -> Any:
    """The model with its functions in the opset of its graph, in the places where they are used."""
    import onnx
    from onnx.inliner import inline_local_functions

    try:
        # The converter asks for the types of everything that a function reads.
        proto = onnx.shape_inference.infer_shapes(proto)
        known = {v.name for v in (*proto.graph.value_info, *proto.graph.input)}
        for tensor in proto.graph.initializer:
            if tensor.name not in known:
                kind = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
                proto.graph.value_info.append(onnx.helper.make_value_info(tensor.name, kind))
        return inline_local_functions(proto, convert_version=True)
    except Exception as e:  # what C++ throws here has no common root
        names = ", ".join(sorted({f"{f.domain}.{f.name}" for f in proto.functions})[:3])
        raise UnsupportedError(
            f"{shown}: its functions ({names}) are written in another opset than its graph, and "
            f"cannot be converted: {str(e).strip().splitlines()[0][:200]}. Export it again with "
            "one opset, or without functions."
        ) from e


def _opset(function: Any) -> int | None:
    """The version of the ONNX domain that a function is written in, if it uses that at all."""
    return next((o.version for o in function.opset_import if o.domain in ("", "ai.onnx")), None)


def _graphs(proto: Any) -> Iterator[Any]:
    """The main graph, and those inside its nodes."""
    graphs = [proto.graph]
    while graphs:
        graph = graphs.pop()
        yield graph
        for attribute in (a for n in graph.node for a in n.attribute):
            graphs += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]


def _sparse(proto: Any) -> Iterator[bool]:
    """True for everything sparse; onnx_ir reads none of it."""
    for graph in _graphs(proto):
        yield len(graph.sparse_initializer) > 0
        for node in graph.node:
            yield any(a.HasField("sparse_tensor") for a in node.attribute)


def _write_out(proto: Any) -> None:
    """Turn sparse initializers and constants into dense ones, in place."""
    import onnx

    for graph in _graphs(proto):
        graph.initializer.extend(_dense(t) for t in graph.sparse_initializer)
        del graph.sparse_initializer[:]
        for node in graph.node:
            for i, attribute in enumerate(node.attribute):
                if attribute.HasField("sparse_tensor"):
                    dense = onnx.helper.make_attribute("value", _dense(attribute.sparse_tensor))
                    node.attribute[i].CopyFrom(dense)


def _dense(sparse: Any) -> Any:
    """A SparseTensorProto as a TensorProto of the same name.

    Indices count either through the whole tensor, [n], or along each axis, [n, rank].
    """
    from onnx import numpy_helper

    values, places = map(numpy_helper.to_array, (sparse.values, sparse.indices))
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if places.ndim == 1:
        dense.reshape(-1)[places] = values
    else:
        dense[tuple(places.T)] = values
    return numpy_helper.from_array(dense, sparse.values.name)
