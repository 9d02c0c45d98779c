"""`vnnify --help` is instant, and works with nothing but typer and numpy."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "openvino", "nncf",
    "neural_compressor", "PIL", "safetensors",
)  # fmt: skip
COMMANDS = ("bench", "doctor", "quantize", "gate", "convert", "report", "inspect", "init")

# Runs before anything of ours; an import of a heavy package, tried or optional, is an error.
BLOCKED = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise RuntimeError("imports " + name)

sys.meta_path.insert(0, Blocker())
"""
HELP = f"""{BLOCKED}
from contextlib import suppress
from quantize.cli import main

for command in ([], *([c] for c in {COMMANDS!r})):
    sys.argv = ["vnnify", *command, "--help"]
    print("==", *command)
    with suppress(SystemExit):
        main()
"""

# What the process that waits has imported when `quantize` has ended.
WAITING = """
import sys
from contextlib import suppress
from quantize import cli
from quantize.commands import quantize as command

def work(*_, **__):
    return {"outcome": "pass", "exit_code": 0, "headline": "", "summary": "told\\n", "packages": {}}

command.run_isolated = work
command.end = lambda *_: None
sys.argv = ["vnnify", "quantize", "net.onnx", "--data", "data.npz"]
with suppress(SystemExit):
    cli.main()
print(*sys.modules)
"""


def _python(code: str, folder: Path = ROOT) -> str:
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "100"},
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return run.stdout


@pytest.fixture(scope="module")
def helps(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("project")
    # A wrong configuration must not hide the help that is needed to mend it.
    (folder / "vnnify.toml").write_text("nonsense = 1")
    return _python(HELP, folder).split("== \n", 1)[-1].split("\n== ")


def test_help_needs_no_heavy_package(helps: list[str]) -> None:
    top, *others = helps
    assert len(others) == len(COMMANDS)
    for command, text in zip(COMMANDS, others, strict=True):
        assert f"  {command} " in top
        assert text.startswith(command)
        assert f"Usage: vnnify {command} " in text
    assert "max-drop" in others[COMMANDS.index("gate")]


@pytest.mark.parametrize("package", ["bench", "quantize", "quantize.commands.app", "quantize.job"])
def test_importing_imports_no_heavy_package(package: str) -> None:
    loaded = _python(f"{BLOCKED}\nimport {package}\nprint(*sys.modules)").split()
    assert package in loaded
    # typer itself needs pydantic, but only once it parses.
    assert not {name.partition(".")[0] for name in loaded} & {*HEAVY, "pydantic"}


def test_the_process_that_waits_for_the_work_imports_nothing_heavy(tmp_path: Path) -> None:
    """People wait for what it imports, before the work and after it, and models are timed then."""
    told, *loaded = _python(WAITING, tmp_path).split()
    assert told == "told"
    assert (tmp_path / "vnnify-out" / "manifest.json").is_file()
    assert not {"numpy", "bench.models", "bench.render", "quantize.job"} & {*loaded}


def test_the_process_that_works_starts_before_typer_is_imported() -> None:
    loaded = _python("import sys, quantize.cli, bench.isolate\nprint(*sys.modules)").split()
    assert not {"typer", "quantize.commands", "bench.cli"} & {*loaded}


def test_the_process_that_works_imports_nothing_of_the_command_line() -> None:
    loaded = _python("import sys, quantize.commands.work\nprint(*sys.modules)").split()
    assert not {"typer", "pydantic", "bench.cli"} & {*loaded}


def test_the_command_line_alone_imports_no_module_that_works() -> None:
    """A stand-in for the time, which a busy machine makes a bad measure."""
    loaded = _python("import sys, quantize.commands.app\nprint(*sys.modules)").split()
    ours = [n for n in loaded if n.startswith("quantize")]
    beside = [n for n in ours if not n.startswith("quantize.commands")]
    assert beside == ["quantize"]


def test_the_first_verdict_waits_for_no_later_stage() -> None:
    loaded = _python("import sys, quantize.pipeline\nprint(*sys.modules)").split()
    later = {"concluding", "search", "finishing", "report", "inspection", "timing", "lock"}
    assert not {f"quantize.{n}" for n in later} & {*loaded}
    assert not {"openvino", "onnxruntime", "pydantic", "bench.render"} & {*loaded}


def test_the_module_runs_as_the_command_does() -> None:
    command = [sys.executable, "-m", "quantize.cli", "quantize"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.returncode == 2
    assert "Missing argument" in run.stderr
