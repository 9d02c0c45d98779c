from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bench.errors import InputError, UnsupportedError
from bench.inputs import parse_input
from bench.models import read_model
from quantize import converting
from quantize.converting import convert_file
from quantize.sources.seam import ModelSpec
from tests import classifier, tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_a_model_is_converted_without_data(tmp_path: Path, folder: Path) -> None:
    path = classifier.network(tmp_path / "net.onnx")
    answer = convert_file(ModelSpec(str(path)), None, folder, "clean.onnx", None)
    made = read_model(folder / "clean" / "clean.onnx")
    assert answer == {
        "files": ["clean.onnx"],
        "notes": answer["notes"],
        "size_bytes": made.size_bytes,
        "sha256": made.sha256,
    }
    assert made.inputs == read_model(path).inputs


def test_notes_say_what_was_done(tmp_path: Path, folder: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Mul", ["c", "k"], ["y"]),
    ]
    constants = {"w": np.ones((2, 1, 1, 1), np.float32), "k": np.float32([3.0])}
    x: tiny.Port = ("x", TensorProto.FLOAT, [1, 1, 4, 4])
    path = tiny.save(tmp_path / "m.onnx", nodes, [x], [("y", TensorProto.FLOAT, None)], constants)
    answer = convert_file(ModelSpec(str(path)), None, folder, "m.onnx", None)
    assert any("folded" in note for note in answer["notes"])
    graph = onnx.load(str(folder / "clean" / "m.onnx")).graph
    assert [n.op_type for n in graph.node] == ["Conv"]


def test_sizes_that_are_not_in_the_file_come_from_the_user(tmp_path: Path, folder: Path) -> None:
    x: tiny.Port = ("x", TensorProto.FLOAT, ["batch", "length"])
    y: tiny.Port = ("y", TensorProto.FLOAT, None)
    path = tiny.save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], [x], [y], {})
    with pytest.raises(UnsupportedError, match=r"--input x:float32\[N,64\]"):
        convert_file(ModelSpec(str(path)), None, folder, "m.onnx", None)
    other = folder / "other"
    other.mkdir()
    sized = ModelSpec(str(path), inputs=(parse_input("x:float32[N,64]"),))
    convert_file(sized, None, other, "m.onnx", None)
    assert read_model(other / "clean" / "m.onnx").inputs == read_model(path).inputs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("loaded", [False, True])
def test_a_module_is_converted_without_data_and_it_is_said_whose_weights_it_has(
    tmp_path: Path, folder: Path, *, loaded: bool
) -> None:
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'vnnify[torch]'")
    (tmp_path / "net.py").write_text(
        "import torch\ndef build():\n    return torch.nn.Linear(3, 2)\n"
    )
    weights = tmp_path / "w.pt" if loaded else None
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "w.pt")
    spec = ModelSpec(f"{tmp_path}/net.py:build", weights, (parse_input("input:f32[N,T,3]"),))
    answer = convert_file(spec, None, folder, "m.onnx", None)
    assert any("trained or not" in note for note in answer["notes"]) is not loaded
    (made,) = read_model(folder / "clean" / "m.onnx").inputs
    assert made.shape == ("N", "T", 3)


def test_real_samples_are_compared_with(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = classifier.network(tmp_path / "net.onnx")
    data = classifier.samples(tmp_path / "d.npz", 20)
    seen = []
    real = converting.check_parity
    monkeypatch.setattr(
        converting, "check_parity", lambda run, p, feeds: (seen.extend(feeds), real(run, p, feeds))
    )
    convert_file(ModelSpec(str(path)), str(data), folder, "clean.onnx", None)
    x = classifier.images(20)[0]
    np.testing.assert_array_equal(np.concatenate([f["x"] for f in seen]), x[:4])


def test_a_conversion_that_computes_something_else_is_refused(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.linear(tmp_path / "a.onnx")
    tiny.linear(tmp_path / "b.onnx", seed=1)
    real = converting.prepare
    other = read_model(tmp_path / "b.onnx")
    monkeypatch.setattr(converting, "prepare", lambda _, out, **__: real(other, out))
    with pytest.raises(InputError, match="'y'"):
        convert_file(ModelSpec(str(path)), None, folder, "c.onnx", None)


def test_free_axes_without_data_ask_for_data(tmp_path: Path, folder: Path) -> None:
    path = tiny.unary(tmp_path / "m.onnx", "Neg", TensorProto.FLOAT, ["n", "length"])
    with pytest.raises(UnsupportedError, match="--data"):
        convert_file(ModelSpec(str(path)), None, folder, "m.onnx", None)
