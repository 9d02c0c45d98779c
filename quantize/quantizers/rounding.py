"""Learned rounding: each weight's rounding error is made up for by the weights not rounded yet.

E. Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023, after the optimal brain surgeon of B. Hassibi and D. Stork (1993), for the
error |X w - X q|². No inverse of the Hessian XᵀX is needed: it is the nearest plane algorithm of
L. Babai (1986) for the lattice of its Cholesky factor (J. Chen et al., "The Geometry of LLM
Quantization: GPTQ as Babai's Nearest Plane Algorithm", 2025). With XᵀX = L Lᵀ the error is
|Lᵀ(w - q)|², and when all inputs after i are rounded, the best place for q_i is
w_i + sum over j > i of L_ji (w_j - q_j) / L_ii.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

S8_MAX = 127
# Share of the mean diagonal that is added to it, so that the Hessian of few rows can be factored.
_DAMPING = 0.01
# Inputs rounded before the rest is updated, in one product of matrices; and, of these, before the
# rest of them is.
_BLOCK, _FEW = 64, 8
# Inputs whose factor is found by LAPACK at once.
_FACTORED = 64
# Inputs beyond which the Hessian takes too long and too much memory: 6,144² float32 are 151 MB.
MAX_INPUTS = 6144


@dataclass(frozen=True, slots=True)
class Rounder:
    """What rounding the weights of one layer needs to know of its inputs.

    Attributes:
        factor: float32 [groups, inputs, inputs], of the L above: L_ji / L_ii in row i, inputs in
            `order`; what is below the diagonal means nothing.
        order: intp [groups, inputs]: the inputs with the largest effect come last; they are rounded
            first.
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
        at = _one_below_another(self.order)
        left = by_group.reshape(groups * inputs, -1)[at].reshape(by_group.shape)
        lost = np.empty_like(left)
        rounded = np.empty(left.shape, np.int8)
        for end in range(inputs, 0, -_BLOCK):
            start = max(end - _BLOCK, 0)
            block = left[:, start:end] + self.factor[:, start:end, end:] @ lost[:, end:]
            for stop in range(end, start, -_FEW):
                first = max(stop - _FEW, start)
                wanted = block[:, first - start : stop - start]
                wanted += self.factor[:, first:stop, stop:end] @ lost[:, stop:end]
                for i in reversed(range(first, stop)):
                    code = wanted[:, i - first] / steps
                    np.rint(code, out=code)
                    np.minimum(code, S8_MAX, out=code)
                    np.maximum(code, -S8_MAX, out=code)
                    rounded[:, i] = code
                    lost[:, i] = left[:, i] - code * steps
                    # No product of matrices: one this small costs more than it takes.
                    wanted[:, : i - first] += self.factor[:, first:i, i, None] * lost[:, None, i]
        found = np.empty(left.shape, np.int8)
        found.reshape(groups * inputs, -1)[at] = rounded.reshape(groups * inputs, -1)
        return np.ascontiguousarray(found.transpose(0, 2, 1)).reshape(weights.shape)


def learn(rows: NDArray[np.float32]) -> Rounder | None:
    """A rounder for a layer that reads these rows.

    Args:
        rows: float32 [rows, groups, inputs], as the quantized layer reads them.

    Returns:
        None where there are no rows, too many inputs, or the Hessian has no factor.
    """
    count, _, inputs = rows.shape
    if not count or inputs > MAX_INPUTS:
        return None
    importance = np.einsum("ngi,ngi->gi", rows, rows) / np.float32(count)
    order = np.argsort(importance, axis=1, kind="stable")
    ordered = rows.reshape(count, -1).take(_one_below_another(order), axis=1)
    by_group = ordered.reshape(rows.shape).transpose(1, 0, 2)
    hessian = np.matmul(by_group.transpose(0, 2, 1), by_group)
    hessian /= np.float32(count)
    diagonal = np.einsum("gii->gi", hessian)
    damping = _DAMPING * diagonal.mean(axis=1)
    # An input that is always zero changes nothing; any positive number will do for it.
    diagonal += np.where(damping > 0, damping, 1.0)[:, None]
    del diagonal
    try:
        factor = factored(hessian)
    except np.linalg.LinAlgError:
        return None
    factor /= np.einsum("gii->gi", factor)[:, :, None].copy()
    return Rounder(factor, order, importance) if np.isfinite(factor).all() else None


def factored(matrices: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lᵀ of each L Lᵀ, in place; what is below its diagonal means nothing.

    In blocks of rows: nearly all of it are products of matrices, which are faster than LAPACK's own
    factoring through numpy.

    Args:
        matrices: float32 [groups, inputs, inputs], symmetric.

    Raises:
        LinAlgError: One is not positive definite.
    """
    inputs = matrices.shape[-1]
    for start in range(0, inputs, _FACTORED):
        end = start + _FACTORED
        above, rows = matrices[:, :start, start:], matrices[:, start:end, start:]
        rows -= above[:, :, :_FACTORED].transpose(0, 2, 1) @ above
        corner = np.linalg.cholesky(rows[:, :, :_FACTORED], upper=True)
        rows[:, :, :_FACTORED] = corner
        if end < inputs:
            right = rows[:, :, _FACTORED:]
            right[:] = np.linalg.inv(corner).transpose(0, 2, 1) @ right
    return matrices


def _one_below_another(order: NDArray[np.intp]) -> NDArray[np.intp]:
    """An order of every group's inputs as one of all inputs; several times as fast to take by.

    Args:
        order: [groups, inputs].

    Returns:
        [groups * inputs].
    """
    groups, inputs = order.shape
    at: NDArray[np.intp] = order + inputs * np.arange(groups)[:, None]
    return at.reshape(-1)
