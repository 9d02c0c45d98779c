"""What several commands take: texts of options, their defaults from vnnify.toml, what they say."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer import BadParameter
from typer.core import TyperCommand

from bench.cli import refuse_existing, say
from bench.errors import ExitCode, OutputError, UsageError

# Nothing else of `quantize` is imported before a command runs: --help has to be instant.
if TYPE_CHECKING:
    from bench.render import Document
    from quantize.lock import Lock

MODEL = "An .onnx file, a torch.export .pt2, package.module:factory or file.py:factory."
DATA = (
    "An .npz (one array per input, first axis = samples, optional `labels`), a folder of .npy or "
    ".npz samples, a folder of images by class, or file.py:function yielding (feeds, label)."
)


class Configured(TyperCommand):
    """A command whose options default to what vnnify.toml says; the command line wins."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the configuration, unless only help is wanted."""
        from quantize.config import read_config

        if "--help" in args:
            return super().parse_args(ctx, args)
        config, given = read_config(Path.cwd()), tuple(args)
        ctx.default_map = config.defaults(ctx.info_name)
        try:
            return super().parse_args(ctx, args)
        except BadParameter as e:
            name = e.param.name if e.param is not None else None
            typed = any(a.partition("=")[0] == f"--{name}".replace("_", "-") for a in given)
            if name in ctx.default_map and not typed:
                e.message += f" It stands in {config.where}."
            raise


def end(exit_code: int, last: str) -> None:
    """Say the last line, and leave with a status that is not 0."""
    if last:
        say(last)
    if exit_code != ExitCode.OK:
        raise SystemExit(int(exit_code))


def typed() -> str:
    """The command line, for reports."""
    return shlex.join(["vnnify", *sys.argv[1:]])


def tell_github(document: "Document", exit_code: int) -> None:
    """Annotations for what did not pass, and the report in the job summary if there is one.

    Args:
        document: The report.
        exit_code: Of the verdict: that of a model that did not pass stays what it is.

    Raises:
        OutputError: The summary cannot be written, and the model passed.
    """
    from bench.render import github_annotations, render

    for line in github_annotations(document.checks):
        # On stderr, since stdout may hold a report; the runner reads both.
        print(line, file=sys.stderr)  # noqa: T201 - `say` would break the command's escapes
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        try:
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(render(document, "markdown") + "\n")
        except OSError as e:
            problem = f"job summary {summary}: cannot be written: {e.strerror}."
            if exit_code == ExitCode.OK:
                raise OutputError(problem) from e
            say(f"warning: {problem}")


def refuse_no_baseline(baseline: Path | None, *, update: bool) -> None:
    """Refuse to update a baseline that is not named, or cannot be written.

    Raises:
        UsageError: It is not named.
        OutputError: It is a folder, or its folder does not exist.
    """
    if not update:
        return
    if baseline is None:
        raise UsageError("--update-baseline: say which file, as in --baseline vnnify.lock.json.")
    refuse_existing([baseline], force=True)


def refuse_inputs(outputs: Sequence[Path | None], inputs: Sequence[Path | str | None]) -> None:
    """Refuse to write over what is read, whatever --force says.

    Raises:
        OutputError: A file to write is one of the inputs.
    """
    read = {Path(i).resolve() for i in inputs if i is not None}
    for file in outputs:
        if file is not None and file.resolve() in read:
            raise OutputError(f"{file}: is an input of this command. Choose another name.")


def update_baseline(path: Path, lock: "Lock", exit_code: int) -> None:
    """Write the baseline of a model that passes; a worse one must not become the measure."""
    from quantize.lock import write_lock

    if exit_code != ExitCode.OK:
        say(f"{path}: not updated, because the model did not pass")
        return
    write_lock(path, lock)
    say(f"{path}: updated; commit it")
    if busy := [e.runtime for e in lock.entries if e.disturbed]:
        say(
            f"{path}: no later speed is held to that in {', '.join(busy)}, since it was measured "
            "beside other work; update it where less else runs"
        )
