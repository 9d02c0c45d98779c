"""The commands `vnnify bench` and `vnnify doctor`, and how every command of vnnify ends."""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from bench.errors import ExitCode, OutputError, ResourceError, UnfitError, UsageError, VnnifyError
from bench.feeds import read_feeds
from bench.latency import Progress, Variant, measure
from bench.machine import Machine, available_threads, describe
from bench.models import Feeds, Model, read_model, synthetic_feeds
from bench.render import Banner, Document, Paragraph, Section, render
from bench.render.escape import clean
from bench.report import BenchReport, assemble, bench_document, machine_table
from bench.runtimes import RUNTIMES, find_runtime
from bench.store import atomic_write, dump

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

_EXTRAS = {
    "openvino": "pip install 'vnnify[openvino]'",
    "torch": "pip install 'vnnify[torch]'",
}
_CLASSES = {
    "vnni": ("amx", "avx512_vnni", "avx_vnni"),
    "amx": ("amx",),
    "avx2": ("amx", "avx512_vnni", "avx_vnni", "avx512", "avx2"),
}
_ANY_TARGET = ("auto", "portable")
_SYNTHETIC = 8


@app.command()
def bench(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL...", help="ONNX files; the first is the baseline."),
    ],
    runtime: Annotated[
        str, typer.Option(help="Comma-separated; by default every one that is installed.")
    ] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    batch: Annotated[int, typer.Option(min=1, help="Samples in one inference.")] = 1,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads of one inference; 0: all that are granted.")
    ] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Fresh processes per variant.")] = 6,
    seconds: Annotated[float, typer.Option(help="Sampling time of one process.")] = 1.0,
    data: Annotated[
        Path | None, typer.Option(help="Inputs: .npz, one array per input of the model.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order and of made-up inputs.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="The report as JSON on stdout.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the report as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as HTML.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the report as Markdown.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite those files.")] = False,
) -> None:
    """Time models in fresh processes, taking turns, and compare them with the first."""
    refuse_existing([out, html, markdown], force=force)
    machine = describe()
    found = [read_model(path) for path in models]
    variants = _variants(found, _runtimes(runtime), device, threads or available_threads(), batch)
    feeds = _feeds(found[0], data, batch, seed)
    if device == "cuda" and machine.no_gpu_reason:
        raise UnfitError(f"cannot measure on 'cuda': {machine.no_gpu_reason}. Use --device cpu.")
    with progress_shown("measuring") as progress:
        *latencies, control = measure(
            variants,
            feeds,
            rounds=rounds,
            seconds_per_round=seconds,
            seed=seed,
            control=True,
            progress=progress,
        )
    report = assemble(machine, latencies, control, _not_measured(machine, device))
    _write(report, out, html, markdown)
    emit(dump(report).decode() if json else render(bench_document(report), "text"))


@app.command()
def doctor(
    target: Annotated[str, typer.Option(help="auto, portable, avx2, vnni or amx.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="The machine as JSON on stdout.")] = False,
) -> None:
    """Say what this machine is, which arithmetic it does, and what is missing."""
    if target not in (*_CLASSES, *_ANY_TARGET):
        known = ", ".join((*_ANY_TARGET, *_CLASSES))
        raise UsageError(f"unknown target {target!r}; known: {known}.")
    _refuse_unknown_device(device)
    machine = describe()
    emit(dump(machine).decode() if json else render(_diagnosis(machine), "text"))
    wanted = _CLASSES.get(target)
    if wanted is not None and machine.isa_class not in wanted:
        raise UnfitError(
            f"target {target!r} needs a CPU of class {' or '.join(wanted)} and a runtime that "
            f"computes exactly on it; this is {machine.isa_class!r}. Its accuracy can still be "
            "judged here, its speed cannot."
        )
    if device == "cuda" and machine.no_gpu_reason:
        raise UnfitError(f"device 'cuda' cannot be used here: {machine.no_gpu_reason}.")


def guard(app: typer.Typer, *, name: str = "vnnify") -> NoReturn:
    """Run a command line to its exit status; the main function of every entry point.

    An error that vnnify raises on purpose becomes one line on stderr and its own status; anything
    else is a bug of ours and keeps its traceback. `--debug`, anywhere, shows it for all.
    """
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    signal.signal(signal.SIGTERM, _terminate)
    command = typer.main.get_command(app)
    status: int = ExitCode.OK
    try:
        _refuse_undecodable(arguments)
        status = command.main(args=arguments, prog_name=name, standalone_mode=True)
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else ExitCode.OK if e.code is None else 1
    except KeyboardInterrupt:
        status = ExitCode.INTERRUPTED
    except Exception as e:  # noqa: BLE001 - the last place before the interpreter's own report
        status = _explain(e, debug=debug)
    if status in (ExitCode.INTERRUPTED, ExitCode.TERMINATED):
        say("error: interrupted; nothing was published.")
    if sys.stdout is not None:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
    sys.exit(int(status or 0))


def say(line: str) -> None:
    """One line for people, on stderr."""
    typer.echo(clean(line), err=True)


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
        OutputError: One exists and `force` is false, is a folder, or its folder is missing.
    """
    for file in files:
        if file is None:
            continue
        if file.is_dir():
            raise OutputError(f"{file}: is a folder, expected the name of a file.")
        if not file.absolute().parent.is_dir():
            raise OutputError(f"{file}: its folder does not exist. Create it first.")
        if file.exists() and not force:
            raise OutputError(f"{file}: exists already. Choose another name, or use --force.")


@contextlib.contextmanager
def progress_shown(what: str) -> Iterator[Progress]:
    """A progress bar with an estimate on a terminal's stderr, a line per step anywhere else."""
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


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(ExitCode.TERMINATED)


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
    known = isinstance(error, VnnifyError)
    if debug or not known:
        traceback.print_exception(error)
    if isinstance(error, VnnifyError):
        say(f"error: {error}")
        return error.exit_code
    say(f"error: this is a bug in vnnify: {type(error).__name__}: {error}")
    return ExitCode.BUG


def _runtimes(asked: str) -> list[str]:
    if asked:
        names = [n.strip() for n in asked.split(",") if n.strip()]
        for name in names:
            find_runtime(name).version()
        return list(dict.fromkeys(names))
    installed = []
    for name, runtime in RUNTIMES.items():
        with contextlib.suppress(UnfitError):
            runtime.version()
            installed.append(name)
    return installed


def _variants(
    models: list[Model], runtimes: list[str], device: str, threads: int, batch: int
) -> list[Variant]:
    """Every model in every runtime that serves the device."""
    _refuse_unknown_device(device)
    if device == "cuda":
        runtimes = [r for r in runtimes if r == "onnxruntime"]
    if not runtimes:
        raise UnfitError(f"no runtime for device {device!r}: pip install onnxruntime")
    stems = [m.path.stem for m in models]
    names = stems if len(set(stems)) == len(stems) else [str(m.path) for m in models]
    if len(set(names)) < len(names):
        raise UsageError("the same model is given twice; noise is measured without that.")
    return [
        Variant(f"{name}, {runtime}", model, runtime, device, threads, batch)
        for runtime in runtimes
        for name, model in zip(names, models, strict=True)
    ]


def _feeds(model: Model, data: Path | None, batch: int, seed: int) -> list[Feeds]:
    if data is not None:
        return read_feeds(data, model, batch=batch)
    return synthetic_feeds(model, batch=batch, seed=seed, count=_SYNTHETIC)


def _refuse_unknown_device(device: str) -> None:
    if device not in ("cpu", "cuda"):
        raise UsageError(f"unknown device {device!r}; known: cpu, cuda.")


def _not_measured(machine: Machine, device: str) -> list[str]:
    if device == "cuda":
        return []
    return [f"GPU: not measured: {machine.no_gpu_reason or 'not asked for (--device cuda)'}."]


def _write(report: BenchReport, out: Path | None, html: Path | None, markdown: Path | None) -> None:
    if out is not None:
        atomic_write(out, dump(report))
    for path, format_ in ((html, "html"), (markdown, "markdown")):
        if path is not None:
            atomic_write(path, render(bench_document(report), format_).encode())


def _diagnosis(machine: Machine) -> Document:
    missing = [f"{n}: {c}" for n, c in _EXTRAS.items() if n not in machine.packages]
    saturating = [n for n, v in machine.canaries.items() if v == "saturating"]
    notes = [Paragraph(f"Not installed, optional: {m}") for m in missing]
    if saturating:
        notes.append(
            Paragraph(
                f"INT8 products saturate here in {', '.join(saturating)}: a model made for VNNI "
                "gives other answers on this CPU than on its target.",
                "warning",
            )
        )
    vnni = "has" if machine.isa_class in _CLASSES["vnni"] else "has no"
    return Document(
        title="vnnify doctor",
        verdict=Banner(
            "info",
            f"class {machine.isa_class}: {vnni} fast exact INT8; {machine.threads} threads; "
            f"GPU: {', '.join(machine.gpus) or 'none'}",
        ),
        sections=(Section("Found", (machine_table(machine), *notes)),),
    )
