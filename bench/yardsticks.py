"""Yardsticks: small layers of each kind, timed, by which kernels of two machines are compared.

A peak is one number for all of INT8, and kernels do not agree with it: with AVX2 alone, oneDNN's
INT8 matrix products lose several times as much as its INT8 convolutions do (`make bench-predict`).
So what a machine is worth to a model is measured by kind of kernel, in each runtime.
"""

import contextlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from bench.errors import VnnifyError
from bench.feeds import load_feeds, save_feeds
from bench.islands import Kernel
from bench.isolate import run_isolated
from bench.kernels import TELLING, find_kernels
from bench.models import Feeds
from bench.runtimes import Session, Settings, find_runtime

# Layers in one chain: overheads of a run count little, and caches hold what comes next.
_LAYERS = 6
_SECONDS = 0.25
# On a busy machine, so many runs or so long: one of them may be left alone.
_RUNS, _MOST_S = 50, 2.0
# Profiles of one model: whatever else runs here only makes a kernel longer.
_LOOKS = 3
_TIMEOUT_S = 300.0
_SHAPES: dict[str, tuple[int, ...]] = {
    "convolution": (1, 64, 28, 28),
    "pointwise": (1, 256, 14, 14),
    "depthwise": (1, 128, 28, 28),
    "matrix": (128, 512),
    "other": (1, 128, 28, 28),
}
# What runtimes merge into the product before it, and what they append to its name then.
_FOLLOWERS = frozenset({"Relu", "Clip", "LeakyRelu", "HardSwish", "Add", "BatchNormalization"})
_MARKS = ("_token_", "/WithoutBiases", "_nchwc", "_quant")


@dataclass(frozen=True, slots=True)
class Yardsticks:
    """Time per layer of each kind, in one runtime.

    Attributes:
        runtime: Its name.
        version: Of its package.
        threads: Inside one inference.
        limited: The instruction set that it was held to ("AVX2"); empty for all that there are.
        ms: By kind: "pointwise float", "pointwise integer", "other"; a kind that the runtime
            refused is missing.
    """

    runtime: str
    version: str
    threads: int
    limited: str
    ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class Bout:
    """Yardsticks, and models timed in the same process.

    Attributes:
        yardsticks: What was measured.
        model_ms: Shortest time of one inference, by the model's place in the order asked; a model
            that the runtime refused is missing.
        shares: Of the time that each kind of kernel takes in it, likewise; empty where that was
            not asked.
    """

    yardsticks: Yardsticks
    model_ms: dict[int, float]
    shares: dict[int, dict[str, float]]


def measure_bout(
    runtime: str,
    threads: int,
    models: Sequence[tuple[Path, Feeds]] = (),
    *,
    limited: str = "",
    shares: bool = False,
) -> Bout:
    """Time all kinds of layers, and models, in a process of its own; takes a few seconds.

    Args:
        runtime: Which.
        threads: Inside one inference.
        models: Files with the inputs of one inference each.
        limited: A value of ONEDNN_MAX_CPU_ISA; means something to OpenVINO alone.
        shares: Whether kernels are timed, too.

    Raises:
        ResourceError: The process crashed.
        UnfitError: The runtime is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="vnnify-yardsticks-") as folder:
        scratch = Path(folder)
        for i, (_, feeds) in enumerate(models):
            save_feeds([feeds], scratch / f"{i}.npz")
        held = f" held to {limited}" if limited else ""
        found = run_isolated(
            "bench.yardsticks:run_bout",
            {
                "runtime": runtime,
                "threads": threads,
                "models": [str(path.absolute()) for path, _ in models],
                "limited": limited,
                "shares": shares,
                "folder": folder,
            },
            scratch=scratch,
            name=f"timing layers in {runtime}{held}",
            timeout_s=_TIMEOUT_S,
        )
    yardsticks = Yardsticks(runtime, found["version"], threads, limited, found["ms"])
    # JSON has no numbers as keys.
    parts = ({int(i): v for i, v in found[k].items()} for k in ("model_ms", "shares"))
    return Bout(yardsticks, *parts)


def measure_yardsticks(threads: Sequence[int], runtimes: Sequence[str]) -> tuple[Yardsticks, ...]:
    """Yardsticks of every runtime that tells its kernels, with each number of threads."""
    chosen = [r for r in runtimes if r in TELLING]
    return tuple(measure_bout(r, t).yardsticks for r in chosen for t in dict.fromkeys(threads))


def run_bout(job: dict[str, Any]) -> dict[str, Any]:
    """Measure, in the process that calls: its environment is changed."""
    if job["limited"]:
        # Before the runtime is loaded, which reads it once.
        os.environ["ONEDNN_MAX_CPU_ISA"] = job["limited"]
    folder, runtime = Path(job["folder"]), find_runtime(job["runtime"])
    settings = Settings(job["threads"])
    ms: dict[str, float] = {}
    for kind, shape in _SHAPES.items():
        for integer in (False, True) if kind != "other" else (False,):
            path = folder / "layers.onnx"
            _save_layers(path, kind, integer=integer)
            values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
            name = kind if kind == "other" else f"{kind} {'integer' if integer else 'float'}"
            # What a runtime refuses no model will run in it either.
            with contextlib.suppress(VnnifyError):
                ms[name] = _shortest_ms(runtime.open(path, settings), {"x": values}) / _LAYERS
    found: dict[str, Any] = {"model_ms": {}, "shares": {}}
    for i, model in enumerate(map(Path, job["models"])):
        feeds = load_feeds(folder / f"{i}.npz")[0]
        # A model that the runtime refuses is missing; whoever asked says so.
        with contextlib.suppress(VnnifyError):
            found["model_ms"][i] = _shortest_ms(runtime.open(model, settings), feeds)
            if job["shares"]:
                found["shares"][i] = _shares(model, job, feeds, folder)
    return {"version": runtime.version(), "ms": ms, **found}


def _shares(path: Path, job: dict[str, Any], feeds: Feeds, scratch: Path) -> dict[str, float]:
    """Share of one inference by kind of kernel, from the shortest mean of each kernel."""
    ask = partial(find_kernels, path, job["runtime"], threads=job["threads"], scratch=scratch)
    looks = [ask(feeds=feeds, seconds=_SECONDS).kernels for _ in range(_LOOKS)]
    kernels = [
        replace(same[0], ms=min((k.ms for k in same if k.ms is not None), default=None))
        for same in zip(*looks, strict=True)
    ]
    return time_by_kind(kernels, path)


def _shortest_ms(session: Session, feeds: Feeds) -> float:
    """Of many inferences: what else the machine does only makes them longer."""
    try:
        session.run(feeds)
        taken: list[int] = []
        begin = perf_counter_ns()
        while True:
            start = perf_counter_ns()
            session.run(feeds)
            taken.append(perf_counter_ns() - start)
            spent_s = (perf_counter_ns() - begin) / 1e9
            if len(taken) >= 3 and spent_s >= (_SECONDS if len(taken) >= _RUNS else _MOST_S):
                return min(taken) / 1e6
    finally:
        session.close()


def _save_layers(path: Path, kind: str, *, integer: bool) -> None:
    """A chain of equal layers, with 8-bit pairs between them where `integer`."""
    import onnx
    from onnx import helper, numpy_helper

    shape = _SHAPES[kind]
    nodes: list[Any] = []
    held: dict[str, Any] = {"scale": np.float32(0.02), "zero": np.uint8(128)}
    now = _paired("x", nodes) if integer else "x"
    for i in range(_LAYERS):
        now = _layer(kind, now, i, nodes, held, integer=integer)
        now = _paired(now, nodes) if integer else now
    nodes.append(helper.make_node("Identity", [now], ["y"]))
    values = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n in ("x", "y")]
    constants = [numpy_helper.from_array(np.asarray(v), k) for k, v in held.items()]
    graph = helper.make_graph(nodes, "layers", values[:1], values[1:], constants)
    opset = [helper.make_opsetid("", 13)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    path.write_bytes(model.SerializeToString())


def _paired(name: str, nodes: list[Any]) -> str:
    from onnx import helper

    held = ["scale", "zero"]
    nodes.append(helper.make_node("QuantizeLinear", [name, *held], [f"{name}_q"]))
    nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", *held], [f"{name}_d"]))
    return f"{name}_d"


def _layer(
    kind: str, x: str, number: int, nodes: list[Any], held: dict[str, Any], *, integer: bool
) -> str:
    """Append one layer that reads `x`; returns the name of what it gives."""
    from onnx import helper

    y, w = f"y{number}", f"w{number}"
    if kind == "other":
        nodes.append(helper.make_node("Sigmoid", [x], [f"s{number}"]))
        nodes.append(helper.make_node("Mul", [f"s{number}", x], [f"m{number}"]))
        nodes.append(helper.make_node("Add", [f"m{number}", "x"], [f"a{number}"]))
        nodes.append(helper.make_node("Softmax", [f"a{number}"], [y], axis=-1))
        return y
    channels = _SHAPES[kind][1]
    taps = {"convolution": (3, 3), "pointwise": (1, 1), "depthwise": (3, 3), "matrix": ()}[kind]
    inputs = 1 if kind == "depthwise" else channels
    rng = np.random.default_rng(number)
    codes = rng.integers(-60, 61, (channels, inputs, *taps)).astype(np.int8)
    if integer:
        held |= {f"{w}_q": codes, f"{w}_s": np.full(channels, 1e-3, np.float32)}
        held[f"{w}_z"] = np.zeros(channels, np.int8)
        axis = 1 if kind == "matrix" else 0
        parts = [f"{w}_q", f"{w}_s", f"{w}_z"]
        nodes.append(helper.make_node("DequantizeLinear", parts, [w], axis=axis))
    else:
        held[w] = codes.astype(np.float32) * np.float32(1e-3)
    if kind == "matrix":
        nodes.append(helper.make_node("MatMul", [x, w], [y]))
        return y
    pads = [taps[0] // 2] * 4
    group = channels if kind == "depthwise" else 1
    nodes.append(helper.make_node("Conv", [x, w], [y], pads=pads, group=group))
    return y


def time_by_kind(kernels: Sequence[Kernel], path: Path) -> dict[str, float]:
    """Share of one inference that each kind of kernel takes; empty where nothing was timed.

    Args:
        kernels: Timed.
        path: The ONNX file that they run.
    """
    kinds = _kinds_by_name(path)
    spent: dict[str, float] = {}
    for kernel in kernels:
        if kernel.ms is None:
            continue
        kind = "other"
        if kernel.kind == "product":
            names = (_stem(n) for n in (*kernel.origins, kernel.name))
            usual = "convolution" if "Conv" in kernel.op else "matrix"
            found = next((kinds[n] for n in names if n in kinds), usual)
            kind = f"{found} {'integer' if kernel.integer else 'float'}"
        spent[kind] = spent.get(kind, 0.0) + kernel.ms
    total = sum(spent.values())
    return {kind: ms / total for kind, ms in spent.items()} if total > 0 else {}


def _stem(name: str) -> str:
    for mark in _MARKS:
        name = name.partition(mark)[0]
    return name


def _kinds_by_name(path: Path) -> dict[str, str]:
    """Kind of every convolution and matrix product, by names of its node and its output."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    shapes: dict[str, tuple[int, ...]] = {t.name: tuple(t.dims) for t in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "Constant":
            dims = [tuple(a.t.dims) for a in node.attribute if a.name == "value"]
            shapes |= dict(zip(node.output, dims, strict=False))
    kinds: dict[str, str] = {}
    for node in graph.node:
        if "Conv" in node.op_type:
            weights = node.input[3 if node.op_type == "QLinearConv" else 1]
            kind = _convolution(_shape_behind(weights, shapes, makers))
        elif "MatMul" in node.op_type or "Gemm" in node.op_type:
            kind = "matrix"
        elif node.op_type in _FOLLOWERS and (known := [n for n in node.input if n in kinds]):
            # ONNX Runtime names what it fuses by the last of its tensors.
            kind = kinds[known[0]]
        else:
            continue
        kinds |= dict.fromkeys((n for n in (node.name, *node.output) if n), kind)
    return {_stem(name): kind for name, kind in kinds.items()}


def _shape_behind(
    name: str, shapes: Mapping[str, tuple[int, ...]], makers: Mapping[str, Any]
) -> tuple[int, ...]:
    """Shape of a constant, seen through what only unpacks it; empty where there is none."""
    for _ in range(4):
        if name in shapes:
            return shapes[name]
        if name not in makers or not makers[name].input:
            return ()
        name = makers[name].input[0]
    return ()


def _convolution(shape: tuple[int, ...]) -> str:
    # [out, in / group, kernel …]
    if len(shape) < 3:
        return "convolution"
    if shape[1] == 1 and shape[0] > 1:
        return "depthwise"
    return "pointwise" if all(n == 1 for n in shape[2:]) else "convolution"
