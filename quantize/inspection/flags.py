"""Red flags: what is known to cost accuracy or speed in INT8 files, looked for in any file."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.inspection.constants import array_of
from quantize.inspection.products import Product, activation_of, dequantized
from quantize.quantizers.sidestepping import misread

# A scale beyond these was made by one absurd value, or by a tensor that never moved.
LARGEST_SCALE, _LEAST_SCALE = 1e6, 1e-20
# An input of a Concat with so much smaller a range keeps under 5 of its 8 bits.
CONCAT_SPREAD = 8.0
# Per tensor, channels whose largest code stays below this have lost 3 bits or more.
_FEW_CODES = 16
# A mask's "never": no activation of a network is as low.
_MASK = -1e4
_INT32_EDGE = 2**31 - 2


@dataclass(frozen=True, slots=True)
class Flag:
    """Something to look at.

    Attributes:
        title: What it is.
        text: What it does, and what to do.
        where: Names of nodes or tensors.
    """

    title: str
    text: str
    where: tuple[str, ...]


def find_flags(model: ir.Model, products: Sequence[Product]) -> tuple[Flag, ...]:
    """Everything in a lifted graph that deserves a look, the worst first."""
    found = []
    for title, text, look in _LOOKS:
        where = tuple(dict.fromkeys(look(model, products)))
        if where:
            found.append(Flag(title, text, where))
    return tuple(found)


def _absurd_scales(model: ir.Model, _products: Sequence[Product]) -> Iterator[str]:
    for node, scale in dequantized(model):
        wrong = ~np.isfinite(scale) | (scale <= 0) | (scale > LARGEST_SCALE)
        if wrong.any():
            yield _tensor(node)


def _dead_ranges(model: ir.Model, _products: Sequence[Product]) -> Iterator[str]:
    for node, scale in dequantized(model):
        if node.op_type == "QuantizeLinear" and ((scale > 0) & (scale < _LEAST_SCALE)).any():
            yield _tensor(node)


def _full_biases(model: ir.Model, _products: Sequence[Product]) -> Iterator[str]:
    for node in model.graph.all_nodes():
        for position, value in enumerate(node.inputs):
            is_bias = (node.op_type, position) in (
                ("DequantizeLinear", 0),
                ("QLinearConv", 8),
                ("QGemm", 6),
            )
            codes = array_of(value) if is_bias else None
            if codes is None or codes.dtype != np.int32 or not codes.size:
                continue
            if np.abs(codes.astype(np.int64)).max() >= _INT32_EDGE:
                yield str(node.outputs[0].name)


def _masks(model: ir.Model, _products: Sequence[Product]) -> Iterator[str]:
    for node, scale in dequantized(model):
        zero = array_of(node.inputs[2]) if len(node.inputs) > 2 else None
        around = 0 if zero is None else int(zero.max())
        least = -128 if zero is not None and zero.dtype == np.int8 else 0
        lowest = (least - around) * float(scale.max())
        if node.op_type == "QuantizeLinear" and lowest < _MASK and _reaches_softmax(node):
            yield _tensor(node)


def _reaches_softmax(node: ir.Node) -> bool:
    queue, steps = [node], 0
    while queue and steps < 32:
        steps += 1
        at = queue.pop()
        for value in at.outputs:
            for use in value.uses():
                if use.node.op_type == "Softmax":
                    return True
                if use.node.op_type in ("DequantizeLinear", "QuantizeLinear", "Add", "Where"):
                    queue.append(use.node)
    return False


def _unequal_concats(model: ir.Model, _products: Sequence[Product]) -> Iterator[str]:
    for node, kept in concat_scales(model):
        if max(kept) > CONCAT_SPREAD * min(kept):
            yield str(node.name)


def concat_scales(model: ir.Model) -> Iterator[tuple[ir.Node, list[float]]]:
    """Every Concat of integers, with the scales of what it joins."""
    for node in model.graph.all_nodes():
        if node.op_type == "QLinearConcat":
            scales = [array_of(v) for v in node.inputs[3::3]]
            kept = [float(s.max()) for s in scales if s is not None]
        elif node.op_type == "Concat":
            if not any(u.node.op_type == "QuantizeLinear" for u in node.outputs[0].uses()):
                continue
            read = [activation_of(v) for v in node.inputs]
            kept = [a.scale for a in read if a is not None and a.scale is not None]
        else:
            continue
        if len(kept) > 1:
            yield node, kept


def _coarse_depthwise(_model: ir.Model, products: Sequence[Product]) -> Iterator[str]:
    for p in products:
        if p.depthwise and p.weights is not None and not p.weights.per_channel:
            yield p.name


def _lost_channels(_model: ir.Model, products: Sequence[Product]) -> Iterator[str]:
    for p in products:
        if p.weights is None or p.weights.scales.size != 1 or p.depthwise:
            continue
        if lost_channels(p.weights.codes, p.weights.zeros).any():
            yield p.name


def lost_channels(codes: NDArray[Any], zeros: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Output channels, not all zero, that use less than 5 bits: [out channels]."""
    wide = codes.reshape(len(codes), -1).astype(np.int64) - int(zeros.reshape(-1)[0])
    largest = np.abs(wide).max(axis=1, initial=0)
    lost: NDArray[np.bool_] = (largest > 0) & (largest < _FEW_CODES)
    return lost


def _signed_operators(_model: ir.Model, products: Sequence[Product]) -> Iterator[str]:
    for p in products:
        signed = p.activation is not None and p.activation.dtype == "s8"
        if signed and p.op in ("QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger"):
            yield p.name


def _signed_pairs(_model: ir.Model, products: Sequence[Product]) -> Iterator[str]:
    for p in products:
        signed = p.activation is not None and p.activation.dtype == "s8"
        if signed and p.op in ("Conv", "Gemm", "MatMul", "FusedConv"):
            yield p.name


def _activations_by_channel(_model: ir.Model, products: Sequence[Product]) -> Iterator[str]:
    for p in products:
        if p.activation is not None and p.activation.per_channel:
            yield p.name


def _rounded_norms(model: ir.Model, _products: Sequence[Product]) -> Iterator[str]:
    for node in model.graph.all_nodes():
        between = node.op_type in ("Softmax", "LayerNormalization", "GroupNormalization")
        if between or node.op_type == "QLinearSoftmax":
            read = node.inputs[0].producer() if node.inputs and node.inputs[0] else None
            behind = any(u.node.op_type == "QuantizeLinear" for u in node.outputs[0].uses())
            fed = read is not None and read.op_type == "DequantizeLinear"
            if node.op_type == "QLinearSoftmax" or (fed and behind):
                yield str(node.name)


def _shared_zeros(model: ir.Model, _products: Sequence[Product]) -> Iterator[str]:
    readers: Counter[str] = Counter()
    for node in model.graph.all_nodes():
        if node.op_type != "DequantizeLinear" or len(node.inputs) < 3:
            continue
        zero, codes = node.inputs[2], array_of(node.inputs[0])
        if zero is not None and codes is not None and codes.dtype == np.int8:
            readers[str(zero.name)] += 1
    yield from (name for name, count in readers.items() if count > 1)


def _misread(model: ir.Model, _products: Sequence[Product]) -> Iterator[str]:
    return misread(model)


def _tensor(node: ir.Node) -> str:
    """What a QuantizeLinear rounds, or a DequantizeLinear makes."""
    value = node.inputs[0] if node.op_type == "QuantizeLinear" else node.outputs[0]
    return str(value.name if value is not None else node.name)


_LOOKS: tuple[tuple[str, str, Callable[[ir.Model, Sequence[Product]], Iterator[str]]], ...] = (
    (
        "Absurd scale",
        (
            "Not finite, not positive, or so large that one value decided the range: everything "
            "else rounds to nothing. Look for outliers or infinities in the calibration data."
        ),
        _absurd_scales,
    ),
    (
        "Garbage in OpenVINO",
        (
            "OpenVINO up to 2026.4 (tried there) returns garbage for these: convolutions on CPUs "
            "with AMX, products of few rows, mostly with one thread. Gate the file on the CPU, "
            "with the threads and in the version that serve it; files of vnnify avoid both."
        ),
        _misread,
    ),
    (
        "Mask in 8 bits",
        (
            "An attention mask's “never” is in the range, so that no real score is told from "
            "another. Leave what follows the mask in float."
        ),
        _masks,
    ),
    (
        "Bias at the end of 32 bits",
        (
            "Its scale is so small that the bias did not fit and was cut off. Leave the layer "
            "in float, or raise the scale."
        ),
        _full_biases,
    ),
    (
        "Depthwise weights with one scale",
        (
            "Channels of depthwise layers differ by orders of magnitude; one scale leaves the "
            "small ones a few levels. Quantize weights per channel."
        ),
        _coarse_depthwise,
    ),
    (
        "Channels with under 5 bits",
        (
            "One scale for all channels leaves some of them fewer than 16 levels on a side. "
            "Quantize weights per channel."
        ),
        _lost_channels,
    ),
    (
        "Concat of unequal ranges",
        (
            "Inputs of very different ranges get one scale, and the smallest keeps under 5 "
            "bits. Leave the Concat, or what it joins, in float."
        ),
        _unequal_concats,
    ),
    (
        "Dead range",
        (
            "The tensor never moved in calibration: at run time everything is cut off. Check "
            "the calibration data."
        ),
        _dead_ranges,
    ),
    (
        "s8 activations in integer operators",
        (
            "ONNX Runtime has no fast x86 kernel for s8 x s8 but on CPUs with AVX-VNNI-INT8; it "
            "runs plain code. Quantize activations to u8."
        ),
        _signed_operators,
    ),
    (
        "s8 activations between Q/DQ pairs",
        (
            "ONNX Runtime makes them u8 only where the pair has one reader; elsewhere the layer "
            "runs in float (see the kernels). OpenVINO halves the weights for them on CPUs "
            "without VNNI. Quantize activations to u8."
        ),
        _signed_pairs,
    ),
    (
        "Activations with a scale per channel",
        "ONNX Runtime has no integer kernel for that and runs the layer in float.",
        _activations_by_channel,
    ),
    (
        "Normalization or softmax in 8 bits",
        (
            "Its input and output are rounded to 8 bits, although it runs in float or gains "
            "little. A frequent cause of lost accuracy in transformers."
        ),
        _rounded_norms,
    ),
    (
        "Shared zero points",
        (
            "ONNX Runtime's exact mode (session.x64quantprecision) refuses weights that share a "
            "zero point, so the file cannot be judged exactly on a CPU that saturates."
        ),
        _shared_zeros,
    ),
)
