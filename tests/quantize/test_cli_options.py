"""Errors of the command line cost nothing: they are told before any work, with their status."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.errors import ExitCode
from quantize import cli, pipeline
from quantize.commands import gate as gate_command
from quantize.commands import quantize as quantize_command
from quantize.commands import work

QUANTIZE = ("quantize", "m.onnx", "--data", "d.npz")
GATE = ("gate", "a.onnx", "b.onnx", "--data", "d.npz", "--max-drop", "1pt")

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """A command line to its status and what it says on stderr; the work itself is an error."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the work began")

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["vnnify", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as caught:
                cli.main()
        finally:
            signal.signal(signal.SIGTERM, before)
        assert isinstance(caught.value.code, int)
        return caught.value.code, capfd.readouterr().err

    # `quantize` reads its options in the process that does the work.
    monkeypatch.setattr(quantize_command, "run_isolated", lambda _, o, **__: work.quantize(o))
    monkeypatch.setattr(pipeline, "run", refuse)
    monkeypatch.setattr(gate_command, "run_isolated", refuse)
    monkeypatch.chdir(tmp_path)
    return run


def test_the_process_that_works_starts_before_the_options_are_read(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    class Watched(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Watched)
    status, _ = run(*QUANTIZE, "--no-such-option")
    assert status == ExitCode.USAGE
    assert [child.returncode for child in started] == [-signal.SIGKILL]
    for other in (("quantize", "--help"), (*GATE, "--no-such-option"), ()):
        run(*other)
    assert len(started) == 1


@pytest.mark.parametrize("command", [QUANTIZE, GATE])
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--state", "hidden", "--state 'hidden': expected OUTPUT:INPUT"),
        ("--state", ":h", "expected OUTPUT:INPUT"),
        ("--state", "h:", "expected OUTPUT:INPUT"),
        ("--inconclusive", "maybe", "expected one of fail, warn, pass"),
        ("--inconclusive", "wran", "Did you mean 'warn'?"),
        ("--max-drop", "1", "tolerance '1' has no unit. Write 1pt"),
        ("--max-drop", "0.01", "has no unit"),
        ("--max-drop", "-1pt", "out of range"),
        ("--max-drop", "one", "not a number with a unit"),
        ("--threads", "-1", "--threads"),
        ("--limit", "1", "--limit"),
    ],
)
def test_a_bad_value_is_a_usage_error(
    run: Run, command: tuple[str, ...], option: str, value: str, message: str
) -> None:
    status, err = run(*command, option, value)
    assert status == ExitCode.USAGE
    assert message in err
    assert "Traceback" not in err
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*QUANTIZE, "--objective", "size,latency"), "--objective"),
        ((*QUANTIZE, "--input", "x"), "input 'x': expected name:type[axes]"),
        ((*QUANTIZE, "--state", "a:x", "--state", "b:x"), "'b:x': one of the two was named"),
        ((*GATE, "--min-speedup", "1.2"), "--min-speedup '1.2': expected a factor with its unit"),
        ((*GATE, "--min-speedup", "0x"), "expected a factor"),
        ((*GATE, "--min-speedup", "infx"), "expected a factor"),
        (("quantize", "m.onnx"), "--data"),
        (("quantise", "m.onnx"), "quantise"),
    ],
)
def test_so_is_every_other(run: Run, arguments: tuple[str, ...], message: str) -> None:
    status, err = run(*arguments)
    assert status == ExitCode.USAGE
    assert message in err


def test_an_existing_folder_is_kept(run: Run, tmp_path: Path) -> None:
    mine = tmp_path / "vnnify-out" / "mine"
    mine.parent.mkdir()
    mine.write_text("mine")
    for options in ((), ("--force",)):
        status, err = run(*QUANTIZE, *options)
        assert status == ExitCode.OUTPUT
        assert "vnnify-out" in err
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("option", ["--out", "--junit", "--markdown", "--html"])
def test_an_existing_report_of_gate_is_kept(run: Run, tmp_path: Path, option: str) -> None:
    (tmp_path / "report").write_text("mine")
    status, err = run(*GATE, option, "report")
    assert status == ExitCode.OUTPUT
    assert "report" in err
    assert (tmp_path / "report").read_text() == "mine"


def test_two_reports_do_not_share_a_file(run: Run) -> None:
    status, err = run(*GATE, "--junit", "report", "--html", "./report")
    assert (status, "two options name this file" in err) == (ExitCode.OUTPUT, True)


@pytest.mark.parametrize("mine", ["a.onnx", "b.onnx", "d.npz", "s.csv", "lock.json"])
def test_no_report_is_written_over_an_input(run: Run, tmp_path: Path, mine: str) -> None:
    (tmp_path / mine).write_text("mine")
    inputs = ("--slices", "s.csv", "--baseline", "lock.json", "--force")
    status, err = run(*GATE, *inputs, "--html", tmp_path / mine)
    assert (status, "is an input of this command" in err) == (ExitCode.OUTPUT, True)
    assert (tmp_path / mine).read_text() == "mine"


@pytest.mark.parametrize("command", [QUANTIZE, GATE])
@pytest.mark.parametrize("where", ["nowhere/lock.json", "."])
def test_a_baseline_that_cannot_be_updated_is_told_before_the_work(
    run: Run, command: tuple[str, ...], where: str
) -> None:
    status, err = run(*command, "--update-baseline", "--baseline", where)
    assert (status, where in err) == (ExitCode.OUTPUT, True)


def test_a_wrong_value_of_the_configuration_is_traced_to_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "vnnify.toml").write_text('threads = "many"\n')
    status, err = run(*GATE)
    assert (status, "vnnify.toml" in err) == (ExitCode.USAGE, True)
    status, err = run(*GATE, "--threads", "many")
    assert (status, "vnnify.toml" in err) == (ExitCode.USAGE, False)


def test_an_existing_model_of_convert_is_kept(run: Run, tmp_path: Path) -> None:
    (tmp_path / "fp32.onnx").write_text("mine")
    assert run("convert", "m.pt2", "-o", "fp32.onnx")[0] == ExitCode.OUTPUT
    assert (tmp_path / "fp32.onnx").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_told_by_convert(run: Run) -> None:
    status, err = run("convert", "m.pt2", "-o", "/proc/fp32.onnx")
    assert (status, "/proc/fp32.onnx: cannot be written" in err) == (ExitCode.OUTPUT, True)


def test_good_options_reach_the_work(run: Run) -> None:
    """Or else every test here passes with a command line that refuses everything."""
    for command in (QUANTIZE, GATE):
        status, err = run(*command, "--state", "a:b", "--max-drop", "1%")
        assert (status, "the work began" in err) == (ExitCode.BUG, True)


@pytest.mark.parametrize(
    "command",
    [
        ("report", "nope.json"),
        ("inspect", "nope.onnx"),
        ("bench", "nope.onnx"),
        ("bench", "nope.onnx", "--prices", "nope.toml"),
        ("bench", "nope.onnx", "--merge", "nope.json"),
        ("bench", "nope.onnx", "--predict-for", "nope.json"),
        ("convert", "nope.onnx", "-o", "out.onnx"),
    ],
    ids=" ".join,
)
def test_a_file_that_is_not_there_is_an_input_error(run: Run, command: tuple[str, ...]) -> None:
    status, err = run(*command)
    assert status == ExitCode.INPUT
    assert "nope" in err.splitlines()[-1]
    assert not list(Path.cwd().iterdir())
