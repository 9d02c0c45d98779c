"""Whether a runtime computes a model right, and alike with one thread and with all of them.

    a few samples ─▶ one thread, all threads ─▶ noise against FP32, beside ONNX Runtime's ─▶ Served

Whether it takes the model at all is asked of the same look.

Runtimes choose other kernels for other numbers of threads, and some of OpenVINO's return garbage.
A score may be good all the same, by luck.
Samples are judged side by side with one thread each (with all where they carry state), and users
serve with either.
"""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from bench.errors import InputError, UnsupportedError
from bench.kernels import Kernels, kernels_of
from bench.machine import canary
from bench.models import Feeds, Model
from bench.runtimes import RUNTIMES, Settings, find_runtime
from quantize.outputs import MOST_DB, by_output, least_db, noise_shares

# Candidates are looked at before the first verdict, which waits for no import of reports.
if TYPE_CHECKING:
    from bench.render import Check
    from quantize.evaluate import Scoring
    from quantize.metric import Metric

logger = logging.getLogger(__name__)

# Samples that are run.
FEW = 4
# Outputs that are named, the noisiest first.
_TOLD = 6
# Kernels round a few sums to the other side; that much more noise is no rounding.
_APART_DB = 10.0
# Where there is less noise than this, runtimes may differ by rounding alone.
_NOISY_DB = 30.0

Noise: TypeAlias = dict[str, float]
"""Noise power over signal power of every float output; see `quantize.outputs.noise_shares`."""
Place: TypeAlias = tuple[str, str, int]
"""Where a model ran: its digest, the runtime's name, and the threads inside one inference."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What a runtime made of a model.

    Attributes:
        noise: At its outputs; None where it was refused.
        kernels: What runs in it, where that was asked and the runtime tells it.
    """

    noise: Noise | None
    kernels: Kernels | None = None


@dataclass(frozen=True, slots=True)
class Few:
    """A few samples, and what runtimes made of models on them: nothing is opened twice for it.

    Attributes:
        feeds: The samples, at least one.
        reference: What FP32 returns for them.
        known: What was found, by place.
    """

    feeds: Sequence[Feeds]
    reference: Sequence[Feeds]
    known: dict[Place, Tried] = field(default_factory=dict)

    def noise(self, model: Model, runtime: str, threads: int) -> Noise | None:
        """What a runtime makes of a model in its own arithmetic; None where it refuses it.

        Args:
            model: FP32 or INT8.
            runtime: Name.
            threads: Inside one inference.
        """
        place = model.sha256, runtime, threads
        if place not in self.known:
            self.known[place] = self._try(model.path, runtime, threads)
        return self.known[place].noise

    def kernels(self, model: Model, runtime: str, threads: int) -> Kernels | None:
        """What runs in a model; None where it was not opened for these samples, or not told."""
        found = self.known.get((model.sha256, runtime, threads))
        return found.kernels if found is not None else None

    def _try(self, path: Path, runtime: str, threads: int) -> Tried:
        try:
            session = find_runtime(runtime).open(path, Settings(threads=threads))
            try:
                found = [session.run(sample) for sample in self.feeds]
                return Tried(noise_shares(self.reference, found), kernels_of(session))
            finally:
                session.close()
        except (InputError, UnsupportedError) as e:
            logger.info("%s refuses %s: %s", runtime, path.name, e)
            return Tried(None)

    def see(self, scores: "Scoring") -> None:
        """Run the samples in the session of an evaluation, too, and keep what it makes of them."""
        how = scores.execution
        # What it cannot run is found out, and told, by `noise`.
        with contextlib.suppress(InputError):
            found = [scores.session.run(sample) for sample in self.feeds]
            self.note(scores.model, how.runtime.name, how.opening, found)

    def note(self, model: Model, runtime: str, settings: Settings, found: Sequence[Feeds]) -> None:
        """Keep what a runtime returned for the samples in a session that was open anyway.

        Args:
            model: What ran.
            runtime: Name.
            settings: Of the session. What had to be made exact is not what is served, and not kept.
            found: Outputs.
        """
        if not settings.exact or canary(runtime) == "exact":
            place = model.sha256, runtime, settings.threads
            self.known[place] = Tried(noise_shares(self.reference, found))


@dataclass(frozen=True, slots=True)
class Served:
    """What one runtime makes of a model with each number of threads.

    Attributes:
        runtime: Its name.
        version: Of the runtime.
        samples: That were run.
        noise_db: Number of threads to signal to noise against FP32, in dB, of the output where it
            is the least: 200 at most, also where no output is float, and -200 where the runtime
            could not run a sample.
        outputs_db: The same of each output that FP32 computes in float, with all threads.
        beside_db: What ONNX Runtime makes of the same file, with all threads, as in `noise_db`;
            -200 where it does not run it, or was not asked, since there is little noise.
    """

    runtime: str
    version: str
    samples: int
    noise_db: dict[int, float]
    outputs_db: dict[str, float] = field(default_factory=dict)
    beside_db: float = -MOST_DB

    @property
    def is_sound(self) -> bool:
        """Whether the model may be served there with any number of threads."""
        return self.agrees and not self.is_wrong

    @property
    def is_wrong(self) -> bool:
        """Whether all numbers of threads make clearly more noise than ONNX Runtime.

        Integers are the same everywhere, layers that a runtime multiplies in float make less noise,
        and ONNX Runtime computes a file as it is written.
        """
        return max(self.noise_db.values()) < min(_NOISY_DB, self.beside_db - _APART_DB)

    @property
    def agrees(self) -> bool:
        """Whether no number of threads makes clearly more noise than another."""
        most, least = max(self.noise_db.values()), min(self.noise_db.values())
        return least > most - _APART_DB

    @property
    def where(self) -> str:
        """`openvino 2026.4.1 with 1 and 2 threads`."""
        counts = " and ".join(map(str, self.noise_db))
        return f"{self.runtime} {self.version} with {counts} thread{'s' * (counts != '1')}"


def serve(few: Few, model: Model, runtime: str, threads: int) -> Served:
    """Run a model in a runtime with one thread and with `threads`, in its own arithmetic.

    Args:
        few: Samples with what FP32 returns for them.
        model: In INT8.
        runtime: Name.
        threads: What it may be served with.
    """
    noise = {n: few.noise(model, runtime, n) for n in sorted({1, threads})}
    noise_db = {n: _least_db(found) for n, found in noise.items()}
    each, beside_db = by_output(noise[threads] or {}), -MOST_DB
    opens = model.path.suffix in RUNTIMES["onnxruntime"].suffixes
    if opens and max(noise_db.values()) < _NOISY_DB:
        beside_db = _least_db(few.noise(model, "onnxruntime", threads))
    version = find_runtime(runtime).version()
    return Served(runtime, version, len(few.feeds), noise_db, each, beside_db)


def _least_db(noise: Noise | None) -> float:
    return -MOST_DB if noise is None else least_db(noise)


def threads_check(served: Served, where: str = "") -> "Check":
    """Whether a runtime computes the model right, and alike with all threads that were tried.

    Args:
        served: What was found.
        where: The runtime, if there are several.
    """
    from bench.render import Check

    name = f"threads in {where}" if where else "threads"
    found = ", ".join(f"{db:.0f} dB with {n}" for n, db in served.noise_db.items())
    if served.is_sound:
        text = f"{served.where} compute{'s' * (len(served.noise_db) == 1)} the same."
        return Check(name, "pass", text, found=found)
    how = "wrong with some numbers of threads"
    if served.agrees:
        how, found = "wrong", f"{found}; ONNX Runtime {served.beside_db:.0f} dB"
    text = (
        f"{served.runtime} {served.version} computes INT8 {how}: {found}, against FP32 on "
        f"{served.samples} samples. Serve it in another runtime or version, and judge it there."
    )
    return Check(name, "fail", text, found=found)


def unscored(served: Served, metric: "Metric") -> str | None:
    """What is known of outputs that no score looks at; None where it looks at all.

    Args:
        served: What a runtime made of the model.
        metric: What judges it.
    """
    if not metric.is_partial or len(served.outputs_db) < 2:
        return None
    worst = sorted(served.outputs_db, key=served.outputs_db.__getitem__)
    listed = ", ".join(f"{name!r} {_told(served.outputs_db[name])}" for name in worst[:_TOLD])
    more = f" and {len(worst) - _TOLD} more" if len(worst) > _TOLD else ""
    return (
        f"{metric.name} looks at {repr(metric.output) if metric.output else 'one output'} only. "
        f"Against FP32, on {served.samples} samples in {served.runtime}: {listed}{more}. Score "
        "another with --output, or all with cosine"
    )


def _told(decibels: float) -> str:
    return "alike" if decibels >= MOST_DB else f"{decibels:.0f} dB"


def covered(served: Sequence[Served], isa_class: str) -> str:
    """Where a model was tried, and that nothing is known of other places."""
    listed = "; ".join(s.where for s in served if s.is_sound)
    return (
        f"Checked in {listed}, on {isa_class}. Other runtimes, versions, numbers of threads and "
        "classes of CPU have other kernels, some of which are wrong: judge there before you serve "
        "there."
    )
