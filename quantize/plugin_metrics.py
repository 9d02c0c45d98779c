"""The user's own metrics and decoders: Python functions that become a `Metric` like any other."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from bench.errors import InputError
from bench.models import Feeds
from quantize.evidence import Rows
from quantize.metric import Metric, read_only
from quantize.plugins import blame, load_function
from quantize.scores import Labels, named_output


def decoding(metric: Metric, text: str | None) -> Metric:
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
    return replace(
        metric, function=decoded_score, guessing=decoded_guess, answering=answering, whole=True
    )


def _decoded(function: Callable[..., Any], text: str, outputs: Feeds) -> Any:
    with blame(text, what="decoder"):
        found = function({n: read_only(a) for n, a in outputs.items()})
    if found is None:
        raise InputError(f"{_definition(function, text)}: the decoder returned None.")
    return {n: np.asarray(a) for n, a in found.items()} if isinstance(found, dict) else found


def plugin_metric(text: str) -> Metric:
    """The metric that `file.py:function` computes.

    Raises:
        InputError: The file cannot be loaded, or what is attached to the function does not fit.
    """
    function = load_function(text, what="metric")
    higher = bool(getattr(function, "higher_is_better", True))
    # An error is no share of anything, even where it happens to stay below 1.
    unsaid = None if higher else False
    corpus, finish = (_attached(function, text, name) for name in ("corpus", "finish"))
    if corpus is not None and finish is not None:
        raise InputError(
            f"{_definition(function, text)}: has both `corpus` and `finish`; keep one."
        )
    spoil = _attached(function, text, "spoil")
    if spoil is not None and corpus is None:
        raise InputError(f"{_definition(function, text)}: `spoil` goes with `corpus`; add it.")
    score = _plugin_scores if corpus is None and finish is None else _plugin_rows
    return Metric(
        name=text,
        function=partial(score, function, text),
        higher_is_better=higher,
        binary=False if corpus is not None else getattr(function, "binary", unsaid),
        bounded=getattr(function, "bounded", False if corpus is not None else unsaid),
        needs="nothing",
        whole=True,
        guessing=_plugin_chance(function, text),
        corpus=partial(_plugin_corpus, corpus, text) if corpus is not None else None,
        spoil=partial(_plugin_spoil, spoil, text) if spoil is not None else None,
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
    return function({n: read_only(a) for n, a in outputs.items()}, labels)


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


def _plugin_spoil(spoil: Callable[..., Any], text: str, rows: Rows) -> Rows:
    with blame(text, what="metric"):
        return list(spoil(rows))


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
