"""Runtimes by name. A new one is a file with a class, and a row here."""

import logging

from bench.errors import UnfitError, UsageError
from bench.runtimes.onnxruntime import OnnxRuntime
from bench.runtimes.openvino import OpenVino
from bench.runtimes.seam import Runtime, Session, Settings, Staging
from bench.runtimes.torch import Torch

logger = logging.getLogger(__name__)

__all__ = [
    "RUNTIMES",
    "Runtime",
    "Session",
    "Settings",
    "Staging",
    "find_runtime",
    "installed_runtimes",
]

RUNTIMES: dict[str, Runtime] = {
    "onnxruntime": OnnxRuntime(),
    "openvino": OpenVino(),
    "torch": Torch("torch", compiled=False),
    "torch-compile": Torch("torch-compile", compiled=True),
}


def installed_runtimes(suffix: str = ".onnx") -> tuple[str, ...]:
    """Names of the runtimes that open files of this kind and are installed."""
    found = []
    for name, runtime in RUNTIMES.items():
        if suffix not in runtime.suffixes:
            continue
        try:
            runtime.version()
        except UnfitError as e:
            logger.info("%s", e)
            continue
        found.append(name)
    return tuple(found)


def find_runtime(name: str) -> Runtime:
    """The runtime called `name`.

    Raises:
        UsageError: There is none of that name.
    """
    try:
        return RUNTIMES[name]
    except KeyError:
        raise UsageError(f"unknown runtime {name!r}; known: {', '.join(RUNTIMES)}.") from None
