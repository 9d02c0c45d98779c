"""What the commands were asked, as records that travel to the process that does the work."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from quantize.images import Preprocessing
from quantize.sources.seam import ModelSpec

# Of the final benchmark, where nothing else is asked.
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class DataSpec:
    """Where samples come from.

    Attributes:
        source: Labelled or not; also calibrates where `calibration` is None.
        calibration: Another source to calibrate with.
        calibration_count: Samples that calibrate, at most.
        limit: Samples read from each source, at most; None for all.
        preprocessing: How images become arrays.
        states: Output to input names that carry state.
        seed: Of the split.
    """

    source: str
    calibration: str | None = None
    calibration_count: int = 256
    limit: int | None = None
    preprocessing: Preprocessing | None = None
    states: dict[str, str] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the INT8 model has to meet.

    Attributes:
        metric: Name or `file.py:function`; None chooses by the labels.
        output: The output to score.
        decode: `file.py:function` that makes of the outputs what the metric takes.
        max_drop: Tolerance with its unit; None for 1pt, or 1% where the metric is not in 0..1.
        confidence: One-sided, of the verdict.
        inconclusive: What becomes of a model when samples or a busy machine cannot tell.
        objective: What counts among models that pass: "latency" (of one inference at a time),
            "throughput" (one thread each, as where every core serves its own stream), or "size",
            which does not refuse a model that is slower than FP32.
        slices: CSV file with columns that divide the samples.
        unit: Column that names the independent unit of each sample.
        max_slice_drop: Tolerance of each slice; None to only report them.
    """

    metric: str | None = None
    output: str | None = None
    decode: str | None = None
    max_drop: str | None = None
    confidence: float = 0.95
    inconclusive: Literal["fail", "warn", "pass"] = "fail"
    objective: Literal["latency", "throughput", "size"] = "latency"
    slices: Path | None = None
    unit: str | None = None
    max_slice_drop: str | None = None

    @property
    def need_speed(self) -> bool:
        """Whether a model that is no faster than FP32 is of no use."""
        return self.objective != "size"


@dataclass(frozen=True, slots=True)
class Effort:
    """How the model is made and timed.

    Attributes:
        target: A name in `TARGETS`, or "auto".
        runtimes: Names that may serve; empty for all that are installed.
        threads: Inside one inference; 0 for all that this process may use.
        rounds: Processes per variant in the benchmark.
        seconds: Sampling per process.
        recipe: A recipe to replay instead of a search.
        full: Whether a replay, too, times everything as a search does, and looks into the model.
        budget_s: After this long the search starts nothing new and keeps the best it has.
        engines: Names in `QUANTIZERS`; of several, the search takes the best model.
        rounding: Of weights: one of `quantize.options.ROUNDINGS`.
        predict_for: What `vnnify doctor --json` wrote on another machine; None predicts nothing.
        prove: Where emulated machines are kept, to prove the model on one; None proves nothing.
    """

    target: str = "auto"
    runtimes: tuple[str, ...] = ()
    threads: int = 0
    rounds: int = ROUNDS
    seconds: float = 0.3
    recipe: Path | None = None
    full: bool = False
    budget_s: float = 600.0
    engines: tuple[str, ...] = ("native",)
    rounding: str = "auto"
    prove: Path | None = None
    predict_for: Path | None = None


@dataclass(frozen=True, slots=True)
class GateBounds:
    """What INT8 has to meet besides accuracy; None where nothing was asked.

    Attributes:
        min_speedup: Of `gate`, against FP32 in the same runtime; of `quantize`, against the fastest
            FP32.
        max_bytes: Of the file and its external data.
        min_compression: FP32's size over INT8's.
    """

    min_speedup: float | None = None
    max_bytes: int | None = None
    min_compression: float | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that one `vnnify quantize` was asked.

    Attributes:
        model: To quantize.
        data: To calibrate and to judge with.
        limits: On accuracy.
        effort: How it is made and timed.
        command: As typed.
        bounds: On everything else.
        lock: The committed baseline to compare with.
        flips: Whether all samples that changed are written to a file of the staging folder.
    """

    model: ModelSpec
    data: DataSpec
    limits: Limits
    effort: Effort
    command: str
    bounds: GateBounds = field(default_factory=GateBounds)
    lock: Path | None = None
    flips: bool = False


@dataclass(frozen=True, slots=True)
class GateJob:
    """What `vnnify gate` was asked.

    Attributes:
        fp32: The baseline.
        int8: The candidate.
        data: Samples; its `calibration` is only kept apart from them.
        limits: On accuracy.
        bounds: On everything else.
        runtimes: Where both run, one verdict each.
        native: Judge this CPU's own arithmetic.
        threads: 0 for all that this process may use.
        timed: Whether to time both, also where nothing asks for speed.
        lock: The committed baseline to compare with.
        command: As typed.
        flips: Whether all samples that changed are written to the scratch folder.
    """

    fp32: Path
    int8: Path
    data: DataSpec
    limits: Limits
    bounds: GateBounds
    runtimes: tuple[str, ...]
    native: bool
    threads: int
    timed: bool
    lock: Path | None
    command: str
    flips: bool = False


@dataclass(frozen=True, slots=True)
class InspectJob:
    """What `vnnify inspect` was asked."""

    model: Path
    data: DataSpec | None
    runtimes: tuple[str, ...]
    threads: int
    time: bool
    command: str
    fp32: Path | None = None


class Progress(Protocol):
    """Where the pipeline tells what it does."""

    def begin(self, name: str) -> None:
        """A stage begins."""
        ...

    def step(self, done: int, total: int) -> None:
        """So much of the stage is done."""
        ...

    def say(self, text: str) -> None:
        """Something worth a line."""
        ...


def flips_file(folder: Path, runtime: str) -> Path:
    """Where the samples that changed in a runtime are written, until they are moved."""
    return folder / f"flips-{runtime}.csv"
