"""Models without their large weights: what is left parses, and put together it is the same file."""

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from bench import wire
from bench.wire import LEAST_BYTES, Place, join, split


def model(*sizes: int) -> onnx.ModelProto:
    """A graph with a constant of so many bytes each, and an edge of everything that may follow."""
    tensors = [
        numpy_helper.from_array((np.arange(size) % 251).astype(np.uint8), f"w{i}")
        for i, size in enumerate(sizes)
    ]
    for tensor in tensors[::2]:
        tensor.doc_string = "told"
        tensor.metadata_props.add(key="made", value="here")
    node = helper.make_node("Identity", ["x"], ["y"])
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy"]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], tensors, doc_string="graph")
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def written(path: Path, proto: onnx.ModelProto) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


@given(st.lists(st.one_of(st.integers(0, 400), st.integers(16_000, 17_000)), max_size=6))
def test_a_file_taken_apart_and_put_together_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    path = written(tmp_path_factory.mktemp("wire") / "m.onnx", whole := model(*sizes))
    with pytest.MonkeyPatch.context() as patch:
        # So that one and two bytes of length come up in the blink of an eye.
        patch.setattr(wire, "LEAST_BYTES", 100)
        light, places = split(path)
    data = path.read_bytes()
    assert [p.index for p in places] == [i for i, size in enumerate(sizes) if size >= 100]
    for place in places:
        raw = data[place.offset : place.offset + place.length]
        assert raw == whole.graph.initializer[place.index].raw_data
        whole.graph.initializer[place.index].ClearField("raw_data")
    assert onnx.ModelProto.FromString(light) == whole
    out = io.BytesIO()
    weights = {
        p.index: (p.length, lambda p=p: data[p.offset : p.offset + p.length])  # type: ignore[misc]
        for p in places
    }
    join(light, weights, out)
    assert out.getvalue() == data


def test_large_weights_alone_are_left_out(tmp_path: Path) -> None:
    light, places = split(written(tmp_path / "m.onnx", model(LEAST_BYTES - 1, LEAST_BYTES)))
    assert [p.length for p in places] == [LEAST_BYTES]
    assert LEAST_BYTES < len(light) < LEAST_BYTES + 1000


def test_a_file_that_is_cut_short_is_told_from_a_whole_one(tmp_path: Path) -> None:
    data = written(tmp_path / "m.onnx", model(3 * LEAST_BYTES)).read_bytes()
    cut = tmp_path / "cut.onnx"
    for length in (1, 40, LEAST_BYTES, len(data) - 1):
        cut.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"cut short|graphs"):
            split(cut)


@pytest.mark.parametrize(
    ("data", "why"), [(b"\x08\x08", "0 graphs"), (b"\x0b\x08", "wire type"), (b"", "empty")]
)
def test_what_is_no_model_is_refused(tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(ValueError, match=why):
        split(tmp_path / "m.onnx")


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1),
            st.sampled_from(["set", "put in", "cut out"]),
            # Keys of the fields that are looked for, also with other encodings, and long numbers.
            st.sampled_from([b"\0", b"\x7f", b"\x80", b"\xff" * 9, b"\xff" * 11, b"\x4d"])
            | st.sampled_from([b"\x3a", b"\x38", b"\x3b", b"\x2a", b"\x28", b"\x4a", b"\x48"])
            | st.binary(min_size=1, max_size=12),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_what_is_taken_apart_is_what_protobuf_reads_however_it_was_damaged(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[float, str, bytes]]
) -> None:
    data = model(30, 5, 200).SerializeToString()
    for share, how, put in edits:
        at = int(share * len(data))
        behind = at if how == "put in" else at + len(put)
        data = data[:at] + (b"" if how == "cut out" else put) + data[behind:]
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "LEAST_BYTES", 20)
        try:
            light, places = split(path)
        except ValueError:
            return
    assert read(light, data, places) == read(data, b"", ())


def read(serialized: bytes, data: bytes, places: tuple[Place, ...]) -> onnx.ModelProto | None:
    """The model with its weights put back; None where it is none."""
    try:
        proto = onnx.ModelProto.FromString(serialized)
    except DecodeError:
        return None
    for place in places:
        raw = data[place.offset : place.offset + place.length]
        proto.graph.initializer[place.index].raw_data = raw
    return proto


@pytest.mark.parametrize("encoding", [0, 1, 5])
def test_an_initializer_that_protobuf_skips_is_not_counted(tmp_path: Path, encoding: int) -> None:
    whole = model(LEAST_BYTES)
    graph = whole.graph.SerializeToString()
    skipped = bytes([5 << 3 | encoding, *[1] * {0: 1, 1: 8, 5: 4}[encoding]])
    whole.ClearField("graph")
    data = whole.SerializeToString()
    size = wire._head(7 << 3 | 2, len(skipped) + len(graph))
    (tmp_path / "m.onnx").write_bytes(data + size + skipped + graph)
    assert onnx.load(str(tmp_path / "m.onnx")).graph.initializer[0].name == "w0"
    assert [p.index for p in split(tmp_path / "m.onnx")[1]] == [0]


def test_weights_beyond_what_protobuf_can_hold_are_split_off_and_joined(tmp_path: Path) -> None:
    light = model(LEAST_BYTES)
    light.graph.initializer[0].ClearField("raw_data")
    path, size = tmp_path / "m.onnx", 5 << 30
    with path.open("wb") as file:
        # A hole in place of the bytes: they take no space.
        join(light.SerializeToString(), {0: (size, lambda: b"" * file.seek(size, 1))}, file)
    assert path.stat().st_size > size
    found, (place,) = split(path)
    assert onnx.ModelProto.FromString(found) == light
    assert (place.index, place.length) == (0, size)


def test_a_number_without_an_end_is_not_read_to_the_end(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x80" * (1 << 20))
    with pytest.raises(ValueError, match="no number, at byte 0"):
        split(tmp_path / "m.onnx")


def test_a_model_in_two_parts_which_protobuf_would_merge_is_refused(tmp_path: Path) -> None:
    twice = model(10).SerializeToString() * 2
    assert onnx.ModelProto.FromString(twice).graph.initializer[1].name == "w0"
    (tmp_path / "m.onnx").write_bytes(twice)
    with pytest.raises(ValueError, match="2 graphs"):
        split(tmp_path / "m.onnx")
