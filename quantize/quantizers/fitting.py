"""One layer's integers, tried on rows of what FP32 feeds it, before they are written.

weights + rows + range of the input ─▶ codes rounded to the nearest, or learned
─▶ mean error into the bias ─▶ each kept only where held-out rows come out better
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.anchors import Anchor
from quantize.quantizers.reading import channels_first
from quantize.quantizers.rounding import Rounder, learn
from quantize.quantizers.weights import Codes, quantize_weights
from quantize.ranges import Range
from quantize.recipe import Recipe
from quantize.rows import RowStore, Window, windows_of
from quantize.targets import TARGETS, U8_MAX

Rounded = Callable[[Rounder | None], Codes]
# Of the rows, the last part decides what is kept; it comes from other samples than the rest.
_HELD = 0.25
# Fewer rows than this decide nothing.
_LEAST_ROWS = 16


@dataclass(frozen=True, slots=True)
class Fit:
    """What becomes of one layer's weights.

    Attributes:
        codes: The integers.
        shift: float64 [out channels], to add to the bias.
        learned: Whether the codes are learned ones.
    """

    codes: Codes
    shift: NDArray[np.float64]
    learned: bool = False

    @property
    def corrected(self) -> bool:
        """Whether the bias takes anything up."""
        return bool(np.any(self.shift))


def fit(
    weights: NDArray[np.float32],
    rows: NDArray[np.float32] | None,
    source: Range | None,
    rounded: Rounded,
    *,
    correct: bool = True,
    rounding: str = "nearest",
) -> Fit:
    """Integers for one layer.

    Args:
        weights: float32 [out channels, in channels / groups, *taps].
        rows: float32 [rows, groups, inputs] of what FP32 feeds it; None where none were taken.
        source: Of the layer's input, where that has codes of its own; None where it is quantized
            while the model runs.
        rounded: The weights as codes, by a rounder or to the nearest.
        correct: Whether the bias may take up the mean error.
        rounding: "nearest" or "learned".
    """
    plain = rounded(None)
    nothing = Fit(plain, np.zeros(len(weights)))
    if rows is None or len(rows) < _LEAST_ROWS or not (correct or rounding == "learned"):
        return nothing
    cut = len(rows) - max(int(_HELD * len(rows)), 1)
    read = rows if source is None else as_read(rows, source)
    look = _look(weights, rows, read, cut, correct=correct)
    shift, least = look.at(plain.values())
    if rounding == "learned" and (rounder := learn(read[:cut])) is not None:
        codes = rounded(rounder)
        other, error = look.at(codes.values())
        if error < least:
            return Fit(codes, other, learned=True)
    return Fit(plain, shift)


def as_read(rows: NDArray[np.float32], source: Range) -> NDArray[np.float32]:
    """Rows as their codes stand for them."""
    # As `codes_of` does it, without the way through integers.
    found = rows / source.scale
    np.rint(found, out=found)
    np.clip(found, -source.zero_point, U8_MAX - source.zero_point, out=found)
    found *= source.scale
    return found


@dataclass(frozen=True, slots=True)
class _Look:
    """What the codes of one layer are held against.

    Attributes:
        exact: float32 [rows, out channels], what FP32 makes of the held-out rows.
        read: float32 [rows, groups, inputs], the same rows as their codes stand for them.
        means: Of the other rows: float32 [1, out channels], what FP32 makes of their mean, and
            float32 [1, groups, inputs], that mean as their codes stand for it. None where the bias
            may take nothing up.
    """

    exact: NDArray[np.float32]
    read: NDArray[np.float32]
    means: tuple[NDArray[np.float32], NDArray[np.float32]] | None

    def at(self, held: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
        """What to add to the bias, and the squared error of held-out rows with it.

        Taken from what the layer really reads, it makes up for the rounding and clipping of its
        input as well as for that of its weights.

        Args:
            held: What the codes stand for.
        """
        error = (self.exact - outputs(held, self.read)).astype(np.float64)
        nothing, without = np.zeros(error.shape[1]), float(np.square(error).sum())
        if self.means is None:
            return nothing, without
        # A layer is linear, so its mean output is that of the mean row.
        exact, read = self.means
        mean = (exact - outputs(held, read))[0].astype(np.float64)
        left = float(np.square(error - mean).sum())
        return (mean, left) if left < without else (nothing, without)


def _look(
    weights: NDArray[np.float32],
    rows: NDArray[np.float32],
    read: NDArray[np.float32],
    cut: int,
    *,
    correct: bool,
) -> _Look:
    """What to hold a layer's codes against.

    Args:
        weights: Of FP32.
        rows: What FP32 reads.
        read: The same as their codes stand for them.
        cut: Where held-out rows begin.
        correct: Whether the bias may take up the mean error.
    """
    means = None
    if correct:
        before, after = (r[:cut].mean(axis=0, keepdims=True) for r in (rows, read))
        means = outputs(weights, before), after
    return _Look(outputs(weights, rows[cut:]), read[cut:], means)


def outputs(weights: NDArray[np.float32], rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a layer makes of its rows, without the bias: float32 [rows, out channels]."""
    count, groups, inputs = rows.shape
    turned = weights.reshape(groups, -1, inputs).transpose(0, 2, 1)
    by_group: NDArray[np.float32] = np.matmul(rows.transpose(1, 0, 2), turned)
    return by_group.transpose(1, 0, 2).reshape(count, -1)


class Fitter:
    """Integers for the layers of one candidate, from rows taken once for all candidates."""

    def __init__(
        self,
        nodes: Mapping[str, ir.Node],
        anchors: tuple[Anchor, ...],
        store: RowStore | None,
        recipe: Recipe,
    ) -> None:
        self.store, self.recipe = store, recipe
        self.narrow = TARGETS[recipe.target].narrow
        self.windows: dict[str, Window] = {}
        if store is not None and recipe.reads_rows:
            self.windows = windows_of(nodes, anchors)
            store.capture(self.windows.values())

    def fit(
        self,
        anchor: Anchor,
        weights: NDArray[np.float32],
        source: Range | None = None,
        room: NDArray[np.float32] | None = None,
        *,
        movable: bool = True,
        shared: str | None = None,
    ) -> Fit:
        """One layer's integers; worked out once for all candidates that ask for the same.

        Weights that other layers read too are rounded to the nearest, so that all have the same
        codes. Codes learned for each of more than four readers would take more than the floats did.

        Args:
            anchor: The layer.
            weights: float32, as its node reads them.
            source: Of its input; None where it is quantized while the model runs.
            room: float32 [out channels], least scales, so that the bias fits int32.
            movable: Whether there is a bias that may take up a shift.
            shared: Name of the weights, where it matters that other layers read them too.
        """
        store, recipe = self.store, self.recipe
        rounding = recipe.rounding if shared is None else "nearest"
        weights_key = (shared or anchor.name, anchor.out_axis)
        window = self.windows.get(anchor.name)
        correct = recipe.correct_bias and movable
        # Depthwise kernels multiply in 32 bits on every CPU: see `quantize.targets`.
        narrow = self.narrow and not anchor.depthwise

        def make() -> Fit:
            first = channels_first(weights, anchor.out_axis)
            return fit(
                first,
                store.rows(window) if store is not None and window is not None else None,
                source,
                partial(self._rounded, weights_key, first, room, narrow=narrow),
                correct=correct,
                rounding=rounding,
            )

        if store is None:
            return make()
        return store.once((anchor.name, source, narrow, correct, rounding), make)

    def _rounded(
        self,
        key: tuple[str, int],
        weights: NDArray[np.float32],
        room: NDArray[np.float32] | None,
        rounder: Rounder | None,
        *,
        narrow: bool,
    ) -> Codes:
        if rounder is None and self.store is not None:
            # Ranges change neither: candidates that differ in them alone share one array.
            found = self.store.once(
                ("codes", key, narrow), lambda: quantize_weights(weights, narrow=narrow)
            )
            if room is None or (room <= found.scales).all():
                return found
        return quantize_weights(weights, narrow=narrow, least_scales=room, rounder=rounder)
