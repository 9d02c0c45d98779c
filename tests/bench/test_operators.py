"""The operators of each variant: timed in processes of their own, and laid side by side."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from bench.errors import VnnifyError
from bench.islands import Kernel, Kind
from bench.kernels import Kernels
from bench.latency import Variant
from bench.models import read_model
from bench.operators import by_family, family, matched_layers, measure_operators
from tests import tiny


def _kernel(op: str, *origins: str, ms: float | None = 1.0, kind: Kind = "product") -> Kernel:
    return Kernel(f"{op}_0", op, kind, op.startswith("QLinear"), "", origins, ms)


def _kernels(*kernels: Kernel) -> Kernels:
    return Kernels("onnxruntime", "1", kernels, (), 0, 3)


@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("Conv", "Conv"),
        ("QLinearConv", "Conv"),
        ("ConvInteger", "Conv"),
        ("FusedConv", "Conv"),
        ("Convolution", "Conv"),
        ("QGemm", "MatMul and Gemm"),
        ("MatMulIntegerToFloat", "MatMul and Gemm"),
        ("DynamicQuantizeMatMul", "MatMul and Gemm"),
        ("FullyConnected", "MatMul and Gemm"),
        ("DynamicQuantizeLSTM", "LSTM"),
        ("QAttention", "Attention"),
        ("QLinearGlobalAveragePool", "AveragePool"),
        ("Softmax", "Softmax"),
    ],
)
def test_every_form_of_an_operator_counts_with_it(op: str, name: str) -> None:
    assert family(_kernel(op)) == name


def test_time_adds_up_by_what_is_computed() -> None:
    found = by_family(
        [
            _kernel("Conv", ms=1.0),
            _kernel("QLinearConv", ms=2.0),
            _kernel("QuantizeLinear", ms=5.0, kind="conversion"),
            _kernel("ReorderInput", ms=1.0, kind="other"),
            _kernel("Gemm", ms=None),
        ]
    )
    assert list(found.items()) == [("conversions", 6.0), ("Conv", 3.0)]


def test_layers_are_matched_by_names_of_the_file_slowest_first() -> None:
    before = _kernels(_kernel("Conv", "a", ms=1.0), _kernel("Conv", "b/WithoutBiases", ms=3.0))
    after = _kernels(_kernel("QLinearConv", "x", "b", ms=0.5), _kernel("QLinearConv", "c"))
    assert matched_layers(before, after) == [("b", 3.0, 0.5), ("a", 1.0, None)]


def test_layers_that_were_renamed_are_not_shown_as_gone() -> None:
    before = _kernels(*(_kernel("Conv", f"n{i}") for i in range(3)))
    assert matched_layers(before, _kernels(_kernel("QLinearConv", "n0"))) == []


def test_variants_are_timed_and_failures_told(tmp_path: Path) -> None:
    path = tiny.linear(tmp_path / "m.onnx")
    named = onnx.load(path)
    named.graph.node[0].name = "product"  # The profiler tells times by name.
    onnx.save(named, path)
    model = read_model(path)
    good = Variant("good", model, "onnxruntime", "cpu", 1, 1)
    gone = read_model(tiny.linear(tmp_path / "gone.onnx", seed=1))
    gone.path.unlink()
    others = [Variant("gone", gone, "onnxruntime", "cpu", 1, 1)]
    others.append(Variant("gpu", model, "onnxruntime", "cuda", 1, 1))
    spec = model.inputs[0]
    feeds = [{spec.name: np.ones([1, *map(int, spec.shape[1:])], np.float32)}]
    failed: list[str] = []

    def tell(variant: Variant, error: VnnifyError) -> None:
        failed.append(f"{variant.name}: {error}")

    (found,) = measure_operators(
        [good, *others], feeds, seconds=0.01, failed=tell, progress=lambda *_: None
    )
    assert found.variant == good
    assert found.kernels.total_ms is not None
    assert found.kernels.total_ms > 0
    assert [f.partition(":")[0] for f in failed] == ["gone"]
