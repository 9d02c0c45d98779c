"""Layers that are timed on two machines, and which of them a kernel is like."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from bench import yardsticks
from bench.islands import Kernel
from bench.kernels import find_kernels
from bench.yardsticks import measure_bout, measure_yardsticks, run_bout, time_by_kind
from tests import tiny

FLOAT = TensorProto.FLOAT
KINDS = ("convolution", "pointwise", "depthwise", "matrix")


def kernel(name: str, ms: float | None, *, op: str = "Conv", integer: bool = False) -> Kernel:
    return Kernel(name, op, "product", integer, "", (), ms)


def other(name: str, ms: float) -> Kernel:
    return Kernel(name, "Relu", "other", integer=False, primitive="", origins=(), ms=ms)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("Conv", ["x", "w3"], ["a"], "first", pads=[1] * 4),
        helper.make_node("Conv", ["a", "wd"], ["b"], "deep", pads=[1] * 4, group=8),
        helper.make_node("Relu", ["b"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "w1"], ["c"], "point"),
        helper.make_node("Flatten", ["c"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "g"], ["y"], "dense"),
    ]
    rng = np.random.default_rng(0)
    shapes = {"w3": (8, 3, 3, 3), "wd": (8, 1, 3, 3), "w1": (4, 8, 1, 1), "g": (4 * 36, 5)}
    held = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    x, y = ("x", FLOAT, [1, 3, 6, 6]), ("y", FLOAT, [1, 5])
    return tiny.save(tmp_path / "net.onnx", nodes, [x], [y], held)


def test_kernels_are_sorted_by_what_their_nodes_are(network: Path) -> None:
    kernels = [
        kernel("first_nchwc", 1.0),
        kernel("deep/WithoutBiases", 2.0, integer=True),
        kernel("c_nchwc", 3.0),
        kernel("dense_token_4", 1.0, op="Gemm"),
        other("relu", 2.0),
        other("reorder", 1.0),
        kernel("never", None),
    ]
    assert time_by_kind(kernels, network) == pytest.approx(
        {
            "convolution float": 0.1,
            "depthwise integer": 0.2,
            "pointwise float": 0.3,
            "matrix float": 0.1,
            "other": 0.3,
        }
    )
    assert time_by_kind([kernel("never", None)], network) == {}


def test_a_kernel_of_no_known_name_is_told_by_its_operator(network: Path) -> None:
    found = time_by_kind([kernel("?", 1.0), kernel("??", 3.0, op="FusedMatMul")], network)
    assert found == {"convolution float": 0.25, "matrix float": 0.75}


def test_weights_in_integers_tell_the_kind_too(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["wq", "s", "z"], ["w"], "weights"),
        helper.make_node("Conv", ["x", "w"], ["y"], "point"),
    ]
    held = {"wq": np.ones((4, 3, 1, 1), np.int8), "s": np.float32(1), "z": np.int8(0)}
    x, y = ("x", FLOAT, [1, 3, 6, 6]), ("y", FLOAT, [1, 4, 6, 6])
    path = tiny.save(tmp_path / "net.onnx", nodes, [x], [y], held)
    assert time_by_kind([kernel("point", 1.0)], path) == {"pointwise float": 1.0}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_in_integers_run_in_integers(runtime: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "layers.onnx"
    yardsticks._save_layers(path, kind, integer=True)
    found = find_kernels(path, runtime, threads=1, scratch=tmp_path)
    assert [k.integer for k in found.products] == [True] * yardsticks._LAYERS
    yardsticks._save_layers(path, kind, integer=False)
    found = find_kernels(path, runtime, threads=1, scratch=tmp_path)
    assert [k.integer for k in found.products] == [False] * yardsticks._LAYERS


def test_all_kinds_and_models_are_timed_in_one_process(
    network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yardsticks, "_SECONDS", 0.0)
    monkeypatch.setattr(yardsticks, "_MOST_S", 0.0)
    monkeypatch.setattr(yardsticks, "run_isolated", lambda _, job, **__: run_bout(job))
    feeds = {"x": np.ones((1, 3, 6, 6), np.float32)}
    damaged = network.with_name("damaged.onnx")
    damaged.write_bytes(b"no model")
    models = [(network, feeds), (damaged, feeds)]
    bout = measure_bout("onnxruntime", 1, models, shares=True)
    kinds = {f"{k} {t}" for k in KINDS for t in ("float", "integer")} | {"other"}
    assert bout.yardsticks.ms.keys() == kinds
    assert all(ms > 0 for ms in bout.yardsticks.ms.values())
    assert list(bout.model_ms) == list(bout.shares) == [0]
    assert sum(bout.shares[0].values()) == pytest.approx(1.0)
    assert {"depthwise float", "matrix float"} < bout.shares[0].keys()


def test_a_runtime_is_held_to_an_instruction_set_before_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "all of them")
    seen = []

    def find(_: str) -> None:
        seen.append(yardsticks.os.environ["ONEDNN_MAX_CPU_ISA"])
        raise LookupError

    monkeypatch.setattr(yardsticks, "find_runtime", find)
    job = {"runtime": "openvino", "threads": 1, "models": [], "limited": "AVX2", "folder": "."}
    with pytest.raises(LookupError):
        run_bout(job)
    assert seen == ["AVX2"]


def test_only_runtimes_that_tell_their_kernels_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def measured(runtime: str, threads: int) -> yardsticks.Bout:
        asked.append((runtime, threads))
        return yardsticks.Bout(yardsticks.Yardsticks(runtime, "1", threads, "", {}), {}, {})

    monkeypatch.setattr(yardsticks, "measure_bout", measured)
    found = measure_yardsticks((2, 1, 2), ["onnxruntime", "torch"])
    assert asked == [("onnxruntime", 2), ("onnxruntime", 1)]
    assert [y.threads for y in found] == [2, 1]
