"""Ranges of a retrained model against those in its recipe."""

import tomllib
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize.drift import Drift, drift, drift_note, seen_ranges
from quantize.recipe import Recipe, recipe_in, to_toml

MARKS = {"first": "conv-1", "second": "conv-2"}
numbers = st.floats(-1e6, 1e6)


@given(numbers, numbers)
def test_ranges_come_back_from_a_recipe_to_the_last_bit(low: float, high: float) -> None:
    recipe = Recipe("portable", "mse", correct_bias=True, modes={"first": "static"})
    text = to_toml(recipe, MARKS, {}, {"first": (low, high)})
    assert recipe_in(tomllib.loads(text), "r").seen == {"conv-1": (low, high)}


def test_a_recipe_without_ranges_has_none() -> None:
    recipe = Recipe("portable", "mse", correct_bias=True, modes={"first": "static"})
    assert recipe_in(tomllib.loads(to_toml(recipe, MARKS, {})), "r").seen == {}
    assert drift_note(drift({}, {"first": (0.0, 1.0)}, MARKS)) is None


def test_a_layer_that_nothing_was_seen_of_has_no_range() -> None:
    seen = {"x": SimpleNamespace(count=4, low=-1, high=2), "y": SimpleNamespace(count=0)}
    calibration: Any = SimpleNamespace(tensors=seen)
    anchors: Any = [SimpleNamespace(name=f"of {data}", data=data) for data in "xyz"]
    assert seen_ranges(calibration, anchors) == {"of x": (-1.0, 2.0)}


def test_the_layer_that_moved_farthest_comes_first() -> None:
    before = {"conv-1": (0.0, 1.0), "conv-2": (-1.0, 1.0), "conv-9": (0.0, 1.0)}
    found = drift(before, {"first": (0.0, 1.1), "second": (-0.25, 0.25), "new": (0, 1)}, MARKS)
    assert [(d.name, d.factor) for d in found] == [
        ("second", 0.25),
        ("first", pytest.approx(1.1)),
    ]
    note = drift_note(found)
    assert note is not None
    assert "1 of 2" in note
    assert "'second': -1 to 1 then, -0.25 to 0.25 now" in note


def test_a_dead_range_moves_no_further() -> None:
    assert Drift("a", 0.0, 0.0, 0.0, 5.0).factor == 1.0
    assert Drift("a", 0.0, 5.0, 0.0, 0.0).factor == 1.0
