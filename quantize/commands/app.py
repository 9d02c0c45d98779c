"""All commands of `vnnify`; `bench` and `doctor` come from `bench`."""

from typing import Annotated

import typer

from bench.cli import bench, doctor, emit
from quantize.commands.arguments import Configured
from quantize.commands.convert import convert
from quantize.commands.gate import gate
from quantize.commands.init import init
from quantize.commands.inspect import inspect
from quantize.commands.quantize import quantize
from quantize.commands.report import report


def _print_version(asked: bool) -> None:
    """The callback of an option that is answered before a command is looked for."""
    if asked:
        from importlib.metadata import version

        emit(f"vnnify {version('vnnify')}\n")
        raise typer.Exit


def vnnify(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Trained FP32 models to INT8 models that are proved accurate and fast on CPUs."""


app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)
app.callback()(vnnify)
for configured in (bench, quantize, gate):
    app.command(cls=Configured)(configured)
for plain in (doctor, convert, inspect, report, init):
    app.command()(plain)
