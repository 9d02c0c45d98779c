"""Evaluations of made-up scores, and pairs of them that differ in known ways."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from quantize.evaluate import Evaluation
from quantize.tolerance import Tolerance

POINT = Tolerance(1.0, "pt")


def evaluation(scores: Iterable[float], **changes: Any) -> Evaluation:
    """Scores of one model; 0 and 1 are wrong and right."""
    scores = tuple(float(s) for s in scores)
    made = Evaluation(
        model_sha256="a" * 64,
        runtime="onnxruntime",
        runtime_version="1.0",
        arithmetic="exact",
        metric="top1",
        output=None,
        higher_is_better=True,
        binary=all(s in (0, 1) for s in scores),
        bounded=all(0 <= s <= 1 for s in scores),
        chance=None,
        scores=scores,
        nonfinite=0,
        first_nonfinite=None,
        samples_sha256="d" * 64,
        outputs=("y",),
        seconds=1.0,
    )
    return replace(made, **changes)


def counted(
    n: int, losses: int, gains: int, *, right: float = 0.8
) -> tuple[Evaluation, Evaluation]:
    """0/1 scores of both models with these discordant pairs."""
    agree = n - losses - gains
    both = int(agree * right)
    baseline = [1] * losses + [0] * gains + [1] * both + [0] * (agree - both)
    candidate = [0] * losses + [1] * gains + [1] * both + [0] * (agree - both)
    return evaluation(baseline), evaluation(candidate)


def continuous(differences: Sequence[float], *, base: float = 0.9) -> tuple[Evaluation, Evaluation]:
    """Scores whose drops are these."""
    drops = np.asarray(differences, dtype=float)
    facts: dict[str, Any] = {"binary": False, "bounded": True}
    return evaluation(np.full(drops.size, base), **facts), evaluation(base - drops, **facts)
