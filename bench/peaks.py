"""What the machine can do at best, measured: products of floats and of 8-bit integers, and memory.

Data sheets promise what no runtime reaches on a shared machine; a large matrix product in the same
runtimes, with the same threads, is a limit that can be met.
"""

import contextlib
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from bench.errors import VnnifyError
from bench.isolate import run_isolated
from bench.machine import Machine
from bench.models import Feeds
from bench.runtimes import Settings, find_runtime, installed_runtimes

# A product of [512, 1024] and [1024, 1024]: its factors fit a cache, its operations fill all ports.
_ROWS, _INNER = 512, 1024
_SECONDS = 0.4
_SMALLEST_COPY, _LARGEST_COPY = 64 * 2**20, 2**30
_DEFAULT_CACHE = 32 * 2**20
_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Peaks:
    """What was reached with some number of threads.

    Attributes:
        threads: Used.
        fp32_per_second: Operations on floats, two per product; of the fastest runtime.
        int8_per_second: The same on 8-bit integers.
        fp32_runtime: Which one that was.
        int8_runtime: The same for integers.
        bytes_per_second: Read and written by copying.
        copied_bytes: Size of what was copied: twice the last cache, or what memory allowed.
    """

    threads: int
    fp32_per_second: float
    int8_per_second: float
    fp32_runtime: str
    int8_runtime: str
    bytes_per_second: float
    copied_bytes: int


def measure_peaks(threads: int, *, cache_bytes: int, memory_bytes: int) -> Peaks:
    """Measure in a process of its own; takes a few seconds.

    Args:
        threads: To use.
        cache_bytes: Of the last level.
        memory_bytes: That may be used.

    Raises:
        ResourceError: The process crashed.
        UnfitError: No runtime can do it.
    """
    copied = min(max(2 * cache_bytes, _SMALLEST_COPY), _LARGEST_COPY, memory_bytes // 8)
    with tempfile.TemporaryDirectory(prefix="vnnify-peaks-") as folder:
        found = run_isolated(
            "bench.peaks:run_peaks",
            {"threads": threads, "folder": folder, "copied": copied},
            scratch=Path(folder),
            name="measuring what the machine can do",
            timeout_s=_TIMEOUT_S,
        )
    return Peaks(**found)


def machine_peaks(machine: Machine, threads: int) -> Peaks:
    """What a machine, this one, can do at best with so many threads."""
    cache = max(machine.caches.values(), default=_DEFAULT_CACHE)
    return measure_peaks(threads, cache_bytes=cache, memory_bytes=machine.memory_bytes)


def run_peaks(job: dict[str, Any]) -> dict[str, Any]:
    """Measure, in the process that calls."""
    folder, threads = Path(job["folder"]), job["threads"]
    best: dict[str, tuple[float, str]] = {}
    for name in installed_runtimes():
        for kind, build in (("fp32", _float_product), ("int8", _integer_product)):
            path = folder / f"{kind}-{name}.onnx"
            feeds = build(path, integer_operator=name == "onnxruntime")
            # A runtime that does not take it is not the fastest.
            with contextlib.suppress(VnnifyError):
                session = find_runtime(name).open(path, Settings(threads))
                seconds = _fastest(lambda s=session, f=feeds: s.run(f))  # type: ignore[misc]
                session.close()
                reached = 2 * _ROWS * _INNER * _INNER / seconds
                best[kind] = max(best.get(kind, (0.0, "")), (reached, name))
    return {
        "threads": threads,
        "fp32_per_second": best["fp32"][0],
        "int8_per_second": best["int8"][0],
        "fp32_runtime": best["fp32"][1],
        "int8_runtime": best["int8"][1],
        "bytes_per_second": _bandwidth(threads, job["copied"]),
        "copied_bytes": job["copied"],
    }


def _fastest(call: Callable[[], object]) -> float:
    """The shortest of many calls, in seconds: a limit is what is reached undisturbed."""
    call()
    taken: list[int] = []
    end = perf_counter_ns() + int(_SECONDS * 1e9)
    while len(taken) < 3 or perf_counter_ns() < end:
        start = perf_counter_ns()
        call()
        taken.append(perf_counter_ns() - start)
    return min(taken) / 1e9


def _bandwidth(threads: int, count: int) -> float:
    """Bytes read and written per second by copying, each thread a part of its own."""
    parts = [np.zeros(count // threads, np.uint8) for _ in range(threads)]
    targets = [np.ones_like(p) for p in parts]  # Written once, so that its pages exist.

    def copy() -> None:
        # numpy lets go of the interpreter while it copies.
        work = [
            threading.Thread(target=np.copyto, args=pair)
            for pair in zip(targets, parts, strict=True)
        ]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()

    return 2 * (count // threads) * threads / _fastest(copy)


def _float_product(path: Path, *, integer_operator: bool) -> Feeds:
    del integer_operator
    rng = np.random.default_rng(0)
    w = rng.standard_normal((_INNER, _INNER)).astype(np.float32)
    _save(path, [("MatMul", ["x", "w"], ["y"])], {"w": w}, ("float32", "float32"))
    return {"x": rng.standard_normal((_ROWS, _INNER)).astype(np.float32)}


def _integer_product(path: Path, *, integer_operator: bool) -> Feeds:
    """u8 times s8: as MatMulInteger, or between Q and DQ for runtimes that fuse only those."""
    rng = np.random.default_rng(0)
    w = rng.integers(-64, 64, (_INNER, _INNER)).astype(np.int8)
    x = rng.integers(0, 256, (_ROWS, _INNER)).astype(np.uint8)
    if integer_operator:
        _save(path, [("MatMulInteger", ["x", "w"], ["y"])], {"w": w}, ("uint8", "int32"))
        return {"x": x}
    nodes = [
        ("QuantizeLinear", ["x", "one", "zero_u8"], ["xq"]),
        ("DequantizeLinear", ["xq", "one", "zero_u8"], ["xd"]),
        ("DequantizeLinear", ["w", "one", "zero_s8"], ["wd"]),
        ("MatMul", ["xd", "wd"], ["y"]),
    ]
    constants = {
        "w": w,
        "one": np.array(1, np.float32),
        "zero_u8": np.array(0, np.uint8),
        "zero_s8": np.array(0, np.int8),
    }
    _save(path, nodes, constants, ("float32", "float32"))
    return {"x": x.astype(np.float32)}


def _save(
    path: Path,
    nodes: list[tuple[str, list[str], list[str]]],
    constants: dict[str, Any],
    types: tuple[str, str],
) -> None:
    import onnx
    from onnx import helper, numpy_helper

    x, y = (helper.np_dtype_to_tensor_dtype(np.dtype(t)) for t in types)
    graph = helper.make_graph(
        [helper.make_node(*n) for n in nodes],
        "peak",
        [helper.make_tensor_value_info("x", x, [_ROWS, _INNER])],
        [helper.make_tensor_value_info("y", y, [_ROWS, _INNER])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    opset = [helper.make_opsetid("", 13)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opset, ir_version=8)
    path.write_bytes(model.SerializeToString())
