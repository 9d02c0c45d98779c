"""Recipes as TOML, and the fingerprints that carry them to another training."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from bench.errors import InputError, UsageError
from quantize.anchors import find_anchors
from quantize.recipe import Recipe, RecipeFile, fingerprints, fit, read_recipe, recipe_in, to_toml
from tests import tiny

FLOAT = TensorProto.FLOAT
# Whatever UTF-8 can hold: names of tensors and nodes may be anything.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
MODES = st.sampled_from(["static", "dynamic", "float"])


def net(path: Path, *, seed: int = 0, prefix: str = "", width: int = 4, op: str = "Relu") -> Path:
    """Two convolutions that are alike, an activation, and a Gemm."""
    random = np.random.default_rng(seed)

    def name(text: str) -> str:
        return f"{prefix}{text}"

    nodes = [
        helper.make_node("Conv", [name("x"), name("k0")], [name("a")], name("c0")),
        helper.make_node("Conv", [name("a"), name("k1")], [name("b")], name("c1")),
        helper.make_node("Conv", [name("b"), name("k2")], [name("c")], name("c2")),
        helper.make_node(op, [name("c")], [name("d")], name("act")),
        helper.make_node("Flatten", [name("d")], [name("e")], name("flat")),
        helper.make_node("Gemm", [name("e"), name("w")], [name("y")], name("head"), transB=1),
    ]
    return tiny.save(
        path,
        nodes,
        [(name("x"), FLOAT, [1, width, 7, 7])],
        [(name("y"), FLOAT, [1, 3])],
        {
            name(f"k{i}"): random.standard_normal((width, width, 3, 3)).astype(np.float32)
            for i in range(3)
        }
        | {name("w"): random.standard_normal((3, width)).astype(np.float32)},
    )


def marks(path: Path) -> dict[str, str]:
    model = ir.load(path)
    return fingerprints(model, find_anchors(model)[0])


def recipe(**changes: object) -> Recipe:
    plain = Recipe("portable", "mse", correct_bias=True, modes={"a": "static", "b": "float"})
    return replace(plain, **changes)


MARKS = {"a": "conv-1", "b": "gemm-1"}


def from_toml(text: str, known: dict[str, str]) -> Recipe:
    return fit(recipe_in(tomllib.loads(text), "recipe r.toml"), known)


@given(
    names=st.lists(TEXT, min_size=1, max_size=5, unique=True),
    data=st.data(),
    method=st.sampled_from(["mse", "minmax", "percentile", "entropy"]),
    facts=st.dictionaries(TEXT, TEXT),
    strength=st.floats(0, 1),
)
def test_any_recipe_survives_toml(
    names: list[str],
    data: st.DataObject,
    method: str,
    facts: dict[str, str],
    strength: float,
) -> None:
    known = {n: f"conv-{i}" for i, n in enumerate(names)}
    made = Recipe(
        data.draw(st.sampled_from(["portable", "vnni", "amx", "avx2"])),
        data.draw(st.sampled_from(["mse", "minmax"])),
        data.draw(st.booleans()),
        {n: data.draw(MODES) for n in names},
        data.draw(st.sampled_from(["onnxruntime", "openvino"])),
        dict.fromkeys(names[:-1], method),
        data.draw(st.sampled_from(["native", "nncf"])),
        dict.fromkeys(names[1:], strength),
        data.draw(st.sampled_from(["nearest", "learned"])),
    )
    text = to_toml(made, known, facts)
    # As it is on disk, where line ends may be translated.
    assert "\r" not in text
    assert from_toml(text.encode().decode(), known) == made


def test_a_recipe_file_names_nodes_for_its_reader() -> None:
    text = to_toml(recipe(), {"a": "conv-1", "b": "gemm-1"}, {"made by": "vnnify"})
    assert '"conv-1" = "static"  # a' in text
    assert '"made by" = "vnnify"' in text
    hostile = to_toml(recipe(modes={"x\n[made]\ny": "float"}), {"x\n[made]\ny": "conv-1"}, {})
    assert hostile.count("\n[made]\n") == 1


def test_fingerprints_survive_training_and_new_names(tmp_path: Path) -> None:
    first = marks(net(tmp_path / "a.onnx", seed=0))
    again = marks(net(tmp_path / "b.onnx", seed=1, prefix="module."))
    assert list(again) == [f"module.{n}" for n in first]
    assert list(again.values()) == list(first.values())
    assert len(set(first.values())) == len(first) == 4


def test_equal_nodes_are_numbered_in_graph_order(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"], f"m{i}") for i in range(3)]
    outputs = [(f"y{i}", FLOAT, [1, 2]) for i in range(3)]
    constants = {f"w{i}": np.ones((2, 2), np.float32) for i in range(3)}
    path = tiny.save(tmp_path / "m.onnx", nodes, [("x", FLOAT, [1, 2])], outputs, constants)
    found = marks(path)
    stems = {m.rpartition("-")[0] for m in found.values()}
    assert len(stems) == 1
    assert [m.rpartition("-")[2] for m in found.values()] == ["1", "2", "3"]


@pytest.mark.parametrize(
    "change", [{"width": 5}, {"op": "Tanh"}], ids=["other widths", "another activation"]
)
def test_a_recipe_of_another_architecture_names_a_node(
    tmp_path: Path, change: dict[str, object]
) -> None:
    ours = marks(net(tmp_path / "a.onnx"))
    theirs = marks(net(tmp_path / "b.onnx", prefix="new.", **change))
    text = to_toml(recipe(modes=dict.fromkeys(ours, "static")), ours, {})
    with pytest.raises(UsageError, match=r"r\.toml: made for another graph: node 'new\."):
        from_toml(text, theirs)


def test_attributes_are_part_of_a_fingerprint(tmp_path: Path) -> None:
    def one(pads: list[int]) -> str:
        path = tiny.save(
            tmp_path / "m.onnx",
            [helper.make_node("Conv", ["x", "k"], ["y"], "c", pads=pads)],
            [("x", FLOAT, [1, 1, 5, 5])],
            [("y", FLOAT, None)],
            {"k": np.ones((1, 1, 3, 3), np.float32)},
        )
        return marks(path)["c"]

    assert one([0, 0, 0, 0]) != one([1, 1, 1, 1])


def test_what_comes_up_to_four_steps_before_is_part_of_a_fingerprint(tmp_path: Path) -> None:
    def of(operators: list[str]) -> str:
        nodes = [
            helper.make_node(op, [f"t{i}"], [f"t{i + 1}"], f"n{i}")
            for i, op in enumerate(operators)
        ]
        nodes.append(helper.make_node("MatMul", ["t5", "w"], ["y"], "m"))
        ends = [("t0", FLOAT, [1, 2])], [("y", FLOAT, [1, 2])]
        held = {"w": np.ones((2, 2), np.float32)}
        return marks(tiny.save(tmp_path / "m.onnx", nodes, *ends, held))["m"]

    same = of(["Relu"] * 5)
    assert of(["Tanh", *["Relu"] * 4]) == same
    assert of(["Relu", "Tanh", *["Relu"] * 3]) != same


def test_what_exporters_spell_out_or_leave_out_is_no_part_of_it(tmp_path: Path) -> None:
    def found(*shape: Any, **said: Any) -> list[str]:
        nodes = [
            helper.make_node("Conv", ["x", "k"], ["c"], "c", strides=[2, 2], **said),
            *shape,
            helper.make_node("Gemm", ["f", "w"], ["y"], "g"),
        ]
        held = {"k": np.ones((2, 1, 3, 3), np.float32), "w": np.ones((8, 3), np.float32)}
        held["to"] = np.array([1, 8])
        ends = [("x", FLOAT, [1, 1, 5, 5])], [("y", FLOAT, None)]
        return list(marks(tiny.save(tmp_path / "m.onnx", nodes, *ends, held)).values())

    flat = helper.make_node("Flatten", ["c"], ["f"], "f")
    bare = found(flat)
    usual = {"group": 1, "dilations": [1, 1], "pads": [0] * 4, "auto_pad": "NOTSET"}
    assert found(flat, kernel_shape=[3, 3], **usual) == bare
    assert found(helper.make_node("Reshape", ["c", "to"], ["f"], "f")) == bare
    # Where the new shape is computed, too.
    sizes = helper.make_node("Identity", ["to"], ["computed"], "i")
    assert found(sizes, helper.make_node("Reshape", ["c", "computed"], ["f"], "f")) == bare
    assert found(flat, **{**usual, "auto_pad": "VALID"})[0] != bare[0]


def test_a_recipe_of_a_larger_graph_says_what_is_gone() -> None:
    text = to_toml(recipe(), MARKS, {})
    with pytest.raises(UsageError, match=r"'gemm-1' is gone \(0 new, 1 gone\)"):
        from_toml(text, {"a": "conv-1"})


def test_a_recipe_of_a_smaller_graph_says_what_is_new() -> None:
    text = to_toml(recipe(modes={"a": "static"}), MARKS, {})
    with pytest.raises(UsageError, match=r"node 'b' is new \(1 new, 0 gone\)"):
        from_toml(text, MARKS)


GOOD = to_toml(recipe(), MARKS, {})


@pytest.mark.parametrize(
    ("text", "instead", "says"),
    [
        ("schema = 1", "schema = 2", "schema 2, expected 1"),
        ("schema = 1", "", "schema None, expected 1"),
        ("schema = 1", "schema = 1\nbits = 4", "bits: Unexpected keyword argument"),
        ('"portable"', '"sse"', "unknown target 'sse'; known: portable"),
        ('"mse"', '"best"', "unknown range method 'best'; known: "),
        ('"mse"', '["mse"]', "ranges: Input should be a valid string, found ['mse']"),
        ('ranges = "mse"', "", "ranges: Field required"),
        ('target = "portable"', "", "target: Field required"),
        ("correct_bias = true", "", "correct_bias: Field required"),
        ("= true", '= "yes"', "correct_bias: Input should be a valid boolean, found 'yes'"),
        ('= "static"', '= "int4"', "modes.conv-1: Input should be 'static', 'dynamic' or 'float'"),
        ('= "static"', "= 8", "modes.conv-1: Input should be 'static', 'dynamic' or 'float'"),
        ('"onnxruntime"', '"tvm"', "fused_for: Input should be 'onnxruntime' or 'openvino'"),
        ('"native"', '"tf"', "engine: Input should be 'native', 'nncf' or 'inc', found 'tf'"),
        ('"nearest"', '"up"', "rounding: Input should be 'nearest' or 'learned', found 'up'"),
        ("[ranges_by_tensor]", '[ranges_by_tensor]\nconv-1 = "x"', "unknown range method 'x'"),
        ("[ranges_by_tensor]", "[ranges_by_tensor.x]", "ranges_by_tensor.x: Input should be"),
        ("[made]", "[strengths]\nconv-1 = 1.5", "strength 1.5 of 'conv-1', expected 0 to 1"),
        ("[made]", "[strengths]\nconv-1 = true", "strengths.conv-1: Input should be a valid num"),
        ("[made]", "[strengths]\nconv-9 = 0.5", "'conv-9' is gone"),
        ("[made]", "[modes.x]", "modes.x: Input should be"),
        ("[made]", "[[made]]", "made: Input should be an object, found"),
        ("[made]", "[[seen]]", "seen: Input should be an object"),
    ],
)
def test_a_damaged_recipe_is_a_usage_error_that_says_where(
    text: str, instead: str, says: str
) -> None:
    assert text in GOOD
    assert from_toml(GOOD, MARKS) == recipe()
    with pytest.raises(UsageError, match=rf"^recipe r\.toml: .*{re.escape(says)}"):
        from_toml(GOOD.replace(text, instead), MARKS)


@pytest.mark.parametrize("pair", ["1", "[1]", "[1, 2, 3]", '["a", 1]', "[1, nan]", "[true, 2]"])
def test_ranges_that_are_none_are_refused(pair: str) -> None:
    text = f"{GOOD}[seen]\nconv-1 = {pair}\n"
    with pytest.raises(UsageError, match=r"^recipe r\.toml: seen\.conv-1.*: .*Mend it, or run"):
        from_toml(text, MARKS)


def test_a_file_is_read_whole_or_told_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    text = to_toml(recipe(), MARKS, {"served_by": "openvino"}, {"a": (-1.0, 2.5)})
    path.write_text(text, encoding="utf-8")
    assert read_recipe(path) == RecipeFile(
        where=f"recipe {path}",
        recipe=recipe(modes={"conv-1": "static", "gemm-1": "float"}),
        seen={"conv-1": (-1.0, 2.5)},
        made={"served_by": "openvino"},
    )
    assert read_recipe(path).served_by == "openvino"
    path.write_text(GOOD, encoding="utf-8")
    assert read_recipe(path).served_by == "onnxruntime"
    path.write_text(f"{GOOD}[", encoding="utf-8")
    with pytest.raises(UsageError, match=r"recipe .*r\.toml: not TOML: "):
        read_recipe(path)
    with pytest.raises(InputError, match=r"recipe .*none\.toml: cannot be read: No such file"):
        read_recipe(tmp_path / "none.toml")


def test_keys_that_newer_recipes_have_may_be_missing() -> None:
    older = GOOD.replace('fused_for = "onnxruntime"\n', "").partition("[ranges_by_tensor]")[0]
    assert from_toml(older, MARKS) == recipe()
    for newer in ('engine = "native"\n', 'rounding = "nearest"\n'):
        assert newer in GOOD
        assert from_toml(GOOD.replace(newer, ""), MARKS) == recipe()


def test_a_recipe_tells_what_it_does() -> None:
    assert recipe(engine="nncf").name == "static 1, float 1; by nncf; portable"
    assert recipe().name == "static 1, float 1; mse ranges; portable; for onnxruntime"
    even = recipe(strengths={"a": 0.5}).name
    assert even == "static 1, float 1; mse ranges; portable; for onnxruntime; 1 tensors evened out"
