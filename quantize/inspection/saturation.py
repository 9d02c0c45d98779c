"""What CPUs without VNNI would make of a product: which channels can leave 16 bits, and how far.

There, neighbouring products of u8 activations and s8 weights are added in 16 bits that saturate
(see `quantize.targets`, also for depthwise convolutions). From MLAS's public source: ONNX Runtime's
u8 x u8 kernels widen to 16 bits first; s8 activations between Q/DQ pairs become u8 in ONNX Runtime,
and in QLinear operators they run plain C++ code. That OpenVINO halves s8 weights for them is
oneDNN's documented habit and was not tried.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantize.inspection.products import Product
from quantize.targets import INT16_MAX, SAFE_PAIR_SUM, U8_MAX, pair_sums, worst_of_orders


@dataclass(frozen=True, slots=True)
class Risk:
    """What can happen to one product on a CPU that saturates.

    Attributes:
        reason: Why nothing can; empty where something can, or where the weights alone decide.
        channels: Output channels in which a pair of neighbours can leave 16 bits.
        of: Output channels in all.
        pair_sum: Largest |w1 + w2| of neighbours of one sign; 128 is the last that is safe.
        worst_codes: Largest error of one output, in units of the 32-bit accumulator: all pairs of
            its worst channel saturate at once.
        worst_share: The same as a share of the output's range; None where that is not known.
    """

    reason: str
    channels: int
    of: int
    pair_sum: int
    worst_codes: int
    worst_share: float | None


def risk_of(product: Product) -> Risk | None:
    """The risk of a product; None where it multiplies floats, or its weights are not constant."""
    weights = product.weights
    if product.mode not in ("static", "dynamic") or product.activation is None or weights is None:
        return None
    channels = int(weights.codes.shape[0])
    reason = _safe_by_kernel(product)
    if reason or weights.codes.dtype != np.int8:
        return Risk(reason or f"{weights.dtype} weights", 0, channels, 0, 0, None)
    sums = pair_sums(weights.codes)
    risky = sums > SAFE_PAIR_SUM
    errors = np.zeros(channels, np.int64)
    errors[risky] = worst_errors(weights.codes[risky])
    return Risk(
        reason="" if risky.any() else "no two neighbouring weights are large enough",
        channels=int(risky.sum()),
        of=channels,
        pair_sum=int(sums.max(initial=0)),
        worst_codes=int(errors.max(initial=0)),
        worst_share=_share(product, errors),
    )


def _safe_by_kernel(product: Product) -> str:
    assert product.weights is not None
    assert product.activation is not None
    if product.depthwise:
        return "depthwise kernels multiply in 32 bits"
    if product.weights.dtype == "u8":
        return "u8 weights: ONNX Runtime widens them to 16 bits first, at half the speed"
    if product.activation.dtype == "s8" and product.op.startswith("Q"):
        return "s8 activations: exact, but in plain code that is many times slower"
    return ""


def worst_errors(codes: NDArray[np.int8]) -> NDArray[np.int64]:
    """By how much the worst input makes each output channel wrong.

    Args:
        codes: Weight codes, int8 [out channels, in channels, *taps].

    Returns:
        int64 [out channels]: the sum over disjoint pairs of what each is beyond 16 bits, for the
        worst order of neighbours.
    """
    return worst_of_orders(codes, lambda flat: np.maximum(_beyond(flat), _beyond(flat[:, 1:])))


def _beyond(flat: NDArray[np.int16]) -> NDArray[np.int64]:
    even = flat[:, : flat.shape[1] // 2 * 2].astype(np.int64)
    pairs = even.reshape(*even.shape[:1], even.shape[1] // 2, 2)
    high = U8_MAX * np.maximum(pairs, 0).sum(axis=2) - INT16_MAX
    low = -U8_MAX * np.minimum(pairs, 0).sum(axis=2) - (INT16_MAX + 1)
    # Either all activations meet the positive weights, or all meet the negative ones.
    total: NDArray[np.int64] = np.maximum(
        np.maximum(high, 0).sum(axis=1), np.maximum(low, 0).sum(axis=1)
    )
    return total


def _share(product: Product, errors: NDArray[np.int64]) -> float | None:
    weights, activation = product.weights, product.activation
    if weights is None or activation is None or not weights.scales.size:
        return None
    if activation.scale is None or not product.out_range:
        return None
    scales = np.broadcast_to(weights.scales, errors.shape)
    return float((errors * scales).max(initial=0.0) * activation.scale / product.out_range)
