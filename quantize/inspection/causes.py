"""Why a product is in float, in words: from the report beside the file, or from the graph."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from quantize.anchors import Anchor, find_anchors
from quantize.findings import Finding
from quantize.inspection.products import Product
from quantize.placement import place


def causes(
    model: ir.Model, found: Sequence[Product], told: Mapping[str, str], *, quantized: bool
) -> dict[str, str]:
    """A cause for every product that is not in INT8.

    Args:
        model: The lifted graph.
        found: Its products.
        told: What a report beside the file says, by node name; it wins.
        quantized: Whether the file holds INT8 at all; a float file says what could be done instead.
    """
    anchors, left = find_anchors(model)
    widest = place(model, anchors, {a.name: a.modes[0] for a in anchors})
    able = {a.name: a for a in anchors}
    texts = {}
    for product in found:
        if product.mode == "weight-only":
            texts[product.name] = "weights in integers, multiplied in float"
        elif product.mode == "float":
            texts[product.name] = (
                told.get(product.name)
                or left.get(product.name)
                or widest.reasons.get(product.name)
                or _without_reason(able.get(product.name), quantized=quantized)
            )
    return texts


def _without_reason(anchor: Anchor | None, *, quantized: bool) -> str:
    if anchor is None:
        return "no rule of vnnify makes it INT8"
    ways = " or ".join(m for m in anchor.modes if m != "float")
    if quantized:
        return f"could run in INT8 ({ways}); whoever made the file left it in float"
    return f"can run in INT8 ({ways})"


def told_beside(path: Path, sha256: str) -> tuple[dict[str, str], tuple[Finding, ...]]:
    """What the `report.json` of a `vnnify quantize` run says: why in float, and what was hard.

    Args:
        path: The model.
        sha256: Its digest; a report of another file is left alone.

    Returns:
        Causes by node name, and findings; nothing where there is no such report, or not of this
        file.
    """
    for folder in (path.parent, path.parent.parent):
        try:
            report = json.loads((folder / "report.json").read_bytes())
            if report["int8"]["sha256"] == sha256:
                rows = [(f["layer"], f["cause"], f["done"]) for f in report.get("findings", [])]
                return _told(report), tuple(Finding(*map(str, row)) for row in rows)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            # A stranger's report.json is no reason to refuse the model beside it.
            continue
    return {}, ()


def _told(report: dict[str, Any]) -> dict[str, str]:
    texts = {str(k): str(v) for k, v in report["left"].items()}
    for layer in report["layers"]:
        if layer["mode"] == "float":
            reason = layer["reason"] or "the recipe leaves it in float"
            texts[str(layer["name"])] = str(reason)
    return texts
