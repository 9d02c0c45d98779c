"""Constants of a graph: what an initializer holds, and weights in integers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.anchors import integer_of


@dataclass(frozen=True, slots=True)
class Weights:
    """Constant weights in integers.

    Attributes:
        codes: int8, uint8, … [out channels, in channels, *taps], read-only.
        scales: float32 [1] or [out channels]; empty where the operator's scale is elsewhere.
        zeros: int64 [1] or [out channels].
        dtype: "s8", "u8", …
    """

    codes: NDArray[Any]
    scales: NDArray[np.float32]
    zeros: NDArray[np.int64]
    dtype: str

    @property
    def per_channel(self) -> bool:
        """Whether each output channel has a scale of its own."""
        return self.scales.size > 1

    @property
    def symmetric(self) -> bool:
        """Whether the codes are centred: zero points of 0, or of the middle where unsigned."""
        return not np.any(self.zeros != (128 if self.dtype == "u8" else 0))


def held_weights(value: ir.Value | None, node: ir.Node) -> Weights | None:
    """Constant weights behind a DequantizeLinear, with what only turns them on the way."""
    turns: list[ir.Node] = []
    for _ in range(4):
        maker = value.producer() if value is not None else None
        if maker is None:
            return None
        if maker.op_type == "DequantizeLinear":
            break
        if maker.op_type not in ("Transpose", "Identity", "Squeeze", "Unsqueeze"):
            return None
        turns.append(maker)
        value = input_of(maker, 0)
    assert maker is not None
    if maker.op_type != "DequantizeLinear":
        return None
    codes = array_of(input_of(maker, 0))
    scale, zero = array_of(input_of(maker, 1)), array_of(input_of(maker, 2))
    if codes is None:
        codes = _rounded(input_of(maker, 0))
    if codes is None:
        return None
    for turn in reversed(turns):
        if turn.op_type == "Transpose":
            order = turn.attributes.get("perm")
            codes = codes.transpose(order.as_ints() if order is not None else None)
    return weights_of(codes, scale, zero, node)


def _rounded(value: ir.Value | None) -> NDArray[Any] | None:
    """Codes of float weights that a QuantizeLinear in the graph rounds."""
    maker = value.producer() if value is not None else None
    if maker is None or maker.op_type != "QuantizeLinear":
        return None
    values, scale = array_of(input_of(maker, 0)), array_of(input_of(maker, 1))
    zero = array_of(input_of(maker, 2))
    if values is None or scale is None:
        return None
    kind = np.uint8 if zero is None else zero.dtype
    axis = integer_of(maker, "axis", 1) if scale.size > 1 else 0
    shape = [-1 if i == axis % values.ndim else 1 for i in range(values.ndim)]
    if scale.size == 1:
        shape = [1] * values.ndim
    around = np.asarray(0 if zero is None else zero).reshape(-1).astype(np.float32)
    if around.size == 1:
        around = np.full(scale.size, around[0])
    limits = np.iinfo(kind)
    scaled = np.rint(values / scale.reshape(shape)) + around.reshape(shape)
    codes: NDArray[Any] = np.clip(scaled, limits.min, limits.max).astype(kind)
    return codes


def weights_of(
    codes: NDArray[Any], scale: NDArray[Any] | None, zero: NDArray[Any] | None, node: ir.Node
) -> Weights:
    """Codes of a product's weights with their output channels first."""
    first = _channels_first(codes, node)
    scales = np.zeros(0, np.float32) if scale is None else scale.reshape(-1).astype(np.float32)
    zeros = np.zeros(1, np.int64) if zero is None else zero.reshape(-1).astype(np.int64)
    dtype = {"int8": "s8", "uint8": "u8"}.get(str(codes.dtype), str(codes.dtype))
    return Weights(first, scales, zeros, dtype)


def together(one: Weights, other: Weights) -> Weights:
    """Two products as one that has the channels of both; rows are filled up with zeros."""
    width = max(w.codes.shape[1] for w in (one, other))
    parts, scales, zeros = [], [], []
    for w in (one, other):
        count = len(w.codes)
        zeros.append(np.broadcast_to(w.zeros, count))
        scales.append(np.broadcast_to(w.scales, count) if w.scales.size else w.scales)
        part = np.repeat(zeros[-1][:, None], width, axis=1).astype(w.codes.dtype)
        part[:, : w.codes.shape[1]] = w.codes
        parts.append(part)
    return Weights(np.concatenate(parts), np.concatenate(scales), np.concatenate(zeros), one.dtype)


def _channels_first(codes: NDArray[Any], node: ir.Node) -> NDArray[Any]:
    op = node.op_type
    if op == "DynamicQuantizeLSTM":
        return np.ascontiguousarray(np.moveaxis(codes, -1, 1)).reshape(-1, codes.shape[1])
    if op in ("Conv", "FusedConv", "QLinearConv", "ConvInteger"):
        return codes
    if op == "ConvTranspose":
        return np.ascontiguousarray(np.moveaxis(codes, 1, 0))
    if op in ("LSTM", "GRU", "RNN") or (
        op in ("Gemm", "FusedGemm", "QGemm") and integer_of(node, "transB", 0)
    ):
        return codes.reshape(-1, codes.shape[-1])
    return np.ascontiguousarray(np.moveaxis(codes, -1, 0)).reshape(codes.shape[-1], -1)


def array_of(value: ir.Value | None) -> NDArray[Any] | None:
    """A constant's values, or None for what is computed."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return np.asarray(value.const_value.numpy())


def shape_of(value: ir.Value | None) -> tuple[int, ...]:
    """A constant's shape, without reading its values; empty for what is computed."""
    if value is None or value.const_value is None or not value.is_initializer():
        return ()
    return tuple(int(n) for n in value.const_value.shape.numpy())


def input_of(node: ir.Node, position: int | None) -> ir.Value | None:
    """An input by position; None where the node has no such input."""
    if position is None or position >= len(node.inputs):
        return None
    return node.inputs[position]
