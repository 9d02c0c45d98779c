import pytest

from bench.errors import UsageError
from bench.inputs import parse_input
from bench.models import TensorSpec


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x:f32[N,3,224,224]", TensorSpec("x", "float32", ("N", 3, 224, 224))),
        (" ids:i64[ N , ? ]", TensorSpec("ids", "int64", ("N", None))),
        ("mask:bool[1]", TensorSpec("mask", "bool", (1,))),
        ("s:f64[]", TensorSpec("s", "float64", ())),
        ("a::b:f32[1]", TensorSpec("a::b", "float32", (1,))),
        ("s:float16[batch]", TensorSpec("s", "float16", ("batch",))),
    ],
)
def test_inputs_are_read(text: str, expected: TensorSpec) -> None:
    assert parse_input(text) == expected
    assert parse_input(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "expected name:type"),
        ("x:f32", "expected name:type"),
        (":f32[1]", "expected name:type"),
        ("x:f31[1]", "unknown type 'f31'; known: f32"),
        ("x:f32[0]", "axis '0'"),
        ("x:f32[-1]", "axis '-1'"),
        ("x:f32[1,,2]", "axis ''"),
    ],
)
def test_inputs_that_cannot_be_read_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_input(text)
