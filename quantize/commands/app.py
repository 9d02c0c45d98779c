"""All commands of `vnnify`; `bench` and `doctor` come from `bench`."""

import typer

from bench.cli import bench, doctor
from quantize.commands.arguments import Configured
from quantize.commands.convert import convert
from quantize.commands.gate import gate
from quantize.commands.init import init
from quantize.commands.inspect import inspect
from quantize.commands.quantize import quantize
from quantize.commands.report import report

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Trained FP32 models to INT8 models that are proved accurate and fast on CPUs.",
)
for configured in (bench, quantize, gate):
    app.command(cls=Configured)(configured)
for plain in (doctor, convert, inspect, report, init):
    app.command()(plain)
