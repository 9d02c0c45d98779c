"""Trials: one INT8 candidate each, with what a cheap look tells of it before a full evaluation.

Recipe ─quantize─▶ file ─▶ noise at the outputs (held-out samples) ─▶ quick latency ─▶ Trial
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from bench.errors import InputError, UnsupportedError
from bench.glance import glance
from bench.latency import Variant
from bench.models import Feeds, Model, read_model
from bench.runtimes import RUNTIMES, Settings
from quantize.anchors import Anchor
from quantize.calibrate import Calibration
from quantize.journal import Journal
from quantize.outputs import MOST_DB, noise_shares, to_db
from quantize.quantizers import QuantizedModel, quantize
from quantize.recipe import Engine, Recipe
from quantize.served import FEW, Few, Place, Tried

logger = logging.getLogger(__name__)

_QUICK_S = 0.2
# Samples that noise is averaged over: enough to tell candidates apart that differ by decibels.
PROBES = 8
# Noise beyond ONNX Runtime's on the same file that rounding and saturation do not explain.
_GARBAGE_DB = 20.0


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
        need_speed: Whether a candidate that is not faster than FP32 is of no use.
        rounding: "nearest", "learned", or "auto": learned where outputs are noisy or too little
            accuracy is left.
        deadline_s: Of the search, by `time.perf_counter`.
        stopped: Whether a person asked for the end.
        pinned: Digests of models whose files stay, whatever candidate makes less noise.
        tried: What runtimes made of models on the first few probes; see `few`.
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
    need_speed: bool = True
    rounding: str = "auto"
    deadline_s: float = float("inf")
    stopped: Callable[[], bool] = lambda: False
    pinned: frozenset[str] = frozenset()
    tried: dict[Place, Tried] = field(default_factory=dict)

    @property
    def late(self) -> bool:
        """Whether the time is used up; what was begun is finished, and nothing more begun."""
        return perf_counter() > self.deadline_s or self.stopped()

    @property
    def few(self) -> Few:
        """The first few probes; each runtime opens each model once for all who ask."""
        return Few(self.probes[:FEW], self.probe_outputs[:FEW], self.tried)

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
    session = RUNTIMES["onnxruntime"].open(model.path, _exact(threads))
    try:
        return tuple(session.run(feeds) for feeds in probes)
    finally:
        session.close()


def _exact(threads: int) -> Settings:
    return Settings(threads=threads, exact=True)


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
    bench.few.note(made.model, "onnxruntime", _exact(bench.threads), found[:FEW])
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
    if not may_serve(runtime, quantized.recipe, bench):
        return False
    return serves(runtime, quantized.model, bench, trial.noise_db)


def _models(bench: Workbench, trials: Sequence[Trial]) -> list[tuple[str, Model]]:
    """Label and file of everything that is timed together."""
    return [("fp32", bench.fp32), *((str(i), t.quantized.model) for i, t in enumerate(trials))]


def may_serve(runtime: str, recipe: Recipe, bench: Workbench) -> bool:
    """Whether a model is worth a try in a runtime.

    Pairs for OpenVINO only cost time elsewhere. Dynamic layers only cost time in OpenVINO: it turns
    MatMulInteger into a product of floats, with weights in 32 bits, so that a model without a
    static layer is no faster there than FP32 is, and takes more memory.
    """
    if runtime != "openvino":
        return recipe.fused_for != "openvino" or not recipe.is_static
    return recipe.is_static or not bench.need_speed or "onnxruntime" not in bench.runtimes


def serves(runtime: str, model: Model, bench: Workbench, noise_db: float) -> bool:
    """Whether a runtime takes the file (contrib operators are onnxruntime's own) and computes it.

    Candidates are judged with one thread per sample and served with more. OpenVINO 2026.4 has INT8
    kernels that return garbage for some shapes at some numbers of threads, so a few probes are run
    here as they would be served.

    Args:
        runtime: Its name.
        model: FP32 or a candidate.
        bench: What all candidates share.
        noise_db: What ONNX Runtime makes of the same file.
    """
    if runtime == "onnxruntime" and model.sha256 == bench.fp32.sha256:
        # What it computed is what all others are held against.
        return True
    noise = bench.few.noise(model, runtime, bench.threads)
    if noise is None:
        return False
    served_db = to_db(noise)
    if served_db < min(0.0, noise_db - _GARBAGE_DB):
        logger.warning("%s computes %s wrong: %.0f dB", runtime, model.path.name, served_db)
        return False
    return True
