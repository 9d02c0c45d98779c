"""Kernels as a graph: float islands between integer ones, and conversions that only round."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["product", "conversion", "other"]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel that runs.

    Attributes:
        name: As the runtime calls it.
        op: Its operator, in the runtime's words ("QLinearConv", "FullyConnected").
        kind: "product" multiplies with weights or two activations, "conversion" only changes
            between float and integers (or a layout, in OpenVINO), "other" is everything else.
        integer: Whether it works on 8-bit integers.
        primitive: OpenVINO's name of the code; empty for ONNX Runtime, which does not say.
        origins: Names in the file that it computes: nodes as far as they are known, then ONNX
            Runtime's output tensors, or OpenVINO's original layers.
        ms: Mean time of one inference; None where it was not measured.
    """

    name: str
    op: str
    kind: Kind
    integer: bool
    primitive: str
    origins: tuple[str, ...]
    ms: float | None


@dataclass(frozen=True, slots=True)
class Island:
    """Float kernels that hang together, with integer kernels before and after them.

    Attributes:
        kernels: Their names, in the runtime's order.
        ops: Their operators.
        ms: Mean time of all of them; None where it was not measured.
    """

    kernels: tuple[str, ...]
    ops: tuple[str, ...]
    ms: float | None


@dataclass(slots=True)
class Node:
    """A kernel while its neighbours are being found.

    Attributes:
        kernel: The kernel.
        inputs: Names of the tensors that it reads.
        outputs: Names of those that it makes.
        takes: Whether it reads 8-bit integers.
        gives: Whether it makes 8-bit integers.
        before: Places of the kernels before it.
        after: Places of those after it.
    """

    kernel: Kernel
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    takes: bool
    gives: bool
    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)


def total_ms(kernels: Iterable[Kernel]) -> float | None:
    """Time of all of them; None where none was measured."""
    times = [k.ms for k in kernels if k.ms is not None]
    return sum(times) if times else None


def link(nodes: list[Node]) -> None:
    """Fill in every node's neighbours."""
    makers = {name: i for i, node in enumerate(nodes) for name in node.outputs if name}
    for i, node in enumerate(nodes):
        for name in node.inputs:
            maker = makers.get(name)
            if maker is not None and maker != i:
                node.before.append(maker)
                nodes[maker].after.append(i)


def find_islands(nodes: list[Node]) -> Iterator[Island]:
    """Float kernels that hang together, where integers come in and integers go out.

    A pair of conversions between two float kernels does not part them: it is in the island.
    """
    unseen = {
        i
        for i, n in enumerate(nodes)
        if not (n.kernel.integer or n.gives or n.kernel.kind == "conversion")
    }
    while unseen:
        start = min(unseen)
        found, queue = {start}, [start]
        comes = goes = False
        while queue:
            i = queue.pop()
            before, after = _next(nodes, i, "before"), _next(nodes, i, "after")
            comes |= any(nodes[j].gives for j in before)
            goes |= any(nodes[j].takes for j in after)
            near = ((before | after) & unseen) - found
            found |= near
            queue += near
        unseen -= found
        if comes and goes:
            kernels = [nodes[i].kernel for i in sorted(found)]
            names, ops = tuple(k.name for k in kernels), tuple(k.op for k in kernels)
            yield Island(names, ops, total_ms(kernels))


def _next(nodes: list[Node], start: int, way: Literal["before", "after"]) -> set[int]:
    """Kernels right before or after one, conversions skipped."""
    found: set[int] = set()
    seen: set[int] = set()
    queue = list(getattr(nodes[start], way))
    while queue:
        i = queue.pop()
        if i in seen:
            continue
        seen.add(i)
        if nodes[i].kernel.kind == "conversion":
            queue += getattr(nodes[i], way)
        else:
            found.add(i)
    return found


def is_lone(node: Node, nodes: list[Node]) -> bool:
    """Whether it is a QuantizeLinear that only DequantizeLinear reads."""
    readers = [nodes[i].kernel.op for i in node.after]
    makes = node.kernel.op == "QuantizeLinear"
    return makes and bool(readers) and all(r == "DequantizeLinear" for r in readers)
