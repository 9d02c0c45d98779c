"""How much of any ONNX file computes in INT8, whoever made it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Kinds whose float form has an INT8 kernel worth having, and the operators that are one.
_FLOAT = {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Attention"}
_INTEGER = {
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "QGemm",
    "QAttention",
    "QLinearConvTranspose",
}
# These hand on what a DequantizeLinear made.
_SEE_THROUGH = {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}


@dataclass(frozen=True, slots=True)
class Coverage:
    """Layers of a file.

    Attributes:
        int8: Layers that runtimes may compute in integers.
        layers: All convolutions, matrix products and recurrent layers.
    """

    int8: int
    layers: int

    def __str__(self) -> str:
        """`23 of 24`."""
        return f"{self.int8} of {self.layers}"


def coverage_of(path: Path) -> Coverage:
    """Count the layers of a file, and those between Q/DQ pairs or in integer operators.

    Args:
        path: Of a model that `bench.models.read_model` accepts; its weights are not read.
    """
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    makers = {name: node for node in graph.node for name in node.output}
    integer = sum(n.op_type in _INTEGER for n in graph.node)
    floats = [n for n in graph.node if n.op_type in _FLOAT]
    between = sum(all(_dequantized(n.input[i], makers) for i in (0, 1)) for n in floats)
    return Coverage(integer + between, integer + len(floats))


def _dequantized(name: str, makers: dict[str, Any]) -> bool:
    node = makers.get(name)
    while node is not None and node.op_type in _SEE_THROUGH:
        node = makers.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"
