"""Histograms that do not depend on batches, ranges, and the pass over a model."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from bench.errors import InputError
from bench.models import read_model
from quantize import calibrate as module
from quantize.calibrate import (
    HALF_BINS,
    RANGE_METHODS,
    Calibration,
    Range,
    TensorStatistics,
    calibrate,
    entropy_range,
    minmax_range,
    mse_range,
    percentile_range,
)
from tests import tiny
from tests.int8 import samples_of

FLOAT = TensorProto.FLOAT


def streamed(*batches: np.ndarray) -> TensorStatistics:
    stats = TensorStatistics()
    for batch in batches:
        stats.add(batch)
    return stats


def same(a: TensorStatistics, b: TensorStatistics) -> None:
    assert (a.low, a.high, a.count, a.exponent) == (b.low, b.high, b.count, b.exponent)
    assert (a.samples, a.nonfinite, a.zeros) == (b.samples, b.nonfinite, b.zeros)
    np.testing.assert_array_equal(a.bins, b.bins)


@st.composite
def values(draw: st.DrawFn) -> np.ndarray:
    """Float32 of one or many scales, from denormals to the largest, with zeros of both signs."""
    size = draw(st.integers(1, 60))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["one scale", "all scales", "zeros", "special", "positive"]))
    if kind == "zeros":
        return np.zeros(size, np.float32)
    if kind == "special":
        special = [0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, 3.4028235e38, -3.4028235e38, 1.0, -1.0]
        special += [0.5, 2.0, -2.0, 2.0**-100, -(2.0**-100)]
        return random.choice(np.array(special, np.float32), size)
    exponents = (
        draw(st.integers(-40, 37)) if kind != "all scales" else random.integers(-44, 38, size)
    )
    found = (random.standard_normal(size) * 10.0**exponents).astype(np.float32)
    found = np.clip(found, -3.4e38, 3.4e38)
    return np.abs(found) if kind == "positive" else found


def parts(array: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
    at = sorted({c % (len(array) + 1) for c in cuts})
    return [p for p in np.split(array, at) if len(p)]


CUTS = st.lists(st.integers(0, 1000), max_size=6)


@given(values(), CUTS, st.randoms(use_true_random=False))
def test_batches_and_order_leave_no_trace(array: np.ndarray, cuts: list[int], shuffle) -> None:
    whole = streamed(array)
    order = list(range(len(array)))
    shuffle.shuffle(order)
    cut = streamed(*parts(array[order], cuts))
    cut.samples = whole.samples
    same(cut, whole)


@given(values(), CUTS, st.randoms(use_true_random=False))
def test_merging_equals_streaming(array: np.ndarray, cuts: list[int], shuffle) -> None:
    pieces = [streamed(p) for p in parts(array, cuts)]
    count = len(pieces)
    while len(pieces) > 1:
        one, other = pieces.pop(shuffle.randrange(len(pieces))), pieces.pop()
        one.merge(other)
        pieces.append(one)
    expected = streamed(array)
    expected.samples = count
    same(pieces[0], expected)
    pieces[0].merge(TensorStatistics())
    same(pieces[0], expected)


@given(values())
def test_every_value_stands_in_its_bin(array: np.ndarray) -> None:
    stats = streamed(array)
    assert (stats.low, stats.high) == (array.min(), array.max())
    assert stats.count == stats.bins.sum() == array.size
    width = 2.0**stats.exponent
    expected = np.zeros(2 * HALF_BINS, np.int64)
    for value in array.astype(np.float64):
        expected[HALF_BINS + int(np.floor(value / width))] += 1
    np.testing.assert_array_equal(stats.bins, expected)
    # No coarser than it has to be: the outermost half is used, unless everything is tiny.
    magnitude = np.abs(array).max()
    if magnitude >= 2.0**-99:
        assert magnitude >= width * HALF_BINS / 2


def test_nonfinite_samples_are_counted_and_leave_no_other_trace() -> None:
    clean = streamed(np.float32([1, -2, 3]))
    for bad in (np.nan, np.inf, -np.inf):
        stats = streamed(np.float32([1, -2, 3]), np.float32([5, bad, -9]))
        assert (stats.samples, stats.nonfinite) == (2, 1)
        assert (stats.low, stats.high, stats.count) == (-2, 3, 3)
        np.testing.assert_array_equal(stats.bins, clean.bins)
    clean.merge(streamed(np.float32([np.nan])))
    assert (clean.samples, clean.nonfinite, clean.count) == (2, 1, 3)


def test_empty_tensors_count_as_samples_only() -> None:
    stats = streamed(np.zeros((0, 4), np.float32))
    assert (stats.samples, stats.count, stats.nonfinite) == (1, 0, 0)


def test_channel_means_run_over_every_other_axis() -> None:
    random = np.random.default_rng(0)
    image = random.standard_normal((2, 3, 4, 5)).astype(np.float32) + np.arange(3).reshape(3, 1, 1)
    rows = random.standard_normal((7, 2, 6)).astype(np.float32) + np.arange(6)
    for array, axis in ((image.astype(np.float32), 1), (rows.astype(np.float32), -1)):
        stats = TensorStatistics()
        assert stats.mean() is None
        stats.add_channels(array[:1], axis)
        stats.add_channels(array[1:], axis)
        others = tuple(i for i in range(array.ndim) if i != axis % array.ndim)
        np.testing.assert_allclose(stats.mean(), array.mean(axis=others, dtype=np.float64))


def test_channels_merge_and_stay_apart_afterwards() -> None:
    a, b, other = np.float32([[1, 2], [3, 4]]), np.float32([[9, 9]]), TensorStatistics()
    other.add_channels(a, 1)
    merged = TensorStatistics()
    merged.merge(other)
    merged.add_channels(b, 1)
    np.testing.assert_allclose(merged.mean(), [13 / 3, 5])
    np.testing.assert_allclose(other.mean(), [2, 3])
    other.merge(merged)
    np.testing.assert_allclose(other.mean(), [17 / 5, 21 / 5])


# Ranges


@given(values(), st.sampled_from(sorted(RANGE_METHODS)))
def test_ranges_hold_zero_and_stay_inside_what_was_seen(array: np.ndarray, method: str) -> None:
    chosen = RANGE_METHODS[method](streamed(array))
    low, high = min(array.min(), 0), max(array.max(), 0)
    assert low <= chosen.low <= 0 <= chosen.high <= high
    assert chosen.scale > 0
    assert np.isfinite(chosen.scale)
    assert 0 <= chosen.zero_point <= 255
    # The zero of the codes is the zero of the values, and no end is farther off than one step.
    step = float(chosen.scale)
    assert abs((0 - chosen.zero_point) * step - chosen.low) <= step
    assert abs((255 - chosen.zero_point) * step - max(chosen.high, 255 * step + chosen.low)) <= step


def test_minmax_is_exact_and_reaches_down_to_zero() -> None:
    assert minmax_range(streamed(np.float32([-0.7, 0.1, 2.3]))) == Range(
        float(np.float32(-0.7)), float(np.float32(2.3))
    )
    assert minmax_range(streamed(np.float32([3, 5]))) == Range(0.0, 5.0)
    assert minmax_range(streamed(np.float32([-3, -5]))) == Range(-5.0, 0.0)


@given(values())
def test_a_percentile_of_100_is_the_whole_range(array: np.ndarray) -> None:
    stats = streamed(array)
    assert percentile_range(stats, 100.0) == minmax_range(stats)


def test_percentiles_cut_both_tails_alike() -> None:
    random = np.random.default_rng(0)
    array = random.standard_normal(200_000).astype(np.float32)
    stats = streamed(array)
    for percent in (90.0, 99.0, 99.9):
        chosen = percentile_range(stats, percent)
        tail = (100 - percent) / 2
        width = 2.0**stats.exponent
        assert abs(chosen.low - np.percentile(array, tail)) <= width
        assert abs(chosen.high - np.percentile(array, 100 - tail)) <= width
    assert percentile_range(stats, 99.0).high < percentile_range(stats).high < stats.high


def rounding_error(array: np.ndarray, chosen: Range, power: float = 2.0) -> float:
    scale, zero = float(chosen.scale), chosen.zero_point
    codes = np.clip(np.rint(array / scale) + zero, 0, 255)
    return float((np.abs((codes - zero) * scale - array) ** power).mean())


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["normal", "laplace", "relu", "sparse", "outlier", "uniform", "bimodal"]),
    st.integers(-20, 20),
)
def test_the_mse_range_is_never_worse_than_minmax(seed: int, kind: str, exponent: int) -> None:
    random = np.random.default_rng(seed)
    array = {
        "normal": lambda: random.standard_normal(5000),
        "laplace": lambda: random.laplace(size=5000),
        "relu": lambda: np.maximum(random.standard_normal(5000), 0),
        # What a Relu leaves: exact zeros, which no step rounds, and a few values.
        "sparse": lambda: np.maximum(random.laplace(size=20000) - random.uniform(3, 7), 0),
        "outlier": lambda: np.append(random.standard_normal(5000), 10.0 ** random.uniform(0, 3)),
        "uniform": lambda: random.uniform(-1, 3, 5000),
        "bimodal": lambda: np.append(random.normal(-5, 0.1, 2500), random.normal(9, 1, 2500)),
    }[kind]()
    array = (array * 2.0**exponent).astype(np.float32)
    stats = streamed(array)
    found, plain = mse_range(stats), minmax_range(stats)
    assert rounding_error(array, found) <= rounding_error(array, plain) * 1.02


def test_the_mse_range_is_close_to_the_best_of_a_fine_grid() -> None:
    random = np.random.default_rng(1)
    array = np.append(random.standard_normal(200_000), [60.0, -30.0]).astype(np.float32)
    found = rounding_error(array, mse_range(streamed(array)))
    best = min(
        rounding_error(array, Range(float(array.min() * a), float(array.max() * b)))
        for a in np.linspace(0.1, 1, 10)
        for b in np.linspace(0.1, 1, 10)
    )
    assert found <= best * 1.1
    assert found < 0.75 * rounding_error(array, minmax_range(streamed(array)))


def test_higher_powers_cut_less() -> None:
    stats = streamed(np.random.default_rng(2).laplace(size=50000).astype(np.float32))
    widths = [r.high - r.low for r in (mse_range(stats, power=p) for p in (2.0, 2.4, 4.0))]
    assert widths == sorted(widths)
    assert widths[0] < widths[2]


def test_exact_zeros_do_not_pull_the_range_in() -> None:
    # 8 bits hold zero exactly, so 99 % of zeros are no reason to clip the rest harder.
    random = np.random.default_rng(3)
    alive = np.abs(random.standard_normal(2000)).astype(np.float32)
    alone, diluted = streamed(alive), streamed(alive, np.zeros(200_000, np.float32))
    assert mse_range(diluted) == mse_range(alone)


def test_entropy_clips_an_outlier() -> None:
    # onnxruntime's own search, at its default of 128 bins, returns (-126, 500) here.
    random = np.random.default_rng(0)
    array = np.append(random.normal(0, 8, 100_000), [500.0]).astype(np.float32)
    chosen = entropy_range(streamed(array))
    assert chosen.low == array.min()
    assert 20 < chosen.high < 120
    mirrored = entropy_range(streamed(-array))
    assert (mirrored.low, mirrored.high) == (-chosen.high, -chosen.low)
    assert rounding_error(array[:-1], chosen) < 0.3 * rounding_error(
        array[:-1], minmax_range(streamed(array))
    )


def test_entropy_keeps_a_full_range_that_is_used() -> None:
    array = np.random.default_rng(0).uniform(-1, 1, 100_000).astype(np.float32)
    chosen = entropy_range(streamed(array))
    assert chosen.high > 0.9
    few = np.float32([1, 2, 3, 500])
    assert entropy_range(streamed(few)) == minmax_range(streamed(few))


@pytest.mark.parametrize("method", sorted(RANGE_METHODS))
def test_dead_and_unseen_tensors_get_a_step_that_clips_nothing_ordinary(method: str) -> None:
    for stats in (streamed(np.zeros(100, np.float32)), TensorStatistics()):
        chosen = RANGE_METHODS[method](stats)
        assert (chosen.low, chosen.high, chosen.zero_point) == (0, 0, 0)
        assert chosen.scale == np.float32(1 / 255)


def test_scales_stay_above_the_denormals() -> None:
    chosen = minmax_range(streamed(np.float32([1e-40])))
    assert chosen.scale == np.float32(1e-14)
    assert Range(-1.0, 4.1).zero_point == 50
    assert Range(-3.0, 0.0).zero_point == 255


# The pass over a model


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
    tensors: Mapping[str, int | None],
    feeds: list[dict[str, np.ndarray]],
    states: Mapping[str, str] | None = None,
    seen: list[tuple[int, int]] | None = None,
) -> Calibration:
    model = read_model(path)
    return calibrate(
        model,
        tensors,
        samples_of(feeds, model.inputs),
        threads=1,
        scratch=path.parent,
        states=states or {},
        progress=None if seen is None else lambda *p: seen.append(p),
    )


def watched_values(path: Path, names: list[str], feeds: list[dict[str, np.ndarray]]) -> list[list]:
    import onnxruntime as ort

    module.expose(path, names, path.with_name("all.onnx"))
    session = ort.InferenceSession(
        str(path.with_name("all.onnx")), providers=["CPUExecutionProvider"]
    )
    return [session.run(names, f) for f in feeds]


def test_a_pass_sees_every_tensor_of_ragged_samples(tmp_path: Path) -> None:
    path, feeds, seen = chain(tmp_path / "m.onnx"), ragged(), []
    found = run(path, {"x": 1, "c": None, "r": -1, "y": None, "m": None}, feeds, seen=seen)

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

    images = np.concatenate([np.moveaxis(f["x"], 1, -1).reshape(-1, 3) for f in feeds])
    np.testing.assert_allclose(found.tensors["x"].mean(), images.mean(0, np.float64), rtol=1e-6)
    last = np.concatenate([row[1].reshape(-1, 6) for row in rows])
    np.testing.assert_allclose(found.tensors["r"].mean(), last.mean(0, np.float64), rtol=1e-6)
    assert found.tensors["c"].mean() is None


def test_integer_tensors_have_no_statistics(tmp_path: Path) -> None:
    found = run(chain(tmp_path / "m.onnx"), {"ids": None, "size": None, "x": None}, ragged(2))
    assert found.tensors["ids"].count == found.tensors["size"].count == 0
    assert set(found.magnitudes()) == {"x"}


@pytest.mark.parametrize("limit", [1, 700, 1 << 30])
def test_the_size_of_groups_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    path, wanted = chain(tmp_path / "m.onnx"), {"c": 1, "r": -1, "m": None, "f": None, "y": None}
    expected = run(path, wanted, ragged())
    monkeypatch.setattr(module, "GROUP_BYTES", limit)
    for name, stats in run(path, wanted, ragged()).tensors.items():
        same(stats, expected.tensors[name])
        np.testing.assert_array_equal(stats.channel_sum, expected.tensors[name].channel_sum)


def test_groups_are_packed_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP_BYTES", 100)
    assert module._pack({"a": 60, "b": 40, "c": 1, "d": 500, "e": 99, "f": 2, "g": 98}) == [
        ["a", "b"],
        ["c"],
        ["d"],
        ["e"],
        ["f", "g"],
    ]
    assert module._pack({}) == [[]]


def test_states_are_fed_back(tmp_path: Path) -> None:
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
    found = run(path, {"sum": None, "h": None}, feeds, {"next": "h"})
    assert (found.tensors["sum"].low, found.tensors["sum"].high) == (1, 4)
    assert (found.tensors["h"].low, found.tensors["h"].high) == (0, 3)
    unfed = run(path, {"sum": None}, feeds)
    assert unfed.tensors["sum"].high == 1


def test_an_input_that_is_also_an_output_is_counted_once(tmp_path: Path) -> None:
    path = tiny.save(
        tmp_path / "m.onnx",
        [helper.make_node("Relu", ["x"], ["y"])],
        [("x", FLOAT, [1, 2])],
        [("x", FLOAT, [1, 2]), ("y", FLOAT, [1, 2])],
    )
    found = run(path, {"x": None}, [{"x": np.ones((1, 2), np.float32)}] * 3)
    assert (found.tensors["x"].samples, found.tensors["x"].count) == (3, 6)


def test_a_tensor_that_was_not_finite_has_no_magnitude(tmp_path: Path) -> None:
    path = tiny.unary(tmp_path / "m.onnx", "Log", FLOAT, [1, "n"])
    feeds = [{"x": np.float32([[1, 2]])}, {"x": np.float32([[1, 0]])}]
    found = run(path, {"x": None, "y": -1}, feeds)
    assert found.magnitudes() == {"x": 2.0}
    assert found.tensors["y"].nonfinite == 1
    assert found.tensors["y"].mean() is None


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
        run(path, {"x": None}, [{"x": np.ones(3, np.float32)}])
