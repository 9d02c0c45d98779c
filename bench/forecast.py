"""Latency on a machine that is not here, predicted; never shown as measured.

    latency here × Σ over kinds of kernels (share of the time × yardstick there / yardstick here)

A kernel is taken to be as much slower there as the yardstick of its kind is. How far off that may
be is found by doing the same here: predict what OpenVINO does with AVX2 kernels alone, and what
every runtime does with one thread, from the times with everything; then measure it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import InputError
from bench.kernels import TELLING
from bench.latency import Latency, Progress, Variant
from bench.machine import Machine
from bench.models import Feeds
from bench.peaks import Peaks
from bench.store import load, read_bytes
from bench.yardsticks import Bout, Yardsticks, measure_bout

# Beyond these there is something to be held to.
_MORE_THAN_AVX2 = ("avx512", "avx512_vnni", "avx_vnni", "amx")


@dataclass(frozen=True, slots=True)
class Survey:
    """What `vnnify doctor --json` writes: a machine, and how fast it is.

    Attributes:
        machine: Which.
        peaks: What it can do at best; empty where that was left out.
        yardsticks: Times of layers, by runtime and threads; likewise.
    """

    machine: Machine
    peaks: tuple[Peaks, ...] = ()
    yardsticks: tuple[Yardsticks, ...] = ()


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Another machine.

    Attributes:
        source: Name of the file that describes it.
        survey: What is in it.
    """

    source: str
    survey: Survey


@dataclass(frozen=True, slots=True)
class Check:
    """A prediction for this machine that was measured, too.

    Attributes:
        name: What was predicted.
        predicted_ms: From the times with all instruction sets and threads.
        measured_ms: What it takes.
    """

    name: str
    predicted_ms: float
    measured_ms: float

    @property
    def factor(self) -> float:
        """How many times too long or too short the prediction was, at least 1."""
        ratio = self.predicted_ms / self.measured_ms
        return max(ratio, 1 / ratio)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One variant on the other machine.

    Attributes:
        variant: Its name here.
        threads: Inside one inference, there.
        here_ms: Measured here.
        ms: Predicted there.
    """

    variant: str
    threads: int
    here_ms: float
    ms: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """Latencies on another machine.

    Attributes:
        source: The file that describes it.
        machine: Which.
        predictions: One per variant and number of threads that was measured there.
        checks: The same kind of prediction for this machine, against what it takes.
        left_out: Variants that cannot be predicted, and why.
        doubts: What else speaks against it.
    """

    source: str
    machine: Machine
    predictions: tuple[Prediction, ...]
    checks: tuple[Check, ...]
    left_out: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def factor(self) -> float | None:
        """The worst factor of the checks: what a prediction may be off by; None without checks."""
        return max((c.factor for c in self.checks), default=None)


def read_elsewhere(path: Path) -> Elsewhere:
    """What `vnnify doctor --json` wrote on another machine.

    Raises:
        InputError: It is something else, or has no times.
    """
    found = load(Survey, read_bytes(path), path)
    if not found.yardsticks:
        raise InputError(
            f"{path}: holds no times of layers. Write it on that machine with `vnnify doctor "
            "--json > machine.json`, without --quick."
        )
    return Elsewhere(path.name, found)


def forecast(
    elsewhere: Elsewhere,
    machine: Machine,
    latencies: Sequence[Latency],
    feeds: Feeds,
    progress: Progress = lambda *_: None,
) -> Forecast:
    """Predict every variant that ran on this CPU; takes about ten seconds per runtime.

    Args:
        elsewhere: The other machine.
        machine: This one.
        latencies: Measured here.
        feeds: The inputs of one inference.
        progress: Told what is timed.
    """
    survey, source = elsewhere.survey, elsewhere.source
    told = [x for x in latencies if x.variant.device == "cpu" and x.variant.runtime in TELLING]
    left_out = {x.variant.name: _reason(x.variant) for x in latencies if x not in told}
    groups: dict[tuple[str, int], list[Latency]] = {}
    for latency in told:
        variant = latency.variant
        groups.setdefault((variant.runtime, variant.threads), []).append(latency)
    predictions: list[Prediction] = []
    checks: list[Check] = []
    for done, ((runtime, threads), ours) in enumerate(groups.items()):
        progress(done, len(groups), f"layers in {runtime}, for {survey.machine.cpu}")
        models = [(x.variant.model.path, feeds) for x in ours]
        here = measure_bout(runtime, threads, models, shares=True)
        there = [y for y in survey.yardsticks if y.runtime == runtime]
        for i, x in enumerate(ours):
            parts = here.shares.get(i, {})
            found = [p for y in there if (p := _predicted(x, parts, here.yardsticks, y))]
            predictions += found
            if not found:
                left_out[x.variant.name] = f"{source} has no times of its layers in {runtime}"
        checks += _checks(here, [x.variant.name for x in ours], models, machine)
    return Forecast(
        source=source,
        machine=survey.machine,
        predictions=tuple(predictions),
        checks=tuple(checks),
        left_out=tuple(f"{n}: {why}" for n, why in left_out.items()),
        doubts=tuple(_doubts(survey, machine, [x.variant for x in told])),
    )


def _reason(variant: Variant) -> str:
    return "it ran on a GPU" if variant.device != "cpu" else "its runtime does not tell its kernels"


def _predicted(
    latency: Latency, shares: dict[str, float], here: Yardsticks, there: Yardsticks
) -> Prediction | None:
    factor = slowdown(shares, here, there)
    if factor is None:
        return None
    ms = latency.median_ms
    return Prediction(latency.variant.name, there.threads, ms, ms * factor)


def slowdown(shares: dict[str, float], here: Yardsticks, there: Yardsticks) -> float | None:
    """Time there over time here; None where a kind was not measured on both sides.

    Args:
        shares: Of the time here, by kind.
        here: Layers on this machine.
        there: On the other one.
    """
    if not shares or not shares.keys() <= (here.ms.keys() & there.ms.keys()):
        return None
    return sum(share * there.ms[kind] / here.ms[kind] for kind, share in shares.items())


def _checks(
    here: Bout,
    names: Sequence[str],
    models: Sequence[tuple[Path, Feeds]],
    machine: Machine,
) -> list[Check]:
    """Predictions for this machine held to less than it has, against what that takes."""
    runtime, threads = here.yardsticks.runtime, here.yardsticks.threads
    less: list[tuple[str, Bout]] = []
    if runtime == "openvino" and machine.isa_class in _MORE_THAN_AVX2:
        held = measure_bout(runtime, threads, models, limited="AVX2")
        less.append(("AVX2 kernels alone", held))
    if threads > 1:
        less.append(("one thread", measure_bout(runtime, 1, models)))
    found = []
    for name, bout in less:
        for i, variant in enumerate(names):
            factor = slowdown(here.shares.get(i, {}), here.yardsticks, bout.yardsticks)
            if factor is not None and i in bout.model_ms:
                predicted = here.model_ms[i] * factor
                found.append(Check(f"{variant}, {name}", predicted, bout.model_ms[i]))
    return found


def _doubts(survey: Survey, machine: Machine, variants: Sequence[Variant]) -> list[str]:
    used = {v.runtime for v in variants}
    doubts = [
        f"{y.runtime} is {y.version} there and {machine.packages.get(y.runtime)} here"
        for y in {y.runtime: y for y in survey.yardsticks}.values()
        if y.runtime in used and y.version != machine.packages.get(y.runtime)
    ]
    most = max((v.threads for v in variants), default=0)
    if any(y.threads > most for y in survey.yardsticks):
        doubts.append(
            f"with more threads than the {most} that were used here, small models gain less than "
            "the layers that were timed"
        )
    return doubts
