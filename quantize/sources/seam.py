"""What names a trained model, whatever framework made it."""

import re
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UsageError
from bench.models import TensorSpec

_DTYPES = {
    "f32": "float32",
    "f16": "float16",
    "f64": "float64",
    "i8": "int8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "u8": "uint8",
    "u16": "uint16",
    "u32": "uint32",
    "u64": "uint64",
    "bool": "bool",
    "string": "string",
}
_INPUT = re.compile(r"(?P<name>[^:]+):(?P<dtype>\w+)\[(?P<shape>[^\[\]]*)\]")
_SYMBOL = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A trained model as the user names it.

    Attributes:
        text: A file, or `file.py:factory`, or `package.module:factory`.
        weights: State dict for the module that a factory makes.
        inputs: What the model takes, where neither the file nor the data says it.
        trust: A file that may run code when it is opened is allowed.
        dynamic_batch: Leave the batch axis free where the model allows it.
    """

    text: str
    weights: Path | None = None
    inputs: tuple[TensorSpec, ...] = ()
    trust: bool = False
    dynamic_batch: bool = True


def parse_input(text: str) -> TensorSpec:
    """Read `name:f32[N,3,224,224]`; a letter, a word or `?` is a free axis.

    Raises:
        UsageError: It has another form, or the element type or an axis is unknown.
    """
    match = _INPUT.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"input {text!r}: expected name:type[axes], as in x:f32[N,3,224,224].")
    dtype = _DTYPES.get(match["dtype"], match["dtype"])
    if dtype not in _DTYPES.values():
        raise UsageError(
            f"input {text!r}: unknown type {match['dtype']!r}; known: {', '.join(_DTYPES)}."
        )
    axes = [a.strip() for a in match["shape"].split(",")] if match["shape"].strip() else []
    return TensorSpec(match["name"].strip(), dtype, tuple(_axis(a, text) for a in axes))


def _axis(axis: str, text: str) -> int | str | None:
    if axis == "?":
        return None
    if axis.isdigit() and int(axis) > 0:
        return int(axis)
    if _SYMBOL.fullmatch(axis):
        return axis
    raise UsageError(
        f"input {text!r}: axis {axis!r} is neither a size above 0 nor a free axis (a letter or ?)."
    )
