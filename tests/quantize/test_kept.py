"""What is kept of tensors has the statistics of these tensors, divided."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.models import Array
from quantize import calibrate as calibrating
from quantize import kept as module
from quantize import watching
from quantize.calibrate import calibrate_for, keep_values
from quantize.kept import ValueStore
from tests.int8 import residual
from tests.streams import same, streamed, values

TWO = np.array([2.0, 0.3], np.float32)


def store(folder: Path, axes: Mapping[str, int], *samples: Mapping[str, Array]) -> ValueStore:
    found = ValueStore(axes, folder)
    with found.keeping(axes, len(samples)) as keeping:
        for sample in samples:
            for name, array in sample.items():
                keeping.write(keeping.of(name, array))
    return found


@st.composite
def tensors(draw: st.DrawFn) -> tuple[list[np.ndarray], int, np.ndarray]:
    """Samples of one tensor, some of them empty, the axis of its channels, and their factors."""
    axis, channels = draw(st.sampled_from([1, -1])), draw(st.integers(1, 5))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    found = []
    for _ in range(draw(st.integers(1, 4))):
        batch, *spatial = draw(st.lists(st.integers(0, 4), min_size=2, max_size=3))
        if draw(st.booleans()):
            # So many that not all of them are binned.
            spatial[0] = 9000
        shape = (batch, channels, *spatial) if axis == 1 else (batch, *spatial, channels)
        if axis == -1 and not draw(st.integers(0, 5)):
            shape = (channels,)
        some = draw(values()) if draw(st.integers(0, 3)) else np.float32([1, np.nan, -np.inf])
        found.append(random.choice(some, shape))
    factors = np.exp(random.uniform(-7, 7, channels)).astype(np.float32)
    return found, axis, factors


@given(drawn=tensors())
def test_they_are_those_of_the_tensor_divided_to_the_last_bit(
    drawn: tuple[list[np.ndarray], int, np.ndarray],
) -> None:
    samples, axis, factors = drawn
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        found = store(Path(folder), {"t": axis}, *({"t": s} for s in samples))
        stats = found.divided("t", factors)
    along = [factors.reshape(-1, *[1] * (s.ndim - 2)) if axis == 1 else factors for s in samples]
    with np.errstate(over="ignore"):
        divided = [s / by for s, by in zip(samples, along, strict=True)]
    assert stats is not None
    same(stats, streamed(*divided))


def test_a_tensor_that_needs_more_room_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 8 values and the extremes of 2 channels: 48 bytes of each sample, 480 of ten.
    small = {"a": np.ones((1, 4, 2), np.float32)}
    large = {"b": np.ones((1, 5, 2), np.float32)}
    monkeypatch.setattr(module, "_TENSOR_BYTES", 480)
    found = store(tmp_path, {"a": -1, "b": -1}, *[small | large] * 10)
    assert found.divided("a", TWO) is not None
    assert found.divided("b", TWO) is None
    assert [f.stat().st_size for f in tmp_path.iterdir()] == [480]
    # Nor is it looked at again.
    with found.keeping(["a", "b"], 10) as keeping:
        assert keeping.axes == {}
    # All of those that a graph may divide share what there is, those that it does not as well.
    monkeypatch.setattr(module, "_TOTAL_BYTES", 3 * 480)
    assert store(tmp_path, {"a": -1, "b": -1}, *[small] * 10).divided("a", TWO) is not None
    more = ValueStore(dict.fromkeys("abcd", -1), tmp_path)
    with more.keeping(["a"], 10) as keeping:
        for _ in range(10):
            keeping.write(keeping.of("a", small["a"]))
    assert more.divided("a", TWO) is None


def test_what_will_not_fit_is_given_up_early(tmp_path: Path) -> None:
    rows = residual(tmp_path / "m.onnx")
    seen: list[int] = []

    over = watching.Watch.over

    def counted(*given: Any) -> Iterator[Any]:
        for number, found in enumerate(over(*given), start=1):
            seen.append(number)
            yield found

    values = ValueStore({"r": 1}, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watching.Watch, "over", counted)
        # 32 x 16 x 16 values and the extremes of 32 channels: of 80 samples all but one fit.
        patch.setattr(module, "_TENSOR_BYTES", 79 * 4 * (32 * 16 * 16 + 64))
        keep_values(values, ["r"], rows)
        assert len(seen) == 16
        assert values.divided("r", np.ones(32, np.float32)) is None
        assert list(tmp_path.glob("kept-*")) == []
        # One sample alone takes more, and is not even copied.
        patch.setattr(module, "_TENSOR_BYTES", 4 * 32 * 16 * 16 - 1)
        patch.setattr(module, "binned", lambda _: pytest.fail("it was copied"))
        keep_values(ValueStore({"r": 1}, tmp_path), ["r"], rows)
    assert len(seen) == 17


def test_only_floats_of_wanted_tensors_are_kept(tmp_path: Path) -> None:
    ones = np.ones((1, 2), np.float32)
    found = ValueStore({"a": -1, "b": -1, "c": -1}, tmp_path)
    with found.keeping(["a", "b"], 10) as keeping:
        for name, array in {"a": ones, "b": ones.astype(np.int64), "c": ones, "d": ones}.items():
            keeping.write(keeping.of(name, array))
    assert [found.divided(n, TWO) is not None for n in "abcd"] == [True, False, False, False]
    assert len(list(tmp_path.iterdir())) == 1


def test_what_was_not_finished_is_kept_again(tmp_path: Path) -> None:
    found, sample = ValueStore({"a": -1}, tmp_path), np.ones((1, 2), np.float32)

    def interrupted() -> None:
        with found.keeping(["a"], 1) as keeping:
            keeping.write(keeping.of("a", sample))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert found.divided("a", TWO) is None
    with found.keeping(["a"], 1) as keeping:
        keeping.write(keeping.of("a", sample))
    stats = found.divided("a", TWO)
    assert stats is not None
    assert stats.samples == 1


@pytest.mark.parametrize("states", [{}, {"y": "x"}])
def test_values_kept_while_calibrating_are_those_kept_later(
    states: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = replace(residual(tmp_path / "m.onnx"), states=states)
    factors = np.exp(np.random.default_rng(1).uniform(-3, 3, 32)).astype(np.float32)
    meanwhile, later = (ValueStore({"u": 1, "r": 1}, tmp_path / n) for n in ("a", "b"))
    for each in (meanwhile, later):
        each.scratch.mkdir()
    plain = calibrate_for(rows)
    with meanwhile.keeping(["r"], 80) as keeping:
        both = calibrate_for(rows, keeping=keeping)
    keep_values(later, ["r"], rows)
    monkeypatch.setattr(calibrating, "passes", lambda *_: pytest.fail("the values are there"))
    for each in (meanwhile, later):
        keep_values(each, ["r"], rows)
    for name, stats in plain.tensors.items():
        same(both.tensors[name], stats)
    found = [each.divided("r", factors) for each in (meanwhile, later)]
    assert found[0] is not None
    assert found[1] is not None
    same(found[0], found[1])
    assert found[0].samples == 80
    # Divided by one, it is what calibrated.
    ones = meanwhile.divided("r", np.ones(32, np.float32))
    assert ones is not None
    same(ones, plain.tensors["r"])


def test_where_samples_pass_several_times_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "GROUP_BYTES", 1)
    rows = residual(tmp_path / "m.onnx")
    meanwhile, later = (ValueStore({"r": 1}, tmp_path / n) for n in ("a", "b"))
    with meanwhile.keeping(["r"], 80) as keeping:
        calibrate_for(rows, keeping=keeping)
    monkeypatch.setattr(watching.Watch, "over", lambda *_: pytest.fail("it is known before"))
    keep_values(later, ["r"], rows)
    for each in (meanwhile, later):
        assert each.divided("r", np.ones(32, np.float32)) is None
