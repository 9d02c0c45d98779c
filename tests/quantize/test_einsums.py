"""Einsums as products: which, and that they compute the same."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from bench.models import read_model
from quantize.anchors import find_anchors
from quantize.einsums import write_out_einsums
from quantize.outputs import noise_shares, to_db
from quantize.prepare import Prepared, prepare
from tests import tiny
from tests.int8 import make, run

SIZES = {"b": 2, "l": 3, "d": 6, "e": 4, "f": 5, "h": 2}


def saved(path: Path, equation: str, place: int = 1, shape: list[int | str] | None = None) -> Path:
    """A model of one Einsum whose operand at `place` is constant; other sizes stay free."""
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    constant = terms[place]
    random = np.random.default_rng(0)
    w = random.standard_normal([SIZES[a] for a in constant]).astype(np.float32)
    inputs = [
        (f"x{i}", TensorProto.FLOAT, shape or [SIZES[a] if a in constant else a for a in t])
        for i, t in enumerate(terms)
        if i != place
    ]
    names = ["w" if i == place else f"x{i}" for i in range(len(terms))]
    node = helper.make_node("Einsum", names, ["y"], "sum", equation=equation)
    return tiny.save(path, [node], inputs, [("y", TensorProto.FLOAT, None)], {"w": w})


def ops(found: Prepared) -> list[str]:
    return [n.op_type for n in onnx.load(str(found.model.path)).graph.node]


@pytest.mark.parametrize(
    ("equation", "place", "written"),
    [
        ("bld,df->blf", 1, ["MatMul"]),
        ("b l d, f d -> b l f", 1, ["MatMul"]),
        ("fd,bd->bf", 0, ["MatMul"]),
        ("bld,edf->blef", 1, ["MatMul", "Reshape"]),
        ("bld,hde->bhle", 1, ["MatMul", "Reshape", "Transpose"]),
        ("bhle,hed->bld", 1, ["Transpose", "Reshape", "MatMul"]),
        ("dlb,hde->ebhl", 1, ["Transpose", "MatMul", "Reshape", "Transpose"]),
    ],
)
def test_a_product_with_constant_weights_becomes_a_matmul(
    equation: str, place: int, written: list[str], tmp_path: Path
) -> None:
    source = saved(tmp_path / "m.onnx", equation, place)
    found = prepare(read_model(source), tmp_path / "out.onnx")
    assert ops(found) == written
    assert any("1 Einsums" in n for n in found.notes)
    (spec,) = found.model.inputs
    random = np.random.default_rng(1)
    x = random.standard_normal([SIZES.get(str(d), d) for d in spec.shape or ()]).astype(np.float32)
    sample = {spec.name: x}
    wanted = run(source, sample)["y"]
    np.testing.assert_allclose(run(found.model.path, sample)["y"], wanted, atol=1e-5)


def test_an_ellipsis_stands_for_the_axes_that_are_left(tmp_path: Path) -> None:
    w = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    node = helper.make_node("Einsum", ["x", "w"], ["y"], equation="...d,fd->...f")
    port = ("x", TensorProto.FLOAT, ["b", "l", 6])
    source = tiny.save(
        tmp_path / "m.onnx", [node], [port], [("y", TensorProto.FLOAT, None)], {"w": w}
    )
    found = prepare(read_model(source), tmp_path / "out.onnx")
    assert ops(found) == ["MatMul"]
    x = np.random.default_rng(1).standard_normal((2, 3, 6)).astype(np.float32)
    np.testing.assert_allclose(run(found.model.path, {"x": x})["y"], x @ w.T, atol=1e-5)


@pytest.mark.parametrize(
    "equation",
    [
        "bled,edf->blef",  # one product for each e
        "bld,df->bf",  # l is summed over in the data alone
        "bd,d->b",  # a product with a vector
        "bl,fd->blfd",  # nothing is summed over
        "bdd,df->bf",  # a diagonal
        "bd,df->b...f",  # axes of nobody
        "bld,df",  # its output is implied
    ],
)
def test_other_sums_stay_and_say_why_they_are_in_float(equation: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "m.onnx", equation)
    found = prepare(read_model(source), tmp_path / "out.onnx")
    assert ops(found) == ["Einsum"]
    _, left = find_anchors(ir.load(found.model.path))
    assert list(left.values()) == ["Einsum that is no single product with constant weights"]


def test_other_types_stay(tmp_path: Path) -> None:
    node = helper.make_node("Einsum", ["x", "w"], ["y"], "sum", equation="bd,df->bf")
    w = np.random.default_rng(0).standard_normal((6, 5))
    x, y = ("x", TensorProto.DOUBLE, ["b", 6]), ("y", TensorProto.DOUBLE, None)
    model = ir.load(tiny.save(tmp_path / "m.onnx", [node], [x], [y], {"w": w}))
    assert write_out_einsums(model) == 0


def test_a_sum_of_activations_alone_is_no_layer(tmp_path: Path) -> None:
    node = helper.make_node("Einsum", ["x", "x"], ["y"], equation="bld,bed->ble")
    port = ("x", TensorProto.FLOAT, ["b", 3, 6])
    path = tiny.save(tmp_path / "m.onnx", [node], [port], [("y", TensorProto.FLOAT, None)])
    found = prepare(read_model(path), tmp_path / "out.onnx")
    assert find_anchors(ir.load(found.model.path)) == ((), {})


def test_it_runs_in_int8(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    source = saved(tmp_path / "m.onnx", "bld,hde->bhle")
    feeds = [{"x0": random.standard_normal((1, 3, 6)).astype(np.float32)} for _ in range(16)]
    made = make(source, feeds)
    assert made.quantized.int8_layers == 1
    wanted, found = ([run(p, f) for f in feeds[:4]] for p in (made.fp32, made.path))
    assert to_db(noise_shares(wanted, found)) > 25
