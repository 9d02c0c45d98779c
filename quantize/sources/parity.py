"""Whether a converted model computes what its source computes, before anything is built on it."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.errors import InputError, UnsupportedError, UsageError
from bench.machine import available_threads
from bench.models import Array, Feeds
from bench.runtimes.onnxruntime import OnnxRuntime
from bench.runtimes.seam import Settings

logger = logging.getLogger(__name__)

# Two float32 implementations of one network differ by about 1e-4 of an output's largest value,
# since they add in another order; a wrong attribute or a lost bias differs by 1e-2 and more.
_RTOL = 1e-3
_ATOL = 1e-5
# A whole number that comes from an argmax may differ where two scores are equal but for rounding.
_MAX_TIES = 0.01


@dataclass(frozen=True, slots=True)
class Parity:
    """How well a converted model agrees with its source.

    Attributes:
        max_abs_diff: Largest absolute difference of each output over all samples; for integers and
            text, the number of elements that differ.
        samples: How many samples were compared.
    """

    max_abs_diff: dict[str, float]
    samples: int


@dataclass(slots=True)
class _Tally:
    """What was seen of one output."""

    largest: float = 0.0
    unequal: int = 0
    elements: int = 0


def check_parity(
    reference: Callable[[Feeds], Feeds], model: Path, feeds: Sequence[Feeds]
) -> Parity:
    """Run both on the same samples, and refuse a model that computes something else.

    A float output may differ by `1e-5 + 1e-3 * max|reference|`, judged by its own scale. Integers
    and text have to be equal, but for one element in a hundred (ties of an argmax).

    Args:
        reference: The source: outputs by name.
        model: The converted model; runs in ONNX Runtime.
        feeds: At least one sample.

    Raises:
        InputError: They disagree; names the first output and sample, the difference and the limit.
    """
    if not feeds:
        raise UsageError(f"{model}: no samples to compare the model with its source on.")
    session = OnnxRuntime().open(model, Settings(threads=available_threads(), packed=False))
    tallies: dict[str, _Tally] = {}
    try:
        for index, sample in enumerate(feeds):
            wanted, found = reference(sample), session.run(sample)
            _check_names(model, wanted, found)
            for name, expected in wanted.items():
                where = f"{model}: output {name!r} of sample {index}"
                tally = tallies.setdefault(name, _Tally())
                _compare(expected, found[name], where, tally)
    finally:
        session.close()
    _refuse_unequal(model, tallies, len(feeds))
    return Parity({n: t.largest or float(t.unequal) for n, t in tallies.items()}, len(feeds))


def refuse_random(run: Callable[[Feeds], Feeds], feeds: Feeds, shown: str) -> None:
    """Refuse a model that draws random numbers; looked for before it is compared with another.

    Args:
        run: From inputs to outputs by name.
        feeds: One sample.
        shown: What the user calls the model.

    Raises:
        UnsupportedError: Two runs on the sample differ.
    """
    if not repeats(run, feeds):
        raise UnsupportedError(
            f"{shown}: two runs on one sample give different outputs, so INT8 cannot be compared "
            "with FP32. Export it in evaluation mode (dropout and noise off), or with its noise "
            "as an input."
        )


def repeats(run: Callable[[Feeds], Feeds], feeds: Feeds) -> bool:
    """Whether two runs on one sample return the same, up to the last bits of a float sum."""
    first, second = run(feeds), run(feeds)
    return all(_same(first[name], second[name]) for name in first)


def _same(first: Array, second: Array) -> bool:
    a, b = np.asarray(first), np.asarray(second)
    if a.shape != b.shape or a.dtype.kind not in "fc":
        return np.array_equal(a, b)
    scale = np.abs(a[np.isfinite(a)]).max(initial=0.0)
    return bool(np.allclose(a, b, rtol=1e-3, atol=1e-4 * float(scale), equal_nan=True))


_ADVICE = (
    "The conversion changed what the model computes: use a newer exporter, or look for random or "
    "data-dependent code in the model."
)


def _check_names(model: Path, wanted: Feeds, found: Feeds) -> None:
    if list(wanted) != list(found):
        raise InputError(
            f"{model}: returns the outputs {', '.join(found)}, its source returns "
            f"{', '.join(wanted)}. {_ADVICE}"
        )


def _refuse_unequal(model: Path, tallies: dict[str, _Tally], samples: int) -> None:
    for name, tally in tallies.items():
        if tally.unequal > _MAX_TIES * tally.elements:
            raise InputError(
                f"{model}: output {name!r} differs from its source in {tally.unequal} of "
                f"{tally.elements} elements over {samples} sample(s); whole numbers must be equal. "
                f"{_ADVICE}"
            )


def _compare(wanted: Array, found: Array, where: str, tally: _Tally) -> None:
    if wanted.shape != found.shape:
        raise InputError(
            f"{where}: has the shape {list(found.shape)}, its source returns {list(wanted.shape)}. "
            "Some axis became fixed in the conversion; name the free axes with --input."
        )
    tally.elements += wanted.size
    if not (np.issubdtype(wanted.dtype, np.floating) and np.issubdtype(found.dtype, np.floating)):
        tally.unequal += int(np.count_nonzero(wanted != found))
        return
    wide, other = wanted.astype(np.float64), found.astype(np.float64)
    same = (wide == other) | (np.isnan(wide) & np.isnan(other))
    finite = np.isfinite(wide)
    odd = int(np.count_nonzero(~(same | (finite & np.isfinite(other)))))
    if odd:
        raise InputError(
            f"{where}: is not finite where its source is, or the other way round, in {odd} "
            f"element(s). {_ADVICE}"
        )
    if not wide[finite].size:
        return
    scale = float(np.abs(wide[finite]).max())
    worst = float(np.abs(wide[finite] - other[finite]).max())
    tally.largest = max(tally.largest, worst)
    limit = _ATOL + _RTOL * scale
    if worst > limit:
        raise InputError(
            f"{where}: differs from its source by up to {worst:.3g}; values reach {scale:.3g}, so "
            f"at most {limit:.3g} was expected. {_ADVICE}"
        )
    logger.debug("%s: largest difference %.3g, limit %.3g", where, worst, limit)
