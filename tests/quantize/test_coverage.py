"""Coverage guard: on fixed structures, what is placed in INT8 really runs in INT8."""

from pathlib import Path
from typing import Any

import pytest

from bench.kernels import find_kernels
from quantize.coverage import Coverage, coverage_of
from tests.graphs import GRAPHS, feeds_for
from tests.int8 import make

# Graph: products in INT8, of all; float islands; conversions that only round. A structure may get
# better than this, never worse. The two products that stay are attention's, of two activations.
ONNXRUNTIME = {
    "plain CNN": (3, 3, 0, 0),
    "depthwise residual": (8, 8, 0, 0),
    # HardSigmoid has no INT8 kernel: one island per squeeze-and-excite, one for the hard-swish.
    "squeeze-and-excite": (6, 6, 2, 0),
    "detector head": (5, 5, 0, 0),
    "transformer": (6, 8, 0, 0),
    "fixed transformer": (6, 8, 0, 0),
    "perceptron": (2, 2, 0, 0),
    "recurrent": (2, 2, 0, 0),
}
OPENVINO = {
    "plain CNN": (3, 3, 0, 0),
    "depthwise residual": (8, 8, 0, 0),
    "squeeze-and-excite": (6, 6, 0, 0),
    "detector head": (5, 5, 0, 0),
    "transformer": (6, 6, 0, 0),
    "fixed transformer": (6, 6, 0, 0),
    "perceptron": (2, 2, 0, 0),
    # No INT8 kernel for LSTM.
    "recurrent": (1, 2, 0, 0),
}
CASES = [
    (name, runtime, *expected)
    for runtime, table in (("onnxruntime", ONNXRUNTIME), ("openvino", OPENVINO))
    for name, expected in table.items()
]


def test_layers_count_whether_their_ranges_are_stored_or_found_at_run_time(tmp_path: Path) -> None:
    source = GRAPHS["plain CNN"](tmp_path / "m.onnx")
    assert str(coverage_of(source)) == "0 of 3"
    names = [a.name for a in make(source, feeds_for("plain CNN")).anchors]
    modes: dict[str, Any] = dict(zip(names, ("static", "float", "dynamic"), strict=True))
    made = make(source, feeds_for("plain CNN"), modes=modes)
    assert made.modes == ["static", "float", "dynamic"]
    assert coverage_of(made.path) == Coverage(int8=2, layers=3)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_file_is_counted_as_it_was_made(name: str, tmp_path: Path) -> None:
    made = make(GRAPHS[name](tmp_path / "m.onnx"), feeds_for(name))
    assert coverage_of(made.path) == Coverage(made.quantized.int8_layers, len(made.anchors))


def test_every_structure_is_guarded() -> None:
    assert set(ONNXRUNTIME) == set(OPENVINO) == set(GRAPHS)


@pytest.mark.parametrize(
    ("name", "runtime", "integers", "products", "islands", "lone"),
    CASES,
    ids=[f"{c[0]}, {c[1]}" for c in CASES],
)
def test_coverage_does_not_drop(
    name: str, runtime: str, integers: int, products: int, islands: int, lone: int, tmp_path: Path
) -> None:
    made = make(GRAPHS[name](tmp_path / "m.onnx"), feeds_for(name), fused_for=runtime)
    found = find_kernels(made.path, runtime, threads=1, scratch=tmp_path)
    assert len(found.products) == products
    assert found.integer_products >= integers
    assert len(found.islands) <= islands
    assert found.lone_pairs <= lone
