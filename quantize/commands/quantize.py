"""`vnnify quantize`."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli import PREDICT, emit, refuse_existing, say, terminal_columns
from bench.errors import InputError, UnsupportedError, UsageError
from bench.isolate import run_isolated
from bench.publishing import publish, staging_for, write_manifest
from bench.stages import started_ns
from bench.store import load
from quantize.commands.arguments import (
    DATA,
    MODEL,
    end,
    refuse_inputs,
    refuse_no_baseline,
    tell_github,
    typed,
)
from quantize.commands.arguments import update_baseline as write_baseline
from quantize.commands.limits import (
    DROP,
    Baseline,
    Compression,
    Confidence,
    Decode,
    Flips,
    Github,
    Inconclusive,
    MaxSize,
    Metric,
    Output,
    SliceDrop,
    Slices,
    Unit,
    Update,
)

if TYPE_CHECKING:
    from quantize.report import Report

_REPORT = "report.json"


def quantize(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL)],
    data: Annotated[str, typer.Option(help=DATA)],
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("vnnify-out"),
    weights: Annotated[
        Path | None, typer.Option(help="Weights of a factory: .safetensors, or a state dict.")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="name:f32[N,3,224,224], where the data cannot tell."),
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="Calibrate with this source instead of a part of --data.")
    ] = None,
    calibration_samples: Annotated[int, typer.Option(min=1, help="At most so many.")] = 256,
    limit: Annotated[
        int | None, typer.Option(min=2, help="Read at most so many samples of a source.")
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(help="OUTPUT:INPUT: feed an output back as the next sample's input."),
    ] = None,
    metric: Metric = None,
    output: Output = None,
    decode: Decode = None,
    max_drop: Annotated[
        str | None, typer.Option(help=f"{DROP} Default: 1pt, or 1% where the metric has no 0..1.")
    ] = None,
    confidence: Confidence = 0.95,
    inconclusive: Inconclusive = "fail",
    slices: Slices = None,
    max_slice_drop: SliceDrop = None,
    unit: Unit = None,
    flips: Flips = None,
    min_speedup: Annotated[
        str | None,
        typer.Option(help="As in 1.2x: refuse unless surely that much faster than FP32."),
    ] = None,
    max_size: MaxSize = None,
    min_compression: Compression = None,
    baseline: Baseline = None,
    update_baseline: Update = False,
    target: Annotated[
        str,
        typer.Option(help="auto, portable (right on every x86 CPU), vnni, amx or avx2."),
    ] = "auto",
    objective: Annotated[
        str,
        typer.Option(help="latency or throughput: the fastest that passes; size: the smallest."),
    ] = "latency",
    runtime: Annotated[
        str, typer.Option(help="Comma-separated runtimes that may serve; default: all installed.")
    ] = "",
    threads: Annotated[int, typer.Option(min=0, help="0: all that are granted.")] = 0,
    engine: Annotated[
        str, typer.Option(help="native, nncf, inc, or several: the best model is taken.")
    ] = "native",
    rounding: Annotated[
        str,
        typer.Option(help="Of weights: nearest, learned, auto (learned where it helps)."),
    ] = "auto",
    recipe: Annotated[
        Path | None, typer.Option(help="Replay this recipe.toml instead of searching.")
    ] = None,
    budget: Annotated[
        str, typer.Option(help="As in 90s, 10m, 2h: then the search keeps the best it has.")
    ] = "10m",
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Fresh processes per timed variant (5). A replay then times everything, and "
            "judges by every sample.",
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Sampling time of one such process.")] = 0.3,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    prove: Annotated[
        bool, typer.Option("--prove", help="Also on an emulated CPU with AVX512-VNNI; needs Bochs.")
    ] = False,
    predict_for: Annotated[Path | None, typer.Option(help=PREDICT)] = None,
    trust_model: Annotated[
        bool, typer.Option("--trust-model", help="Open a file that could run code.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output folder.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget what an interrupted run had found.")
    ] = False,
    github: Github = False,
    json: Annotated[bool, typer.Option("--json", help="The report as JSON on stdout.")] = False,
) -> None:
    """Make an INT8 model of a trained FP32 model, judge and time it."""
    asked = {k: str(v) if isinstance(v, Path) else v for k, v in locals().items() if k != "context"}
    refuse_inputs([flips], [model, weights, data, calibration, slices, baseline, recipe])
    refuse_existing([flips], force=force)
    refuse_no_baseline(baseline, update=update_baseline)
    with staging_for(out, force=force) as staging, _resumable(out, fresh=fresh) as kept:
        # It also tells what it found: it has imported most of what that takes.
        told = run_isolated(
            "quantize.commands.work:quantize",
            {
                "asked": asked,
                "command": typed(),
                "staging": str(staging),
                "out": str(out),
                "columns": terminal_columns(),
                "kept": str(kept),
                "started_ns": started_ns(),
            },
            scratch=staging,
            name="quantizing",
            patient=True,
            child=context.obj.child,
        )
        extra = {"outcome": told["outcome"], "command": typed()}
        write_manifest(staging, extra, told["packages"])
        publish(staging, out, force=force)
    exit_code = told["exit_code"]
    if update_baseline and baseline is not None:
        from quantize.finishing import lock_of_report

        write_baseline(baseline, lock_of_report(_report(out), out), exit_code)
    emit((out / _REPORT).read_text(encoding="utf-8") if json else told["summary"])
    if inconclusive == "warn" and told["outcome"] == "inconclusive":
        say(f"warning: shipped without certainty: {told['headline']}")
    if github:
        from quantize.rendering import relocated

        tell_github(relocated(_report(out), out), exit_code)
    end(exit_code, f"files: {out}")


def _report(out: Path) -> "Report":
    """The report in a result folder; few options need it, and importing its reader takes long."""
    from quantize.report import Report

    return load(Report, (out / _REPORT).read_bytes(), out / _REPORT)


@contextmanager
def _resumable(out: Path, *, fresh: bool) -> Iterator[Path]:
    """The folder in which an interrupted run finds what it had; gone once there is a result."""
    out = out.absolute()
    folder = out.with_name(f".{out.name}.vnnify-work")
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    before = folder.is_dir()
    try:
        yield folder
    except (UsageError, InputError, UnsupportedError):
        # The same command would end in the same way, so it leaves nothing of its own.
        if not before:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    except BaseException:
        if folder.is_dir():
            say(f"kept what was finished in {folder}; the same command goes on from there")
        raise
    shutil.rmtree(folder, ignore_errors=True)
