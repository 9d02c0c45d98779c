"""Every decision behind one INT8 model, as a value and as TOML.

A recipe names nodes by fingerprint, not by name: the operator, its attributes, the shapes of its
weights and what comes before it. A retrained copy of the model keeps its fingerprints even where an
exporter renamed everything.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import onnx_ir as ir

from bench.errors import UsageError
from bench.store import read_toml, record_of
from quantize.anchors import Anchor, Mode
from quantize.placement import Fusion
from quantize.ranges import RANGE_METHODS
from quantize.targets import TARGETS

V = TypeVar("V")

SCHEMA = 1
Engine: TypeAlias = Literal["native", "nncf", "inc"]
# Engines whose weights are rounded as the recipe says.
ROUNDED = frozenset({"native", "inc"})
Rounding: TypeAlias = Literal["nearest", "learned"]
_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
# What attributes are where they are left out, in each place of a list.
_USUAL: dict[str, dict[str, int | str]] = {
    "Conv": {"auto_pad": "NOTSET", "dilations": 1, "group": 1, "pads": 0, "strides": 1},
    "Gemm": {"transA": 0, "transB": 0},
    "LSTM": {"direction": "forward", "input_forget": 0, "layout": 0},
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make one INT8 model.

    Attributes:
        target: Name in `quantize.targets.TARGETS`.
        ranges: Name in `quantize.ranges.RANGE_METHODS`, for every activation.
        fused_for: The runtime whose fusions decide where Q/DQ pairs stand.
        correct_bias: Whether biases take up a layer's mean error where that helps.
        modes: "static", "dynamic" or "float" by anchor name.
        ranges_by_tensor: Methods of single tensors that differ from `ranges`, by name of the first
            anchor that reads it.
        engine: What quantizes; others than "native" choose ranges by themselves.
        strengths: How far the channels of a tensor are evened out before, 0..1, by name of the
            first anchor that reads it; see `quantize.smoothing`.
        rounding: Of weights; "learned" is kept in the layers where it helps.
    """

    target: str
    ranges: str
    correct_bias: bool
    modes: dict[str, Mode]
    fused_for: Fusion = "onnxruntime"
    ranges_by_tensor: dict[str, str] = field(default_factory=dict)
    engine: Engine = "native"
    strengths: dict[str, float] = field(default_factory=dict)
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        """Refuse what no table holds, and shares beyond the whole."""
        for method in (self.ranges, *self.ranges_by_tensor.values()):
            if method not in RANGE_METHODS:
                raise ValueError(
                    f"unknown range method {method!r}; known: {', '.join(RANGE_METHODS)}"
                )
        if self.target not in TARGETS:
            raise ValueError(f"unknown target {self.target!r}; known: {', '.join(TARGETS)}")
        for node, strength in self.strengths.items():
            if not 0 <= strength <= 1:
                raise ValueError(f"strength {strength} of {node!r}, expected 0 to 1")

    @property
    def is_static(self) -> bool:
        """Whether any layer reads integers of a range that calibration found."""
        return "static" in self.modes.values()

    @property
    def reads_rows(self) -> bool:
        """Whether layers are fitted to rows of what FP32 feeds them."""
        return self.correct_bias or self.rounding == "learned"

    @property
    def counts(self) -> str:
        """`static 37, dynamic 2, float 4`."""
        kinds = [m for m in ("static", "dynamic", "float") if m in self.modes.values()]
        return ", ".join(f"{k} {sum(m == k for m in self.modes.values())}" for k in kinds)

    @property
    def making(self) -> str:
        """`mse ranges; portable; for onnxruntime`."""
        learned = "; learned rounding" if self.rounding == "learned" else ""
        if self.engine != "native":
            return f"by {self.engine}{learned}; {self.target}"
        even = f"; {len(self.strengths)} tensors evened out" if self.strengths else ""
        return f"{self.ranges} ranges{learned}; {self.target}; for {self.fused_for}{even}"

    @property
    def name(self) -> str:
        """`static 37, dynamic 2, float 4; mse ranges; portable; for onnxruntime`."""
        return f"{self.counts}; {self.making}"


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """What a file holds of a recipe and of the model that it made.

    Attributes:
        where: The file, for messages.
        recipe: By fingerprints in place of names; see `fit`.
        seen: Lowest and highest value at the input of a layer, by fingerprint.
        made: Where it came from.
    """

    where: str
    recipe: Recipe
    seen: dict[str, tuple[float, float]]
    made: dict[str, Any]

    @property
    def served_by(self) -> str:
        """The runtime that served the model; older recipes do not say, but what they fit."""
        return str(self.made.get("served_by", self.recipe.fused_for))


@dataclass(frozen=True, slots=True)
class _Aside:
    """What a recipe holds besides decisions; older ones do not."""

    seen: dict[str, tuple[float, float]] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)


def fingerprints(model: ir.Model, anchors: tuple[Anchor, ...]) -> dict[str, str]:
    """A fingerprint per anchor name, the same for every training of one architecture.

    It covers the operator, its attributes, the shapes of its weights, and the operators up to four
    steps before it; equal ones are numbered in graph order.
    """
    known = {str(n.name): n for n in model.graph.all_nodes()}
    counts: dict[str, int] = {}
    marks: dict[str, str] = {}
    for anchor in anchors:
        text = json.dumps(_describe(known[anchor.name], depth=4), sort_keys=True)
        mark = f"{anchor.op.lower()}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        counts[mark] = counts.get(mark, 0) + 1
        marks[anchor.name] = f"{mark}-{counts[mark]}"
    return marks


def _describe(node: ir.Node, depth: int) -> list[Any]:
    shapes = [
        list(v.const_value.shape.numpy())
        for v in node.inputs
        if v is not None and v.is_initializer() and v.const_value is not None
    ]
    before: list[Any] = []
    if depth:
        producers = [v.producer() for v in node.inputs if v is not None]
        before = [_describe(p, depth - 1) for p in producers if p is not None]
    if node.op_type in _RESHAPES:
        # One exporter writes Flatten where another one writes Reshape.
        return ["Reshape", {}, [], before[:1]]
    return [node.op_type, _attributes(node), shapes, before]


def _attributes(node: ir.Node) -> dict[str, str]:
    """What a node says besides what it would do without; exporters differ in what they spell out.

    The size of a kernel is that of its weights.
    """
    said = {
        a.name: a.value
        for a in node.attributes.values()
        if a.type in (ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.STRING)
        and a.name != "kernel_shape"
    }
    usual = _USUAL.get(node.op_type, {})
    return {
        name: str(value)
        for name, value in sorted(said.items())
        if name not in usual or set(_listed(value)) != {usual[name]}
    }


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)


def to_toml(
    recipe: Recipe,
    marks: Mapping[str, str],
    facts: Mapping[str, str],
    seen: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """A recipe as TOML, with comments for the reader.

    Args:
        recipe: What was decided.
        marks: Fingerprint by anchor name, in the order in which they are told.
        facts: Where it came from (digests, versions); kept under `[made]`.
        seen: Lowest and highest value at the input of each anchor, by its name.
    """
    lines = [
        "# How the INT8 model beside this file was made.",
        f"schema = {SCHEMA}",
        f"engine = {_quote(recipe.engine)}",
        f"target = {_quote(recipe.target)}",
        f"ranges = {_quote(recipe.ranges)}",
        f"fused_for = {_quote(recipe.fused_for)}",
        f"correct_bias = {str(recipe.correct_bias).lower()}",
        f"rounding = {_quote(recipe.rounding)}",
        "",
        "# Mode by fingerprint; the node's name in this model stands behind it.",
        "[modes]",
    ]
    lines += _told(marks, {n: _quote(m) for n, m in recipe.modes.items()})
    lines += ["", "# Range methods that differ, of what a node reads.", "[ranges_by_tensor]"]
    lines += _told(marks, {n: _quote(m) for n, m in recipe.ranges_by_tensor.items()})
    if seen:
        lines += [
            "",
            "# Lowest and highest value that calibration saw at a layer's input.",
            "[seen]",
        ]
        lines += [f"{_quote(marks[n])} = [{low!r}, {high!r}]" for n, (low, high) in seen.items()]
    if recipe.strengths:
        lines += [
            "",
            "# How far channels are evened out in front of a node, 0 to 1.",
            "[strengths]",
        ]
    lines += _told(marks, {n: str(s) for n, s in recipe.strengths.items()})
    lines += ["", "[made]"]
    lines += [f"{_quote(k)} = {_quote(v)}" for k, v in sorted(facts.items())]
    return "\n".join(lines) + "\n"


def _told(marks: Mapping[str, str], values: Mapping[str, str]) -> list[str]:
    """Values in one order, whatever the order in which they were decided or kept."""
    return [f"{_quote(m)} = {values[n]}  # {_comment(n)}" for n, m in marks.items() if n in values]


def read_recipe(path: Path) -> RecipeFile:
    """Read what `to_toml` wrote.

    Raises:
        InputError: The file cannot be read.
        UsageError: It is no recipe.
    """
    where = f"recipe {path}"
    return recipe_in(read_toml(path, where, UsageError), where)


def recipe_in(tables: Mapping[str, Any], where: str) -> RecipeFile:
    """The recipe that tables of TOML are.

    Args:
        tables: As `to_toml` writes them; newer keys may be missing.
        where: The file, for messages.

    Raises:
        UsageError: They are none: the message says which key is missing, unknown or wrong.
    """
    plain = dict(tables)
    if (schema := plain.pop("schema", None)) != SCHEMA:
        raise UsageError(f"{where}: schema {schema!r}, expected {SCHEMA}.")
    beside = {f.name: plain.pop(f.name) for f in fields(_Aside) if f.name in plain}
    try:
        recipe, aside = record_of(Recipe, plain), record_of(_Aside, beside)
    except ValueError as e:
        raise UsageError(f"{where}: {e}. Mend it, or run `vnnify quantize` without it.") from e
    return RecipeFile(where, recipe, aside.seen, aside.made)


def fit(file: RecipeFile, marks: Mapping[str, str]) -> Recipe:
    """The recipe for a graph, by the names of its anchors.

    Args:
        file: What was read.
        marks: Fingerprint by anchor name.

    Raises:
        UsageError: It was made for another graph; the message says where they differ.
    """
    recipe = file.recipe
    missing = [n for n, mark in marks.items() if mark not in recipe.modes]
    named = {*recipe.modes, *recipe.strengths, *recipe.ranges_by_tensor}
    extra = sorted(named - set(marks.values()))
    if missing or extra:
        at = f"node {missing[0]!r} is new" if missing else f"{extra[0]!r} is gone"
        raise UsageError(
            f"{file.where}: made for another graph: {at} ({len(missing)} new, {len(extra)} gone). "
            "Run `vnnify quantize` without --recipe."
        )
    return replace(
        recipe,
        modes=_by_name(recipe.modes, marks),
        ranges_by_tensor=_by_name(recipe.ranges_by_tensor, marks),
        strengths=_by_name(recipe.strengths, marks),
    )


def _by_name(values: Mapping[str, V], marks: Mapping[str, str]) -> dict[str, V]:
    return {name: values[mark] for name, mark in marks.items() if mark in values}


def _quote(text: str) -> str:
    # JSON's escapes are TOML's, but for two things: TOML has no surrogate pairs, so what is beyond
    # ASCII stands as it is, and it does not allow DEL, which JSON does not escape.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:120]
