import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from bench.errors import InputError, UnfitError
from bench.machine import exact_product
from bench.runtimes import Settings, onnxruntime
from bench.runtimes.onnxruntime import OnnxRuntime, session_options
from tests import tiny

ONE = Settings(threads=1)


def test_outputs_have_their_names(tmp_path: Path) -> None:
    session = OnnxRuntime().open(tiny.linear(tmp_path / "m.onnx"), ONE)
    out = session.run({"x": np.zeros((2, 4), np.float32)})
    assert list(out) == ["y"]
    assert out["y"].shape == (2, 3)
    assert session.device == "cpu"


def test_types_without_a_kernel_are_told_with_what_to_do(tmp_path: Path) -> None:
    image, double = ["n", 3, 8, 8], TensorProto.DOUBLE
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    path = tiny.save(
        tmp_path / "m.onnx",
        [node],
        [("x", double, image)],
        [("y", double, ["n", 4, 8, 8])],
        {"w": np.ones((4, 3, 1, 1))},
    )
    with pytest.raises(InputError, match=r"implementation for Conv.* export the model in float32"):
        OnnxRuntime().open(path, ONE)


def test_many_threads_may_run_one_session(tmp_path: Path) -> None:
    session = OnnxRuntime().open(tiny.linear(tmp_path / "m.onnx"), ONE)
    inputs = [np.full((1, 4), i, np.float32) for i in range(40)]
    expected = [session.run({"x": x})["y"] for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda x: session.run({"x": x})["y"], inputs))
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_broken_model_is_an_input_error(tmp_path: Path) -> None:
    path = tiny.unary(tmp_path / "m.onnx", "NoSuchOperator", TensorProto.FLOAT, [1])
    with pytest.raises(InputError, match="onnxruntime refuses"):
        OnnxRuntime().open(path, ONE)


@pytest.mark.parametrize(
    "feeds",
    [
        {"x": np.zeros((2, 5), np.float32)},
        {"x": np.zeros((2, 4), np.int32)},
        {"z": np.zeros((2, 4), np.float32)},
    ],
)
def test_a_sample_that_does_not_fit_is_an_input_error(
    tmp_path: Path, feeds: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]
) -> None:
    session = OnnxRuntime().open(tiny.linear(tmp_path / "m.onnx"), ONE)
    with pytest.raises(InputError, match="this sample"):
        session.run(feeds)


def test_a_device_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UnfitError, match="no provider for device 'tpu'"):
        OnnxRuntime().open(tiny.linear(tmp_path / "m.onnx"), Settings(1, device="tpu"))


def test_threads_and_optimization_are_explicit() -> None:
    options = session_options(Settings(threads=3, optimize="none"))
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 1
    assert options.graph_optimization_level.name == "ORT_DISABLE_ALL"


def test_without_an_arena_nothing_is_kept_for_the_next_run() -> None:
    kept, given_back = (session_options(Settings(threads=1, arena=a)) for a in (True, False))
    assert kept.enable_cpu_mem_arena
    assert kept.enable_mem_pattern
    assert not given_back.enable_cpu_mem_arena
    assert not given_back.enable_mem_pattern


def test_unoptimized_weights_become_floats_one_after_the_other(tmp_path: Path) -> None:
    # ONNX Runtime would copy the shared DequantizeLinear for each reader, behind all other nodes.
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "zx"], ["q"])]
    nodes += [helper.make_node("DequantizeLinear", ["q", "s", "zx"], ["d"])]
    held: dict[str, Any] = {"s": np.float32(0.1), "zx": np.uint8(128), "zw": np.int8(0)}
    for i in range(3):
        held[f"c{i}"] = np.ones((4, 4), np.int8)
        nodes += [
            helper.make_node("DequantizeLinear", [f"c{i}", "s", "zw"], [f"w{i}"]),
            helper.make_node("MatMul", ["d", f"w{i}"], [f"y{i}"]),
        ]
    outputs = [(f"y{i}", TensorProto.FLOAT, [1, 4]) for i in range(3)]
    path = tiny.save(tmp_path / "m.onnx", nodes, [("x", TensorProto.FLOAT, [1, 4])], outputs, held)
    options = session_options(Settings(threads=1, optimize="none"))
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = onnx.load(tmp_path / "run.onnx").graph.node
    assert [n.op_type for n in found].count("DequantizeLinear") == 4


@pytest.mark.parametrize(("verdict", "switched"), [("exact", False), ("saturating", True)])
def test_the_exact_switch_is_set_only_where_the_host_saturates(
    monkeypatch: pytest.MonkeyPatch, verdict: str, *, switched: bool
) -> None:
    monkeypatch.setattr("bench.machine.canary", lambda _name: verdict)
    options = session_options(Settings(threads=1, exact=True))
    if switched:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError):
            options.get_session_config_entry("session.x64quantprecision")


def test_exact_int8_equals_integer_arithmetic(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    w = rng.integers(-128, 128, (64, 32)).astype(np.int8)
    x = rng.integers(0, 256, (8, 64)).astype(np.uint8)
    path = tiny.qdq_matmul(tmp_path / "m.onnx", w)
    session = OnnxRuntime().open(path, Settings(threads=1, exact=True))
    got = session.run({"x": x.astype(np.float32)})["y"]
    assert np.array_equal(got, exact_product(x, w))


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UnfitError, match="pip install onnxruntime"):
        OnnxRuntime().version()


def test_an_interrupt_of_an_import_is_no_missing_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What native modules make of one."""
    code = "raise ImportError('initialization failed') from KeyboardInterrupt()"
    (tmp_path / "onnxruntime.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime")
    with pytest.raises(KeyboardInterrupt):
        OnnxRuntime().version()


class _Recorder:
    """Stands in for a GPU build: notes what is asked of it and says what it is told to say."""

    def __init__(self, providers: list[str], nodes: dict[str, int]) -> None:
        self.providers = providers
        self.nodes = nodes
        self.asked: dict[str, Any] = {}

    def __call__(self, model: object, options: object, *, providers: list[Any]) -> "_Recorder":
        self.asked = {"model": model, "providers": providers}
        return self

    def get_providers(self) -> list[str]:
        return self.providers

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            SimpleNamespace(ep_name=name, get_nodes=lambda n=count: [None] * n)
            for name, count in self.nodes.items()
        ]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="y")]


CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def _with_gpu(
    monkeypatch: pytest.MonkeyPatch, providers: list[str], nodes: dict[str, int]
) -> _Recorder:
    recorder = _Recorder(providers, nodes)
    package = onnxruntime._package()
    monkeypatch.setattr(package, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(package, "InferenceSession", recorder)
    return recorder


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", "0"), ("tf32", "1"), ("fp16", "0")])
def test_a_gpu_computes_in_the_precision_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any, tf32: str
) -> None:
    recorder = _with_gpu(monkeypatch, [CUDA, CPU], {CUDA: 3, CPU: 1})
    path = tiny.linear(tmp_path / "m.onnx")
    session = OnnxRuntime().open(path, Settings(1, "cuda", precision=precision))
    assert recorder.asked["providers"] == [(CUDA, {"use_tf32": tf32})]
    assert session.placement == {CUDA: 3, CPU: 1}
    halved = precision == "fp16"
    assert isinstance(recorder.asked["model"], bytes) == halved
    if halved:
        model = onnx.load_from_string(recorder.asked["model"])
        assert model.graph.initializer[0].data_type == TensorProto.FLOAT16
        assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT


@pytest.mark.parametrize(
    ("providers", "nodes", "says"),
    [
        ([CPU], {}, f"asked onnxruntime for {CUDA}, got {CPU}"),
        ([CUDA, CPU], {CPU: 4}, "put no node on it"),
    ],
)
def test_a_gpu_that_silently_was_a_cpu_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    providers: list[str],
    nodes: dict[str, int],
    says: str,
) -> None:
    _with_gpu(monkeypatch, providers, nodes)
    with pytest.raises(UnfitError, match=says):
        OnnxRuntime().open(tiny.linear(tmp_path / "m.onnx"), Settings(1, "cuda"))


def test_staged_inputs_stay_on_the_device(tmp_path: Path) -> None:
    session = OnnxRuntime().open(tiny.linear(tmp_path / "m.onnx"), ONE)
    call = session.stage({"x": np.zeros((2, 4), np.float32)})  # type: ignore[attr-defined]
    assert call() is None
    wrong = session.stage({"x": np.zeros((2, 5), np.float32)})  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="on this sample"):
        wrong()
