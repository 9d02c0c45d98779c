"""Graphs that are legal and seldom, from the source to an INT8 file that computes the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.errors import UnsupportedError
from bench.models import Feeds, read_model
from quantize import graphs
from quantize.outputs import noise_shares, to_db
from quantize.prepare import prepare
from tests import tiny
from tests.int8 import make, run

F, I64 = TensorProto.FLOAT, TensorProto.INT64
N = helper.make_node
X: list[Any] = [("x", F, ["n", 16])]
Array = np.ndarray[Any, np.dtype[np.float32]]


def weights(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / 4


W: dict[str, Any] = {
    "v": weights(16, 16),
    "w": weights(16, 16, seed=1),
}


def rows(count: int = 24) -> list[Feeds]:
    random = np.random.default_rng(3)
    return [{"x": random.standard_normal((1, 16)).astype(np.float32)} for _ in range(count)]


def layers(middle: list[Any], seen: str = "a", last: str = "r") -> list[Any]:
    """x @ v, what is in the middle, and the result @ w."""
    return [N("MatMul", ["x", "v"], [seen]), *middle, N("MatMul", [last, "w"], ["y"])]


def saved(path: Path, nodes: list[Any], constants: dict[str, Any] | None = None) -> Path:
    return tiny.save(path, nodes, X, [("y", F, None)], W | (constants or {}), 18)


def tied(path: Path) -> Path:
    nodes = [N("MatMul", ["x", "v"], ["a"]), N("Relu", ["a"], ["r"])]
    nodes += [N("MatMul", ["r", "v"], ["b"]), N("Gemm", ["b", "v"], ["y"], transB=1)]
    return saved(path, nodes)


def behind_a_shared_transpose(path: Path) -> Path:
    nodes = [N("Transpose", ["v"], ["t"], perm=[1, 0]), N("MatMul", ["x", "t"], ["a"])]
    return saved(path, [*nodes, N("Relu", ["a"], ["r"]), N("MatMul", ["r", "t"], ["y"])])


def behind_a_chain(path: Path) -> Path:
    nodes = [
        N("Cast", ["u"], ["f"], to=F),
        N("Reshape", ["f", "s"], ["g"]),
        N("Relu", ["x"], ["r"]),
    ]
    constants = {"u": weights(256).astype(np.float64), "s": np.array([16, 16])}
    return saved(path, [*nodes, N("MatMul", ["r", "g"], ["y"])], constants)


def sequence(path: Path) -> Path:
    nodes = [N("Relu", ["a"], ["b"]), N("SequenceConstruct", ["a", "b"], ["q"])]
    return saved(path, layers([*nodes, N("SequenceAt", ["q", "one"], ["r"])]), {"one": np.int64(1)})


def optional(path: Path) -> Path:
    nodes = [N("Relu", ["a"], ["b"]), N("Optional", ["b"], ["o"])]
    return saved(path, layers([*nodes, N("OptionalGetElement", ["o"], ["r"])]))


def nothing_joined(path: Path) -> Path:
    nodes = [N("Concat", ["a", "none"], ["b"], axis=1), N("Relu", ["b"], ["r"])]
    return saved(path, layers(nodes), {"none": np.zeros((1, 0), np.float32)})


def loop(path: Path, kind: int = F) -> Path:
    inside = [N("MatMul", ["s", "u"], ["m"]), N("Tanh", ["m"], ["t"]), N("Identity", ["c"], ["d"])]
    ports = [[("i", I64, []), ("c", TensorProto.BOOL, []), ("s", kind, None)]]
    ports.append([("d", TensorProto.BOOL, []), ("t", kind, None)])
    infos = [[helper.make_tensor_value_info(*p) for p in some] for some in ports]
    body = helper.make_graph(inside, "body", *infos)
    u = weights(16, 16, seed=2).astype(helper.tensor_dtype_to_np_dtype(kind))
    constants = {"u": u, "times": np.int64(3), "go": np.bool_(1)}
    if kind == F:
        return saved(path, layers([N("Loop", ["times", "go", "a"], ["r"], body=body)]), constants)
    nodes = [N("Cast", ["a"], ["h"], to=kind), N("Loop", ["times", "go", "h"], ["l"], body=body)]
    return saved(path, layers([*nodes, N("Cast", ["l"], ["r"], to=F)]), constants)


def half_loop(path: Path) -> Path:
    """State that goes round in half precision."""
    return loop(path, TensorProto.FLOAT16)


def one_name_for_all(path: Path) -> Path:
    nodes = layers([N("Relu", ["a"], ["r"])])
    for node in nodes:
        node.name = "n"
    return saved(path, nodes)


def autocast(path: Path) -> Path:
    """Weights in float, products in half precision."""
    half = TensorProto.FLOAT16
    casts = [N("Cast", [i], [o], to=half) for i, o in (("x", "xh"), ("v", "vh"), ("w", "wh"))]
    nodes = [*casts, N("MatMul", ["xh", "vh"], ["a"]), N("Relu", ["a"], ["r"])]
    nodes += [N("MatMul", ["r", "wh"], ["b"]), N("Cast", ["b"], ["y"], to=F)]
    return saved(path, nodes)


def not_in_order(path: Path) -> Path:
    return saved(path, layers([N("Relu", ["a"], ["r"])])[::-1])


def wrong_shapes(path: Path) -> Path:
    saved(path, layers([N("Relu", ["a"], ["r"]), N("NonZero", ["r"], ["z"])]))
    model = onnx.load(path)
    model.graph.value_info.append(helper.make_tensor_value_info("a", F, ["n", 17]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", F, ["n", 99]))
    onnx.save(model, path)
    return path


def weights_among_inputs_no_more(path: Path) -> Path:
    """IR 3 wanted all weights among the inputs; this file has opset 9 and does not list them."""
    nodes = layers([N("Relu", ["a"], ["r"])])
    tiny.save(path, nodes, X, [("y", F, ["n", 16])], W, 9)
    model = onnx.load(path)
    model.ir_version = 3
    onnx.save(model, path)
    return path


def sparse_of(name: str, dense: Array, *, along_axes: bool) -> Any:
    places = np.flatnonzero(dense)
    values = helper.make_tensor(name, F, [len(places)], dense.reshape(-1)[places].tolist())
    index = np.stack(np.unravel_index(places, dense.shape), 1) if along_axes else places
    held = numpy_helper.from_array(np.ascontiguousarray(index, np.int64), f"{name}_places")
    return helper.make_sparse_tensor(values, held, list(dense.shape))


def thinned() -> Array:
    dense = weights(16, 16, seed=4)
    dense[np.abs(dense) < 0.2] = 0
    return dense


def sparse(path: Path, *, along_axes: bool = False) -> Path:
    saved(path, layers([N("Relu", ["a"], ["r"])]))
    model = onnx.load(path)
    del model.graph.initializer[0]
    model.graph.sparse_initializer.append(sparse_of("v", thinned(), along_axes=along_axes))
    onnx.save(model, path)
    return path


def sparse_along_axes(path: Path) -> Path:
    return sparse(path, along_axes=True)


def sparse_constant(path: Path) -> Path:
    constant = N("Constant", [], ["u"])
    held = sparse_of("u", thinned(), along_axes=False)
    constant.attribute.append(helper.make_attribute("sparse_value", held))
    return saved(path, [constant, N("MatMul", ["x", "u"], ["r"]), N("MatMul", ["r", "w"], ["y"])])


def function(path: Path, opset: int = 18) -> Path:
    """A function in a function, the inner one with an attribute of its caller."""
    leaky = N("LeakyRelu", ["m"], ["o"])
    refers = {"name": "alpha", "ref_attr_name": "slope", "type": onnx.AttributeProto.FLOAT}
    leaky.attribute.append(onnx.AttributeProto(**refers))
    own = [helper.make_opsetid("", opset)]
    inner = helper.make_function(
        "my", "Layer", ["i", "k"], ["o"], [N("MatMul", ["i", "k"], ["m"]), leaky], own, ["slope"]
    )
    calls = [N("Layer", ["i", "k"], ["b"], domain="my", slope=0.2)]
    calls.append(N("Layer", ["b", "l"], ["o"], domain="my", slope=0.1))
    both = [*own, helper.make_opsetid("my", 1)]
    outer = helper.make_function("my", "Two", ["i", "k", "l"], ["o"], calls, both)
    saved(path, [N("Two", ["x", "v", "w"], ["y"], domain="my")])
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("my", 1))
    model.functions.extend([inner, outer])
    onnx.save(model, path)
    return path


def function_of_another_opset(path: Path) -> Path:
    """One with an attribute, two opsets behind its graph."""
    function(path, 15)
    model = onnx.load(path)
    del model.functions[1], model.graph.node[:]
    calls = [("x", "v", "a"), ("a", "w", "y")]
    model.graph.node.extend(N("Layer", [i, k], [o], domain="my", slope=0.2) for i, k, o in calls)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (tied, 3),
        (behind_a_shared_transpose, 2),
        (behind_a_chain, 1),
        (sequence, 2),
        (optional, 2),
        (nothing_joined, 2),
        (loop, 2),
        (half_loop, 2),
        (one_name_for_all, 2),
        (autocast, 2),
        (not_in_order, 2),
        (wrong_shapes, 2),
        (weights_among_inputs_no_more, 2),
        (sparse, 2),
        (sparse_along_axes, 2),
        (sparse_constant, 2),
        (function, 2),
        (function_of_another_opset, 2),
    ],
)
def test_it_becomes_int8_and_computes_the_same(
    build: Callable[[Path], Path], count: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = build(tmp_path / "m.onnx")
    made = make(source, rows())
    assert made.quantized.int8_layers == count + (build in (loop, half_loop))
    wanted = [run(made.fp32, sample) for sample in rows(4)]
    if build is not one_name_for_all:  # which ONNX Runtime refuses as it is
        for sample, found in zip(rows(4), wanted, strict=True):
            limit = 2e-3 if build in (autocast, half_loop) else 1e-5
            np.testing.assert_allclose(found["y"], run(source, sample)["y"], atol=limit)
    assert to_db(noise_shares(wanted, [run(made.path, s) for s in rows(4)])) > 25
    assert capfd.readouterr().err == ""


def ported(path: Path) -> Path:
    """Codes in, codes out, and floats between them."""
    pairs = {"s": np.float32(0.05), "z": np.int8(3), "t": np.float32(0.1), "o": np.uint8(128)}
    nodes = [N("DequantizeLinear", ["x", "s", "z"], ["f"]), N("MatMul", ["f", "v"], ["a"])]
    nodes += [N("MatMul", ["a", "w"], ["b"]), N("QuantizeLinear", ["b", "t", "o"], ["y"])]
    ports: list[Any] = [("x", TensorProto.INT8, ["n", 16]), ("y", TensorProto.UINT8, ["n", 16])]
    return tiny.save(path, nodes, ports[:1], ports[1:], W | pairs)


def test_codes_at_inputs_and_outputs_are_no_quantized_model(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    feeds = [{"x": random.integers(-128, 128, (1, 16)).astype(np.int8)} for _ in range(16)]
    made = make(ported(tmp_path / "m.onnx"), feeds)
    assert made.quantized.int8_layers == 2
    for sample in feeds[:4]:
        ours, theirs = (run(p, sample)["y"].astype(int) for p in (made.path, tmp_path / "m.onnx"))
        assert np.abs(ours - theirs).max() <= 3


def test_a_pair_inside_is_a_quantized_model(tmp_path: Path) -> None:
    source = ported(tmp_path / "m.onnx")
    model = onnx.load(source)
    model.graph.output.append(helper.make_tensor_value_info("b", F, ["n", 16]))
    model.graph.node.append(N("DequantizeLinear", ["y", "t", "o"], ["c"]))
    model.graph.output.append(helper.make_tensor_value_info("c", F, ["n", 16]))
    onnx.save(model, source)
    with pytest.raises(UnsupportedError, match=r"quantized already \(it holds De"):
        prepare(read_model(source), tmp_path / "out.onnx")


@pytest.mark.parametrize("build", [sparse, function_of_another_opset])
def test_what_needs_the_whole_model_is_refused_where_that_is_too_large(
    build: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = build(tmp_path / "m.onnx")
    monkeypatch.setattr(graphs, "EXTERNAL_BYTES", 10)
    with pytest.raises(UnsupportedError, match=r"m\.onnx: .*(2 GB)"):
        prepare(read_model(source), tmp_path / "out.onnx")


def test_a_function_that_cannot_be_converted_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Assertion failed: no adapter")

    monkeypatch.setattr("onnx.inliner.inline_local_functions", fail)
    source = function_of_another_opset(tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match=r"\(my\.Layer\).* no adapter\. Export"):
        prepare(read_model(source), tmp_path / "out.onnx")


def test_a_sequence_keeps_its_type(tmp_path: Path) -> None:
    made = make(sequence(tmp_path / "m.onnx"), rows())
    graph = ir.load(made.path).graph
    (maker,) = (n for n in graph if n.op_type == "SequenceConstruct")
    assert not isinstance(maker.outputs[0].type, ir.TensorType)


def test_text_may_come_in(tmp_path: Path) -> None:
    keys = {"domain": "ai.onnx.ml", "keys_strings": ["low", "hö"], "values_floats": [0.2, 0.9]}
    nodes = [N("LabelEncoder", ["x"], ["f"], **keys), N("MatMul", ["f", "w"], ["y"])]
    ports: list[Any] = [("x", TensorProto.STRING, ["n", 16]), ("y", F, ["n", 16])]
    source = tiny.save(tmp_path / "m.onnx", nodes, ports[:1], ports[1:], {"w": W["w"]})
    model = onnx.load(source)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    onnx.save(model, source)
    random = np.random.default_rng(0)
    feeds = [{"x": random.choice(np.array(["low", "hö"], dtype=object), (1, 16))} for _ in range(8)]
    made = make(source, feeds)
    assert made.calibration.tensors["f"].high == np.float32(0.9)
    wanted, found = ([run(p, f) for f in feeds] for p in (made.fp32, made.path))
    assert to_db(noise_shares(wanted, found)) > 25


def switched(path: Path, mode: str) -> Path:
    """Dropout that a constant or an input tells whether to drop half of everything."""
    constant = {} if mode == "input" else {"t": np.bool_(mode == "on")}
    nodes = layers([N("Dropout", ["a", "half", "t"], ["r"])])
    ports = X if constant else [*X, ("t", TensorProto.BOOL, [])]
    constants = W | {"half": np.float32(0.5)} | constant
    return tiny.save(path, nodes, ports, [("y", F, None)], constants)


@pytest.mark.parametrize("mode", ["on", "input", "off"])
def test_dropout_in_training_mode_is_switched_off_and_told(mode: str, tmp_path: Path) -> None:
    found = prepare(read_model(switched(tmp_path / "m.onnx", mode)), tmp_path / "out.onnx")
    assert "Dropout" not in [n.op_type for n in ir.load(found.model.path).graph]
    told = any("1 Dropout nodes were exported in training" in n for n in found.notes)
    assert told == (mode != "off")


def test_batch_norms_in_training_mode_stay_as_they_are_and_are_told(tmp_path: Path) -> None:
    names = ("scale", "shift", "mean", "variance")
    learned = ["new_mean", "new_variance"]
    norm = N("BatchNormalization", ["a", *names], ["r", *learned], training_mode=1)
    constants = {n: np.full(16, i + 1, np.float32) for i, n in enumerate(names)}
    source = saved(tmp_path / "m.onnx", layers([norm]), constants)
    found = prepare(read_model(source), tmp_path / "out.onnx")
    assert any("1 batch norms were exported in training" in n for n in found.notes)
    sample = {"x": np.concatenate([s["x"] for s in rows(4)])}
    np.testing.assert_allclose(
        run(found.model.path, sample)["y"], run(source, sample)["y"], atol=1e-4
    )
