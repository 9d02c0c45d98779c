"""Runtimes by name. A new one is a file with a class, and a row here."""

from bench.errors import UsageError
from bench.runtimes.onnxruntime import OnnxRuntime
from bench.runtimes.openvino import OpenVino
from bench.runtimes.seam import Runtime, Session, Settings

__all__ = ["RUNTIMES", "Runtime", "Session", "Settings", "find_runtime"]

RUNTIMES: dict[str, Runtime] = {
    "onnxruntime": OnnxRuntime(),
    "openvino": OpenVino(),
}


def find_runtime(name: str) -> Runtime:
    """The runtime called `name`.

    Raises:
        UsageError: There is none of that name.
    """
    try:
        return RUNTIMES[name]
    except KeyError:
        raise UsageError(f"unknown runtime {name!r}; known: {', '.join(RUNTIMES)}.") from None
