"""Fidelity: how near INT8's outputs are to FP32's own, where nobody has labels.

FP32 against itself is perfect, so a drop is a distance from it. Embeddings are compared by what is
done with them (which others are near), dense outputs by noise (decibels) and by structure.
"""

import math

import numpy as np
from numpy.typing import NDArray

from bench.errors import InputError, UsageError
from bench.models import Array, Feeds
from quantize.evidence import Rows
from quantize.scores import Labels, named_output

# Equal outputs have no noise; this stands for it, and JSON knows no infinity.
MOST_DB = 150.0
# Others that each sample's likeness is ranked against; more change the third digit at most.
_GALLERY = 1000
# Rows of one block of similarities.
_BLOCK = 1024
# Of the window and the constants of SSIM: Wang et al., IEEE Trans. Image Processing 13 (2004), 4.
_WINDOW, _SIGMA, _K1, _K2 = 11, 1.5, 0.01, 0.03


def keep_both(
    outputs: Feeds, labels: Labels, reference: Feeds | None, output: str | None
) -> list[Array]:
    """INT8's and FP32's vector of each sample, one behind the other, both of length 1.

    Raises:
        InputError: The output is no vector per sample.
    """
    found = []
    for name, wanted in _pairs(outputs, reference, output)[:1]:
        both = [_units(a, len(labels), name) for a in (outputs[name], wanted)]
        found = list(np.concatenate(both, axis=1))
    return found


def ranking(rows: Rows) -> list[float]:
    """Of each sample, Spearman's correlation of its likeness to all others, INT8's with FP32's.

    Args:
        rows: From `keep_both`. At most a thousand others, evenly spread, are ranked.
    """
    found, wanted = _halves(rows)
    n = len(found)
    gallery = np.unique(np.linspace(0, n - 1, min(n, _GALLERY)).astype(int))
    if n < 3:
        return [1.0] * n
    scores = np.empty(n)
    for start in range(0, n, _BLOCK):
        block = np.arange(start, min(start + _BLOCK, n))
        itself = block[:, None] == gallery
        ranks = []
        for vectors in (found, wanted):
            likeness = vectors[block] @ vectors[gallery].T
            # Least like nobody: the same place in both, so that it adds nothing.
            likeness[itself] = -2.0
            ranks.append(likeness.argsort(axis=1, kind="stable").argsort(axis=1).astype(float))
        a, b = (r - r.mean(axis=1, keepdims=True) for r in ranks)
        scores[block] = (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return [max(0.0, float(s)) for s in scores]


def neighbours(rows: Rows, *, k: int) -> list[float]:
    """Of each sample, the share of FP32's `k` nearest others that INT8 finds too (recall@k).

    Args:
        rows: From `keep_both`.
        k: How many; fewer where there are fewer others.
    """
    found, wanted = _halves(rows)
    n = len(found)
    k = min(k, n - 1)
    if k < 1:
        return [1.0] * n
    scores: list[float] = []
    for start in range(0, n, _BLOCK):
        block = np.arange(start, min(start + _BLOCK, n))
        near = []
        for vectors in (found, wanted):
            likeness = vectors[block] @ vectors.T
            likeness[np.arange(block.size), block] = -np.inf
            nearest = np.argpartition(-likeness, k - 1, axis=1)[:, :k]
            marks = np.zeros(likeness.shape, bool)
            np.put_along_axis(marks, nearest, values=True, axis=1)
            near.append(marks)
        scores += [float(s) for s in (near[0] & near[1]).sum(axis=1) / k]
    return scores


def sqnr(
    outputs: Feeds, labels: Labels, reference: Feeds | None, output: str | None
) -> list[float]:
    """Power of FP32's output over that of the difference, dB; the least over all float outputs."""
    return _noise(outputs, labels, reference, output, peak=False)


def psnr(
    outputs: Feeds, labels: Labels, reference: Feeds | None, output: str | None
) -> list[float]:
    """Square of FP32's range over the mean square difference, dB; the least over all outputs."""
    return _noise(outputs, labels, reference, output, peak=True)


def ssim(
    outputs: Feeds, labels: Labels, reference: Feeds | None, output: str | None
) -> list[float]:
    """Structural similarity of the first image output, within FP32's range of each sample.

    Raises:
        InputError: No output is an image of at least 11 by 11 pixels.
    """
    for name, wanted in _pairs(outputs, reference, output):
        images = _images(wanted, len(labels))
        if images is not None:
            others = _images(outputs[name], len(labels))
            assert others is not None
            return [_ssim(a, b) for a, b in zip(others, images, strict=True)]
    raise InputError(
        f"no float output is an image of at least {_WINDOW} by {_WINDOW} pixels for each sample; "
        "use sqnr for other dense outputs."
    )


def _pairs(outputs: Feeds, reference: Feeds | None, output: str | None) -> list[tuple[str, Array]]:
    """Name and FP32's array of each float output that is to be compared."""
    if reference is None:
        raise UsageError("the metric compares with FP32 outputs, and none were kept.")
    names = [output] if output is not None else list(reference)
    arrays = [(n, named_output(reference, n)) for n in names]
    floats = [(n, a) for n, a in arrays if a.dtype.kind == "f" and a.ndim]
    if not floats:
        raise InputError(f"no float output to compare with FP32's: {', '.join(names)}.")
    for name, wanted in floats:
        if named_output(outputs, name).shape != wanted.shape:
            raise InputError(
                f"output {name!r} has shape {list(outputs[name].shape)}, FP32's "
                f"{list(wanted.shape)}: they cannot be compared."
            )
    return floats


def _units(array: Array, count: int, name: str) -> NDArray[np.float64]:
    if array.size % count or array.shape[0] not in (count, 1):
        raise InputError(
            f"output {name!r} of shape {list(array.shape)} is no vector for each of {count} "
            "sample(s). Pick another output with --output."
        )
    flat = array.reshape(count, -1).astype(np.float64)
    lengths = np.linalg.norm(flat, axis=1, keepdims=True)
    return flat / np.where(lengths == 0, 1.0, lengths)


def _halves(rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    try:
        both = np.asarray(rows, np.float64)
    except ValueError as e:
        raise InputError("embeddings of different lengths cannot be compared.") from e
    middle = both.shape[1] // 2
    return both[:, :middle], both[:, middle:]


def _noise(
    outputs: Feeds, labels: Labels, reference: Feeds | None, output: str | None, *, peak: bool
) -> list[float]:
    count = len(labels)
    least = [MOST_DB] * count
    for name, wanted in _pairs(outputs, reference, output):
        parts = count if wanted.shape[0] == count else 1
        pairs = zip(wanted.reshape(parts, -1), outputs[name].reshape(parts, -1), strict=True)
        found = [_decibels(a, b, peak=peak) for a, b in pairs]
        each = found if parts == count else found * count
        least = [min(a, b) for a, b in zip(least, each, strict=True)]
    return least


def _decibels(wanted: Array, found: Array, *, peak: bool) -> float:
    finite = np.isfinite(wanted)
    a, b = wanted[finite].astype(np.float64), found[finite].astype(np.float64)
    noise = float(((a - b) ** 2).mean()) if a.size else 0.0
    if noise == 0:
        return MOST_DB
    signal = float(np.ptp(a)) ** 2 if peak else float((a * a).mean())
    return float(np.clip(10 * math.log10(max(signal, 1e-300) / noise), -MOST_DB, MOST_DB))


def _images(array: Array, count: int) -> Array | None:
    """[samples, channels, height, width] of an output, or None where it is no image."""
    if array.ndim < 3 or array.shape[0] != count:
        return None
    # Few values in the last axis are channels; images are not so narrow.
    channels_last = array.ndim == 4 and array.shape[-1] <= 4 < array.shape[1]
    if channels_last:
        array = np.moveaxis(array, -1, 1)
    if min(array.shape[-2:]) < _WINDOW:
        return None
    return array.reshape(count, -1, *array.shape[-2:])


def _ssim(found: Array, wanted: Array) -> float:
    """Mean over channels and windows; both [channels, height, width]."""
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    span = float(np.ptp(b)) or 1.0
    c1, c2 = (_K1 * span) ** 2, (_K2 * span) ** 2
    mean_a, mean_b = _blurred(a), _blurred(b)
    var_a = _blurred(a * a) - mean_a**2
    var_b = _blurred(b * b) - mean_b**2
    both = _blurred(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return float(np.mean(top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))))


def _blurred(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted means under the window, where it fits whole."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    for axis in (-1, -2):
        windows = np.lib.stride_tricks.sliding_window_view(image, _WINDOW, axis=axis)
        image = windows @ weights
    return image
