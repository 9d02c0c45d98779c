"""What INT8 saves and costs in ONNX Runtime, one kind of work at a time: `quantize.gains` is of it.

    python -m tests.benchmarks.gains

Chains of equal layers are timed in float and in integers with one thread, the shortest of many runs
each; of a long chain minus a short one nothing is left but the layers.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from bench.machine import describe
from bench.runtimes import RUNTIMES, Session, Settings
from tests import tiny
from tests.graphs import Builder
from tests.int8 import make

_FLOAT = TensorProto.FLOAT
_SECONDS = 1.0
_SHORT, _LONG = 2, 6
Build = Callable[[Builder, str], str]


def per_layer_ns(build: Build, shape: list[int], folder: Path) -> tuple[float, float]:
    """One layer of a chain in float and in integers."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    files: list[Path] = []
    for count in (_SHORT, _LONG):
        b, y = Builder(), "x"
        for _ in range(count):
            y = build(b, y)
        fp32 = b.save(folder / f"{count}.onnx", ("x", _FLOAT, list(shape)), y)
        files += [fp32, make(fp32, [{"x": x}] * 2, correct_bias=False).path]
    sessions = [RUNTIMES["onnxruntime"].open(f, Settings(threads=1)) for f in files]
    short, short_int, long, long_int = shortest_ns(sessions, {"x": x})
    layers = _LONG - _SHORT
    return (long - short) / layers, (long_int - short_int) / layers


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


def convolution(channels: int, taps: int, group: int = 1) -> Build:
    """A convolution with a Relu."""
    return lambda b, x: b.op("Relu", b.conv(x, channels, channels, taps, group=group))


def conversions(folder: Path, values: int) -> float:
    """A QuantizeLinear and a DequantizeLinear of so many values."""
    held = {"s": np.float32(0.02), "z": np.uint8(128)}
    times = []
    for count in (_SHORT, _LONG):
        nodes, now = [], "x"
        for i in range(count):
            for op in ("QuantizeLinear", "DequantizeLinear"):
                nodes.append(helper.make_node(op, [now, "s", "z"], [f"{op}{i}"]))
                now = f"{op}{i}"
            nodes.append(helper.make_node("Neg", [now], [f"y{i}"]))
            now = f"y{i}"
        port = ("x", _FLOAT, [1, values])
        path = tiny.save(folder / "c.onnx", nodes, [port], [(now, _FLOAT, None)], held)
        session = RUNTIMES["onnxruntime"].open(path, Settings(threads=1))
        times += shortest_ns([session], {"x": np.ones((1, values), np.float32)})
    return (times[1] - times[0]) / (_LONG - _SHORT)


def main() -> int:
    """Print what each kind of work saves, per multiplication, tap or value."""
    machine = describe()
    lines = [f"{machine.cpu}, class {machine.isa_class}, one thread; nanoseconds"]
    with tempfile.TemporaryDirectory(prefix="vnnify-gains-") as name:
        folder = Path(name)
        for channels, side in ((64, 14), (128, 28), (256, 14)):
            before, after = per_layer_ns(
                convolution(channels, 1), [1, channels, side, side], folder
            )
            products = channels * channels * side * side
            lines.append(f"1x1, {channels} channels: saves {(before - after) / products:.4f} each")
        for channels, side in ((3, 112), (16, 28), (64, 28)):
            before, after = per_layer_ns(
                convolution(channels, 3), [1, channels, side, side], folder
            )
            taps = 9 * side * side
            lines.append(f"3x3, {channels} channels: {after / taps:.1f} per tap in integers, "
                         f"{before / taps:.1f} in float")  # fmt: skip
        for channels, side in ((64, 56), (256, 14)):
            build = convolution(channels, 3, channels)
            before, after = per_layer_ns(build, [1, channels, side, side], folder)
            products = 9 * channels * side * side
            lines.append(
                f"depthwise, {channels} channels: saves {(before - after) / products:.4f} each"
            )
        few, many = conversions(folder, 64), conversions(folder, 65536)
        lines.append(f"to integers and back: {few:.0f} per pair, {many / 65536:.2f} per value")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
