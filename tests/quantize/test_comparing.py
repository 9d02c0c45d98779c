from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bench.models import Feeds
from quantize.proof.comparing import (
    TOLERANCE,
    Compared,
    Proof,
    compare,
    proof_checks,
    proof_section,
    share,
)
from quantize.proof.guest import AVX2_CPU, VNNI_CPU


def of(*values: Any, dtype: Any = np.float32) -> list[Feeds]:
    return [{"y": np.array(v, dtype)} for v in values]


def test_values_with_other_bits_are_counted() -> None:
    found = compare("a", of([0, 1], [2, 4]), of([0, 1], [2, 3]), integer=True)
    assert (found.samples, found.values, found.differ, found.worst) == (2, 4, 1, 0.25)
    assert not found.holds
    assert found.text == "1 of 4 values differ, by at most 25.00% of the range"


def test_a_minus_before_zero_is_a_bit_and_nan_is_itself() -> None:
    assert compare("a", of([0.0]), of([-0.0]), integer=True).differ == 1
    assert compare("a", of([np.nan, np.inf]), of([np.nan, np.inf]), integer=True).differ == 0


def test_a_value_that_is_finite_on_one_side_only_is_far_off() -> None:
    found = compare("a", of([0, 1]), of([0, np.inf]), integer=False)
    assert not found.holds
    assert np.isfinite(found.worst)


@pytest.mark.parametrize(
    ("apart", "integer", "holds"),
    [(0.0, True, True), (1e-6, True, False), (1e-6, False, True), (2 * TOLERANCE, False, False)],
)
def test_floats_may_differ_a_little_and_integers_not(
    *, apart: float, integer: bool, holds: bool
) -> None:
    expected, found = of([0, 1], dtype=np.float64), of([0, 1 + apart], dtype=np.float64)
    assert compare("a", expected, found, integer=integer).holds is holds


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, "U3"])
def test_other_types_are_compared_too(dtype: Any) -> None:
    a, b = of([0, 1], dtype=dtype), of([0, 0], dtype=dtype)
    assert compare("a", a, a, integer=True).holds
    assert compare("a", a, b, integer=False).differ == 1
    assert not compare("a", a, b, integer=False).holds


@pytest.mark.parametrize(
    ("found", "error"),
    [
        ([], "0 of 1 samples came back"),
        (of([1]), r"output 'y' is float32\(1,\), expected float32\(2,\)"),
        (of([1, 2], dtype=np.int64), "int64"),
        ([{}], "output 'y'"),
    ],
)
def test_outputs_of_another_kind_are_an_error(found: list[Feeds], error: str) -> None:
    result = compare("a", of([1, 2]), found, integer=False)
    assert not result.holds
    with pytest.raises(AssertionError, match=error):
        raise AssertionError(result.text)


@pytest.mark.parametrize(("part", "text"), [(0.2236, "22.36%"), (3.2e-7, "3e-07"), (0.0, "0e+00")])
def test_a_share_never_reads_as_nothing(part: float, text: str) -> None:
    assert share(part) == text


def proof(cpu: str = VNNI_CPU, canary: str = "exact", differ: int = 0, error: str = "") -> Proof:
    compared = Compared("model", 2, 8, differ, 0.5 if differ else 0.0, integer=True, error=error)
    flags = ("avx2", "avx512_vnni")
    return Proof(cpu, flags, "1.2", "native", canary, (compared,), image_cached=True)


def test_a_proof_needs_the_arithmetic_of_its_cpu() -> None:
    assert proof().holds
    assert not proof(canary="saturating").holds
    assert not proof(canary="saturating").refutes
    assert "(its canary: saturating)" in proof(canary="saturating").text
    assert proof(AVX2_CPU, "saturating").holds
    assert not proof(AVX2_CPU, "exact").holds
    assert replace(proof(AVX2_CPU, "exact"), mode="exact").holds


def test_checks_tell_refuted_from_not_tried() -> None:
    checks = proof_checks([proof(), proof(differ=1), proof(error="no memory")])
    assert [c.outcome for c in checks] == ["pass", "fail", "inconclusive"]
    assert checks[0].name == "proof on AVX512-VNNI"


def test_the_table_has_a_row_for_each_proof() -> None:
    table = proof_section([proof(), proof(AVX2_CPU, "saturating", differ=3)]).blocks[0]
    rows = table.rows  # type: ignore[union-attr]
    assert [row[0] for row in rows] == [f"AVX512-VNNI ({VNNI_CPU})", f"AVX2 ({AVX2_CPU})"]
    assert "3" in rows[1]
