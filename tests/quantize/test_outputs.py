"""Kept outputs come back as they were, from memory and disk; noise and non-finites are counted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import InputError, ResourceError
from quantize.outputs import OutputStore, first_nonfinite, least_db, noise_shares, to_db


@pytest.mark.parametrize("budget", [1 << 20, 40, 0])
def test_outputs_come_back_in_order_from_memory_and_disk(tmp_path, budget):
    with OutputStore(budget_bytes=budget, folder=tmp_path) as store:
        for i in range(4):
            store.append(f"{i}", {"y/0": np.full((2, 3), i, np.float32), "n": np.array([i])})
        spooled = list(tmp_path.rglob("*.npy"))
        assert len(spooled) == {1 << 20: 0, 40: 5, 0: 8}[budget]
        assert len(store) == 4
        for i in (3, 0, 2):
            found = store.of(i, f"{i}")
            assert found["y/0"].dtype == np.float32
            assert (found["y/0"] == i).all()
            assert found["n"].tolist() == [i]
    assert list(tmp_path.iterdir()) == []


def test_text_outputs_are_not_kept():
    with OutputStore() as store:
        store.append("a", {"y": np.zeros(1), "t": np.array(["x"], dtype=object)})
        assert list(store[0]) == ["y"]


def test_kept_outputs_cannot_be_changed():
    with OutputStore() as store:
        store.append("a", {"y": np.zeros(1)})
        with pytest.raises(ValueError, match="read-only"):
            store[0]["y"][0] = 1


def test_outputs_of_another_sample_are_not_handed_out():
    with OutputStore() as store:
        store.append("a" * 64, {"y": np.zeros(1)})
        with pytest.raises(InputError, match="same order"):
            store.of(0, "b" * 64)
        with pytest.raises(InputError, match="only 1 samples"):
            store.of(1, "a" * 64)


def test_a_full_disk_is_told_with_what_was_needed(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    store = OutputStore(budget_bytes=0, folder=tmp_path)
    with store, pytest.raises(ResourceError, match="800 bytes"):
        store.append("a", {"y": np.zeros(100)})


def outputs(*values, dtype=np.float32):
    return tuple({"y": np.asarray(v, dtype)} for v in values)


def test_noise_is_its_power_over_that_of_the_signal_in_all_samples():
    found = noise_shares(outputs([3.0, 4.0], [0.0]), outputs([3.0, 3.0], [2.0]))
    assert found == {"y": pytest.approx((1 + 4) / 25)}
    assert to_db(found) == least_db(found) == pytest.approx(10 * np.log10(5))


def test_one_noisy_output_of_several_is_the_least():
    assert to_db({"a": 1e-4, "b": 1e-2, "c": 0.0}) == pytest.approx((40 + 20 + 200) / 3)
    assert least_db({"a": 1e-4, "b": 1e-2, "c": 0.0}) == pytest.approx(20)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20))
def test_the_same_outputs_have_no_noise(values):
    found = noise_shares(outputs(values), outputs(values))
    assert found == {"y": 0.0}
    assert to_db(found) == 200.0


@given(st.floats(1e-3, 1e3), st.floats(0.01, 0.5))
def test_noise_does_not_depend_on_scale(scale, off):
    signal = np.array([1.0, -2.0, 3.0])
    found = noise_shares(outputs(signal * scale), outputs(signal * scale * (1 + off)))
    assert found["y"] == pytest.approx(off**2, rel=1e-3)


def test_whole_numbers_are_no_signal():
    assert noise_shares(outputs([1, 2], dtype=np.int64), outputs([3, 4], dtype=np.int64)) == {}
    assert to_db({}) == least_db({}) == 200.0


@pytest.mark.parametrize("bad", [[np.nan, 1.0], [np.inf, 1.0], [1.0]])
def test_a_broken_output_is_all_noise(bad):
    found = noise_shares(outputs([1.0, 1.0]), outputs(bad))
    assert found == {"y": 1e6}
    assert to_db(found) < 0


def test_a_mask_in_fp32_is_no_noise():
    a = outputs([-np.inf, 1.0])
    assert noise_shares(a, outputs([-np.inf, 1.0])) == {"y": 0.0}


NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
    ("found", "reference", "own", "wrong"),
    [
        ([1.0], None, False, False),
        ([NAN], None, False, True),
        ([-INF], None, False, True),
        ([-INF], [-INF], False, False),
        ([-INF], [1.0], False, True),
        ([-INF], [INF], False, True),
        ([INF], [INF], False, False),
        ([NAN], [NAN], False, True),
        ([-INF], [-INF, 0.0], False, True),
        ([-INF], None, True, False),
        ([INF], None, True, True),
        ([NAN], None, True, True),
    ],
)
def test_nonfinite_values_count_unless_they_are_by_design(found, reference, own, wrong):
    kept = {"y": np.array(reference)} if reference is not None else None
    outputs = {"n": np.array([1]), "y": np.array(found)}
    assert first_nonfinite(outputs, kept, own=own) == ("y" if wrong else None)
