"""What lies on disk while a search goes on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.models import read_model
from bench.stages import Stage
from quantize import keeping
from quantize.keeping import keep_best, move_model
from tests import tiny


def test_the_best_so_far_takes_the_place_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def place(quantized: Any, folder: Path) -> None:
        (folder / "model.onnx").write_text(quantized.model.sha256)

    monkeypatch.setattr(keeping, "place_model", place)
    monkeypatch.setattr(keeping, "recipe_of", lambda *_: "made = 1")
    for sha256 in ("a" * 64, "b" * 64, "b" * 64, "a" * 64):
        model: Any = SimpleNamespace(model=SimpleNamespace(sha256=sha256), samples_sha256="s")
        verdict: Any = Stage("any record", 1.0, 1)
        bench: Any = None
        keep_best(model, "onnxruntime", verdict, bench, tmp_path)
        assert (tmp_path / "best" / "model.onnx").read_text() == sha256
        kept = {p.name for p in (tmp_path / "best").iterdir()}
        assert kept == {"model.onnx", "recipe.toml", "verdict.json"}
        assert {p.name for p in tmp_path.iterdir()} == {"best", f"best-{sha256[:16]}"}


def test_a_model_moves_with_its_weights_and_leaves_everything_else(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    model = read_model(tiny.linear(before / "m.onnx"))
    for name in ("m.onnx.data", "other.onnx", "other.onnx.data"):
        (before / name).write_text(name)
    move_model(model, after)
    assert read_model(after / "m.onnx").sha256 == model.sha256
    assert {p.name for p in after.iterdir()} == {"m.onnx", "m.onnx.data"}
    assert {p.name for p in before.iterdir()} == {"other.onnx", "other.onnx.data"}
