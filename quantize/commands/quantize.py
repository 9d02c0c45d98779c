"""`vnnify quantize`."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli import PREDICT, as_text, emit, refuse_existing, say
from bench.errors import InputError, UnsupportedError, UsageError
from bench.isolate import run_isolated
from bench.publishing import publish, staging_for, write_manifest
from bench.stages import started_ns
from bench.store import dump, load, place_file
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


def quantize(
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
    """Make an INT8 model of a trained FP32 model, judge it, and time it."""
    asked = {k: str(v) if isinstance(v, Path) else v for k, v in locals().items()}
    refuse_inputs([flips], [model, weights, data, calibration, slices, baseline, recipe])
    refuse_existing([flips], force=force)
    refuse_no_baseline(baseline, update=update_baseline)
    if recipe is not None:
        # A replay times models within seconds, and must not be disturbed then.
        _get_ready_to_tell()
    with staging_for(out, force=force) as staging, _resumable(out, fresh=fresh) as kept:
        raw = run_isolated(
            "quantize.commands.work:quantize",
            {
                "asked": asked,
                "command": typed(),
                "staging": str(staging),
                "kept": str(kept),
                "started_ns": started_ns(),
            },
            scratch=staging,
            name="quantizing",
            patient=True,
            meanwhile=_get_ready_to_tell,
        )
        from quantize.finishing import lock_of_report
        from quantize.job import flips_file
        from quantize.report import Report

        report = load(Report, (staging / raw).read_bytes(), raw)
        if flips is not None:
            place_file(flips_file(staging, report.served_by), flips)
        _publish(report, staging, out, force=force)
    if update_baseline and baseline is not None:
        write_baseline(baseline, lock_of_report(report, out), report.conclusion.exit_code)
    emit(dump(report).decode() if json else as_text(_summary(report, out)))
    if inconclusive == "warn" and report.conclusion.outcome == "inconclusive":
        say(f"warning: shipped without certainty: {report.conclusion.headline}")
    if github:
        from quantize.rendering import relocated

        tell_github(relocated(report, out), report.conclusion.exit_code)
    end(report.conclusion.exit_code, f"files: {out}")


def _get_ready_to_tell() -> None:
    """Import what reads and tells reports: it takes long, and the work need not wait for it."""
    from quantize.imports import swift_imports

    with swift_imports():
        import quantize.rendering  # noqa: F401 - used when the work is done


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


def _publish(report: "Report", staging: Path, out: Path, *, force: bool) -> None:
    from bench.render import render
    from quantize.rendering import relocated

    shown = relocated(report, out)
    (staging / "report.html").write_text(render(shown, "html"), encoding="utf-8")
    (staging / "report.md").write_text(render(shown, "markdown"), encoding="utf-8")
    (staging / "report.junit.xml").write_text(render(shown, "junit"), encoding="utf-8")
    write_manifest(staging, {"outcome": report.conclusion.outcome, "command": report.command})
    publish(staging, out, force=force)


def _summary(report: "Report", out: Path) -> Any:
    from quantize.document import summary

    shown = replace(report, int8=replace(report.int8, path=out / report.int8.path))
    return summary(shown, str(out))
