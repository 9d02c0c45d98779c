"""OpenVINO, on CPUs."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from bench.errors import InputError, UnfitError, UnsupportedError, stems_from_interrupt
from bench.models import Array, Feeds
from bench.runtimes.seam import Session, Settings

logger = logging.getLogger(__name__)


class OpenVino:
    """Opens `.onnx` files in OpenVINO's CPU plugin.

    OpenVINO always optimizes, so `Settings.optimize` makes no difference here: whoever wants an
    intermediate tensor declares it an output, and outputs survive every fusion.
    """

    name = "openvino"
    suffixes = (".onnx",)
    devices = ("cpu",)

    def version(self) -> str:
        """Version of the installed openvino."""
        return str(load_package().__version__).split("-")[0]

    def open(self, path: Path, settings: Settings) -> Session:
        """Load and compile a model; see `bench.runtimes.seam.Runtime.open`.

        Raises:
            UnfitError: Also where exact INT8 products are asked of a CPU that saturates.
            UnsupportedError: The model takes or returns text.
        """
        package = load_package()
        if settings.device != "cpu":
            raise UnfitError(
                f"vnnify runs openvino on 'cpu' only, not on {settings.device!r}. "
                "Use --runtime onnxruntime for a GPU."
            )
        if settings.exact:
            _refuse_saturation()
        core = package.Core()
        try:
            graph = core.read_model(str(path))
            _refuse_text(graph, path)
            start = perf_counter_ns()
            compiled = core.compile_model(graph, "CPU", properties(settings))
            compile_ns = perf_counter_ns() - start
        except RuntimeError as e:
            raise InputError(f"{path}: openvino refuses the model: {_reason(e)}") from e
        inputs = tuple(
            _Input(n, np.dtype(p.element_type.to_dtype()), _sizes(p))
            for n, p in zip(_names(graph.inputs, path, "input"), graph.inputs, strict=True)
        )
        return OpenVinoSession(compiled, inputs, _names(graph.outputs, path, "output"), compile_ns)


def load_package() -> Any:
    """The `openvino` module; its telemetry is off already, see `bench.telemetry`.

    Raises:
        UnfitError: openvino is not installed.
    """
    try:
        import openvino
    except ImportError as e:
        if stems_from_interrupt(e):
            raise KeyboardInterrupt from e
        raise UnfitError(
            "the runtime `openvino` needs the package openvino: pip install 'vnnify[openvino]'"
        ) from e
    return openvino


def _shareable(array: Array) -> Array:
    """An array that OpenVINO can share; it copies read-only ones, but fails on those of rank 0."""
    return array.copy() if array.ndim == 0 else array


@dataclass(frozen=True, slots=True)
class _Input:
    name: str
    dtype: np.dtype[Any]
    sizes: tuple[int | None, ...] | None


@dataclass(slots=True)
class OpenVinoSession:
    """A compiled model; see `bench.runtimes.seam.Session`."""

    compiled: Any
    inputs: tuple[_Input, ...]
    names: tuple[str, ...]
    compile_ns: int | None
    device: str = "cpu"
    placement: dict[str, int] = field(default_factory=dict)
    # Requests at rest. A request serves one caller at a time; list.pop and append are atomic.
    idle: list[Any] = field(default_factory=list)

    def prepare(self, feeds: Feeds) -> None:
        """Nothing: what is left to do for a shape is part of its first inference."""

    def run(self, feeds: Feeds) -> Feeds:
        """Outputs by name; see `bench.runtimes.seam.Session`."""
        self._check(feeds)
        try:
            request = self.idle.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        try:
            # By position: names may be lost or shared inside OpenVINO, positions may not.
            ordered = {i: _shareable(feeds[s.name]) for i, s in enumerate(self.inputs)}
            request.infer(ordered, share_inputs=True, share_outputs=True)
            # Copies: the request's memory is overwritten by its next caller.
            return {n: request.get_output_tensor(i).data.copy() for i, n in enumerate(self.names)}
        except RuntimeError as e:
            raise InputError(f"openvino cannot run the model on this sample: {_reason(e)}") from e
        finally:
            self.idle.append(request)

    def stage(self, feeds: Feeds) -> Callable[[], None]:
        """An inference whose inputs lie in the request already, and whose outputs stay there.

        Raises:
            InputError: The inputs do not fit the model.
        """
        self._check(feeds)
        package, request = load_package(), self.compiled.create_infer_request()
        for i, spec in enumerate(self.inputs):
            request.set_input_tensor(i, package.Tensor(np.ascontiguousarray(feeds[spec.name])))
        call: Callable[[], None] = partial(request.infer, share_outputs=True)
        return call

    def close(self) -> None:
        """Give back its memory."""
        self.idle.clear()
        self.compiled = None

    def _check(self, feeds: Feeds) -> None:
        """Refuse what OpenVINO accepts: it computes garbage from a missing input, and casts."""
        expected = {s.name for s in self.inputs}
        if feeds.keys() != expected:
            raise InputError(
                f"the sample has inputs {sorted(feeds)}, the model takes {sorted(expected)}."
            )
        for spec in self.inputs:
            array = feeds[spec.name]
            if array.dtype != spec.dtype:
                raise InputError(
                    f"input {spec.name!r} has type {array.dtype}, the model takes {spec.dtype}."
                )
            if spec.sizes is not None and (
                array.ndim != len(spec.sizes)
                or any(s not in (None, d) for s, d in zip(spec.sizes, array.shape, strict=True))
            ):
                raise InputError(
                    f"input {spec.name!r} has shape {list(array.shape)}, the model takes "
                    f"[{','.join('?' if s is None else str(s) for s in spec.sizes)}]."
                )


def properties(settings: Settings) -> dict[str, Any]:
    """What the CPU plugin is told for `settings`; whoever compiles by itself needs the same."""
    return {
        # Of all streams together.
        "INFERENCE_NUM_THREADS": settings.threads * settings.streams,
        "NUM_STREAMS": str(settings.streams),
        "PERFORMANCE_HINT": "LATENCY" if settings.streams == 1 else "THROUGHPUT",
        # On CPUs with AMX or AVX512_BF16 the default would run the FP32 model in bfloat16, and the
        # comparison would not be with FP32. INT8 kernels stay INT8 with it.
        "INFERENCE_PRECISION_HINT": "f32",
    }


def _refuse_saturation() -> None:
    from bench.machine import canary

    found = canary("openvino")
    if found != "exact":
        raise UnfitError(
            f"openvino's INT8 products are {found} on this CPU and it has no switch to make them "
            "exact. Judge with --runtime onnxruntime, or on a CPU with VNNI."
        )


def _refuse_text(graph: Any, path: Path) -> None:
    # OpenVINO 2026.4.1 corrupts the heap when it passes text through (glibc aborts the process).
    for port in (*graph.inputs, *graph.outputs):
        if "string" in str(port.element_type):
            raise UnsupportedError(
                f"{path}: takes or returns text, which openvino handles unsafely. "
                "Use --runtime onnxruntime."
            )


def _names(ports: Any, path: Path, kind: str) -> tuple[str, ...]:
    """The ONNX names of `ports`; read from the file where OpenVINO knows several or none."""
    known = [sorted(p.get_names()) for p in ports]
    if all(len(names) == 1 for names in known):
        return tuple(names[0] for names in known)
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    constants = {t.name for t in graph.initializer}
    values = graph.output if kind == "output" else graph.input
    names = tuple(v.name for v in values if kind == "output" or v.name not in constants)
    if len(names) != len(known):
        raise InputError(
            f"{path}: openvino sees {len(known)} {kind}s where the file declares {len(names)}."
        )
    return names


def _sizes(port: Any) -> tuple[int | None, ...] | None:
    shape = port.partial_shape
    if shape.rank.is_dynamic:
        return None
    return tuple(d.get_length() if d.is_static else None for d in shape)


def _reason(error: RuntimeError) -> str:
    """The telling line of an OpenVINO exception, which starts with lines about its own source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [s for s in lines if not s.startswith(("Exception from", "Check '"))]
    return " ".join(telling or lines)[:400] or type(error).__name__
