"""`vnnify inspect`."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from bench.cli import as_text, emit, refuse_existing
from bench.isolate import run_isolated
from bench.store import atomic_write, dump, load
from quantize.commands.arguments import DATA, typed
from quantize.commands.asked import preprocessing

_FP32 = "The file that MODEL was made of: noise of each layer, made there and accumulated."


def inspect(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Any ONNX file, INT8 or not.")],
    data: Annotated[
        str | None,
        typer.Option(help=f"Look for saturation in real samples, and time with one. {DATA}"),
    ] = None,
    fp32: Annotated[Path | None, typer.Option(help=_FP32)] = None,
    limit: Annotated[int, typer.Option(min=1, help="Read at most so many samples.")] = 16,
    runtime: Annotated[
        str, typer.Option(help="Comma-separated: onnxruntime, openvino; default: all installed.")
    ] = "",
    threads: Annotated[int, typer.Option(min=0, help="0: all that are granted.")] = 0,
    no_time: Annotated[bool, typer.Option("--no-time", help="Do not time the kernels.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Everything as JSON on stdout.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write everything as JSON.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write HTML.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite those files.")] = False,
) -> None:
    """Say what of an ONNX file runs in INT8, and what could saturate."""
    from bench.render import render
    from quantize.inspection import Inspection
    from quantize.inspection.document import inspection_document, inspection_summary
    from quantize.job import DataSpec, InspectJob
    from quantize.options import names

    refuse_existing([out, markdown, html], force=force)
    job = InspectJob(
        model=model,
        data=DataSpec(source=data, limit=limit, preprocessing=preprocessing()) if data else None,
        runtimes=names(runtime),
        threads=threads,
        time=not no_time,
        command=typed(),
        fp32=fp32,
    )
    with tempfile.TemporaryDirectory(prefix="vnnify-inspect-") as folder:
        raw = run_isolated(
            "quantize.commands.work:inspect",
            {"job": dump(job).decode(), "scratch": folder},
            scratch=Path(folder),
            name="inspecting",
        )
    found = load(Inspection, raw.encode(), "the inspection's answer")
    for file, form in ((markdown, "markdown"), (html, "html")):
        if file is not None:
            atomic_write(file, render(inspection_document(found), form).encode())
    if out is not None:
        atomic_write(out, dump(found))
    emit(dump(found).decode() if json else as_text(inspection_summary(found)))
