"""Metrics: how good a model's outputs are, and which way is up.

Most give one score per sample, and their value is the mean. Others keep a row of evidence per
sample and are computed when all have run: as one number of the whole data set (`corpus`: F1, mAP)
or as one score per sample that depends on all others (`finish`: recall of neighbours).

A metric sees one run of the model at a time: its outputs exactly as the model returned them and the
labels that belong to it. Built-in ones stand in `METRICS`; any other is a Python function of the
user's (`file.py:function`), called as `function(outputs, labels)`:

- `outputs`: output name -> array, whose first axis is the samples of this run. Read-only.
- `labels`: as many labels as samples: an array, or a list where they are not numbers; a list of
  None where the data has none.
- returns one number per sample: a list, a 1-D array, or, for one sample, a plain number.

`function.higher_is_better = False` turns the direction, `function.bounded = True` promises scores
in 0..1, `function.binary = False` says that 0 and 1 do not mean "wrong" and "right", and
`function.chance = 0.1` is the score of guessing, at which a baseline is refused.
With `function.corpus = g` it returns one row of any kind per sample instead, and `g(rows)` is the
metric of any selection of samples, repeated ones included; `function.spoil = h` then turns rows
into those of samples that went wrong altogether. With `function.finish = g` it does too,
and `g(rows)` returns one score per sample, once.
"""

import logging
from dataclasses import replace
from functools import partial

import numpy as np

from bench.errors import UsageError
from quantize.metric import Metric, read_only
from quantize.plugin_metrics import decoding, plugin_metric
from quantize.plugins import is_function_text, nearest
from quantize.scores import (
    Labels,
    above,
    agreement,
    chance_of_top,
    chance_of_yes,
    error,
    is_one_hot,
    likeness,
    named_class,
    named_value,
    top,
)
from quantize.tasks.classes import count_classes, macro_f1, mean_iou, nothing_right
from quantize.tasks.detection import average_precision, match, nothing_found
from quantize.tasks.features import gain, keep_features, keep_pairs, probe, rank_correlation, recall
from quantize.tasks.fidelity import keep_both, neighbours, psnr, ranking, sqnr, ssim
from quantize.tasks.transcripts import all_wrong, count_errors, error_rate

logger = logging.getLogger(__name__)


def resolve_metric(
    text: str | None,
    *,
    labelled: bool,
    first_label: object = None,
    output: str | None = None,
    decode: str | None = None,
) -> Metric:
    """The metric that `--metric` names, or the one that fits the labels.

    Args:
        text: A name in `METRICS`, `file.py:function`, or None: top1 for integer labels and one-hot
            ones, mse for float labels, cosine against the FP32 outputs for other labels or none.
        labelled: Whether the data has labels.
        first_label: The label of the first sample.
        output: Score this model output; None: the first that fits the metric.
        decode: `file.py:function` that turns the outputs of one run into what the metric takes.

    Raises:
        UsageError: There is no such metric, or it needs labels and there are none.
        InputError: The user's file cannot be loaded.
    """
    if text is None:
        text = _fitting(first_label) if labelled else "cosine"
        if labelled and text == "cosine":
            logger.warning(
                "labels like %.40s have no metric of their own: outputs are compared with FP32's "
                "(cosine), and labels do not count. Name a metric with --metric%s.",
                _shown(first_label),
                _hint(first_label),
            )
    if text not in METRICS:
        if is_function_text(text):
            return decoding(replace(plugin_metric(text), output=output), decode)
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
    return decoding(replace(metric, output=output), decode)


def compares_texts(text: str | None) -> bool:
    """Whether labels are text to the metric that `--metric` names; not known of the user's own."""
    return text in METRICS and METRICS[text].texts


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
            return read_only(label)
        return np.stack([label])
    if batch > 1 and isinstance(label, (list, tuple)) and len(label) == batch:
        return list(label)
    return [None] * batch if label is None else [label]


def _fitting(label: object) -> str:
    if isinstance(label, (bool, int, float, np.number, np.bool_, np.ndarray)):
        values = np.asarray(label)
        if values.dtype.kind in "biu" and values.ndim == 0:
            return "top1"
        if values.ndim == 1 and is_one_hot(values):
            return "top1"
        if values.dtype.kind == "f":
            return "mse"
    return "cosine"


def _hint(label: object) -> str:
    if isinstance(label, np.ndarray) and label.dtype.kind in "biu":
        return ": top1, f1 or miou where each number is the class of its place (token, pixel)"
    return ""


def _shown(label: object) -> str:
    if isinstance(label, np.ndarray):
        return f"{label.dtype}{list(label.shape)}"
    return repr(label)


_MAP50 = partial(average_precision, thresholds=slice(0, 1))
_RATE = Metric(
    "rate",
    partial(count_errors, "words"),
    higher_is_better=False,
    binary=False,
    bounded=False,
    corpus=error_rate,
    spoil=all_wrong,
    additive=True,
    texts=True,
)
_CLASSES = Metric(
    "classes", count_classes, binary=False, corpus=macro_f1, spoil=nothing_right, additive=True
)
_BOXES = Metric(
    "boxes", match, binary=False, whole=True, corpus=average_precision, spoil=nothing_found
)
_CHARACTERS, _WORDS = (partial(count_errors, unit) for unit in ("characters", "words"))

_FIDELITY = Metric("fidelity", keep_both, binary=False, needs="reference")
_RATIO = Metric(
    "ratio", sqnr, binary=False, bounded=False, needs="reference", whole=True, decibels=True
)

METRICS: dict[str, Metric] = {
    "top1": Metric(
        "top1", partial(top, 1), guessing=partial(chance_of_top, 1), answering=named_class
    ),
    "top5": Metric(
        "top5", partial(top, 5), guessing=partial(chance_of_top, 5), answering=named_class
    ),
    "logit": Metric("logit", partial(above, 0.0), guessing=chance_of_yes, answering=named_value),
    "probability": Metric(
        "probability", partial(above, 0.5), guessing=chance_of_yes, answering=named_value
    ),
    "mae": Metric("mae", partial(error, 1), higher_is_better=False, binary=False, bounded=False),
    "mse": Metric("mse", partial(error, 2), higher_is_better=False, binary=False, bounded=False),
    "cosine": Metric("cosine", likeness, binary=False, needs="reference", whole=True),
    "agreement": Metric("agreement", agreement, needs="reference", answering=named_class),
    "ranking": replace(_FIDELITY, name="ranking", finish=ranking),
    "neighbours@10": replace(_FIDELITY, name="neighbours@10", finish=partial(neighbours, k=10)),
    "sqnr": replace(_RATIO, name="sqnr"),
    "psnr": replace(_RATIO, name="psnr", function=psnr),
    "ssim": replace(_FIDELITY, name="ssim", function=ssim),
    "f1": replace(_CLASSES, name="f1", corpus=macro_f1),
    "miou": replace(_CLASSES, name="miou", corpus=mean_iou),
    "map": replace(_BOXES, name="map", corpus=average_precision),
    "map50": replace(_BOXES, name="map50", corpus=_MAP50),
    "cer": replace(_RATE, name="cer", function=_CHARACTERS),
    "wer": replace(_RATE, name="wer", function=_WORDS),
    "sts": Metric("sts", keep_pairs, binary=False, bounded=False, corpus=rank_correlation),
    "recall@1": Metric("recall@1", keep_features, finish=partial(recall, k=1)),
    "recall@10": Metric("recall@10", keep_features, finish=partial(recall, k=10)),
    "ndcg@10": Metric("ndcg@10", keep_features, binary=False, finish=partial(gain, k=10)),
    "probe": Metric("probe", keep_features, finish=probe),
}
