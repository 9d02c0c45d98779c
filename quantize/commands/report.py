"""`vnnify report`."""

from pathlib import Path
from typing import Annotated

import typer

from bench.cli import as_text, emit, refuse_existing
from bench.store import atomic_write, read_bytes


def report(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="REPORT.json", help="JSON of quantize, gate, bench, inspect or doctor."
        ),
    ],
    html: Annotated[Path | None, typer.Option(help="Write HTML.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite those files.")] = False,
) -> None:
    """Render a stored report; without an option, as text."""
    from bench.render import render
    from quantize.rendering import stored_document

    refuse_existing([html, markdown, junit], force=force)
    stored = stored_document(read_bytes(file), file)
    for target, form in ((html, "html"), (markdown, "markdown"), (junit, "junit")):
        if target is not None:
            atomic_write(target, render(stored, form).encode())
    if html is None and markdown is None and junit is None:
        emit(as_text(stored))
