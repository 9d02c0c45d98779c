"""External data is looked at before anything opens or copies it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.errors import InputError
from bench.models import digest, read_model
from tests import tiny


def model(folder: Path, location: str, **more: Any) -> Path:
    """A model with a constant of 8 bytes in another file.

    Args:
        folder: Where it goes.
        location: Of the data.
        more: Further entries of its external data; `kind` and `dims` change the constant.
    """
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "c")
    tensor.ClearField("raw_data")
    tensor.data_type = more.pop("kind", TensorProto.FLOAT)
    if dims := more.pop("dims", None):
        tensor.dims[:] = dims
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    path = tiny.save(
        folder / "m.onnx",
        [helper.make_node("Add", ["x", "c"], ["y"])],
        [("x", TensorProto.FLOAT, [2])],
        [("y", TensorProto.FLOAT, [2])],
    )
    proto = onnx.load(str(path))
    proto.graph.initializer.append(tensor)
    path.write_bytes(proto.SerializeToString())
    return path


def test_external_data_counts_in_digest_and_size(tmp_path: Path) -> None:
    path = model(tmp_path, "w.bin")
    (tmp_path / "w.bin").write_bytes(b"\x00" * 8)
    before = read_model(path)
    (tmp_path / "w.bin").write_bytes(b"\x01" * 8)
    after = read_model(path)
    assert before.size_bytes == path.stat().st_size + 8
    assert before.sha256 != after.sha256
    assert after.sha256 == digest([path, tmp_path / "w.bin"])


@pytest.mark.parametrize("location", ["/etc/passwd", "../w.bin", "a/../../w.bin"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    with pytest.raises(InputError, match="outside the model's folder"):
        read_model(model(tmp_path, location))


def test_external_data_that_is_a_link_is_refused(tmp_path: Path) -> None:
    path = model(tmp_path, "w.bin")
    (tmp_path / "real.bin").write_bytes(b"\x00" * 8)
    (tmp_path / "w.bin").symlink_to(tmp_path / "real.bin")
    with pytest.raises(InputError, match="symbolic link"):
        read_model(path)


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"w\.bin.*missing"):
        read_model(model(tmp_path, "w.bin"))


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"offset": 4}, r"takes 8 bytes from byte 4 of 'w\.bin' on, which ends at 8"),
        ({"dims": [3]}, r"FLOAT \[3\], takes 12 bytes from byte 0 .*copy or export both again"),
        ({"length": 4}, r"takes 8 bytes, but says that it has 4"),
        ({"offset": -4}, "the offset '-4', expected a whole number"),
        ({"length": "eight"}, "the length 'eight', expected a whole number"),
        ({"kind": TensorProto.STRING}, "which no file of external data holds"),
        ({"kind": 99}, "type 99"),
        # Two to a byte.
        ({"kind": TensorProto.INT4, "dims": [17]}, "takes 9 bytes"),
    ],
)
def test_data_that_a_file_cannot_hold_is_refused(
    tmp_path: Path, entries: dict[str, Any], told: str
) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(8))
    with pytest.raises(InputError, match=told):
        read_model(model(tmp_path, "w.bin", **entries))


@pytest.mark.parametrize(
    "entries",
    [{"offset": 0, "length": 8}, {"kind": TensorProto.INT4, "dims": [16]}, {"checksum": "x"}],
)
def test_data_that_fills_a_file_is_taken(tmp_path: Path, entries: dict[str, Any]) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(8))
    assert read_model(model(tmp_path, "w.bin", **entries)).size_bytes > 8


def test_data_in_the_model_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="keeps its data in the model's own file"):
        read_model(model(tmp_path, "m.onnx"))
