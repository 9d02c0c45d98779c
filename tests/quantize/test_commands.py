"""Commands from their arguments to the files and the exit status, on a model that is really small.

What takes time is not real here: the work runs in this process, and latencies are said. The tests
marked slow run the command as people do.
"""

import hashlib
import importlib
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bench.errors import ExitCode
from bench.render import render
from bench.runtimes.onnxruntime import OnnxRuntime
from bench.runtimes.seam import Settings
from bench.store import load
from quantize import cli, gating, slices, timing, trials
from quantize.commands import convert as convert_command
from quantize.commands import gate as gate_command
from quantize.commands import quantize as quantize_command
from quantize.gate_report import GateReport, gate_document
from quantize.proof import debian, proving
from quantize.proof.guest import Answer, Job, Visit
from quantize.rendering import stored_document
from quantize.report import Report
from tests import classifier, tiny
from tests.timing import Stopwatch

FILES = {
    "manifest.json",
    "model.fp32.onnx",
    "model.onnx",
    "recipe.toml",
    "report.html",
    "report.json",
    "report.junit.xml",
    "report.md",
}
ROOT = str(Path(__file__).parents[2])
QUICK = ("--runtime", "onnxruntime", "--threads", "1", "--calibration-samples", "64")


@dataclass
class Cli:
    """Runs command lines in this process, with a stopwatch that says what it is told."""

    patch: pytest.MonkeyPatch
    capfd: pytest.CaptureFixture[str]
    stopwatch: Stopwatch

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Status, stdout and stderr."""
        self.patch.setattr(sys, "argv", ["vnnify", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as caught:
                cli.main()
        finally:
            signal.signal(signal.SIGTERM, before)
        out, err = self.capfd.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, out, err

    def quantize(self, model: object, data: object, *options: object) -> tuple[int, str, str]:
        return self("quantize", model, "--data", data, *QUICK, *options)


def directly(target: str, job: dict[str, Any], **_: Any) -> Any:
    """What `run_isolated` does, without the process."""
    module, _, function = target.partition(":")
    return json.loads(json.dumps(getattr(importlib.import_module(module), function)(job)))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    stopwatch = Stopwatch()
    for module in (quantize_command, gate_command, convert_command):
        monkeypatch.setattr(module, "run_isolated", directly)
    monkeypatch.setattr(trials, "glance", stopwatch.glance)
    for module in (timing, gating):
        monkeypatch.setattr(module, "measure", stopwatch)
    monkeypatch.chdir(tmp_path)
    return Cli(monkeypatch, capfd, stopwatch)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the classifier and samples of it, which nobody writes to."""
    folder = tmp_path_factory.mktemp("shelf")
    classifier.network(folder / "net.onnx")
    classifier.samples(folder / "data.npz")
    return folder


def stored(folder: Path) -> Report:
    return load(Report, (folder / "report.json").read_bytes(), "report.json")


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


def digests_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# --- before there is a command ---


def test_the_version_is_told_without_a_command(run: Cli) -> None:
    assert run("--version") == (0, f"vnnify {version('vnnify')}\n", "")


def test_the_list_of_commands_cuts_nothing_off(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = run("--help")
    assert status == 0
    commands = out.partition("Commands:")[2].strip().splitlines()
    assert len(commands) >= 8
    assert all(line.endswith(".") and not line.endswith("..") for line in commands)


# --- a model that passes ---


@pytest.fixture(scope="module")
def done(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one successful run, which nobody writes to."""
    folder = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(quantize_command, "run_isolated", directly)
        patch.setattr(trials, "glance", Stopwatch().glance)
        patch.setattr(timing, "measure", Stopwatch())
        command = ["vnnify", "quantize", str(shelf / "net.onnx"), "--data", str(shelf / "data.npz")]
        patch.setattr(sys, "argv", [*command, *QUICK, "--out", "out"])
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as caught:
            cli.main()
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 0
    assert [p.name for p in folder.iterdir()] == ["out"]
    return folder / "out"


def test_a_model_that_passes_leaves_the_promised_files_and_no_others(done: Path) -> None:
    assert {str(p.relative_to(done)) for p in done.rglob("*")} == FILES


def test_the_manifest_holds_the_digest_of_every_file(done: Path) -> None:
    manifest = json.loads((done / "manifest.json").read_bytes())
    digests = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    assert digests == {n: d for n, d in digests_of(done).items() if n != "manifest.json"}
    assert manifest["outcome"] == "pass"
    assert manifest["command"].startswith("vnnify quantize ")


def test_the_shipped_model_is_int8_runs_and_is_right(done: Path) -> None:
    import onnxruntime as ort

    proto = onnx.load(str(done / "model.onnx"))
    onnx.checker.check_model(proto, full_check=True)
    assert "QuantizeLinear" in {n.op_type for n in proto.graph.node}
    x, labels = classifier.images(200, seed=9)
    session = ort.InferenceSession(str(done / "model.onnx"))
    assert (session.run(None, {"x": x})[0].argmax(axis=1) == labels).mean() > 0.95
    plain = {n.op_type for n in onnx.load(str(done / "model.fp32.onnx")).graph.node}
    assert plain == {"Conv", "Relu", "Flatten", "Gemm"}


def test_the_report_says_what_happened(done: Path, shelf: Path) -> None:
    report = stored(done)
    assert json.loads((done / "report.json").read_bytes())["schema"] == 1
    assert (report.conclusion.outcome, report.conclusion.exit_code) == ("pass", 0)
    assert report.conclusion.ships
    assert report.verdict.outcome == "pass"
    assert (report.metric, report.max_drop, report.served_by) == ("top1", "1pt", "onnxruntime")
    assert report.coverage == "3 of 3"
    assert report.target == "portable"
    assert [x.name for x in report.layers] == ["first", "second", "head"]
    assert (report.data.calibration_count, report.data.evaluation_count) == (64, 336)
    assert len(report.evaluations[0].scores) == 336
    assert report.evaluations[0].model_sha256 == report.fp32.sha256 == digest_of(done, "fp32.")
    assert report.evaluations[1].model_sha256 == report.int8.sha256 == digest_of(done, "")
    assert report.source == str(shelf / "net.onnx")
    assert "static, portable" in {t.name for t in report.trials}
    assert any("64 samples calibrate" in n for n in report.notes)


def digest_of(folder: Path, kind: str) -> str:
    return digests_of(folder)[f"model.{kind}onnx"]


def test_stages_stand_in_order(done: Path) -> None:
    stages = stored(done).stages
    names = ["read", "prepare", "baseline", "calibrate", "first model", "even out", "search"]
    names += ["verify", "benchmark"]
    assert [s.name for s in stages] == names
    assert all(s.seconds > 0 and s.peak_rss_bytes > 1e6 for s in stages)


def test_the_report_names_no_file_that_is_gone(done: Path) -> None:
    assert "staging" not in (done / "report.json").read_text()
    assert "scratch" not in (done / "report.html").read_text()


def test_what_a_run_told_is_what_its_stored_report_tells(done: Path) -> None:
    told = stored_document((done / "report.json").read_bytes(), Path("out/report.json"))
    for name, form in (("html", "html"), ("md", "markdown"), ("junit.xml", "junit")):
        assert (done / f"report.{name}").read_text() == render(told, form)


def test_the_page_runs_no_script_and_loads_nothing(done: Path) -> None:
    page = (done / "report.html").read_text().lower()
    assert "<script" not in page
    assert "javascript:" not in page
    assert not re.search(r"\son\w+=", page)
    assert not re.search(r"(src|href)=[\"']?https?:", page)
    assert "net.onnx" in page


def test_junit_has_one_passed_case_per_check(done: Path) -> None:
    root = ET.parse(done / "report.junit.xml").getroot()
    names = [c.get("name") for c in root.iter("testcase")]
    assert names == ["accuracy", "speed", "finite", "plausible", "threads"]
    assert root.get("failures") == "0"


# --- replaying a recipe ---


def test_a_recipe_makes_the_same_bytes_again(run: Cli, shelf: Path, done: Path) -> None:
    recipe = done / "recipe.toml"
    status, _, err = run.quantize(shelf / "net.onnx", shelf / "data.npz", "--recipe", recipe)
    assert status == 0, err
    again = Path("vnnify-out")
    for name in ("model.onnx", "model.fp32.onnx", "recipe.toml"):
        assert (again / name).read_bytes() == (done / name).read_bytes(), name
    assert [t.name for t in stored(again).trials] == ["recipe"]
    # Only the benchmark that ends the run.
    assert len(run.stopwatch.measured) == 1


def test_a_recipe_fits_a_retrained_model(run: Cli, shelf: Path, done: Path) -> None:
    classifier.network(Path("retrained.onnx"), seed=5)
    recipe = done / "recipe.toml"
    status, _, err = run.quantize("retrained.onnx", shelf / "data.npz", "--recipe", recipe)
    assert status == 0, err
    assert stored(Path("vnnify-out")).recipe.modes == stored(done).recipe.modes


def test_a_recipe_for_another_architecture_is_refused(run: Cli, shelf: Path, done: Path) -> None:
    classifier.network(Path("wide.onnx"), channels=12)
    recipe = done / "recipe.toml"
    status, _, err = run.quantize("wide.onnx", shelf / "data.npz", "--recipe", recipe)
    assert status == ExitCode.USAGE
    assert "made for another graph" in err
    assert not Path("vnnify-out").exists()


def test_a_target_that_a_recipe_was_not_made_for_is_refused_before_the_work(
    run: Cli, shelf: Path, done: Path
) -> None:
    options = ["--recipe", done / "recipe.toml", "--target", "vnni"]
    status, _, err = run.quantize(shelf / "net.onnx", shelf / "data.npz", *options)
    assert status == ExitCode.USAGE
    assert f"--target vnni: recipe {done / 'recipe.toml'} says portable" in err
    assert "reading" not in err
    assert not Path("vnnify-out").exists()


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"schema = 9", b"schema = "])
def test_an_unreadable_recipe_is_refused_before_the_work(
    run: Cli, shelf: Path, content: bytes | None
) -> None:
    if content is not None:
        Path("r.toml").write_bytes(content)
    status, _, err = run.quantize(shelf / "net.onnx", shelf / "data.npz", "--recipe", "r.toml")
    assert status == (ExitCode.INPUT if content is None else ExitCode.USAGE)
    assert err.splitlines()[-1].startswith("error: ")
    assert "r.toml" in err.splitlines()[-1]
    if content is None:
        assert "calibrating" not in err


def test_a_proof_that_is_impossible_here_is_refused_before_the_work(
    run: Cli, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debian, "NEEDED", {"/no/such/bochs": "bochs"})
    status, _, err = run.quantize(shelf / "net.onnx", shelf / "data.npz", "--prove")
    assert status == ExitCode.UNFIT
    assert "missing here: bochs" in err
    assert "reading" not in err


@pytest.mark.parametrize("differ", [0, 1])
def test_a_model_ships_only_if_the_emulated_cpu_agrees(
    run: Cli, shelf: Path, monkeypatch: pytest.MonkeyPatch, differ: int
) -> None:
    def visit(cpu: str, job: Job, *, cache: Path, scratch: Path, **_: Any) -> Visit:
        assert cache.parts[-2:] == ("vnnify", "proof")
        outputs = {
            (case, "native"): tuple(
                OnnxRuntime().open(model, Settings(threads=1, exact=True)).run(feeds)
                for feeds in job.feeds[case]
            )
            for case, model in job.models.items()
        }
        for values in outputs["model", "native"][0].values():
            values.flat[0] += differ
        return Visit(cpu, Answer(("avx512_vnni",), "1.31.1", outputs, {}), image_cached=True)

    monkeypatch.setattr(debian, "require_packages", lambda _: None)
    monkeypatch.setattr(proving, "visit", visit)
    options = ("--prove", "--target", "vnni")
    status, out, _ = run.quantize(shelf / "net.onnx", shelf / "data.npz", *options)
    folder = Path("vnnify-out")
    assert status == (ExitCode.REFUSED if differ else ExitCode.OK)
    assert (folder / "model.onnx").exists() == (not differ)
    assert (folder / "refused" / "model.onnx").exists() == bool(differ)
    said = "not proved" if differ else "Proved"
    assert f"{said} on emulated AVX512-VNNI, 32 samples, {differ} of" in " ".join(out.split())
    assert stored(folder).proofs[0].holds == (not differ)


# --- a model that may not ship ---


def refused_files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_a_model_that_loses_too_much_lies_under_refused(run: Cli, shelf: Path) -> None:
    noisy = classifier.samples(Path("noisy.npz"), noise=2.5)
    status, out, err = run.quantize(
        shelf / "net.onnx", noisy, "--metric", "agreement", "--max-drop", "0abs"
    )
    assert status in (ExitCode.REFUSED, ExitCode.INCONCLUSIVE), err
    folder = Path("vnnify-out")
    assert "refused/model.onnx" in out
    moved = {"model.onnx": "refused/model.onnx", "recipe.toml": "refused/recipe.toml"}
    assert refused_files(folder) == {moved.get(name, name) for name in FILES}
    assert stored(folder).int8.path == Path("refused/model.onnx")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["outcome"] in ("refuse", "inconclusive")


@pytest.mark.parametrize(("policy", "status"), [("fail", 4), ("warn", 0), ("pass", 0)])
def test_too_few_samples_are_inconclusive(run: Cli, shelf: Path, policy: str, status: int) -> None:
    few = ("--limit", "60", "--calibration-samples", "20", "--inconclusive", policy)
    found, out, err = run.quantize(shelf / "net.onnx", shelf / "data.npz", *few)
    assert found == status, err
    folder = Path("vnnify-out")
    assert (folder / "model.onnx").exists() == (status == 0)
    assert (folder / "refused" / "model.onnx").exists() == (status != 0)
    report = stored(folder)
    assert report.verdict.outcome == "inconclusive"
    assert report.verdict.samples_needed is not None
    assert "INCONCLUSIVE" in out
    # FP32 itself could not pass on so few: of those that are timed, the first within the limit.
    judged = [t.name for t in report.trials if t.outcome != "not evaluated"]
    assert [n.endswith(", first") for n in judged] == [True, False]


def test_a_slower_model_is_refused_unless_size_is_the_objective(run: Cli, shelf: Path) -> None:
    run.stopwatch.speedup = 0.5
    status, out, _ = run.quantize(shelf / "net.onnx", shelf / "data.npz")
    assert status == ExitCode.REFUSED
    assert "Not worth quantizing" in out
    assert (Path("vnnify-out") / "refused" / "model.onnx").is_file()
    options = ("--objective", "size", "--force")
    status, out, _ = run.quantize(shelf / "net.onnx", shelf / "data.npz", *options)
    assert status == 0
    assert "0.50× as fast" in out
    assert not (Path("vnnify-out") / "refused").exists()


def test_slowness_that_only_the_benchmark_sees_refuses_too(run: Cli, shelf: Path) -> None:
    run.stopwatch.later = 0.8
    status, out, _ = run.quantize(shelf / "net.onnx", shelf / "data.npz")
    assert status == ExitCode.REFUSED
    assert "0.80 times the speed of the fastest FP32" in out


# --- what is asked of the output ---


def test_json_is_the_report_and_nothing_else(run: Cli, shelf: Path, done: Path) -> None:
    recipe = ("--recipe", done / "recipe.toml", "--json", "--out", "made")
    status, out, _ = run.quantize(shelf / "net.onnx", shelf / "data.npz", *recipe)
    assert status == 0
    assert load(Report, out.encode(), "stdout") == stored(Path("made"))


def test_an_existing_folder_is_replaced_only_by_force(run: Cli, shelf: Path, done: Path) -> None:
    options = ("--recipe", done / "recipe.toml", "--out", "o")
    assert run.quantize(shelf / "net.onnx", shelf / "data.npz", *options)[0] == 0
    before = digests_of(Path("o"))
    status, _, err = run.quantize(shelf / "net.onnx", shelf / "data.npz", *options)
    assert (status, len(err.splitlines())) == (ExitCode.OUTPUT, 1)
    assert "--force" in err
    assert digests_of(Path("o")) == before
    fewer = ("--limit", "300", "--max-drop", "5pt", "--force")
    assert run.quantize(shelf / "net.onnx", shelf / "data.npz", *options, *fewer)[0] == 0
    # Of 236, the look after half of them tells.
    assert stored(Path("o")).data.evaluation_count == 118
    assert leftovers(Path()) == []


def test_a_failed_run_leaves_the_old_folder_as_it_was(run: Cli, shelf: Path, done: Path) -> None:
    options = ("--recipe", done / "recipe.toml", "--out", "o")
    assert run.quantize(shelf / "net.onnx", shelf / "data.npz", *options)[0] == 0
    before = digests_of(Path("o"))
    classifier.network(Path("nan.onnx"), fault=float("nan"))
    assert run.quantize("nan.onnx", shelf / "data.npz", "--out", "o", "--force")[0] == 5
    run.stopwatch.before = interrupt
    status, _, err = run.quantize(shelf / "net.onnx", shelf / "data.npz", *options, "--force")
    assert status == ExitCode.INTERRUPTED
    assert "nothing was published" in err
    assert digests_of(Path("o")) == before
    # What it had found, for the next run.
    assert leftovers(Path()) == [".o.vnnify-work"]


def interrupt() -> None:
    raise KeyboardInterrupt


# --- what cannot be used ---


def refusal(run: Cli, model: object, data: object, *options: object) -> tuple[int, str]:
    """Status and message of a command that fails; nothing may be left of it."""
    status, out, err = run.quantize(model, data, *options)
    assert out == ""
    assert "Traceback" not in err
    assert not Path("vnnify-out").exists()
    assert leftovers(Path()) == []
    return status, err.splitlines()[-1]


def test_a_weight_that_is_nan_is_named(run: Cli, shelf: Path) -> None:
    classifier.network(Path("nan.onnx"), fault=float("nan"))
    status, message = refusal(run, "nan.onnx", shelf / "data.npz")
    assert status == ExitCode.INPUT
    assert "'w2' (1 of 576)" in message


def test_a_quantized_model_is_not_quantized_again(run: Cli, shelf: Path, done: Path) -> None:
    status, message = refusal(run, done / "model.onnx", shelf / "data.npz")
    assert status == ExitCode.UNSUPPORTED
    assert "is quantized already" in message
    assert "vnnify gate" in message


def test_a_model_with_nothing_to_quantize_is_refused(run: Cli) -> None:
    tiny.unary(Path("m.onnx"), "Relu", TensorProto.FLOAT, ["n", 4])
    np.savez("d.npz", x=np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32))
    status, message = refusal(run, "m.onnx", "d.npz")
    assert status == ExitCode.UNSUPPORTED
    assert "nothing to quantize (0 of 0): it has no Conv, Gemm, MatMul or LSTM" in message


def test_data_for_another_input_is_refused(run: Cli, shelf: Path) -> None:
    x, labels = classifier.images(50)
    np.savez("d.npz", image=x, extra=x, labels=labels)
    status, message = refusal(run, shelf / "net.onnx", "d.npz")
    assert status == ExitCode.INPUT
    assert "'x'" in message
    assert "image" in message
    np.savez("d.npz", x=x[:, :, 1:], labels=labels)
    status, message = refusal(run, shelf / "net.onnx", "d.npz")
    assert status == ExitCode.INPUT
    assert "x:float32[n,1,8,8]" in message


def test_a_tolerance_needs_its_unit(run: Cli, shelf: Path) -> None:
    status, message = refusal(run, shelf / "net.onnx", shelf / "data.npz", "--max-drop", "1")
    assert status == ExitCode.USAGE
    assert "has no unit" in message


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--seconds", "0"),
        ("--seconds", "-1"),
        ("--seconds", "nan"),
        ("--seconds", "inf"),
        ("--confidence", "0.5"),
        ("--confidence", "1"),
        ("--confidence", "95"),
        ("--confidence", "nan"),
    ],
)
def test_numbers_out_of_range_are_refused_before_the_work(
    run: Cli, shelf: Path, option: str, value: str
) -> None:
    status, out, err = run.quantize(shelf / "net.onnx", shelf / "data.npz", option, value)
    assert (status, out, len(err.splitlines())) == (ExitCode.USAGE, "", 1)
    assert f"{option} " in err
    assert "expected a number above" in err


def test_points_of_an_unbounded_metric_are_refused_before_the_search(run: Cli) -> None:
    tiny.linear(Path("m.onnx"))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 4)).astype(np.float32)
    np.savez("d.npz", x=x, labels=rng.standard_normal((60, 3)).astype(np.float32))
    status, message = refusal(run, "m.onnx", "d.npz", "--max-drop", "1pt")
    assert status == ExitCode.USAGE
    assert "1abs" in message or "1%" in message
    assert run.stopwatch.measured == []


def test_a_model_that_only_guesses_is_refused(run: Cli, shelf: Path) -> None:
    x, labels = classifier.images(300)
    np.savez("d.npz", x=x, labels=np.random.default_rng(3).permutation(labels))
    status, message = refusal(run, shelf / "net.onnx", "d.npz")
    assert status == ExitCode.INPUT
    assert "the baseline is broken" in message


def test_calibration_samples_may_not_judge(run: Cli, shelf: Path) -> None:
    data = shelf / "data.npz"
    status, message = refusal(run, shelf / "net.onnx", data, "--calibration", data)
    assert status == ExitCode.INPUT
    assert "among" in message
    other = classifier.samples(Path("other.npz"), 100, seed=8)
    status, _, err = run.quantize(
        shelf / "net.onnx", data, "--calibration", other, "--max-drop", "2pt"
    )
    assert status == 0, err
    facts = stored(Path("vnnify-out")).data
    assert (facts.calibration_source, facts.calibration_count) == ("other.npz", 64)
    assert facts.evaluation_count == 400


@pytest.mark.parametrize("dice", ["RandomNormalLike", "Bernoulli"])
def test_a_model_that_rolls_dice_is_refused(run: Cli, dice: str) -> None:
    w = np.eye(4, dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Sigmoid", ["p"], ["s"]),
        helper.make_node(dice, ["s"], ["noise"]),
        helper.make_node("Add", ["p", "noise"], ["y"]),
    ]
    port = ("x", TensorProto.FLOAT, ["n", 4]), ("y", TensorProto.FLOAT, ["n", 4])
    tiny.save(Path("m.onnx"), nodes, [port[0]], [port[1]], {"w": w})
    np.savez("d.npz", x=np.ones((50, 4), np.float32) * np.arange(50, dtype=np.float32)[:, None])
    status, message = refusal(run, "m.onnx", "d.npz")
    assert status == ExitCode.UNSUPPORTED
    assert "two runs on one sample give different outputs" in message


def test_an_unknown_target_or_runtime_is_a_usage_error(run: Cli, shelf: Path) -> None:
    for option, value in (("--target", "avx9"), ("--runtime", "tensorrt")):
        status, message = refusal(run, shelf / "net.onnx", shelf / "data.npz", option, value)
        assert status == ExitCode.USAGE
        assert value in message


# --- the user's own data and metric, and states ---

RECURRENT = """
import numpy as np

def data():
    rng = np.random.default_rng(0)
    for _ in range(80):
        yield {"x": rng.standard_normal((1, 16)).astype("f4")}, rng.standard_normal(4)

def off(outputs, labels):
    return [float(np.abs(outputs["y"][0] - labels[0]).mean())]

off.higher_is_better = False

def ragged():
    rng = np.random.default_rng(0)
    for i in range(60):
        yield {"x": rng.standard_normal((3 + i % 5, 16)).astype("f4")}, None

def batched():
    rng = np.random.default_rng(0)
    for i in range(60):
        yield {"x": rng.standard_normal((8, 16)).astype("f4")}, None
"""


def recurrent(path: Path) -> Path:
    """h_out = tanh(x w + h u), y = h_out v."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((16, 32)).astype(np.float32) / 4,
        "u": rng.standard_normal((32, 32)).astype(np.float32) / 6,
        "v": rng.standard_normal((32, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["h", "u"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Tanh", ["c"], ["h_out"]),
        helper.make_node("MatMul", ["h_out", "v"], ["y"]),
    ]
    inputs: list[tiny.Port] = [("x", TensorProto.FLOAT, [1, 16]), ("h", TensorProto.FLOAT, [1, 32])]
    outputs: list[tiny.Port] = [
        ("y", TensorProto.FLOAT, [1, 4]),
        ("h_out", TensorProto.FLOAT, [1, 32]),
    ]
    return tiny.save(path, nodes, inputs, outputs, constants)


def test_a_model_with_state_is_judged_by_the_users_metric(run: Cli) -> None:
    recurrent(Path("m.onnx"))
    Path("mine.py").write_text(RECURRENT)
    options = ("--metric", "mine.py:off", "--state", "h_out:h", "--max-drop", "10%")
    status, out, err = run.quantize("m.onnx", "mine.py:data", *options)
    assert status == 0, err
    report = stored(Path("vnnify-out"))
    assert not report.verdict.higher_is_better
    assert report.metric == "mine.py:off"
    assert report.data.evaluation_count == 40
    assert "off " in out
    # Fed back, the state makes a score that no sample on its own would give.
    plain = run.quantize("m.onnx", "mine.py:data", "--metric", "mine.py:off", "--force")
    assert plain[0] == ExitCode.INPUT
    assert "'h'" in plain[2]


def test_an_unknown_state_is_refused(run: Cli) -> None:
    recurrent(Path("m.onnx"))
    Path("mine.py").write_text(RECURRENT)
    status, message = refusal(
        run, "m.onnx", "mine.py:data", "--state", "hidden:h", "--metric", "mine.py:off"
    )
    assert status == ExitCode.USAGE
    assert "--state hidden:h: the model has outputs" in message


@pytest.mark.parametrize("source", ["ragged", "batched"])
def test_a_first_axis_of_any_size_is_served(run: Cli, source: str) -> None:
    rng = np.random.default_rng(0)
    constants = {"w": rng.standard_normal((16, 32)).astype(np.float32)}
    ports = ("x", TensorProto.FLOAT, ["t", 16]), ("y", TensorProto.FLOAT, ["t", 32])
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    tiny.save(Path("m.onnx"), [node], [ports[0]], [ports[1]], constants)
    Path("mine.py").write_text(RECURRENT)
    status, _, err = run.quantize("m.onnx", f"mine.py:{source}")
    assert status == 0, err


# --- gate ---


@pytest.fixture
def pair(shelf: Path, done: Path) -> tuple[object, ...]:
    return "gate", done / "model.fp32.onnx", done / "model.onnx", "--data", shelf / "data.npz"


def test_a_gate_that_passes_writes_every_format(run: Cli, pair: tuple[object, ...]) -> None:
    files = {form: Path(f"gate.{form}") for form in ("out", "junit", "markdown", "html")}
    options = [part for form, file in files.items() for part in (f"--{form}", file)]
    status, out, err = run(*pair, "--max-drop", "1pt", "--threads", "1", *options)
    assert status == 0, err
    assert "PASS" in out
    report = load(GateReport, files["out"].read_bytes(), "gate.out")
    assert (report.exit_code, report.verdict.outcome, report.max_drop) == (0, "pass", "1pt")
    assert report.verdict.n == 400
    assert (report.latencies, report.judged[0].speed) == ((), None)
    assert run.stopwatch.measured == []
    cases = list(ET.parse(files["junit"]).getroot().iter("testcase"))
    assert [(c.get("name"), c.find("failure")) for c in cases] == [
        ("accuracy", None),
        ("threads", None),
        ("finite", None),
        ("deterministic", None),
        ("plausible", None),
    ]
    assert "<script" not in files["html"].read_text()
    assert "INT8 against FP32" in files["markdown"].read_text()
    status, _, err = run(*pair, "--max-drop", "1pt", "--junit", files["junit"])
    assert (status, len(err.splitlines())) == (ExitCode.OUTPUT, 1)


def test_a_gate_refuses_a_model_that_lost_too_much(
    run: Cli, pair: tuple[object, ...], shelf: Path
) -> None:
    classifier.network(Path("other.onnx"), fault=1000.0)
    files = ("--junit", "gate.xml", "--json")
    status, out, _ = run(*pair[:2], "other.onnx", *pair[3:], "--max-drop", "1pt", *files)
    assert status == ExitCode.REFUSED
    report = load(GateReport, out.encode(), "stdout")
    assert report.verdict.outcome == "refuse"
    assert report.exit_code == 3
    failure = ET.parse("gate.xml").getroot().find(".//failure")
    assert failure is not None
    assert "above the limit" in str(failure.get("message"))


@pytest.mark.parametrize(("policy", "status"), [("fail", 4), ("warn", 0), ("pass", 0)])
def test_a_gate_with_too_few_samples_is_inconclusive(
    run: Cli, pair: tuple[object, ...], policy: str, status: int
) -> None:
    options = ("--max-drop", "1pt", "--limit", "50", "--inconclusive", policy)
    found, out, _ = run(*pair, *options)
    assert found == status
    assert "INCONCLUSIVE" in out
    assert ("Let through without certainty" in out) == (policy != "fail")


@pytest.mark.parametrize(("speedup", "status"), [("1.9x", 0), ("2.1x", 3)])
def test_a_gate_can_ask_for_speed(
    run: Cli, pair: tuple[object, ...], speedup: str, status: int
) -> None:
    files = ("--junit", "gate.xml", "--out", "gate.json")
    found, out, _ = run(*pair, "--max-drop", "1pt", "--min-speedup", speedup, *files)
    assert found == status
    report = load(GateReport, Path("gate.json").read_bytes(), "gate.json")
    speed_found = report.judged[0].speed
    assert speed_found is not None
    assert speed_found.ratio == pytest.approx(2.0, rel=1e-3)
    cases = {
        c.get("name"): c.find("failure") for c in ET.parse("gate.xml").getroot().iter("testcase")
    }
    assert cases["accuracy"] is None
    assert (cases["speed"] is not None) == (status == 3)
    assert f"at least {speedup[:-1]} asked" in out
    if status:
        # The sentence on top says what the gate refused, not that accuracy is fine.
        assert "times as fast" in next(x for x in out.splitlines() if x.startswith("REFUSE"))


def test_all_flips_are_written_and_the_report_keeps_the_first(
    run: Cli, pair: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "_MOST_FLIPS", 5)
    classifier.network(Path("other.onnx"), fault=1000.0)
    options = ("--max-drop", "1pt", "--flips", "flips.csv", "--json")
    status, out, _ = run(*pair[:2], "other.onnx", *pair[3:], *options)
    assert status == ExitCode.REFUSED
    report = load(GateReport, out.encode(), "stdout")
    lines = Path("flips.csv").read_text().splitlines()
    changed = report.verdict.losses + report.verdict.gains
    assert len(lines) == changed + 1 > 20
    assert len(report.judged[0].flips) == 5
    assert f"{changed:,} samples changed." in render(gate_document(report), "html")
    assert sorted(p.name for p in Path.cwd().iterdir()) == ["flips.csv", "other.onnx"]


def test_a_file_that_cannot_be_written_costs_no_verdict(run: Cli, pair: tuple[object, ...]) -> None:
    status, out, err = run(*pair, "--max-drop", "1pt", "--junit", "/proc/gate.xml")
    assert status == ExitCode.OUTPUT
    assert "PASS" in out
    assert "/proc/gate.xml: cannot be written" in err


def test_a_summary_that_cannot_be_written_does_not_hide_the_verdict(
    run: Cli, pair: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "missing/summary.md")
    classifier.network(Path("other.onnx"), fault=1000.0)
    options = ("--max-drop", "1pt", "--github")
    status, _, err = run(*pair[:2], "other.onnx", *pair[3:], *options)
    assert status == ExitCode.REFUSED
    assert "warning: job summary missing/summary.md: cannot be written" in err
    status, _, err = run(*pair, *options)
    assert status == ExitCode.OUTPUT
    assert "error: job summary" in err


def test_a_gate_refuses_models_that_are_not_alike(
    run: Cli, pair: tuple[object, ...], shelf: Path
) -> None:
    recurrent(Path("m.onnx"))
    status, _, err = run(*pair[:2], "m.onnx", *pair[3:], "--max-drop", "1pt")
    assert status == ExitCode.USAGE
    assert "Give two forms of one model" in err
    tiny.save(
        Path("renamed.onnx"),
        [helper.make_node("Flatten", ["x"], ["scores"])],
        [("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [("scores", TensorProto.FLOAT, ["n", 64])],
    )
    status, _, err = run(*pair[:2], "renamed.onnx", *pair[3:], "--max-drop", "1pt")
    assert status == ExitCode.USAGE
    assert "scores:float32[n,64]" in err
    assert "named back" in err


# --- convert, report, init ---


def test_convert_writes_one_clean_file(run: Cli, shelf: Path) -> None:
    status, out, err = run("convert", shelf / "net.onnx", "-o", "clean.onnx")
    assert status == 0, err
    assert [p.name for p in Path().iterdir()] == ["clean.onnx"]
    digest = hashlib.sha256(Path("clean.onnx").read_bytes()).hexdigest()
    assert out.startswith("clean.onnx: ")
    assert digest in out
    assert run("convert", shelf / "net.onnx", "-o", "clean.onnx")[0] == ExitCode.OUTPUT
    options = ("--force", "--data", shelf / "data.npz")
    assert run("convert", shelf / "net.onnx", "-o", "clean.onnx", *options)[0] == 0
    assert hashlib.sha256(Path("clean.onnx").read_bytes()).hexdigest() == digest


def test_a_convert_that_fails_leaves_nothing(run: Cli) -> None:
    classifier.network(Path("nan.onnx"), fault=float("inf"))
    status, _, err = run("convert", "nan.onnx", "-o", "clean.onnx")
    assert status == ExitCode.INPUT
    assert "hold NaN or infinity" in err
    assert [p.name for p in Path().iterdir()] == ["nan.onnx"]


def test_a_stored_report_is_rendered_again(run: Cli, done: Path) -> None:
    status, out, _ = run("report", done / "report.json")
    assert status == 0
    assert out.startswith("INT8 of ")
    assert "Everything that was tried" in out
    files = ("--html", "r.html", "--markdown", "r.md", "--junit", "r.xml")
    status, out, _ = run("report", done / "report.json", *files)
    assert (status, out) == (0, "")
    assert Path("r.xml").read_bytes() == (done / "report.junit.xml").read_bytes()
    assert run("report", done / "report.json", *files)[0] == ExitCode.OUTPUT
    assert run("report", "none.json")[0] == ExitCode.INPUT
    assert run("report", done / "manifest.json")[0] == ExitCode.INPUT


def test_init_writes_a_configuration_that_changes_nothing(run: Cli, shelf: Path) -> None:
    assert run("init")[0] == 0
    assert run("init")[0] == ExitCode.OUTPUT
    assert run("init", "--force")[0] == 0
    status, _, err = run.quantize(shelf / "net.onnx", shelf / "data.npz", "--limit", "60")
    assert status == ExitCode.INCONCLUSIVE, err


def test_the_configuration_stands_for_options(run: Cli, shelf: Path) -> None:
    Path("vnnify.toml").write_text(
        f"""data = "{shelf / "data.npz"}"
max_drop = "3pt"
limit = 200
calibration_samples = 50
runtime = "onnxruntime"
out = "made"
"""
    )
    status, _, err = run("quantize", shelf / "net.onnx", "--threads", "1", "--max-drop", "4pt")
    assert status == 0, err
    report = stored(Path("made"))
    assert report.max_drop == "4pt"
    assert (report.data.calibration_count, report.data.evaluation_count) == (50, 150)


# --- as people run it ---


def vnnify(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    code = f"import sys; sys.path.insert(0, {ROOT!r}); from quantize.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
    )


REAL = (*QUICK, "--rounds", "1", "--seconds", "0.05", "--objective", "size", "--out", "out")


@pytest.mark.slow
def test_the_real_command_from_end_to_end(shelf: Path, tmp_path: Path) -> None:
    process = vnnify(
        "quantize", shelf / "net.onnx", "--data", shelf / "data.npz", *REAL, cwd=tmp_path
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    folder = tmp_path / "out"
    assert {p.name for p in folder.iterdir()} == FILES
    report = stored(folder)
    assert report.conclusion.speedup > 0
    assert all(x.rounds[0].samples_ns for x in report.latencies)
    assert report.comparisons[0].baseline == "FP32 onnxruntime"
    assert "reading model and data" in err
    assert "PASS" in out
    assert "Traceback" not in err
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing_but_its_journal(
    shelf: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    process = vnnify(
        "quantize", shelf / "net.onnx", "--data", shelf / "data.npz", *REAL, cwd=tmp_path
    )
    assert process.stderr is not None
    for line in process.stderr:
        # Well before the first verdict, after which an interrupt publishes.
        if line.startswith("calibrating"):
            break
    children = children_of(process.pid)
    assert children
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == status
    assert "interrupted; nothing was published" in err
    assert "Traceback" not in err
    assert [p.name for p in tmp_path.iterdir()] == [".out.vnnify-work"]
    end = time.monotonic() + 10
    while any(Path(f"/proc/{c}").exists() for c in children) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{c}").exists() for c in children)


def test_a_process_that_is_killed_at_work_leaves_no_temporary_files(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = (
        "import os, signal, sys, tempfile\n"
        "calls = []\n"
        "def dies(outputs, label):\n"
        "    calls.append(label)\n"
        # The first tells only whether the metric fits the model.
        "    if len(calls) < 2:\n"
        "        return [1.0]\n"
        "    print('made', tempfile.mkdtemp(), file=sys.stderr, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    (tmp_path / "metric.py").write_text(plugin)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    data = ("--data", shelf / "data.npz", "--metric", f"{tmp_path / 'metric.py'}:dies")
    for command in (
        ("quantize", shelf / "net.onnx", *data, *REAL),
        ("gate", shelf / "net.onnx", shelf / "net.onnx", *data, "--max-drop", "1pt"),
    ):
        process = vnnify(*command, cwd=tmp_path)
        _, err = process.communicate(timeout=60)
        assert process.returncode == ExitCode.RESOURCE, err
        assert "made " in err
        assert list((tmp_path / "tmp").iterdir()) == []
    assert leftovers(tmp_path) == [".out.vnnify-work"]


@pytest.mark.slow
def test_a_run_that_was_killed_again_and_again_goes_on_to_the_same_end(
    shelf: Path, tmp_path: Path
) -> None:
    command = ("quantize", shelf / "net.onnx", "--data", shelf / "data.npz", *REAL)
    kept: set[str] = set()
    for point in ("searching", "timing"):
        process = vnnify(*command, cwd=tmp_path)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(point):
                break
        process.kill()
        process.communicate(timeout=30)
        files = (tmp_path / ".out.vnnify-work").iterdir()
        now = {f.name for f in files if f.suffix in (".json", ".zip") and f.name[0] != "."}
        # What was there stays, and each run adds to it.
        assert kept < now, point
        kept = now
    assert (tmp_path / ".out.vnnify-work" / "best" / "model.onnx").is_file()
    process = vnnify(*command, cwd=tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "going on" in err
    assert {p.name for p in (tmp_path / "out").iterdir()} == FILES
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_an_interrupt_after_the_first_verdict_still_publishes(
    shelf: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    process = vnnify(
        "quantize", shelf / "net.onnx", "--data", shelf / "data.npz", *REAL, cwd=tmp_path
    )
    assert process.stderr is not None
    for line in process.stderr:
        if ": pass, drop" in line:
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert "Traceback" not in err
    assert "PASS" in out
    assert {p.name for p in (tmp_path / "out").iterdir()} == FILES


def children_of(parent: int) -> list[int]:
    """Children of a process."""
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(c) for c in found.split()]
