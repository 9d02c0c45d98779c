"""Named checks: everything that one run judged, as one list that every format shows.

Each has a name, an outcome, what was found, the limit that it was held against, and a sentence.
JUnit makes a test case of each, GitHub an annotation of each that failed.
"""

from collections.abc import Sequence

from bench.compare import Comparison, ratio_text, speed_text, too_busy
from bench.render import Check, CheckOutcome
from quantize.amounts import drop_text, size_change, size_text
from quantize.evaluate import Evaluation
from quantize.gate import Verdict, scale_of
from quantize.job import GateBounds
from quantize.slices import SliceVerdict

_OUTCOMES: dict[str, CheckOutcome] = {
    "pass": "pass",
    "refuse": "fail",
    "inconclusive": "inconclusive",
}


def accuracy_check(verdict: Verdict, where: str = "") -> Check:
    """The verdict on the mean.

    Args:
        verdict: Of one pair of evaluations.
        where: The runtime, if there are several.
    """
    name = f"accuracy in {where}" if where else "accuracy"
    found = drop_text(verdict.drop, verdict.scale)
    if verdict.scale == "decibels":
        found = drop_text(verdict.candidate_value, verdict.scale)
    limit = verdict.limit
    if verdict.scale == "decibels":
        limit = verdict.baseline_value - limit
    return Check(
        name,
        _OUTCOMES[verdict.outcome],
        verdict.reason,
        "\n".join(verdict.suspicious),
        found,
        drop_text(limit, verdict.scale),
    )


def slices_check(
    slices: Sequence[SliceVerdict],
    small: int,
    limit: float,
    evaluation: Evaluation,
    where: str = "",
    *,
    alone: bool = False,
) -> Check:
    """Whether every slice is within the limit of slices.

    Args:
        slices: The worst first.
        small: How many more are too small to be judged.
        limit: That they are held against.
        evaluation: Of FP32.
        where: The runtime, if there are several.
        alone: Whether what is open has to be settled on new samples, by judging this model alone.
    """
    name = f"slices in {where}" if where else "slices"
    scale = scale_of(evaluation)
    allowed = drop_text(limit, scale)
    if not slices:
        text = "There is no slice of at least five samples to judge. Give more, or larger slices."
        return Check(name, "inconclusive", text, limit=allowed)
    left_out = ""
    if small:
        left_out = f" Slices of fewer than five samples are not judged: {small:,}."
    worst = slices[0]
    found = f"{worst.name}: {drop_text(worst.drop, scale)}"
    lost = [s for s in slices if s.outcome == "refuse"]
    open_ = [s for s in slices if s.outcome == "inconclusive"]
    about = f"{len(slices)} slices, the worst is {worst.name}"
    if lost:
        text = (
            f"{len(lost)} of {about}: it lost {drop_text(worst.drop, scale)} on {worst.n:,} "
            f"samples, surely more than {drop_text(worst.low, scale)}; the limit is {allowed}."
        )
        return Check(name, "fail", text + left_out, _listed(lost), found, allowed)
    if open_:
        text = (
            f"{len(open_)} of {len(slices)} slices have too few samples to be sure that they lost "
            f"no more than {allowed}; the first is {open_[0].name} with {open_[0].n:,}. "
            f"{_settled(open_, alone=alone)}"
        )
        return Check(name, "inconclusive", text + left_out, _listed(open_), found, allowed)
    text = (
        f"None of {len(slices)} slices lost too much; of the worst, {worst.name}, the drop is "
        f"{drop_text(worst.drop, scale)}, and the limit is {allowed}."
    )
    return Check(name, "pass", text + left_out, "", found, allowed)


def _settled(open_: Sequence[SliceVerdict], *, alone: bool) -> str:
    """How many samples would do; new ones where this model has to be judged `alone`."""
    most = max(s.samples_needed or 0 for s in open_)
    if not most:
        return "They lost so much that more are unlikely to settle it; a larger limit may."
    if not alone:
        return f"About {most:,} samples of each would settle it."
    return (
        f"About {most:,} new samples of each would settle it: vnnify gate judges this model alone "
        "by them."
    )


def _listed(slices: Sequence[SliceVerdict]) -> str:
    names = [s.name for s in slices[:20]]
    more = len(slices) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def finite_check(evaluations: Sequence[Evaluation]) -> Check:
    """Whether all outputs are finite."""
    broken = next((e for e in evaluations if e.nonfinite), None)
    if broken is None:
        return Check("finite", "pass", "All outputs are finite.", found="0", limit="0")
    text = (
        f"{broken.nonfinite} of {broken.count} runs in {broken.runtime} returned NaN or infinity, "
        f"first in {broken.first_nonfinite}."
    )
    return Check("finite", "fail", text, "", str(broken.nonfinite), "0")


def speed_check(speed: Comparison, least: float, where: str = "") -> Check:
    """Whether INT8 is surely so much faster: the lower end of the interval decides.

    Where others ran meanwhile, and the interval that allows for it holds the limit, nothing does.
    """
    name = f"speed in {where}" if where else "speed"
    text = f"INT8 is {speed_text(speed, least)}, at least {least:g} asked"
    outcome: CheckOutcome = "pass" if (speed.low or 0.0) >= least else "fail"
    if outcome == "fail" and speed.is_disturbed and (speed.high or 0.0) >= least:
        outcome, text = "inconclusive", f"{text}, but {too_busy(speed)}"
    return Check(
        name,
        outcome,
        f"{text}.",
        "\n".join(speed.doubts),
        f"{ratio_text(speed.ratio, least)}x",
        f"{least:g}x",
    )


def size_checks(bounds: GateBounds, fp32_bytes: int, int8_bytes: int) -> tuple[Check, ...]:
    """Bounds on the size that were asked for, external data included."""
    checks = []
    if bounds.max_bytes is not None:
        checks.append(size_check(int8_bytes, bounds.max_bytes))
    if bounds.min_compression is not None:
        checks.append(compression_check(fp32_bytes, int8_bytes, bounds.min_compression))
    return tuple(checks)


def size_check(size_bytes: int, most_bytes: int) -> Check:
    """Whether INT8 is small enough, external data included."""
    fits = size_bytes <= most_bytes
    text = f"INT8 takes {size_text(size_bytes)}, at most {size_text(most_bytes)} allowed."
    found, limit = size_text(size_bytes), size_text(most_bytes)
    return Check("size", "pass" if fits else "fail", text, "", found, limit)


def compression_check(fp32_bytes: int, int8_bytes: int, least: float) -> Check:
    """Whether INT8 is so many times smaller."""
    ratio = fp32_bytes / max(int8_bytes, 1)
    times, way = size_change(fp32_bytes, int8_bytes)
    told = ratio_text(times, least)
    text = (
        f"INT8 is {told} times {way} ({size_text(fp32_bytes)} to {size_text(int8_bytes)}), "
        f"at least {least:g} asked."
    )
    outcome: CheckOutcome = "pass" if ratio >= least else "fail"
    return Check("compression", outcome, text, "", f"{ratio_text(ratio, least)}x", f"{least:g}x")


def plausible_check(suspicious: Sequence[str]) -> Check:
    """Never fails: it flags an INT8 that is better than its FP32."""
    text = " ".join(suspicious) or "INT8 is not suspiciously better than FP32."
    return Check("plausible", "pass", text)
