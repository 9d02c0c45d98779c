"""How much of any ONNX file computes in INT8, whoever made it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Coverage:
    """Layers of a file.

    Attributes:
        int8: Layers whose products are of integers, with scales stored or found at run time.
        layers: All convolutions, matrix products and recurrent layers with constant weights.
    """

    int8: int
    layers: int

    def __str__(self) -> str:
        """`23 of 24`."""
        return f"{self.int8} of {self.layers}"


class Product(Protocol):
    """What is known of one product: `inspection.Layer` or `inspection.products.Product`."""

    @property
    def mode(self) -> str:
        """Of its factors: "static", "dynamic", "weight-only" or "float"."""

    @property
    def weight_count(self) -> int:
        """Elements of its constant weights."""


def coverage_of(path: Path) -> Coverage:
    """Count the layers of a file as `vnnify inspect` does.

    Args:
        path: Of a model that `bench.models.read_model` accepts.
    """
    from quantize.graphs import load
    from quantize.inspection.products import lifted, products

    return covered(products(lifted(load(path))))


def covered(products: Iterable[Product]) -> Coverage:
    """Count layers; a product of two activations, as in attention, has no weights and is none."""
    layers = [p.mode for p in products if p.weight_count]
    return Coverage(sum(mode in ("static", "dynamic") for mode in layers), len(layers))
