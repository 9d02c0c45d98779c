"""Transcripts: error rates of recognized text, over characters and over words.

A rate is all errors over all reference units of a data set, so a long line weighs more than a short
one. jiwer counts the errors.
"""

from typing import Any, Literal

import numpy as np

from bench.errors import InputError, UnfitError, UsageError
from bench.models import Feeds
from quantize.evidence import Rows
from quantize.labels import plain
from quantize.scores import Labels, named_output


def count_errors(
    unit: Literal["characters", "words"],
    outputs: Any,
    labels: Labels,
    _: Feeds | None,
    output: str | None,
) -> list[tuple[int, int]]:
    """Errors (substitutions, deletions, insertions) and reference units per sample.

    Args:
        unit: What is counted.
        outputs: From `--decode`: one text per sample; or a model output of texts.
        labels: The right texts.
        output: The output that holds texts; None: the only one that does.

    Raises:
        InputError: A label or an output is no text.
        UsageError: The model returns no text and there is no --decode.
        UnfitError: jiwer is missing.
    """
    found = [str(t) for t in _texts(outputs, output, len(labels))]
    for label in labels:
        if not isinstance(label, str):
            raise InputError(
                f"label {plain(label)!r:.80} is no text, which error rates of {unit} compare with. "
                "Save labels as text: an array of str, or a labels.csv."
            )
    return [_errors(unit, str(label), text) for label, text in zip(labels, found, strict=True)]


def error_rate(rows: Rows) -> float:
    """All errors over all reference units; may exceed 1.

    Args:
        rows: From `count_errors`, [samples, 2].
    """
    errors, units = np.asarray(rows, np.float64).reshape(-1, 2).sum(axis=0)
    # Of empty references, every unit that was made up counts as one.
    return float(errors / max(units, 1.0))


def all_wrong(rows: Rows) -> Rows:
    """The rows of samples in which every reference unit is an error.

    Args:
        rows: From `count_errors`.
    """
    return [(max(errors, units, 1), units) for errors, units in rows]


def _texts(outputs: Any, output: str | None, count: int) -> list[str]:
    if isinstance(outputs, dict):
        texts = [n for n, a in outputs.items() if a.dtype.kind in "USO"]
        name = output or (texts[0] if len(texts) == 1 else None)
        if name is None:
            raise UsageError(
                f"the outputs {', '.join(map(repr, outputs))} are no text. Give --decode "
                "file.py:function, which returns one text per sample."
            )
        outputs = [str(t) for t in named_output(outputs, name).reshape(-1)]
    found = [outputs] if isinstance(outputs, str) else list(outputs)
    if len(found) != count or not all(isinstance(t, str) for t in found):
        raise InputError(
            f"--decode returned {found!r:.80}; expected a list of one text per sample, here "
            f"{count}."
        )
    return found


def _errors(unit: str, wanted: str, found: str) -> tuple[int, int]:
    try:
        import jiwer
    except ImportError as e:
        raise UnfitError(
            "error rates of text need jiwer, which is not installed: pip install 'vnnify[text]'."
        ) from e
    units = len(wanted.split()) if unit == "words" else len(wanted)
    if not units:  # jiwer refuses an empty reference
        return (len(found.split()) if unit == "words" else len(found)), 0
    counted = (
        jiwer.process_words(wanted, found)
        if unit == "words"
        else jiwer.process_characters(wanted, found)
    )
    return counted.substitutions + counted.deletions + counted.insertions, units
