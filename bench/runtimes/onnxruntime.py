"""ONNX Runtime."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import InputError, UnfitError
from bench.models import Feeds
from bench.runtimes.seam import Session, Settings

logger = logging.getLogger(__name__)

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntime:
    """Opens `.onnx` files in ONNX Runtime."""

    name = "onnxruntime"

    def version(self) -> str:
        """Version of the installed onnxruntime."""
        return str(_package().__version__)

    def open(self, path: Path, settings: Settings) -> Session:
        """Load and compile a model; see `bench.runtimes.seam.Runtime.open`."""
        package = _package()
        provider = _PROVIDERS.get(settings.device)
        if provider not in package.get_available_providers():
            raise UnfitError(
                f"onnxruntime has no provider for device {settings.device!r} here; it offers "
                f"{', '.join(package.get_available_providers())}. For a GPU install "
                f"onnxruntime-gpu."
            )
        try:
            session = package.InferenceSession(
                str(path), session_options(settings), providers=[provider]
            )
        except open_errors() as e:
            raise InputError(f"{path}: onnxruntime refuses the model: {_first_line(e)}") from e
        # Asked for CUDA alone and without it, onnxruntime hands back a CPU session and a warning.
        if session.get_providers()[0] != provider:
            raise UnfitError(
                f"asked onnxruntime for {provider}, got {session.get_providers()[0]}. "
                "Check the CUDA and cuDNN versions that onnxruntime-gpu needs."
            )
        names = tuple(o.name for o in session.get_outputs())
        return _Session(session, names, settings.device)


def session_options(settings: Settings) -> Any:
    """`onnxruntime.SessionOptions` for `settings`; threads explicit, one op at a time."""
    package = _package()
    options = package.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    level = package.GraphOptimizationLevel
    options.graph_optimization_level = (
        level.ORT_ENABLE_ALL if settings.optimize == "all" else level.ORT_DISABLE_ALL
    )
    if settings.exact:
        from bench.machine import canary

        # On a host that does not saturate, the option would only switch the fast kernels off.
        if canary("onnxruntime") != "exact":
            options.add_session_config_entry("session.x64quantprecision", "1")
    return options


@dataclass(slots=True)
class _Session:
    session: Any
    names: tuple[str, ...]
    device: str

    def run(self, feeds: Feeds) -> Feeds:
        try:
            return dict(zip(self.names, self.session.run(None, feeds), strict=True))
        except open_errors() as e:
            raise InputError(
                f"onnxruntime cannot run the model on this sample: {_first_line(e)}"
            ) from e

    def close(self) -> None:
        self.session = None


def open_errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises: classes of its own, which do not share a public root."""
    _package()
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [c for c in vars(state).values() if isinstance(c, type) and issubclass(c, Exception)]
    return (RuntimeError, ValueError, *own)


def _package() -> Any:
    try:
        import onnxruntime
    except ImportError as e:
        raise UnfitError(
            "the runtime `onnxruntime` needs the package onnxruntime: pip install onnxruntime"
        ) from e
    return onnxruntime


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:400] if str(error).strip() else type(error).__name__
