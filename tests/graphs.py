"""Small graphs with the structure of real networks, built in code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from bench.models import Feeds
from tests import tiny

_FLOAT = TensorProto.FLOAT


class Builder:
    """Collects nodes and weights; every method returns the tensor that it made."""

    def __init__(self, seed: int = 0) -> None:
        """Start empty."""
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Any] = {}

    def op(self, kind: str, *inputs: str, **options: Any) -> str:
        """Any operator with one output."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [f"{name}_out"], name, **options))
        return f"{name}_out"

    def weight(self, *shape: int) -> str:
        """A normal weight that keeps the size of what it multiplies."""
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 16
        name = f"w_{len(self.constants)}"
        self.constants[name] = (self.rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)
        return name

    def constant(self, value: Any) -> str:
        """Any constant."""
        name = f"c_{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def conv(self, x: str, channels: int, out: int, taps: int = 3, **options: Any) -> str:
        """A convolution with a bias that keeps the size of its image."""
        groups = options.get("group", 1)
        kernel = self.weight(out, channels // groups, taps, taps)
        pads = [taps // 2] * 4
        return self.op("Conv", x, kernel, self.weight(out), pads=pads, **options)

    def linear(self, x: str, width: int, out: int) -> str:
        """A MatMul and its bias."""
        return self.op("Add", self.op("MatMul", x, self.weight(width, out)), self.weight(out))

    def save(self, path: Path, x: tiny.Port, y: str) -> Path:
        """Write it, from `x` to the tensor `y`."""
        return tiny.save(path, self.nodes, [x], [(y, _FLOAT, None)], self.constants)


_IMAGE: tiny.Port = ("x", _FLOAT, ["n", 16, 12, 12])


def plain_cnn(path: Path) -> Path:
    """Convolutions with Relu, a pool, a mean and a classifier."""
    b = Builder()
    x = b.op("Relu", b.conv("x", 16, 16))
    x = b.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = b.op("Relu", b.conv(x, 16, 32))
    x = b.op("Flatten", b.op("GlobalAveragePool", x))
    return b.save(path, _IMAGE, b.op("Gemm", x, b.weight(32, 10), b.weight(10)))


def depthwise_residual(path: Path) -> Path:
    """Two inverted bottlenecks with a sum, as in MobileNetV2."""
    b = Builder()
    low, high = b.constant(np.float32(0)), b.constant(np.float32(6))
    x = b.op("Relu", b.conv("x", 16, 16))
    for _ in range(2):
        wide = b.op("Clip", b.conv(x, 16, 32, 1), low, high)
        deep = b.op("Clip", b.conv(wide, 32, 32, 3, group=32), low, high)
        x = b.op("Add", x, b.conv(deep, 32, 16, 1))
    x = b.op("Flatten", b.op("GlobalAveragePool", x))
    return b.save(path, _IMAGE, b.op("Gemm", x, b.weight(16, 10), b.weight(10)))


def squeeze_excite(path: Path) -> Path:
    """Hard-swish and squeeze-and-excite, as in MobileNetV3."""
    b = Builder()
    x = b.op("HardSwish", b.conv("x", 16, 32))
    x = b.op("HardSwish", b.conv(x, 32, 32, 3, group=32))
    gate = b.op("Relu", b.conv(b.op("GlobalAveragePool", x), 32, 8, 1))
    gate = b.op("HardSigmoid", b.conv(gate, 8, 32, 1), alpha=1 / 6, beta=0.5)
    x = b.conv(b.op("Mul", x, gate), 32, 16, 1)
    return b.save(path, _IMAGE, b.op("HardSwish", b.conv(x, 16, 16)))


def detector_head(path: Path) -> Path:
    """Swish, branches that meet in a Concat, and boxes beside scores, as in YOLO."""
    b = Builder()

    def swish(x: str) -> str:
        return b.op("Mul", x, b.op("Sigmoid", x))

    stem = swish(b.conv("x", 16, 16))
    x = b.op("Concat", stem, swish(b.conv(stem, 16, 16)), axis=1)
    x = swish(b.conv(x, 32, 16, 1))
    boxes, scores = b.conv(x, 16, 4, 1), b.op("Sigmoid", b.conv(x, 16, 3, 1))
    boxes = b.op("Mul", boxes, b.constant(np.float32(100)))
    return b.save(path, _IMAGE, b.op("Concat", boxes, scores, axis=1))


def transformer(path: Path, batch: str | int = "n") -> Path:
    """One block: attention with two heads, layer norms, a GELU."""
    b = Builder()
    width, heads = 32, 2
    split = b.constant(np.array([0, 0, heads, width // heads], np.int64))
    joined = b.constant(np.array([0, 0, width], np.int64))

    def norm(x: str) -> str:
        return b.op(
            "LayerNormalization", x, b.constant(np.ones(width, np.float32)), b.weight(width)
        )

    def head(x: str, order: list[int]) -> str:
        return b.op("Transpose", b.op("Reshape", b.linear(x, width, width), split), perm=order)

    x = norm("x")
    query, key, value = head(x, [0, 2, 1, 3]), head(x, [0, 2, 3, 1]), head(x, [0, 2, 1, 3])
    scores = b.op("Mul", b.op("MatMul", query, key), b.constant(np.float32(0.25)))
    mixed = b.op("MatMul", b.op("Softmax", scores, axis=-1), value)
    mixed = b.op("Reshape", b.op("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
    x = b.op("Add", "x", b.linear(mixed, width, width))
    hidden = b.linear(norm(x), width, 64)
    erf = b.op("Erf", b.op("Div", hidden, b.constant(np.float32(np.sqrt(2)))))
    gelu = b.op("Mul", b.op("Mul", hidden, b.op("Add", erf, b.constant(np.float32(1)))),
                b.constant(np.float32(0.5)))  # fmt: skip
    x = b.op("Add", x, b.linear(gelu, 64, width))
    return b.save(path, ("x", _FLOAT, [batch, 8, width]), norm(x))


def fixed_transformer(path: Path) -> Path:
    """The same with every shape known, which lets runtimes fuse more before they see pairs."""
    return transformer(path, 1)


def perceptron(path: Path) -> Path:
    """Two layers of an MLP, each a MatMul and an Add, as TensorFlow's exporter writes them."""
    b = Builder()
    return b.save(
        path, ("x", _FLOAT, ["n", 32]), b.linear(b.op("Relu", b.linear("x", 32, 64)), 64, 8)
    )


def recurrent(path: Path) -> Path:
    """An LSTM over time and a classifier."""
    b = Builder()
    w, r = b.weight(1, 4 * 16, 8), b.weight(1, 4 * 16, 16)
    b.nodes.append(helper.make_node("LSTM", ["x", w, r], ["states"], "lstm", hidden_size=16))
    x = b.op("Squeeze", "states", b.constant(np.array([1], np.int64)))
    return b.save(path, ("x", _FLOAT, [6, "n", 8]), b.linear(x, 16, 4))


GRAPHS: dict[str, Callable[[Path], Path]] = {
    "plain CNN": plain_cnn,
    "depthwise residual": depthwise_residual,
    "squeeze-and-excite": squeeze_excite,
    "detector head": detector_head,
    "transformer": transformer,
    "fixed transformer": fixed_transformer,
    "perceptron": perceptron,
    "recurrent": recurrent,
}
_SHAPES: dict[str, tuple[int, ...]] = {
    "transformer": (1, 8, 32),
    "fixed transformer": (1, 8, 32),
    "perceptron": (1, 32),
    "recurrent": (6, 1, 8),
}


def feeds_for(name: str, count: int = 4) -> list[Feeds]:
    """Samples of the graph called `name`."""
    rng = np.random.default_rng(7)
    shape = _SHAPES.get(name, (1, 16, 12, 12))
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]
