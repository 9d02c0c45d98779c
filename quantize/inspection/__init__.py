"""What is in an ONNX file, INT8 or not, whoever made it: `vnnify inspect`.

file ─▶ products (Q/DQ, integer operators) ─┬─▶ modes, causes, risk of saturation, red flags
─▶ bench.kernels: what really runs ────┤
─▶ samples, if given ─▶ what saturates ┼─▶ Inspection
─▶ FP32, if given ─▶ noise layer by layer ┘
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from bench.errors import InputError, UnsupportedError, VnnifyError
from bench.islands import Kernel
from bench.kernels import Kernels, find_kernels
from bench.models import Feeds, Model
from bench.runtimes import RUNTIMES, Settings
from quantize.findings import Finding
from quantize.graphs import load, opened, too_large, weight_bytes
from quantize.inspection.causes import causes, told_beside
from quantize.inspection.constants import array_of
from quantize.inspection.difficulties import difficulties
from quantize.inspection.flags import Flag, find_flags
from quantize.inspection.observing import Observed, observe
from quantize.inspection.products import Mode, Product, lifted, products
from quantize.inspection.saturation import Risk, risk_of
from quantize.inspection.side_by_side import LayerNoise, side_by_side
from quantize.prepare import prepare

__all__ = ["Inspection", "Layer", "Means", "inspect_model"]

logger = logging.getLogger(__name__)

# What reading a graph raises where a node lacks an input, or a tensor is not as long as it says.
_DAMAGE = (IndexError, KeyError, TypeError, ValueError, AttributeError, ir.serde.SerdeError)


@dataclass(frozen=True, slots=True)
class Layer:
    """One product of the file, and what becomes of it.

    Attributes:
        name: Of its node.
        op: Of its node, without Q/DQ around it.
        mode: "static", "dynamic", "weight-only" or "float".
        cause: Why it is in float; empty in INT8.
        activation: "u8", "s8", …; empty in float.
        weights: Type of its weights; empty in float.
        per_channel: Whether they have a scale per output channel; None where that is not known.
        symmetric: Whether their zero points are in the middle; None likewise.
        weight_count: Elements of its constant weights.
        depthwise: Whether it is a depthwise convolution.
        risk: On CPUs that saturate; None where it does not multiply integers with constants.
        observed: What samples showed of that; None without samples or risk.
        kernels: The kernel that runs it, by runtime; a runtime is missing where it merged or
            folded the product, so that none could be found.
    """

    name: str
    op: str
    mode: Mode
    cause: str
    activation: str
    weights: str
    per_channel: bool | None
    symmetric: bool | None
    weight_count: int
    depthwise: bool
    risk: Risk | None
    observed: Observed | None
    kernels: dict[str, Kernel]


@dataclass(frozen=True, slots=True)
class Inspection:
    """Everything that was found in one file.

    Attributes:
        command: As typed.
        model: The file.
        domains: Operator domains with their versions.
        parameters: Elements of all constant floats and 8-bit codes but scales and zero points.
        forms: How integers are written, with the number of nodes: "QuantizeLinear", "QLinearConv".
        tables: Embedding tables in 8 bits.
        layers: Products in graph order.
        flags: What deserves a look, the worst first.
        kernels: What each runtime really runs.
        unread: Runtimes that could not be asked, with the reason.
        notes: What a user may want to know.
        findings: What makes layers hard for 8 bits, and what was done: from the report beside the
            file, and from the file.
        noise: Of every layer against FP32, in graph order; empty without that file or samples.
    """

    command: str
    model: Model
    domains: dict[str, int]
    parameters: int
    forms: dict[str, int]
    tables: int
    layers: tuple[Layer, ...]
    flags: tuple[Flag, ...]
    kernels: tuple[Kernels, ...]
    unread: dict[str, str]
    notes: tuple[str, ...]
    noise: tuple[LayerNoise, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def quantized(self) -> bool:
        """Whether any product is stored in integers."""
        return any(x.mode != "float" for x in self.layers)

    def count(self, mode: Mode) -> int:
        """Layers in a mode."""
        return sum(x.mode == mode for x in self.layers)

    def in_float(self, runtime: str) -> tuple[Layer, ...]:
        """Layers that the file holds in INT8 and a runtime multiplies in float all the same."""
        stored = (x for x in self.layers if x.mode in ("static", "dynamic"))
        return tuple(x for x in stored if runtime in x.kernels and not x.kernels[runtime].integer)

    @property
    def risky(self) -> tuple[Layer, ...]:
        """Layers that can saturate, the worst first."""
        found = [x for x in self.layers if x.risk is not None and x.risk.channels]
        return tuple(sorted(found, key=_badness, reverse=True))


def _badness(layer: Layer) -> tuple[float, float, int]:
    assert layer.risk is not None
    seen = layer.observed.worst_share if layer.observed is not None else 0.0
    return seen, layer.risk.worst_share or 0.0, layer.risk.worst_codes


@dataclass(frozen=True, slots=True)
class Means:
    """What a file is looked at with.

    Attributes:
        runtimes: To ask for their kernels.
        threads: Inside one inference.
        scratch: Folder for intermediate files.
        samples: Real ones, in which saturation is looked for; may be empty.
        timing: What the kernels are timed with; None: they are not timed.
        fp32: What the file was made of, to compare with on the samples; may be None.
        known: Kernels that were read before, by runtime; it is not asked again.
    """

    runtimes: tuple[str, ...]
    threads: int
    scratch: Path
    samples: Sequence[Feeds] = ()
    timing: Feeds | None = None
    fp32: Path | None = None
    known: Mapping[str, Kernels] = field(default_factory=dict)


def inspect_model(
    model: Model, means: Means, *, command: str, told: Mapping[str, str] | None = None
) -> Inspection:
    """Look at a file from all sides.

    Args:
        model: From `read_model`.
        means: What to look with.
        command: As typed.
        told: Why layers are in float, by name; None: the report beside the file is asked.

    Raises:
        InputError: The file is damaged, or no runtime opens it.
    """
    try:
        return _looked_at(model, means, command, told)
    except _DAMAGE:
        # A graph that makes no sense, or a bug of ours? ONNX Runtime knows, and says what is wrong.
        RUNTIMES["onnxruntime"].open(model.path, Settings(threads=1)).close()
        raise


def _looked_at(
    model: Model, means: Means, command: str, told: Mapping[str, str] | None
) -> Inspection:
    notes: list[str] = []
    graph, found = _read(model, means.scratch, notes)
    risks = {p.name: risk_of(p) for p in found}
    quantized = any(p.mode != "float" for p in found)
    hard: tuple[Finding, ...] = ()
    if told is None:
        told, hard = told_beside(model.path, model.sha256) if quantized else ({}, ())
    texts = causes(graph, found, told, quantized=quantized)
    chosen = [p for p in found if (r := risks[p.name]) is not None and r.channels]
    seen = observe(graph, chosen, means.samples, threads=means.threads, scratch=means.scratch)
    kernels, unread = _kernels(model, means, notes)
    runs = {k.runtime: _Finder(graph, k) for k in kernels}
    layers = tuple(
        _layer(
            p,
            texts.get(p.name, ""),
            risks[p.name],
            seen.get(p.name),
            {name: kernel for name, f in runs.items() if (kernel := f.find(p)) is not None},
        )
        for p in found
    )
    return Inspection(
        command=command,
        model=model,
        domains={d or "ai.onnx": v for d, v in graph.opset_imports.items()},
        parameters=_parameters(graph),
        forms=_forms(graph),
        tables=_tables(graph),
        layers=layers,
        flags=find_flags(graph, found),
        findings=_joined(hard, difficulties(graph, found, risks)),
        kernels=kernels,
        unread=unread,
        noise=_noise(model, means, notes),
        notes=tuple(notes),
    )


def _joined(told: Sequence[Finding], seen: Sequence[Finding]) -> tuple[Finding, ...]:
    """What was told, and what the file shows besides."""
    known = {(f.layer, f.cause.partition(":")[0]) for f in told}
    return (*told, *(f for f in seen if (f.layer, f.cause.partition(":")[0]) not in known))


def _noise(model: Model, means: Means, notes: list[str]) -> tuple[LayerNoise, ...]:
    """Of every layer against FP32; a note says why there is none."""
    if means.fp32 is None or not means.samples:
        return ()
    try:
        with opened(means.fp32) as fp32, opened(model.path) as int8:
            if too_large(size := weight_bytes(fp32)):
                raise UnsupportedError(f"the weights of {means.fp32} have {size / 1e9:.1f} GB")
            ours, theirs = lifted(fp32), lifted(int8)
            return side_by_side(
                ours, theirs, means.samples, threads=means.threads, scratch=means.scratch
            )
    except (VnnifyError, OSError, *_DAMAGE) as e:
        # A look for the reader; the run that it belongs to may have taken hours.
        notes.append(f"noise of single layers is unknown: {e}")
        return ()


def _read(model: Model, scratch: Path, notes: list[str]) -> tuple[ir.Model, tuple[Product, ...]]:
    """Graph and products; an FP32 file is looked at as `quantize` would prepare it."""
    graph = lifted(load(model.path))
    found = products(graph)
    if any(p.mode != "float" for p in found) or not found:
        return graph, found
    try:
        prepared = prepare(model, scratch / "prepared.onnx", name=str(model.path))
    except (UnsupportedError, InputError) as e:
        notes.append(f"vnnify quantize would refuse it: {e}")
        return graph, found
    notes += prepared.notes
    graph = lifted(load(prepared.model.path))
    return graph, products(graph)


def _kernels(
    model: Model, means: Means, notes: list[str]
) -> tuple[tuple[Kernels, ...], dict[str, str]]:
    found, unread = [], {}
    ask = partial(find_kernels, model.path, threads=means.threads, scratch=means.scratch)
    for name in means.runtimes:
        if name in means.known:
            found.append(means.known[name])
            continue
        try:
            try:
                found.append(ask(name, feeds=means.timing))
            except InputError as e:
                if means.timing is None:
                    raise
                # The sample may be what it does not like.
                found.append(ask(name))
                notes.append(f"not timed in {name}: {e}")
        except VnnifyError as e:
            # The file may lie where nobody looks for it; what it is called stands above.
            unread[name] = str(e).removeprefix(f"{model.path}: ")
    return tuple(found), unread


class _Finder:
    """Finds the kernel that runs a product: by the node's name, else by the tensors it makes."""

    def __init__(self, graph: ir.Model, kernels: Kernels) -> None:
        self.products = kernels.products
        self.by_origin = {
            part: kernel
            for kernel in reversed(self.products)
            for origin in (*kernel.origins, kernel.name)
            for part in (origin, _stem(origin))
        }
        self.values = {str(v.name): v for n in graph.graph.all_nodes() for v in n.outputs}

    def find(self, product: Product) -> Kernel | None:
        """The kernel, or None where it was merged or folded beyond recognition."""
        kernel = self.by_origin.get(product.name) or self.by_origin.get(product.output)
        if kernel is not None:
            return kernel
        value = self.values.get(product.output)
        for _ in range(8):
            users = {id(u.node): u.node for u in value.uses()} if value is not None else {}
            if len(users) != 1:
                return None
            (node,) = users.values()
            value = node.outputs[0]
            kernel = self.by_origin.get(str(value.name)) or self.by_origin.get(str(node.name))
            if kernel is not None:
                return kernel
            if node.op_type not in _FOLLOWERS:
                return None
        return None


# What runtimes merge into the product before it.
_FOLLOWERS = frozenset(
    {"Relu", "Clip", "Add", "Mul", "Cast", "QuantizeLinear", "DequantizeLinear", "Sigmoid"}
    | {"HardSwish", "HardSigmoid", "LeakyRelu", "Tanh", "Gelu", "Reshape", "Squeeze"}
)


def _stem(name: str) -> str:
    """A kernel's name without what the optimizers append to the name of its node."""
    for mark in ("_token_", "/WithoutBiases", "_nchwc", "/MatMulAddFusion", "/MatMul", "_quant"):
        name = name.partition(mark)[0]
    return name


def _layer(
    product: Product,
    cause: str,
    risk: Risk | None,
    observed: Observed | None,
    kernels: dict[str, Kernel],
) -> Layer:
    weights, activation = product.weights, product.activation
    return Layer(
        name=product.name,
        op=product.op,
        mode=product.mode,
        cause=cause,
        activation=activation.dtype if activation is not None else "",
        weights=weights.dtype if weights is not None else "",
        per_channel=weights.per_channel if weights is not None and weights.scales.size else None,
        symmetric=weights.symmetric if weights is not None else None,
        weight_count=product.weight_count,
        depthwise=product.depthwise,
        risk=risk,
        observed=observed,
        kernels=kernels,
    )


def _parameters(graph: ir.Model) -> int:
    floats = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
    codes = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4)
    total = 0
    for inner in (graph.graph, *graph.graph.subgraphs()):
        for value in inner.initializers.values():
            tensor = value.const_value
            scales = all(
                u.node.op_type in ("QuantizeLinear", "DequantizeLinear") and u.idx
                for u in value.uses()
            )
            if tensor is not None and tensor.dtype in (*floats, *codes) and not scales:
                total += int(np.prod(tensor.shape.numpy()))
    return total


def _forms(graph: ir.Model) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in graph.graph.all_nodes():
        op = node.op_type
        if "Quant" in op or op.startswith(("QLinear", "QGemm", "QAtt")) or "Integer" in op:
            counts[op] = counts.get(op, 0) + 1
    return counts


def _tables(graph: ir.Model) -> int:
    """Constant 8-bit tables that a Gather reads."""
    return sum(
        node.op_type == "Gather"
        and (table := array_of(node.inputs[0])) is not None
        and table.dtype in (np.int8, np.uint8)
        and table.ndim == 2
        for node in graph.graph.all_nodes()
    )
