"""Learned rounding: each weight's rounding error is made up for by the weights not rounded yet.

E. Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023, algorithm 1, after the optimal brain surgeon of B. Hassibi and D. Stork
(1993): for the error |X w - X q|² the Hessian is XᵀX, and when input i is rounded, the best change
of the inputs after it is -(w_i - q_i) / [U]_ii · U_i,: , where UᵀU is the inverse of the Hessian.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

S8_MAX = 127
# Share of the mean diagonal that is added to it, so that the Hessian of few rows can be inverted.
_DAMPING = 0.01
# Inputs rounded before the rest is updated, in one product of matrices.
_BLOCK = 64
# Inputs beyond which the Hessian takes too long and too much memory: 6,144² float64 are 302 MB.
MAX_INPUTS = 6144


@dataclass(frozen=True, slots=True)
class Rounder:
    """What rounding the weights of one layer needs to know of its inputs.

    Attributes:
        factor: float32 [groups, inputs, inputs], upper triangular; the U above, inputs in `order`.
        order: intp [groups, inputs]: the inputs with the largest effect come first.
        importance: float32 [groups, inputs], mean square of every input.
    """

    factor: NDArray[np.float32]
    order: NDArray[np.intp]
    importance: NDArray[np.float32]

    def codes(self, weights: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.int8]:
        """Weights as codes; of one group, any of its channels.

        Args:
            weights: float32 [out channels, in channels / groups, *taps].
            scales: float32 [out channels].
        """
        groups, inputs = self.order.shape
        by_group = weights.reshape(groups, -1, inputs).transpose(0, 2, 1)
        steps = scales.reshape(groups, -1)
        # [groups, inputs, out channels]: what is updated together lies together.
        left = np.take_along_axis(by_group, self.order[:, :, None], axis=1)
        rounded = np.empty(left.shape, np.int8)
        for start in range(0, inputs, _BLOCK):
            end = min(start + _BLOCK, inputs)
            lost = np.empty((groups, end - start, left.shape[2]), np.float32)
            for i in range(start, end):
                code = np.rint(left[:, i] / steps)
                np.clip(code, -S8_MAX, S8_MAX, out=code)
                rounded[:, i] = code
                lost[:, i - start] = (left[:, i] - code * steps) / self.factor[:, i, i, None]
                ahead = self.factor[:, i, i + 1 : end, None]
                left[:, i + 1 : end] -= ahead * lost[:, None, i - start]
            left[:, end:] -= self.factor[:, start:end, end:].transpose(0, 2, 1) @ lost
        found = np.empty(left.shape, np.int8)
        np.put_along_axis(found, self.order[:, :, None], rounded, axis=1)
        return np.ascontiguousarray(found.transpose(0, 2, 1)).reshape(weights.shape)


def learn(rows: NDArray[np.float32]) -> Rounder | None:
    """A rounder for a layer that reads these rows.

    Args:
        rows: float32 [rows, groups, inputs], as the quantized layer reads them.

    Returns:
        None where there are no rows, too many inputs, or the Hessian has no inverse.
    """
    count, _, inputs = rows.shape
    if not count or inputs > MAX_INPUTS:
        return None
    by_group = np.ascontiguousarray(rows.transpose(1, 0, 2))
    hessian = np.matmul(by_group.transpose(0, 2, 1), by_group).astype(np.float64) / count
    diagonal = np.einsum("gii->gi", hessian)
    importance = diagonal.astype(np.float32)
    damping = _DAMPING * diagonal.mean(axis=1)
    # An input that is always zero changes nothing; any positive number will do for it.
    diagonal += np.where(damping > 0, damping, 1.0)[:, None]
    order = np.argsort(-importance, axis=1, kind="stable")
    hessian = np.take_along_axis(hessian, order[:, :, None], axis=1)
    hessian = np.take_along_axis(hessian, order[:, None, :], axis=2)
    try:
        factor = _factor(hessian)
    except np.linalg.LinAlgError:
        return None
    if not np.isfinite(factor).all():
        return None
    return Rounder(factor, order, importance)


def _factor(hessian: NDArray[np.float64]) -> NDArray[np.float32]:
    """Upper triangular U with UᵀU the inverse of each matrix; float32 of the same shape."""
    inverse = np.linalg.inv(hessian)
    inverse = (inverse + inverse.transpose(0, 2, 1)) / 2
    return np.linalg.cholesky(inverse).transpose(0, 2, 1).astype(np.float32)
