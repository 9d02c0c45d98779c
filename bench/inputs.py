"""What `--input` says: types and sizes of inputs, where neither the model nor the data tells."""

import re
from collections.abc import Sequence
from dataclasses import replace

from bench.errors import UsageError
from bench.models import Model, TensorSpec

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
_INPUT = re.compile(r"(?P<name>.+):(?P<dtype>\w+)\[(?P<shape>[^\[\]]*)\]")
_SYMBOL = re.compile(r"[A-Za-z_]\w*")


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
    return TensorSpec(match["name"].strip(), dtype, tuple(_input_axis(a, text) for a in axes))


def _input_axis(axis: str, text: str) -> int | str | None:
    if axis == "?":
        return None
    if axis.isdigit() and int(axis) > 0:
        return int(axis)
    if _SYMBOL.fullmatch(axis):
        return axis
    raise UsageError(
        f"input {text!r}: axis {axis!r} is neither a size above 0 nor a free axis (a letter or ?)."
    )


def with_sizes(model: Model, given: Sequence[TensorSpec]) -> Model:
    """A model whose free axes have the sizes that `given` inputs have.

    Raises:
        UsageError: An input is unknown, or of another type, rank or size in the model.
    """
    known = {s.name: s for s in model.inputs}
    sized = dict(known)
    for spec in given:
        own = known.get(spec.name)
        if own is None:
            takes = ", ".join(map(str, model.inputs))
            raise UsageError(f"--input {spec}: {model.path} takes {takes}.")
        asked, shape = spec.shape or (), own.shape if own.shape is not None else spec.shape or ()
        fits = len(asked) == len(shape) and all(
            not isinstance(o, int) or not isinstance(s, int) or o == s
            for o, s in zip(shape, asked, strict=True)
        )
        if spec.dtype != own.dtype or not fits:
            raise UsageError(f"--input {spec}: {model.path} takes {own}.")
        merged = (o if isinstance(o, int) else s for o, s in zip(shape, asked, strict=True))
        sized[spec.name] = replace(own, shape=tuple(merged))
    return replace(model, inputs=tuple(sized.values()))
