from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from bench.errors import InputError
from bench.feeds import MAX_FEEDS, feeds_digest, load_feeds, read_feeds, save_feeds
from bench.models import Feeds, Model, read_model
from tests import tiny


def test_feeds_survive_the_file(tmp_path: Path) -> None:
    feeds: list[Feeds] = [
        {"x/../y": np.arange(6, dtype=np.int64).reshape(2, 3), "": np.array(1.5, np.float32)},
        {"x/../y": np.zeros((0, 3), np.int64), "": np.array(2.5, np.float32)},
    ]
    save_feeds(feeds, tmp_path / "f.npz")
    loaded = load_feeds(tmp_path / "f.npz")
    assert [list(f) for f in loaded] == [list(f) for f in feeds]
    for a, b in zip(loaded, feeds, strict=True):
        for name in a:
            assert a[name].dtype == b[name].dtype
            assert a[name].shape == b[name].shape
            assert np.array_equal(a[name], b[name])


def test_python_strings_become_text(tmp_path: Path) -> None:
    save_feeds([{"x": np.array(["a", "bcd"], dtype=object)}], tmp_path / "f.npz")
    assert load_feeds(tmp_path / "f.npz")[0]["x"].tolist() == ["a", "bcd"]


def test_other_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="object"):
        save_feeds([{"x": np.array([{"a": 1}], dtype=object)}], tmp_path / "f.npz")


def test_the_digest_sees_names_types_shapes_and_values() -> None:
    base = np.arange(6, dtype=np.float32)
    variants: list[list[Feeds]] = [
        [{"x": base}],
        [{"y": base}],
        [{"x": base.astype(np.float64)}],
        [{"x": base.reshape(2, 3)}],
        [{"x": base + 1}],
        [{"x": base}, {"x": base}],
    ]
    assert len({feeds_digest(v) for v in variants}) == len(variants)
    assert feeds_digest([{"x": base[::-1][::-1]}]) == feeds_digest(variants[0])


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return read_model(tiny.linear(tmp_path / "m.onnx"))


def _file(tmp_path: Path, **arrays: Any) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    return path


def test_samples_are_cut_into_batches(tmp_path: Path, model: Model) -> None:
    x = np.arange(28, dtype=np.float32).reshape(7, 4)
    feeds = read_feeds(_file(tmp_path, x=x), model, batch=3)
    assert [f["x"].tolist() for f in feeds] == [x[:3].tolist(), x[3:6].tolist()]


def test_no_more_feeds_than_needed(tmp_path: Path, model: Model) -> None:
    x = np.zeros((MAX_FEEDS + 5, 4), np.float32)
    assert len(read_feeds(_file(tmp_path, x=x), model, batch=1)) == MAX_FEEDS


def test_inputs_of_fixed_shape_are_one_or_many(tmp_path: Path) -> None:
    path = tiny.unary(tmp_path / "m.onnx", "Neg", TensorProto.FLOAT, [2, 3])
    model = read_model(path)
    one, many = np.zeros((2, 3), np.float32), np.zeros((5, 2, 3), np.float32)
    assert len(read_feeds(_file(tmp_path, x=one), model, batch=1)) == 1
    assert len(read_feeds(_file(tmp_path, x=many), model, batch=1)) == 5


def test_arrays_have_to_agree_on_how_many(tmp_path: Path) -> None:
    path = tiny.save(
        tmp_path / "m.onnx",
        [helper.make_node("Add", ["x", "z"], ["y"])],
        [(n, TensorProto.FLOAT, ["n", 2]) for n in "xz"],
        [("y", TensorProto.FLOAT, ["n", 2])],
    )
    file = _file(tmp_path, x=np.zeros((3, 2), np.float32), z=np.zeros((4, 2), np.float32))
    with pytest.raises(InputError, match="different numbers"):
        read_feeds(file, read_model(path), batch=1)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"z": np.zeros((1, 4), np.float32)}, r"holds arrays \['z'\], the model takes \['x'\]"),
        ({"x": np.zeros((1, 4), np.float64)}, "float64"),
        ({"x": np.zeros((1, 4), np.float32)}, "too few samples"),
        ({"x": np.array([{}], dtype=object)}, "plain arrays"),
    ],
)
def test_data_that_does_not_fit_is_refused(
    tmp_path: Path, model: Model, arrays: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        read_feeds(_file(tmp_path, **arrays), model, batch=2)


@pytest.mark.parametrize("contents", [b"", b"PK\x03\x04garbage", b"text"])
def test_other_files_are_refused(tmp_path: Path, model: Model, contents: bytes) -> None:
    (tmp_path / "data.npz").write_bytes(contents)
    with pytest.raises(InputError, match=r"not an \.npz"):
        read_feeds(tmp_path / "data.npz", model, batch=1)


def test_a_file_that_is_missing_is_told_from_one_of_another_kind(
    tmp_path: Path, model: Model
) -> None:
    with pytest.raises(InputError, match=r"x\.py:samples: no such file\. This takes an \.npz file"):
        read_feeds(tmp_path / "x.py:samples", model, batch=1)


def test_a_single_array_is_refused(tmp_path: Path, model: Model) -> None:
    np.save(tmp_path / "data.npy", np.zeros((1, 4), np.float32))
    with pytest.raises(InputError, match=r"not an \.npz"):
        read_feeds(tmp_path / "data.npy", model, batch=1)
