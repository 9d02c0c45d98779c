"""How scores and drops are written, the same in every sentence, table and figure.

A score in 0..1 is shown in per cent and its drop in points (pt); a ratio in decibels as such; any
other score as a plain number in its own unit.
"""

from typing import Literal, TypeAlias

Scale: TypeAlias = Literal["points", "plain", "decibels"]

UNITS: dict[Scale, str] = {"points": "pt", "plain": "", "decibels": "dB"}


def score_text(value: float, scale: Scale) -> str:
    """`92.56 %`, `31.4 dB` or `0.01234`."""
    if scale == "points":
        return f"{value * 100:.2f} %"
    return f"{value:.1f} dB" if scale == "decibels" else f"{value:.4g}"


def drop_text(drop: float, scale: Scale) -> str:
    """`0.12 pt`, `3.1 dB` or `0.01234`."""
    if scale == "plain":
        return f"{drop:.4g}"
    amount = scaled(drop, scale)
    # Two decimals, but no drop is rounded to none.
    text = f"{round(amount, 2):g}" if abs(amount) >= 0.005 or drop == 0 else f"{amount:.1g}"
    return f"{text} {UNITS[scale]}"


def scaled(drop: float, scale: Scale) -> float:
    """A drop as figures draw it, in `UNITS[scale]`."""
    return drop * 100 if scale == "points" else drop


def size_text(size_bytes: int) -> str:
    """`782 kB`, in powers of 1000."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def size_change(before_bytes: int, after_bytes: int) -> tuple[float, str]:
    """How many times, and whether "smaller" or "larger"."""
    shrink = before_bytes / max(after_bytes, 1)
    return (shrink, "smaller") if shrink >= 1 else (1 / shrink, "larger")
