"""`vnnify gate`."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from bench.cli import as_text, emit, refuse_existing
from bench.isolate import run_isolated
from bench.store import atomic_write, dump, load, place_file
from quantize.commands.arguments import (
    DATA,
    end,
    refuse_inputs,
    refuse_no_baseline,
    tell_github,
    typed,
)
from quantize.commands.arguments import update_baseline as write_baseline
from quantize.commands.asked import bounds_of, limits_of, preprocessing
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


def gate(
    fp32: Annotated[Path, typer.Argument(metavar="FP32", help="The baseline, ONNX.")],
    int8: Annotated[Path, typer.Argument(metavar="INT8", help="The candidate, ONNX.")],
    data: Annotated[str, typer.Option(help=DATA)],
    max_drop: Annotated[str, typer.Option(help=DROP)],
    metric: Metric = None,
    output: Output = None,
    decode: Decode = None,
    confidence: Confidence = 0.95,
    inconclusive: Inconclusive = "fail",
    slices: Slices = None,
    max_slice_drop: SliceDrop = None,
    unit: Unit = None,
    flips: Flips = None,
    calibration: Annotated[
        str | None, typer.Option(help="What INT8 was calibrated with: must be other samples.")
    ] = None,
    min_speedup: Annotated[
        str | None, typer.Option(help="As in 1.2x: refuse unless INT8 is surely that much faster.")
    ] = None,
    time: Annotated[
        bool, typer.Option("--time", help="Time both models, also without --min-speedup.")
    ] = False,
    max_size: MaxSize = None,
    min_compression: Compression = None,
    baseline: Baseline = None,
    update_baseline: Update = False,
    state: Annotated[list[str] | None, typer.Option(help="OUTPUT:INPUT")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Read at most so many samples.")] = None,
    runtime: Annotated[
        str, typer.Option(help="Where both run; comma-separated for a verdict in each.")
    ] = "onnxruntime",
    native: Annotated[
        bool, typer.Option("--native", help="Judge this CPU's own arithmetic instead of VNNI's.")
    ] = False,
    threads: Annotated[int, typer.Option(min=0, help="0: all that are granted.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="The report as JSON on stdout.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the report as JSON.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write HTML.")] = None,
    github: Github = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite those files.")] = False,
) -> None:
    """Judge any INT8 model against its FP32 one. Exits 0, 3 (refused) or 4 (inconclusive)."""
    asked = dict(locals())
    from bench.render import render
    from quantize.gate_report import GateReport, gate_document
    from quantize.gating import lock_of
    from quantize.job import DataSpec, GateJob, flips_file
    from quantize.options import checked_runtimes, parse_states

    written = [out, junit, markdown, html, flips]
    refuse_inputs(written, [fp32, int8, data, calibration, slices, baseline])
    refuse_existing(written, force=force)
    refuse_no_baseline(baseline, update=update_baseline)
    job = GateJob(
        fp32=fp32,
        int8=int8,
        data=DataSpec(
            source=data,
            calibration=calibration,
            limit=limit,
            preprocessing=preprocessing(),
            states=parse_states(state or []),
        ),
        limits=limits_of(asked),
        bounds=bounds_of(asked),
        runtimes=checked_runtimes(runtime) or ("onnxruntime",),
        native=native,
        threads=threads,
        timed=time,
        lock=None if update_baseline else baseline,
        command=typed(),
        flips=flips is not None,
    )
    with tempfile.TemporaryDirectory(prefix="vnnify-gate-") as folder:
        raw = run_isolated(
            "quantize.commands.work:gate",
            {"job": dump(job).decode(), "scratch": folder},
            scratch=Path(folder),
            name="judging",
        )
        report = load(GateReport, raw.encode(), "the gate's answer")
        shown = gate_document(report)
        # First, so that a file that cannot be written costs no verdict.
        emit(dump(report).decode() if json else as_text(shown))
        if flips is not None:
            place_file(flips_file(Path(folder), report.worst.runtime), flips)
    if update_baseline and baseline is not None:
        write_baseline(baseline, lock_of(report), report.exit_code)
    for file, form in ((junit, "junit"), (markdown, "markdown"), (html, "html")):
        if file is not None:
            atomic_write(file, render(shown, form).encode())
    if out is not None:
        atomic_write(out, dump(report))
    if github:
        tell_github(shown, report.exit_code)
    end(report.exit_code, "")
