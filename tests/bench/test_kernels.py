from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from bench import kernels
from bench.errors import InputError, UsageError
from bench.kernels import Kernels, find_kernels, kernels_of
from bench.runtimes import Settings, find_runtime
from tests import tiny

FLOAT = TensorProto.FLOAT


def read(path: Path, runtime: str, **options: Any) -> Kernels:
    return find_kernels(path, runtime, threads=1, scratch=path.parent, **options)


def chain(path: Path, *, middle: str | None = None, pairs: int = 1) -> Path:
    """Two integer products, with a float operator or rounding pairs between them."""
    grid = ["one", "zero"]
    nodes, x = [], "x"
    for turn in range(2):
        for i in range(pairs if turn else 1):
            q, d = f"q{turn}{i}", f"d{turn}{i}"
            nodes += [
                helper.make_node("QuantizeLinear", [x, *grid], [q], q),
                helper.make_node("DequantizeLinear", [q, *grid], [d], d),
            ]
            x = d
        nodes += [
            helper.make_node("DequantizeLinear", [f"w{turn}", "one", "zs"], [f"v{turn}"]),
            helper.make_node("MatMul", [x, f"v{turn}"], [f"y{turn}"], f"product{turn}"),
        ]
        x = f"y{turn}"
        if turn == 0:
            nodes += [
                helper.make_node("QuantizeLinear", [x, *grid], ["qm"], "qm"),
                helper.make_node("DequantizeLinear", ["qm", *grid], ["dm"], "dm"),
            ]
            x = "dm"
            if middle is not None:
                nodes.append(helper.make_node(middle, [x], ["m"], "middle"))
                x = "m"
    rng = np.random.default_rng(0)
    constants = {
        "one": np.float32(0.5),
        "zero": np.uint8(100),
        "zs": np.int8(0),
        "w0": rng.integers(-9, 9, (8, 8)).astype(np.int8),
        "w1": rng.integers(-9, 9, (8, 8)).astype(np.int8),
    }
    ports: list[tiny.Port] = [("x", FLOAT, ["n", 8]), ("y1", FLOAT, ["n", 8])]
    return tiny.save(path, nodes, [ports[0]], [ports[1]], constants)


RUNTIMES = ("onnxruntime", "openvino")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_float_model_has_no_integer_kernel(runtime: str, tmp_path: Path) -> None:
    found = read(tiny.linear(tmp_path / "m.onnx"), runtime)
    assert len(found.products) == 1
    assert found.integer_products == 0
    assert found.islands == ()
    assert found.total_ms is None
    assert found.runs == 0


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_fused_products_are_integer_kernels(runtime: str, tmp_path: Path) -> None:
    found = read(chain(tmp_path / "m.onnx"), runtime)
    assert (found.integer_products, len(found.products)) == (2, 2)
    assert found.islands == ()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_operator_without_an_integer_kernel_is_an_island(runtime: str, tmp_path: Path) -> None:
    found = read(chain(tmp_path / "m.onnx", middle="Sin"), runtime)
    assert found.integer_products == 2
    (island,) = found.islands
    assert "middle" in island.kernels
    assert island.ms is None


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_floats_between_a_table_of_codes_and_a_product_are_no_island(
    runtime: str, tmp_path: Path
) -> None:
    # Rows of a table were no activations that a kernel had in integers.
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["codes"], "rows"),
        helper.make_node("DequantizeLinear", ["codes", "one", "zero"], ["row"], "row"),
        helper.make_node("Sin", ["row"], ["s"], "middle"),
        helper.make_node("QuantizeLinear", ["s", "one", "zero"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["d"], "d"),
        helper.make_node("DequantizeLinear", ["w", "one", "zs"], ["v"], "v"),
        helper.make_node("MatMul", ["d", "v"], ["y"], "product"),
    ]
    rng = np.random.default_rng(0)
    constants = {
        "one": np.float32(0.5),
        "zero": np.uint8(100),
        "zs": np.int8(0),
        "table": rng.integers(0, 255, (300, 64)).astype(np.uint8),
        "w": rng.integers(-9, 9, (64, 64)).astype(np.int8),
    }
    ports: list[tiny.Port] = [("x", TensorProto.INT64, ["n"]), ("y", FLOAT, ["n", 64])]
    path = tiny.save(tmp_path / "m.onnx", nodes, [ports[0]], [ports[1]], constants)
    found = read(path, runtime)
    assert any("middle" in k.origins or k.op == "Sin" for k in found.kernels)
    assert found.islands == ()


def test_a_pair_between_float_kernels_only_rounds(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Sin", ["x"], ["a"]),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("Sin", ["d"], ["y"]),
    ]
    ports: list[tiny.Port] = [("x", FLOAT, ["n", 8]), ("y", FLOAT, ["n", 8])]
    constants = {"s": np.float32(0.1), "z": np.uint8(3)}
    path = tiny.save(tmp_path / "m.onnx", nodes, [ports[0]], [ports[1]], constants)
    found = read(path, "onnxruntime")
    assert found.lone_pairs == 1
    assert found.conversions == 2
    # No integers before it and none after: not an island.
    assert found.islands == ()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_kernels_are_timed_with_a_sample(runtime: str, tmp_path: Path) -> None:
    sample = {"x": np.ones((2, 8), np.float32)}
    found = read(chain(tmp_path / "m.onnx", middle="Sin"), runtime, feeds=sample, seconds=0)
    assert found.runs == 3
    assert all(k.ms is not None for k in found.products)
    assert found.total_ms is not None
    assert found.total_ms >= sum(k.ms for k in found.products if k.ms is not None) > 0
    assert found.islands[0].ms is not None


def test_products_in_branches_are_seen(tmp_path: Path) -> None:
    def branch(name: str) -> Any:
        node = helper.make_node("MatMul", ["x", "w"], [name])
        return helper.make_graph(
            [node], name, [], [helper.make_tensor_value_info(name, FLOAT, None)]
        )

    choice = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch("yes"), else_branch=branch("no")
    )
    ports: list[tiny.Port] = [("x", FLOAT, ["n", 8]), ("c", TensorProto.BOOL, [])]
    constants = {"w": np.ones((8, 8), np.float32)}
    path = tiny.save(tmp_path / "m.onnx", [choice], ports, [("y", FLOAT, None)], constants)
    found = read(path, "onnxruntime")
    assert len(found.products) == 2


def test_nodes_without_names_each_have_their_own_time(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["c"], "named"),
        helper.make_node("MatMul", ["c", "w"], ["y"]),
    ]
    ports: list[tiny.Port] = [("x", FLOAT, ["n", 8]), ("y", FLOAT, ["n", 8])]
    constants = {"w": np.eye(8, dtype=np.float32)}
    path = tiny.save(tmp_path / "m.onnx", nodes, [ports[0]], [ports[1]], constants)
    sample = {"x": np.ones((2, 8), np.float32)}
    found = read(path, "onnxruntime", feeds=sample, seconds=0)
    assert [k.op for k in found.kernels] == ["MatMul", "Tanh", "MatMul", "MatMul"]
    assert all(k.ms is not None for k in found.kernels)
    assert len({k.name for k in found.kernels}) == 4


def test_a_convolution_goes_by_its_own_name_whatever_was_fused_into_it(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "bend"),
        helper.make_node("Conv", ["b", "w"], ["y"], "second"),
    ]
    image = ["n", 16, 4, 4]
    ports: list[tiny.Port] = [("x", FLOAT, image), ("y", FLOAT, image)]
    constants = {"w": np.ones((16, 16, 1, 1), np.float32)}
    path = tiny.save(tmp_path / "m.onnx", nodes, [ports[0]], [ports[1]], constants)
    found = read(path, "onnxruntime")
    assert [k.origins[0] for k in found.products] == ["first", "second"]


def test_integer_products_go_by_the_names_of_the_file(tmp_path: Path) -> None:
    found = read(chain(tmp_path / "m.onnx"), "onnxruntime")
    assert [k.origins[0] for k in found.products] == ["product0", "product1"]


def test_time_inside_a_branch_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def branch(name: str) -> Any:
        node = helper.make_node("MatMul", ["x", "w"], [name], f"product {name}")
        return helper.make_graph(
            [node], name, [], [helper.make_tensor_value_info(name, FLOAT, None)]
        )

    choice = helper.make_node(
        "If", ["c"], ["y"], "choice", then_branch=branch("yes"), else_branch=branch("no")
    )
    ports: list[tiny.Port] = [("x", FLOAT, ["n", 8]), ("c", TensorProto.BOOL, [])]
    constants = {"w": np.ones((8, 8), np.float32)}
    path = tiny.save(tmp_path / "m.onnx", [choice], ports, [("y", FLOAT, None)], constants)
    monkeypatch.setattr(kernels, "node_times", lambda *_, **__: {"choice": 5.0, "product yes": 3.0})
    sample = {"x": np.ones((2, 8), np.float32), "c": np.ones((), bool)}
    found = read(path, "onnxruntime", feeds=sample, seconds=0)
    assert {k.name: k.ms for k in found.kernels} == {
        "choice": 2.0, "product yes": 3.0, "product no": None,
    }  # fmt: skip
    assert found.total_ms == 5.0


INTEGERS, FLOATS = "codes", "values"


@pytest.mark.parametrize(
    ("op", "inputs", "kind", "integer", "takes", "gives"),
    [
        ("QLinearConv", [INTEGERS], "product", True, True, True),
        ("MatMulInteger", [INTEGERS], "product", True, True, False),
        ("MatMulIntegerToFloat", [INTEGERS], "product", True, True, False),
        ("DynamicQuantizeMatMul", [FLOATS], "product", True, False, False),
        ("DynamicQuantizeLSTM", [FLOATS], "product", True, False, False),
        # With a scale of its output it makes integers.
        ("QGemm", [INTEGERS] * 9, "product", True, True, True),
        ("QGemm", [INTEGERS] * 7, "product", True, True, False),
        ("QuantizeLinear", [FLOATS], "conversion", False, False, False),
        ("Transpose", [INTEGERS], "other", True, True, True),
        ("Transpose", [FLOATS], "other", False, False, False),
        ("QLinearConcat", ["scale", INTEGERS], "other", True, True, True),
        ("Concat", [INTEGERS], "other", True, True, True),
        ("Gather", [INTEGERS], "other", True, True, True),
        ("Conv", [FLOATS], "product", False, False, False),
    ],
)
def test_a_kernel_of_onnxruntime_is_known_by_its_operator_and_what_it_reads(
    op: str, inputs: list[str], kind: str, *, integer: bool, takes: bool, gives: bool
) -> None:
    eight = {INTEGERS}
    made = kernels._onnx_node(helper.make_node(op, inputs, ["out"], "n"), {}, eight)
    assert (made.kernel.kind, made.kernel.integer) == (kind, integer)
    assert (made.takes, made.gives) == (takes, gives)
    assert ("out" in eight) == (gives or op == "QuantizeLinear")


def test_integers_that_a_graph_is_given_are_moved_in_integers() -> None:
    graph = helper.make_graph(
        [helper.make_node("Transpose", ["x"], ["y"], "t")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [2, 3])],
        [],
    )
    (found,) = kernels._onnx_nodes(graph, {}, set())
    assert found.kernel.integer


def test_a_branch_that_took_longer_than_what_holds_it_leaves_no_time_below_none() -> None:
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["r"], "inner")], "g", [], [])
    outer = helper.make_node("If", ["c"], ["y"], "outer", then_branch=inner, else_branch=inner)
    graph = helper.make_graph([outer], "g", [], [])
    found = kernels._onnx_nodes(graph, {"outer": 1.0, "inner": 3.0}, set())
    assert [n.kernel.ms for n in found] == [0.0, 3.0, 3.0]


@pytest.mark.parametrize(("once_s", "runs"), [(2.0, 3), (0.1, 10), (0.0, 20)])
def test_runs_fill_the_time_within_limits(
    once_s: float, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter((0, int(once_s * 1e9)))
    monkeypatch.setattr(kernels, "perf_counter_ns", lambda: next(times))
    calls: list[None] = []
    assert kernels._runs(lambda: calls.append(None), 1.0) == runs
    assert len(calls) == 2


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    path = chain(tmp_path / "m.onnx")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    sample = {"x": np.ones((2, 8), np.float32)}
    find_kernels(path, "onnxruntime", threads=1, scratch=scratch, feeds=sample, seconds=0)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_that_a_runtime_refuses_is_an_input_error(runtime: str, tmp_path: Path) -> None:
    ports: list[tiny.Port] = [("x", FLOAT, ["n", 8]), ("y", FLOAT, ["n", 8])]
    node = helper.make_node("Nonsense", ["x"], ["y"])
    path = tiny.save(tmp_path / "m.onnx", [node], [ports[0]], [ports[1]])
    with pytest.raises(InputError, match=f"{runtime} refuses the model"):
        read(path, runtime)


def test_a_sample_that_does_not_fit_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot run the sample"):
        read(
            tiny.linear(tmp_path / "m.onnx"),
            "onnxruntime",
            feeds={"x": np.ones((1, 9), np.float32)},
        )


def test_a_runtime_that_tells_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'torch' does not tell its kernels; known: onnxruntime"):
        read(tiny.linear(tmp_path / "m.onnx"), "torch")


def test_an_open_model_tells_the_kernels_that_its_file_does(tmp_path: Path) -> None:
    path = chain(tmp_path / "m.onnx", middle="Sin")
    settings = Settings(threads=1)
    silent, telling = (find_runtime(r).open(path, settings) for r in RUNTIMES)
    assert kernels_of(silent) is None
    found, expected = kernels_of(telling), read(path, "openvino")
    assert found is not None
    assert (found.runtime, found.version, found.runs) == ("openvino", expected.version, 0)
    assert found.integer_products == expected.integer_products > 0
    # OpenVINO numbers the names of what it puts in.
    kinds = [[(k.op, k.kind, k.integer, k.primitive) for k in x.kernels] for x in (found, expected)]
    assert kinds[0] == kinds[1]
    assert [i.ops for i in found.islands] == [i.ops for i in expected.islands]
