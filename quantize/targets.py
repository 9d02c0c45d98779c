"""What a class of CPU computes when it multiplies 8-bit integers.

AVX2 and AVX-512 without VNNI add the products of two neighbours, u8 x s8, into 16 bits that
*saturate* (`vpmaddubsw`); VNNI, AVX-VNNI and AMX add four products into 32 bits and are exact
(`vpdpbusd`, `tdpbusd`; Intel SDM vol. 2). The same INT8 file therefore gives different answers on
the two, unless no pair of neighbours can leave the 16 bits. That is what `portable` makes sure of,
whatever the activations are. Depthwise convolutions (one input and one output channel per group)
need none of it: their kernels have no neighbours to add, and multiply in 32 bits on every CPU. So
`make verify-vnni` finds for ONNX Runtime, and `tests/quantize/test_saturation.py` for OpenVINO held
to AVX2 and to AVX-512 without VNNI.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import UsageError
from bench.machine import exact_product, saturated_product

INT16_MAX = (1 << 15) - 1
U8_MAX = 255
# 255 * (|w1| + |w2|) fits 16 signed bits up to 128: 32,640. At 129 it is 32,895. On the negative
# side -255 * 128 = -32,640 likewise.
SAFE_PAIR_SUM = INT16_MAX // U8_MAX
# Weights looked at together.
_BLOCK = 1 << 17


@dataclass(frozen=True, slots=True)
class Target:
    """The arithmetic that a model is made and judged for.

    Attributes:
        name: As in `--target`.
        narrow: Whether weights are narrowed where a pair of neighbours could saturate, so that the
            model gives the same answer on every x86 CPU.
        needs: What a CPU must have for the model to be right on it.
    """

    name: str
    narrow: bool
    needs: str


TARGETS: dict[str, Target] = {
    "portable": Target("portable", narrow=True, needs="any x86-64 CPU with AVX2"),
    "vnni": Target("vnni", narrow=False, needs="AVX512-VNNI, AVX-VNNI or AMX"),
    "amx": Target("amx", narrow=False, needs="AMX-INT8 (right on AVX512-VNNI and AVX-VNNI too)"),
    "avx2": Target("avx2", narrow=True, needs="any x86-64 CPU with AVX2"),
}


def find_target(name: str) -> Target:
    """The target called `name`.

    Raises:
        UsageError: There is none of that name.
    """
    try:
        return TARGETS[name]
    except KeyError:
        raise UsageError(f"unknown target {name!r}; known: auto, {', '.join(TARGETS)}.") from None


def exact_matmul(a: NDArray[np.uint8], b: NDArray[np.int8]) -> NDArray[np.int64]:
    """What VNNI computes.

    Args:
        a: Activation codes, uint8 [m, k].
        b: Weight codes, int8 [k, n].

    Returns:
        int64 [m, n]; equal to the 32-bit accumulator while that does not wrap (k <= 65,793).
    """
    return exact_product(a, b)


def saturating_matmul(a: NDArray[np.uint8], b: NDArray[np.int8]) -> NDArray[np.int64]:
    """What `vpmaddubsw` and `vpmaddwd` compute: pairs (0,1), (2,3), … along k clipped to 16 bits.

    Args:
        a: Activation codes, uint8 [m, k].
        b: Weight codes, int8 [k, n].

    Returns:
        int64 [m, n].
    """
    odd = a.shape[1] % 2
    return saturated_product(np.pad(a, ((0, 0), (0, odd))), np.pad(b, ((0, odd), (0, 0))))


def pair_sums(codes: NDArray[np.int8]) -> NDArray[np.int64]:
    """Largest sum of two same-signed neighbours' magnitudes, per output channel.

    Which weights are neighbours depends on the kernel: im2col of NCHW puts the kernel's taps side
    by side, NHWC and the blocked layouts put input channels side by side, and blocks may start at
    any even position. All of these orders are looked at, so the answer holds for every kernel.

    Args:
        codes: Weight codes, int8 [out channels, in channels, *taps].

    Returns:
        int64 [out channels].
    """
    return worst_of_orders(codes, _neighbours)


def worst_of_orders(
    codes: NDArray[np.int8], look: Callable[[NDArray[np.int16]], NDArray[Any]]
) -> NDArray[np.int64]:
    """The largest that `look` finds per output channel, over all orders of its weights.

    Args:
        codes: Weight codes, int8 [out channels, in channels, *taps].
        look: int16 [some channels, weights] to one whole number per channel.

    Returns:
        int64 [out channels].
    """
    worst = np.zeros(len(codes), np.int64)
    # Some channels at a time, so that what is computed stays in cache.
    rows = max(1, _BLOCK // max(math.prod(codes.shape[1:]), 1))
    for start in range(0, len(codes), rows):
        wide = codes[start : start + rows].astype(np.int16)
        orders = [wide] if wide.ndim <= 2 else [wide, np.moveaxis(wide, 1, -1)]
        found = [look(order.reshape(len(wide), -1)) for order in orders]
        worst[start : start + rows] = np.max(found, axis=0)
    return worst


def _neighbours(flat: NDArray[np.int16]) -> NDArray[np.int16]:
    """Largest |a + b| over adjacent a, b of one sign; one alone counts for itself."""
    # Of opposite signs the sum is smaller than either, so what stands alone covers those.
    looked_at = (flat, flat[:, :-1] + flat[:, 1:])
    ends = [(x.max(axis=1, initial=0), -x.min(axis=1, initial=0)) for x in looked_at]
    worst: NDArray[np.int16] = np.max(ends, axis=(0, 1))
    return worst


def can_saturate(codes: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Output channels in which two neighbours can leave 16 bits at full activations.

    Args:
        codes: Weight codes, int8 [out channels, in channels, *taps].

    Returns:
        bool [out channels].
    """
    return pair_sums(codes) > SAFE_PAIR_SUM
