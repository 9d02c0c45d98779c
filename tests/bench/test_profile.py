from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from bench.profile import node_times
from tests import tiny


def chain(path: Path) -> Path:
    """A large and a small product: [n, 256] to [n, 4]."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((256, 512)).astype(np.float32),
        "v": rng.standard_normal((512, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="large"),
        helper.make_node("Tanh", ["a"], ["b"], name="bend"),
        helper.make_node("MatMul", ["b", "v"], ["y"], name="small"),
    ]
    ports: list[tiny.Port] = [("x", TensorProto.FLOAT, ["n", 256]), ("y", TensorProto.FLOAT, None)]
    return tiny.save(path, nodes, [ports[0]], [ports[1]], constants)


def feeds(count: int = 16) -> dict[str, Any]:
    return {"x": np.random.default_rng(1).standard_normal((count, 256)).astype(np.float32)}


def test_every_node_that_runs_has_a_time_and_large_ones_have_more(tmp_path: Path) -> None:
    times = node_times(chain(tmp_path / "m.onnx"), feeds(), threads=1, runs=20, scratch=tmp_path)
    assert set(times) == {"large", "bend", "small"}
    assert times["large"] > times["small"] > 0
    # Two million multiplications take neither a second nor a microsecond.
    assert 1e-3 < times["large"] < 1e3


def test_the_profile_is_removed(tmp_path: Path) -> None:
    path = chain(tmp_path / "m.onnx")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    node_times(path, feeds(1), threads=1, runs=1, scratch=scratch)
    assert list(scratch.iterdir()) == []


def test_times_are_means_over_the_runs_after_the_first_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime as ort

    events = [{"cat": "Session", "name": "model_run", "dur": 10**9}]
    for spent in (9000, 5000, 100, 300):
        events.append({"cat": "Node", "name": "large_kernel_time", "dur": spent})
        events.append({"cat": "Node", "name": "large_fence_before", "dur": 10**6})
    written = tmp_path / "profile.json"

    class Session:
        runs = 0

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def run(self, *_: Any) -> None:
            Session.runs += 1

        def end_profiling(self) -> str:
            import json

            written.write_text(json.dumps(events))
            return str(written)

    monkeypatch.setattr(ort, "InferenceSession", Session)
    times = node_times(tmp_path / "m.onnx", {}, threads=1, runs=2, scratch=tmp_path)
    # Microseconds in the file: (100 + 300) / 2.
    assert times == {"large": 0.2}
    assert Session.runs == 4
    assert not written.exists()


def test_int8_kernels_are_found_by_the_names_of_what_they_replace(tmp_path: Path) -> None:
    path = tiny.qdq_matmul(tmp_path / "m.onnx", np.ones((64, 8), np.int8))
    x = {"x": np.ones((4, 64), np.float32)}
    times = node_times(path, x, threads=1, runs=1, scratch=tmp_path)
    assert times
    assert all(ms >= 0 for ms in times.values())
