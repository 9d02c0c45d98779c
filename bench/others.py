"""Measurements from elsewhere or from before: what may stand beside ours, and what changed.

Machines are never mixed in one interval: only numbers of one run on one machine share their noise.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bench.compare import CONFIDENCE, held_up_share
from bench.distributions import student_quantile
from bench.errors import InputError
from bench.latency import Latency, Variant
from bench.load import Load
from bench.machine import Machine


@dataclass(frozen=True, slots=True)
class Other:
    """Another run.

    Attributes:
        source: The file that it came from.
        machine: Where it ran.
        latencies: What it measured.
        loads: The same under load.
    """

    source: str
    machine: Machine
    latencies: tuple[Latency, ...]
    loads: tuple[Load, ...] = ()


class Row(Protocol):
    """What has to agree between runs: of a measured row, or of one that is going to be."""

    @property
    def variant(self) -> Variant:
        """What runs."""
        ...

    @property
    def feeds_sha256(self) -> str:
        """Digest of its inputs."""
        ...


@dataclass(frozen=True, slots=True)
class Planned:
    """A row before it is measured.

    Attributes:
        variant: What is going to run.
        feeds_sha256: Digest of its inputs.
    """

    variant: Variant
    feeds_sha256: str


@dataclass(frozen=True, slots=True)
class Change:
    """One variant, then and now.

    Attributes:
        name: Of the variant.
        before_ms: Median then.
        after_ms: Median now.
        ratio: Time then over time now: above 1 it became faster.
        low: Lower end of the interval of `ratio`; None with a single round on either side.
        high: Upper end. Both allow for what others took, as those of a `Comparison` do.
        also: What else differs: versions, the model itself, how busy the machine was.
    """

    name: str
    before_ms: float
    after_ms: float
    ratio: float
    low: float | None
    high: float | None
    also: tuple[str, ...]

    @property
    def certain(self) -> bool:
        """Whether "as fast as before" can be ruled out."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


def refuse_unlike_run(other: Other, latencies: Sequence[Row]) -> None:
    """Refuse rows of another machine that measured something else.

    Raises:
        InputError: A model or its inputs differ; the message names the field.
    """
    models = {x.variant.model.sha256: x.variant.model.path.name for x in latencies}
    inputs = {(x.variant.model.sha256, x.variant.batch): x.feeds_sha256 for x in latencies}
    for theirs in other.latencies:
        model = theirs.variant.model
        if model.sha256 not in models:
            ours = ", ".join(f"{n} {d[:12]}" for d, n in models.items())
            raise InputError(
                f"{other.source}: model (digest) is {model.path.name} {model.sha256[:12]} there "
                f"and {ours} here. Measure the same files on both machines."
            )
        known = inputs.get((model.sha256, theirs.variant.batch))
        if known is None:
            raise InputError(
                f"{other.source}: batch of {theirs.variant.name!r} is {theirs.variant.batch} there "
                f"and was not measured here. Add it to --batch."
            )
        if known != theirs.feeds_sha256:
            raise InputError(
                f"{other.source}: inputs (digest) of {theirs.variant.name!r} are "
                f"{theirs.feeds_sha256[:12]} there and {known[:12]} here. Use the same --data, or "
                "the same --seed, on both machines."
            )


def changes(before: Other, machine: Machine, latencies: Sequence[Latency]) -> tuple[Change, ...]:
    """What changed since an earlier run on the same machine.

    Raises:
        InputError: The runs are unlike; the message names the field.
    """
    refuse_unlike_earlier(before, machine, latencies)
    known = {x.variant.name: x for x in before.latencies}
    return tuple(_change(known[x.variant.name], x) for x in latencies if x.variant.name in known)


def refuse_unlike_earlier(before: Other, machine: Machine, latencies: Sequence[Row]) -> None:
    """Refuse to compare with a run of something else, or elsewhere.

    Raises:
        InputError: The runs are unlike; the message names the field.
    """
    known = {x.variant.name: x for x in before.latencies}
    pairs = [(known[x.variant.name], x) for x in latencies if x.variant.name in known]
    if not pairs:
        raise InputError(
            f"{before.source}: variants are {', '.join(known)} there and "
            f"{', '.join(x.variant.name for x in latencies)} here: none in common."
        )
    then = before.machine
    fields = [("CPU", then.cpu, machine.cpu), ("threads", then.threads, machine.threads)]
    _refuse(before.source, "the machine", fields)
    for old, new in pairs:
        a, b = old.variant, new.variant
        _refuse(
            before.source,
            repr(b.name),
            [
                ("runtime", a.runtime, b.runtime),
                ("device", a.device, b.device),
                ("precision", a.precision, b.precision),
                ("copies", a.copies, b.copies),
                ("batch", a.batch, b.batch),
                ("threads", a.threads, b.threads),
                ("inputs (digest)", old.feeds_sha256[:12], new.feeds_sha256[:12]),
            ],
        )


def _refuse(source: str, what: str, fields: Sequence[tuple[str, Any, Any]]) -> None:
    for field, there, here in fields:
        if there != here:
            raise InputError(
                f"{source}: cannot compare {what}: {field} is {there} there and {here} here. "
                "Measure in the same way, on the same machine."
            )


def _change(old: Latency, new: Latency) -> Change:
    a, b = ([math.log(r.median_ns) for r in x.rounds] for x in (old, new))
    ratio = statistics.fmean(a) - statistics.fmean(b)
    half = _half_width(a, b)
    waited = {when: held_up_share(x) for when, x in (("then", old), ("now", new))}
    also = [f"others had its CPU in {w:.0%} of its time {when}" for when, w in waited.items() if w]
    if old.variant.model.sha256 != new.variant.model.sha256:
        also.append("another model file")
    if old.runtime_version != new.runtime_version:
        also.append(f"{new.variant.runtime} {old.runtime_version} became {new.runtime_version}")
    return Change(
        new.variant.name,
        old.median_ms,
        new.median_ms,
        math.exp(ratio),
        None if half is None else math.exp(ratio - half) * (1 - waited["then"]),
        None if half is None else math.exp(ratio + half) / (1 - waited["now"]),
        tuple(also),
    )


def _half_width(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Of Welch's interval for a difference of means, at the confidence of `bench.compare`.

    The rounds of two runs are not pairs, and one run may have been noisier: variances are taken
    apart, and the degrees of freedom are Satterthwaite's, rounded down.
    """
    if len(a) < 2 or len(b) < 2:
        return None
    parts = [statistics.variance(x) / len(x) for x in (a, b)]
    total = sum(parts)
    if total == 0:
        return 0.0
    freedom = total**2 / sum(p**2 / (len(x) - 1) for p, x in zip(parts, (a, b), strict=True))
    return student_quantile(0.5 + CONFIDENCE / 2, max(1, int(freedom))) * math.sqrt(total)
