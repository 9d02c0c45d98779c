"""Whether a runtime computes a model alike with one thread and with all of them.

    a few samples ─▶ one thread, all threads ─▶ noise against FP32 ─▶ Served

Runtimes choose other kernels for other numbers of threads, and some of OpenVINO's return garbage.
Samples are judged side by side with one thread each (with all where they carry state), and users
serve with either.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import InputError
from bench.models import Feeds
from bench.render import Check
from bench.runtimes import Settings, find_runtime
from quantize.outputs import NoiseTally

# Samples that are run.
FEW = 4
# Kernels round a few sums to the other side; that much more noise is no rounding.
_APART_DB = 10.0
# What no noise counts as, and nothing else.
_MOST_DB = 150.0


@dataclass(frozen=True, slots=True)
class Served:
    """What one runtime makes of a model with each number of threads.

    Attributes:
        runtime: Its name.
        version: Of the runtime.
        samples: That were run.
        noise_db: Number of threads to signal to noise against FP32, in dB, of the output where it
            is the least: 150 at most, also where no output is float, and -150 where the runtime
            could not run a sample.
    """

    runtime: str
    version: str
    samples: int
    noise_db: dict[int, float]

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


def serve(
    path: Path, runtime: str, feeds: Sequence[Feeds], reference: Sequence[Feeds], threads: int
) -> Served:
    """Run a model in a runtime with one thread and with `threads`, in its own arithmetic.

    Args:
        path: Of the INT8 model.
        runtime: Name.
        feeds: Samples, at least one.
        reference: What FP32 returns for them.
        threads: What it may be served with.
    """
    noise_db = {n: _noise_db(path, runtime, feeds, reference, n) for n in sorted({1, threads})}
    return Served(runtime, find_runtime(runtime).version(), len(feeds), noise_db)


def _noise_db(
    path: Path, runtime: str, feeds: Sequence[Feeds], reference: Sequence[Feeds], threads: int
) -> float:
    tally = NoiseTally()
    try:
        session = find_runtime(runtime).open(path, Settings(threads=threads))
        try:
            for sample, wanted in zip(feeds, reference, strict=True):
                tally.add(wanted, session.run(sample))
        finally:
            session.close()
    except InputError:
        return -_MOST_DB
    least = min(tally.sqnr_db().values(), default=_MOST_DB)
    return max(-_MOST_DB, min(least, _MOST_DB))


def threads_check(served: Served, where: str = "") -> Check:
    """Whether a runtime computes the model alike with all the threads that were tried.

    Args:
        served: What was found.
        where: The runtime, if there are several.
    """
    name = f"threads in {where}" if where else "threads"
    found = ", ".join(f"{db:.0f} dB with {n}" for n, db in served.noise_db.items())
    if served.agrees:
        text = f"{served.where} compute{'s' * (len(served.noise_db) == 1)} the same."
        return Check(name, "pass", text, found=found)
    text = (
        f"{served.runtime} {served.version} computes INT8 wrong with some numbers of threads: "
        f"{found}, against FP32 on {served.samples} samples. Serve it in another runtime or "
        "version, and judge it there."
    )
    return Check(name, "fail", text, found=found)


def covered(served: Sequence[Served], isa_class: str) -> str:
    """Where a model was tried, and that nothing is known of other places."""
    listed = "; ".join(s.where for s in served if s.agrees)
    return (
        f"Checked in {listed}, on {isa_class}. Other runtimes, versions, numbers of threads and "
        "classes of CPU have other kernels, some of which are wrong: judge there before you serve "
        "there."
    )
