"""Classes over a whole data set: macro F1, and intersection over union of segmentation maps."""

import numpy as np

from bench.errors import InputError
from bench.models import Array, Feeds
from quantize.evidence import Rows
from quantize.scores import Labels, best_classes

VOID = 255
"""Label of places that do not count in segmentation, as in Cityscapes and Pascal VOC."""


def count_classes(
    outputs: Feeds, labels: Labels, _: Feeds | None, output: str | None
) -> list[Array]:
    """Per sample how often each class was right, was found, and was wanted: int64 [3, classes].

    Places labelled 255 do not count.

    Raises:
        InputError: A label is no class of the output, or the shapes do not fit.
    """
    found, truth, classes = best_classes(outputs, labels, output, void=VOID)
    rows = []
    for mine, wanted in zip(
        found.reshape(len(found), -1), truth.reshape(len(truth), -1), strict=True
    ):
        kept = (wanted != VOID) if classes <= VOID else slice(None)
        mine, wanted = mine[kept], wanted[kept]
        counts = [np.bincount(v, minlength=classes) for v in (mine[mine == wanted], mine, wanted)]
        rows.append(np.stack(counts).astype(np.int64))
    return rows


def macro_f1(rows: Rows) -> float:
    """F1 of each class that was found or wanted, then their mean; 0 without any.

    Args:
        rows: From `count_classes`, [samples, 3, classes].
    """
    right, found, wanted = _totals(rows)
    seen = found + wanted > 0
    return float((2 * right[seen] / (found + wanted)[seen]).mean()) if seen.any() else 0.0


def mean_iou(rows: Rows) -> float:
    """Intersection over union of each class that was found or wanted, then their mean.

    Args:
        rows: From `count_classes`, [samples, 3, classes].
    """
    right, found, wanted = _totals(rows)
    union = found + wanted - right
    seen = union > 0
    return float((right[seen] / union[seen]).mean()) if seen.any() else 0.0


def nothing_right(rows: Rows) -> Rows:
    """The rows of samples in which nothing is right.

    Args:
        rows: From `count_classes`.
    """
    return [np.stack([np.zeros_like(r[0]), r[1], r[2]]) for r in rows]


def _totals(rows: Rows) -> Array:
    if not isinstance(rows, np.ndarray):
        widest = max(r.shape[1] for r in rows)
        rows = np.stack([np.pad(r, ((0, 0), (0, widest - r.shape[1]))) for r in rows])
    if rows.ndim != 3:
        raise InputError(f"counts of classes have shape {list(rows.shape)}, expected [n, 3, C].")
    totals: Array = rows.sum(axis=0, dtype=np.float64)
    return totals
