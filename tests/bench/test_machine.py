import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bench import gpu, machine
from bench.errors import UnfitError, UsageError
from bench.machine import (
    Machine,
    available_threads,
    canary,
    describe,
    exact_product,
    saturated_product,
)
from bench.runtimes import RUNTIMES
from tests.fakes import FakeRuntime

CPUINFO = """\
processor\t: 0
cpu family\t: 6
model\t\t: 143
model name\t: Some Xeon
stepping\t: 8
microcode\t: 0x2b
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu avx2 fma avx512f avx512bw avx512_vnni amx_int8 hypervisor

processor\t: 1
physical id\t: 0
core id\t\t: 0
model name\t: Some Xeon

"""


def _put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake machine's /proc and /sys; no runtime is tried."""
    monkeypatch.setattr(machine, "canary", lambda _name: "exact")
    return _put(
        tmp_path,
        {
            "proc/cpuinfo": CPUINFO,
            "proc/meminfo": "MemTotal:       2048 kB\nMemFree: 1 kB\n",
            "sys/devices/system/cpu/cpu0/cache/index2/level": "2",
            "sys/devices/system/cpu/cpu0/cache/index2/type": "Unified\n",
            "sys/devices/system/cpu/cpu0/cache/index2/size": "1024K\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
        },
    )


def test_describes_what_the_kernel_says(somewhere: Path) -> None:
    ours = {"ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_THREAD_TIMEOUT": "4"}
    theirs = {"OMP_NUM_THREADS": "4", "HOME": "/secret"}
    found = describe(environ={**ours, **theirs}, root=somewhere)
    assert (found.cpu, found.family, found.model, found.stepping) == ("Some Xeon", 6, 143, 8)
    assert found.microcode == "0x2b"
    assert (found.physical_cores, found.logical_cores) == (1, 2)
    assert found.flags == ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "amx_int8")
    assert found.hypervisor
    assert found.caches == {"L2 unified": 1024 * 1024}
    assert found.memory_bytes == 2048 * 1024
    assert found.governor == "powersave"
    assert found.variables == {"OMP_NUM_THREADS": "4"}
    assert found.packages["numpy"] == np.__version__
    assert found.gpus == ()
    assert "no NVIDIA" in found.no_gpu_reason


def test_memory_is_what_the_cgroup_leaves(somewhere: Path) -> None:
    _put(somewhere, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "4096"})
    assert describe(environ={}, root=somewhere).memory_bytes == 4096


def test_a_gpu_without_a_runtime_for_it_is_listed_and_explained(somewhere: Path) -> None:
    gpu._no_cuda_reason.cache_clear()
    _put(somewhere, {"proc/driver/nvidia/gpus/0/information": "Model: \t NVIDIA H100\nIRQ: 1\n"})
    found = describe(environ={}, root=somewhere)
    import onnxruntime

    assert found.gpus == ("NVIDIA H100",)
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        assert "pip install onnxruntime-gpu" in found.no_gpu_reason


def test_canaries_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.machine.canary", lambda _: pytest.fail("tried"))
    assert describe(canaries=False).canaries == {}


def test_this_machine_can_be_described() -> None:
    found = describe()
    assert found.threads >= 1
    assert found.canaries["onnxruntime"] in ("exact", "saturating", "other")
    assert found.isa_class in ("amx", "avx512_vnni", "avx_vnni", "avx512", "avx2", "other")


@pytest.mark.parametrize(
    ("flags", "seen", "isa"),
    [
        (("avx2", "avx512bw", "avx512_vnni", "avx_vnni", "amx_int8"), {"r": "exact"}, "amx"),
        (("avx2", "avx512bw", "avx512_vnni", "avx_vnni"), {"r": "exact"}, "avx512_vnni"),
        (("avx2", "avx_vnni"), {"r": "exact"}, "avx_vnni"),
        (("avx2", "avx512bw", "avx512_vnni"), {"r": "saturating"}, "avx512"),
        (("avx2", "avx512bw", "avx512_vnni"), {"r": "exact", "s": "saturating"}, "avx512"),
        (("avx2", "avx512bw", "avx512_vnni"), {"r": "not tried: x"}, "avx512"),
        (("avx2", "avx_vnni"), {}, "avx2"),
        (("avx2",), {"r": "exact"}, "avx2"),
        ((), {"r": "exact"}, "other"),
    ],
)
def test_a_vnni_class_needs_flag_and_canary(
    somewhere: Path, flags: tuple[str, ...], seen: dict[str, str], isa: str
) -> None:
    found = describe(environ={}, root=somewhere)
    assert dataclasses.replace(found, flags=flags, canaries=seen).isa_class == isa


def test_a_runtime_that_cannot_be_tried_does_not_hide_the_machine(
    somewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_name: str) -> str:
        raise UnfitError("no such thing")

    monkeypatch.setattr(machine, "canary", broken)
    found: Machine = describe(environ={}, root=somewhere)
    assert found.canaries["onnxruntime"] == "not tried: no such thing"


@pytest.mark.parametrize(
    ("cpus", "quota", "threads"),
    [
        ({0, 1, 2, 3}, None, 4),
        ({0, 1, 2, 3}, "150000 100000", 2),
        ({0, 1, 2, 3}, "10000 100000", 1),
        ({5}, "400000 100000", 1),
    ],
)
def test_threads_are_what_affinity_and_quota_allow(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cpus: set[int],
    quota: str | None,
    threads: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: cpus)
    files = {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": quota or "max 100000"}
    assert available_threads(_put(tmp_path, files)) == threads


U8 = hnp.arrays(np.uint8, (3, 8), elements=st.integers(0, 255))
S8 = hnp.arrays(np.int8, (8, 2), elements=st.integers(-128, 127))


@given(U8, S8)
def test_emulations_match_a_loop_over_pairs(a: Any, b: Any) -> None:
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            products = [int(x) * int(y) for x, y in zip(a[i], b[:, j], strict=True)]
            pairs = [p + q for p, q in zip(products[::2], products[1::2], strict=True)]
            assert exact_product(a, b)[i, j] == sum(products)
            clipped = sum(max(-32768, min(32767, p)) for p in pairs)
            assert saturated_product(a, b)[i, j] == clipped


class _Product:
    """A session that multiplies as it is told, with the canary's weights."""

    device = "cpu"

    def __init__(self, multiply: Any) -> None:
        self.multiply = multiply

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        b = np.repeat(np.array([127, 126, 125, 124] * 8, np.int8)[None, :], 64, axis=0)
        return {"y": self.multiply(feeds["x"].astype(np.uint8), b)}

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("multiply", "verdict"),
    [
        (exact_product, "exact"),
        (saturated_product, "saturating"),
        (lambda a, b: exact_product(a, b) + 1, "other"),
    ],
)
def test_the_canary_tells_arithmetics_apart(
    monkeypatch: pytest.MonkeyPatch, multiply: Any, verdict: str
) -> None:
    monkeypatch.setitem(RUNTIMES, "canary test", FakeRuntime(_Product(multiply)))
    canary.cache_clear()
    assert canary("canary test") == verdict
    canary.cache_clear()


def test_the_canary_knows_its_runtimes() -> None:
    with pytest.raises(UsageError, match="unknown runtime"):
        canary("abacus")


def test_a_missing_runtime_is_unfit(monkeypatch: pytest.MonkeyPatch) -> None:
    canary.cache_clear()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UnfitError):
        canary("onnxruntime")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux's /proc")
def test_the_canary_agrees_with_the_flags_of_this_machine() -> None:
    found = describe()
    if {"avx512_vnni", "avx_vnni", "amx_int8"} & set(found.flags):
        assert found.canaries["onnxruntime"] == "exact"
