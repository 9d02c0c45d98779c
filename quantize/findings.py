"""What makes single layers hard for 8 bits, in words, and what was done about it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.anchors import Anchor
from quantize.graphs import opened
from quantize.histograms import TensorStatistics
from quantize.nodes import float_constant
from quantize.placement import CONCAT_SPREAD
from quantize.quantizers import QuantizedModel
from quantize.quantizers.native import QuantizedLayer
from quantize.quantizers.weights import least_scales
from quantize.ranges import RANGE_METHODS, Range, minmax_range, percentile_range
from quantize.trials import Start, Workbench

# A few values that widen a range by less cost less than two bits.
_OUTLIER = 4.0
# A channel this much larger than most would cost a shared scale four bits.
LOUD = 16.0
# How the reason of a layer begins that the search sent to float for its noise.
COSTLY = "costs accuracy"


@dataclass(frozen=True, slots=True)
class Finding:
    """One difficulty of one layer.

    Attributes:
        layer: Its name.
        cause: What makes it hard.
        done: What was done.
    """

    layer: str
    cause: str
    done: str


def find_causes(bench: Workbench, quantized: QuantizedModel) -> tuple[Finding, ...]:
    """Difficulties of every layer in INT8, or in float because of them, in graph order.

    Of the native engine's files alone.

    Args:
        bench: Where the candidate was made.
        quantized: The candidate.
    """
    recipe = quantized.recipe
    if recipe.engine != "native":
        return ()
    start = bench.start(recipe)
    with opened(start.model.path) as model:
        return _causes_in(model, start, quantized)


def _causes_in(model: ir.Model, start: Start, quantized: QuantizedModel) -> tuple[Finding, ...]:
    recipe, nodes = quantized.recipe, {str(n.name): n for n in model.graph.all_nodes()}
    layers = {x.name: x for x in quantized.layers}
    found: list[Finding] = []
    for anchor in start.anchors:
        layer, stats = layers[anchor.name], start.calibration.tensors.get(anchor.data)
        costly = (layer.reason or "").startswith(COSTLY)
        own: list[Finding] = []
        if (layer.mode == "static" or costly) and stats is not None and stats.count:
            method = recipe.ranges_by_tensor.get(anchor.data, recipe.ranges)
            chosen = RANGE_METHODS[method](stats)
            own += _of_input(anchor, stats, chosen, method)
            own += _of_bias(anchor, nodes[anchor.name], chosen)
        if layer.mode != "float" or costly:
            own += _of_weights(anchor, nodes[anchor.name])
        own += _of_pairs(layer)
        if layer.mode == "float":
            own += _of_nonfinite(anchor, start.calibration.tensors)
            own = [replace(f, done="it runs in float") for f in own]
        found += own
    return (*found, *_of_concats(model, start.calibration.magnitudes()))


def _of_nonfinite(anchor: Anchor, tensors: Mapping[str, TensorStatistics]) -> Iterator[Finding]:
    for what, name in (("input", anchor.data), ("output", anchor.end)):
        stats = tensors.get(name)
        if stats is not None and stats.nonfinite:
            yield Finding(
                anchor.name,
                f"non-finite range: its {what} was NaN or infinite in {stats.nonfinite} of "
                f"{stats.samples} calibration samples",
                "",
            )


def _of_input(
    anchor: Anchor, stats: TensorStatistics, chosen: Range, method: str
) -> Iterator[Finding]:
    whole, most = minmax_range(stats), percentile_range(stats)
    width, usual = whole.high - whole.low, most.high - most.low
    if width <= 0:
        yield Finding(
            anchor.name,
            f"dead range: its input was zero in every one of {stats.samples} calibration samples",
            "the scale is that of a range of 1",
        )
    elif usual > 0 and width > _OUTLIER * usual:
        yield Finding(
            anchor.name,
            f"outliers: one in ten thousand values makes the range of its input "
            f"{width / usual:.1f} times as wide",
            f"{chosen.low:.4g} to {chosen.high:.4g} of {whole.low:.4g} to {whole.high:.4g} kept "
            f"({method})",
        )


def _of_bias(anchor: Anchor, node: ir.Node, chosen: Range) -> Iterator[Finding]:
    weights, bias = float_constant(node, 1), float_constant(node, 2)
    if anchor.op not in ("Conv", "Gemm") or weights is None or bias is None:
        return
    peaks = _peaks(weights, anchor.out_axis)
    if bias.size != peaks.size:
        return
    least = least_scales(bias.astype(np.float32).reshape(-1), chosen.scale)
    if count := int((peaks / 127 < least).sum()):
        yield Finding(
            anchor.name,
            f"bias overflow: in {count} of {peaks.size} channels the bias does not fit 32 bits",
            "their weights got coarser scales",
        )


def _of_weights(anchor: Anchor, node: ir.Node) -> Iterator[Finding]:
    weights = float_constant(node, 1)
    if weights is None or anchor.op == "LSTM":
        return
    peaks = _peaks(weights, anchor.out_axis)
    usual = float(np.median(peaks))
    if usual > 0 and peaks.max() > LOUD * usual:
        yield Finding(
            anchor.name,
            f"outlier channel: weights of output channel {int(peaks.argmax())} are "
            f"{peaks.max() / usual:.0f} times as large as most",
            "each channel has a scale of its own",
        )


def _of_pairs(layer: QuantizedLayer) -> Iterator[Finding]:
    if layer.narrowed:
        yield Finding(
            layer.name,
            f"saturating pairs: in {layer.narrowed} of {layer.channels} channels two products may "
            "leave 16 bits on CPUs without VNNI",
            "their weights use fewer bits",
        )


def _of_concats(model: ir.Model, magnitudes: dict[str, float]) -> Iterator[Finding]:
    for node in model.graph:
        names = [str(v.name) for v in node.inputs if v is not None]
        if node.op_type != "Concat" or not names or not all(n in magnitudes for n in names):
            continue
        sizes = [magnitudes[n] for n in names]
        if max(sizes) > CONCAT_SPREAD * max(min(sizes), 1e-12):
            yield Finding(
                str(node.name),
                f"shared Concat scale: ranges from {min(sizes):.3g} to {max(sizes):.3g} would have "
                "one scale",
                "it runs in float",
            )


def _peaks(weights: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Largest absolute weight of each output channel."""
    rows = np.abs(np.moveaxis(weights, axis, 0)).reshape(weights.shape[axis], -1)
    peaks: NDArray[np.float32] = rows.max(axis=1)
    return peaks
