from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from bench.peaks import Peaks
from bench.work import Work, bound_by, count_work, shortest_ms
from tests import tiny

F32 = TensorProto.FLOAT


def _count(path: Path, **feeds: np.ndarray) -> Work:  # type: ignore[type-arg]
    return count_work(path, feeds, sha256="s", batch=1)


def test_a_product_counts_two_operations_per_weight_and_row(tmp_path: Path) -> None:
    found = _count(tiny.linear(tmp_path / "m.onnx"), x=np.zeros((5, 4), np.float32))
    assert (found.float_ops, found.int8_ops) == (2 * 5 * 4 * 3, 0)
    assert found.bytes == 4 * (5 * 4 + 4 * 3 + 5 * 3)


def test_what_lies_between_q_and_dq_counts_as_integers(tmp_path: Path) -> None:
    path = tiny.qdq_matmul(tmp_path / "m.onnx", np.ones((4, 3), np.int8))
    found = _count(path, x=np.zeros((2, 4), np.float32))
    assert (found.float_ops, found.int8_ops) == (0, 2 * 2 * 4 * 3)


def test_a_convolution_counts_its_kernel_for_every_output(tmp_path: Path) -> None:
    path = tiny.save(
        tmp_path / "m.onnx",
        [helper.make_node("Conv", ["x", "w"], ["y"], group=2, pads=[1, 1, 1, 1])],
        [("x", F32, ["n", 4, "h", "w_"])],
        [("y", F32, None)],
        {"w": np.zeros((6, 2, 3, 3), np.float32)},
    )
    found = _count(path, x=np.zeros((1, 4, 8, 8), np.float32))
    assert found.float_ops == 2 * (6 * 8 * 8) * (2 * 3 * 3)


def test_gemm_knows_its_transpositions(tmp_path: Path) -> None:
    path = tiny.save(
        tmp_path / "m.onnx",
        [helper.make_node("Gemm", ["x", "w"], ["y"], transA=1, transB=1)],
        [("x", F32, [7, 2])],
        [("y", F32, None)],
        {"w": np.zeros((3, 7), np.float32)},
    )
    assert _count(path, x=np.zeros((7, 2), np.float32)).float_ops == 2 * 2 * 3 * 7


def test_what_cannot_be_counted_is_named(tmp_path: Path) -> None:
    path = tiny.save(
        tmp_path / "m.onnx",
        [
            helper.make_node("NonZero", ["x"], ["i"]),
            helper.make_node("Cast", ["i"], ["f"], to=F32),
            helper.make_node("MatMul", ["f", "w"], ["y"]),
        ],
        [("x", F32, [3])],
        [("y", F32, None)],
        {"w": np.zeros((3, 2), np.float32)},
    )
    found = _count(path, x=np.zeros(3, np.float32))
    assert found.uncounted == ("MatMul",)
    assert found.float_ops == 0


@pytest.mark.parametrize(
    ("work", "limit_ms", "by"),
    [
        (Work("s", 1, 10**9, 0, 1, ()), 1.0, "arithmetic"),
        (Work("s", 1, 0, 10**9, 1, ()), 0.25, "arithmetic"),
        (Work("s", 1, 10**6, 10**6, 10**8, ()), 10.0, "memory"),
    ],
)
def test_the_limit_is_the_slower_of_arithmetic_and_memory(
    work: Work, limit_ms: float, by: str
) -> None:
    peaks = Peaks(1, 1e12, 4e12, "a", "b", 1e10, 1)
    assert shortest_ms(work, peaks) == pytest.approx(limit_ms)
    assert bound_by(work, peaks) == by
