import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.cli import Given, bench
from bench.errors import InputError, UsageError
from bench.planning import Plan
from bench.store import load
from quantize.commands import app
from quantize.commands import gate as gate_command
from quantize.commands import quantize as quantize_command
from quantize.commands.asked import asked_job
from quantize.config import BENCH_OPTIONS, BENCH_SWITCHES, OPTIONS, TEMPLATE, Config, read_config
from quantize.images import Preprocessing
from quantize.job import GateJob, Job


class _StoppedError(InputError):
    """Raised where the work would begin."""


class Asked:
    """Runs a command line up to the work, and says what the work was asked."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.jobs: list[dict[str, Any]] = []
        for module in (quantize_command, gate_command):
            patch.setattr(module, "run_isolated", self._stop)
        patch.setattr(sys, "argv", ["vnnify"])
        patch.chdir(folder)

    def _stop(self, target: str, order: dict[str, Any], **_: Any) -> None:
        order = json.loads(json.dumps(order))
        if "asked" in order:
            _job(order)  # Options that make no sense are told there.
        self.jobs.append(order)
        raise _StoppedError(target)

    def __call__(self, *arguments: str) -> BaseException | None:
        result = CliRunner().invoke(app.app, arguments, obj=Given())
        if result.exit_code == 2:
            return UsageError(result.output)
        return result.exception

    def quantize(self, *arguments: str) -> Job:
        assert isinstance(self("quantize", "m.onnx", *arguments), _StoppedError)
        return _job(self.jobs[-1])

    def gate(self, *arguments: str) -> GateJob:
        assert isinstance(self("gate", "a.onnx", "b.onnx", *arguments), _StoppedError)
        return load(GateJob, self.jobs[-1]["job"].encode(), "job")


def _job(order: dict[str, Any]) -> Job:
    return asked_job(order["asked"], order["command"])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Asked:
    return Asked(monkeypatch, tmp_path)


def test_own_file_wins_over_the_project_file(tmp_path: Path) -> None:
    assert read_config(tmp_path) == Config({}, None, "")
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\nname = "x"\n[tool.vnnify]\nthreads = 3\n')
    assert read_config(tmp_path) == Config({"threads": 3}, None, f"{project} [tool.vnnify]")
    project.write_text('[project]\nname = "x"\n')
    assert read_config(tmp_path).options == {}
    (tmp_path / "vnnify.toml").write_text("threads = 4\n[preprocessing]\ncrop = 224\n")
    config = read_config(tmp_path)
    assert config.options == {"threads": 4}
    assert isinstance(config.preprocessing, Preprocessing)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-drop = '1pt'", r"unknown key 'max-drop'. Did you mean 'max_drop'\?"),
        ("treads = 1", r"Did you mean 'threads'\?"),
        ("[preprocessing]\ncorp = 224", r"'preprocessing.corp'. Did you mean 'crop'\?"),
        ("preprocessing = 3", "has to be a table"),
        (
            "[preprocessing]\nscale = 'x'",
            "preprocessing: scale: Input should be a valid number",
        ),
        ("[preprocessing]\nlayout = 'chw'", "preprocessing: layout: Input should be 'nchw'"),
        (
            "[preprocessing]\nresize = [1, 2, 3]",
            r"preprocessing: resize.*Input should be a valid integer",
        ),
        ("threads = [1, 2]", r"threads = \[1, 2\]: expected one text or number"),
        ("threads = true", "expected one text or number"),
        ("bench = 3", "`bench` has to be a table"),
        ("[bench]\nbatches = 1", r"unknown key 'bench.batches'. Did you mean 'batch'\?"),
        ("[bench]\nmax_drop = '1pt'", "unknown key 'bench.max_drop'"),
        ("[bench]\nno_peaks = 1", "bench.no_peaks = 1: expected true or false"),
        ("[bench]\nbatch = [1, 8]", r"bench.batch = \[1, 8\]: expected one text or number"),
        ("threads = ", "not TOML"),
        ("threads = '\xff'", "not TOML"),
    ],
)
def test_what_it_cannot_mean_is_refused_with_its_place(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "vnnify.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=message) as caught:
        read_config(tmp_path)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("text", ["tool = 3", "[tool]\nother = 1"])
def test_a_project_file_without_our_table_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    assert read_config(tmp_path).options == {}


def test_a_project_file_whose_table_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool]\nvnnify = 3\n")
    with pytest.raises(UsageError, match=r"pyproject.toml \[tool.vnnify\]: has to be a table"):
        read_config(tmp_path)


def test_every_key_of_bench_stands_for_an_option() -> None:
    known = inspect.signature(bench).parameters
    assert {*BENCH_OPTIONS, *BENCH_SWITCHES} <= set(known)


def test_bench_reads_its_own_table_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Plan] = []

    def run(plan: Plan, *_: Any, **__: Any) -> None:
        plans.append(plan)
        raise InputError("stopped")

    monkeypatch.setattr("bench.running.run", run)
    monkeypatch.setattr("bench.machine.describe", lambda: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vnnify.toml").write_text(
        'data = "val/"\nthreads = 3\n[bench]\nbatch = "1,8"\nthreads = 2\nseconds = 0.5\n'
        "no_peaks = true\n"
    )
    for arguments in ([], ["--batch", "4", "--seconds", "2"]):
        CliRunner().invoke(app.app, ["bench", "m.onnx", *arguments], obj=Given())
    first, second = plans
    assert (first.batches, first.threads, first.seconds) == ((1, 8), (2,), 0.5)
    assert (first.data, first.peaks, first.operators) == (None, False, True)
    assert (second.batches, second.seconds, second.threads) == ((4,), 2, (2,))


def test_every_key_stands_for_an_option() -> None:
    configured = (quantize_command.quantize, gate_command.gate)
    known = {name for function in configured for name in inspect.signature(function).parameters}
    assert set(OPTIONS) <= known


def test_the_template_holds_keys_that_are_read(tmp_path: Path) -> None:
    file = tmp_path / "vnnify.toml"
    file.write_text(TEMPLATE)
    assert read_config(tmp_path).options == {}
    lines = [line.removeprefix("# ") for line in TEMPLATE.splitlines()[1:]]
    file.write_text("\n".join(line for line in lines if "=" in line or line.startswith("[")))
    config = read_config(tmp_path)
    assert config.options["max_drop"] == "1pt"
    assert config.preprocessing is not None


def test_the_configuration_fills_what_the_command_line_leaves_out(
    asked: Asked, tmp_path: Path
) -> None:
    (tmp_path / "vnnify.toml").write_text(
        'data = "val.npz"\nmax_drop = "2pt"\nthreads = 3\nseconds = 1\nrounds = 7\n'
        'runtime = "onnxruntime,openvino"\nout = "shipped"\nweights = "w.safetensors"\n'
    )
    job = asked.quantize()
    assert job.data.source == "val.npz"
    assert job.limits.max_drop == "2pt"
    assert (job.effort.threads, job.effort.seconds, job.effort.rounds) == (3, 1.0, 7)
    assert job.effort.runtimes == ("onnxruntime", "openvino")
    assert job.model.weights == Path("w.safetensors")
    assert Path(asked.jobs[-1]["staging"]).name.startswith(".shipped.")

    job = asked.quantize("--data", "other.npz", "--max-drop", "1%", "--threads", "0")
    assert (job.data.source, job.limits.max_drop, job.effort.threads) == ("other.npz", "1%", 0)
    assert job.effort.rounds == 7


def test_gate_reads_the_same_file(asked: Asked, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[tool.vnnify]\ndata = "val.npz"\nmax_drop = "2pt"\nmin_speedup = "1.5x"\nrounds = 7\n'
        'runtime = "openvino, onnxruntime"\nout = "folder"\n'
    )
    job = asked.gate()
    assert (job.data.source, job.limits.max_drop) == ("val.npz", "2pt")
    assert job.bounds.min_speedup == 1.5
    assert job.runtimes == ("openvino", "onnxruntime")
    assert asked.gate("--runtime", "onnxruntime").runtimes == ("onnxruntime",)
    # `out` is a folder to quantize and a file to gate.
    (tmp_path / "folder").write_text("")
    assert asked.gate().runtimes == ("openvino", "onnxruntime")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("treads = 1", "Did you mean 'threads'"),
        ("data = 'd'\nthreads = 'many'", "--threads"),
        ("data = 'd'\nthreads = -1", "--threads"),
        ("data = 'd'\nmax_drop = 1", "tolerance '1' has no unit"),
        ("data = 'd'\nobjective = 'speed'", "--objective 'speed'"),
        ("threads = 1", "--data"),
    ],
)
def test_a_wrong_value_is_told_before_the_work(
    asked: Asked, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "vnnify.toml").write_text(text)
    error = asked("quantize", "m.onnx")
    assert isinstance(error, UsageError)
    assert message in str(error)
    assert not asked.jobs


def test_other_commands_do_not_need_it(asked: Asked, tmp_path: Path) -> None:
    (tmp_path / "vnnify.toml").write_text("nonsense = 1")
    assert asked("quantize", "--help") is None
    assert asked("doctor", "--help") is None
