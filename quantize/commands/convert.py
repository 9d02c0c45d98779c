"""`vnnify convert`."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from bench.cli import emit, refuse_existing, say
from bench.errors import OutputError
from bench.isolate import run_isolated
from bench.store import dump
from quantize.commands.arguments import MODEL
from quantize.commands.asked import model_spec


def convert(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL)],
    out: Annotated[Path, typer.Option("-o", "--out", help="The .onnx file to write.")],
    weights: Annotated[Path | None, typer.Option(help="Weights of a factory.")] = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="name:f32[N,3,224,224]")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Real samples to export and compare with.")
    ] = None,
    trust_model: Annotated[
        bool, typer.Option("--trust-model", help="Open a file that could run code.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Convert a trained model to one clean, checked FP32 ONNX file."""
    refuse_existing([out], force=force)
    spec = model_spec(model, weights, inputs, trust=trust_model)
    try:
        scratch = tempfile.TemporaryDirectory(prefix=".vnnify-convert-", dir=out.absolute().parent)
    except OSError as e:
        raise OutputError(f"{out}: cannot be written: {e.strerror}. Choose another --out.") from e
    with scratch as folder:
        answer = run_isolated(
            "quantize.commands.work:convert",
            {"spec": dump(spec).decode(), "data": data, "folder": folder, "name": out.name},
            scratch=Path(folder),
            name="converting",
        )
        for name in answer["files"]:
            (Path(folder) / "clean" / name).replace(out.absolute().parent / name)
    for note in answer["notes"]:
        say(f"note: {note}")
    emit(f"{out}: {answer['size_bytes']:,} bytes, sha256 {answer['sha256']}\n")
