"""How much of any ONNX file computes in INT8, whoever made it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Coverage:
    """Layers of a file.

    Attributes:
        int8: Layers whose products are of integers, with scales stored or found at run time.
        layers: All convolutions, matrix products and recurrent layers.
    """

    int8: int
    layers: int

    def __str__(self) -> str:
        """`23 of 24`."""
        return f"{self.int8} of {self.layers}"


def coverage_of(path: Path) -> Coverage:
    """Count the layers of a file as `vnnify inspect` does.

    Args:
        path: Of a model that `bench.models.read_model` accepts.
    """
    from quantize.graphs import load
    from quantize.inspection.products import lifted, products

    found = products(lifted(load(path)))
    return Coverage(sum(p.mode in ("static", "dynamic") for p in found), len(found))
