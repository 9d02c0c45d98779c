import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from onnx import TensorProto

from bench import cli
from bench import forecast as forecasts
from bench.cli import app, as_text, guard
from bench.errors import ExitCode, ResourceError, UnfitError, VnnifyError
from bench.forecast import Survey
from bench.machine import describe
from bench.peaks import Peaks
from bench.render import Banner, Document
from bench.report import BenchReport
from bench.store import dump, load
from bench.yardsticks import Bout, Yardsticks
from tests import tiny

ROOT = str(Path(__file__).parents[2])
QUICK = ["--rounds", "1", "--seconds", "0.01", "--runtime", "onnxruntime", "--threads", "1"]
QUICK += ["--no-peaks"]
PEAKS = Peaks(1, 1e9, 4e9, "onnxruntime", "onnxruntime", 1e9, 1)
YARDSTICKS = Yardsticks("onnxruntime", "1", 1, "", {"matrix float": 1.0})


class Cli:
    """Runs a command line as the entry point does, in this process."""

    def __init__(self, patch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.patch = patch
        self.capfd = capfd

    def __call__(self, *arguments: object, app: typer.Typer = app) -> tuple[int, str, str]:
        self.patch.setattr(sys, "argv", ["vnnify", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as caught:
                guard(app)
        finally:
            signal.signal(signal.SIGTERM, before)
        out, err = self.capfd.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capfd)


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [tiny.linear(tmp_path / "fp32.onnx"), tiny.linear(tmp_path / "int8.onnx", seed=1)]


def test_bench_writes_one_json_object_and_nothing_else(run: Cli, models: list[Path]) -> None:
    status, out, err = run("bench", *models, *QUICK, "--json")
    assert status == 0, err
    report = load(BenchReport, out.encode(), "stdout")
    names = [x.variant.name for x in report.latencies]
    assert names == ["fp32, onnxruntime", "int8, onnxruntime"]
    assert len(report.controls) == 1
    assert [c.baseline for c in report.comparisons] == names[:1]
    assert "measuring 3/3" in err


def test_bench_shows_and_writes_its_report(run: Cli, models: list[Path], tmp_path: Path) -> None:
    files = {f: tmp_path / f"r.{f}" for f in ("out", "html", "markdown")}
    options = [part for name, file in files.items() for part in (f"--{name}", file)]
    status, out, err = run("bench", *models, *QUICK, *options)
    assert status == 0, err
    assert "GPU: not measured: " in out
    assert "int8, onnxruntime" in out
    assert load(BenchReport, files["out"].read_bytes(), "f").latencies
    assert files["html"].read_text().startswith("<!")
    assert "int8, onnxruntime" in files["markdown"].read_text()


def test_text_is_as_wide_as_the_terminal_and_of_one_width_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = Document("m", Banner("info", "word " * 60))

    def widest() -> int:
        return max(map(len, as_text(told).splitlines()))

    monkeypatch.setenv("COLUMNS", "60")
    assert 90 < widest() <= 100
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert 50 < widest() <= 60


def test_existing_reports_are_refused_before_the_work(
    run: Cli, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.machine.describe", lambda: pytest.fail("the work began"))
    (tmp_path / "r.html").write_text("old")
    status, _, err = run("bench", *models, "--html", tmp_path / "r.html")
    assert (status, err.count("\n")) == (9, 1)
    assert "--force" in err
    assert run("bench", *models, "--out", tmp_path)[0] == 9
    assert run("bench", *models, "--out", tmp_path / "no" / "r.json")[0] == 9


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_work(
    run: Cli, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.machine.describe", lambda: pytest.fail("the work began"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    status, _, err = run("bench", *models, "--out", tmp_path / "r.json")
    assert status == 9
    assert "its folder cannot be written to" in err


def test_a_report_that_cannot_be_written_is_shown_all_the_same(
    run: Cli, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _data: bytes) -> None:
        raise ResourceError(f"{path}: cannot be written: No space left on device.")

    monkeypatch.setattr(cli, "atomic_write", full)
    status, out, err = run("bench", *models, *QUICK, "--no-operators", "--out", tmp_path / "r")
    assert status == 8
    assert "No space left" in err
    assert "int8, onnxruntime" in out


def test_data_is_used(run: Cli, tmp_path: Path) -> None:
    path = tiny.unary(tmp_path / "m.onnx", "Neg", TensorProto.FLOAT, ["n", "length"])
    status, _, err = run("bench", path, *QUICK)
    assert status == 6
    assert "--data" in err
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 7), np.float32))
    status, _, err = run("bench", path, *QUICK, "--batch", "2", "--data", tmp_path / "d.npz")
    assert status == 0, err


def test_models_of_one_name_are_told_apart_by_their_paths(
    run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        paths.append(tiny.linear(tmp_path / name / "model.onnx"))
    _, out, _ = run("bench", *paths, *QUICK, "--json")
    names = [x.variant.name for x in load(BenchReport, out.encode(), "stdout").latencies]
    assert names == [f"{p}, onnxruntime" for p in paths]
    status, _, err = run("bench", paths[0], paths[0], *QUICK)
    assert status == 2
    assert "given twice" in err


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (["--device", "cuda"], 7, "cannot measure on 'cuda'"),
        (["--device", "tpu"], 2, "unknown device 'tpu'"),
        (["--runtime", "abacus"], 2, "unknown runtime 'abacus'"),
        (["--runtime", "openvino", "--device", "cuda"], 7, "cannot measure on 'cuda'"),
        (["--threads", "100000"], 2, "hardware threads"),
        (["--threads", "two"], 2, "--threads takes whole numbers"),
        (["--p99", "20"], 2, "a time with its unit"),
        (["--rate", "fast"], 2, "requests per second"),
        (["--utilisation", "2"], 2, "utilisation is 2"),
        (["--batch", "0"], 2, "--batch"),
        (["--seconds", "0"], 2, "seconds"),
        (["--nonsense"], 2, "--nonsense"),
    ],
)
def test_what_cannot_be_done_is_said(
    run: Cli,
    models: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    status: int,
    says: str,
) -> None:
    if "openvino" in options:
        monkeypatch.setattr("bench.runtimes.openvino.OpenVino.version", lambda _self: "1")
    elif "cuda" in options and not describe().no_gpu_reason:
        pytest.skip("this machine has a GPU")
    found, out, err = run("bench", *models, *options)
    assert (found, out) == (status, "")
    assert says in err


def test_without_openvino_the_rest_is_measured(
    run: Cli, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    status, out, err = run("bench", models[0], *QUICK[:4], "--no-peaks", "--json")
    assert status == 0, err
    report = load(BenchReport, out.encode(), "stdout")
    assert [x.variant.runtime for x in report.latencies] == ["onnxruntime"]
    status, _, err = run("bench", models[0], "--runtime", "openvino")
    assert (status, err.count("\n")) == (7, 1)
    assert "pip install 'vnnify[openvino]'" in err


def test_doctor_fits_a_screen(run: Cli) -> None:
    status, out, err = run("doctor", "--quick")
    assert (status, err) == (0, "")
    assert "in onnxruntime" in out


def test_doctor_as_json(run: Cli) -> None:
    _, out, _ = run("doctor", "--json", "--quick")
    found = load(Survey, out.encode(), "stdout")
    assert found.machine.threads >= 1
    assert found.peaks == found.yardsticks == ()


def test_doctor_as_json_has_what_a_prediction_needs(
    run: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr("bench.peaks.machine_peaks", lambda *_: PEAKS)

    def measured(threads: tuple[int, ...], _: object) -> tuple[Yardsticks, ...]:
        asked.append(threads)
        return (YARDSTICKS,)

    monkeypatch.setattr("bench.yardsticks.measure_yardsticks", measured)
    _, out, _ = run("doctor", "--json")
    found = load(Survey, out.encode(), "stdout")
    assert (found.peaks, found.yardsticks) == ((PEAKS,), (YARDSTICKS,))
    assert asked == [(found.machine.threads, 1)]


def test_bench_predicts_for_another_machine(
    run: Cli, models: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ours = Yardsticks("onnxruntime", "1", 1, "", {"matrix float": 1.0, "other": 1.0})
    bout = Bout(ours, {0: 2.0, 1: 2.0}, {0: {"matrix float": 1.0}, 1: {"matrix float": 1.0}})
    monkeypatch.setattr(forecasts, "measure_bout", lambda *_, **__: bout)
    there = replace(ours, ms={"matrix float": 3.0, "other": 1.0})
    other = replace(describe(), cpu="Another CPU")
    (tmp_path / "other.json").write_bytes(dump(Survey(other, (), (there,))))
    asked = (*QUICK, "--no-operators")
    status, out, err = run("bench", models[0], *asked, "--predict-for", tmp_path / "other.json")
    assert status == 0, err
    assert "Predicted for Another CPU" in out
    assert "Predicted, not measured." in out
    (tmp_path / "bare.json").write_bytes(dump(Survey(other)))
    status, _, err = run("bench", models[0], *asked, "--predict-for", tmp_path / "bare.json")
    assert (status, err.count("\n")) == (5, 1)
    assert "without --quick" in err


def _machine(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    import dataclasses

    machine = dataclasses.replace(describe(), **changes)
    monkeypatch.setattr("bench.machine.describe", lambda: machine)


@pytest.mark.parametrize(
    ("flags", "canaries", "target", "status"),
    [
        (("avx2", "avx512_vnni"), {"onnxruntime": "exact"}, "vnni", 0),
        (("avx2", "avx512_vnni"), {"onnxruntime": "exact"}, "amx", 7),
        (("avx2",), {"onnxruntime": "saturating"}, "vnni", 7),
        (("avx2",), {"onnxruntime": "saturating"}, "avx2", 0),
        (("avx2",), {"onnxruntime": "saturating"}, "portable", 0),
        ((), {}, "auto", 0),
        ((), {}, "z80", 2),
    ],
)
def test_doctor_tells_whether_a_target_can_be_used(
    run: Cli,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    canaries: dict[str, str],
    target: str,
    status: int,
) -> None:
    _machine(monkeypatch, flags=flags, canaries=canaries, packages={})
    found, out, err = run("doctor", "--quick", "--target", target)
    assert found == status, err
    assert err.count("\n") == (status != 0)
    if status != 2:
        assert ("saturate here" in out) == ("saturating" in canaries.values())
        assert "pip install 'vnnify[torch]'" in out


def test_doctor_tells_whether_a_gpu_can_be_used(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, gpus=(), no_gpu_reason="none here")
    status, _, err = run("doctor", "--quick", "--device", "cuda")
    assert (status, err) == (7, "error: device 'cuda' cannot be used here: none here.\n")
    _machine(monkeypatch, gpus=("H100",), no_gpu_reason="")
    assert run("doctor", "--quick", "--device", "cuda")[0] == 0


def _failing(error: BaseException) -> typer.Typer:
    failing = typer.Typer()

    @failing.command()
    def command() -> None:
        raise error

    return failing


@pytest.mark.parametrize(
    "error", [c("what\nwhere") for c in VnnifyError.__subclasses__() if c.__module__ != __name__]
)
def test_errors_are_one_line_and_their_status(run: Cli, error: VnnifyError) -> None:
    status, out, err = run(app=_failing(error))
    assert (status, out, err) == (error.exit_code, "", "error: what where\n")


def test_names_from_a_model_cannot_reach_the_terminal(run: Cli) -> None:
    _, _, err = run(app=_failing(UnfitError("bad \x1b[31mname\x07")))
    assert "\x1b" not in err
    assert "\x07" not in err


def test_bugs_keep_their_traceback(run: Cli) -> None:
    status, _, err = run(app=_failing(ZeroDivisionError("oh")))
    assert status == ExitCode.BUG
    assert "Traceback" in err
    assert err.splitlines()[-1] == "error: this is a bug in vnnify: ZeroDivisionError: oh"


def test_debug_shows_where_an_error_came_from(run: Cli) -> None:
    status, _, err = run("--debug", app=_failing(ResourceError("oh")))
    assert status == 8
    assert "Traceback" in err
    assert err.splitlines()[-1] == "error: oh"


def half_imported() -> ImportError:
    error = ImportError("initialization failed")
    error.__cause__ = KeyboardInterrupt()
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), 130),
        (half_imported(), 130),
        (SystemExit(143), 143),
        (SystemExit(None), 0),
        (SystemExit("text"), 1),
        (typer.Exit(3), 3),
    ],
)
def test_other_ends(run: Cli, error: BaseException, status: int) -> None:
    found, _, err = run(app=_failing(error))
    assert found == status
    # What ends with a status of its own has told why; SIGTERM is told below.
    assert ("interrupted" in err) == isinstance(error, KeyboardInterrupt | ImportError)


def test_help_needs_no_runtime() -> None:
    code = (
        "import sys\n"
        "for name in ('onnx', 'onnxruntime', 'openvino', 'torch'): sys.modules[name] = None\n"
        "from bench.cli import app, guard\n"
        "guard(app)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "bench", "--help"], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert done.returncode == 0
    assert b"--rounds" in done.stdout


@pytest.mark.parametrize(
    ("shell", "says"),
    [(">&-", b"stdout: is closed"), (">/dev/full", b"stdout: cannot be written: No space left")],
)
def test_an_output_that_takes_nothing_is_told(shell: str, says: bytes) -> None:
    code = (
        "from bench.cli import emit, guard; import typer; app = typer.Typer()\n"
        "app.command()(lambda: emit('x')); guard(app)"
    )
    done = subprocess.run(
        ["sh", "-c", f'"$0" -c "$1" {shell}', sys.executable, code],
        cwd=ROOT,
        stderr=subprocess.PIPE,
    )
    assert done.returncode == ExitCode.OUTPUT
    assert says in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_terminal_without_unicode_gets_question_marks() -> None:
    code = "from bench.cli import emit; emit('2 \\u00d7 3\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stdout) == (0, b"2 ? 3\n")


def test_a_name_that_is_not_utf8_is_refused(run: Cli) -> None:
    status, out, err = run("bench", "m\udcff.onnx", *QUICK)
    assert (status, out) == (ExitCode.USAGE, "")
    assert "not UTF-8" in err


def test_memory_that_runs_out_is_no_bug(run: Cli) -> None:
    status, _, err = run(app=_failing(MemoryError("1 TiB")))
    assert status == ExitCode.RESOURCE
    assert "out of memory: 1 TiB" in err


def test_a_disk_that_is_full_is_no_bug(run: Cli) -> None:
    status, _, err = run(app=_failing(OSError(errno.ENOSPC, "No space left on device")))
    assert status == ExitCode.RESOURCE
    assert "No space left on device. Free space there" in err
    assert "Traceback" not in err


def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    code = (
        "from bench.cli import emit, guard; import typer\n"
        "app = typer.Typer()\n"
        "@app.command()\n"
        "def many() -> None: emit('x' * 10_000_000)\n"
        "guard(app)"
    )
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (ExitCode.OUTPUT, b"")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_the_work_and_its_processes(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    model = tiny.linear(tmp_path / "m.onnx")
    code = "from bench.cli import app, guard; guard(app)"
    command = [sys.executable, "-c", code, "bench", str(model)]
    options = ["--runtime", "onnxruntime", "--seconds", "30"]
    running = subprocess.Popen(
        [*command, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    while not list(tmp_path.glob("vnnify-bench-*/feeds.npz")) or not children.read_text():
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(number)
    out, err = running.communicate(timeout=20)
    assert (running.returncode, out) == (status, "")
    assert err.splitlines()[-1] == "error: interrupted; nothing was published."
    assert list(tmp_path.iterdir()) == [model]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_signal_after_the_first_round_keeps_what_was_measured(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    model = tiny.linear(tmp_path / "m.onnx")
    code = "from bench.cli import app, guard; guard(app)"
    command = [sys.executable, "-c", code, "bench", str(model), "--out", str(tmp_path / "o.json")]
    options = ["--runtime", "onnxruntime", "--seconds", "0.2", "--rounds", "500", "--no-peaks"]
    running = subprocess.Popen(
        [*command, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    for line in running.stderr:
        # The model and its control have had a round each.
        if line.startswith("measuring 4/"):
            break
    running.send_signal(number)
    out, err = running.communicate(timeout=30)
    assert running.returncode == status
    assert "the rest: not measured: interrupted." in " ".join(out.split())
    assert "error" not in err
    assert json.loads((tmp_path / "o.json").read_text())["kind"] == "BenchReport"


def test_a_terminal_gets_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with cli.progress_shown("measuring") as progress:
        progress(1, 2, "[bold]x\x07")
    assert "\x07" not in capsys.readouterr().err


def test_the_report_is_json_even_for_odd_names(run: Cli, tmp_path: Path) -> None:
    path = tiny.linear(tmp_path / 'we"ird é.onnx')
    _, out, _ = run("bench", path, *QUICK, "--json")
    assert json.loads(out)["kind"] == "BenchReport"


def test_a_working_folder_that_is_gone_is_no_bug(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = f"import os, sys; sys.path.insert(0, {ROOT!r}); os.rmdir({str(gone)!r})\n"
    code += "from bench.cli import app, guard; guard(app)"
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor"], cwd=gone, stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.count("\n") == 1
    assert "the working folder is gone" in done.stderr
