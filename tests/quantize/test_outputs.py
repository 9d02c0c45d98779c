"""Kept outputs come back as they were, from memory and disk; noise and non-finites are counted."""

import math

import numpy as np
import pytest

from bench.errors import InputError, ResourceError
from quantize.outputs import NoiseTally, OutputStore, first_nonfinite, sqnr_db


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


def test_sqnr_is_ten_decibels_per_power_of_ten():
    reference = {"y": np.array([3.0, 4.0]), "same": np.ones(2), "n": np.array([1])}
    outputs = {"y": np.array([3.0, 4.5]), "same": np.ones(2), "n": np.array([2])}
    assert sqnr_db(reference, outputs) == {"y": pytest.approx(20.0), "same": math.inf}


def test_sqnr_sums_over_runs_before_it_divides():
    tally = NoiseTally()
    tally.add({"y": np.array([1.0])}, {"y": np.array([1.0])})
    tally.add({"y": np.array([3.0])}, {"y": np.array([2.0])})
    assert tally.sqnr_db()["y"] == pytest.approx(10.0)


def test_sqnr_of_broken_outputs_is_bottomless():
    assert sqnr_db({"y": np.array([1.0])}, {"y": np.array([np.nan])}) == {"y": -math.inf}
    assert sqnr_db({"y": np.array([0.0])}, {"y": np.array([1.0])}) == {"y": -math.inf}


def test_sqnr_leaves_masked_places_out():
    reference = {"y": np.array([1.0, -np.inf])}
    assert sqnr_db(reference, {"y": np.array([1.0, -np.inf])}) == {"y": math.inf}


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
