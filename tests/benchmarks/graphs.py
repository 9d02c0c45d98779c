"""Structural cases: small graphs that break quantizers, with random weights and random data.

Accuracy is the cosine to FP32's own outputs; what is learned is whether a file loads and how much
noise it has.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

_SAMPLES = 128
Floats = NDArray[np.float32]


class _Graph:
    """Nodes and weights while a graph is written down."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, NDArray[Any]] = {}

    def weight(self, *shape: int, fan: int = 1) -> str:
        """A random weight whose product with unit data has unit variance."""
        values = self.random.standard_normal(shape) / math.sqrt(fan)
        return self.constant(values.astype(np.float32))

    def constant(self, values: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(values)
        return name

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add a node and return its first output."""
        index = len(self.nodes)
        names = [f"t{index}_{i}" if i else f"t{index}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, f"{op}{index}", **attributes))
        return names[0]

    def conv(self, x: str, channels: int, out: int, size: int = 3, **attributes: Any) -> str:
        group = attributes.get("group", 1)
        fan = channels // group * size * size
        kernel = self.weight(out, channels // group, size, size, fan=fan)
        pads = [size // 2] * 4
        return self.node("Conv", x, kernel, self.weight(out, fan=100), pads=pads, **attributes)

    def save(
        self,
        folder: Path,
        inputs: dict[str, Sequence[int]],
        outputs: Sequence[str],
        *,
        opset: int = 17,
        constants_as_nodes: bool = False,
    ) -> None:
        tensors = [numpy_helper.from_array(v, k) for k, v in self.weights.items()]
        nodes = list(self.nodes)
        if constants_as_nodes:
            made = [helper.make_node("Constant", [], [t.name], value=t) for t in tensors]
            nodes, tensors = made + nodes, []
        graph = helper.make_graph(
            nodes,
            folder.name.lstrip("."),
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
            tensors,
        )
        imports = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=8)
        (folder / "model.onnx").write_bytes(model.SerializeToString())


def _data(folder: Path, seed: int, **arrays: Sequence[int]) -> None:
    """Smooth random fields around a level per sample and channel, as photos and spectra have."""
    random = np.random.default_rng(seed)
    made = {}
    for name, shape in arrays.items():
        values = random.standard_normal((_SAMPLES, *shape)).astype(np.float32)
        for axis in range(2, values.ndim):
            values = (values + np.roll(values, 1, axis)) / np.float32(math.sqrt(2))
        levels = (_SAMPLES, shape[0], *(1 for _ in shape[1:]))
        values += random.standard_normal(levels).astype(np.float32)
        made[name] = values
    np.savez(folder / "data.npz", **made)


def residual_depthwise(folder: Path) -> None:
    """Depthwise and pointwise convolutions with Relu6 and additions around them."""
    g = _Graph(1)
    low, high = g.constant(np.float32(0)), g.constant(np.float32(6))
    x = g.node("Clip", g.conv("x", 3, 24, strides=[2, 2]), low, high)
    for _ in range(4):
        y = g.node("Clip", g.conv(x, 24, 96, 1), low, high)
        y = g.node("Clip", g.conv(y, 96, 96, group=96), low, high)
        x = g.node("Add", x, g.conv(y, 96, 24, 1))
    pooled = g.node("Flatten", g.node("GlobalAveragePool", x))
    y = g.node("Gemm", pooled, g.weight(24, 10, fan=24), g.weight(10))
    g.save(folder, {"x": [1, 3, 48, 48]}, [y])
    _data(folder, 1, x=(3, 48, 48))


def squeeze_excite(folder: Path) -> None:
    """Hard-swish, and channels scaled by what a small branch says."""
    g = _Graph(2)

    def swish(x: str) -> str:
        return g.node("HardSwish", x)

    x = swish(g.conv("x", 3, 16, strides=[2, 2]))
    for _ in range(3):
        y = swish(g.conv(x, 16, 64, 1))
        y = swish(g.conv(y, 64, 64, group=64))
        s = g.node("Relu", g.conv(g.node("GlobalAveragePool", y), 64, 16, 1))
        s = g.node("HardSigmoid", g.conv(s, 16, 64, 1), alpha=1 / 6, beta=0.5)
        x = g.node("Add", x, g.conv(g.node("Mul", y, s), 64, 16, 1))
    y = g.node("Flatten", g.node("GlobalAveragePool", swish(g.conv(x, 16, 32, 1))))
    y = g.node("Gemm", y, g.weight(32, 10, fan=32), g.weight(10))
    g.save(folder, {"x": [1, 3, 48, 48]}, [y])
    _data(folder, 2, x=(3, 48, 48))


def concat_head(folder: Path) -> None:
    """A detector's head: boxes in pixels and scores in 0..1 in one Concat."""
    g = _Graph(3)
    x = g.node("Relu", g.conv("x", 3, 32, strides=[2, 2]))
    x = g.node("Relu", g.conv(x, 32, 64, strides=[2, 2]))
    boxes = g.node("Mul", g.node("Sigmoid", g.conv(x, 64, 4, 1)), g.constant(np.float32(320)))
    scores = g.node("Sigmoid", g.conv(x, 64, 8, 1))
    y = g.node("Concat", boxes, scores, axis=1)
    y = g.node("Reshape", y, g.constant(np.array([0, 12, -1], np.int64)))
    g.save(folder, {"x": [1, 3, 64, 64]}, [y])
    _data(folder, 3, x=(3, 64, 64))


def masked_transformer(folder: Path) -> None:
    """Two blocks of causal attention, the mask made of minus infinity."""
    g, width, length, heads = _Graph(4), 64, 32, 4
    mask = np.triu(np.full((length, length), -np.inf, np.float32), 1)
    hidden = g.constant(mask)
    split = g.constant(np.array([0, length, heads, width // heads], np.int64))
    join = g.constant(np.array([0, length, width], np.int64))
    x = "x"

    def linear(y: str, a: int, b: int) -> str:
        return g.node("Add", g.node("MatMul", y, g.weight(a, b, fan=a)), g.weight(b, fan=100))

    def norm(y: str) -> str:
        gain = g.constant(np.exp(g.random.standard_normal(width)).astype(np.float32))
        return g.node("LayerNormalization", y, gain, g.weight(width), axis=-1)

    for _ in range(2):
        y = norm(x)
        q, k, v = (g.node("Reshape", linear(y, width, width), split) for _ in range(3))
        q = g.node("Transpose", q, perm=[0, 2, 1, 3])
        k = g.node("Transpose", k, perm=[0, 2, 3, 1])
        v = g.node("Transpose", v, perm=[0, 2, 1, 3])
        a = g.node("Mul", g.node("MatMul", q, k), g.constant(np.float32(0.25)))
        a = g.node("Softmax", g.node("Add", a, hidden), axis=-1)
        y = g.node("Transpose", g.node("MatMul", a, v), perm=[0, 2, 1, 3])
        x = g.node("Add", x, linear(g.node("Reshape", y, join), width, width))
        y = linear(norm(x), width, 4 * width)
        half, root = g.constant(np.float32(0.5)), g.constant(np.float32(math.sqrt(0.5)))
        one = g.constant(np.float32(1))
        y = g.node(
            "Mul", g.node("Mul", y, half), g.node("Add", g.node("Erf", g.node("Mul", y, root)), one)
        )
        x = g.node("Add", x, linear(y, 4 * width, width))
    g.save(folder, {"x": [1, length, width]}, [x])
    _data(folder, 4, x=(length, width))


def lstm(folder: Path) -> None:
    """One LSTM over 40 steps, then a Gemm."""
    g, width = _Graph(5), 96
    w = g.weight(1, 4 * width, 24, fan=24)
    r = g.weight(1, 4 * width, width, fan=width)
    b = g.weight(1, 8 * width, fan=10)
    x = g.node("Transpose", "x", perm=[1, 0, 2])
    y = g.node("LSTM", x, w, r, b, outputs=2, hidden_size=width)
    last = g.node("Squeeze", f"{y}_1", g.constant(np.array([0], np.int64)))
    y = g.node("Gemm", last, g.weight(width, 10, fan=width), g.weight(10))
    g.save(folder, {"x": [1, 40, 24]}, [y])
    _data(folder, 5, x=(40, 24))


def opset11_cnn(folder: Path) -> None:
    """An old file: batch norms that nobody folded, MaxPool, opset 11."""
    g = _Graph(6)
    x, channels = "x", 3
    for out in (16, 32, 64):
        y = g.conv(x, channels, out)
        stats = [g.weight(out, fan=100) for _ in range(3)]
        spread = g.constant(g.random.uniform(0.5, 2, out).astype(np.float32))
        gain = g.constant(g.random.uniform(0.5, 1.5, out).astype(np.float32))
        y = g.node("Relu", g.node("BatchNormalization", y, gain, *stats[:2], spread))
        x = g.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
        channels = out
    y = g.node("Flatten", g.node("GlobalAveragePool", x))
    y = g.node("Gemm", y, g.weight(10, 64, fan=64), g.weight(10), transB=1)
    g.save(folder, {"x": [1, 3, 48, 48]}, [y], opset=11)
    _data(folder, 6, x=(3, 48, 48))


def constant_nodes(folder: Path) -> None:
    """Every weight in a Constant node, as some exporters write them."""
    g = _Graph(7)
    x = g.node("Relu", g.conv("x", 3, 32, strides=[2, 2]))
    x = g.node("Add", x, g.node("Relu", g.conv(x, 32, 32)))
    y = g.node("Flatten", g.node("GlobalAveragePool", g.node("Relu", g.conv(x, 32, 64))))
    y = g.node("MatMul", y, g.weight(64, 10, fan=64))
    g.save(folder, {"x": [1, 3, 48, 48]}, [y], constants_as_nodes=True)
    _data(folder, 7, x=(3, 48, 48))


GRAPHS: dict[str, Callable[[Path], None]] = {
    "residual-depthwise": residual_depthwise,
    "squeeze-excite": squeeze_excite,
    "concat-head": concat_head,
    "masked-transformer": masked_transformer,
    "lstm": lstm,
    "opset11-cnn": opset11_cnn,
    "constant-nodes": constant_nodes,
}
