"""The built-in scores: one model run's outputs and labels in, one number per sample out.

Each is a row of `quantize.metrics.METRICS` and takes (outputs, labels, reference outputs, name of
the output to score or None for the first that fits). Axes of size 1 never matter.
"""

from typing import Any, TypeAlias

import numpy as np

from bench.errors import InputError, UsageError
from bench.models import Array, Feeds

Labels: TypeAlias = Array | list[Any]


# --- classes ---


def top(k: int, outputs: Feeds, labels: Labels, _: Feeds | None, output: str | None) -> list[float]:
    """Whether the label is among the `k` highest classes; of maps, the share of places where it is.

    Labels are numbers of classes, or one-hot, [N, C].

    Raises:
        InputError: A label is no class of the output, or the shapes do not fit.
    """
    name, found = _pick_classes(outputs, output, count=len(labels))
    truth = _numbered(_squeeze(_whole(labels)), found)
    if found.dtype.kind in "biu":
        _refuse_shapes(name, found, truth, fits=found.shape == truth.shape)
        return _per_sample(found == truth)
    scores = _classes_last(name, found, truth)
    _refuse_range(name, truth, scores.shape[-1])
    if k == 1:
        return _per_sample(scores.argmax(axis=-1) == truth)
    # Stable, so that ties (INT8 logits tie often) go to the lower class, as argmax has it.
    best = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    return _per_sample((best == truth[..., None]).any(axis=-1))


def best_classes(
    outputs: Feeds, labels: Labels, output: str | None, *, void: int
) -> tuple[Array, Array, int]:
    """Best classes and labels, both integer [N, …] alike, and how many classes there are.

    Args:
        outputs: Of one run.
        labels: Of the same samples.
        output: Its name; None: the first that tells classes.
        void: A label that is no class, wherever there are not so many classes.

    Raises:
        InputError: A label is no class of the output, or the shapes do not fit.
    """
    name, found = _pick_classes(outputs, output, count=len(labels))
    truth = _numbered(_squeeze(_whole(labels)), found)
    if found.dtype.kind in "biu":
        _refuse_shapes(name, found, truth, fits=found.shape == truth.shape)
        known = [v[v != void].max(initial=0) for v in (found, truth)]
        return found, truth, int(max(known)) + 1
    scores = _classes_last(name, found, truth)
    classes = int(scores.shape[-1])
    _refuse_range(name, truth[truth != void] if classes <= void else truth, classes)
    return scores.argmax(axis=-1), truth, classes


def chance_of_top(k: int, outputs: Feeds, output: str | None) -> float | None:
    """The share that naming any `k` classes gets right; None where the classes are not counted."""
    _, found = _pick_classes(outputs, output, count=1)
    if found.dtype.kind != "f" or found.ndim != 2:
        return None
    return min(1.0, k / int(found.shape[1]))


def chance_of_yes(outputs: Feeds, output: str | None) -> float:  # noqa: ARG001 - one signature
    """The share that saying yes or no at random gets right."""
    return 0.5


def agreement(
    outputs: Feeds, labels: Labels, reference: Feeds | None, output: str | None
) -> list[float]:
    """Whether the FP32 model's best class is this one's too; of places, the share of them.

    Places are those of images, [N, C, H, W], or of text, [N, T, C].
    """
    reference = _given(reference, "agreement")
    name, wanted = _pick_classes(reference, output, count=len(labels))
    found = named_output(outputs, name)
    fits = _squeeze(found).shape == _squeeze(reference[name]).shape
    _refuse_shapes(name, found, reference[name], fits=fits)
    found = found.reshape(wanted.shape)
    if wanted.dtype.kind == "f":
        axis = -1 if reference[name].ndim == 3 else 1
        found, wanted = found.argmax(axis=axis), wanted.argmax(axis=axis)
    return _per_sample(found == wanted)


def named_class(outputs: Feeds, output: str | None, count: int) -> list[str]:
    """The class that each sample is given; of maps, nothing."""
    _, found = _pick_classes(outputs, output, count=count)
    if found.dtype.kind == "f":
        found = found.argmax(axis=1)
    return [str(c) for c in found] if found.ndim == 1 else [""] * count


def named_value(outputs: Feeds, output: str | None, count: int) -> list[str]:
    """The value of each sample whose sign or half tells yes from no."""
    found = _squeeze(pick_float(outputs, output)[1])
    return [f"{v:.6g}" for v in found] if found.ndim == 1 else [""] * count


def above(
    threshold: float, outputs: Feeds, labels: Labels, _: Feeds | None, output: str | None
) -> list[float]:
    """Whether one yes/no value per sample lies on the side of `threshold` that its label says."""
    truth = _squeeze(_whole(labels))
    name, found = pick_float(outputs, output)
    found = _squeeze(found)
    _refuse_shapes(name, found, truth, fits=found.shape == truth.shape)
    _refuse_range(name, truth, 2)
    outside = (found < 0) | (found > 1)
    if threshold == 0.5 and outside.any():
        raise InputError(
            f"output {name!r} holds {_first(found, outside)}, which is no probability. "
            "Use --metric logit."
        )
    return _per_sample((found > threshold) == truth.astype(bool))


def _pick_classes(outputs: Feeds, output: str | None, *, count: int) -> tuple[str, Array]:
    """The output that tells classes, without axes of size 1: float [N, C, …] or integer [N, …]."""
    if output is None:
        floats = [n for n, a in outputs.items() if a.dtype.kind == "f" and a.ndim]
        names = [n for n in floats if _squeeze(outputs[n]).ndim > 1]
        names += [n for n, a in outputs.items() if a.dtype.kind in "biu" and a.ndim]
        names += floats
        if not names:
            raise InputError(f"no output can tell classes: {_described(outputs)}.")
        output = names[0]
    found = _squeeze(named_output(outputs, output))
    if found.dtype.kind not in "biuf" or not found.ndim:
        raise InputError(f"output {output!r} holds no class scores: {_described(outputs)}.")
    if found.dtype.kind == "f" and found.ndim == 1:
        if found.size > 1 and count == 1:
            return output, found[None]  # a model without a batch axis
        raise InputError(
            f"output {output!r} of shape {list(outputs[output].shape)} has one value per sample: "
            "no best class. Use --metric logit (yes above 0) or probability (yes above 0.5)."
        )
    return output, found


def _classes_last(name: str, scores: Array, truth: Array) -> Array:
    # [N, C, H, W] with labels [N, H, W] is the order of images; [N, T, C] with [N, T] that of text.
    first, last = scores.shape[:1] + scores.shape[2:], scores.shape[:-1]
    _refuse_shapes(name, scores, truth, fits=truth.shape in (first, last))
    return np.moveaxis(scores, 1, -1) if scores.ndim > 2 and truth.shape == first else scores


def _whole(labels: Labels) -> Array:
    values = np.asarray(labels)
    if values.dtype.kind in "biu":
        return values
    if values.dtype.kind == "f" and (values == np.round(values)).all():
        return values.astype(np.int64)
    wrong = _first(values, values % 1 != 0) if values.dtype.kind == "f" else labels[0]
    raise InputError(
        f"label {wrong!r:.80} is no class: expected a whole number from 0. "
        "For numeric labels use --metric mse, for others a function of your own."
    )


def is_one_hot(labels: Array) -> bool:
    """Whether every row of [..., C], C > 1, is 1 at its class and 0 elsewhere."""
    if labels.ndim == 0 or labels.shape[-1] < 2:
        return False
    zeros, ones = (labels == 0).sum(axis=-1), (labels == 1).sum(axis=-1)
    return bool(((ones == 1) & (zeros == labels.shape[-1] - 1)).all())


def _numbered(truth: Array, found: Array) -> Array:
    """Labels as numbers of classes, also where they are one-hot: alike in shape to the scores."""
    if found.dtype.kind != "f" or found.ndim != 2 or truth.shape != found.shape:
        return truth
    if not is_one_hot(truth):
        raise InputError(
            f"label {truth[0].tolist()!r:.80} names no class: neither a number nor one-hot (1 at "
            "its class, 0 elsewhere). For several classes at once write a function of your own, "
            "for values use --metric mse."
        )
    classes: Array = truth.argmax(axis=1)
    return classes


def _refuse_range(name: str, truth: Array, classes: int) -> None:
    wrong = (truth < 0) | (truth >= classes)
    if not wrong.any():
        return
    label = int(_first(truth, wrong))
    hint = "A label is the index of the class in the output."
    if label == classes:
        hint = f"The labels look 1-based (1 to {classes}): subtract 1."
    raise InputError(
        f"label {label} is out of range: output {name!r} knows {classes} classes, so labels run "
        f"from 0 to {classes - 1}. {hint}"
    )


# --- numbers ---


def error(
    power: int, outputs: Feeds, labels: Labels, _: Feeds | None, output: str | None
) -> list[float]:
    """Mean over a sample of its absolute differences from the label, raised to `power`."""
    name, found = pick_float(outputs, output)
    truth = np.asarray(labels)
    if truth.dtype.kind not in "biuf":
        raise InputError(f"label {labels[0]!r:.80} is not numeric, which mae and mse need.")
    found, truth = _squeeze(found), _squeeze(truth)
    if found.shape == truth.shape[1:] and len(labels) == 1:
        found = found[None]  # a model without a batch axis
    hint = " Labels that name classes have to be integers." if truth.ndim == 1 else ""
    _refuse_shapes(name, found, truth, fits=found.shape == truth.shape, hint=hint)
    return _per_sample(np.abs(found.astype(np.float64) - truth.astype(np.float64)) ** power)


def likeness(outputs: Feeds, _: Labels, reference: Feeds | None, output: str | None) -> list[float]:
    """Least cosine with the FP32 outputs over all float outputs, or of `output`: one per run."""
    reference = _given(reference, "cosine")
    names = [n for n, a in reference.items() if a.dtype.kind == "f" and output in (None, n)]
    if not names:
        asked = f" called {output!r}" if output else ""
        raise InputError(
            f"no float output{asked} to compare: {_described(reference)}. For integer outputs use "
            "--metric agreement."
        )
    return [min(cosine(reference[n], named_output(outputs, n)) for n in names)]


def cosine(wanted: Array, found: Array) -> float:
    """Likeness of two arrays as the cosine between them, in 0..1.

    1.0 if both are zero; 0.0 if only one is, if their shapes differ or if they point apart.
    Infinities (masked logits) have to stand in the same places in both, else 0.0; the rest counts.
    """
    if wanted.shape != found.shape:
        return 0.0
    finite = np.isfinite(wanted)
    if not finite.all():
        if not np.array_equal(wanted[~finite], found[~finite], equal_nan=True):
            return 0.0
        wanted, found = wanted[finite], found[finite]
    if np.array_equal(wanted, found):
        return 1.0
    a, b = wanted.astype(np.float64).reshape(-1), found.astype(np.float64).reshape(-1)
    a_max, b_max = np.abs(a).max(), np.abs(b).max()
    if a_max == 0 or b_max == 0:
        return 0.0
    # Scaled by the largest element, so that squares neither overflow nor vanish.
    a, b = a / a_max, b / b_max
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), 0.0, 1.0))


# --- arrays ---


def pick_float(outputs: Feeds, output: str | None) -> tuple[str, Array]:
    """The output that holds numbers: the one of that name, else the first float one.

    Raises:
        InputError: No output is float.
        UsageError: There is no output of that name.
    """
    floats = [n for n, a in outputs.items() if a.dtype.kind == "f" and a.ndim]
    if output is None and not floats:
        raise InputError(f"no float output to score: {_described(outputs)}.")
    output = output or floats[0]
    return output, named_output(outputs, output)


def named_output(outputs: Feeds, output: str) -> Array:
    """The output of that name.

    Raises:
        UsageError: There is none.
    """
    if output not in outputs:
        raise UsageError(f"the model has no output {output!r}: {_described(outputs)}.")
    return outputs[output]


def _given(reference: Feeds | None, metric: str) -> Feeds:
    if reference is None:
        raise UsageError(f"metric {metric!r} compares with FP32 outputs, and none were kept.")
    return reference


def _squeeze(array: Array) -> Array:
    if 1 not in array.shape[1:]:
        return array
    return array.reshape(array.shape[:1] + tuple(d for d in array.shape[1:] if d != 1))


def _per_sample(scores: Array) -> list[float]:
    if scores.ndim == 1:
        return [float(s) for s in scores]
    flat = scores.reshape(scores.shape[0], -1).mean(axis=1, dtype=np.float64)
    return [float(s) for s in flat]


def _refuse_shapes(name: str, found: Array, wanted: Array, *, fits: bool, hint: str = "") -> None:
    if not fits:
        raise InputError(
            f"output {name!r} of shape {list(found.shape)} does not fit what it is compared with, "
            f"of shape {list(wanted.shape)}. Pick another output with --output, or write a metric "
            f"function.{hint}"
        )


def _first(values: Array, where: Array) -> Any:
    return values.reshape(-1)[int(np.argmax(where.reshape(-1)))].item()


def _described(outputs: Feeds) -> str:
    return ", ".join(f"{n!r} {a.dtype}{list(a.shape)}" for n, a in outputs.items())
