"""The machine: what it is, how many threads it really gives, which INT8 arithmetic it does."""

import functools
import math
import os
import platform
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bench import cgroup
from bench.errors import UsageError, VnnifyError
from bench.gpu import Gpu, gpu_names, no_gpu_reason, read_gpus
from bench.isolate import ENVIRONMENT
from bench.runtimes import RUNTIMES, Settings, find_runtime

CanaryVerdict: TypeAlias = Literal["exact", "saturating", "other"]
IsaClass: TypeAlias = Literal["amx", "avx512_vnni", "avx_vnni", "avx512", "avx2", "other"]

PACKAGES = (
    "vnnify",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "nncf",
    "torch",
    "onnxscript",
    "neural-compressor",
    "pydantic",
    "protobuf",
)
_FLAGS = (
    "avx2",
    "fma",
    "avx_vnni",
    "avx_vnni_int8",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
)
# cpuinfo of some kernels writes these apart.
_SYNONYMS = {"avx512vnni": "avx512_vnni", "avxvnni": "avx_vnni"}
_VARIABLES = ("OMP_", "KMP_", "GOMP_", "ONEDNN_", "DNNL_", "ORT_", "MKL_", "OPENBLAS_", "OV_")
# vnnify sets them in its processes, and they change no computation.
_OURS = ("ORT_DISABLE_TELEMETRY", *ENVIRONMENT)
_LOADED = ("LD_PRELOAD", "CUDA_VISIBLE_DEVICES")
_ROOT = Path("/")
_GOVERNOR = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"


@dataclass(frozen=True, slots=True)
class Machine:
    """What has to be known about a machine to trust, or repeat, a measurement on it.

    Attributes:
        cpu: Its model name, as the kernel gives it.
        family: With `model` and `stepping`, the numbers that identify the silicon; 0 if unknown.
        model: See `family`.
        stepping: See `family`.
        microcode: Revision, or "unknown".
        physical_cores: Cores of the machine, hyperthreads not counted.
        logical_cores: Hardware threads of the machine.
        threads: What this process may use; see `available_threads`.
        quota_cpus: CPUs' worth of time that the cgroup grants, None if unlimited.
        flags: Of the instruction sets that matter here, those that the CPU claims.
        caches: Size by level and type ("L2 unified"), in bytes, of the first core.
        memory_bytes: Installed memory, or less if the cgroup limits it.
        governor: Frequency governor, "unknown" in most virtual machines.
        hypervisor: Whether this is a virtual machine.
        kernel: Release of the operating system.
        python: Version of Python.
        packages: Version by name of the installed packages that matter.
        canaries: By installed runtime, the INT8 arithmetic it was seen to do; an error's text if it
            could not be tried.
        gpus: Names of the GPUs.
        no_gpu_reason: Why GPU measurements are impossible here; empty if they are possible.
        variables: Environment variables that change what runtimes do.
        gpu_states: Driver, power limit and clocks of the GPUs, where nvidia-smi tells them.
    """

    cpu: str
    family: int
    model: int
    stepping: int
    microcode: str
    physical_cores: int
    logical_cores: int
    threads: int
    quota_cpus: float | None
    flags: tuple[str, ...]
    caches: dict[str, int]
    memory_bytes: int
    governor: str
    hypervisor: bool
    kernel: str
    python: str
    packages: dict[str, str]
    canaries: dict[str, str]
    gpus: tuple[str, ...]
    no_gpu_reason: str
    variables: dict[str, str]
    gpu_states: tuple[Gpu, ...] = ()

    @property
    def isa_class(self) -> IsaClass:
        """The CPU class whose INT8 arithmetic and speed this machine has.

        A flag alone does not count: hypervisors and wheels switch kernels off, so a VNNI class also
        needs a runtime that was seen to compute exactly, and none that saturates.
        """
        seen = set(self.canaries.values())
        if "exact" in seen and "saturating" not in seen:
            if "amx_int8" in self.flags:
                return "amx"
            if "avx512_vnni" in self.flags:
                return "avx512_vnni"
            if "avx_vnni" in self.flags:
                return "avx_vnni"
        if "avx512bw" in self.flags:
            return "avx512"
        return "avx2" if "avx2" in self.flags else "other"


def describe(
    *, environ: Mapping[str, str] = os.environ, root: Path = _ROOT, canaries: bool = True
) -> Machine:
    """Look at this machine; takes a fraction of a second, most of it importing the runtimes.

    Args:
        environ: Where to look for variables.
        root: Where `/proc` and `/sys` are mounted; another one in tests.
        canaries: Whether to try them, which imports the runtimes.
    """
    blocks = _cpuinfo(root)
    first = blocks[0] if blocks else {}
    flags = first.get("flags", "").split()
    cores = {(b.get("physical id"), b.get("core id", b.get("processor"))) for b in blocks}
    logical = len(blocks) or os.cpu_count() or 1
    packages = installed_packages()
    gpus = gpu_names(root)
    return Machine(
        cpu=first.get("model name") or platform.processor() or platform.machine(),
        family=_number(first.get("cpu family")),
        model=_number(first.get("model")),
        stepping=_number(first.get("stepping")),
        microcode=first.get("microcode", "unknown"),
        physical_cores=len(cores) or logical,
        logical_cores=logical,
        threads=available_threads(root),
        quota_cpus=cgroup.cpu_quota(root),
        flags=relevant_flags(flags),
        caches=_caches(root),
        memory_bytes=_memory(root),
        governor=cgroup.text_of(root / _GOVERNOR) or "unknown",
        hypervisor="hypervisor" in flags,
        kernel=platform.release(),
        python=platform.python_version(),
        packages=packages,
        canaries={
            name: _verdict(name)
            for name, runtime in RUNTIMES.items()
            if canaries and ".onnx" in runtime.suffixes and _is_installed(name, packages)
        },
        gpus=gpus,
        no_gpu_reason=no_gpu_reason(gpus),
        variables={
            k: v
            for k, v in sorted(environ.items())
            if (k.startswith(_VARIABLES) or k in _LOADED) and k not in _OURS
        },
        gpu_states=read_gpus() if gpus else (),
    )


def relevant_flags(flags: Iterable[str]) -> tuple[str, ...]:
    """Of a CPU's flags, as `/proc/cpuinfo` gives them, those of instruction sets that matter."""
    there = {_SYNONYMS.get(f, f) for f in flags}
    return tuple(f for f in _FLAGS if f in there)


def installed_packages() -> dict[str, str]:
    """Version by name of the packages that matter, without importing them."""
    import importlib.metadata

    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def granted_threads(asked: int) -> int:
    """Threads to use where `asked` of them are wanted; 0 is all that are granted.

    Raises:
        UsageError: The machine has fewer hardware threads than that.
    """
    most = os.cpu_count() or 1
    if asked > most:
        raise UsageError(
            f"asked for {asked} threads, and this machine has {most} hardware threads. "
            f"Use at most that; 0 is what may be used here, {available_threads()}."
        )
    return asked or available_threads()


def available_threads(root: Path = _ROOT) -> int:
    """Threads that this process can really run at once.

    The smaller of the CPU affinity and the cgroup's CPU quota, rounded up; at least 1. No runtime
    honours the quota by itself: with more threads than quota, all of them are stopped together for
    most of every period.
    """
    threads = len(os.sched_getaffinity(0))
    quota = cgroup.cpu_quota(root)
    if quota is not None:
        threads = min(threads, math.ceil(quota))
    return max(threads, 1)


@functools.cache
def canary(runtime_name: str) -> CanaryVerdict:
    """Which INT8 arithmetic a runtime does on this machine, seen from one tiny product.

    AVX2 and AVX-512 without VNNI add neighbouring u8×s8 products into 16 bits that saturate
    (`vpmaddubsw`); VNNI and AMX add four of them into 32 bits (`vpdpbusd`, `tdpbusd`). Intel SDM
    volume 2. Every value of a row, and of a column, is the same here, so the answer does not depend
    on which products a kernel makes neighbours.

    Returns:
        "exact", "saturating", or "other" for an answer that is neither.

    Raises:
        UsageError: There is no runtime of that name.
        UnfitError: It is not installed.
    """
    runtime = find_runtime(runtime_name)
    runtime.version()
    integer = runtime_name == "onnxruntime"
    with tempfile.TemporaryDirectory(prefix="vnnify-") as folder:
        path = Path(folder) / "canary.onnx"
        path.write_bytes(canary_model(integer=integer))
        session = runtime.open(path, Settings(threads=1))
        got = session.run(canary_feeds(integer=integer))["y"]
        session.close()
    return canary_verdict(got)


def canary_feeds(*, integer: bool = True) -> dict[str, NDArray[Any]]:
    """What the canary's model is run on: u8 codes, or the same numbers in float."""
    a, _ = _canary_codes()
    return {"x": a if integer else a.astype(np.float32)}


def canary_verdict(got: NDArray[Any]) -> CanaryVerdict:
    """Which arithmetic gives this output of the canary's model."""
    a, b = _canary_codes()
    # All sums stay below 2^24, so they survive float32 unrounded.
    if np.array_equal(got, exact_product(a, b)):
        return "exact"
    return "saturating" if np.array_equal(got, saturated_product(a, b)) else "other"


def _canary_codes() -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    a = np.repeat(np.arange(255, 239, -1, dtype=np.uint8)[:, None], 64, axis=1)
    b = np.repeat(np.array([127, 126, 125, 124] * 8, dtype=np.int8)[None, :], 64, axis=0)
    return a, b


def exact_product(a: NDArray[np.uint8], b: NDArray[np.int8]) -> NDArray[np.int64]:
    """u8 [m, k] times s8 [k, n] in full precision."""
    return a.astype(np.int64) @ b.astype(np.int64)


def saturated_product(a: NDArray[np.uint8], b: NDArray[np.int8]) -> NDArray[np.int64]:
    """The same as `vpmaddubsw` makes it: pairs (0,1), (2,3), … of k clipped to 16 bits; k even."""
    wide_a = a.astype(np.int64).reshape(a.shape[0], -1, 2)
    wide_b = b.astype(np.int64).reshape(-1, 2, b.shape[1])
    pairs = np.einsum("mpi,pin->mpn", wide_a, wide_b)
    total: NDArray[np.int64] = pairs.clip(-(2**15), 2**15 - 1).sum(axis=1)
    return total


def canary_model(*, integer: bool = True) -> bytes:
    """`y = x @ b`: as MatMulInteger, or as float MatMul between Q and DQ with scales of 1."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    _, b = _canary_codes()
    k, n = b.shape
    weight = numpy_helper.from_array(b, "b")
    if integer:
        nodes = [helper.make_node("MatMulInteger", ["x", "b"], ["y"])]
        constants, x_type, y_type = [weight], TensorProto.UINT8, TensorProto.INT32
    else:
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "one", "zero_u8"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "one", "zero_u8"], ["xd"]),
            helper.make_node("DequantizeLinear", ["b", "one", "zero_s8"], ["bd"]),
            helper.make_node("MatMul", ["xd", "bd"], ["y"]),
        ]
        constants = [
            weight,
            numpy_helper.from_array(np.array(1, np.float32), "one"),
            numpy_helper.from_array(np.array(0, np.uint8), "zero_u8"),
            numpy_helper.from_array(np.array(0, np.int8), "zero_s8"),
        ]
        x_type, y_type = TensorProto.FLOAT, TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "canary",
        [helper.make_tensor_value_info("x", x_type, [16, k])],
        [helper.make_tensor_value_info("y", y_type, [16, n])],
        constants,
    )
    opset = [helper.make_opsetid("", 13)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opset, ir_version=8)
    return bytes(model.SerializeToString())


def _verdict(runtime_name: str) -> str:
    try:
        return canary(runtime_name)
    except VnnifyError as e:
        return f"not tried: {e}"


def _is_installed(runtime_name: str, packages: Mapping[str, str]) -> bool:
    return runtime_name in packages or f"{runtime_name}-gpu" in packages


def _cpuinfo(root: Path) -> list[dict[str, str]]:
    """One mapping per hardware thread."""
    blocks = cgroup.text_of(root / "proc/cpuinfo").split("\n\n")
    pairs = [[line.split(":", 1) for line in b.splitlines() if ":" in line] for b in blocks]
    found = [{k.strip(): v.strip() for k, v in block} for block in pairs]
    return [b for b in found if "processor" in b]


def _caches(root: Path) -> dict[str, int]:
    found = {}
    for folder in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (cgroup.text_of(folder / f) for f in ("level", "type", "size"))
        if size.endswith("K") and size[:-1].isdigit():
            found[f"L{level} {kind.lower()}"] = int(size[:-1]) * 1024
    return found


def _memory(root: Path) -> int:
    lines = [s.split() for s in cgroup.text_of(root / "proc/meminfo").splitlines()]
    installed = next((int(s[1]) * 1024 for s in lines if s[:1] == ["MemTotal:"]), 0)
    limit = cgroup.memory_limit_bytes(root)
    return installed if limit is None else min(installed, limit)


def _number(text: str | None) -> int:
    try:
        return int(text or "")
    except ValueError:
        return 0
