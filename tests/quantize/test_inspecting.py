"""`vnnify inspect` from its arguments to the files and the exit status."""

import importlib
import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from bench.errors import ExitCode, UnfitError
from bench.runtimes.openvino import OpenVino
from quantize import cli
from quantize.commands import inspect as command
from tests import tiny
from tests.graphs import GRAPHS, feeds_for
from tests.int8 import make

Run = Callable[..., tuple[int, str, str]]


def directly(target: str, job: dict[str, Any], **_: Any) -> Any:
    """What `run_isolated` does, without the process."""
    module, _, function = target.partition(":")
    return json.loads(json.dumps(getattr(importlib.import_module(module), function)(job)))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "run_isolated", directly)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vnnify", "inspect", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as caught:
                cli.main()
        finally:
            signal.signal(signal.SIGTERM, before)
        out, err = capfd.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, out, err

    return call


@pytest.fixture
def int8(tmp_path: Path) -> Path:
    name = "squeeze-and-excite"
    return make(GRAPHS[name](tmp_path / "m.onnx"), feeds_for(name)).path


def test_one_screen_says_what_runs(run: Run, int8: Path) -> None:
    status, out, _ = run(int8)
    assert status == ExitCode.OK
    assert "INT8 in 6 of 6 layers (6 static)." in out
    assert re.search(r"INT8 in onnxruntime +6 of 6 +kernels that multiply; 2 float islands", out)
    assert "can saturate" in out
    assert len(out.splitlines()) < 80


def test_the_report_names_every_layer_with_its_kernel_and_time(
    run: Run, int8: Path, tmp_path: Path
) -> None:
    status, _, _ = run(int8, "--html", "i.html", "--markdown", "i.md", "--out", "i.json")
    assert status == ExitCode.OK
    found = json.loads((tmp_path / "i.json").read_text())
    html, text = (tmp_path / "i.html").read_text(), (tmp_path / "i.md").read_text()
    assert len(found["layers"]) == 6
    for layer in found["layers"]:
        assert layer["name"] in html
        assert layer["name"] in text.replace("\\", "")
        assert layer["kernels"]["onnxruntime"]["ms"] > 0
    assert "Where the time goes" in html
    assert "<script" not in html


def test_json_is_the_whole_inspection(run: Run, int8: Path) -> None:
    status, out, _ = run(int8, "--json", "--no-time", "--runtime", "onnxruntime")
    assert status == ExitCode.OK
    found = json.loads(out)
    assert [k["runtime"] for k in found["kernels"]] == ["onnxruntime"]
    assert found["kernels"][0]["runs"] == 0
    assert all(k["ms"] is None for k in found["kernels"][0]["kernels"])


def test_samples_are_looked_at_as_far_as_asked(run: Run, int8: Path, tmp_path: Path) -> None:
    x = np.concatenate([f["x"] for f in feeds_for("squeeze-and-excite")])
    np.savez(tmp_path / "val.npz", x=x)
    options = ("--data", "val.npz", "--limit", "2", "--runtime", "onnxruntime")
    status, out, _ = run(int8, *options, "--json")
    assert status == ExitCode.OK
    seen = [x["observed"] for x in json.loads(out)["layers"] if x["observed"]]
    assert seen
    assert {s["samples"] for s in seen} == {2}
    assert "Wrong on samples" in run(int8, *options)[1]


def test_an_fp32_file_says_what_quantize_would_try(run: Run, tmp_path: Path) -> None:
    path = GRAPHS["transformer"](tmp_path / "m.onnx")
    status, out, _ = run(path, "--runtime", "onnxruntime", "--no-time")
    assert status == ExitCode.OK
    assert "FP32: 6 of 6 layers can run in INT8" in out
    assert "both factors are activations" in out
    # They have no weights, so that nothing counts them among layers.
    assert re.search(r"products +8 float\n +of them, no layers +2 without constant weights", out)


def test_what_has_no_weights_is_no_layer_in_int8_either(run: Run, tmp_path: Path) -> None:
    path = GRAPHS["transformer"](tmp_path / "m.onnx")
    int8 = make(path, feeds_for("transformer")).path
    out = run(int8, "--runtime", "onnxruntime", "--no-time")[1]
    assert "INT8 in 6 of 6 layers (6 static)." in out
    assert re.search(r"Layers in INT8 +6 of 6 +in the file", out)
    assert re.search(r"products +6 static, 2 float\n +of them, no layers +2 without", out)


def test_a_file_without_products_is_told_so(run: Run, tmp_path: Path) -> None:
    path = tiny.unary(tmp_path / "m.onnx", "Sin", TensorProto.FLOAT, ["n", 4])
    status, out, _ = run(path)
    assert status == ExitCode.OK
    assert "Holds no layer that INT8 could make faster." in out


def test_sizes_that_nobody_knows_leave_out_the_times(run: Run, tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    ports: list[tiny.Port] = [
        ("x", TensorProto.FLOAT, ["n", "t", 4]),
        ("y", TensorProto.FLOAT, None),
    ]
    path = tiny.save(
        tmp_path / "m.onnx", nodes, [ports[0]], [ports[1]], {"w": np.ones((4, 4), np.float32)}
    )
    status, out, _ = run(path)
    assert status == ExitCode.OK
    assert "not timed: input x:float32[n,t,4] has free axes" in " ".join(out.split())
    assert "time in all kernels" not in out


def test_a_runtime_that_refuses_the_file_is_named(
    run: Run, int8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench import kernels

    def refuse(*_: Any) -> Any:
        raise UnfitError("no such luck")

    monkeypatch.setitem(kernels._READERS, "openvino", refuse)
    status, out, _ = run(int8)
    assert status == ExitCode.OK
    assert "Kernels of openvino are unknown: no such luck" in out


@pytest.mark.parametrize("content", [b"", b"\x80\x04", None])
def test_what_is_no_model_is_refused(content: bytes | None, run: Run, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "m.onnx").write_bytes(content)
    found, out, err = run("m.onnx")
    assert found == ExitCode.INPUT
    assert out == ""
    assert err.startswith("error: m.onnx: ")


def test_an_opset_from_the_future_is_unsupported(run: Run, tmp_path: Path) -> None:
    ports: list[tiny.Port] = [("x", TensorProto.FLOAT, [1]), ("y", TensorProto.FLOAT, [1])]
    nodes = [helper.make_node("Sin", ["x"], ["y"])]
    tiny.save(tmp_path / "m.onnx", nodes, [ports[0]], [ports[1]], opset=99)
    assert run("m.onnx")[0] == ExitCode.UNSUPPORTED


def test_a_runtime_that_is_missing_or_silent_is_refused(
    run: Run, int8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(int8, "--runtime", "nonsense")[0] == ExitCode.USAGE

    def missing(_: Any) -> str:
        raise UnfitError("pip install openvino")

    monkeypatch.setattr(OpenVino, "version", missing)
    assert run(int8, "--runtime", "openvino")[0] == ExitCode.UNFIT
    # Not named, it is left out.
    assert "openvino" not in run(int8, "--no-time")[1].partition("Kernels")[2]


def test_reports_are_not_overwritten(run: Run, int8: Path, tmp_path: Path) -> None:
    (tmp_path / "i.html").write_text("mine")
    assert run(int8, "--html", "i.html")[0] == ExitCode.OUTPUT
    assert (tmp_path / "i.html").read_text() == "mine"
    assert run(int8, "--html", "i.html", "--force", "--no-time")[0] == ExitCode.OK


def test_a_runtime_that_keeps_its_kernels_to_itself_is_refused(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    tiny.linear(tmp_path / "m.onnx")
    status, _, err = run("m.onnx", "--runtime", "torch")
    assert status == ExitCode.USAGE
    assert "--runtime torch: it does not tell which kernels run" in err


def test_noise_against_fp32_takes_samples(run: Run, tmp_path: Path) -> None:
    name = "squeeze-and-excite"
    made = make(GRAPHS[name](tmp_path / "m.onnx"), feeds_for(name))
    feeds = {k: np.concatenate([f[k] for f in feeds_for(name)]) for k in feeds_for(name)[0]}
    np.savez(tmp_path / "data.npz", **feeds)
    status, out, _ = run(made.path, "--fp32", made.fp32, "--data", "data.npz", "--no-time")
    assert status == ExitCode.OK
    assert "Where noise is made" in out
    status, _, err = run(made.path, "--fp32", made.fp32)
    assert status == ExitCode.USAGE
    assert "Give them with --data" in err
