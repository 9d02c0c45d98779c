"""Options of `vnnify bench` that are lists or carry a unit."""

import math
import re

from bench.errors import UsageError

_DURATION = re.compile(r"(?P<number>\d+(\.\d+)?)(?P<unit>us|ms|s)")
_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def parse_names(text: str) -> tuple[str, ...]:
    """Comma-separated names, each once."""
    return tuple(dict.fromkeys(n.strip() for n in text.split(",") if n.strip()))


def parse_counts(option: str, text: str, *, least: int = 1) -> tuple[int, ...]:
    """Comma-separated whole numbers, each once.

    Raises:
        UsageError: One is no whole number of at least `least`, or there is none.
    """
    names = parse_names(text)
    if not names or not all(n.isascii() and n.isdigit() and int(n) >= least for n in names):
        raise UsageError(
            f"{option} takes whole numbers of at least {least}, as in 1,2,4; found {text!r}."
        )
    return tuple(dict.fromkeys(int(n) for n in names))


def parse_streams(text: str) -> tuple[int, ...]:
    """Numbers of streams; (0,) for "auto", none for an empty text.

    Raises:
        UsageError: It is neither numbers nor "auto".
    """
    if text == "auto":
        return (0,)
    return parse_counts("--streams", text) if text else ()


def parse_rates(text: str) -> tuple[float, ...]:
    """Comma-separated requests per second.

    Raises:
        UsageError: One is no number above 0.
    """
    try:
        rates = tuple(float(n) for n in parse_names(text))
    except ValueError:
        rates = (0.0,)
    if not all(0 < r < math.inf for r in rates):
        raise UsageError(f"--rate takes requests per second, as in 50,100.5; found {text!r}.")
    return rates


def parse_p99(text: str) -> float | None:
    """A latency with its unit, in ms; None for an empty text.

    Raises:
        UsageError: It has another form.
    """
    if not text:
        return None
    found = _DURATION.fullmatch(text)
    if found is None or float(found["number"]) == 0:
        raise UsageError(f"--p99 takes a time with its unit, as in 20ms or 0.5s; found {text!r}.")
    return float(found["number"]) * _MS[found["unit"]]
