"""What saturation does to real samples: inputs captured, then multiplied exactly and saturating.

INT8 graph + samples ─expose─▶ codes that each product reads ─▶ exact and saturating oracle
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bench.models import Feeds
from bench.runtimes import RUNTIMES, Settings
from quantize.anchors import integer_of
from quantize.graphs import save
from quantize.inspection.products import Activation, Product
from quantize.targets import U8_MAX, can_saturate, exact_matmul, saturating_matmul

# Looked at per sample and product: enough to see one output in a hundred, cheap enough for many
# products.
_PLACES = 64
_CHANNELS = 64
# Rows of one oracle call: it holds every pair of every row and channel.
_ROWS = 8


@dataclass(frozen=True, slots=True)
class Observed:
    """Outputs of one product, computed both ways.

    Attributes:
        samples: That were run.
        looked_at: Outputs that were computed, in channels that can saturate.
        wrong: How many of them came out differently.
        worst_codes: Largest difference, in units of the 32-bit accumulator.
        worst_share: The same as a share of the span of the exact accumulators seen here.
    """

    samples: int
    looked_at: int
    wrong: int
    worst_codes: int
    worst_share: float


@dataclass(slots=True)
class _Tally:
    looked_at: int = 0
    wrong: int = 0
    worst: int = 0
    low: int = 0
    high: int = 0

    def add(self, rows: NDArray[np.uint8], kernel: NDArray[np.int8], zero: int) -> None:
        """Multiply codes [m, k] with weights [n, k] both ways."""
        if not rows.size or rows.shape[1] != kernel.shape[1]:
            return
        # What the zero point contributes is subtracted exactly by every kernel.
        shift = zero * kernel.astype(np.int64).sum(axis=1)
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            exact = exact_matmul(part, kernel.T)
            wrong = np.abs(exact - saturating_matmul(part, kernel.T))
            self.looked_at += wrong.size
            self.wrong += int((wrong > 0).sum())
            self.worst = max(self.worst, int(wrong.max(initial=0)))
            self.low = min(self.low, int((exact - shift).min(initial=0)))
            self.high = max(self.high, int((exact - shift).max(initial=0)))


def observe(
    model: ir.Model,
    chosen: Sequence[Product],
    feeds: Sequence[Feeds],
    *,
    threads: int,
    scratch: Path,
) -> dict[str, Observed]:
    """Compute a part of each product's outputs exactly and with 16-bit saturation.

    The order of neighbours is ONNX Runtime's: taps first, then input channels. Products inside
    subgraphs, and recurrent ones, are left out.

    Args:
        model: The lifted graph; the same afterwards.
        chosen: Products to look at: those that can saturate.
        feeds: Samples.
        threads: Inside one inference.
        scratch: Folder for a copy of the model, which is removed.

    Returns:
        By name of the product.
    """
    nodes = {str(n.name): n for n in model.graph}
    reachable = [p for p in chosen if p.name in nodes and "LSTM" not in p.op]
    if not reachable or not feeds:
        return {}
    file = scratch / "exposed.onnx"
    _expose(model, reachable, file)
    try:
        session = RUNTIMES["onnxruntime"].open(file, Settings(threads=threads, optimize="none"))
    finally:
        for leftover in scratch.glob("exposed.onnx*"):
            leftover.unlink()
    tallies = {p.name: _Tally() for p in reachable}
    rng = np.random.default_rng(0)
    try:
        for sample in feeds:
            found = {**sample, **session.run(sample)}
            for product in reachable:
                _look(product, nodes[product.name], found, tallies[product.name], rng)
    finally:
        session.close()
    return {
        name: Observed(len(feeds), t.looked_at, t.wrong, t.worst, t.worst / max(t.high - t.low, 1))
        for name, t in tallies.items()
        if t.looked_at
    }


def _expose(model: ir.Model, chosen: Sequence[Product], file: Path) -> None:
    """Write a copy in which what the products read is an output too."""
    known = {v.name: v for node in model.graph for v in node.outputs}
    there = {v.name for v in model.graph.outputs}
    added = {p.activation.tensor: p.activation for p in chosen if p.activation is not None}
    before = len(model.graph.outputs)
    for name, activation in added.items():
        if name in known and name not in there:
            value = known[name]
            if value.type is None:
                kind = {"s8": ir.DataType.INT8}.get(activation.dtype, ir.DataType.UINT8)
                value.type = ir.TensorType(ir.DataType.FLOAT if activation.inside else kind)
            model.graph.outputs.append(value)
    save(model, file, share=True)
    while len(model.graph.outputs) > before:
        model.graph.outputs.pop()


def _look(
    product: Product, node: ir.Node, found: Mapping[str, Any], tally: _Tally, rng: Any
) -> None:
    weights, activation = product.weights, product.activation
    assert weights is not None
    assert activation is not None
    if activation.tensor not in found:
        return
    codes, zero = _codes(np.asarray(found[activation.tensor]), activation)
    risky = np.flatnonzero(can_saturate(weights.codes))
    risky = risky[_some(rng, len(risky), _CHANNELS)]
    if "Conv" not in product.op:
        # A Flatten may stand between the codes and the product, as behind a global pool.
        width = weights.codes[0].size
        rows = codes.reshape(-1, width) if codes.size % width == 0 else codes[:0]
        kernel = weights.codes.reshape(len(weights.codes), -1)[risky]
        tally.add(rows[_some(rng, len(rows), _PLACES)], kernel, zero)
        return
    for group, rows in _patches(codes, zero, node, weights.codes.shape, rng):
        per_group = len(weights.codes) // integer_of(node, "group", 1)
        own = risky[risky // per_group == group]
        if len(own):
            kernel = np.moveaxis(weights.codes[own], 1, -1).reshape(len(own), -1)
            tally.add(rows, kernel, zero)


def _codes(data: NDArray[Any], activation: Activation) -> tuple[NDArray[np.uint8], int]:
    """What the kernel multiplies: u8 codes and their zero point."""
    if activation.inside:
        # As DynamicQuantizeLinear does (ONNX operators, opset 11): the range holds 0.
        low, high = min(float(data.min()), 0.0), max(float(data.max()), 0.0)
        scale = max((high - low) / U8_MAX, 1e-30)
        zero = round(-low / scale)
        codes = np.clip(np.rint(data / scale) + zero, 0, U8_MAX).astype(np.uint8)
        return codes, zero
    if data.dtype == np.int8:
        # ONNX Runtime moves s8 activations between Q/DQ pairs to u8.
        return (data.astype(np.int16) + 128).astype(np.uint8), (activation.zero or 0) + 128
    return data, activation.zero or 0


def _patches(
    codes: NDArray[np.uint8], zero: int, node: ir.Node, shape: tuple[int, ...], rng: Any
) -> list[tuple[int, NDArray[np.uint8]]]:
    """Inputs of some output places of a convolution: per group, u8 [places, taps x channels]."""
    rank = codes.ndim - 2
    taps = shape[2:]
    strides = _numbers(node, "strides", [1] * rank)
    steps = _numbers(node, "dilations", [1] * rank)
    pads = _numbers(node, "pads", [0] * 2 * rank)
    padded = np.pad(
        codes,
        [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)],
        constant_values=zero,
    )
    sizes = [
        (padded.shape[2 + i] - (taps[i] - 1) * steps[i] - 1) // strides[i] + 1 for i in range(rank)
    ]
    if min(sizes, default=0) < 1:
        return []
    groups = integer_of(node, "group", 1)
    places = []
    for _ in range(_PLACES):
        cut: list[slice | int] = [int(rng.integers(padded.shape[0])), slice(None)]
        for count, stride, step, width in zip(sizes, strides, steps, taps, strict=True):
            start = int(rng.integers(count)) * stride
            cut.append(slice(start, start + (width - 1) * step + 1, step))
        places.append(padded[tuple(cut)])
    stacked = np.stack(places)  # [places, channels, *taps]
    width = stacked.shape[1] // groups
    return [
        (g, np.moveaxis(stacked[:, g * width : (g + 1) * width], 1, -1).reshape(_PLACES, -1))
        for g in range(groups)
    ]


def _numbers(node: ir.Node, name: str, default: list[int]) -> list[int]:
    attribute = node.attributes.get(name)
    return default if attribute is None else [int(i) for i in attribute.as_ints()]


def _some(rng: Any, count: int, most: int) -> NDArray[np.int64]:
    """Indices of at most so many of `count`, drawn without repetition."""
    if count <= most:
        return np.arange(count)
    drawn: NDArray[np.int64] = rng.choice(count, most, replace=False)
    return drawn
