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
metric of any selection of samples, repeated ones included. With `function.finish = g` it does too,
and `g(rows)` returns one score per sample, once.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np

from bench.errors import InputError, UsageError
from bench.models import Array, Feeds
from quantize.evidence import Rows
from quantize.plugins import blame, is_function_text, load_function, nearest
from quantize.scores import (
    Labels,
    above,
    agreement,
    chance_of_top,
    chance_of_yes,
    error,
    likeness,
    named_class,
    named_output,
    named_value,
    top,
)
from quantize.tasks.classes import count_classes, macro_f1, mean_iou
from quantize.tasks.detection import average_precision, match
from quantize.tasks.features import gain, keep_features, keep_pairs, probe, rank_correlation, recall
from quantize.tasks.fidelity import keep_both, neighbours, psnr, ranking, sqnr, ssim
from quantize.tasks.transcripts import count_errors, error_rate

# (outputs, labels, reference outputs, name of the output to score or None) -> one score per sample,
# or one row of evidence per sample.
Score: TypeAlias = Callable[[Feeds, Labels, Feeds | None, str | None], list[Any]]


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
        corpus: `function` gives rows, and this is the metric of any selection of them.
        finish: `function` gives rows, and this one score per sample, of all of them.
        decibels: Whether scores are ratios of signal to noise, whose limit is a floor.
        answering: (outputs, output, samples) -> what the model says of each sample, in short; call
            `answer`.
    """

    name: str
    function: Score
    higher_is_better: bool = True
    binary: bool | None = None
    bounded: bool | None = True
    needs: Literal["labels", "reference", "nothing"] = "labels"
    guessing: Callable[[Feeds, str | None], float | None] | None = None
    output: str | None = None
    corpus: Callable[[Rows], float] | None = None
    finish: Callable[[Rows], Sequence[float]] | None = None
    decibels: bool = False
    answering: Callable[[Feeds, str | None, int], list[str]] | None = None

    @property
    def gathers(self) -> bool:
        """Whether scores are known only when all samples have run."""
        return self.corpus is not None or self.finish is not None

    def score(self, outputs: Feeds, labels: Labels, reference: Feeds | None = None) -> list[Any]:
        """One score per sample of one model run, or one row if the metric `gathers`.

        Args:
            outputs: What the model returned.
            labels: Of the same samples; see `run_labels`.
            reference: What the FP32 model returned for them.

        Raises:
            InputError: Outputs, labels or the user's function do not fit.
            UsageError: There is no such output, or no reference where one is needed.
        """
        return self.function(outputs, labels, reference, self.output)

    def answer(self, outputs: Feeds, count: int) -> list[str]:
        """What the model says of each of `count` samples of one run; empty where that is unknown.

        Args:
            outputs: Of a run that `score` has accepted.
            count: How many scores it had.
        """
        return self.answering(outputs, self.output, count) if self.answering is not None else []

    def chance(self, outputs: Feeds) -> float | None:
        """The score that guessing would get; None where guessing has no meaning.

        Args:
            outputs: Of any run that `score` has accepted.
        """
        return self.guessing(outputs, self.output) if self.guessing is not None else None


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
        text: A name in `METRICS`, `file.py:function`, or None: top1 for integer labels, mse for
            float labels, cosine against the FP32 outputs for other labels or none.
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
    if text not in METRICS:
        if is_function_text(text):
            return _decoding(replace(_plugin(text), output=output), decode)
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
    return _decoding(replace(metric, output=output), decode)


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


def _decoding(metric: Metric, text: str | None) -> Metric:
    """The metric on what the user's decoder makes of the outputs."""
    if text is None:
        return metric
    decode = partial(_decoded, load_function(text, what="decoder"), text)
    score, guess, say = metric.function, metric.guessing, metric.answering

    def decoded_score(
        outputs: Feeds, labels: Labels, reference: Feeds | None, output: str | None
    ) -> list[Any]:
        theirs = decode(reference) if reference is not None else None
        return score(decode(outputs), labels, theirs, output)

    def decoded_guess(outputs: Feeds, output: str | None) -> float | None:
        return guess(decode(outputs), output) if guess is not None else None

    def decoded_answer(outputs: Feeds, output: str | None, count: int) -> list[str]:
        return say(decode(outputs), output, count) if say is not None else []

    answering = decoded_answer if say is not None else None
    return replace(metric, function=decoded_score, guessing=decoded_guess, answering=answering)


def _decoded(function: Callable[..., Any], text: str, outputs: Feeds) -> Any:
    with blame(text, what="decoder"):
        found = function({n: _read_only(a) for n, a in outputs.items()})
    if found is None:
        raise InputError(f"{_definition(function, text)}: the decoder returned None.")
    return {n: np.asarray(a) for n, a in found.items()} if isinstance(found, dict) else found


def _plugin(text: str) -> Metric:
    function = load_function(text, what="metric")
    higher = bool(getattr(function, "higher_is_better", True))
    # An error is no share of anything, even where it happens to stay below 1.
    unsaid = None if higher else False
    corpus, finish = (_attached(function, text, name) for name in ("corpus", "finish"))
    if corpus is not None and finish is not None:
        raise InputError(
            f"{_definition(function, text)}: has both `corpus` and `finish`; keep one."
        )
    score = _plugin_scores if corpus is None and finish is None else _plugin_rows
    return Metric(
        name=text,
        function=partial(score, function, text),
        higher_is_better=higher,
        binary=False if corpus is not None else getattr(function, "binary", unsaid),
        bounded=getattr(function, "bounded", False if corpus is not None else unsaid),
        needs="nothing",
        guessing=_plugin_chance(function, text),
        corpus=partial(_plugin_corpus, corpus, text) if corpus is not None else None,
        finish=partial(_plugin_finish, finish, text) if finish is not None else None,
    )


def _plugin_chance(
    function: Callable[..., Any], text: str
) -> Callable[[Feeds, str | None], float | None] | None:
    """The score of guessing, where the user's function has one in `chance`."""
    found = getattr(function, "chance", None)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise InputError(f"{_definition(function, text)}: `chance` is {found!r:.80}, not a number.")
    chance = float(found)
    return lambda _outputs, _output: chance


def _attached(function: Callable[..., Any], text: str, name: str) -> Callable[..., Any] | None:
    found = getattr(function, name, None)
    if found is not None and not callable(found):
        raise InputError(
            f"{_definition(function, text)}: `{name}` is {found!r:.80}, not a function of rows."
        )
    return found


def _call(function: Callable[..., Any], outputs: Feeds, labels: Labels, output: str | None) -> Any:
    """What the user's function returns for every output, or for the one that `--output` names."""
    if output is not None:
        outputs = {output: named_output(outputs, output)}
    return function({n: _read_only(a) for n, a in outputs.items()}, labels)


def _plugin_rows(
    function: Callable[..., Any],
    text: str,
    outputs: Feeds,
    labels: Labels,
    _: Feeds | None,
    output: str | None,
) -> list[Any]:
    with blame(text, what="metric"):
        returned = _call(function, outputs, labels, output)
    if not isinstance(returned, (list, tuple, np.ndarray)) or len(returned) != len(labels):
        raise InputError(
            f"{_definition(function, text)}: the metric returned {type(returned).__name__} "
            f"{returned!r:.80}; expected a list of one row per sample, here {len(labels)}."
        )
    return list(returned)


def _plugin_corpus(corpus: Callable[..., Any], text: str, rows: Rows) -> float:
    with blame(text, what="metric"):
        found = corpus(rows)
    if isinstance(found, (bool, int, float, np.number)) or np.shape(found) == ():
        try:
            return float(found)
        except (TypeError, ValueError):
            pass
    raise InputError(
        f"{_definition(corpus, text)}: `corpus` returned {type(found).__name__} {found!r:.80}; "
        "expected one number for all rows."
    )


def _plugin_finish(finish: Callable[..., Any], text: str, rows: Rows) -> list[float]:
    with blame(text, what="metric"):
        scores = np.asarray(finish(rows), dtype=np.float64)
    if scores.shape != (len(rows),) or not np.isfinite(scores).all():
        raise InputError(
            f"{_definition(finish, text)}: `finish` returned an array of shape "
            f"{list(scores.shape)}; expected one finite number for each of {len(rows)} rows."
        )
    return [float(s) for s in scores]


def _plugin_scores(
    function: Callable[..., Any],
    text: str,
    outputs: Feeds,
    labels: Labels,
    _: Feeds | None,
    output: str | None,
) -> list[float]:
    with blame(text, what="metric"):
        returned = _call(function, outputs, labels, output)
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


_MAP50 = partial(average_precision, thresholds=slice(0, 1))
_RATE = Metric(
    "rate",
    partial(count_errors, "words"),
    higher_is_better=False,
    binary=False,
    bounded=False,
    corpus=error_rate,
)
_CHARACTERS, _WORDS = (partial(count_errors, unit) for unit in ("characters", "words"))

_FIDELITY = Metric("fidelity", keep_both, binary=False, needs="reference")
_RATIO = Metric("ratio", sqnr, binary=False, bounded=False, needs="reference", decibels=True)

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
    "cosine": Metric("cosine", likeness, binary=False, needs="reference"),
    "agreement": Metric("agreement", agreement, needs="reference", answering=named_class),
    "ranking": replace(_FIDELITY, name="ranking", finish=ranking),
    "neighbours@10": replace(_FIDELITY, name="neighbours@10", finish=partial(neighbours, k=10)),
    "sqnr": replace(_RATIO, name="sqnr"),
    "psnr": replace(_RATIO, name="psnr", function=psnr),
    "ssim": replace(_FIDELITY, name="ssim", function=ssim),
    "f1": Metric("f1", count_classes, binary=False, corpus=macro_f1),
    "miou": Metric("miou", count_classes, binary=False, corpus=mean_iou),
    "map": Metric("map", match, binary=False, corpus=average_precision),
    "map50": Metric("map50", match, binary=False, corpus=_MAP50),
    "cer": replace(_RATE, name="cer", function=_CHARACTERS),
    "wer": replace(_RATE, name="wer", function=_WORDS),
    "sts": Metric("sts", keep_pairs, binary=False, bounded=False, corpus=rank_correlation),
    "recall@1": Metric("recall@1", keep_features, finish=partial(recall, k=1)),
    "recall@10": Metric("recall@10", keep_features, finish=partial(recall, k=10)),
    "ndcg@10": Metric("ndcg@10", keep_features, binary=False, finish=partial(gain, k=10)),
    "probe": Metric("probe", keep_features, finish=probe),
}
