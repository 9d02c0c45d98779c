"""What makes layers hard for 8 bits, read from an INT8 file, and what was done there."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.findings import LOUD, Finding
from quantize.inspection.constants import array_of, input_of
from quantize.inspection.flags import CONCAT_SPREAD, LARGEST_SCALE, concat_scales, lost_channels
from quantize.inspection.products import Product, dequantized
from quantize.inspection.saturation import Risk

_INT32_EDGE = 2**31 - 2
# A bias code this large, of a channel whose weights use less than half of their codes, was made to
# fit by a coarser scale.
_NEAR_EDGE = 2**28
_HALF = 64
# Scales of tensors that were always zero: ONNX Runtime's quantizers set 1, NNCF a range of 1e-4.
_DEAD_SCALE = 1.0
_LEAST_SCALE = 1e-6


def difficulties(
    model: ir.Model, products: Sequence[Product], risks: dict[str, Risk | None]
) -> tuple[Finding, ...]:
    """Difficulties of every layer in integers, those of tensors, and what saturates, last.

    Args:
        model: The lifted graph.
        products: Of it.
        risks: Of saturation, by name of the product.
    """
    nodes = {str(n.name): n for n in model.graph.all_nodes()}
    found: list[Finding] = []
    for product in products:
        if product.mode == "float":
            continue
        found += _of_weights(product)
        found += _of_bias(product, nodes[product.name])
    pairs = [f for p in products for f in _of_pairs(p, risks.get(p.name))]
    return (*found, *_of_ranges(model), *_of_concats(model), *pairs)


def _peaks(product: Product) -> NDArray[np.int64]:
    """Largest code of each output channel, counted from its zero point."""
    assert product.weights is not None
    codes, zeros = product.weights.codes, product.weights.zeros
    flat = codes.reshape(len(codes), -1).astype(np.int16)
    shift = zeros if zeros.size == len(codes) else zeros[:1]
    peaks: NDArray[np.int64] = np.abs(flat - shift[:, None]).max(axis=1, initial=0).astype(np.int64)
    return peaks


def _of_weights(product: Product) -> Iterator[Finding]:
    weights = product.weights
    if weights is None or not weights.scales.size or weights.codes.ndim < 2:
        return
    if weights.scales.size not in (1, len(weights.codes)):
        return
    peaks = _peaks(product)
    sizes = peaks * weights.scales
    usual = float(np.median(sizes))
    done, least = "each channel has a scale of its own", ""
    if not weights.per_channel:
        lost = int(lost_channels(weights.codes, weights.zeros).sum() + (peaks == 0).sum())
        done = f"nothing: all have one scale, and {lost} of {len(sizes)} keep under 5 bits"
        if usual == 0:
            # What was rounded to nothing was less than half a step.
            usual, least = float(weights.scales[0]) / 2, "at least "
    if usual <= 0 or not np.isfinite(sizes).all() or sizes.max() <= LOUD * usual:
        return
    yield Finding(
        product.name,
        f"outlier channel: weights of output channel {int(sizes.argmax())} are "
        f"{least}{sizes.max() / usual:.0f} times as large as most",
        done,
    )


def _of_bias(product: Product, node: ir.Node) -> Iterator[Finding]:
    codes = _bias_codes(node)
    if codes is None or product.weights is None or codes.size != len(product.weights.codes):
        return
    sizes = np.abs(codes.astype(np.int64).reshape(-1))
    cut = int((sizes >= _INT32_EDGE).sum())
    if cut:
        yield Finding(
            product.name,
            f"bias overflow: in {cut} of {sizes.size} channels the bias does not fit 32 bits",
            "nothing: it was cut off",
        )
        return
    peaks = _peaks(product)
    coarse = (sizes > _NEAR_EDGE) & (peaks < _HALF)
    if coarse.any():
        yield Finding(
            product.name,
            f"bias overflow: in {int(coarse.sum())} of {sizes.size} channels the bias would not "
            "fit 32 bits",
            f"their weights got coarser scales: codes up to {int(peaks[coarse].max())} of 127",
        )


def _bias_codes(node: ir.Node) -> NDArray[Any] | None:
    """32-bit codes of a product's bias; None where it has none in integers."""
    value = input_of(node, {"QLinearConv": 8, "QGemm": 6}.get(node.op_type, 2))
    maker = value.producer() if value is not None else None
    if maker is not None and maker.op_type == "DequantizeLinear":
        value = input_of(maker, 0)
    codes = array_of(value)
    return codes if codes is not None and codes.dtype == np.int32 else None


def _of_pairs(product: Product, risk: Risk | None) -> Iterator[Finding]:
    if risk is not None and risk.channels:
        yield Finding(
            product.name,
            f"saturating pairs: in {risk.channels} of {risk.of} channels two products may leave "
            "16 bits on CPUs without VNNI",
            "nothing: there it computes something else",
        )


def _of_ranges(model: ir.Model) -> Iterator[Finding]:
    """Of tensors, by the name of what is quantized."""
    inputs = {v.name for v in model.graph.inputs}
    for node, scale in dequantized(model):
        value = node.inputs[0]
        if node.op_type != "QuantizeLinear" or value is None or array_of(value) is not None:
            continue
        largest, name = float(np.abs(scale).max()), str(value.name)
        if not np.isfinite(scale).all():
            yield Finding(name, f"non-finite range: its scale is {largest}", "nothing")
        elif largest > LARGEST_SCALE:
            yield Finding(name, f"absurd range: its scale is {largest:.3g}", "nothing")
        elif value.name not in inputs and _is_dead(scale, array_of(input_of(node, 2))):
            yield Finding(
                name,
                f"dead range: its scale is {largest:.3g}, as tools set it for what was always zero",
                f"whatever comes is cut off at {255 * largest:.3g}",
            )


def _is_dead(scale: NDArray[Any], zero: NDArray[Any] | None) -> bool:
    if scale.size != 1 or (zero is not None and zero.any()):
        return False
    only = float(scale.reshape(-1)[0])
    return 0 < only < _LEAST_SCALE or only == _DEAD_SCALE


def _of_concats(model: ir.Model) -> Iterator[Finding]:
    for node, kept in concat_scales(model):
        if max(kept) > CONCAT_SPREAD * min(kept):
            yield Finding(
                str(node.name),
                f"shared Concat scale: ranges from {255 * min(kept):.3g} to {255 * max(kept):.3g} "
                "have one scale",
                "nothing: the smallest keeps under 5 bits",
            )
