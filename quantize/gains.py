"""Which layers should gain from INT8, by what they compute, before anything is timed.

    placement ─▶ regions that stay in integers ─▶ saved by their products - spent at their edges
              ─▶ modes of the first plan

A product in integers saves time per multiplication. It is paid for where floats become integers
and integers floats, per node and per value, so what counts is the whole region between.
`python -m tests.benchmarks.gains` prints every time below beside what it takes on the CPU it runs
on; they are round numbers from among the shapes it tries, of ONNX Runtime with one thread on a Xeon
with AMX. For products the shape that gains most was taken, since a layer that is in float for no
reason costs more than one that is not. On other CPUs they are off by some factor, so they say what
is tried first, and the clock says what is kept.
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import inf, prod

import onnx_ir as ir

from quantize.anchors import Anchor, Mode
from quantize.calibrate import Calibration
from quantize.placement import Placement, place

NO_GAIN = "INT8 should gain nothing here: its kernel and the conversions around it cost more"

# Saved per multiplication; depthwise products take longer in integers.
PRODUCT_NS, DEPTHWISE_NS = 0.012, -0.01
# An integer convolution copies its input for every pixel that it makes, row by row of its kernel;
# rows of few channels, those of an image, take longest. Kernels of very many taps are as slow in
# float.
ROW_NS, THIN_ROW_NS = 1.0, 6.0
_THIN, _MOST_TAPS = 4, 49
# A conversion: the node, and each value with its move to another layout.
NODE_NS, VALUE_NS = 400.0, 0.3
# What ONNX Runtime computes within a float convolution, and apart behind an integer one.
APART_NS = 0.4
_WITHIN = frozenset({"HardSwish", "HardSigmoid"})
# A MaxPool before a conversion is moved behind it, and takes so long per value that it returns; it
# is fast in integers only in the layout of an integer convolution before it, so many nodes away.
POOL_NS = 20.0
_NEAR = 6
# One step of an LSTM: saved per weight, and what quantizing the state costs. How many steps there
# are does not change which is more.
LSTM_WEIGHT_NS, LSTM_STEP_NS = 0.02, 2000.0
_LSTM_STEPS = 20


@dataclass(frozen=True, slots=True)
class Region:
    """Layers that hand integers on to one another.

    Attributes:
        anchors: Their names.
        gain_ns: What INT8 should save per inference; below 0 it should cost.
    """

    anchors: tuple[str, ...]
    gain_ns: float


@dataclass(frozen=True, slots=True)
class Expected:
    """What should be fastest.

    Attributes:
        modes: Of every anchor.
        gains: Whether anything should gain; if not, `modes` has in INT8 what costs least.
    """

    modes: dict[str, Mode]
    gains: bool


def expect(model: ir.Model, anchors: tuple[Anchor, ...], calibration: Calibration) -> Expected:
    """Everything in INT8 but the regions, and the layers at their edges, that should cost time.

    Args:
        model: The prepared FP32 graph.
        anchors: Of it.
        calibration: Says how many values a tensor has; what it does not know stays in INT8.
    """
    modes: dict[str, Mode] = {a.name: a.modes[0] for a in anchors}
    regions = find_regions(model, anchors, modes, calibration)
    nodes, sizes = {str(n.name): n for n in model.graph}, calibration.sizes()
    for anchor in anchors:
        # Depthwise layers lose little, and OpenVINO gains from them.
        if anchor.op != "Conv" or anchor.depthwise:
            continue
        if _saved_ns(anchor, nodes[anchor.name], sizes) < 0:
            without: dict[str, Mode] = {**modes, anchor.name: "float"}
            found = find_regions(model, anchors, without, calibration)
            if _total_ns(found) > _total_ns(regions):
                modes, regions = without, found
    best = max(regions, key=lambda r: r.gain_ns, default=None)
    while poor := {n for r in regions if r.gain_ns <= 0 for n in r.anchors}:
        modes = {name: "float" if name in poor else mode for name, mode in modes.items()}
        # What stays may have more to convert now.
        regions = find_regions(model, anchors, modes, calibration)
    gains = bool(regions) or any(a.nested for a in anchors)
    if best is not None and not gains:
        modes |= {a.name: a.modes[0] for a in anchors if a.name in best.anchors}
    return Expected(modes, gains)


def _total_ns(regions: Iterable[Region]) -> float:
    return sum(max(r.gain_ns, 0.0) for r in regions)


def find_regions(
    model: ir.Model,
    anchors: tuple[Anchor, ...],
    modes: Mapping[str, Mode],
    calibration: Calibration,
) -> tuple[Region, ...]:
    """The regions of what these modes have in INT8, in the order of the graph.

    What lies in a subgraph is in none; one of unknown size counts as a gain without end.
    """
    placement = place(model, anchors, modes, calibration.magnitudes())
    sizes = calibration.sizes()
    edges = list(_edges(model, placement))
    region_of = _joined(edges)
    gains: dict[str, float] = {}
    members: dict[str, list[str]] = {}
    nodes = {str(n.name): n for n in model.graph}
    for anchor in anchors:
        if placement.modes[anchor.name] == "float" or anchor.nested:
            continue
        region = region_of.get(anchor.name, anchor.name)
        members.setdefault(region, []).append(anchor.name)
        gains[region] = gains.get(region, 0.0) + _saved_ns(anchor, nodes[anchor.name], sizes)
    for edge in edges:
        region = region_of[edge.nodes[0]]
        if region in gains and edge.converted:
            gains[region] -= NODE_NS + edge.value_ns * sizes.get(edge.tensor, 0.0)
    return tuple(Region(tuple(names), gains[r]) for r, names in members.items())


@dataclass(frozen=True, slots=True)
class _Edge:
    """A quantized tensor: who makes and reads it in integers, and what converting it costs."""

    tensor: str
    nodes: tuple[str, ...]
    converted: bool
    value_ns: float


def _edges(model: ir.Model, placement: Placement) -> Iterator[_Edge]:
    integers = placement.glue | {n for n, m in placement.modes.items() if m == "static"}
    ends = {end: name for name, end in placement.rectified.items()}
    values = {str(v.name): v for v in model.graph.inputs}
    values |= {str(v.name): v for n in model.graph for v in n.outputs}
    for name in placement.tensors:
        value = values[name]
        producer = value.producer()
        maker = ends.get(name, str(producer.name) if producer is not None else "")
        made = maker in integers
        readers = [use.node for use in value.uses()]
        taking = [str(n.name) for n in readers if n.name in integers]
        outside = [n.op_type for n in readers if n.name not in integers]
        value_ns = VALUE_NS
        if not made and _pools_floats(producer, integers):
            value_ns += POOL_NS
        if made and _WITHIN.intersection(outside):
            value_ns += APART_NS
        converted = not made or bool(outside) or value.is_graph_output()
        yield _Edge(name, (*([maker] if made else []), *taking), converted, value_ns)


def _pools_floats(node: ir.Node | None, integers: Container[str]) -> bool:
    """Whether it is a MaxPool with no integer convolution near before it."""
    if node is None or node.op_type != "MaxPool":
        return False
    for _ in range(_NEAR):
        value = node.inputs[0]
        node = value.producer() if value is not None else None
        if node is None or node.op_type == "Conv":
            break
    return node is None or node.name not in integers


def _joined(edges: Iterable[_Edge]) -> dict[str, str]:
    """The region of every node in integers, named by one of its nodes."""
    region_of: dict[str, str] = {}
    for edge in edges:
        met = {region_of.get(n, n) for n in edge.nodes}
        first = min(met)
        region_of |= {n: first for n, region in region_of.items() if region in met}
        region_of |= dict.fromkeys(edge.nodes, first)
    return region_of


def _saved_ns(anchor: Anchor, node: ir.Node, sizes: Mapping[str, float]) -> float:
    """What a layer saves, conversions apart."""
    if anchor.op == "LSTM":
        return _LSTM_STEPS * (LSTM_WEIGHT_NS * anchor.weight_count - LSTM_STEP_NS)
    read = anchor.end if anchor.op == "Conv" else anchor.data
    if read not in sizes:
        return inf
    weights = node.inputs[1]
    assert weights is not None
    assert weights.const_value is not None
    shape = [int(n) for n in weights.const_value.shape.numpy()]
    channels = max(shape[anchor.out_axis], 1)
    inner = anchor.weight_count / channels
    if anchor.op != "Conv":
        return PRODUCT_NS * sizes[read] / inner * anchor.weight_count
    if anchor.depthwise:
        return DEPTHWISE_NS * sizes[read] * inner
    rows = prod(shape[2:-1]) if 1 < prod(shape[2:]) <= _MOST_TAPS else 0
    row_ns = THIN_ROW_NS if shape[1] <= _THIN else ROW_NS
    return PRODUCT_NS * sizes[read] * inner - row_ns * sizes[read] / channels * rows
