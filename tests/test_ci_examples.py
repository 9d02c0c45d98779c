"""The examples of docs/ci.md and action.yml are run, as far as that is possible without GitHub."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml

from bench.render.markdown import MAX_CHARACTERS
from tests import classifier

ROOT = Path(__file__).resolve().parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
TEXT = (ROOT / "docs" / "ci.md").read_text("utf-8")
EXAMPLES = [yaml.safe_load(b) for b in re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.M | re.S)]


def steps() -> list[dict[str, Any]]:
    return [s for e in EXAMPLES for job in e.get("jobs", {}).values() for s in job["steps"]]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the models and samples that the examples name, and `vnnify` on its path."""
    folder = tmp_path_factory.mktemp("checkout")
    models = folder / "models"
    models.mkdir()
    classifier.network(models / "fp32.onnx")
    classifier.network(models / "int8.onnx")
    classifier.network(models / "bad.onnx", fault=1e4)
    classifier.samples(models / "validation.npz")
    rows = [f"{i},{'day' if i % 2 else 'night'}" for i in range(400)]
    (models / "slices.csv").write_text("\n".join(["sample,light", *rows]))
    binaries = folder / "temp" / "vnnify" / "bin"
    binaries.mkdir(parents=True)
    command = binaries / "vnnify"
    call = "import sys; sys.argv[0] = 'vnnify'; from quantize.cli import main; main()"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{call}" "$@"\n')
    command.chmod(0o755)
    return folder


def run(script: str, checkout: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A `run` of a step, in the shell that GitHub gives it."""
    for name in ("summary.md", "output.txt"):
        (checkout / name).write_text("")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{checkout / 'temp' / 'vnnify' / 'bin'}:{os.environ['PATH']}",
        "RUNNER_TEMP": str(checkout / "temp"),
        "GITHUB_STEP_SUMMARY": str(checkout / "summary.md"),
        "GITHUB_OUTPUT": str(checkout / "output.txt"),
        **variables,
    }
    shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return subprocess.run(
        shell, cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )


def judge(checkout: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """The action's own step, with the inputs of its example and what is given here."""
    example = next(s for s in steps() if "vnnify@" in s.get("uses", ""))["with"]
    defaults = {k: v.get("default", "") for k, v in ACTION["inputs"].items()}
    given = {**defaults, **example, **inputs}
    step = next(s for s in ACTION["runs"]["steps"] if s.get("id") == "gate")
    variables = {
        name: given[re.fullmatch(r"\$\{\{ inputs\.([\w-]+) \}\}", text)[1]]  # type: ignore[index]
        for name, text in step["env"].items()
    }
    return run(step["run"], checkout, **variables)


def test_the_example_names_the_inputs_of_the_action() -> None:
    used = [s["with"] for s in steps() if "vnnify@" in s.get("uses", "")]
    required = {k for k, v in ACTION["inputs"].items() if v.get("required")}
    assert used
    for given in used:
        assert required <= set(given) <= set(ACTION["inputs"])


def test_no_input_is_put_into_a_script() -> None:
    scripts = [s["run"] for s in (*ACTION["runs"]["steps"], *steps()) if "run" in s]
    assert len(scripts) >= 3
    assert not [s for s in scripts if "${{" in s]


def test_the_action_passes_a_good_model(checkout: Path) -> None:
    done = judge(checkout)
    assert done.returncode == 0, done.stderr
    assert (checkout / "output.txt").read_text() == "outcome=pass\n"
    assert "PASS" in (checkout / "summary.md").read_text("utf-8").upper()
    written = {p.name for p in (checkout / ACTION["inputs"]["reports"]["default"]).iterdir()}
    assert written == {"gate.json", "gate.xml", "gate.md", "gate.html"}
    assert "::error" not in done.stdout + done.stderr


def test_the_action_refuses_a_bad_model_and_says_so_everywhere(checkout: Path) -> None:
    done = judge(checkout, int8="models/bad.onnx", reports="bad reports")
    assert done.returncode == 3, done.stderr
    assert (checkout / "output.txt").read_text() == "outcome=refuse\n"
    assert re.search(r"^::error title=accuracy::.*drop", done.stderr, re.M)
    summary = (checkout / "summary.md").read_text("utf-8")
    assert "REFUSED" in summary.upper()
    assert len(summary) < MAX_CHARACTERS
    cases = ET.parse(checkout / "bad reports" / "gate.xml").getroot().iter("testcase")
    assert [c.get("name") for c in cases if c.find("failure") is not None] == ["accuracy"]


def test_an_option_of_the_action_reaches_the_command(checkout: Path) -> None:
    done = judge(checkout, options="--limit 12 --inconclusive fail")
    assert done.returncode == 4, done.stderr
    assert (checkout / "output.txt").read_text() == "outcome=inconclusive\n"
    assert "::warning title=accuracy::" in done.stderr


def test_an_error_is_no_verdict(checkout: Path) -> None:
    done = judge(checkout, data="models/none.npz")
    assert done.returncode == 5
    assert (checkout / "output.txt").read_text() == "outcome=error\n"


def test_the_commands_of_the_examples_run(checkout: Path) -> None:
    (update,) = re.findall(r"^vnnify gate .*--update-baseline$", TEXT, re.M)
    commands = [update, *(s["run"] for s in steps() if s.get("run", "").startswith("vnnify"))]
    assert len(commands) == 2
    for command in commands:
        done = run(command, checkout)
        assert done.returncode == 0, done.stderr
    assert (checkout / "summary.md").read_text("utf-8")
    assert (checkout / "flips.csv").read_text().startswith("sample,place")
    names = [c.get("name") for c in ET.parse(checkout / "gate.xml").getroot().iter("testcase")]
    assert {"slices", "baseline: size", "baseline: accuracy in onnxruntime"} <= set(names)


def test_gitlab_collects_what_its_command_writes() -> None:
    job = next(e["model-gate"] for e in EXAMPLES if "model-gate" in e)
    command = next(line for line in job["script"] if line.startswith("vnnify gate"))
    files = [*job["artifacts"]["paths"], job["artifacts"]["reports"]["junit"]]
    assert all(f" {file}" in command for file in files)
