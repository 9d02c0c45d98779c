"""What a recipe keeps of speed comes back as it was, and counts only where it still holds."""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.compare import Comparison
from bench.errors import UsageError
from quantize import speeds
from quantize.recipe import Recipe, RecipeFile
from quantize.speeds import (
    Place,
    Ratio,
    Speeds,
    contenders,
    deciding,
    difference,
    is_close,
    place_of,
    read_speeds,
    speeds_of,
    to_beat,
    to_toml,
)
from quantize.timing import Timing
from quantize.trials import Workbench

HERE = Place("amx", 2, 784, {"onnxruntime": "1.31.1", "openvino": "2026.4.1"})
SAME = Ratio(1.0, 1.0, 1.0)
FOUND = Speeds(
    HERE, {"onnxruntime": SAME, "openvino": Ratio(0.78, 0.75, 0.83)}, Ratio(2.24, 2.07, 2.4)
)


@st.composite
def ratios(draw: st.DrawFn) -> Ratio:
    low, ratio, high = sorted(draw(st.tuples(*[st.floats(1e-6, 1e6)] * 3)))
    return Ratio(ratio, low, high)


def told(text: str) -> Speeds | None:
    """What a recipe that ends with this says of speed."""
    recipe = Recipe("vnni", "mse", correct_bias=True, modes={})
    return read_speeds(RecipeFile("r.toml", recipe, {}, tomllib.loads(text).get("made", {})))


@given(int8=ratios(), slower=ratios())
def test_speeds_survive_toml(int8: Ratio, slower: Ratio) -> None:
    written = replace(FOUND, int8=int8, fp32={**FOUND.fp32, "openvino": slower})
    found = told(to_toml(written))
    assert found is not None
    assert found.place == HERE
    assert list(found.fp32) == ["onnxruntime", "openvino"]
    assert found.int8 == pytest.approx(int8, rel=1e-5)
    assert found.fp32["openvino"] == pytest.approx(slower, rel=1e-5)


def test_older_recipes_tell_no_speeds() -> None:
    assert told('[made]\n"served_by" = "openvino"\n') is None
    assert told("") is None


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ('"threads" = 2', '"threads" = "2"'),
        ('"threads" = 2', '"cores" = 2'),
        ('"int8" = [2.24, 2.07, 2.4]', ""),
        ("[made.speed]", "[[made.speed]]"),
        ("[2.24, 2.07, 2.4]", "[2.24, 2.4]"),
        ("[2.24, 2.07, 2.4]", "[2.24, 2.4, 2.07]"),
        ("[2.24, 2.07, 2.4]", "[nan, nan, nan]"),
        ("[2.24, 2.07, 2.4]", "2.24"),
        ("[0.78, 0.75, 0.83]", '["a", "b", "c"]'),
        ("[0.78, 0.75, 0.83]", "[0.0, 0.0, 0.0]"),
    ],
)
def test_a_damaged_table_is_a_usage_error_that_says_where(text: str, instead: str) -> None:
    assert text in to_toml(FOUND)
    with pytest.raises(UsageError, match=r"r\.toml: \[made\.speed\] is damaged: .* Take the table"):
        told(to_toml(FOUND).replace(text, instead))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"isa_class": "avx2"}, "on avx2, and this CPU is amx"),
        ({"threads": 1}, "with 1 threads, and now it is 2"),
        ({"values": 3136}, "on inputs of 3,136 values, and now they have 784"),
        ({"values": 196}, "on inputs of 196 values, and now they have 784"),
        ({"versions": {"onnxruntime": "1.31.1"}}, "without openvino"),
        (
            {"versions": {"onnxruntime": "1.20.0", "openvino": "2026.4.1"}},
            "with onnxruntime 1.20.0, and now it is 1.31.1",
        ),
    ],
)
def test_speeds_of_another_place_say_nothing_here(change: dict[str, Any], says: str) -> None:
    assert difference(replace(HERE, **change), HERE) == says


def test_a_runtime_that_is_not_asked_any_more_does_not_matter() -> None:
    assert difference(HERE, HERE) is None
    alone = {"onnxruntime": "1.31.1"}
    assert difference(HERE, replace(HERE, versions=alone, values=800)) is None


def test_fp32_is_timed_where_it_may_be_the_fastest_and_nowhere_else() -> None:
    both = ["onnxruntime", "openvino"]
    assert contenders(FOUND, both) == ["onnxruntime"]
    assert contenders(FOUND, ["openvino"]) == ["openvino"]
    near = replace(FOUND, fp32={**FOUND.fp32, "openvino": Ratio(0.86, 0.8, 0.95)})
    assert contenders(near, both) == both
    # The order is that of speed, and what refused FP32 is left out.
    turned = replace(FOUND, fp32={"onnxruntime": Ratio(0.95, 0.9, 1.02), "openvino": SAME})
    assert contenders(turned, both) == ["openvino", "onnxruntime"]
    assert contenders(replace(FOUND, fp32={}), both) == []
    # Where the fastest of all may not serve any more, the next one's interval counts.
    third = {**FOUND.fp32, "openvino": Ratio(0.8, 0.6, 1.0), "other": Ratio(0.5, 0.45, 0.55)}
    assert contenders(replace(FOUND, fp32=third), ["openvino", "other"]) == ["openvino", "other"]


def test_of_fp32_as_fast_only_what_may_decide_is_timed() -> None:
    both = ["onnxruntime", "openvino"]
    tied = {"openvino": SAME, "onnxruntime": Ratio(0.99, 0.94, 1.07)}

    def known(*int8: float) -> Speeds:
        return replace(FOUND, fp32=tied, int8=Ratio(*int8))

    assert deciding(known(1.4, 1.2, 1.6), both) == ["openvino"]
    assert deciding(known(1.3, 1.15, 1.5), both) == ["openvino", "onnxruntime"]
    assert deciding(known(1.0, 0.9, 1.1), both) == ["openvino", "onnxruntime"]
    assert deciding(known(0.8, 0.7, 0.91), both) == ["openvino", "onnxruntime"]
    assert deciding(known(0.7, 0.6, 0.89), both) == ["openvino"]
    assert deciding(replace(FOUND, fp32={}), both) == []
    # What is not timed has to be beaten all the same.
    assert to_beat(known(1.4, 1.2, 1.6), both, ["openvino"]) == 1.07
    assert to_beat(known(1.4, 1.2, 1.6), both, both) == 1.0
    assert to_beat(known(1.4, 1.2, 1.6), both[:1], both[:1]) == 1.0
    assert to_beat(FOUND, both, ["onnxruntime"]) == 1.0
    # As many times as fast as the one beside which it is timed, which need not be the fastest.
    slower = {"openvino": Ratio(0.8, 0.7, 0.9), "onnxruntime": Ratio(0.75, 0.7, 1.0)}
    assert to_beat(replace(FOUND, fp32=slower), both, ["openvino"]) == pytest.approx(1.25)


def compared(candidate: str, ratio: float, low: float | None, baseline: str) -> Comparison:
    high = None if low is None else 2 * ratio - low
    return Comparison(baseline, candidate, ratio, low, high, 0.95, ())


def bench() -> Workbench:
    feeds = tuple({"x": np.zeros((1, n), np.float32), "y": np.zeros(1)} for n in (3, 5, 3, 5, 99))
    rest: Any = (None, (), None, feeds, (), ("onnxruntime",), 2, Path())
    return Workbench(*rest)


def test_what_came_within_a_tenth_of_fp32_is_close() -> None:
    def close(*int8: float, beside: str = "onnxruntime") -> bool:
        return is_close(replace(FOUND, int8=Ratio(*int8)), beside)

    assert close(1.0, 0.9, 1.1)
    assert close(0.95, 0.92, 0.98)
    assert close(1.2, 1.1, 1.3)
    assert not close(1.2, 1.12, 1.3)
    assert not close(0.8, 0.7, 0.89)
    # FP32 that reaches 0.78 of the fastest one's speed is what INT8 is compared with.
    assert close(0.8, 0.7, 0.89, beside="openvino")
    assert not close(1.0, 0.9, 1.1, beside="openvino")


def test_what_is_kept_is_measured_against_the_fastest_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "place_of", lambda _: HERE)
    ort, ov = "FP32 onnxruntime", "FP32 openvino"
    found = [
        compared(ort, 0.5, 0.4, ov),
        compared("INT8 onnxruntime", 1.5, 1.4, ov),
        compared("INT8 openvino", 3.0, 2.5, ov),
        compared("INT8 onnxruntime", 3.0, 2.8, ort),
    ]
    kept = speeds_of(Timing((), tuple(found), None), "onnxruntime", bench())
    fp32 = {"openvino": SAME, "onnxruntime": Ratio(0.5, 0.4, 0.6)}
    assert kept == Speeds(HERE, fp32, Ratio(1.5, 1.4, 1.6))
    assert kept.fastest == "openvino"
    # What was timed beside others says little of a replay that is alone.
    busy = [*found[:2], replace(found[2], held_up=(0.3, 0.0)), found[3]]
    assert speeds_of(Timing((), tuple(busy), None), "onnxruntime", bench()) is None
    # Without intervals nothing is known for sure.
    found[0] = compared(ort, 0.5, None, ov)
    assert speeds_of(Timing((), tuple(found), None), "onnxruntime", bench()) is None


def test_a_place_is_machine_versions_threads_and_the_size_of_what_is_timed() -> None:
    place = place_of(bench())
    assert (place.threads, place.values) == (2, 5)
    assert list(place.versions) == ["onnxruntime"]
    assert place.isa_class in ("amx", "avx512_vnni", "avx_vnni", "avx512", "avx2", "other")
