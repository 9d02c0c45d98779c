"""A layer's integers, tried on rows: learned rounding and mean errors, each only where it helps."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from quantize.anchors import Mode
from quantize.quantizers import fitting
from quantize.quantizers.fitting import Fit, Fitter, Rounded, fit
from quantize.quantizers.reading import constant_of
from quantize.quantizers.rounding import _FACTORED, MAX_INPUTS, factored, learn
from quantize.quantizers.weights import quantize_weights
from quantize.ranges import Range
from quantize.recipe import Recipe
from quantize.targets import SAFE_PAIR_SUM, pair_sums
from tests import tiny
from tests.int8 import make


def layer(
    seed: int, *, groups: int = 1, count: int = 400, inputs: int = 12, out: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [out, inputs / groups] and rows of inputs that go together, as real ones do."""
    random = np.random.default_rng(seed)
    per_group = inputs // groups
    mixed = random.standard_normal((groups, 3, per_group))
    rows = np.einsum("ngk,gki->ngi", random.standard_normal((count, groups, 3)), mixed)
    rows += 0.05 * random.standard_normal(rows.shape) + 1
    weights = random.standard_normal((out, per_group)).astype(np.float32)
    return weights, rows.astype(np.float32)


def error(weights: np.ndarray, found: Fit, rows: np.ndarray) -> float:
    groups = rows.shape[1]
    lost = (weights - found.codes.values()).reshape(groups, -1, rows.shape[2])
    outputs = np.einsum("ngk,gok->ngo", rows, lost).reshape(len(rows), -1) - found.shift
    return float(np.square(outputs).sum())


def nearest(weights: np.ndarray, *, narrow: bool = False) -> Fit:
    return Fit(quantize_weights(weights, narrow=narrow), np.zeros(len(weights)))


def rounded(weights: np.ndarray, **how: Any) -> Rounded:
    return lambda rounder: quantize_weights(weights, rounder=rounder, **how)


@given(seed=st.integers(0, 999), groups=st.sampled_from([1, 2, 4]), narrow=st.booleans())
def test_a_fit_is_never_worse_than_rounding_on_rows_it_has_not_seen(
    *, seed: int, groups: int, narrow: bool
) -> None:
    weights, rows = layer(seed, groups=groups)
    held = rows[300:]
    plain = error(weights, nearest(weights, narrow=narrow), held)
    corrected = fit(weights, rows, None, rounded(weights, narrow=narrow))
    learned = fit(weights, rows, None, rounded(weights, narrow=narrow), rounding="learned")
    # Of the held-out quarter, which decides.
    assert error(weights, corrected, held) <= plain * 1.0001
    assert error(weights, learned, held) <= error(weights, corrected, held) * 1.0001
    for found in (corrected, learned):
        assert np.abs(found.codes.codes.astype(int)).max() <= 127
        if narrow:
            assert pair_sums(found.codes.codes).max() <= SAFE_PAIR_SUM


@pytest.mark.parametrize("groups", [1, 4])
def test_learned_rounding_helps_where_inputs_go_together(groups: int) -> None:
    gains = []
    for seed in range(5):
        weights, rows = layer(seed, groups=groups, inputs=12 * groups)
        learned = fit(
            weights, rows, None, rounded(weights, narrow=False), correct=False, rounding="learned"
        )
        assert learned.learned
        plain = error(weights, nearest(weights), rows[300:])
        gains.append(error(weights, learned, rows[300:]) / plain)
    assert np.median(gains) < 0.7


def test_a_shift_takes_up_what_clipping_the_input_costs() -> None:
    weights, rows = layer(0)
    rows = np.abs(rows)
    clipped = Range(0.0, float(np.quantile(rows, 0.7)))
    exact = rows[:, 0] @ weights.T

    def lost(found: Fit) -> np.ndarray:
        read = np.clip(rows[:, 0], 0, clipped.high)
        return (exact - read @ found.codes.values().T - found.shift)[300:]

    found = fit(weights, rows, clipped, rounded(weights, narrow=False))
    assert found.corrected
    assert np.square(lost(found)).sum() < 0.9 * np.square(lost(nearest(weights))).sum()


def test_a_mean_that_does_not_hold_elsewhere_is_left_alone() -> None:
    weights, rows = layer(1)
    # The first samples say one thing, the last ones the opposite.
    rows[300:] *= -1
    found = fit(weights, rows, None, rounded(weights, narrow=False))
    assert not found.corrected


@pytest.mark.parametrize("rows", [None, np.ones((3, 1, 12), np.float32)])
def test_without_rows_weights_are_rounded_to_the_nearest(rows: np.ndarray | None) -> None:
    weights, _ = layer(2)
    found = fit(weights, rows, None, rounded(weights, narrow=True), rounding="learned")
    np.testing.assert_array_equal(found.codes.codes, quantize_weights(weights, narrow=True).codes)
    assert not found.learned
    assert not found.corrected


def test_scales_leave_room_for_the_bias_when_rounding_is_learned() -> None:
    weights, rows = layer(3)
    least = np.full(len(weights), 0.5, np.float32)
    found = fit(
        weights, rows, None, rounded(weights, narrow=False, least_scales=least), rounding="learned"
    )
    assert (found.codes.scales >= least).all()


def test_candidates_that_differ_in_ranges_share_their_codes(tmp_path: Path) -> None:
    model = tiny.linear(tmp_path / "m.onnx", size=16)
    feeds = [{"x": np.random.default_rng(i).standard_normal((1, 16), np.float32)} for i in range(9)]
    made = make(model, feeds)
    graph = ir.load(made.fp32).graph
    nodes, store = {str(n.name): n for n in graph}, made.calibration.rows
    (anchor,), weights = made.anchors, constant_of(next(iter(graph)).inputs[1])
    recipe = Recipe("vnni", "mse", correct_bias=True, modes={anchor.name: "static"})
    first, second = (
        Fitter(nodes, made.anchors, store, recipe).fit(anchor, weights, Range(-2.0, high))
        for high in (2.0, 3.0)
    )
    assert first is not second
    assert first.codes is second.codes
    # Unless there has to be more room for the bias.
    room = np.full(3, 1.0, np.float32)
    third = Fitter(nodes, made.anchors, store, recipe).fit(anchor, weights, Range(0, 1), room)
    assert (third.codes.scales >= room).all()


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_layers_of_either_mode_are_fitted_with_the_threads_that_there_may_be(
    mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def fitted(*args: Any, **more: Any) -> Fit:
        seen.extend(p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas")
        return fit(*args, **more)

    monkeypatch.setattr(fitting, "fit", fitted)
    feeds = [{"x": np.random.default_rng(i).standard_normal((1, 16), np.float32)} for i in range(9)]
    with threadpool_limits(4, user_api="blas"):
        make(tiny.linear(tmp_path / "m.onnx", size=16), feeds, mode=mode)
    assert seen
    assert set(seen) == {1}


def test_what_cannot_be_learned_from_is_said() -> None:
    assert learn(np.zeros((0, 1, 4), np.float32)) is None
    assert learn(np.zeros((1, 1, MAX_INPUTS + 1), np.float32)) is None
    # Inputs that are always zero are no reason to give up.
    rounder = learn(np.zeros((8, 2, 3), np.float32))
    assert rounder is not None
    weights = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    scales = np.full(4, 0.02, np.float32)
    expected = np.clip(np.rint(weights / 0.02), -127, 127)
    np.testing.assert_array_equal(rounder.codes(weights, scales), expected)


def test_a_block_of_inputs_at_a_time_gives_what_one_at_a_time_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights, rows = layer(4, inputs=40)
    rounder = learn(rows)
    assert rounder is not None
    scales = np.full(len(weights), 0.02, np.float32)
    whole = rounder.codes(weights, scales)
    for size, few in ((1, 1), (7, 3), (64, 64), (16, 5)):
        monkeypatch.setattr("quantize.quantizers.rounding._BLOCK", size)
        monkeypatch.setattr("quantize.quantizers.rounding._FEW", few)
        apart = rounder.codes(weights, scales) != whole
        # Sums in another order may move a value that lies between two codes.
        assert apart.mean() < 0.02


@given(st.integers(1, 2 * _FACTORED + 5), st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=30)
def test_blocks_of_rows_are_factored_as_the_whole_is(inputs: int, groups: int, seed: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((groups, 2 * inputs, inputs))
    hessian = rows.transpose(0, 2, 1) @ rows / inputs + 0.01 * np.eye(inputs)
    found = np.triu(factored(hessian.astype(np.float32)))
    np.testing.assert_allclose(found, np.linalg.cholesky(hessian, upper=True), atol=1e-4)


def test_what_has_no_factor_is_not_learned_from() -> None:
    matrix = np.eye(3 * _FACTORED, dtype=np.float32)
    matrix[-1, -1] = -1
    with pytest.raises(np.linalg.LinAlgError):
        factored(matrix[None])
