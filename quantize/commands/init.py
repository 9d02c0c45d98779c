"""`vnnify init`."""

from pathlib import Path
from typing import Annotated

import typer

from bench.cli import refuse_existing, say
from bench.store import atomic_write


def init(
    force: Annotated[bool, typer.Option("--force", help="Overwrite vnnify.toml.")] = False,
) -> None:
    """Write a commented vnnify.toml into the current folder."""
    from quantize.config import TEMPLATE

    file = Path("vnnify.toml")
    refuse_existing([file], force=force)
    atomic_write(file, TEMPLATE.encode())
    say(f"wrote {file}; every key in it stands for a command-line option")
