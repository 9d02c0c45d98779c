"""The commands `vnnify bench` and `vnnify doctor`, and how every command of vnnify ends."""

import contextlib
import datetime
import os
import shlex
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from bench.errors import (
    ExitCode,
    OutputError,
    ResourceError,
    UsageError,
    VnnifyError,
    full_disk,
    stems_from_interrupt,
)
from bench.store import atomic_write, dump

# What a command works with is imported when it runs: `quantize` needs no more of this module than
# how commands end, and its user waits for every import.
if TYPE_CHECKING:
    from bench.isolate import Child
    from bench.latency import Progress
    from bench.planning import Exporter
    from bench.render import Document
    from bench.report import BenchReport

PREDICT = "What `vnnify doctor --json` wrote on another machine: predict the latency there."

# What a command that was terminated would have ended with, had it come to its own end.
_WITHOUT_ERROR = (
    ExitCode.OK,
    ExitCode.REFUSED,
    ExitCode.INCONCLUSIVE,
    ExitCode.INTERRUPTED,
)


@dataclass(frozen=True, slots=True)
class Given:
    """What an entry point hands to its commands, which find it as `obj` of their context.

    Attributes:
        exporter: Makes programs of models that are no files to run.
        child: A process that waits for the order of the command.
    """

    exporter: "Exporter | None" = None
    child: "Child | None" = None


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def bench(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="ONNX files, .pt2 programs, file.py:factory; the first is the baseline.",
        ),
    ],
    weights: Annotated[
        Path | None, typer.Option(help="Weights of a factory: .safetensors, or a state dict.")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="name:f32[N,3,224,224], where neither model nor data tells."),
    ] = None,
    trust_model: Annotated[
        bool, typer.Option("--trust-model", help="Open a .pt2 file that could run code.")
    ] = False,
    runtime: Annotated[
        str, typer.Option(help="Comma-separated; by default every one that is installed.")
    ] = "",
    device: Annotated[
        str, typer.Option(help="cpu, cuda, or both; what cannot run here is left out.")
    ] = "cpu",
    batch: Annotated[str, typer.Option(help="Samples in one inference; 1,8,32 sweeps.")] = "1",
    threads: Annotated[
        str, typer.Option(help="Of one inference; 0: all that are granted; 1,2 sweeps.")
    ] = "0",
    streams: Annotated[
        str, typer.Option(help="Inferences at once: 1,2,4, or auto for the best throughput.")
    ] = "",
    rate: Annotated[str, typer.Option(help="Requests per second to answer, as in 50,100.")] = "",
    p99: Annotated[
        str, typer.Option(help="As in 20ms: look for the highest rate whose p99 stays below.")
    ] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Fresh processes per variant.")] = 6,
    seconds: Annotated[float, typer.Option(help="Sampling time of one process.")] = 1.0,
    data: Annotated[
        Path | None, typer.Option(help="Inputs: .npz, one array per input; `labels` are ignored.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of orders, arrivals and made-up inputs.")] = 0,
    prices: Annotated[
        Path | None, typer.Option(help="TOML with [[machine]] entries: what an hour costs.")
    ] = None,
    utilisation: Annotated[
        float, typer.Option(help="Share of the time in which there is work, for the cost.")
    ] = 1.0,
    merge: Annotated[
        list[Path] | None, typer.Option(help="JSON of the same models from another machine.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="JSON of an earlier run here: what changed?")
    ] = None,
    predict_for: Annotated[Path | None, typer.Option(help=PREDICT)] = None,
    no_peaks: Annotated[
        bool, typer.Option("--no-peaks", help="Do not measure what the machine can do at best.")
    ] = False,
    no_operators: Annotated[
        bool, typer.Option("--no-operators", help="Do not time the operators of each variant.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="The report as JSON on stdout.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the report as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as HTML.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the report as Markdown.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite those files.")] = False,
) -> None:
    """Time models against the first, in processes that take turns."""
    from bench.beside import Beside
    from bench.document import bench_document
    from bench.forecast import read_elsewhere
    from bench.load import Demand
    from bench.machine import describe
    from bench.options import parse_counts, parse_names, parse_p99, parse_rates, parse_streams
    from bench.planning import Plan
    from bench.running import run

    refuse_existing([out, html, markdown], force=force)
    plan = Plan(
        models=tuple(models),
        weights=weights,
        inputs=tuple(inputs or ()),
        trust=trust_model,
        runtimes=parse_names(runtime),
        devices=parse_names(device) or ("cpu",),
        batches=parse_counts("--batch", batch),
        threads=parse_counts("--threads", threads, least=0),
        rounds=rounds,
        seconds=seconds,
        seed=seed,
        data=data,
        demand=Demand(
            parse_streams(streams), parse_rates(rate), parse_p99(p99), rounds=min(rounds, 3)
        ),
        peaks=not no_peaks,
        operators=not no_operators,
        predict_for=None if predict_for is None else read_elsewhere(predict_for),
    )
    beside = Beside.read(merge or [], compare, prices, utilisation)
    machine = describe()
    with (
        tempfile.TemporaryDirectory(prefix="vnnify-bench-") as folder,
        progress_shown("measuring") as progress,
    ):
        report = run(
            plan,
            machine,
            Path(folder),
            exporter=context.obj.exporter,
            progress=progress,
            refuse=beside.refuse_unlike if beside.has_runs else None,
        )
    report = beside.lay(
        report,
        command=shlex.join(["vnnify", *sys.argv[1:]]),
        measured=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M}",
        p99_ms=plan.demand.p99_ms,
    )
    try:
        _write(report, out, html, markdown)
    finally:
        # Also where a disk is full by now: what took minutes to measure is seen once at least.
        emit(dump(report).decode() if json else as_text(bench_document(report)))


@app.command()
def doctor(
    target: Annotated[str, typer.Option(help="auto, portable, avx2, vnni or amx.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out the measured limits, which take seconds.")
    ] = False,
    json: Annotated[
        bool,
        typer.Option("--json", help="The machine as JSON on stdout, for --predict-for elsewhere."),
    ] = False,
) -> None:
    """Say what this machine is, how it computes, and what is missing."""
    from bench.doctor import diagnosis, refuse_unfit, refuse_unknown
    from bench.forecast import Survey
    from bench.machine import describe
    from bench.peaks import machine_peaks
    from bench.runtimes import installed_runtimes
    from bench.yardsticks import measure_yardsticks

    refuse_unknown(target, device)
    machine = describe()
    peaks = () if quick else (machine_peaks(machine, machine.threads),)
    if json:
        threads = () if quick else (machine.threads, 1)
        found = Survey(machine, peaks, measure_yardsticks(threads, installed_runtimes()))
        emit(dump(found).decode())
    else:
        emit(as_text(diagnosis(machine, peaks)))
    refuse_unfit(machine, target, device)


def guard(app: typer.Typer, given: "Given | None" = None) -> NoReturn:
    """Run a command line to its exit status; the main function of every entry point.

    An error that vnnify raises on purpose becomes one line on stderr and its own status; anything
    else is a bug of ours and keeps its traceback. `--debug`, anywhere, shows it for all. SIGTERM
    does what Ctrl-C does, and the command ends with a status that says so.
    """
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    terminated = False

    def terminate(_number: int, _frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    command, given = typer.main.get_command(app), given or Given()
    status: int = ExitCode.OK
    try:
        _refuse_undecodable(arguments)
        _refuse_lost_folder()
        status = command.main(args=arguments, prog_name="vnnify", standalone_mode=True, obj=given)
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else ExitCode.OK if e.code is None else 1
    except KeyboardInterrupt:
        status = ExitCode.INTERRUPTED
    except Exception as e:  # noqa: BLE001 - the last place before the interpreter's own report
        interrupted = stems_from_interrupt(e)
        status = ExitCode.INTERRUPTED if interrupted else _explain(e, debug=debug)
    if status == ExitCode.INTERRUPTED:
        say("error: interrupted; nothing was published.")
    if terminated and status in _WITHOUT_ERROR:
        status = ExitCode.TERMINATED
    if sys.stdout is not None:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
    sys.exit(int(status or 0))


def say(line: str) -> None:
    """One line for people, on stderr."""
    from bench.escape import clean

    typer.echo(clean(line), err=True)


def as_text(document: "Document") -> str:
    """A report as text: as wide as the terminal, or of one width for files and pipes."""
    from bench.render.text import WIDTH, render_text

    return render_text(document, terminal_columns() or WIDTH)


def terminal_columns() -> int | None:
    """How wide the terminal is that shows stdout; None where none does, or it does not tell."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size((0, 0)).columns or None


def emit(text: str) -> None:
    """What a command was asked for, on stdout. A reader that left is no reason for a traceback.

    Raises:
        OutputError: stdout is closed, or what it leads to is full.
    """
    if sys.stdout is None:
        raise OutputError("stdout: is closed. Send it to a file or to /dev/null.")
    # Terminals that are not UTF-8 get "?" for what they cannot show.
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
    except OSError as e:
        # Else the interpreter complains when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(e, BrokenPipeError):
            raise SystemExit(ExitCode.OUTPUT) from None
        raise OutputError(f"stdout: cannot be written: {e.strerror}.") from e


def refuse_existing(files: Sequence[Path | None], *, force: bool) -> None:
    """Refuse, before any work, files that exist already or cannot be there.

    Raises:
        OutputError: One exists and `force` is false, is a folder, its folder is missing, or two
            are the same.
    """
    named = [f for f in files if f is not None]
    for file in named:
        if sum(f.absolute() == file.absolute() for f in named) > 1:
            raise OutputError(f"{file}: two options name this file. Give each a file of its own.")
        if file.is_dir():
            raise OutputError(f"{file}: is a folder, expected the name of a file.")
        if not file.absolute().parent.is_dir():
            raise OutputError(f"{file}: its folder does not exist. Create it first.")
        if not os.access(file.absolute().parent, os.W_OK):
            raise OutputError(f"{file}: its folder cannot be written to. Choose another place.")
        if file.exists() and not force:
            raise OutputError(f"{file}: exists already. Move it away, or use --force.")


@contextlib.contextmanager
def progress_shown(what: str) -> "Iterator[Progress]":
    """A progress bar with an estimate on a terminal's stderr, a line per step anywhere else."""
    from bench.escape import clean

    if not sys.stderr.isatty():
        yield lambda done, total, name: say(f"{what} {done + 1}/{total}: {name}")
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn(f"{what} {{task.fields[step]}}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, step="")
        yield lambda done, total, name: bar.update(
            task, completed=done, total=total, step=clean(name)
        )


def _refuse_lost_folder() -> None:
    try:
        Path.cwd()
    except OSError as e:
        raise UsageError(
            f"the working folder is gone: {e.strerror}. Change to one that exists."
        ) from e


def _refuse_undecodable(arguments: Sequence[str]) -> None:
    """Refuse names in another encoding: reports are UTF-8 and could not hold them."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as e:
            raise UsageError(f"{argument!a}: is not UTF-8. Rename the file or its folder.") from e


def _explain(error: Exception, *, debug: bool) -> int:
    if isinstance(error, MemoryError):
        error = ResourceError(f"out of memory: {error}. Use a smaller batch or fewer samples.")
    if not isinstance(error, VnnifyError):
        error = full_disk(error, tempfile.gettempdir()) or error
    known = isinstance(error, VnnifyError)
    if debug or not known:
        traceback.print_exception(error)
    if isinstance(error, VnnifyError):
        say(f"error: {error}")
        return error.exit_code
    say(f"error: this is a bug in vnnify: {type(error).__name__}: {error}")
    return ExitCode.BUG


def _write(
    report: "BenchReport", out: Path | None, html: Path | None, markdown: Path | None
) -> None:
    from bench.document import bench_document
    from bench.render import render

    if out is not None:
        atomic_write(out, dump(report))
    for path, format_ in ((html, "html"), (markdown, "markdown")):
        if path is not None:
            atomic_write(path, render(bench_document(report), format_).encode())
