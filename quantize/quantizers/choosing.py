"""Range methods per tensor, by the error that each causes in the layers that read it.

rows of a layer, rounded as each method would have it, times its FP32 weights ─▶ error by method
"""

from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bench.models import Model
from quantize.anchors import Anchor
from quantize.calibrate import Calibration
from quantize.graphs import opened
from quantize.histograms import TensorStatistics
from quantize.layerwise import side_by_side
from quantize.quantizers.fitting import as_read, outputs
from quantize.quantizers.reading import channels_first, constant_of
from quantize.ranges import RANGE_METHODS, Range
from quantize.recipe import Recipe
from quantize.rows import RowStore, window_of


def least_error_ranges(
    source: Model, anchors: tuple[Anchor, ...], calibration: Calibration, recipe: Recipe
) -> dict[str, str]:
    """Methods of tensors that differ from the recipe's, by name of the first anchor that reads it.

    Tensors that no layer reads (sums between layers, say) keep the recipe's method: their error
    reaches a layer through other nodes, and the output of those is looked at instead.

    Args:
        source: The FP32 model.
        anchors: Of its graph.
        calibration: Of the same model.
        recipe: Modes, and the method of all other tensors.
    """
    store = calibration.rows
    if store is None:
        return {}
    readers: dict[str, list[Anchor]] = {}
    for anchor in anchors:
        if recipe.modes.get(anchor.name) == "static":
            readers.setdefault(anchor.data, []).append(anchor)
    chosen: dict[str, str] = {}
    with opened(source.path) as model:
        nodes = {str(n.name): n for n in model.graph}
        store.capture(window_of(nodes[a.name], a) for group in readers.values() for a in group)
        every = [a for group in readers.values() for a in group]
        looks = [partial(_errors, nodes[a.name], a, calibration, store) for a in every]
        side_by_side(looks, store.threads)
        for group in readers.values():
            found = [_errors(nodes[a.name], a, calibration, store) for a in group]
            total = {m: sum(errors[m] for errors in found) for m in RANGE_METHODS}
            best = min(total, key=total.__getitem__)
            if total[best] < total[recipe.ranges]:
                chosen[group[0].name] = best
    return chosen


def _errors(
    node: ir.Node, anchor: Anchor, calibration: Calibration, store: RowStore
) -> dict[str, float]:
    """Error over signal at a layer's output by range method of its input; looked at once."""

    def look() -> dict[str, float]:
        window = window_of(node, anchor)
        weights = channels_first(constant_of(node.inputs[1]), anchor.out_axis)
        return _looked_at(weights, store.rows(window), calibration.tensors[anchor.data])

    return store.once(("ranges", anchor.name), look)


def _looked_at(
    weights: NDArray[np.float32], rows: NDArray[np.float32], seen: TensorStatistics
) -> dict[str, float]:
    exact = outputs(weights, rows)
    power = float(np.vdot(exact, exact))
    ranges = {method: choose(seen) for method, choose in RANGE_METHODS.items()}
    errors: dict[Range, float] = {}
    for found in set(ranges.values()):
        error = exact - outputs(weights, as_read(rows, found))
        # What is left when the bias takes up the mean.
        error -= error.mean(axis=0)
        errors[found] = float(np.vdot(error, error)) / max(power, 1e-30)
    return {method: errors[found] for method, found in ranges.items()}
