"""What a class of CPU computes when it multiplies 8-bit integers.

AVX2 and AVX-512 without VNNI add the products of two neighbours, u8 x s8, into 16 bits that
*saturate* (`vpmaddubsw`); VNNI, AVX-VNNI and AMX add four products into 32 bits and are exact
(`vpdpbusd`, `tdpbusd`; Intel SDM vol. 2). The same INT8 file therefore gives different answers on
the two, unless no pair of neighbours can leave the 16 bits. That is what `portable` makes sure of.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.errors import UsageError
from bench.machine import exact_product, saturated_product

INT16_MAX = (1 << 15) - 1
U8_MAX = 255
# 255 * (|w1| + |w2|) fits 16 signed bits up to 128: 32,640. At 129 it is 32,895. On the negative
# side -255 * 128 = -32,640 likewise.
SAFE_PAIR_SUM = INT16_MAX // U8_MAX


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
    wide = codes.astype(np.int64)
    flat = wide.reshape(wide.shape[0], -1)
    worst = _neighbours(flat)
    if wide.ndim > 2:
        last = np.moveaxis(wide, 1, -1).reshape(wide.shape[0], -1)
        worst = np.maximum(worst, _neighbours(last))
    return worst


def _neighbours(flat: NDArray[np.int64]) -> NDArray[np.int64]:
    """Largest |a + b| over adjacent a, b of one sign; one alone counts for itself."""
    worst: NDArray[np.int64] = np.abs(flat).max(axis=1, initial=0)
    if flat.shape[1] > 1:
        pairs = np.abs(flat[:, :-1] + flat[:, 1:])
        # Of opposite signs the sum is smaller than either, so `worst` above covers those.
        worst = np.maximum(worst, pairs.max(axis=1))
    return worst


def can_saturate(codes: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Output channels in which two neighbours can leave 16 bits at full activations.

    Args:
        codes: Weight codes, int8 [out channels, in channels, *taps].

    Returns:
        bool [out channels].
    """
    return pair_sums(codes) > SAFE_PAIR_SUM
