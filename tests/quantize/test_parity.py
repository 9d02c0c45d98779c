from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bench.errors import InputError, UsageError
from bench.models import Feeds
from quantize.sources.parity import check_parity


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """`double` = 2x, `best` = argmax(x) of float32 [N, 4]; `log` = log(x)."""
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "x"], ["double"]),
            helper.make_node("ArgMax", ["x"], ["best"], axis=1, keepdims=0),
            helper.make_node("Log", ["x"], ["log"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [
            helper.make_tensor_value_info("double", TensorProto.FLOAT, ["N", 4]),
            helper.make_tensor_value_info("best", TensorProto.INT64, ["N"]),
            helper.make_tensor_value_info("log", TensorProto.FLOAT, ["N", 4]),
        ],
    )
    path = tmp_path / "m.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )
    return path


def _feeds(count: int = 3, batch: int = 2) -> list[Feeds]:
    rng = np.random.default_rng(0)
    return [{"x": rng.uniform(1, 2, (batch, 4)).astype(np.float32)} for _ in range(count)]


def _same(feeds: Feeds) -> Feeds:
    x = feeds["x"]
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"double": x + x, "best": x.argmax(1), "log": np.log(x)}


def test_equal_models_agree(model: Path) -> None:
    parity = check_parity(_same, model, _feeds())
    assert parity.samples == 3
    assert parity.max_abs_diff["double"] == 0
    assert parity.max_abs_diff["best"] == 0
    assert parity.max_abs_diff["log"] < 1e-6


@pytest.mark.parametrize(("error", "passes"), [(3e-3, True), (5e-3, False)])
def test_the_tolerance_follows_the_scale_of_the_output(
    model: Path, error: float, *, passes: bool
) -> None:
    def reference(feeds: Feeds) -> Feeds:
        found = _same(feeds)
        found["double"] = found["double"] + np.float32(error)
        return found

    # Values of `double` reach just under 4, so 1e-3 of that is just under 4e-3.
    if passes:
        parity = check_parity(reference, model, _feeds())
        assert parity.max_abs_diff["double"] == pytest.approx(error, rel=1e-3)
    else:
        with pytest.raises(InputError, match=r"'double' of sample 0: differs .* 0.005; .* 0.00"):
            check_parity(reference, model, _feeds())


def test_the_sample_that_differs_is_named(model: Path) -> None:
    feeds = _feeds(4)

    def reference(sample: Feeds) -> Feeds:
        found = _same(sample)
        return {**found, "log": found["log"] + (sample is feeds[2])}

    with pytest.raises(InputError, match="'log' of sample 2"):
        check_parity(reference, model, feeds)


def test_a_tie_may_break_the_other_way_but_no_more(model: Path) -> None:
    def reference(flips: int) -> object:
        def run(feeds: Feeds) -> Feeds:
            found = _same(feeds)
            best = found["best"].copy()
            best[:flips] = (best[:flips] + 1) % 4
            return {**found, "best": best}

        return run

    feeds = _feeds(1, batch=200)
    assert check_parity(reference(2), model, feeds).max_abs_diff["best"] == 2  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'best' differs from its source in 3 of 200"):
        check_parity(reference(3), model, feeds)  # type: ignore[arg-type]


def test_infinities_and_nans_have_to_be_the_same(model: Path) -> None:
    feeds: list[Feeds] = [{"x": np.array([[0, -1, 1, 2]], np.float32)}]
    check_parity(_same, model, feeds)

    def reference(sample: Feeds) -> Feeds:
        return {**_same(sample), "log": np.zeros((1, 4), np.float32)}

    with pytest.raises(InputError, match=r"'log' of sample 0: is not finite .* 2 element"):
        check_parity(reference, model, feeds)


def test_another_shape_is_refused(model: Path) -> None:
    def reference(feeds: Feeds) -> Feeds:
        return {**_same(feeds), "double": np.zeros((2, 1, 4), np.float32)}

    with pytest.raises(InputError, match=r"shape \[2, 4\], its source returns \[2, 1, 4\]"):
        check_parity(reference, model, _feeds())


def test_other_outputs_are_refused(model: Path) -> None:
    with pytest.raises(InputError, match="returns the outputs double, best, log, its source"):
        check_parity(lambda f: {"double": f["x"]}, model, _feeds())


def test_nothing_to_compare_on_is_an_error(model: Path) -> None:
    with pytest.raises(UsageError, match="no samples"):
        check_parity(_same, model, [])
