"""How much worse INT8 may be: a number with its unit."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from bench.errors import UsageError
from quantize.evaluate import Evaluation


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How much worse INT8 may be.

    Attributes:
        value: The number before the unit.
        unit: "pt": hundredths of a metric in 0..1; "%": hundredths of FP32's value; "abs": none;
            "dB": not a drop, but the least ratio of signal to noise.
    """

    value: float
    unit: Literal["pt", "%", "abs", "dB"]

    def absolute(self, baseline_value: float, *, bounded: bool, decibels: bool = False) -> float:
        """The tolerated drop in the metric's own unit.

        Args:
            baseline_value: FP32's mean score.
            bounded: Whether the metric lies in 0..1.
            decibels: Whether it is a ratio of signal to noise.

        Raises:
            UsageError: Points of a metric that is not in 0..1, decibels of one that has none, a
                share of zero, or a tolerance that any model would meet.
        """
        if (self.unit == "dB") != decibels:
            raise UsageError(
                f"tolerance {self}: sqnr and psnr compare with FP32's own outputs, so their limit "
                "is the least ratio in decibels, as in 40dB, and only theirs."
            )
        if decibels:
            return baseline_value - self.value
        if self.unit == "pt" and not bounded:
            raise UsageError(
                f"tolerance {self}: points are hundredths of a metric in 0..1, and this is none. "
                f"Write a share of FP32's value ({self.value:g}%) or a number in the metric's own "
                "unit (as in 0.1abs)."
            )
        if self.unit == "%" and baseline_value == 0:
            raise UsageError(
                f"tolerance {self} is a share of FP32's value, which is 0. Write a number in the "
                "metric's own unit, as in 0.1abs."
            )
        limit = self.value if self.unit == "abs" else self.value / 100
        if self.unit == "%":
            limit *= abs(baseline_value)
        if bounded and limit >= 1:
            raise UsageError(
                f"tolerance {self} allows a drop of {limit:g} in a metric that lies in 0..1, so it "
                "would pass any model. Did you mean hundredths, as in 1pt?"
            )
        return limit

    def __str__(self) -> str:
        """As `parse_tolerance` takes it."""
        return f"{self.value:g}{self.unit}"


def parse_tolerance(text: str) -> Tolerance:
    """Read `1pt`, `1%`, `0.1abs` or `40dB`.

    Raises:
        UsageError: The number or its unit is missing, or it is negative.
    """
    found = re.fullmatch(
        r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(pt|%|abs|dB)?\s*", text, re.I
    )
    spellings = (
        "Write 1pt (a hundredth of a metric in 0..1), 1% (a hundredth of FP32's value), 0.1abs "
        "(in the metric's own unit) or, for sqnr and psnr, 40dB (the least ratio)."
    )
    if found is None:
        raise UsageError(f"tolerance {text!r} is not a number with a unit. {spellings}")
    number, unit = found.groups()
    if unit is None:
        raise UsageError(f"tolerance {text!r} has no unit. {spellings}")
    value = float(number)
    if value < 0 or not math.isfinite(value):
        raise UsageError(
            f"tolerance {text!r} is out of range: it says how much worse INT8 may be, so it is 0 "
            f"or more, also for metrics where lower is better. {spellings}"
        )
    units: dict[str, Literal["pt", "%", "abs", "dB"]] = {
        "pt": "pt",
        "%": "%",
        "abs": "abs",
        "db": "dB",
    }
    return Tolerance(value, units[unit.lower()])


def exactly(limit: float, baseline: Evaluation) -> Tolerance:
    """The tolerance of a drop that is known in the metric's own unit.

    Args:
        limit: As `Tolerance.absolute` gave it.
        baseline: FP32's, or a part of it.
    """
    if baseline.decibels:
        return Tolerance(baseline.value - limit, "dB")
    return Tolerance(limit, "abs")


def default_tolerance(baseline: Evaluation) -> Tolerance:
    """1pt of what lies in 0..1, a noise floor of 30dB, 1% of anything else."""
    if baseline.decibels:
        return Tolerance(30.0, "dB")
    return Tolerance(1.0, "pt" if baseline.bounded or baseline.binary else "%")
