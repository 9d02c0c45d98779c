"""Preparation keeps what a graph computes, and refuses what cannot be quantized."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.errors import ExitCode, InputError, UnfitError, UnsupportedError
from bench.models import Feeds, read_model
from bench.runtimes.onnxruntime import OnnxRuntime
from bench.runtimes.seam import Settings
from quantize import graphs
from quantize.amounts import size_text
from quantize.prepare import Prepared, prepare
from tests import tiny
from tests.int8 import run

FLOAT, HALF, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64
IMAGE = ("x", FLOAT, ["n", 3, 8, 8])
Array = np.ndarray[Any, Any]


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def prepared(path: Path) -> Prepared:
    return prepare(read_model(path), path.with_name("out.onnx"))


def ops(found: Prepared) -> list[str]:
    return [n.op_type for n in onnx.load(str(found.model.path)).graph.node]


def same_answers(
    source: Path, found: Prepared, *samples: Feeds, rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    onnx.checker.check_model(onnx.load(str(found.model.path)), full_check=True)
    before = read_model(source)
    assert [str(s) for s in found.model.inputs] == [str(s) for s in before.inputs]
    assert [(s.name, s.dtype) for s in found.model.outputs] == [
        (s.name, s.dtype) for s in before.outputs
    ]
    for sample in samples:
        ours, theirs = run(found.model.path, sample), run(source, sample, optimize="none")
        for name, values in theirs.items():
            assert ours[name].dtype == values.dtype
            np.testing.assert_allclose(ours[name], values, rtol=rtol, atol=atol)


def cnn(path: Path, opset: int) -> Path:
    """Conv, batch norm, Relu, a second one without bias, dropout, pooling, Gemm."""
    batch = {
        f"bn{i}.{k}": np.abs(normal(i + j, 4)) + 0.1 for i in (1, 2) for j, k in enumerate("sbmv")
    }
    nodes = [
        helper.make_node("Conv", ["x", "k1", "b1"], ["c1"], "c1", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", *[f"bn1.{k}" for k in "sbmv"]], ["n1"], "n1"),
        helper.make_node("Relu", ["n1"], ["r1"], "r1"),
        helper.make_node("Conv", ["r1", "k2"], ["c2"], "c2"),
        helper.make_node("BatchNormalization", ["c2", *[f"bn2.{k}" for k in "sbmv"]], ["n2"], "n2"),
        helper.make_node("Identity", ["n2"], ["i2"], "i2"),
        helper.make_node("GlobalAveragePool", ["i2"], ["g"], "g"),
        helper.make_node("Flatten", ["g"], ["f"], "f"),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"], "head"),
    ]
    constants = batch | {
        "k1": normal(1, 4, 3, 3, 3),
        "b1": normal(2, 4),
        "k2": normal(3, 4, 4, 3, 3),
        "w": normal(4, 4, 5),
        "b": normal(5, 5),
    }
    return tiny.save(path, nodes, [IMAGE], [("y", FLOAT, ["n", 5])], constants, opset)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 20])
def test_any_opset_ends_at_13_or_newer_with_norms_folded(tmp_path: Path, opset: int) -> None:
    source = cnn(tmp_path / "m.onnx", opset)
    found = prepared(source)
    assert found.model.opset >= max(13, opset)
    assert ops(found) == ["Conv", "Relu", "Conv", "GlobalAveragePool", "Flatten", "Gemm"]
    assert (f"opset raised from {opset}" in " ".join(found.notes)) == (
        opset <= 13 < found.model.opset
    )
    assert any("folded" in n for n in found.notes)
    same_answers(source, found, {"x": normal(9, 2, 3, 8, 8)})
    # Nothing else is left in the folder.
    assert {p.name for p in tmp_path.iterdir()} == {"m.onnx", "out.onnx"}


def test_the_source_is_not_touched(tmp_path: Path) -> None:
    source = cnn(tmp_path / "m.onnx", 9)
    before = source.read_bytes()
    prepared(source)
    assert source.read_bytes() == before


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    source = cnn(tmp_path / "m.onnx", 11)
    first = prepared(source).model.sha256
    assert prepare(read_model(source), tmp_path / "again.onnx").model.sha256 == first


def test_old_operators_come_along(tmp_path: Path) -> None:
    # Clip's limits were attributes before opset 11, Squeeze's and ReduceSum's axes before 13.
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], "c"),
        helper.make_node("Clip", ["c"], ["r"], "r", min=0.0, max=6.0),
        helper.make_node("ReduceSum", ["r"], ["s"], "s", axes=[2, 3], keepdims=1),
        helper.make_node("Squeeze", ["s"], ["y"], "q", axes=[2, 3]),
    ]
    source = tiny.save(
        tmp_path / "m.onnx",
        nodes,
        [IMAGE],
        [("y", FLOAT, ["n", 4])],
        {"k": normal(1, 4, 3, 3, 3)},
        opset=9,
    )
    found = prepared(source)
    assert ops(found)[:2] == ["Conv", "Clip"]
    same_answers(source, found, {"x": normal(9, 2, 3, 8, 8)})


def test_an_opset_that_cannot_be_raised_is_unsupported(tmp_path: Path) -> None:
    # The converter knows no successor of the first Pad.
    node = helper.make_node("Pad", ["x"], ["y"], "pad", paddings=[0, 0, 1, 1, 0, 0, 1, 1])
    source = tiny.save(tmp_path / "m.onnx", [node], [IMAGE], [("y", FLOAT, None)], opset=1)
    with pytest.raises(UnsupportedError, match=r"m\.onnx: opset 1 cannot be raised.*opset 17"):
        prepared(source)


def test_an_old_graph_that_makes_no_sense_is_refused_and_no_bug_of_ours(tmp_path: Path) -> None:
    # TopK has two outputs. What the converter throws here is no RuntimeError.
    node = helper.make_node("TopK", ["x"], ["y"], "top", k=1)
    source = tiny.save(tmp_path / "m.onnx", [node], [IMAGE], [("y", FLOAT, None)], opset=1)
    with pytest.raises(UnsupportedError, match="opset 1 cannot be raised"):
        prepared(source)


def test_a_large_model_of_an_old_opset_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "EXTERNAL_BYTES", 10)
    with pytest.raises(UnsupportedError, match="2 GB"):
        prepared(cnn(tmp_path / "m.onnx", 11))


def large(folder: Path, weights: int = 1) -> Path:
    """A product whose weights lie in a file beside it, of which `weights` are used."""
    constants = {f"w{i}": normal(i, 4, 4) for i in range(2)}
    nodes = [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"], f"mm{i}") for i in range(2)]
    ports = [(f"y{i}", FLOAT, ["n", 4]) for i in range(2)]
    tiny.save(folder / "in.onnx", nodes, [("x", FLOAT, ["n", 4])], ports, constants)
    model = ir.load(folder / "in.onnx")
    path = folder / "large.onnx"
    ir.save(model, path, external_data="large.onnx.data", size_threshold_bytes=0)
    kept = ir.load(path)
    for node in list(kept.graph)[weights:]:
        kept.graph.outputs.remove(node.outputs[0])
        kept.graph.remove(node, safe=True)
        del kept.graph.initializers[f"w{node.name[-1]}"]
    ir.save(kept, path)
    return path


def test_a_changed_graph_shares_large_weights_with_the_one_it_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "EXTERNAL_BYTES", 10)
    source, folder = large(tmp_path, 2), tmp_path / "there"
    folder.mkdir()
    model = ir.load(source)
    sample = {"x": normal(9, 2, 4)}
    wanted = run(source, sample)
    graphs.save(model, folder / "out.onnx", share=True)
    assert (folder / "out.onnx.data").samefile(tmp_path / "large.onnx.data")
    # What was saved reads its own file still.
    assert {t.path for t in held(model)} == {str(tmp_path / "large.onnx.data")}
    found = run(folder / "out.onnx", sample)
    assert all((found[n] == wanted[n]).all() for n in ("y0", "y1"))
    (folder / "out.onnx.data").unlink()
    graphs.save(model, folder / "apart.onnx")
    assert not (folder / "apart.onnx.data").samefile(tmp_path / "large.onnx.data")


@pytest.mark.parametrize("why", ["half of the file is not read", "no links", "new weights"])
def test_large_weights_are_copied_where_sharing_them_makes_no_sense(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "EXTERNAL_BYTES", 10)
    monkeypatch.setattr(graphs, "_INLINE_BYTES", 40)
    model = ir.load(large(tmp_path, 1 if why.startswith("half") else 2))
    if why == "no links":

        def refuse(*_: object) -> None:
            raise OSError("no links here")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
    if why == "new weights":
        model.graph.initializers["w0"].const_value = ir.Tensor(normal(5, 4, 4), name="w0")
    graphs.save(model, tmp_path / "out.onnx", share=True)
    assert not (tmp_path / "out.onnx.data").samefile(tmp_path / "large.onnx.data")
    (tmp_path / "large.onnx.data").unlink()
    assert run(tmp_path / "out.onnx", {"x": normal(9, 2, 4)})


def held(model: ir.Model) -> list[Any]:
    return [v.const_value for v in model.graph.initializers.values()]


def test_large_weights_lie_in_a_file_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = cnn(tmp_path / "m.onnx", 17)
    monkeypatch.setattr(graphs, "EXTERNAL_BYTES", 100)
    found = prepared(source)
    assert (tmp_path / "out.onnx.data").stat().st_size > 500
    assert (tmp_path / "out.onnx").stat().st_size < source.stat().st_size
    assert {p.name for p in tmp_path.iterdir()} == {"m.onnx", "out.onnx", "out.onnx.data"}
    sample = {"x": normal(9, 2, 3, 8, 8)}
    np.testing.assert_allclose(
        run(found.model.path, sample)["y"], run(source, sample)["y"], rtol=1e-4, atol=1e-5
    )


def half(path: Path, dtype: int = HALF) -> Path:
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    nodes = [
        helper.make_node("Conv", ["x", "k", "b"], ["c"], "c"),
        helper.make_node("Relu", ["c"], ["r"], "r"),
        helper.make_node("Shape", ["r"], ["shape"], "shape"),
        helper.make_node(
            "ConstantOfShape",
            ["shape"],
            ["ones"],
            "ones",
            value=numpy_helper.from_array(np.ones(1, kind)),
        ),
        helper.make_node("Add", ["r", "ones"], ["s"], "s"),
        helper.make_node("Cast", ["ids"], ["level"], "cast", to=dtype),
        helper.make_node("Mul", ["s", "level"], ["y"], "m"),
        helper.make_node("Sigmoid", ["s"], ["z"], "z"),
    ]
    inputs = [("x", dtype, ["n", 3, 8, 8]), ("ids", INT64, [1])]
    outputs = [("y", dtype, ["n", 4, 6, 6]), ("z", dtype, ["n", 4, 6, 6])]
    constants = {"k": normal(1, 4, 3, 3, 3).astype(kind), "b": normal(2, 4).astype(kind)}
    return tiny.save(path, nodes, inputs, outputs, constants)


def test_half_precision_is_widened_inside_and_kept_outside(tmp_path: Path) -> None:
    source = half(tmp_path / "m.onnx")
    found = prepared(source)
    assert [s.dtype for s in found.model.inputs] == ["float16", "int64"]
    assert [s.dtype for s in found.model.outputs] == ["float16", "float16"]
    graph = onnx.load(str(found.model.path)).graph
    assert {t.data_type for t in graph.initializer} & {HALF} == set()
    assert next(n for n in graph.node if n.op_type == "Conv")
    size = size_text(source.stat().st_size)
    told = [n for n in found.notes if n.startswith("half precision widened")]
    assert [n.endswith(f"; the source is {size} large") for n in told] == [True]
    sample = {"x": normal(9, 2, 3, 8, 8).astype(np.float16), "ids": np.array([3])}
    same_answers(source, found, sample, rtol=5e-3, atol=5e-3)


def test_bfloat16_is_widened_too(tmp_path: Path) -> None:
    found = prepared(half(tmp_path / "m.onnx", TensorProto.BFLOAT16))
    graph = onnx.load(str(found.model.path)).graph
    assert graph.input[0].type.tensor_type.elem_type == TensorProto.BFLOAT16
    kernel = next(n for n in graph.node if n.op_type == "Conv").input[1]
    weights = {t.name: t for t in graph.initializer}[kernel]
    assert weights.data_type == FLOAT
    np.testing.assert_allclose(numpy_helper.to_array(weights), normal(1, 4, 3, 3, 3), rtol=0.01)


def test_half_precision_inside_functions_is_widened(tmp_path: Path) -> None:
    body = [
        helper.make_node("Cast", ["a"], ["h"], to=HALF),
        helper.make_node("MatMul", ["h", "b"], ["m"]),
        helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.float16([2]))),
        helper.make_node("Mul", ["m", "two"], ["out"]),
    ]
    function = helper.make_function(
        "local", "Layer", ["a", "b"], ["out"], body, [helper.make_opsetid("", 17)]
    )
    graph = helper.make_graph(
        [helper.make_node("Layer", ["x", "w"], ["y"], "one", domain="local")],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", HALF, ["n", 3])],
        [numpy_helper.from_array(normal(1, 4, 3).astype(np.float16), "w")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    proto = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8)
    source = tmp_path / "m.onnx"
    source.write_bytes(proto.SerializeToString())
    same_answers(source, prepared(source), {"x": normal(9, 2, 4)}, rtol=5e-3, atol=5e-3)


def test_float_models_have_no_note_on_half_precision(tmp_path: Path) -> None:
    assert not any("half" in n for n in prepared(cnn(tmp_path / "m.onnx", 17)).notes)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(tmp_path: Path, bad: float) -> None:
    w = normal(1, 4, 3)
    w[1, 2] = bad
    source = tiny.save(
        tmp_path / "m.onnx",
        [helper.make_node("MatMul", ["x", "layer3.weight"], ["y"], "m")],
        [("x", FLOAT, ["n", 4])],
        [("y", FLOAT, ["n", 3])],
        {"layer3.weight": w},
    )
    with pytest.raises(InputError, match=r"m\.onnx: 1 weight.*'layer3\.weight' \(1 of 12\)"):
        prepared(source)


def test_nan_is_refused_where_a_norm_would_swallow_its_name(tmp_path: Path) -> None:
    source = cnn(tmp_path / "m.onnx", 17)
    proto = onnx.load(str(source))
    kernel = next(t for t in proto.graph.initializer if t.name == "k2")
    values = numpy_helper.to_array(kernel).copy()
    values[0, 0, 0, 0] = np.nan
    kernel.CopyFrom(numpy_helper.from_array(values, "k2"))
    source.write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match="'k2' \\(1 of 144\\)"):
        prepared(source)


def in_a_branch(path: Path, w: Array) -> Path:
    def branch(label: str) -> onnx.GraphProto:
        node = helper.make_node("MatMul", ["x", f"w_{label}"], [f"y_{label}"], "same")
        value = helper.make_tensor_value_info(f"y_{label}", FLOAT, ["n", 3])
        constants = [numpy_helper.from_array(w, f"w_{label}")]
        return helper.make_graph([node], label, [], [value], constants)

    node = helper.make_node(
        "If", ["yes"], ["y"], "if", then_branch=branch("a"), else_branch=branch("b")
    )
    inputs = [("x", FLOAT, ["n", 4]), ("yes", TensorProto.BOOL, [])]
    return tiny.save(path, [node], inputs, [("y", FLOAT, ["n", 3])])


def test_nan_inside_a_branch_is_refused_too(tmp_path: Path) -> None:
    source = in_a_branch(tmp_path / "m.onnx", np.full((4, 3), np.nan, np.float32))
    with pytest.raises(InputError, match=r"2 weight tensors.*'w_a' \(12 of 12\)"):
        prepared(source)


def test_nodes_of_sibling_branches_get_names_of_their_own(tmp_path: Path) -> None:
    import onnx_ir as ir

    source = in_a_branch(tmp_path / "m.onnx", normal(1, 4, 3))
    found = prepared(source)
    names = [n.name for n in ir.load(found.model.path).graph.all_nodes()]
    assert len(set(names)) == len(names) == 3
    for yes in (True, False):
        same_answers(source, found, {"x": normal(2, 2, 4), "yes": np.array(yes)})


@pytest.mark.parametrize("hidden", [-np.inf, np.finfo(np.float32).min])
def test_a_constant_mask_may_be_minus_infinity(tmp_path: Path, hidden: float) -> None:
    mask = np.triu(np.full((4, 4), hidden, np.float32), 1)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["s"], "s"),
        helper.make_node("Add", ["s", "mask"], ["m"], "m"),
        helper.make_node("Softmax", ["m"], ["y"], "p", axis=-1),
    ]
    source = tiny.save(
        tmp_path / "m.onnx",
        nodes,
        [("x", FLOAT, ["n", 4, 4])],
        [("y", FLOAT, ["n", 4, 4])],
        {"w": normal(1, 4, 4), "mask": mask},
    )
    same_answers(source, prepared(source), {"x": normal(9, 2, 4, 4)})


def test_a_constant_of_nan_is_no_mask(tmp_path: Path) -> None:
    source = tiny.save(
        tmp_path / "m.onnx",
        [helper.make_node("Add", ["x", "c"], ["y"], "a")],
        [("x", FLOAT, [2])],
        [("y", FLOAT, [2])],
        {"c": np.float32([1, np.nan])},
    )
    with pytest.raises(InputError, match="'c' \\(1 of 2\\)"):
        prepared(source)


def test_an_open_bound_may_be_infinite(tmp_path: Path) -> None:
    source = tiny.save(
        tmp_path / "m.onnx",
        [helper.make_node("Clip", ["x", "low", "high"], ["y"], "clip")],
        [("x", FLOAT, [2])],
        [("y", FLOAT, [2])],
        {"low": np.float32(0.5), "high": np.float32(np.inf)},
    )
    same_answers(source, prepared(source), {"x": np.float32([-1, 1e30])})


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    source = tiny.qdq_matmul(tmp_path / "m.onnx", np.ones((4, 3), np.int8))
    with pytest.raises(UnsupportedError, match=r"is quantized already.*vnnify gate") as caught:
        prepared(source)
    assert caught.value.exit_code == ExitCode.UNSUPPORTED
    assert "DequantizeLinear, QuantizeLinear" in str(caught.value)


def test_our_own_recurrent_models_are_refused_as_quantized(tmp_path: Path) -> None:
    node = helper.make_node(
        "DynamicQuantizeLSTM",
        ["x", "W", "R", "", "", "", "", "", "s", "z", "s", "z"],
        ["y"],
        "lstm",
        domain="com.microsoft",
        hidden_size=2,
    )
    constants = {
        "W": np.ones((1, 3, 8), np.int8),
        "R": np.ones((1, 2, 8), np.int8),
        "s": np.ones((1, 8), np.float32),
        "z": np.zeros((1, 8), np.int8),
    }
    source = tiny.save(
        tmp_path / "m.onnx", [node], [("x", FLOAT, [5, 1, 3])], [("y", FLOAT, None)], constants
    )
    proto = onnx.load(str(source))
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    source.write_bytes(proto.SerializeToString())
    with pytest.raises(UnsupportedError, match="quantized already"):
        prepared(source)


@pytest.mark.parametrize("domain", ["", "my.company"])
def test_an_unknown_operator_is_unsupported(tmp_path: Path, domain: str) -> None:
    source = tiny.save(
        tmp_path / "m.onnx",
        [helper.make_node("Frobnicate", ["x"], ["y"], "odd", domain=domain)],
        [("x", FLOAT, [2])],
        [("y", FLOAT, [2])],
    )
    proto = onnx.load(str(source))
    proto.opset_import.append(helper.make_opsetid("my.company", 1))
    source.write_bytes(proto.SerializeToString())
    with pytest.raises(UnsupportedError, match="Frobnicate") as caught:
        prepared(source)
    assert caught.value.exit_code == ExitCode.UNSUPPORTED


def test_a_locale_that_is_not_installed_is_named(tmp_path: Path) -> None:
    wanted = {"locale": "xx_XX.UTF-8", "case_change_action": "LOWER"}
    node = helper.make_node("StringNormalizer", ["x"], ["y"], **wanted)
    ports = [(n, TensorProto.STRING, [2]) for n in "xy"]
    source = tiny.save(tmp_path / "m.onnx", [node], ports[:1], ports[1:])
    message = r"m\.onnx: its StringNormalizer .* xx_XX\.UTF-8"
    with pytest.raises(UnfitError, match=message):
        prepared(source)
    with pytest.raises(UnfitError, match=message):
        OnnxRuntime().open(source, Settings(threads=1))


def test_a_graph_that_the_runtime_refuses_is_an_input_error(tmp_path: Path) -> None:
    source = tiny.save(
        tmp_path / "m.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"], "m")],
        [("x", FLOAT, ["n", 5])],
        [("y", FLOAT, ["n", 3])],
        {"w": normal(1, 4, 3)},
    )
    with pytest.raises(InputError, match="onnxruntime refuses the model"):
        prepared(source)


def test_a_tensor_whose_data_does_not_fit_is_named(tmp_path: Path) -> None:
    source = tiny.linear(tmp_path / "m.onnx")
    proto = onnx.load(str(source))
    tensor = proto.graph.initializer[0]
    tensor.raw_data = numpy_helper.to_array(tensor).tobytes()[:-4]
    source.write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match=rf"m.onnx: the data of tensor '{tensor.name}'.*damaged"):
        prepared(source)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([("x", "y"), ("x", "y")], "'y' is redeclared"),
        ([("x b", "a"), ("a", "b"), ("a", "y")], "contains a cycle"),
    ],
)
def test_a_graph_that_is_none_is_an_input_error(
    tmp_path: Path, names: list[tuple[str, str]], says: str
) -> None:
    source = tiny.save(
        tmp_path / "m.onnx",
        [helper.make_node("Sum", i.split(), [o]) for i, o in names],
        [("x", FLOAT, [2])],
        [("y", FLOAT, [2])],
    )
    with pytest.raises(InputError, match=rf"m.onnx: its graph makes no sense:.*{says}"):
        prepared(source)


def test_constants_become_initializers_and_inputs_lose_them(tmp_path: Path) -> None:
    nodes = [
        helper.make_node(
            "Constant", [], ["k"], "k", value=numpy_helper.from_array(normal(1, 4, 3))
        ),
        helper.make_node("Constant", [], ["two"], "", value_float=2.0),
        helper.make_node("MatMul", ["x", "k"], ["m"], ""),
        helper.make_node("Mul", ["m", "two"], ["s"], "twice"),
        helper.make_node("Add", ["s", "listed"], ["y"], "twice"),
    ]
    inputs = [("x", FLOAT, ["n", 4]), ("listed", FLOAT, [3])]
    source = tiny.save(
        tmp_path / "m.onnx", nodes, inputs, [("y", FLOAT, ["n", 3])], {"listed": normal(2, 3)}
    )
    found = prepared(source)
    graph = onnx.load(str(found.model.path)).graph
    assert "Constant" not in ops(found)
    assert [i.name for i in graph.input] == ["x"]
    names = [n.name for n in graph.node]
    assert len(set(names)) == len(names) == 3
    assert "" not in names
    # onnxruntime refuses the source, since two of its nodes share a name.
    x = normal(9, 2, 4)
    expected = x @ normal(1, 4, 3) * 2 + normal(2, 3)
    np.testing.assert_allclose(run(found.model.path, {"x": x})["y"], expected, rtol=1e-5)


def test_functions_are_inlined(tmp_path: Path) -> None:
    body = [
        helper.make_node("MatMul", ["a", "b"], ["m"]),
        helper.make_node("Relu", ["m"], ["out"]),
    ]
    function = helper.make_function(
        "local", "Layer", ["a", "b"], ["out"], body, [helper.make_opsetid("", 17)]
    )
    graph = helper.make_graph(
        [
            helper.make_node("Layer", ["x", "w"], ["h"], "one", domain="local"),
            helper.make_node("Layer", ["h", "w"], ["y"], "two", domain="local"),
        ],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 4])],
        [numpy_helper.from_array(normal(1, 4, 4), "w")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    proto = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8)
    source = tmp_path / "m.onnx"
    source.write_bytes(proto.SerializeToString())
    found = prepared(source)
    assert ops(found) == ["MatMul", "Relu", "MatMul", "Relu"]
    same_answers(source, found, {"x": normal(9, 2, 4)})


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("keepdims", [0, 1, None])
@pytest.mark.parametrize("axes", [[2, 3], [-1, -2]])
def test_image_means_become_global_pools(
    tmp_path: Path, opset: int, keepdims: int | None, axes: list[int]
) -> None:
    options: dict[str, Any] = {} if keepdims is None else {"keepdims": keepdims}
    inputs, constants = ["c"], {"k": normal(1, 4, 3, 3, 3), "w": normal(2, 4, 2)}
    if opset >= 18:
        constants["axes"] = np.array(axes)
        inputs.append("axes")
    else:
        options["axes"] = axes
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], "c"),
        helper.make_node("ReduceMean", inputs, ["y"], "mean", **options),
    ]
    shape: list[int | str] = ["n", 4] if keepdims == 0 else ["n", 4, 1, 1]
    source = tiny.save(tmp_path / "m.onnx", nodes, [IMAGE], [("y", FLOAT, shape)], constants, opset)
    found = prepared(source)
    assert ops(found) == ["Conv", "GlobalAveragePool", *(["Flatten"] if keepdims == 0 else [])]
    assert any("means over height and width (1)" in n for n in found.notes)
    same_answers(source, found, {"x": normal(9, 2, 3, 8, 8)}, {"x": normal(8, 1, 3, 8, 8)})


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        (["n", 3, 8, 8], [1, 2]),
        (["n", 3, 8, 8], [2]),
        (["n", 3, 8], [1, 2]),
        (["n", 3, 8, 8], None),
    ],
)
def test_other_means_stay(tmp_path: Path, shape: list[int | str], axes: list[int] | None) -> None:
    options = {} if axes is None else {"axes": axes}
    source = tiny.save(
        tmp_path / "m.onnx",
        [helper.make_node("ReduceMean", ["x"], ["y"], "mean", **options)],
        [("x", FLOAT, shape)],
        [("y", FLOAT, None)],
    )
    found = prepared(source)
    assert ops(found) == ["ReduceMean"]
    size = [2 if isinstance(d, str) else d for d in shape]
    same_answers(source, found, {"x": normal(9, *size)})


# Rewrites


def after_conv(path: Path, tail: list[onnx.NodeProto], constants: dict[str, Any]) -> Path:
    nodes = [helper.make_node("Conv", ["x", "k", "b"], ["c"], "conv"), *tail]
    constants = constants | {"k": normal(1, 4, 3, 3, 3), "b": normal(2, 4)}
    return tiny.save(path, nodes, [IMAGE], [("y", FLOAT, ["n", 4, 6, 6])], constants)


@pytest.mark.parametrize("shape", [(), (1,), (4, 1, 1), (1, 4, 1, 1), (1, 1, 1, 1)])
def test_constant_factors_and_offsets_go_into_the_convolution(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    tail = [
        helper.make_node("Mul", ["scale", "c"], ["s"], "mul"),
        helper.make_node("Add", ["s", "offset"], ["y"], "add"),
    ]
    constants = {
        "scale": np.asarray(normal(5, *shape), np.float32),
        "offset": np.asarray(normal(6, *shape), np.float32),
    }
    source = after_conv(tmp_path / "m.onnx", tail, constants)
    found = prepared(source)
    assert ops(found) == ["Conv"]
    same_answers(source, found, {"x": normal(9, 2, 3, 8, 8)})


@pytest.mark.parametrize("shape", [(6,), (6, 1), (4, 6, 6), (2, 4, 1, 1)])
def test_constants_that_vary_over_the_image_stay(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tail = [helper.make_node("Mul", ["c", "scale"], ["y"], "mul")]
    source = after_conv(tmp_path / "m.onnx", tail, {"scale": normal(5, *shape)})
    found = prepared(source)
    assert ops(found) == ["Conv", "Mul"]
    same_answers(source, found, {"x": normal(9, 2, 3, 8, 8)})


def hard_swish(kind: str) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    def node(op: str, inputs: list[str], out: str) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [out], f"{out}_{op}")

    shifted = [node("Add", ["c", "three"], "a"), node("Clip", ["a", "zero", "six"], "r")]
    nodes = {
        "(x * r) / 6": [*shifted, node("Mul", ["c", "r"], "p"), node("Div", ["p", "six"], "y")],
        "x * (r / 6)": [*shifted, node("Div", ["r", "six"], "g"), node("Mul", ["g", "c"], "y")],
        "(r * x) * sixth": [
            *shifted,
            node("Mul", ["r", "c"], "p"),
            node("Mul", ["p", "sixth"], "y"),
        ],
        "x * HardSigmoid(x)": [
            helper.make_node("HardSigmoid", ["c"], ["h"], "h", alpha=1 / 6, beta=0.5),
            node("Mul", ["c", "h"], "y"),
        ],
    }[kind]
    constants = {"three": 3, "zero": 0, "six": 6, "sixth": 1 / 6}
    return nodes, {k: np.float32(v) for k, v in constants.items()}


@pytest.mark.parametrize(
    "kind", ["(x * r) / 6", "x * (r / 6)", "(r * x) * sixth", "x * HardSigmoid(x)"]
)
def test_a_written_out_hard_swish_is_fused(tmp_path: Path, kind: str) -> None:
    nodes, constants = hard_swish(kind)
    source = after_conv(tmp_path / "m.onnx", nodes, constants)
    found = prepared(source)
    assert ops(found) == ["Conv", "HardSwish"]
    same_answers(source, found, {"x": 3 * normal(9, 2, 3, 8, 8)})


def test_only_hard_swishes_that_the_source_had_written_out_are_told_of(tmp_path: Path) -> None:
    nodes, constants = hard_swish("x * (r / 6)")
    nodes.append(helper.make_node("HardSwish", ["y"], ["z"], "z_HardSwish"))
    nodes[0].input[0] = nodes[3].input[1] = "d"
    whole = helper.make_node("HardSwish", ["c"], ["d"], "d_HardSwish")
    conv = helper.make_node("Conv", ["x", "w"], ["c"], "c", pads=[1, 1, 1, 1])
    identity = helper.make_node("Identity", ["z"], ["out"], "out")
    source = tiny.save(
        tmp_path / "m.onnx",
        [conv, whole, *nodes, identity],
        [IMAGE],
        [("out", FLOAT, None)],
        constants | {"w": normal(1, 3, 3, 3, 3)},
    )
    found = prepared(source)
    assert ops(found) == ["Conv", *["HardSwish"] * 3]
    assert found.notes == (
        "1 node folded away (constants, batch norms, no-ops)",
        "1 written-out hard-swish activations fused into HardSwish",
    )
    same_answers(source, found, {"x": 3 * normal(9, 2, 3, 8, 8)})


def test_what_only_looks_like_a_hard_swish_stays(tmp_path: Path) -> None:
    for changed in ({"three": 2.5}, {"six": 5.0}, {"zero": -1.0}):
        nodes, constants = hard_swish("(x * r) / 6")
        constants |= {k: np.float32(v) for k, v in changed.items()}
        source = after_conv(tmp_path / "m.onnx", nodes, constants)
        found = prepared(source)
        assert "HardSwish" not in ops(found)
        same_answers(source, found, {"x": 3 * normal(9, 2, 3, 8, 8)})
