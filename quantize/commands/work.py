"""The child processes of the commands: native code runs here, where a crash loses nothing.

Each takes the order of the command of its name, see `bench.isolate.run_isolated`. Nothing of the
command line is imported: people wait for it in one process already.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.store import dump, load, place_file
from quantize.commands.asked import asked_job, path_of, preprocessing
from quantize.imports import swift_imports

if TYPE_CHECKING:
    from quantize.report import Report

# A thread needs the interpreter back after every inference, which may take 20 µs. By itself Python
# lets it wait 5 ms while another thread has something to do.
_SWITCH_S = 0.0005
# More samples than the export of a program looks at would only be read.
_SAMPLES = 8


def get_ready() -> None:
    """Import what `quantize` needs up to the first verdict, before there is an order for it."""
    with swift_imports():
        import quantize.pipeline
        import quantize.progress  # noqa: F401 - as above


@contextmanager
def _temporary_in(folder: Path) -> Iterator[None]:
    """Have all temporary files made in a folder of the run, which goes however this process ends.

    One that is killed removes nothing: who waits for it, or else the next run, removes the folder.
    """
    with tempfile.TemporaryDirectory(prefix="temporary-", dir=folder) as inside:
        tempfile.tempdir = inside
        try:
            yield
        finally:
            tempfile.tempdir = None


def quantize(order: dict[str, Any]) -> dict[str, Any]:
    """Make, judge and time a model, and tell it in the folder to publish; what its command says."""
    sys.setswitchinterval(_SWITCH_S)
    get_ready()
    from quantize.pipeline import run
    from quantize.progress import progress_for, tell_of_interrupt
    from quantize.stopping import Interrupt, listening

    job = asked_job(order["asked"], order["command"])
    staging, interrupt = Path(order["staging"]), Interrupt(partial(tell_of_interrupt, sys.stderr))
    with (
        _temporary_in(staging),
        listening(interrupt),
        progress_for(sys.stderr) as progress,
    ):
        report = run(
            job,
            staging,
            progress,
            work=Path(order["kept"]),
            interrupt=interrupt,
            started_ns=order["started_ns"],
        )
    shutil.rmtree(staging / "scratch", ignore_errors=True)
    return _told(report, staging, order)


def _told(report: "Report", staging: Path, order: dict[str, Any]) -> dict[str, Any]:
    """Write the reports into the folder to publish; what is said of them on a terminal."""
    with swift_imports():
        from quantize.job import flips_file
        from quantize.rendering import ending, write_reports

    out, flips = Path(order["out"]), path_of(order["asked"]["flips"])
    write_reports(report, staging, out)
    if flips is not None:
        place_file(flips_file(staging, report.served_by), flips)
    return {
        "outcome": report.conclusion.outcome,
        "exit_code": int(report.conclusion.exit_code),
        "headline": report.conclusion.headline,
        "summary": ending(report, out, order["columns"]),
        "packages": report.machine.packages,
    }


def gate(order: dict[str, Any]) -> str:
    """Judge a pair of models; the report as JSON."""
    sys.setswitchinterval(_SWITCH_S)
    with swift_imports():
        from quantize.gating import run_gate
        from quantize.job import GateJob
        from quantize.progress import progress_for

    job, scratch = load(GateJob, order["job"].encode(), "job"), Path(order["scratch"])
    with _temporary_in(scratch), progress_for(sys.stderr) as progress:
        report = run_gate(job, scratch, progress)
    return dump(report).decode()


def convert(order: dict[str, Any]) -> dict[str, Any]:
    """Write a clean FP32 file; what it is."""
    with swift_imports():
        from quantize.converting import convert_file
        from quantize.sources.seam import ModelSpec

    spec, folder = load(ModelSpec, order["spec"].encode(), "spec"), Path(order["folder"])
    with _temporary_in(folder):
        return convert_file(spec, order["data"], folder, order["name"], preprocessing())


def inspect(order: dict[str, Any]) -> str:
    """Look into a model, which the runtimes open for that; what was found as JSON."""
    with swift_imports():
        from quantize.inspecting import run_inspect
        from quantize.job import InspectJob

    job, scratch = load(InspectJob, order["job"].encode(), "job"), Path(order["scratch"])
    with _temporary_in(scratch):
        return dump(run_inspect(job, scratch)).decode()


def program(order: dict[str, Any]) -> None:
    """Write the program of a PyTorch model, for `bench`."""
    from quantize.data import infer_inputs, read_samples
    from quantize.sources import ModelSpec, describe_inputs
    from quantize.sources.torch import write_program

    spec, out = load(ModelSpec, order["spec"].encode(), "spec"), Path(order["out"])
    samples = None
    with _temporary_in(out.parent):
        if (data := order["data"]) is not None:
            inputs = describe_inputs(spec) or spec.inputs or infer_inputs(data)
            scratch = out.with_suffix("")
            scratch.mkdir()
            samples = read_samples(
                data, inputs, scratch=scratch, preprocessing=preprocessing(), limit=_SAMPLES
            )
        write_program(spec, samples, out)
