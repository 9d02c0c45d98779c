import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.errors import InputError, OutputError, ResourceError, UnsupportedError, UsageError
from bench.models import NEWEST_IR, TensorSpec
from bench.runtimes.onnxruntime import OnnxRuntime
from bench.runtimes.seam import Settings
from quantize.sources import ModelSpec, convert, describe_inputs


def _model(path: Path, *, external: bool = False) -> Path:
    weight = np.ones((2000, 2), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2000])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, str(path), save_as_external_data=external, location="w.data")
    return path


def test_weights_are_not_read_to_know_the_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _model(tmp_path / "m.onnx", external=True)
    monkeypatch.setattr("bench.models.digest", lambda _: pytest.fail("weights were read"))
    assert [s.name for s in describe_inputs(ModelSpec(str(source)))] == ["x"]


@pytest.mark.parametrize("external", [False, True])
def test_a_file_of_a_version_that_the_runtime_does_not_know_is_read_by_it(
    tmp_path: Path, *, external: bool
) -> None:
    source, feeds = _model(tmp_path / "in" / "m.onnx", external=external), np.ones((1, 2000))
    proto = onnx.load(str(source), load_external_data=False)
    proto.ir_version = NEWEST_IR + 1
    onnx.save(proto, str(source))
    with pytest.raises(
        InputError, match=r"m\.onnx: has IR version 14, .* reads up to 13\. vnnify con"
    ):
        OnnxRuntime().open(source, Settings(threads=1))
    model = convert(ModelSpec(str(source)), None, tmp_path / "out" / "fp32.onnx")
    session = OnnxRuntime().open(model.path, Settings(threads=1))
    assert session.run({"x": feeds.astype(np.float32)})["y"].tolist() == [[2000.0, 2000.0]]
    assert onnx.load(str(source), load_external_data=False).ir_version == NEWEST_IR + 1


def test_a_model_is_copied_with_its_external_data(tmp_path: Path) -> None:
    source = _model(tmp_path / "in" / "m.onnx", external=True)
    model = convert(ModelSpec(str(source)), None, tmp_path / "out" / "fp32.onnx")

    assert model.path == tmp_path / "out" / "fp32.onnx"
    copied = tmp_path / "out" / "w.data"
    assert copied.read_bytes() == (tmp_path / "in" / "w.data").read_bytes()
    assert copied.stat().st_nlink == 1
    assert not copied.is_symlink()
    assert [str(s) for s in model.inputs] == ["x:float32[N,2000]"]


def test_a_disk_without_room_is_told_before_anything_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _model(tmp_path / "in" / "m.onnx", external=True)
    size = sum(f.stat().st_size for f in source.parent.iterdir())
    free = [3 * size - 1]
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free[0]))
    with pytest.raises(ResourceError, match=f"{3 * size:,} bytes are needed"):
        convert(ModelSpec(str(source)), None, tmp_path / "out" / "m.onnx")
    assert not any((tmp_path / "out").iterdir())
    free[0] += 1
    assert convert(ModelSpec(str(source)), None, tmp_path / "out" / "m.onnx").size_bytes == size


def test_the_inputs_are_those_that_the_file_declares(tmp_path: Path) -> None:
    spec = ModelSpec(str(_model(tmp_path / "m.onnx")))
    assert describe_inputs(spec) == (TensorSpec("x", "float32", ("N", 2000)),)


def test_the_source_is_never_overwritten(tmp_path: Path) -> None:
    source = _model(tmp_path / "m.onnx", external=True)
    before = source.read_bytes()
    for out in (source, tmp_path / "w.data", tmp_path / "fp32.onnx"):
        with pytest.raises(OutputError, match="another folder"):
            convert(ModelSpec(str(source)), None, out)
    assert source.read_bytes() == before
    assert not (tmp_path / "fp32.onnx").exists()


def test_external_data_outside_the_folder_is_refused(tmp_path: Path) -> None:
    source = _model(tmp_path / "in" / "m.onnx", external=True)
    (tmp_path / "in" / "w.data").rename(tmp_path / "w.data")
    (tmp_path / "in" / "w.data").symlink_to(tmp_path / "w.data")
    with pytest.raises(InputError, match="symbolic link"):
        convert(ModelSpec(str(source)), None, tmp_path / "out" / "m.onnx")
    assert not list((tmp_path / "out").iterdir())


def test_an_onnx_file_takes_no_weights(tmp_path: Path) -> None:
    spec = ModelSpec(str(_model(tmp_path / "m.onnx")), weights=tmp_path / "w.pt")
    with pytest.raises(UsageError, match="leave --weights out"):
        convert(spec, None, tmp_path / "out" / "m.onnx")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("m.pt", UsageError, r"file.py:factory --weights weights.pt"),
        ("m.safetensors", UsageError, r"--weights weights.safetensors"),
        ("m.py", UsageError, "names no function"),
        ("m.keras", UnsupportedError, "tf2onnx"),
        ("m.xml", UnsupportedError, "OpenVINO IR"),
        ("model.onx", InputError, r"no such file. Did you mean 'model.onnx'"),
        ("notes.txt", UsageError, r"unknown model format; known: ONNX"),
        (".", UnsupportedError, "is a folder"),
    ],
)
def test_what_is_no_model_is_answered_with_what_to_do(
    tmp_path: Path, name: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(error, match=message):
        describe_inputs(ModelSpec(str(tmp_path / name)))


def test_a_torchscript_archive_is_told_from_weights(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    for inside, error, message in (
        ("m/code/__torch__.py", UnsupportedError, "is a TorchScript archive"),
        ("m/data/0", UsageError, "holds weights only"),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("m/data.pkl", b"")
            archive.writestr(inside, b"")
        with pytest.raises(error, match=message):
            describe_inputs(ModelSpec(str(path)))
