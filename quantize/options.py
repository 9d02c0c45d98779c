"""Texts of options, read and refused before any work begins."""

import math
from typing import Any

from bench.errors import UsageError
from quantize.plugins import nearest
from quantize.tolerance import parse_tolerance

ROUNDINGS = ("auto", "nearest", "learned")


def names(text: str) -> tuple[str, ...]:
    """Comma-separated names."""
    return tuple(n.strip() for n in text.split(",") if n.strip())


def one_of(option: str, value: str, known: tuple[str, ...]) -> Any:
    """The value itself.

    Raises:
        UsageError: It is none of the known ones.
    """
    if value not in known:
        raise UsageError(
            f"{option} {value!r}: expected one of {', '.join(known)}.{nearest(value, list(known))}"
        )
    return value


def between(option: str, value: float, low: float, high: float) -> float:
    """The value itself.

    Raises:
        UsageError: It is not above `low` and below `high`; nothing is, for NaN.
    """
    if not low < value < high:
        raise UsageError(f"{option} {value:g}: expected a number above {low:g} and below {high:g}.")
    return value


def parse_states(pairs: list[str]) -> dict[str, str]:
    """Input names by the output that feeds them, of texts `OUTPUT:INPUT`.

    Raises:
        UsageError: A text has another form, or names an output or input twice.
    """
    states: dict[str, str] = {}
    for pair in pairs:
        output, colon, target = pair.rpartition(":")
        if not colon or not output or not target:
            raise UsageError(
                f"--state {pair!r}: expected OUTPUT:INPUT, as in --state hidden_out:hidden_in."
            )
        if output in states or target in states.values():
            raise UsageError(f"--state {pair!r}: one of the two was named before.")
        states[output] = target
    return states


def checked_tolerance(text: str | None) -> str | None:
    """The same text, if `parse_tolerance` reads it.

    Raises:
        UsageError: It is no number with a unit.
    """
    if text is not None:
        parse_tolerance(text)
    return text


_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_budget(text: str) -> float:
    """Read `90s`, `10m` or `2h`, in seconds.

    Raises:
        UsageError: The number or its unit is missing, or it is not above 0.
    """
    unit = _UNITS_S.get(text[-1:])
    try:
        value = float(text[:-1])
    except ValueError:
        value = 0.0
    if unit is None or not 0 < value < math.inf:
        raise UsageError(f"--budget {text!r}: expected a time with its unit, as in 90s, 10m or 2h.")
    return value * unit


def parse_factor(option: str, text: str | None) -> float | None:
    """Read `1.2x`.

    Raises:
        UsageError: The number or its unit is missing, or it is not above 0.
    """
    if text is None:
        return None
    try:
        value = float(text.removesuffix("x"))
    except ValueError:
        value = 0.0
    if not text.endswith("x") or value <= 0 or not math.isfinite(value):
        raise UsageError(f"{option} {text!r}: expected a factor with its unit, as in 1.2x.")
    return value


_SIZES = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_size(option: str, text: str | None) -> int | None:
    """Read `10MB` or `9.5MiB`, in bytes.

    Raises:
        UsageError: The number or its unit is missing, or it is not above 0.
    """
    if text is None:
        return None
    unit = next((u for u in _SIZES if text.endswith(u)), None)
    try:
        value = float(text.removesuffix(unit or ""))
    except ValueError:
        value = 0.0
    if unit is None or not 0 < value < math.inf:
        raise UsageError(
            f"{option} {text!r}: expected a size with its unit ({', '.join(_SIZES)}), as in 10MB."
        )
    return int(value * _SIZES[unit])


def checked_metric(text: str | None) -> str | None:
    """The same text, if it names a metric or has the form of a function.

    Raises:
        UsageError: There is no such metric.
    """
    from quantize.metrics import METRICS
    from quantize.plugins import is_function_text

    if text is not None and text not in METRICS and not is_function_text(text):
        raise UsageError(
            f"unknown metric {text!r}.{nearest(text, list(METRICS))} Known: {', '.join(METRICS)}, "
            "or file.py:function of your own."
        )
    return text


def checked_runtimes(text: str) -> tuple[str, ...]:
    """Comma-separated runtimes, each once.

    Raises:
        UsageError: There is no such runtime.
    """
    from bench.runtimes import RUNTIMES

    found = tuple(dict.fromkeys(names(text)))
    for name in found:
        if name not in RUNTIMES:
            raise UsageError(
                f"unknown runtime {name!r}.{nearest(name, list(RUNTIMES))} Known: "
                f"{', '.join(RUNTIMES)}."
            )
    return found


def checked_rounding(text: str) -> str:
    """The same text, if it names a way to round weights.

    Raises:
        UsageError: There is no such way.
    """
    return str(one_of("--rounding", text, ROUNDINGS))


def checked_target(text: str) -> str:
    """The same text, if it names a target.

    Raises:
        UsageError: There is no such target.
    """
    from quantize.targets import TARGETS

    return str(one_of("--target", text, ("auto", *TARGETS)))
