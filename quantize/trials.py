"""Trials: one INT8 candidate each, with what a cheap look tells of it before a full evaluation.

Recipe ─quantize─▶ file ─▶ noise at the outputs (held-out samples) ─▶ quick latency ─▶ Trial
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bench.errors import InputError, UnsupportedError
from bench.glance import glance
from bench.latency import Variant
from bench.models import Feeds, Model, read_model
from bench.runtimes import RUNTIMES, Settings
from quantize.anchors import Anchor, Mode
from quantize.calibrate import Calibration
from quantize.journal import Journal
from quantize.quantizers import QuantizedModel, quantize
from quantize.quantizers.choosing import least_error_ranges
from quantize.recipe import Engine, Recipe

logger = logging.getLogger(__name__)

_QUICK_S = 0.2
# Noise is an average over samples, so a few tell as much as many.
PROBES = 8
# What an output without noise counts as.
MOST_DB = 200.0
# Tried in this order; what is left out of it was never best where these were not.
RANGE_CHOICES = ("mse", "minmax", "percentile")
# Above this, ranges per tensor and learned rounding wait until accuracy turns out too low.
_QUIET_DB = 30.0
# What is chosen layer by layer has less error on hundreds of rows of each; few probes may say
# otherwise by chance (by 1 dB where 64 more samples said 0.3 to 3.5 dB less noise).
_SLACK_DB = 1.0
# Operations of learned rounding in a second of one core: 14 s for a layer of 6,000 x 6,000.
_LEARNED_PER_S = 3e10
# Noise beyond ONNX Runtime's on the same file that rounding and saturation do not explain.
_GARBAGE_DB = 20.0
# What Muls have to gain for a candidate of their own.
_SMOOTH_GAIN_DB = 1.0


@dataclass(frozen=True, slots=True)
class Start:
    """A graph that candidates are quantized from.

    Attributes:
        strengths: How far its channels were evened out; see `Recipe`.
        muls: Nodes put in for it, each a pass over its tensor; 0 where all folded into constants.
        model: The file.
        anchors: Of it, of the same names in every start.
        calibration: Of it.
    """

    strengths: dict[str, float]
    muls: int
    model: Model
    anchors: tuple[Anchor, ...]
    calibration: Calibration


@dataclass(frozen=True, slots=True)
class Workbench:
    """What every trial of one run shares.

    Attributes:
        fp32: The prepared model.
        anchors: Of its graph.
        calibration: Of the same.
        probes: Feeds that calibrated nothing, for noise and timing.
        probe_outputs: What FP32 returns for them.
        runtimes: Names of the runtimes that may serve.
        threads: Inside one inference.
        scratch: Where candidates are written.
        batch: Samples in one probe.
        journal: What a run that was killed found before.
        engines: What quantizes.
        starts: The same function with evened-out channels, from `quantize.smoothing`.
        rounding: "nearest", "learned", or "auto": learned where outputs are noisy or too little
            accuracy is left.
        deadline_s: Of the search, by `time.perf_counter`.
        stopped: Whether a person asked for the end.
        pinned: Digests of models whose files stay, whatever candidate makes less noise.
    """

    fp32: Model
    anchors: tuple[Anchor, ...]
    calibration: Calibration
    probes: tuple[Feeds, ...]
    probe_outputs: tuple[Feeds, ...]
    runtimes: tuple[str, ...]
    threads: int
    scratch: Path
    batch: int = 1
    journal: Journal = field(default_factory=Journal)
    engines: tuple[Engine, ...] = ("native",)
    starts: tuple[Start, ...] = ()
    rounding: str = "auto"
    deadline_s: float = float("inf")
    stopped: Callable[[], bool] = lambda: False
    pinned: frozenset[str] = frozenset()

    @property
    def late(self) -> bool:
        """Whether the time is used up; what was begun is finished, and nothing more begun."""
        return perf_counter() > self.deadline_s or self.stopped()

    def key(self, **more: Any) -> dict[str, Any]:
        """What names an entry of the journal: model, calibration samples, and `more`."""
        calibrated = self.calibration.samples_sha256
        return {"fp32": self.fp32.sha256, "calibrated": calibrated, **more}

    def start(self, recipe: Recipe) -> Start:
        """What a recipe quantizes: the prepared model or one with evened-out channels.

        Raises:
            UnsupportedError: The channels of no graph are evened out like that.
        """
        plain = Start({}, 0, self.fp32, self.anchors, self.calibration)
        for start in (plain, *self.starts):
            if start.strengths == recipe.strengths:
                return start
        raise UnsupportedError(
            f"the recipe evens out channels in front of {len(recipe.strengths)} nodes, and no "
            "graph was made so. Run `vnnify quantize` without --recipe."
        )


@dataclass(frozen=True, slots=True)
class Quick:
    """Quick medians as the journal keeps them, in ms by runtime, FP32 first."""

    ms: tuple[dict[str, float], ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate.

    Attributes:
        name: Short, for tables.
        quantized: The model and its recipe.
        noise_db: Signal to quantization noise at the outputs, in dB, mean over float outputs.
        latency_ms: Quick median by runtime; empty until timed. A runtime that refuses the file is
            missing.
        seconds: What it took to make it and to look at its noise.
        predicted_db: What noise was expected, where the search had a reason to expect any.
    """

    name: str
    quantized: QuantizedModel
    noise_db: float
    latency_ms: dict[str, float]
    seconds: float = 0.0
    predicted_db: float | None = None

    @property
    def fastest(self) -> str | None:
        """The runtime that serves it fastest."""
        return min(self.latency_ms, key=self.latency_ms.__getitem__, default=None)


def explained(trial: Trial, reasons: Mapping[str, str]) -> Trial:
    """The same trial, its layers in float with a reason where they had none.

    Args:
        trial: A candidate.
        reasons: Why a layer stays in float, by name.
    """
    layers = tuple(
        replace(x, reason=reasons[x.name])
        if x.mode == "float" and x.reason is None and x.name in reasons
        else x
        for x in trial.quantized.layers
    )
    return replace(trial, quantized=replace(trial.quantized, layers=layers))


def run_probes(model: Model, probes: Iterable[Feeds], threads: int) -> tuple[Feeds, ...]:
    """Outputs of a model for each of `probes`, with exact arithmetic."""
    session = RUNTIMES["onnxruntime"].open(model.path, Settings(threads=threads, exact=True))
    try:
        return tuple(session.run(feeds) for feeds in probes)
    finally:
        session.close()


def noise_shares(reference: Sequence[Feeds], found: Sequence[Feeds]) -> dict[str, float]:
    """Noise power over signal power of every output that FP32 computes in float.

    A non-finite output counts as noise of 1e6 times the signal.
    """
    shares: dict[str, float] = {}
    for name, first in reference[0].items():
        if first.dtype.kind != "f":
            continue
        signal = noise = 0.0
        for ours, theirs in zip(reference, found, strict=True):
            a, b = ours[name].astype(np.float64), theirs[name].astype(np.float64)
            sound = np.isfinite(a)
            if a.shape != b.shape or not np.isfinite(b[sound]).all():
                return {name: 1e6}
            signal += float(np.square(a[sound]).sum())
            noise += float(np.square(a[sound] - b[sound]).sum())
        if signal > 0:
            shares[name] = min(noise / signal, 1e6)
        else:
            shares[name] = 1.0 if noise > 0 else 0.0
    return shares


def to_db(shares: dict[str, float]) -> float:
    """Signal to noise in dB, mean over outputs; at most `MOST_DB`."""
    values = [min(-10 * np.log10(max(s, 1e-20)), MOST_DB) for s in shares.values()]
    return float(np.mean(values)) if values else MOST_DB


def attempt(bench: Workbench, recipe: Recipe, name: str) -> Trial:
    """Make one candidate and look at its noise; not timed yet.

    Raises:
        UnsupportedError: The recipe leaves nothing in INT8.
        InputError: The candidate does not run.
    """
    key = bench.key(recipe=asdict(recipe))
    known = bench.journal.recall(Trial, "trial", key)
    if known is not None and _is_there(known.quantized.model):
        return replace(known, name=name)
    out = bench.journal.file("trial", key, ".onnx")
    if out is None:
        taken = {f.name for f in bench.scratch.glob("trial-*.onnx")}
        free = next(i for i in range(len(taken) + 1) if f"trial-{i}.onnx" not in taken)
        out = bench.scratch / f"trial-{free}.onnx"
    started_s = perf_counter()
    start = bench.start(recipe)
    made = quantize(start.model, start.anchors, start.calibration, recipe, out)
    found = run_probes(made.model, bench.probes, bench.threads)
    noise_db = to_db(noise_shares(bench.probe_outputs, found))
    trial = Trial(name, made, noise_db, {}, perf_counter() - started_s)
    bench.journal.keep(trial, "trial", key)
    return trial


def _is_there(model: Model) -> bool:
    """Whether a file of an earlier run still holds what it held."""
    try:
        return read_model(model.path).sha256 == model.sha256
    except InputError:
        return False


def best_variant(bench: Workbench, plan: Recipe, name: str) -> Trial | None:
    """The candidate with the least noise: evened channels, ranges, bias correction, rounding.

    Args:
        bench: What all candidates share.
        plan: A recipe whose modes, target and fusion are given; the rest is chosen.
        name: Of the candidate.

    Returns:
        None where nothing can be quantized this way.
    """
    if bench.engines == (plan.engine,) != ("native",):
        # There is nothing else to offer, so what it says is the answer.
        return attempt(bench, plan, name)
    if plan.engine != "native":
        return attempt_or_none(bench, plan, name)
    methods = RANGE_CHOICES if plan.is_static else RANGE_CHOICES[:1]
    best: Trial | None = None
    for ranges in methods:
        best = _improved(bench, best, replace(plan, ranges=ranges, correct_bias=True), name)
    for start in (s for s in bench.starts if not s.muls):
        best = _evened(bench, best, start, replace(plan, correct_bias=True), name)
    if best is None or bench.late:
        return best
    if bench.rounding != "learned" and best.noise_db >= _QUIET_DB:
        return best
    return refined(bench, best, plan.modes)


def _evened(
    bench: Workbench, best: Trial | None, start: Start, plan: Recipe, name: str
) -> Trial | None:
    """The best so far, or a candidate of a graph with evened-out channels.

    Where these do not help with the ranges that suit the best so far, other ranges do not either.
    """
    first = plan.ranges if best is None else best.quantized.recipe.ranges
    others = (r for r in RANGE_CHOICES if plan.is_static and r != first)
    for ranges in (first, *others):
        recipe = replace(plan, ranges=ranges, strengths=start.strengths)
        found = _improved(bench, best, recipe, name)
        if found is best and ranges == first:
            break
        best = found
    return best


def refined(bench: Workbench, trial: Trial, modes: dict[str, Mode]) -> Trial:
    """The candidate with ranges per tensor and learned rounding, each unless it does harm.

    Args:
        bench: What all candidates share.
        trial: A candidate of the native engine.
        modes: That were asked for; the trial's own lack what turned out unusable.
    """
    if trial.quantized.recipe.is_static:
        trial = _by_tensor(bench, trial, modes)
    return _learned(bench, trial, modes) if bench.rounding != "nearest" else trial


def _by_tensor(bench: Workbench, trial: Trial, modes: dict[str, Mode]) -> Trial:
    """The candidate with a range method per tensor, unless that makes clearly more noise."""
    recipe = replace(trial.quantized.recipe, modes=modes)
    start = bench.start(recipe)
    methods = least_error_ranges(start.model, start.anchors, start.calibration, recipe)
    if not methods:
        return trial
    recipe = replace(recipe, ranges_by_tensor=methods)
    return _improved(bench, trial, recipe, trial.name, _SLACK_DB) or trial


def _improved(
    bench: Workbench, best: Trial | None, recipe: Recipe, name: str, slack_db: float = 0.0
) -> Trial | None:
    """The best so far, or another candidate with less noise; once it is late, the best so far."""
    if best is not None and bench.late:
        return best
    return _quieter(bench, best, attempt_or_none(bench, recipe, name), slack_db)


def _learned(bench: Workbench, trial: Trial, modes: dict[str, Mode]) -> Trial:
    """The candidate with learned rounding, unless it is noisier or would come too late."""
    if perf_counter() + _learning_s(bench) > bench.deadline_s:
        logger.info("%s: rounding is not learned, which would take too long", trial.name)
        return trial
    recipe = replace(trial.quantized.recipe, modes=modes, rounding="learned")
    return _improved(bench, trial, recipe, trial.name, _SLACK_DB) or trial


def _learning_s(bench: Workbench) -> float:
    """What learned rounding takes at least: of a square matrix, twice its size to the power 1.5."""
    sizes = [a.weight_count for a in bench.anchors if a.op != "LSTM"]
    operations = sum(2 * count * math.sqrt(count) for count in sizes)
    return operations / (_LEARNED_PER_S * max(bench.threads, 1))


def smoothed(bench: Workbench, trials: Sequence[Trial]) -> list[Trial]:
    """The same candidates with channels evened out by Muls too, where that gains enough.

    They stand beside the others, since each takes a little longer. Ranges are chosen on the first.

    Args:
        bench: What all candidates share.
        trials: Others, whose recipes are kept but for the ranges.
    """
    found: list[Trial] = []
    chosen: tuple[str, ...] = RANGE_CHOICES
    for start in (s for s in bench.starts if s.muls):
        for trial in (t for t in trials if t.quantized.recipe.engine == "native"):
            if bench.late:
                return found
            name, recipe = f"{trial.name}, smoothed", trial.quantized.recipe
            recipe = replace(recipe, ranges_by_tensor={})
            like = replace(recipe, strengths=start.strengths, rounding="nearest")
            best: Trial | None = None
            for ranges in chosen if recipe.is_static else chosen[:1]:
                best = _improved(bench, best, replace(like, ranges=ranges), name)
            if best is None:
                continue
            if recipe.is_static:
                chosen = (best.quantized.recipe.ranges,)
            if recipe.rounding == "learned":
                best = _learned(bench, best, recipe.modes)
            if best.noise_db >= trial.noise_db + _SMOOTH_GAIN_DB:
                found.append(best)
    return found


def _quieter(
    bench: Workbench, one: Trial | None, other: Trial | None, slack_db: float = 0.0
) -> Trial | None:
    """The trial with less noise; the other's files are removed, since models may be large.

    Args:
        bench: Says which files stay.
        one: The best so far.
        other: What may take its place.
        slack_db: By how much the other may be noisier and still take it.
    """
    if one is None or other is None:
        return one or other
    takes_place = other.noise_db > one.noise_db - slack_db
    better, worse = (other, one) if takes_place else (one, other)
    if worse.quantized.model.sha256 in bench.pinned:
        return better
    path = worse.quantized.model.path
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    return better


def attempt_or_none(bench: Workbench, recipe: Recipe, name: str) -> Trial | None:
    """The candidate, or None where the recipe leaves nothing in INT8 or the result does not run."""
    try:
        return attempt(bench, recipe, name)
    except (UnsupportedError, InputError) as e:
        logger.info("%s: %s", name, e)
        return None


def time_quickly(
    bench: Workbench, trials: Sequence[Trial], *, rounds: int = 1
) -> tuple[tuple[Trial, ...], dict[str, float]]:
    """Medians of one or more short rounds per candidate and runtime; FP32's come second.

    Raises:
        UnsupportedError: No runtime takes FP32.
    """
    rows = [m.sha256 for _, m in _models(bench, trials)]
    key = bench.key(models=rows, runtimes=bench.runtimes, threads=bench.threads, rounds=rounds)
    times = bench.journal.remember(Quick, "quick", key, lambda: _quick(bench, trials, rounds)).ms
    timed = tuple(replace(t, latency_ms=dict(ms)) for t, ms in zip(trials, times[1:], strict=True))
    return timed, dict(times[0])


def _quick(bench: Workbench, trials: Sequence[Trial], rounds: int) -> Quick:
    variants = []
    for runtime in bench.runtimes:
        for label, model in _models(bench, trials):
            if not _takes(runtime, bench, None if label == "fp32" else trials[int(label)]):
                continue
            name = f"{label} {runtime}"
            variants.append(Variant(name, model, runtime, "cpu", bench.threads, bench.batch))
    if not any(v.model is bench.fp32 for v in variants):
        raise UnsupportedError(
            f"none of {', '.join(bench.runtimes)} takes the FP32 model. Allow another --runtime."
        )
    ms = glance(variants, bench.probes[:4], rounds=rounds, seconds=_QUICK_S)
    return Quick(
        tuple(
            {r: ms[f"{label} {r}"] for r in bench.runtimes if f"{label} {r}" in ms}
            for label, _ in _models(bench, trials)
        )
    )


def _takes(runtime: str, bench: Workbench, trial: Trial | None) -> bool:
    """Whether a trial is timed in a runtime; FP32 where there is no trial."""
    if trial is None:
        return serves(runtime, bench.fp32, bench, MOST_DB)
    if trial.latency_ms:
        # It was opened and run before the first look.
        return runtime in trial.latency_ms
    quantized = trial.quantized
    if not may_serve(runtime, quantized.recipe):
        return False
    return serves(runtime, quantized.model, bench, trial.noise_db)


def _models(bench: Workbench, trials: Sequence[Trial]) -> list[tuple[str, Model]]:
    """Label and file of everything that is timed together."""
    return [("fp32", bench.fp32), *((str(i), t.quantized.model) for i, t in enumerate(trials))]


def may_serve(runtime: str, recipe: Recipe) -> bool:
    """Whether a model is worth a try in a runtime: pairs for OpenVINO only cost time elsewhere."""
    return runtime == "openvino" or recipe.fused_for != "openvino" or not recipe.is_static


def serves(runtime: str, model: Model, bench: Workbench, noise_db: float) -> bool:
    """Whether a runtime takes the file (contrib operators are onnxruntime's own) and computes it.

    Candidates are judged with one thread per sample and served with more. OpenVINO 2026.4 has INT8
    kernels that return garbage for some shapes at some numbers of threads, so one probe is run
    here as it would be served, and compared with what ONNX Runtime makes of the same file.
    """
    try:
        session = RUNTIMES[runtime].open(model.path, Settings(threads=bench.threads))
        found = [session.run(feeds) for feeds in bench.probes[:1]]
        session.close()
    except (InputError, UnsupportedError) as e:
        logger.info("%s refuses %s: %s", runtime, model.path.name, e)
        return False
    served_db = to_db(noise_shares(bench.probe_outputs[:1], found)) if found else noise_db
    if served_db < min(0.0, noise_db - _GARBAGE_DB):
        logger.warning("%s computes %s wrong: %.0f dB", runtime, model.path.name, served_db)
        return False
    return True
