"""Which kernels a runtime really runs for a file: asked of the runtime, not guessed from the file.

    file ─┬─▶ ONNX Runtime's optimized graph, saved ─┬─▶ Kernels: what runs, in integers or not,
          └─▶ OpenVINO's runtime model ──────────────┘            and how long

What a kernel works on is told by its operator (ONNX Runtime's integer operators have names of their
own) or by its primitive (OpenVINO's end in `_I8`).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from bench.errors import InputError, UsageError
from bench.islands import Island, Kernel, Kind, Node, find_islands, is_lone, link, total_ms
from bench.models import Feeds
from bench.profile import node_times
from bench.runtimes.onnxruntime import open_errors, session_options
from bench.runtimes.openvino import OpenVinoSession, load_package, properties
from bench.runtimes.seam import Session, Settings
from bench.store import refuse_full

_LEAST_RUNS, _MOST_RUNS = 3, 20
# Multiplications with weights, which is what INT8 is for.
_PRODUCTS = re.compile(r"Conv|Deconv|Gemm|MatMul|FullyConnected|LSTM|GRU|RNN|Attention|MHA")
_CONVERSIONS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
    | {"FakeQuantize", "Convert", "Reorder"}
)
_ORT_INTEGER = re.compile(
    r"^(QLinear|QGemm|QAttention|QEmbed|QMoE|NhwcMaxPool|DynamicQuantize(MatMul|LSTM))|Integer"
)
# Their result is float although they multiply integers: float after them is not an island.
_ORT_TO_FLOAT = re.compile(r"^(DynamicQuantize(MatMul|LSTM)|QAttention)|Integer")
# Operators that pass their first input's bytes on, whatever their type.
_MOVES = frozenset(
    {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "MaxPool", "Concat"}
    | {"Slice", "Gather", "Split", "Pad", "Resize", "DepthToSpace", "SpaceToDepth", "Expand"}
)
_EIGHT_BITS = ("u8", "i8")
# Nodes that are fused into a product, and the product: bias, norm, activation.
_FUSED = 4
_TOKEN = re.compile(r"_token_\d+$")
_NOT_KERNELS = frozenset({"Input", "Output", "Parameter", "Result"})


@dataclass(frozen=True, slots=True)
class Kernels:
    """What one runtime makes of a file.

    Attributes:
        runtime: Name in `bench.runtimes.RUNTIMES`.
        version: Of its package.
        kernels: Everything that runs, in the runtime's order; subgraphs included.
        islands: Float islands between integer kernels.
        lone_pairs: Conversions to integers whose result is only converted back: they round and do
            nothing else.
        runs: Inferences that the times are means of; 0 where nothing was timed.
    """

    runtime: str
    version: str
    kernels: tuple[Kernel, ...]
    islands: tuple[Island, ...]
    lone_pairs: int
    runs: int

    @property
    def integer_products(self) -> int:
        """Products that run in integers."""
        return sum(k.integer for k in self.products)

    @property
    def products(self) -> tuple[Kernel, ...]:
        """Kernels that multiply."""
        return tuple(k for k in self.kernels if k.kind == "product")

    @property
    def conversions(self) -> int:
        """Kernels that only convert."""
        return sum(k.kind == "conversion" for k in self.kernels)

    @property
    def total_ms(self) -> float | None:
        """Time in all kernels of one inference."""
        return total_ms(self.kernels)


def find_kernels(
    path: Path,
    runtime: str,
    *,
    threads: int,
    scratch: Path,
    feeds: Feeds | None = None,
    seconds: float = 1.0,
) -> Kernels:
    """Open a file as it would be served, and read back what the runtime made of it.

    Args:
        path: The model.
        runtime: "onnxruntime" or "openvino".
        threads: Inside one inference.
        scratch: Folder for intermediate files, which are removed.
        feeds: One sample, to time the kernels with; None: they are not timed.
        seconds: How long to time, about; at least 3 inferences, and at most 20.

    Raises:
        UsageError: The runtime does not tell its kernels.
        UnfitError: It is not installed.
        InputError: It refuses the file, or the sample.
    """
    try:
        reader = _READERS[runtime]
    except KeyError:
        known = ", ".join(_READERS)
        raise UsageError(
            f"runtime {runtime!r} does not tell its kernels; known: {known}."
        ) from None
    return _linked(runtime, *reader(path, Settings(threads=threads), scratch, feeds, seconds))


def kernels_of(session: Session) -> Kernels | None:
    """What runs in a model that is open, not timed; None where its runtime does not tell it then.

    ONNX Runtime tells it only by a file that it writes as it opens a model.
    """
    if not isinstance(session, OpenVinoSession):
        return None
    version = str(load_package().__version__).split("-")[0]
    return _linked("openvino", version, _openvino_nodes(session.compiled, {}), 0)


def _linked(runtime: str, version: str, nodes: list[Node], runs: int) -> Kernels:
    link(nodes)
    return Kernels(
        runtime=runtime,
        version=version,
        kernels=tuple(n.kernel for n in nodes),
        islands=tuple(find_islands(nodes)),
        lone_pairs=sum(is_lone(n, nodes) for n in nodes),
        runs=runs,
    )


def _onnxruntime(
    path: Path, settings: Settings, scratch: Path, feeds: Feeds | None, seconds: float
) -> tuple[str, list[Node], int]:
    import onnx
    import onnxruntime as ort

    file, weights = scratch / "optimized.onnx", "optimized.data"
    options = session_options(settings)
    options.optimized_model_filepath = str(file)
    # Beside the graph: one protobuf holds no more than 2 GB.
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", weights
    )
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
    )
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except open_errors() as e:
        if path.is_file():
            refuse_full(scratch, path.stat().st_size)
        raise InputError(f"{path}: onnxruntime refuses the model: {str(e)[:400]}") from e
    optimized = onnx.load(str(file), load_external_data=False)
    given = onnx.load(str(path), load_external_data=False).graph
    makers = {output: node for node in given.node for output in node.output}
    _name_nodes(optimized.graph, set())
    file.write_bytes(optimized.SerializeToString())
    times: Mapping[str, float] = {}
    runs = 0
    try:
        if feeds is not None:
            runs = _runs(lambda: session.run(None, feeds), seconds)
            # What was optimized runs as it is: the profiler tells nodes apart by name alone.
            times = node_times(
                file, feeds, threads=settings.threads, runs=runs, scratch=scratch, optimize="none"
            )
    except open_errors() as e:
        reason = str(e).splitlines()[0][:400]
        raise InputError(f"{path}: onnxruntime cannot run the sample: {reason}") from e
    finally:
        for leftover in (file, scratch / weights):
            leftover.unlink(missing_ok=True)
    nodes = list(_onnx_nodes(optimized.graph, times, set()))
    for node in nodes:
        node.kernel = replace(node.kernel, origins=_origins(node, makers))
    return str(ort.__version__), nodes, runs


def _origins(node: Node, makers: Mapping[str, Any]) -> tuple[str, ...]:
    """Nodes of the file that a kernel computes as far as its names tell, then its outputs.

    ONNX Runtime derives the names of what it makes: `<output>_nchwc` is a convolution in blocks,
    `<node>_token_<n>` one that was built from Q/DQ pairs. What was fused into a product goes by the
    last output: the product is some nodes before it.
    """
    plain = _TOKEN.sub("", node.kernel.name.removesuffix("_nchwc"))
    outputs = [o for o in node.outputs if o and not o.startswith("reorder_token_")]
    fused = node.kernel.kind == "product"
    found = [n for o in (plain, *outputs) for n in _nodes_before(o, makers, fused=fused)]
    if any(m.name == plain for m in makers.values()):
        found.append(plain)
    return tuple(dict.fromkeys(o for o in (*found, *outputs) if o))


def _nodes_before(output: str, makers: Mapping[str, Any], *, fused: bool) -> list[str]:
    """The node that makes `output`, after those that were fused with it, up to a product."""
    found: list[str] = []
    while output in makers and len(found) < (_FUSED if fused else 1):
        maker = makers[output]
        found.insert(0, maker.name)
        if _kind(maker.op_type) == "product":
            break
        output = next(iter(maker.input), "")
    return found


def _name_nodes(graph: Any, taken: set[str]) -> None:
    """Give every node of a graph and its subgraphs a name of its own, where it has none."""
    for node in graph.node:
        name = node.name or f"{node.op_type} {next(filter(None, node.output), '')}"
        number = 1
        node.name = name
        while node.name in taken:
            number += 1
            node.name = f"{name} ({number})"
        taken.add(node.name)
        for inner in _subgraphs(node):
            _name_nodes(inner, taken)


def _subgraphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        yield from attribute.graphs
        if attribute.HasField("g"):
            yield attribute.g


def _onnx_nodes(graph: Any, times: Mapping[str, float], eight: set[str]) -> Iterator[Node]:
    """Nodes of an optimized graph, those of its subgraphs after the node that holds them.

    The time of such a node is what its subgraphs do not account for.

    Args:
        graph: `onnx.GraphProto`.
        times: ms by node name.
        eight: Names of tensors known to hold 8-bit integers; grows.
    """
    from onnx import TensorProto

    kinds = (TensorProto.INT8, TensorProto.UINT8)
    eight |= {v.name for v in graph.input if v.type.tensor_type.elem_type in kinds}
    for node in graph.node:
        found = _onnx_node(node, times, eight)
        inside = [n for inner in _subgraphs(node) for n in _onnx_nodes(inner, times, eight)]
        if inside and found.kernel.ms is not None:
            own = found.kernel.ms - (total_ms(n.kernel for n in inside) or 0.0)
            found.kernel = replace(found.kernel, ms=max(own, 0.0))
        yield found
        yield from inside


def _onnx_node(node: Any, times: Mapping[str, float], eight: set[str]) -> Node:
    op = node.op_type
    data = node.input[1] if op == "QLinearConcat" else next(iter(node.input), "")
    integer = bool(_ORT_INTEGER.search(op)) or (op in _MOVES and data in eight)
    to_float = bool(_ORT_TO_FLOAT.search(op)) or (op == "QGemm" and len(node.input) < 9)
    gives = integer and not to_float
    if gives or op in ("QuantizeLinear", "DynamicQuantizeLinear"):
        eight |= set(node.output)
    kernel = Kernel(
        name=node.name,
        op=op,
        kind=_kind(op),
        integer=integer,
        primitive="",
        origins=tuple(o for o in node.output if o),
        ms=times.get(node.name) if times else None,
    )
    takes = integer and not op.startswith("DynamicQuantize")
    return Node(kernel, tuple(node.input), tuple(node.output), takes, gives)


def _openvino(
    path: Path, settings: Settings, scratch: Path, feeds: Feeds | None, seconds: float
) -> tuple[str, list[Node], int]:
    del scratch
    package = load_package()
    core = package.Core()
    options = {**properties(settings), "PERF_COUNT": feeds is not None}
    try:
        model = core.read_model(str(path))
        compiled = core.compile_model(model, "CPU", options)
        times, runs = _openvino_times(compiled, feeds, seconds)
        nodes = _openvino_nodes(compiled, times)
    except RuntimeError as e:
        told = " ".join(str(e).split())
        reason = (told.partition("Summary:")[2] or told).strip("- ")[-400:]
        raise InputError(f"{path}: openvino refuses the model: {reason}") from e
    version = str(package.__version__).split("-")[0]
    return version, nodes, runs


def _openvino_nodes(compiled: Any, times: Mapping[str, float]) -> list[Node]:
    ordered = compiled.get_runtime_model().get_ordered_ops()
    return list(_without_constants([_openvino_node(op, times) for op in ordered]))


def _without_constants(nodes: list[Node]) -> Iterator[Node]:
    """Leave out what has no input but constants: it was computed once, when the file was loaded."""
    constant: set[str] = set()
    for node in nodes:
        op = node.kernel.op
        fixed = bool(node.inputs) and constant.issuperset(node.inputs)
        if op in ("Const", "Constant") or fixed:
            constant.add(node.kernel.name)
        elif op not in _NOT_KERNELS:
            yield node


def _openvino_times(
    compiled: Any, feeds: Feeds | None, seconds: float
) -> tuple[dict[str, float], int]:
    """Mean ms by kernel name, and of how many runs; kernels merged into others are missing."""
    if feeds is None:
        return {}, 0
    request = compiled.create_infer_request()
    runs = _runs(lambda: request.infer(dict(feeds)), seconds)
    spent: dict[str, float] = {}
    for _ in range(runs):
        request.infer(dict(feeds))
        for info in request.profiling_info:
            if info.status.name == "EXECUTED":
                ms = info.real_time.total_seconds() * 1e3
                spent[info.node_name] = spent.get(info.node_name, 0.0) + ms / runs
    return spent, runs


def _runs(infer: Callable[[], object], seconds: float) -> int:
    """How many inferences fit, after one that allocates and one that is timed."""
    infer()
    start = perf_counter_ns()
    infer()
    once = (perf_counter_ns() - start) / 1e9
    return max(_LEAST_RUNS, min(_MOST_RUNS, int(seconds / max(once, 1e-6))))


def _openvino_node(op: Any, times: Mapping[str, float]) -> Node:
    said = {key: str(op.rt_info[key].astype(str)) for key in _SAID if key in op.rt_info}
    layer, primitive = said.get("layerType", "?"), said.get("primitiveType", "")
    makes = said.get("outputPrecisions", "").split(",")
    integer = primitive.lower().endswith(("_i8", "_u8"))
    name = op.get_friendly_name()
    kernel = Kernel(
        name=name,
        op=layer,
        kind=_kind(layer),
        integer=integer,
        primitive=primitive,
        origins=tuple(o for o in said.get("originalLayersNames", "").split(",") if o),
        ms=times.get(name) if times else None,
    )
    inputs = tuple(str(v.get_source_output().get_node().get_friendly_name()) for v in op.inputs())
    gives = all(m in _EIGHT_BITS for m in makes) and layer != "Gather"
    return Node(kernel, inputs, (name,), integer, gives)


_SAID = ("layerType", "primitiveType", "outputPrecisions", "originalLayersNames")
_READERS: dict[
    str, Callable[[Path, Settings, Path, Feeds | None, float], tuple[str, list[Node], int]]
] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
TELLING = tuple(_READERS)


def _kind(op: str) -> Kind:
    if op in _CONVERSIONS:
        return "conversion"
    return "product" if _PRODUCTS.search(op) else "other"
