"""What INT8 saves and costs in ONNX Runtime, kind by kind of work: the times of `quantize.gains`.

    python -m tests.benchmarks.gains

Chains of equal layers are timed in float and in integers with one thread, the shortest of many runs
each; of a long chain minus a short one nothing is left but the layers. The table has each constant,
its value in the code, and what it comes out as here, by shape.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from bench.machine import describe
from bench.runtimes import RUNTIMES, Session, Settings
from quantize import gains
from tests.graphs import Builder
from tests.int8 import make

_FLOAT = TensorProto.FLOAT
_SECONDS = 1.0
_SHORT, _LONG = 2, 6
Build = Callable[[Builder, str], str]
Found = tuple[str, str, float]
"""Name of a constant, the shape it was found with, nanoseconds."""


def saved_ns(build: Build, shape: list[int], folder: Path) -> float:
    """What one layer of a chain saves in integers."""
    short, long = (
        graph_saves_ns(lambda b, x, n=n: _chain(b, x, build, n), shape, folder)  # type: ignore[misc]
        for n in (_SHORT, _LONG)
    )
    return (long - short) / (_LONG - _SHORT)


def _chain(b: Builder, x: str, build: Build, count: int) -> str:
    for _ in range(count):
        x = build(b, x)
    return x


def graph_saves_ns(build: Build, shape: list[int], folder: Path) -> float:
    """What a whole graph saves in integers."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    b = Builder()
    y = build(b, "x")
    fp32 = b.save(folder / "m.onnx", ("x", _FLOAT, list(shape)), y)
    int8 = make(fp32, [{"x": x}] * 2, correct_bias=False).path
    sessions = [RUNTIMES["onnxruntime"].open(f, Settings(threads=1)) for f in (fp32, int8)]
    in_float, in_integers = shortest_ns(sessions, {"x": x})
    return in_float - in_integers


def shortest_ns(sessions: list[Session], feeds: dict[str, Any]) -> list[int]:
    """The shortest run of each; they take turns."""
    best = [sys.maxsize] * len(sessions)
    end = perf_counter_ns() + int(_SECONDS * len(sessions) * 1e9)
    while perf_counter_ns() < end:
        for i, session in enumerate(sessions):
            for _ in range(5):
                start = perf_counter_ns()
                session.run(feeds)
                best[i] = min(best[i], perf_counter_ns() - start)
    return best


def convolution(channels: int, taps: int, group: int = 1, after: str = "Relu") -> Build:
    """A convolution with an activation."""
    return lambda b, x: b.op(after, b.conv(x, channels, channels, taps, group=group))


def lstm(hidden: int) -> Build:
    """A layer of an LSTM of one direction, as wide as its input."""

    def build(b: Builder, x: str) -> str:
        w, r = (b.weight(1, 4 * hidden, hidden) for _ in range(2))
        name = f"lstm_{len(b.nodes)}"
        b.nodes.append(helper.make_node("LSTM", [x, w, r], [name], name, hidden_size=hidden))
        return b.op("Squeeze", name, b.constant(np.array([1], np.int64)))

    return build


def _products(folder: Path) -> Iterator[Found]:
    for channels, side, taps in (
        (64, 14, 1),
        (128, 28, 1),
        (100, 28, 1),
        (128, 14, 3),
        (100, 14, 3),
    ):
        ns = saved_ns(convolution(channels, taps), [1, channels, side, side], folder)
        shape = f"{taps}x{taps}, {channels} channels, {side}x{side}"
        yield "PRODUCT_NS", shape, ns / (taps * channels * side) ** 2
    for channels, side in ((64, 56), (256, 14)):
        ns = saved_ns(convolution(channels, 3, channels), [1, channels, side, side], folder)
        yield "DEPTHWISE_NS", f"3x3, {channels} channels", ns / (9 * channels * side * side)


def _copies(folder: Path) -> Iterator[Found]:
    side = 64
    for name, channels in (("THIN_ROW_NS", 3), ("ROW_NS", 32)):
        tall, wide = (saved_ns(_oblong(channels, k), [1, channels, side, side], folder)
                      for k in ((9, 1), (1, 9)))  # fmt: skip
        yield name, f"9x1 beside 1x9, {channels} channels", (wide - tall) / (8 * side * side)


def _oblong(channels: int, kernel: tuple[int, int]) -> Build:
    pads = [kernel[0] // 2, kernel[1] // 2] * 2
    return lambda b, x: b.op(
        "Relu",
        b.op("Conv", x, b.weight(channels, channels, *kernel), b.weight(channels), pads=pads),
    )


def _conversions(folder: Path) -> Iterator[Found]:
    """Per value from two sizes; per node what is left of the small one."""
    channels, small, large = 64, 2, 112

    def lost(side: int, between: str) -> float:
        shape = [1, channels, side, side]
        kept = saved_ns(convolution(channels, 1), shape, folder)
        return kept - saved_ns(convolution(channels, 1, after=between), shape, folder)

    few, many = (channels * side * side for side in (small, large))
    low, high = lost(small, "Tanh"), lost(large, "Tanh")
    value = (high - low) / (many - few)
    # A layer has two conversions, one on either side.
    yield "VALUE_NS", "convolutions with Tanh between", value / 2
    yield "NODE_NS", "the same", (low - value * few) / 2
    yield "APART_NS", "HardSwish beside Tanh", (lost(large, "HardSwish") - high) / many


def _pools(folder: Path) -> Iterator[Found]:
    channels, side = 16, 64
    shape = [1, channels, side, side]
    for window in (2, 3):
        options = {"kernel_shape": [window] * 2, "strides": [2, 2], "pads": [0, 0, 1, 1]}
        pooled, plain = (
            graph_saves_ns(
                lambda b, x, op=op, options=options: b.conv(  # type: ignore[misc]
                    b.op(op, b.op("Tanh", x), **options), channels, channels, 1
                ),
                shape,
                folder,
            )
            for op, options in (("MaxPool", options), ("Tanh", {}))
        )
        yield (
            "POOL_NS",
            f"MaxPool {window}x{window} of floats",
            (plain - pooled) / (channels * side**2 / 4),
        )


def _lstms(folder: Path) -> Iterator[Found]:
    steps, sizes = 20, (128, 256)
    small, large = (saved_ns(lstm(n), [steps, 1, n], folder) / steps for n in sizes)
    few, many = (8 * n * n for n in sizes)
    weight = (large - small) / (many - few)
    yield "LSTM_WEIGHT_NS", "128 and 256 wide", weight
    yield "LSTM_STEP_NS", "the same", weight * few - small


def main() -> int:
    """Print the table."""
    machine = describe()
    lines = [f"{machine.cpu}, class {machine.isa_class}, one thread; nanoseconds"]
    with tempfile.TemporaryDirectory(prefix="vnnify-gains-") as name:
        for part in (_products, _copies, _conversions, _pools, _lstms):
            for constant, shape, here in part(Path(name)):
                in_code = getattr(gains, constant)
                lines.append(f"{constant:<15} {in_code:>8.4g} {here:>10.4f}  {shape}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
