import os
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from bench.errors import InputError, UnsupportedError
from bench.models import MAX_OPSET, TensorSpec, read_model, synthetic_feeds
from tests import tiny


def test_reads_what_goes_in_and_comes_out(tmp_path: Path) -> None:
    model = read_model(tiny.linear(tmp_path / "m.onnx"))
    assert model.inputs == (TensorSpec("x", "float32", ("n", 4)),)
    assert model.outputs == (TensorSpec("y", "float32", ("n", 3)),)
    assert model.opset == 17
    assert model.size_bytes == (tmp_path / "m.onnx").stat().st_size
    assert str(model.inputs[0]) == "x:float32[n,4]"


def test_initializers_listed_as_inputs_are_not_inputs(tmp_path: Path) -> None:
    path = tiny.save(
        tmp_path / "m.onnx",
        [helper.make_node("Add", ["x", "c"], ["y"])],
        [("x", TensorProto.FLOAT, [2]), ("c", TensorProto.FLOAT, [2])],
        [("y", TensorProto.FLOAT, [2])],
        {"c": np.ones(2, np.float32)},
    )
    assert [s.name for s in read_model(path).inputs] == ["x"]


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (b"", "empty"),
        (b"\x89PNG\r\n", "PNG image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"\x80\x04rest", "pickle"),
        (b"\x08\x08\xff\xff\xff", "not a complete ONNX file"),
        (b"\x08\x08", "holds no graph"),
    ],
)
def test_other_files_are_named_for_what_they_are(
    tmp_path: Path, contents: bytes, says: str
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(contents)
    with pytest.raises(InputError, match=says):
        read_model(path)


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    tiny.linear(tmp_path / "real.onnx")
    with pytest.raises(InputError, match=r"no such file.*real\.onnx"):
        read_model(tmp_path / "m.onnx")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder"):
        read_model(tmp_path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tiny.linear(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match="not a complete ONNX file"):
        read_model(path)


def test_an_opset_from_the_future_is_unsupported(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    x: tiny.Port = ("x", TensorProto.FLOAT, [1])
    y: tiny.Port = ("y", TensorProto.FLOAT, [1])
    assert read_model(tiny.save(path, nodes, [x], [y], opset=MAX_OPSET)).opset == MAX_OPSET
    with pytest.raises(UnsupportedError, match=f"opset {MAX_OPSET + 1}"):
        read_model(tiny.save(path, nodes, [x], [y], opset=MAX_OPSET + 1))


def test_inputs_that_are_not_tensors_are_unsupported(tmp_path: Path) -> None:
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, [])
    node = helper.make_node("SequenceLength", ["x"], ["y"])
    graph = helper.make_graph([node], "g", [sequence], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedError, match="of type sequence"):
        read_model(tmp_path / "m.onnx")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.onnx")
    with pytest.raises(InputError, match="is a pipe or a device"):
        read_model(tmp_path / "m.onnx")


def test_a_name_that_no_file_can_have_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be looked at: File name too long"):
        read_model(tmp_path / ("m" * 300 + ".onnx"))


def test_synthetic_feeds_fit_and_repeat(tmp_path: Path) -> None:
    model = read_model(tiny.linear(tmp_path / "m.onnx"))
    feeds = synthetic_feeds(model, batch=5, seed=1, count=2)
    again = synthetic_feeds(model, batch=5, seed=1, count=2)
    assert [f["x"].shape for f in feeds] == [(5, 4), (5, 4)]
    assert feeds[0]["x"].dtype == np.float32
    assert not np.array_equal(feeds[0]["x"], feeds[1]["x"])
    assert np.array_equal(feeds[1]["x"], again[1]["x"])


@pytest.mark.parametrize(
    ("dtype", "shape", "says"),
    [
        (TensorProto.FLOAT, ["n", "length"], r"free axes.*--input x:float32\[N,64\]"),
        (TensorProto.FLOAT, None, r"free axes.*--input x:float32\[N,3,224,224\]"),
        (TensorProto.STRING, ["n"], "text"),
    ],
)
def test_feeds_that_cannot_be_made_up_ask_for_data(
    tmp_path: Path, dtype: int, shape: list[int | str] | None, says: str
) -> None:
    model = read_model(tiny.unary(tmp_path / "m.onnx", "Identity", dtype, shape))
    with pytest.raises(UnsupportedError, match=says) as told:
        synthetic_feeds(model, batch=1, seed=0)
    assert "--data" in str(told.value)


@pytest.mark.parametrize("dtype", ["bool", "int64", "uint8", "float16"])
def test_synthetic_feeds_have_the_type_asked_for(tmp_path: Path, dtype: str) -> None:
    code = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = read_model(tiny.unary(tmp_path / "m.onnx", "Identity", code, ["n", 2]))
    assert synthetic_feeds(model, batch=1, seed=0)[0]["x"].dtype == dtype
