"""Graphs whose weights go when nobody needs them, and those in graphs inside."""

import gc
import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.models import Feeds, read_model
from bench.runtimes import RUNTIMES, Settings
from quantize import graphs
from quantize.graphs import light, load, opened, save, save_apart, weight_bytes
from tests import tiny

FLOAT = TensorProto.FLOAT


def linear(path: Path) -> Path:
    return tiny.save(
        path,
        [helper.make_node("MatMul", ["x", "w"], ["y"], "mm")],
        [("x", FLOAT, ["n", 64])],
        [("y", FLOAT, ["n", 64])],
        {"w": np.eye(64, dtype=np.float32)},
    )


def test_weights_go_when_the_block_ends_though_the_graph_refers_to_itself(tmp_path: Path) -> None:
    gc.disable()
    try:
        with opened(linear(tmp_path / "m.onnx")) as model:
            held = model.graph.initializers["w"].const_value
            assert held is not None
            np.testing.assert_array_equal(held.numpy(), np.eye(64))
            gone = weakref.ref(held)
            del held
            assert gone() is not None
        assert gone() is None
    finally:
        gc.enable()


def test_weights_of_a_branch_are_taken_into_the_file_as_well(tmp_path: Path) -> None:
    def branch(name: str) -> ir.Graph:
        source = ir.load(linear(tmp_path / f"{name}.onnx")).graph
        inside = source.initializers["w"]
        node = ir.node("Identity", [inside], name=f"{name}_node")
        node.outputs[0].name = f"{name}_out"
        del source.initializers["w"]
        inside.name = f"{name}_w"
        for use in list(inside.uses()):
            if use.node is not node:
                use.node.replace_input_with(use.idx, None)
        return ir.Graph([], [node.outputs[0]], nodes=[node], initializers=[inside], name=name)

    condition = ir.Value(name="c", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    choice = ir.node(
        "If", [condition], attributes={"then_branch": branch("a"), "else_branch": branch("b")}
    )
    choice.outputs[0].name = "y"
    choice.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([condition], [choice.outputs[0]], nodes=[choice], opset_imports={"": 17})
    model = ir.Model(graph, ir_version=8)
    assert weight_bytes(model) == 2 * 64 * 64 * 4
    ir.save(model, tmp_path / "apart.onnx", external_data="apart.data")
    save(ir.load(tmp_path / "apart.onnx"), tmp_path / "whole.onnx")
    (tmp_path / "apart.data").unlink()
    whole = ir.load(tmp_path / "whole.onnx")
    inside = [v for g in whole.graph.subgraphs() for v in g.initializers.values()]
    assert len(inside) == 2
    for value in inside:
        assert value.const_value is not None
        np.testing.assert_array_equal(value.const_value.numpy(), np.eye(64))


MANY = 8
SIDE = 256  # Of weights of 256 KiB.


def many(path: Path) -> Path:
    """A chain of products with large weights."""
    names = ["x", *(f"t{i}" for i in range(MANY - 1)), "y"]
    nodes = [
        helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]], f"mm{i}")
        for i in range(MANY)
    ]
    random = np.random.default_rng(0)
    weights = {f"w{i}": random.random((SIDE, SIDE), np.float32) for i in range(MANY)}
    shape: list[int | str] = ["n", SIDE]
    return tiny.save(path, nodes, [("x", FLOAT, shape)], [("y", FLOAT, shape)], weights)


def peak_bytes() -> int:
    """The most memory that Python held since the last call."""
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    return peak


def test_large_weights_are_in_memory_one_at_a_time(tmp_path: Path) -> None:
    source, one = many(tmp_path / "m.onnx"), 4 * SIDE * SIDE
    read_model(source)
    tracemalloc.start()
    try:
        read_model(source)
        assert peak_bytes() < 2 * one
        with opened(source) as model:
            total = sum(float(t.numpy().sum()) for t in held(model))
            assert peak_bytes() < 2 * one
            save(model, tmp_path / "out.onnx")
            assert peak_bytes() < 3 * one
    finally:
        tracemalloc.stop()
    assert total > 0
    assert (tmp_path / "out.onnx").stat().st_size > MANY * one


def held(model: ir.Model) -> list[ir.TensorProtocol]:
    return [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]


def test_what_is_read_is_written_as_a_library_would(tmp_path: Path) -> None:
    source = many(tmp_path / "m.onnx")
    ir.save(ir.load(source), tmp_path / "wanted.onnx")
    model = load(source)
    save(model, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "wanted.onnx").read_bytes()
    # What was saved is what it was.
    assert all(isinstance(t, ir.LazyTensor) for t in held(model))


def test_weights_outlast_the_name_of_their_file(tmp_path: Path) -> None:
    source = many(tmp_path / "m.onnx")
    wanted = [t.numpy() for t in held(ir.load(source))]
    model = load(source)
    source.unlink()
    for tensor, values in zip(held(model), wanted, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), values)


@pytest.mark.parametrize(
    "kind", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.INT8, ir.DataType.INT4]
)
def test_weights_of_every_width_read_as_a_library_reads_them(
    tmp_path: Path, kind: ir.DataType
) -> None:
    shape, count = [512, 512], 512 * 512
    raw = np.random.default_rng(1).integers(0, 60, int(count * kind.bitwidth / 8)).astype(np.uint8)
    tensor = onnx.TensorProto(
        name="w", data_type=kind.value, dims=shape, raw_data=raw.tobytes(), doc_string="told"
    )
    graph = helper.make_graph([], "g", [], [], [tensor])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    (found,), (wanted,) = held(load(path)), held(ir.load(path))
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(
        found.numpy().astype(np.float32), wanted.numpy().astype(np.float32)
    )
    assert found.doc_string == wanted.doc_string


ODD: dict[str, dict[str, Any]] = {
    "no name": {"name": ""},
    "two of one name": {"name": "x"},
    "text": {"data_type": TensorProto.STRING},
    "no type": {"data_type": TensorProto.UNDEFINED},
    "in another file": {"data_location": TensorProto.EXTERNAL},
    "too few": {"dims": [99_999]},
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_weights_are_what_a_library_takes_them_for(tmp_path: Path, odd: str) -> None:
    def values(model: ir.Model) -> dict[str, float | str]:
        found: dict[str, float | str] = {}
        for name, value in model.graph.initializers.items():
            assert value.const_value is not None
            try:
                found[name] = float(value.const_value.numpy().sum())
            except ValueError as e:
                found[name] = str(e)
        return found

    ones, nines = np.ones(20_000, np.float32), np.full(20_000, 9, np.float32)
    nines.tofile(tmp_path / "beside.bin")
    proto = helper.make_model(
        helper.make_graph([], "g", [], [], [numpy_helper.from_array(v, "x") for v in (nines, ones)])
    )
    tensor = proto.graph.initializer[1]
    tensor.name = "odd"
    tensor.ClearField("dims")
    tensor.external_data.add(key="location", value="beside.bin")
    tensor.MergeFrom(TensorProto(**{"dims": [20_000], **ODD[odd]}))
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    assert values(load(path)) == values(ir.load(path))


def test_numbers_that_are_not_stored_as_bytes_stay_as_they_are(tmp_path: Path) -> None:
    tensor = helper.make_tensor("w", FLOAT, [20_000], np.arange(20_000, dtype=np.float32))
    assert not tensor.HasField("raw_data")
    graph = helper.make_graph([], "g", [], [], [tensor])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    ir.save(ir.load(tmp_path / "m.onnx"), tmp_path / "wanted.onnx")
    save(load(tmp_path / "m.onnx"), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "wanted.onnx").read_bytes()


def ran(path: Path, feeds: Feeds) -> Feeds:
    session = RUNTIMES["onnxruntime"].open(path, Settings(threads=1))
    try:
        return session.run(feeds)
    finally:
        session.close()


def test_a_light_copy_says_where_in_the_models_file_its_weights_lie(tmp_path: Path) -> None:
    model = read_model(many(tmp_path / "m.onnx"))
    found = light(model, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"m.onnx", found.path.name}
    assert found.path.stat().st_size < 4096
    assert (found.sha256, found.size_bytes) == (model.sha256, model.size_bytes)
    assert read_model(found.path).size_bytes > model.size_bytes
    feeds = {"x": np.random.default_rng(1).random((3, SIDE), np.float32)}
    np.testing.assert_array_equal(ran(found.path, feeds)["y"], ran(model.path, feeds)["y"])
    for theirs, ours in zip(held(ir.load(found.path)), held(ir.load(model.path)), strict=True):
        assert isinstance(theirs, ir.ExternalTensor)
        np.testing.assert_array_equal(theirs.numpy(), ours.numpy())
    written = found.path.stat().st_mtime_ns
    assert light(model, tmp_path).path.stat().st_mtime_ns == written


def test_models_that_no_light_copy_can_point_into_stay_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = read_model(many(tmp_path / "m.onnx"))
    (tmp_path / "elsewhere").mkdir()
    assert light(model, tmp_path / "elsewhere") is model

    def refuse(_: Path) -> None:
        raise ValueError("2 graphs")

    with monkeypatch.context() as patch:
        patch.setattr(graphs, "split", refuse)
        assert light(model, tmp_path) is model
    # Its weights lie beside it already.
    monkeypatch.setattr(graphs, "EXTERNAL_BYTES", 100)
    assert light(model, tmp_path) is model
    assert {p.name for p in tmp_path.rglob("*")} == {"m.onnx", "elsewhere"}


def test_weights_that_lie_beside_a_graph_stay_there_as_it_is_written(tmp_path: Path) -> None:
    source = light(read_model(many(tmp_path / "m.onnx")), tmp_path).path
    wanted = {
        n: t.numpy()
        for n, t in zip(sorted(f"w{i}" for i in range(MANY)), held(ir.load(source)), strict=True)
    }
    model = ir.load(source)
    new, text = (
        np.ones((SIDE, SIDE), np.float32),
        ir.StringTensor(np.array([b"a" * 300]), name="words"),
    )
    model.graph.initializers["w3"].const_value = ir.Tensor(new)
    words = ir.Value(name="words", const_value=text)
    model.graph.initializers.add(words)
    save_apart(model, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").stat().st_size == new.nbytes
    # It is what it was.
    assert isinstance(model.graph.initializers["w3"].const_value, ir.Tensor)
    found = ir.load(tmp_path / "out.onnx").graph.initializers
    assert found["words"].const_value.string_data() == text.string_data()  # type: ignore[union-attr]
    for name, values in {**wanted, "w3": new}.items():
        np.testing.assert_array_equal(found[name].const_value.numpy(), values)  # type: ignore[union-attr]
    # In another folder, none lies beside it.
    (tmp_path / "other").mkdir()
    save_apart(model, tmp_path / "other" / "out.onnx")
    assert (tmp_path / "other" / "out.onnx.data").stat().st_size == MANY * new.nbytes
    # Where all of them lie there, none is written.
    save_apart(ir.load(source), tmp_path / "same.onnx")
    assert not (tmp_path / "same.onnx.data").exists()
