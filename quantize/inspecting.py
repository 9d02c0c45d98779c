"""`vnnify inspect`: one file looked at from all sides, in the order in which that is cheapest."""

from dataclasses import replace
from pathlib import Path

from bench.errors import UnsupportedError, UsageError
from bench.kernels import TELLING
from bench.machine import granted_threads
from bench.models import Feeds, Model, read_model, synthetic_feeds
from bench.runtimes import find_runtime, installed_runtimes
from quantize.data import read_samples
from quantize.inspection import Inspection, Means, inspect_model
from quantize.job import InspectJob


def run_inspect(job: InspectJob, scratch: Path) -> Inspection:
    """Read the file, then the samples, then ask the runtimes.

    Raises:
        InputError: The file or the data is unusable.
        UnsupportedError: Its opset is newer than the runtimes know.
        UnfitError: A runtime that was named is not installed.
        UsageError: One was named that does not tell its kernels.
    """
    model = read_model(job.model)
    if job.fp32 is not None:
        read_model(job.fp32)
        if job.data is None:
            raise UsageError("--fp32: noise is looked for in real samples. Give them with --data.")
    samples: list[Feeds] = []
    timing, note = None, ""
    if job.data is not None:
        read = read_samples(
            job.data.source,
            model.inputs,
            scratch=scratch,
            preprocessing=job.data.preprocessing,
            limit=job.data.limit,
        )
        samples = [read[i].feeds for i in range(len(read))]
    if job.time:
        timing, note = (samples[0], "") if samples else _made_up(model)
    means = Means(
        runtimes=_runtimes(job.runtimes),
        threads=granted_threads(job.threads),
        scratch=scratch,
        samples=samples,
        timing=timing,
        fp32=job.fp32,
    )
    found = inspect_model(model, means, command=job.command)
    return replace(found, notes=(*found.notes, note)) if note else found


def _made_up(model: Model) -> tuple[Feeds | None, str]:
    try:
        return synthetic_feeds(model, batch=1, seed=0)[0], ""
    except UnsupportedError as e:
        return None, f"not timed: {e}"


def _runtimes(asked: tuple[str, ...]) -> tuple[str, ...]:
    """Those that were named, or every one that is installed and tells its kernels."""
    for name in asked:
        find_runtime(name).version()
        if name not in TELLING:
            raise UsageError(
                f"--runtime {name}: it does not tell which kernels run; {' and '.join(TELLING)} do."
            )
    return asked or tuple(n for n in installed_runtimes() if n in TELLING)
