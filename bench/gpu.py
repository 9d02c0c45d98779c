"""The GPUs: which there are, why they cannot be used, their driver, power limit and clocks.

A GPU's speed follows its clock, and the clock follows power, heat and what an administrator set; a
latency without them cannot be repeated.
"""

import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from bench.errors import UnfitError
from bench.runtimes import find_runtime

_TOOL = "nvidia-smi"
_TIMEOUT_S = 20.0
_FIELDS = (
    "name",
    "driver_version",
    "memory.total",
    "power.limit",
    "power.draw",
    "clocks.sm",
    "clocks.max.sm",
    "temperature.gpu",
)

Ask: TypeAlias = Callable[[Sequence[str]], str]
"""Runs a command and returns what it printed; an empty text where it failed."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU at one moment. What the tool does not tell ("[N/A]") is None.

    Attributes:
        name: Of the product.
        driver: Its version.
        memory_mib: Of the board.
        power_limit_w: What it may draw.
        power_w: What it drew.
        clock_mhz: Of its multiprocessors.
        most_clock_mhz: That they may reach.
        celsius: Its temperature.
    """

    name: str
    driver: str
    memory_mib: float | None = None
    power_limit_w: float | None = None
    power_w: float | None = None
    clock_mhz: float | None = None
    most_clock_mhz: float | None = None
    celsius: float | None = None

    @property
    def clock_share(self) -> float | None:
        """The clock as a share of the highest one; None where either is unknown."""
        if self.clock_mhz is None or not self.most_clock_mhz:
            return None
        return self.clock_mhz / self.most_clock_mhz


def run_tool(command: Sequence[str]) -> str:
    """Run a command; an empty text where it is missing, fails or hangs."""
    found = shutil.which(command[0])
    if found is None:
        return ""
    try:
        done = subprocess.run(
            [found, *command[1:]], capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return done.stdout


def gpu_names(root: Path) -> tuple[str, ...]:
    """Names of the NVIDIA GPUs that the driver shows to this machine or container.

    Args:
        root: Where `/proc` is mounted; another one in tests.
    """
    names = []
    for file in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        lines = [s.split(":", 1) for s in text.splitlines() if ":" in s]
        names += [value.strip() for key, value in lines if key.strip() == "Model"]
    return tuple(names)


def no_gpu_reason(names: tuple[str, ...]) -> str:
    """Why GPU measurements are impossible here; empty if they are possible."""
    return _no_cuda_reason() if names else "no NVIDIA GPU or driver is visible here"


@functools.cache
def _no_cuda_reason() -> str:
    try:
        find_runtime("onnxruntime").version()
    except UnfitError as e:
        return str(e)
    import onnxruntime

    providers: list[Any] = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" in providers:
        return ""
    return "this onnxruntime has no CUDA provider: pip install onnxruntime-gpu"


def read_gpus(*, ask: Ask = run_tool, only: str = "") -> tuple[Gpu, ...]:
    """What `nvidia-smi` says now; nothing where it is not there.

    Args:
        ask: Runs it; another one in tests.
        only: The index or UUID of one GPU; empty for all.
    """
    command = [_TOOL, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    printed = ask([*command, *(["-i", only] if only else [])])
    rows = [[cell.strip() for cell in line.split(",")] for line in printed.splitlines()]
    return tuple(
        Gpu(row[0], row[1], *map(_number, row[2:])) for row in rows if len(row) == len(_FIELDS)
    )


def first_visible(environ: Mapping[str, str] = os.environ) -> str:
    """The GPU that CUDA calls 0, as nvidia-smi takes it: that does not read this variable."""
    return environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
