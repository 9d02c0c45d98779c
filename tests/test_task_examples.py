"""Every example of docs/tasks.md runs as it stands there, on models and data of its kind."""

import json
import re
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from bench.store import load
from quantize import cli
from quantize.commands import gate as gate_command
from quantize.commands import work
from quantize.gating import GateReport
from quantize.metrics import METRICS
from quantize.tasks.fidelity import MOST_DB
from tests import tiny

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "tasks.md").read_text("utf-8")
COMMANDS = re.findall(r"^vnnify .*$", TEXT, re.MULTILINE)
FILES = re.findall(r"^```python\n# (\S+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def model(path: Path, shape: list[int | str], output: str, scale: float = 1.0) -> None:
    """A model that returns its input, which is how a test knows the right answer."""
    node = helper.make_node("Mul", ["x", "one"], [output])
    one = {"one": np.asarray(scale, np.float32)}
    ports = [(name, TensorProto.FLOAT, shape) for name in ("x", output)]
    tiny.save(path, [node], [ports[0]], [ports[1]], one)


def one_hot(classes: np.ndarray[Any, Any], count: int, axis: int = -1) -> Any:
    noise = np.random.default_rng(0).uniform(0, 0.5, (*classes.shape, count))
    return np.moveaxis(np.eye(count)[classes] + noise, -1, axis).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the examples name, lying where they say."""
    rng = np.random.default_rng(0)
    for stem, shape, output in (
        ("fp32", ["n", 4], "y"),
        ("segment", ["n", 3, 6, 5], "y"),
        ("detect", [1, "k", 6], "grid"),
        ("read", [1, "t", 28], "logits"),
        ("embed", ["n", 16], "y"),
        ("depth", ["n", 1, 16, 16], "y"),
    ):
        other = "int8" if stem == "fp32" else f"{stem}.int8"
        model(tmp_path / f"{stem}.onnx", shape, output)
        model(tmp_path / f"{other}.onnx", shape, output, scale=1.0001)
    kinds = rng.integers(0, 4, 400)
    x = one_hot(kinds, 4)
    np.savez(tmp_path / "classes.npz", x=x, labels=kinds)
    np.savez(tmp_path / "numbers.npz", x=x, labels=x + rng.normal(0, 0.1, x.shape))
    maps = rng.integers(0, 3, (60, 6, 5))
    np.savez(tmp_path / "maps.npz", x=one_hot(maps, 3, axis=1), labels=maps)
    groups = rng.integers(0, 5, 400)
    features = np.eye(16)[groups] + rng.normal(0, 0.1, (400, 16))
    np.savez(tmp_path / "groups.npz", x=features.astype(np.float32), labels=groups)
    np.savez(tmp_path / "scenes.npz", x=rng.random((60, 1, 16, 16)).astype(np.float32))
    pairs = rng.standard_normal((60, 2, 16)).astype(np.float32)
    likeness = (pairs[:, 0] * pairs[:, 1]).sum(axis=1) / 16
    np.savez(tmp_path / "pairs.npz", x=pairs, likeness=likeness)
    for i in range(40):
        boxes(tmp_path / "boxes" / f"{i}.npz", rng)
    lines(tmp_path / "lines", rng)
    for name, code in FILES:
        (tmp_path / name).write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def boxes(path: Path, rng: np.random.Generator) -> None:
    path.parent.mkdir(exist_ok=True)
    corners = rng.uniform(0, 50, (4, 2))
    label = np.column_stack([corners, corners + 20, rng.integers(0, 2, 4)])
    found = np.column_stack([label[:, :4] + 1, rng.random(4), label[:, 4]])
    np.savez(path, x=found[None].astype(np.float32), label=label)


def lines(folder: Path, rng: np.random.Generator) -> None:
    folder.mkdir()
    rows = ["file,label"]
    for i in range(40):
        steps = rng.integers(1, 27, 8)
        steps = np.insert(steps, 4, [steps[3], 0])  # a repetition and a blank
        np.save(folder / f"{i}.npy", one_hot(steps, 28)[None])
        kept = [s for s, before in zip(steps, [0, *steps], strict=False) if s not in (0, before)]
        rows.append(f"{i}.npy,{''.join(chr(96 + s) for s in kept)}")
    (folder / "labels.csv").write_text("\n".join(rows), encoding="utf-8")


@pytest.mark.parametrize("line", COMMANDS, ids=lambda c: re.search(r"--metric (\S+)", c)[1])  # type: ignore[index]
def test_an_example_runs(
    line: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def directly(_target: str, job: dict[str, Any], **_: Any) -> Any:
        return json.loads(json.dumps(work.gate(job)))

    monkeypatch.setattr(gate_command, "run_isolated", directly)
    monkeypatch.setattr(sys, "argv", [*shlex.split(line), "--json"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as caught:
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    out, err = capfd.readouterr()
    # Few samples of which none changed are too few to pass; nothing else is wrong.
    assert caught.value.code in (0, 4), err
    value = load(GateReport, out.encode(), "stdout").evaluations[0].value
    wanted = {
        "mae": (0, 0.2),
        "cer": (0, 0.01),
        "map": (0.5, 1),
        "sts": (0.7, 1),
        "sqnr": (MOST_DB, MOST_DB),
        "psnr": (MOST_DB, MOST_DB),
    }
    low, high = wanted.get(re.search(r"--metric (\S+)", line)[1], (0.95, 1))  # type: ignore[index]
    assert low <= value <= high


def test_the_table_names_every_metric() -> None:
    table = TEXT.partition("| Task |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([\w@]+)`", table)) == set(METRICS)
