"""FP32 and INT8 side by side in one graph: where noise is made, and where it has got to.

    FP32 graph ─────────┬─▶ signal of each layer
    INT8 graph, whole ──┼─▶ accumulated noise: the layer in the INT8 model against FP32
    INT8 layers, each ──┴─▶ local noise: the layer in INT8 alone, fed by FP32, against FP32
    on FP32's tensors

All three meet in sums of squares inside the graph, so that no tensor leaves it: a run returns three
numbers per layer, and one session answers for every layer at once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from bench.errors import UnsupportedError
from bench.models import Feeds
from bench.runtimes import RUNTIMES, Settings
from quantize.anchors import Anchor, find_anchors
from quantize.graphs import constants_of

_PREFIX = "int8 of "
# As in `quantize.outputs.noise_shares`: what noise that is not finite counts as.
_MOST = 1e6
# A layer is a handful of nodes; a walk that needs more has lost its way.
_LONGEST = 64
# What is no larger is written into the graph.
_INLINE_BYTES = 256


@dataclass(frozen=True, slots=True)
class LayerNoise:
    """Noise over signal at the end of one layer, as its readers see it.

    Attributes:
        layer: Name of its node.
        local: What the layer itself adds: in INT8 on FP32's inputs, against FP32.
        accumulated: What there is in the INT8 model, made here and before.
    """

    layer: str
    local: float
    accumulated: float


def side_by_side(
    fp32: ir.Model, int8: ir.Model, probes: Sequence[Feeds], *, threads: int, scratch: Path
) -> tuple[LayerNoise, ...]:
    """Noise of every layer that both graphs have under the same tensor names, in graph order.

    INT8 is computed exactly, as VNNI does, and without fusions.

    Args:
        fp32: What INT8 was made of, evened-out channels included, its weights initializers, which
            may lie in files in `scratch`; what is done here changes it.
        int8: What any tool made of it that keeps the names of tensors; used up.
        probes: Samples; noise and signal are summed over them.
        threads: Inside one inference.
        scratch: Folder for the graph that holds both, which is removed.

    Raises:
        UnsupportedError: The files have no layer in common, or other operator versions.
        InputError: The graph does not run on a sample.
    """
    ours, theirs = (m.opset_imports.get("") for m in (fp32, int8))
    if ours != theirs:
        raise UnsupportedError(
            f"side by side, both files need one opset; FP32 has {ours}, INT8 {theirs}. Compare "
            "with the FP32 file that INT8 was made of."
        )
    layers = _merge(fp32, int8)
    if not layers:
        raise UnsupportedError(
            "no layer of the INT8 file gives a float tensor of the same name as in the FP32 file. "
            "Compare with the FP32 file that INT8 was made of; files of QLinearConv and the like "
            "have no float between layers."
        )
    file = scratch / "side-by-side.onnx"
    _save(fp32, file)
    # Fusions would take layers apart that are to be looked at one by one.
    settings = Settings(threads=threads, exact=True, optimize="none", arena=False)
    session = RUNTIMES["onnxruntime"].open(file, settings)
    sums = np.zeros((3, len(layers)))
    try:
        for feeds in probes:
            found = session.run(feeds)
            sums += [[float(found[f"{kind}/{n}"]) for n in layers] for kind in _KINDS]
    finally:
        session.close()
        for leftover in scratch.glob(f"{file.name}*"):
            leftover.unlink()
    signal, local, accumulated = sums
    return tuple(
        LayerNoise(name, _share(own, s), _share(all_, s))
        for name, s, own, all_ in zip(layers, signal, local, accumulated, strict=True)
    )


def _save(model: ir.Model, file: Path) -> None:
    """Write a graph with its weights beside it; those that lie there already are not copied.

    From file to file, one weight at a time, and read from there: inside the graph both models'
    weights would be in memory three times.
    """
    moved = {
        value: tensor
        for value in constants_of(model)
        if (tensor := value.const_value) is not None and _is_moved(tensor, file.parent)
    }
    held = ir.external_data.convert_tensors_to_external(
        list(moved.values()), file.parent, f"{file.name}.data"
    )
    for value, tensor in zip(moved, held, strict=True):
        value.const_value = tensor
    ir.save(model, file)


def _is_moved(tensor: ir.TensorProtocol, folder: Path) -> bool:
    """Whether a weight goes into the file beside the graph: it is large, or lies elsewhere."""
    if isinstance(tensor, ir.ExternalTensor):
        return Path(tensor.path).parent != folder
    return tensor.nbytes > _INLINE_BYTES


_KINDS = ("signal", "local", "accumulated")


def _share(noise: float, signal: float) -> float:
    if not np.isfinite(noise) or not np.isfinite(signal):
        return _MOST
    if signal > 0:
        return min(noise / signal, _MOST)
    return 1.0 if noise > 0 else 0.0


def _merge(base: ir.Model, twin: ir.Model) -> list[str]:
    """Put the INT8 graph and its single layers beside FP32, and sums in place of the outputs.

    Returns:
        Names of the layers whose sums are now outputs, in graph order.
    """
    graph = base.graph
    ours = {str(v.name): v for v in (*graph.inputs, *(v for n in graph for v in n.outputs))}
    theirs = {str(v.name): v for n in twin.graph for v in n.outputs}
    anchors = [a for a in find_anchors(base)[0] if not a.nested]
    seen = {a.name: _seen(a, ours, theirs) for a in anchors}
    slices = {
        a.name: found
        for a in anchors
        if (value := seen[a.name][1]) is not None
        and (found := _slice(value, set(_own(a, ours)), ours))
    }
    # Names as they were: what follows renames the values.
    names = {v: str(v.name) for v in (*theirs.values(), *twin.graph.inputs)}
    _adopt(graph, twin)
    base.opset_imports.update({k: v for k, v in twin.opset_imports.items() if k})
    graph.outputs.clear()
    for name, nodes in slices.items():
        end, value = seen[name]
        assert value is not None
        local = _copied(graph, nodes, names, ours, name)[value]
        for kind, tensor in zip(_KINDS, (None, local, value), strict=True):
            _add_sum(graph, ours[end], tensor, f"{kind}/{name}")
    return list(slices)


def _own(anchor: Anchor, ours: Mapping[str, ir.Value]) -> Iterator[str]:
    """Names of the tensors that the layer makes; the last one is its end.

    The bias of a MatMul is an Add of its own, which takes up a corrected mean.
    """
    yield from dict.fromkeys((anchor.output, anchor.end))
    users = [u.node for u in ours[anchor.end].uses()]
    if anchor.op != "MatMul" or len(users) != 1 or users[0].op_type != "Add":
        return
    if any(v is not None and v.is_initializer() for v in users[0].inputs):
        yield str(users[0].outputs[0].name)


def _seen(
    anchor: Anchor, ours: Mapping[str, ir.Value], theirs: Mapping[str, ir.Value]
) -> tuple[str, ir.Value | None]:
    """The end of a layer, and the INT8 model's tensor that its readers read there."""
    end = list(_own(anchor, ours))[-1]
    value = theirs.get(end)
    if ours[end].dtype not in (None, ir.DataType.FLOAT):
        return end, None
    codes = [u.node for u in value.uses() if u.node.op_type == "QuantizeLinear"] if value else []
    backs = [u.node for n in codes for u in n.outputs[0].uses()]
    back = next((n for n in backs if n.op_type == "DequantizeLinear"), None)
    return end, back.outputs[0] if back is not None else value


def _slice(end: ir.Value, own: set[str], ours: Mapping[str, ir.Value]) -> list[ir.Node]:
    """The INT8 nodes between FP32's tensors and the end of a layer, in order; empty if too many."""
    found: list[ir.Node] = []

    def visit(value: ir.Value | None) -> None:
        if value is None or (maker := value.producer()) is None:
            return
        if maker in found or len(found) > _LONGEST:
            return
        if value is not end and value.name in ours and value.name not in own:
            return
        for before in maker.inputs:
            visit(before)
        if maker not in found:
            found.append(maker)

    visit(end)
    nested = any(a.type in _GRAPHS for n in found for a in n.attributes.values())
    return [] if nested or len(found) > _LONGEST else found


_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _adopt(graph: ir.Graph, twin: ir.Model) -> None:
    """Move all nodes and constants of another graph here, under other names, fed by our inputs."""
    inputs = {v.name: v for v in graph.inputs}
    for value in twin.graph.inputs:
        if value.name in inputs:
            value.replace_all_uses_with(inputs[value.name])
    constants = list(twin.graph.initializers.values())
    twin.graph.initializers.clear()
    twin.graph.outputs.clear()
    for i, node in enumerate(twin.graph.all_nodes()):
        node.name = f"{_PREFIX}{node.name or i}"
        for value in node.outputs:
            # An empty name stands for an output that is left out.
            if value.name:
                value.name = f"{_PREFIX}{value.name}"
    for value in constants:
        value.name = f"{_PREFIX}{value.name}"
        graph.register_initializer(value)
    nodes = list(twin.graph)
    twin.graph.remove(nodes)
    graph.extend(nodes)


def _copied(
    graph: ir.Graph,
    nodes: Iterable[ir.Node],
    names: Mapping[ir.Value, str],
    ours: Mapping[str, ir.Value],
    layer: str,
) -> dict[ir.Value, ir.Value]:
    """Copies of one layer's nodes that read FP32's tensors; by what they are copies of."""
    made: dict[ir.Value, ir.Value] = {}

    def read(value: ir.Value | None) -> ir.Value | None:
        if value is None or value in made or value.is_initializer():
            return made.get(value, value) if value is not None else None
        return ours.get(names.get(value, str(value.name)), value)

    for node in nodes:
        copy = ir.Node(
            node.domain,
            node.op_type,
            [read(v) for v in node.inputs],
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
            name=f"{layer} alone: {node.name}",
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name = f"{layer} alone: {old.name}" if old.name else ""
            made[old] = new
        graph.append(copy)
    return made


def _add_sum(graph: ir.Graph, fp32: ir.Value, other: ir.Value | None, name: str) -> None:
    """Make the sum of squares of FP32's tensor, or of its distance to another, an output."""
    summed = fp32
    if other is not None:
        gap = ir.node("Sub", [other, fp32], name=f"{name}/gap")
        gap.outputs[0].name = f"{name}/gap"
        graph.append(gap)
        summed = gap.outputs[0]
    node = ir.node("ReduceSumSquare", [summed], attributes={"keepdims": 0}, name=name)
    (out,) = node.outputs
    out.name, out.type, out.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    graph.append(node)
    graph.outputs.append(out)
