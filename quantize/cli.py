"""The command `vnnify`; its `bench` and `doctor` come from `bench`."""

import shlex
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from bench.cli import app as bench_app
from bench.cli import emit, guard, refuse_existing, say
from bench.errors import ExitCode, OutputError, UsageError
from bench.isolate import run_isolated
from bench.render import render
from bench.store import atomic_write, dump, load, publish, staging_for, write_manifest

# Nothing else of `quantize` is imported before a command runs: --help has to be instant.
if TYPE_CHECKING:
    from quantize.images import Preprocessing
    from quantize.report import Report
    from quantize.sources.seam import ModelSpec

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Trained FP32 models to INT8 models that are proved accurate and fast on CPUs.",
)
app.registered_commands += bench_app.registered_commands

_MODEL = "An .onnx file, a torch.export .pt2, package.module:factory or file.py:factory."
_DATA = (
    "An .npz (one array per input, first axis = samples, optional `labels`), a folder of .npy or "
    ".npz samples, a folder of images by class, or file.py:function yielding (feeds, label)."
)
_METRIC = (
    "top1, top5, mae, mse, cosine (to FP32's outputs), agreement, or file.py:function, called as "
    "function(outputs, labels). Chosen by the labels where it is left out."
)
_DROP = "1pt: percentage points of a 0..1 metric; 1%: of FP32's value; 0.1abs: the metric's unit."


class _Configured(TyperCommand):
    """A command whose options default to what vnnify.toml says; the command line wins."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the configuration, unless only help is wanted."""
        from quantize.config import read_config

        if "--help" not in args:
            ctx.default_map = read_config(Path.cwd()).defaults(ctx.info_name)
        return super().parse_args(ctx, args)


@app.command(cls=_Configured)
def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL)],
    data: Annotated[str, typer.Option(help=_DATA)],
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
    metric: Annotated[str | None, typer.Option(help=_METRIC)] = None,
    output: Annotated[str | None, typer.Option(help="The output that the metric scores.")] = None,
    max_drop: Annotated[
        str | None, typer.Option(help=f"{_DROP} Default: 1pt, or 1% where the metric has no 0..1.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="One-sided, of the verdict.")] = 0.95,
    inconclusive: Annotated[
        str, typer.Option(help="fail, warn or pass: what too few samples count as.")
    ] = "fail",
    target: Annotated[
        str,
        typer.Option(help="auto, portable (right on every x86 CPU), vnni, amx or avx2."),
    ] = "auto",
    objective: Annotated[
        str, typer.Option(help="latency refuses what is slower than FP32; size does not.")
    ] = "latency",
    runtime: Annotated[
        str, typer.Option(help="Comma-separated runtimes that may serve; default: all installed.")
    ] = "",
    threads: Annotated[int, typer.Option(min=0, help="0: all that are granted.")] = 0,
    recipe: Annotated[
        Path | None, typer.Option(help="Replay this recipe.toml instead of searching.")
    ] = None,
    budget: Annotated[
        str, typer.Option(help="As in 90s, 10m, 2h: then the search keeps the best it has.")
    ] = "10m",
    rounds: Annotated[int, typer.Option(min=1, help="Fresh processes per timed variant.")] = 5,
    seconds: Annotated[float, typer.Option(help="Sampling time of one such process.")] = 0.3,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    trust_model: Annotated[
        bool, typer.Option("--trust-model", help="Open a file that could run code.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output folder.")] = False,
    json: Annotated[bool, typer.Option("--json", help="The report as JSON on stdout.")] = False,
) -> None:
    """Make an INT8 model of a trained FP32 model, judge it, and time it."""
    from quantize.job import DataSpec, Effort, Job, Limits
    from quantize.options import (
        between,
        checked_tolerance,
        names,
        one_of,
        parse_budget,
        parse_states,
    )
    from quantize.report import Report

    job = Job(
        model=_model(model, weights, inputs, trust=trust_model),
        data=DataSpec(
            source=data,
            calibration=calibration,
            calibration_count=calibration_samples,
            limit=limit,
            preprocessing=_preprocessing(),
            states=parse_states(state or []),
            seed=seed,
        ),
        limits=Limits(
            metric=metric,
            output=output,
            max_drop=checked_tolerance(max_drop),
            confidence=between("--confidence", confidence, 0.5, 1),
            inconclusive=one_of("--inconclusive", inconclusive, ("fail", "warn", "pass")),
            objective=one_of("--objective", objective, ("latency", "size")),
        ),
        effort=Effort(
            target=target,
            runtimes=names(runtime),
            threads=threads,
            rounds=rounds,
            seconds=between("--seconds", seconds, 0, 3600),
            recipe=recipe,
            budget_s=parse_budget(budget),
        ),
        command=_typed(),
    )
    with staging_for(out, force=force) as staging:
        raw = run_isolated(
            "quantize.cli:work",
            {"job": dump(job).decode(), "staging": str(staging)},
            scratch=staging,
            name="quantizing",
        )
        report = load(Report, (staging / raw).read_bytes(), raw)
        _publish(report, staging, out, force=force)
    emit(dump(report).decode() if json else render(_summary(report, out), "text"))
    if inconclusive == "warn" and report.conclusion.outcome == "inconclusive":
        say(f"warning: shipped without certainty: {report.conclusion.headline}")
    _end(report.conclusion.exit_code, f"files: {out}")


def work(job: dict[str, Any]) -> str:
    """The child process of `quantize`: native code runs here, where a crash loses nothing."""
    import shutil

    from quantize.job import Job
    from quantize.pipeline import run
    from quantize.progress import progress_for

    staging = Path(job["staging"])
    with progress_for(sys.stderr) as progress:
        report = run(load(Job, job["job"].encode(), "job"), staging, progress)
    shutil.rmtree(staging / "scratch", ignore_errors=True)
    (staging / "report.json").write_bytes(dump(report))
    return "report.json"


def _publish(report: "Report", staging: Path, out: Path, *, force: bool) -> None:
    shown = _relocated(report, out)
    (staging / "report.html").write_text(render(shown, "html"), encoding="utf-8")
    (staging / "report.md").write_text(render(shown, "markdown"), encoding="utf-8")
    (staging / "report.junit.xml").write_text(render(shown, "junit"), encoding="utf-8")
    write_manifest(staging, {"outcome": report.conclusion.outcome, "command": report.command})
    publish(staging, out, force=force)


def _summary(report: "Report", out: Path) -> Any:
    from quantize.document import summary

    shown = replace(report, int8=replace(report.int8, path=out / report.int8.path))
    return summary(shown, str(out))


def _relocated(report: "Report", out: Path) -> Any:
    """The report's document, naming the model by the path at which a reader finds it."""
    from quantize.document import document

    return document(replace(report, int8=replace(report.int8, path=out / report.int8.path)))


@app.command(cls=_Configured)
def gate(
    fp32: Annotated[Path, typer.Argument(metavar="FP32", help="The baseline, ONNX.")],
    int8: Annotated[Path, typer.Argument(metavar="INT8", help="The candidate, ONNX.")],
    data: Annotated[str, typer.Option(help=_DATA)],
    max_drop: Annotated[str, typer.Option(help=_DROP)],
    metric: Annotated[str | None, typer.Option(help=_METRIC)] = None,
    output: Annotated[str | None, typer.Option(help="The output that the metric scores.")] = None,
    confidence: Annotated[float, typer.Option(help="One-sided, of the verdict.")] = 0.95,
    inconclusive: Annotated[str, typer.Option(help="fail, warn or pass.")] = "fail",
    min_speedup: Annotated[
        str | None, typer.Option(help="As in 1.2x: refuse unless INT8 is surely that much faster.")
    ] = None,
    state: Annotated[list[str] | None, typer.Option(help="OUTPUT:INPUT")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Read at most so many samples.")] = None,
    runtime: Annotated[str, typer.Option(help="Where both run.")] = "onnxruntime",
    native: Annotated[
        bool, typer.Option("--native", help="Judge this CPU's own arithmetic instead of VNNI's.")
    ] = False,
    threads: Annotated[int, typer.Option(min=0, help="0: all that are granted.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="The report as JSON on stdout.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the report as JSON.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write HTML.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite those files.")] = False,
) -> None:
    """Judge any INT8 model against its FP32 one. Exits 0, 3 (refused) or 4 (inconclusive)."""
    from quantize.gating import GateReport, gate_document
    from quantize.job import DataSpec, GateJob, Limits
    from quantize.options import (
        between,
        checked_tolerance,
        one_of,
        parse_speedup,
        parse_states,
    )

    refuse_existing([out, junit, markdown, html], force=force)
    job = GateJob(
        fp32=fp32,
        int8=int8,
        data=DataSpec(
            source=data,
            limit=limit,
            preprocessing=_preprocessing(),
            states=parse_states(state or []),
        ),
        limits=Limits(
            metric=metric,
            output=output,
            max_drop=checked_tolerance(max_drop),
            confidence=between("--confidence", confidence, 0.5, 1),
            inconclusive=one_of("--inconclusive", inconclusive, ("fail", "warn", "pass")),
        ),
        min_speedup=parse_speedup(min_speedup),
        runtime=runtime,
        native=native,
        threads=threads,
        command=_typed(),
    )
    with tempfile.TemporaryDirectory(prefix="vnnify-gate-") as folder:
        raw = run_isolated(
            "quantize.cli:gate_work",
            {"job": dump(job).decode(), "scratch": folder},
            scratch=Path(folder),
            name="judging",
        )
    report = load(GateReport, raw.encode(), "the gate's answer")
    shown = gate_document(report)
    for file, form in ((junit, "junit"), (markdown, "markdown"), (html, "html")):
        if file is not None:
            atomic_write(file, render(shown, form).encode())
    if out is not None:
        atomic_write(out, dump(report))
    emit(dump(report).decode() if json else render(shown, "text"))
    _end(report.exit_code, "")


def gate_work(job: dict[str, Any]) -> str:
    """The child process of `gate`."""
    from quantize.gating import run_gate
    from quantize.job import GateJob
    from quantize.progress import progress_for

    with progress_for(sys.stderr) as progress:
        report = run_gate(load(GateJob, job["job"].encode(), "job"), Path(job["scratch"]), progress)
    return dump(report).decode()


@app.command()
def convert(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL)],
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
    """Convert a trained model to one clean FP32 ONNX file, compared with its source."""
    refuse_existing([out], force=force)
    spec = _model(model, weights, inputs, trust=trust_model)
    try:
        scratch = tempfile.TemporaryDirectory(prefix=".vnnify-convert-", dir=out.absolute().parent)
    except OSError as e:
        raise OutputError(f"{out}: cannot be written: {e.strerror}. Choose another --out.") from e
    with scratch as folder:
        answer = run_isolated(
            "quantize.cli:convert_work",
            {"spec": dump(spec).decode(), "data": data, "folder": folder, "name": out.name},
            scratch=Path(folder),
            name="converting",
        )
        for name in answer["files"]:
            (Path(folder) / "clean" / name).replace(out.absolute().parent / name)
    for note in answer["notes"]:
        say(f"note: {note}")
    emit(f"{out}: {answer['size_bytes']:,} bytes, sha256 {answer['sha256']}\n")


def convert_work(job: dict[str, Any]) -> dict[str, Any]:
    """The child process of `convert`."""
    from quantize.converting import convert_file
    from quantize.sources.seam import ModelSpec

    spec = load(ModelSpec, job["spec"].encode(), "spec")
    return convert_file(spec, job["data"], Path(job["folder"]), job["name"], _preprocessing())


@app.command()
def report(
    file: Annotated[Path, typer.Argument(metavar="REPORT.json", help="From `vnnify quantize`.")],
    html: Annotated[Path | None, typer.Option(help="Write HTML.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite those files.")] = False,
) -> None:
    """Render a stored report; without an option, as text."""
    from quantize.report import Report

    refuse_existing([html, markdown, junit], force=force)
    try:
        data = file.read_bytes()
    except OSError as e:
        raise UsageError(f"{file}: cannot be read: {e.strerror}.") from e
    stored = _relocated(load(Report, data, file), file.parent)
    for target, form in ((html, "html"), (markdown, "markdown"), (junit, "junit")):
        if target is not None:
            atomic_write(target, render(stored, form).encode())
    if html is None and markdown is None and junit is None:
        emit(render(stored, "text"))


@app.command()
def init(
    force: Annotated[bool, typer.Option("--force", help="Overwrite vnnify.toml.")] = False,
) -> None:
    """Write a commented vnnify.toml into the current folder."""
    from quantize.config import TEMPLATE

    file = Path("vnnify.toml")
    refuse_existing([file], force=force)
    atomic_write(file, TEMPLATE.encode())
    say(f"wrote {file}; every key in it stands for a command-line option")


def main() -> None:
    """Entry point of the console script."""
    guard(app)


def _end(exit_code: int, last: str) -> None:
    if last:
        say(last)
    if exit_code != ExitCode.OK:
        raise SystemExit(int(exit_code))


def _typed() -> str:
    return shlex.join(["vnnify", *sys.argv[1:]])


def _model(
    text: str, weights: Path | None, inputs: list[str] | None, *, trust: bool
) -> "ModelSpec":
    from quantize.sources.seam import ModelSpec, parse_input

    return ModelSpec(text, weights, tuple(parse_input(i) for i in inputs or ()), trust)


def _preprocessing() -> "Preprocessing | None":
    """From `[tool.vnnify.preprocessing]` or `[preprocessing]` of vnnify.toml; images need it."""
    from quantize.config import read_config

    return read_config(Path.cwd()).preprocessing
