import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bench.errors import InputError, UnfitError, UnsupportedError
from bench.machine import canary, exact_product
from bench.runtimes import Settings
from bench.runtimes.openvino import OpenVino, load_package
from tests import tiny

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed"
)
ONE = Settings(threads=1)


def _run(path: Path, **feeds: Any) -> dict[str, Any]:
    return OpenVino().open(path, ONE).run(feeds)


def test_version_is_that_of_the_package() -> None:
    assert OpenVino().version().count(".") == 2


def test_outputs_have_their_names_in_their_order(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["hidden"]),
        helper.make_node("Identity", ["hidden"], ["b"]),
        helper.make_node("Neg", ["x"], ["a:0"]),
    ]
    shape: list[int | str] = ["n", 2]
    path = tiny.save(
        tmp_path / "m.onnx",
        nodes,
        [("x", TensorProto.FLOAT, shape)],
        [(n, TensorProto.FLOAT, shape) for n in ("b", "a:0", "hidden", "x")],
    )
    x = np.array([[1, -2]], np.float32)
    out = _run(path, x=x)
    assert list(out) == ["b", "a:0", "hidden", "x"]
    assert out["b"].tolist() == [[1, 0]]
    assert out["a:0"].tolist() == [[-1, 2]]
    assert out["x"].tolist() == x.tolist()


def test_names_come_from_the_file_where_openvino_lost_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.save(
        tmp_path / "m.onnx",
        [helper.make_node("Add", ["x", "c"], ["y"])],
        [("x", TensorProto.FLOAT, [2]), ("c", TensorProto.FLOAT, [2])],
        [("y", TensorProto.FLOAT, [2])],
        {"c": np.ones(2, np.float32)},
    )
    graph = load_package().Core().read_model(str(path))
    graph.inputs[0].get_tensor().set_names({"x", "alias"})
    graph.outputs[0].get_tensor().set_names(set())

    class Core:
        def read_model(self, _path: str) -> Any:
            return graph

        def compile_model(self, *arguments: Any) -> Any:
            return load_package().runtime_core.compile_model(*arguments)

    package = load_package()
    monkeypatch.setattr(package, "runtime_core", package.Core(), raising=False)
    monkeypatch.setattr(package, "Core", Core)
    assert _run(path, x=np.zeros(2, np.float32))["y"].tolist() == [1, 1]


def test_results_outlive_the_next_run(tmp_path: Path) -> None:
    session = OpenVino().open(tiny.linear(tmp_path / "m.onnx"), ONE)
    first = session.run({"x": np.ones((1, 4), np.float32)})["y"]
    kept = first.copy()
    session.run({"x": np.full((1, 4), 9, np.float32)})
    assert np.array_equal(first, kept)


def test_a_staged_call_computes_from_inputs_that_lie_there_already(tmp_path: Path) -> None:
    session = OpenVino().open(tiny.linear(tmp_path / "m.onnx"), ONE)
    x = np.ones((2, 4), np.float32)
    (wanted,) = session.run({"x": x}).values()
    call = session.stage({"x": x})
    x[:] = 7  # What was staged was copied.
    found = call()
    assert np.array_equal(next(iter(found.values())), wanted)
    with pytest.raises(InputError, match="has inputs"):
        session.stage({})


def test_many_threads_may_run_one_session(tmp_path: Path) -> None:
    session = OpenVino().open(tiny.linear(tmp_path / "m.onnx"), ONE)
    inputs = [np.full((1, 4), i, np.float32) for i in range(60)]
    expected = [session.run({"x": x})["y"] for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda x: session.run({"x": x})["y"], inputs))
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize(
    ("op", "dtype"),
    [("Neg", "int64"), ("Not", "bool"), ("Relu", "float16"), ("Identity", "uint8")],
)
def test_types_other_than_float32_go_through(tmp_path: Path, op: str, dtype: str) -> None:
    code = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    path = tiny.unary(tmp_path / "m.onnx", op, code, ["n", 3])
    out = _run(path, x=np.ones((2, 3), dtype))["y"]
    assert out.dtype == dtype
    assert out.shape == (2, 3)


@pytest.mark.parametrize("shape", [(), (0,), (7,)])
def test_scalars_and_empty_and_any_length(tmp_path: Path, shape: tuple[int, ...]) -> None:
    declared: list[int | str] = ["n"] if shape else []
    path = tiny.unary(tmp_path / "m.onnx", "Neg", TensorProto.FLOAT, declared)
    assert _run(path, x=np.ones(shape, np.float32))["y"].shape == shape


def test_strided_input_is_read_in_its_own_order(tmp_path: Path) -> None:
    path = tiny.unary(tmp_path / "m.onnx", "Neg", TensorProto.FLOAT, [2, 3])
    x = np.arange(6, dtype=np.float32).reshape(3, 2).T
    assert np.array_equal(_run(path, x=x)["y"], -x)


@pytest.mark.parametrize(
    ("feeds", "says"),
    [
        ({}, "inputs"),
        ({"x": np.zeros((1, 4), np.float32), "z": np.zeros(1, np.float32)}, "inputs"),
        ({"x": np.zeros((1, 4), np.float64)}, "float64"),
        ({"x": np.zeros((1, 5), np.float32)}, "shape"),
        ({"x": np.zeros(4, np.float32)}, "shape"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused(
    tmp_path: Path, feeds: dict[str, Any], says: str
) -> None:
    session = OpenVino().open(tiny.linear(tmp_path / "m.onnx"), ONE)
    with pytest.raises(InputError, match=says):
        session.run(feeds)


def test_text_is_unsupported(tmp_path: Path) -> None:
    path = tiny.unary(tmp_path / "m.onnx", "Identity", TensorProto.STRING, ["n"])
    with pytest.raises(UnsupportedError, match="text"):
        OpenVino().open(path, ONE)


def test_a_broken_model_is_an_input_error(tmp_path: Path) -> None:
    path = tiny.unary(tmp_path / "m.onnx", "NoSuchOperator", TensorProto.FLOAT, [1])
    with pytest.raises(InputError, match=r"openvino refuses.*NoSuchOperator"):
        OpenVino().open(path, ONE)


def test_it_has_no_other_device(tmp_path: Path) -> None:
    with pytest.raises(UnfitError, match="cuda"):
        OpenVino().open(tiny.linear(tmp_path / "m.onnx"), Settings(1, device="cuda"))


def test_exact_is_refused_where_the_host_saturates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.machine.canary", lambda _name: "saturating")
    with pytest.raises(UnfitError, match="saturating"):
        OpenVino().open(tiny.linear(tmp_path / "m.onnx"), Settings(1, exact=True))


def test_float_models_compute_in_float32(tmp_path: Path) -> None:
    """On a CPU with AMX or AVX512_BF16 the default would round to 8 bits of mantissa."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((256, 256)).astype(np.float32)
    x = rng.standard_normal((64, 256)).astype(np.float32)
    shape: list[int | str] = ["n", 256]
    path = tiny.save(
        tmp_path / "m.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", TensorProto.FLOAT, shape)],
        [("y", TensorProto.FLOAT, shape)],
        {"w": w},
    )
    exact = x.astype(np.float64) @ w.astype(np.float64)
    assert np.abs(_run(path, x=x)["y"] - exact).max() < 1e-4


def test_int8_models_run_int8_kernels(tmp_path: Path) -> None:
    w = np.full((64, 32), 127, np.int8)
    session: Any = OpenVino().open(tiny.qdq_matmul(tmp_path / "m.onnx", w), ONE)
    kinds = [
        op.get_rt_info()["primitiveType"].astype(str)
        for op in session.compiled.get_runtime_model().get_ordered_ops()
        if op.get_rt_info()["layerType"].astype(str) == "FullyConnected"
    ]
    assert kinds
    assert all(k.endswith("_I8") for k in kinds)


def test_int8_is_exact_where_the_canary_says_so(tmp_path: Path) -> None:
    if canary("openvino") != "exact":
        pytest.skip("openvino saturates on this CPU")
    rng = np.random.default_rng(0)
    w = rng.integers(-128, 128, (64, 32)).astype(np.int8)
    x = rng.integers(0, 256, (8, 64)).astype(np.uint8)
    session = OpenVino().open(
        tiny.qdq_matmul(tmp_path / "m.onnx", w), Settings(threads=1, exact=True)
    )
    got = session.run({"x": x.astype(np.float32)})["y"]
    assert np.array_equal(got, exact_product(x, w))


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UnfitError, match=r"pip install 'vnnify\[openvino\]'"):
        OpenVino().version()


def test_an_interrupt_of_an_import_is_no_missing_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What native modules make of one."""
    code = "raise ImportError('initialization failed') from KeyboardInterrupt()"
    (tmp_path / "openvino.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "openvino")
    with pytest.raises(KeyboardInterrupt):
        OpenVino().version()


def test_a_read_only_scalar_input_runs(tmp_path: Path) -> None:
    scalar = helper.make_tensor_value_info("s", TensorProto.INT64, [])
    out = helper.make_tensor_value_info("y", TensorProto.INT64, [])
    node = helper.make_node("Add", ["s", "s"], ["y"])
    graph = helper.make_graph([node], "g", [scalar], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    value = np.asarray(3, np.int64)
    value.flags.writeable = False
    session = OpenVino().open(path, Settings(threads=1))
    assert session.run({"s": value})["y"] == 6
