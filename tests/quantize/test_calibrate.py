"""The pass over a model: what it sees, and how much it holds."""

import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bench.errors import InputError
from bench.models import Array, read_model
from quantize import watching as module
from quantize.calibrate import Calibration, calibrate, calibrate_for
from quantize.rows import RowStore
from tests import tiny
from tests.int8 import samples_of
from tests.streams import same, streamed

FLOAT = TensorProto.FLOAT


def chain(path: Path) -> Path:
    """Conv, then MatMul on its last axis, integers beside them: every kind of tensor."""
    random = np.random.default_rng(5)
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["m"]),
        helper.make_node("Cast", ["ids"], ["f"], to=FLOAT),
        helper.make_node("ReduceMean", ["f"], ["level"], keepdims=0),
        helper.make_node("Add", ["m", "level"], ["y"]),
        helper.make_node("Shape", ["m"], ["size"]),
    ]
    return tiny.save(
        path,
        nodes,
        [("x", FLOAT, ["n", 3, "h", 6]), ("ids", TensorProto.INT64, ["k"])],
        [("y", FLOAT, None), ("size", TensorProto.INT64, None)],
        {
            "k": random.standard_normal((4, 3, 3, 3)).astype(np.float32),
            "w": random.standard_normal((6, 5)).astype(np.float32),
        },
    )


def ragged(count: int = 5) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(9)
    return [
        {
            "x": random.standard_normal((1 + i % 2, 3, 4 + i, 6)).astype(np.float32) + i,
            "ids": random.integers(0, 9, 2 + i),
        }
        for i in range(count)
    ]


def run(
    path: Path,
    tensors: Sequence[str],
    feeds: list[dict[str, np.ndarray]],
    states: Mapping[str, str] | None = None,
    seen: list[tuple[int, int]] | None = None,
    threads: int = 1,
) -> Calibration:
    model = read_model(path)
    samples = samples_of(feeds, model.inputs)
    store = RowStore(model, samples, states or {}, threads, path.parent, tuple(tensors))
    return calibrate_for(store, (), None if seen is None else lambda *p: seen.append(p))


def watched_values(path: Path, names: list[str], feeds: list[dict[str, np.ndarray]]) -> list[list]:
    import onnxruntime as ort

    module.expose(path, names, path.with_name("all.onnx"))
    session = ort.InferenceSession(
        str(path.with_name("all.onnx")), providers=["CPUExecutionProvider"]
    )
    return [session.run(names, f) for f in feeds]


def test_a_pass_sees_every_tensor_of_ragged_samples(tmp_path: Path) -> None:
    path, feeds, seen = chain(tmp_path / "m.onnx"), ragged(), []
    found = run(path, ["x", "c", "r", "y", "m"], feeds, seen=seen)

    assert set(found.tensors) == {"x", "c", "r", "y", "m"}
    assert seen == [(i + 1, 5) for i in range(5)]
    assert (found.samples, found.model_sha256) == (5, read_model(path).sha256)
    rows = watched_values(path, ["c", "r", "m"], feeds)
    for i, name in enumerate(("c", "r", "m")):
        stats, every = found.tensors[name], [row[i] for row in rows]
        assert stats.samples == 5
        assert stats.count == sum(v.size for v in every)
        assert stats.low == min(v.min() for v in every)
        assert stats.high == max(v.max() for v in every)
        expected = streamed(*every)
        np.testing.assert_array_equal(stats.bins, expected.bins)
    assert found.tensors["x"].count == sum(f["x"].size for f in feeds)


def test_integer_tensors_have_no_statistics(tmp_path: Path) -> None:
    found = run(chain(tmp_path / "m.onnx"), ["ids", "size", "x"], ragged(2))
    assert found.tensors["ids"].count == found.tensors["size"].count == 0
    assert set(found.magnitudes()) == {"x"}


@pytest.mark.parametrize("limit", [1, 700, 1 << 30])
def test_the_size_of_groups_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    path, wanted = chain(tmp_path / "m.onnx"), ["c", "r", "m", "f", "y"]
    expected = run(path, wanted, ragged())
    monkeypatch.setattr(module, "GROUP_BYTES", limit)
    for name, stats in run(path, wanted, ragged()).tensors.items():
        same(stats, expected.tensors[name])


def test_groups_are_packed_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP_BYTES", 100)
    assert module._pack({"a": 60, "b": 40, "c": 1, "d": 500, "e": 99, "f": 2, "g": 98}) == [
        {"a": 60, "b": 40},
        {"c": 1},
        {"d": 500},
        {"e": 99},
        {"f": 2, "g": 98},
    ]
    assert module._pack({}) == [{}]


def test_one_graph_is_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, feeds, held = chain(tmp_path / "m.onnx"), ragged(), list[object]()
    real = module._open

    def opened(*args: object, **options: object) -> object:
        assert not any(ref() for ref in held)
        session = real(*args, **options)
        held.append(weakref.ref(session))
        return session

    monkeypatch.setattr(module, "_open", opened)
    monkeypatch.setattr(module, "GROUP_BYTES", 1)
    run(path, ["c", "r", "m"], feeds, threads=2)
    assert len(held) == 3
    # One more to see sizes that do not follow.
    monkeypatch.setattr(module, "_shapes_told", lambda *_: {})
    run(path, ["c", "r", "m"], feeds, threads=2)
    assert len(held) == 7


def test_only_sizes_that_do_not_follow_from_the_inputs_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = onnx.load(chain(tmp_path / "m.onnx"))
    # As many as there are in a sample.
    proto.graph.node.extend(
        [
            helper.make_node("NonZero", ["ids"], ["places"]),
            helper.make_node("Cast", ["places"], ["z"], to=FLOAT),
        ]
    )
    # What exporters leave behind: shapes of another input, of none, and one name for two sizes.
    stale = {"c": [1, 4, 2, 6], "r": ["n", 4, 0, -1], "m": ["h", 4, "n", 5], "z": [1, 1]}
    infos = [helper.make_tensor_value_info(n, FLOAT, shape) for n, shape in stale.items()]
    proto.graph.value_info.extend(infos)
    onnx.save(proto, tmp_path / "stale.onnx")
    model, asked = read_model(tmp_path / "stale.onnx"), list[str]()
    samples, real = samples_of(ragged(), model.inputs), module._expose_shapes
    monkeypatch.setattr(
        module, "_expose_shapes", lambda p, wanted, o: asked.extend(wanted) or real(p, wanted, o)
    )
    # The largest sample has 2 of them, 7 high, and 5 numbers.
    largest, numbers = 2 * 4 * 7 * 4, np.count_nonzero(ragged()[3]["ids"])
    told = {"c": 6 * largest, "r": 6 * largest, "m": 5 * largest, "level": 4}
    names = ["c", "r", "m", "level", "z"]
    expected = [{**told, "z": 4 * numbers}]
    assert module._groups(model, names, samples, tmp_path) == expected
    assert asked == ["z"]
    monkeypatch.setattr(module, "_open", lambda *_, **__: pytest.fail("all sizes are told"))
    assert module._groups(model, names[:-1], samples, tmp_path) == [told]


def test_where_shapes_cannot_be_inferred_they_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("in native code")

    expected = run(chain(tmp_path / "m.onnx"), ["c", "r"], ragged())
    monkeypatch.setattr(module.ShapeInferencePass, "__call__", failing)
    found = run(tmp_path / "m.onnx", ["c", "r"], ragged())
    for name, stats in found.tensors.items():
        same(stats, expected.tensors[name])


def test_samples_run_side_by_side_as_far_as_memory_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP_BYTES", 100)
    assert module._side_by_side([{"a": 10, "b": 15}], threads=8) == 4
    assert module._side_by_side([{"a": 10, "b": 15}], threads=2) == 2
    assert module._side_by_side([{"a": 90}, {"b": 60}], threads=8) == 1
    assert module._side_by_side([{}], threads=3) == 3


def test_samples_side_by_side_leave_the_same_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, feeds, wanted = chain(tmp_path / "m.onnx"), ragged(40), ["x", "c", "r", "m", "y"]
    expected = run(path, wanted, feeds)
    everybody, met = threading.Barrier(4), {threading.get_ident()}
    looking, most = list[int](), set[int]()
    once, values = module._run, module.Watch._values

    def together(*given: Any) -> Iterator[tuple[str, Array]]:
        if threading.get_ident() not in met:
            met.add(threading.get_ident())
            # Were fewer threads at work, the last one would not come.
            everybody.wait(timeout=20)
        return once(*given)

    def watched(self: module.Watch, *given: Any) -> Iterator[tuple[str, Array]]:
        looking.append(1)
        for value in values(self, *given):
            most.add(len(looking))
            yield value
        looking.pop()

    monkeypatch.setattr(module, "_run", together)
    monkeypatch.setattr(module.Watch, "_values", watched)
    seen: list[tuple[int, int]] = []
    found = run(path, wanted, feeds, seen=seen, threads=4)
    for name, stats in found.tensors.items():
        same(stats, expected.tensors[name])
    assert len(met) == 5
    assert max(most) <= 2
    assert seen == [(i + 1, 40) for i in range(40)]


@pytest.mark.parametrize("threads", [1, 4])
def test_states_are_fed_back(tmp_path: Path, threads: int) -> None:
    path = tiny.save(
        tmp_path / "m.onnx",
        [
            helper.make_node("Add", ["x", "h"], ["sum"]),
            helper.make_node("Identity", ["sum"], ["next"]),
        ],
        [("x", FLOAT, [1, 2]), ("h", FLOAT, [1, 2])],
        [("next", FLOAT, [1, 2])],
    )
    feeds = [{"x": np.ones((1, 2), np.float32), "h": np.zeros((1, 2), np.float32)}] * 4
    found = run(path, ["sum", "h"], feeds, {"next": "h"}, threads=threads)
    assert (found.tensors["sum"].low, found.tensors["sum"].high) == (1, 4)
    assert (found.tensors["h"].low, found.tensors["h"].high) == (0, 3)
    unfed = run(path, ["sum"], feeds)
    assert unfed.tensors["sum"].high == 1


def test_an_input_that_is_also_an_output_is_counted_once(tmp_path: Path) -> None:
    path = tiny.save(
        tmp_path / "m.onnx",
        [helper.make_node("Relu", ["x"], ["y"])],
        [("x", FLOAT, [1, 2])],
        [("x", FLOAT, [1, 2]), ("y", FLOAT, [1, 2])],
    )
    found = run(path, ["x"], [{"x": np.ones((1, 2), np.float32)}] * 3)
    assert (found.tensors["x"].samples, found.tensors["x"].count) == (3, 6)


def test_a_tensor_that_was_not_finite_has_no_magnitude(tmp_path: Path) -> None:
    path = tiny.unary(tmp_path / "m.onnx", "Log", FLOAT, [1, "n"])
    feeds = [{"x": np.float32([[1, 2]])}, {"x": np.float32([[1, 0]])}]
    found = run(path, ["x", "y"], feeds)
    assert found.magnitudes() == {"x": 2.0}
    assert found.tensors["y"].nonfinite == 1


def test_the_magnitude_is_that_of_the_farther_end() -> None:
    stats = {"a": streamed(np.float32([-3, 1])), "b": streamed(np.float32([2]))}
    assert Calibration(stats, "", "", 1).magnitudes() == {"a": 3.0, "b": 2.0}


def test_a_model_that_cannot_run_is_an_input_error(tmp_path: Path) -> None:
    path = tiny.save(
        tmp_path / "m.onnx",
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [("x", FLOAT, ["n"])],
        [("y", FLOAT, None)],
        {"shape": np.array([7], np.int64)},
    )
    with pytest.raises(InputError, match="cannot run on a calibration sample"):
        run(path, ["x"], [{"x": np.ones(3, np.float32)}])


PEAK = """
import sys
from pathlib import Path

import numpy as np

from bench.models import read_model
from bench.runtimes import RUNTIMES, Settings
from quantize import watching as module
from quantize.calibrate import calibrate
from tests.int8 import samples_of

path, count = Path(sys.argv[1]), int(sys.argv[2])
model = read_model(path)
feeds = [{"x": np.full((1, 16, 128, 256), i / 7, np.float32)} for i in range(5)]
session = RUNTIMES["onnxruntime"].open(path, Settings(threads=1))
for each in feeds:
    session.run(each)
session.close()
if count:
    module.GROUP_BYTES = 8 << 20
    samples = samples_of([feeds[i % 5] for i in range(count)], model.inputs)
    names = [f"t{i}" for i in range(64)]
    calibrate(model, names, samples, threads=1, scratch=path.parent, states={})
status = Path("/proc/self/status").read_text()
print(int(status.split("VmHWM:")[1].split()[0]) >> 10)
"""


def test_memory_is_that_of_the_plain_run_and_one_group(tmp_path: Path) -> None:
    """All 64 tensors of 2 MB together would be 128 MB; a group is 8."""
    shape = [1, 16, 128, 256]
    path = tiny.save(
        tmp_path / "m.onnx",
        [
            helper.make_node("Neg" if i % 2 else "Relu", [f"t{i - 1}" if i else "x"], [f"t{i}"])
            for i in range(64)
        ],
        [("x", FLOAT, shape)],
        [("t63", FLOAT, shape)],
    )

    def peak(count: int) -> int:
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(path), str(count)], capture_output=True, check=True
        )
        return int(done.stdout)

    plain, few, many = peak(0), peak(2), peak(8)
    assert few - plain < 90
    assert many - plain < 90


def test_graphs_that_are_watched_share_one_file_of_weights(tmp_path: Path) -> None:
    constants = {n: np.eye(256, dtype=np.float32) for n in ("w", "v")}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "v"], ["b"]),
    ]
    ports = [("x", FLOAT, ["n", 256])], [("b", FLOAT, ["n", 256])]
    path = tiny.save(tmp_path / "m.onnx", nodes, *ports, constants)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    model = read_model(path)
    samples = samples_of([{"x": np.ones((1, 256), np.float32)}] * 3, model.inputs)
    for _ in range(2):
        found = calibrate(model, ["a", "b"], samples, threads=1, scratch=scratch, states={})
        assert found.tensors["a"].high == 1
    assert sum(f.stat().st_size for f in scratch.iterdir()) < 1.1 * path.stat().st_size
