"""Features: what embeddings are good for, judged by use and not by likeness.

Each function works on the features of one model alone, so that both models are used as their users
would use them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import InputError
from bench.models import Array, Feeds
from quantize.evidence import Rows
from quantize.scores import Labels, pick_float

_FOLDS = 5
# Rows of one block of similarities; 64 MiB at 16,384 samples.
_BLOCK = 1024


def keep_features(
    outputs: Feeds, labels: Labels, _: Feeds | None, output: str | None
) -> list[Array]:
    """One vector per sample, its length 1, with the sample's label (a class or group) behind it.

    Raises:
        InputError: The output is no vector per sample, or a label is no whole number.
    """
    vectors = _vectors(outputs, output, len(labels))
    return [np.append(v, _whole(label)) for v, label in zip(vectors, labels, strict=True)]


def keep_pairs(
    outputs: Feeds, labels: Labels, _: Feeds | None, output: str | None
) -> list[tuple[float, float]]:
    """Likeness of the two vectors of each run, and how alike people find them.

    Raises:
        InputError: A run did not return two vectors, or its label is no number.
    """
    if len(labels) != 1:
        raise InputError(f"a sample of pairs has one label, found {len(labels)}: one run per pair.")
    one, other = _vectors(outputs, output, 2)
    try:
        return [(float(one @ other), float(labels[0]))]
    except (TypeError, ValueError) as e:
        raise InputError(f"label {labels[0]!r:.80} is no number: how alike the pair is.") from e


def rank_correlation(rows: Rows) -> float:
    """Spearman's correlation of likeness and label; 0 where either does not vary.

    Args:
        rows: From `keep_pairs`, [samples, 2].
    """
    ranks = [_ranks(np.asarray(rows, np.float64)[:, i]) for i in range(2)]
    a, b = (r - r.mean() for r in ranks)
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else 0.0


def recall(rows: Rows, *, k: int) -> list[float]:
    """Per sample 1 where one of its k nearest others has its label, else 0 (metric learning).

    Args:
        rows: From `keep_features`.
        k: Neighbours looked at.
    """
    return [float(hits.any()) for hits in _neighbours(rows, k)]


def gain(rows: Rows, *, k: int) -> list[float]:
    """Per sample the normalized discounted cumulative gain of its k nearest others (NDCG@k).

    A neighbour of the same label gains 1 / log2(1 + rank) (Jarvelin and Kekalainen, 2002); the best
    possible ranking gains 1. A sample whose label nobody shares gains 0.

    Args:
        rows: From `keep_features`.
        k: Neighbours looked at.
    """
    _, place, shared = np.unique(_kinds(rows), return_inverse=True, return_counts=True)
    others = shared[place] - 1
    weights = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate([[0.0], np.cumsum(weights)])
    return [
        float(hits @ weights[: len(hits)]) / ideal[min(n, k)] if n else 0.0
        for hits, n in zip(_neighbours(rows, k), others, strict=True)
    ]


def probe(rows: Rows) -> list[float]:
    """Per sample whether a linear classifier, fitted to the other folds, names its label.

    Ridge regression on one-hot labels, five folds by position: deterministic, and the same folds
    for every model.

    Args:
        rows: From `keep_features`.
    """
    data = np.asarray(rows, np.float64)
    features, kinds = data[:, :-1], np.unique(data[:, -1], return_inverse=True)[1]
    wanted = np.eye(int(kinds.max()) + 1)[kinds]
    folds = np.arange(len(data)) % _FOLDS
    right = np.zeros(len(data))
    for fold in range(_FOLDS):
        held, rest = folds == fold, folds != fold
        if not held.any() or not rest.any():
            continue
        centre = features[rest].mean(axis=0)
        x = features[rest] - centre
        gram = x.T @ x + 1e-3 * np.eye(x.shape[1]) * max(np.trace(x.T @ x) / x.shape[1], 1e-12)
        weights = np.linalg.solve(gram, x.T @ (wanted[rest] - wanted[rest].mean(axis=0)))
        scores = (features[held] - centre) @ weights + wanted[rest].mean(axis=0)
        right[held] = scores.argmax(axis=1) == kinds[held]
    return [float(r) for r in right]


def _neighbours(rows: Rows, k: int) -> Sequence[NDArray[np.bool_]]:
    """Per sample whether each of its k nearest others, nearest first, has its label."""
    data, kinds = np.asarray(rows, np.float64)[:, :-1], _kinds(rows)
    if len(data) < 2:
        raise InputError("neighbours need at least 2 samples.")
    found: list[NDArray[np.bool_]] = []
    for start in range(0, len(data), _BLOCK):
        likeness = data[start : start + _BLOCK] @ data.T
        own = np.arange(len(likeness))
        likeness[own, own + start] = -np.inf
        # Stable, so that equal ones keep their order and every run gives the same.
        near = np.argsort(-likeness, axis=1, kind="stable")[:, : min(k, len(data) - 1)]
        found += list(kinds[near] == kinds[own + start][:, None])
    return found


def _kinds(rows: Rows) -> Array:
    kinds: Array = np.asarray(rows, np.float64)[:, -1]
    return kinds


def _vectors(outputs: Feeds, output: str | None, count: int) -> NDArray[np.float64]:
    """Float64 [count, width], each of length 1."""
    name, found = pick_float(outputs, output)
    vectors = found.astype(np.float64).reshape(found.shape[0], -1)
    if count == 1 and len(vectors) != 1:
        vectors = vectors.reshape(1, -1)  # a model without a batch axis
    if len(vectors) != count:
        raise InputError(
            f"output {name!r} of shape {list(found.shape)} holds {len(vectors)} vectors, expected "
            f"{count}. Pick another output with --output."
        )
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float64] = vectors / np.where(lengths > 0, lengths, 1.0)
    return unit


def _whole(label: Any) -> int:
    try:
        if float(label) == int(label):
            return int(label)
    except (TypeError, ValueError):
        pass
    raise InputError(f"label {label!r:.80} is no class: expected a whole number.")


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 0, equal values sharing their mean rank."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means = ends - (counts + 1) / 2
    ranks: NDArray[np.float64] = means[where]
    return ranks
