"""Metrics: how good the outputs of one model run are, as one score per sample, and which way is up.

A metric sees one run of the model at a time: its outputs exactly as the model returned them and the
labels that belong to it. Built-in ones stand in `METRICS`; any other is a Python function of the
user's (`file.py:function`), called as `function(outputs, labels)`:

- `outputs`: output name -> array, whose first axis is the samples of this run. Read-only.
- `labels`: as many labels as samples: an array, or a list where they are not numbers; a list of
  None where the data has none.
- returns one number per sample: a list, a 1-D array, or, for one sample, a plain number.

`function.higher_is_better = False` turns the direction, `function.bounded = True` promises scores
in 0..1, `function.binary = False` says that 0 and 1 do not mean "wrong" and "right".
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np

from bench.errors import InputError, UsageError
from bench.models import Array, Feeds
from quantize.plugins import blame, is_function_text, load_function, nearest
from quantize.scores import (
    Labels,
    above,
    agreement,
    chance_of_top,
    chance_of_yes,
    error,
    likeness,
    top,
)

# (outputs, labels, reference outputs, name of the output to score or None) -> one score per sample.
Score: TypeAlias = Callable[[Feeds, Labels, Feeds | None, str | None], list[float]]


@dataclass(frozen=True, slots=True)
class Metric:
    """A named way to score model outputs.

    Attributes:
        name: As `--metric` takes it.
        function: What computes it; call `score`.
        higher_is_better: False for errors such as `mse`.
        binary: Whether each score is 0 or 1 (wrong or right); None: look at the scores.
        bounded: Whether scores lie in 0..1, so that a drop in points means something; None: look.
        needs: What `score` cannot do without.
        guessing: (outputs, output) -> the score that guessing would get, None where that has no
            meaning; call `chance`.
        output: The model output to score; None: the first that fits.
    """

    name: str
    function: Score
    higher_is_better: bool = True
    binary: bool | None = None
    bounded: bool | None = True
    needs: Literal["labels", "reference", "nothing"] = "labels"
    guessing: Callable[[Feeds, str | None], float | None] | None = None
    output: str | None = None

    def score(self, outputs: Feeds, labels: Labels, reference: Feeds | None = None) -> list[float]:
        """One score per sample of one model run.

        Args:
            outputs: What the model returned.
            labels: Of the same samples; see `run_labels`.
            reference: What the FP32 model returned for them.

        Raises:
            InputError: Outputs, labels or the user's function do not fit.
            UsageError: There is no such output, or no reference where one is needed.
        """
        return self.function(outputs, labels, reference, self.output)

    def chance(self, outputs: Feeds) -> float | None:
        """The score that guessing would get; None where guessing has no meaning.

        Args:
            outputs: Of any run that `score` has accepted.
        """
        return self.guessing(outputs, self.output) if self.guessing is not None else None


def resolve_metric(
    text: str | None, *, labelled: bool, first_label: object = None, output: str | None = None
) -> Metric:
    """The metric that `--metric` names, or the one that fits the labels.

    Args:
        text: A name in `METRICS`, `file.py:function`, or None: top1 for integer labels, mse for
            float labels, cosine against the FP32 outputs for other labels or none.
        labelled: Whether the data has labels.
        first_label: The label of the first sample.
        output: Score this model output; None: the first that fits the metric.

    Raises:
        UsageError: There is no such metric, or it needs labels and there are none.
        InputError: The user's file cannot be loaded.
    """
    if text is None:
        text = _fitting(first_label) if labelled else "cosine"
    if text not in METRICS:
        if is_function_text(text):
            return _plugin(text)
        raise UsageError(
            f"unknown metric {text!r}.{nearest(text, list(METRICS))} Known: {', '.join(METRICS)}, "
            "or file.py:function of your own."
        )
    metric = METRICS[text]
    if metric.needs == "labels" and not labelled:
        raise UsageError(
            f"metric {text!r} needs labels, and the data has none. Add labels, or use cosine or "
            "agreement, which compare with the FP32 model's outputs."
        )
    return replace(metric, output=output)


def run_labels(label: object, batch: int) -> Labels:
    """One sample's label as metrics take it: one entry per sample of the run.

    Args:
        label: Of one model run. A number becomes [1], an array [1, …], anything else a list of one;
            what already holds one entry for each of `batch` > 1 samples stays as it is.
        batch: Size of the run's first axis.
    """
    if isinstance(label, (bool, int, float, np.number, np.bool_)):
        return np.asarray([label])
    if isinstance(label, np.ndarray) and label.dtype.kind in "biuf":
        if batch > 1 and label.ndim and label.shape[0] == batch:
            return _read_only(label)
        return np.stack([label])
    if batch > 1 and isinstance(label, (list, tuple)) and len(label) == batch:
        return list(label)
    return [None] * batch if label is None else [label]


def _fitting(label: object) -> str:
    if isinstance(label, (bool, int, float, np.number, np.bool_, np.ndarray)):
        values = np.asarray(label)
        if values.dtype.kind in "biu" and values.ndim == 0:
            return "top1"
        if values.dtype.kind == "f":
            return "mse"
    return "cosine"


# --- the user's own ---


def _plugin(text: str) -> Metric:
    function = load_function(text, what="metric")
    higher = bool(getattr(function, "higher_is_better", True))
    # An error is no share of anything, even where it happens to stay below 1.
    unsaid = None if higher else False
    return Metric(
        name=text,
        function=partial(_plugin_scores, function, text),
        higher_is_better=higher,
        binary=getattr(function, "binary", unsaid),
        bounded=getattr(function, "bounded", unsaid),
        needs="nothing",
    )


def _plugin_scores(
    function: Callable[..., Any],
    text: str,
    outputs: Feeds,
    labels: Labels,
    *_: object,
) -> list[float]:
    with blame(text, what="metric"):
        returned = function({n: _read_only(a) for n, a in outputs.items()}, labels)
        try:
            # Complex numbers would lose their imaginary part with no more than a warning.
            whole = np.asarray(returned)
            scores = whole.astype(np.float64) if whole.dtype.kind != "c" else None
        except (TypeError, ValueError):
            scores = None
    if scores is None or returned is None or isinstance(returned, str) or scores.ndim > 1:
        found = f"returned {type(returned).__name__} {returned!r:.80}"
    elif scores.size != len(labels):
        found = f"returned {scores.size} scores for {len(labels)} samples"
    elif not np.isfinite(scores).all():
        found = f"returned {scores[~np.isfinite(scores)].item(0)} from finite outputs"
    elif getattr(function, "bounded", False) and not ((scores >= 0) & (scores <= 1)).all():
        outside = scores[(scores < 0) | (scores > 1)].item(0)
        found = f"returned {outside}, but promises scores in 0..1 (bounded = True)"
    else:
        return [float(s) for s in scores.reshape(-1)]
    raise InputError(
        f"{_definition(function, text)}: the metric {found}; expected one finite number per sample."
    )


def _definition(function: Callable[..., Any], text: str) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else text


def _read_only(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view


METRICS: dict[str, Metric] = {
    "top1": Metric("top1", partial(top, 1), guessing=partial(chance_of_top, 1)),
    "top5": Metric("top5", partial(top, 5), guessing=partial(chance_of_top, 5)),
    "logit": Metric("logit", partial(above, 0.0), guessing=chance_of_yes),
    "probability": Metric("probability", partial(above, 0.5), guessing=chance_of_yes),
    "mae": Metric("mae", partial(error, 1), higher_is_better=False, binary=False, bounded=False),
    "mse": Metric("mse", partial(error, 2), higher_is_better=False, binary=False, bounded=False),
    "cosine": Metric("cosine", likeness, binary=False, needs="reference"),
    "agreement": Metric("agreement", agreement, needs="reference"),
}
