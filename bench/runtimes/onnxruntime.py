"""ONNX Runtime."""

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import InputError, UnfitError, stems_from_interrupt
from bench.models import Feeds, without_weights
from bench.runtimes.seam import Session, Settings

logger = logging.getLogger(__name__)

_PREAMBLE = re.compile(
    r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed:)?(Fatal error: )?"
)
_VERSION = re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)")
_LOCALE = re.compile(r"Failed to construct locale with name:([\w.@-]+)")
# Of what multiplies by codes; a DequantizeLinear reads them first.
_CODES_AT = {"MatMulInteger": 1}
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntime:
    """Opens `.onnx` files in ONNX Runtime."""

    name = "onnxruntime"
    suffixes = (".onnx",)
    devices = ("cpu", "cuda")

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
        model: str | bytes = str(path)
        if settings.precision == "fp16":
            model = _halved(path)
        elif _is_switched(settings):
            model = _unshared(path)
        try:
            session = package.InferenceSession(
                model,
                session_options(settings),
                providers=[(provider, _provider_options(settings))],
            )
        except open_errors() as e:
            raise refusal(path, e) from e
        # Asked for CUDA alone and without it, onnxruntime hands back a CPU session and a warning.
        if session.get_providers()[0] != provider:
            raise UnfitError(
                f"asked onnxruntime for {provider}, got {session.get_providers()[0]}. "
                "Check the CUDA and cuDNN versions that onnxruntime-gpu needs."
            )
        placement = _placement(session)
        if placement and provider not in placement:
            raise UnfitError(
                f"onnxruntime accepted {provider} and put no node on it: all run on "
                f"{', '.join(placement)}."
            )
        names = tuple(o.name for o in session.get_outputs())
        return _Session(session, names, settings.device, placement)


def session_options(settings: Settings) -> Any:
    """`onnxruntime.SessionOptions` for `settings`; threads explicit, one op at a time."""
    package = _package()
    options = package.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if settings.device != "cpu":
        # Nodes that a GPU provider does not take run on the CPU without a word.
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    level = package.GraphOptimizationLevel
    options.graph_optimization_level = (
        level.ORT_ENABLE_ALL if settings.optimize == "all" else level.ORT_DISABLE_ALL
    )
    if settings.optimize == "none":
        # As soon as it can, otherwise: every DequantizeLinear of weights before all else, so that
        # they are in memory as floats together.
        options.execution_order = package.ExecutionOrder.PRIORITY_BASED
        # It does not copy a DequantizeLinear for each of its readers either: copies would run last,
        # and the readers wait for them.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if not settings.packed:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if not settings.arena:
        # It grows in powers of two.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
    if _is_switched(settings):
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _is_switched(settings: Settings) -> bool:
    """Whether exact products have to be switched on."""
    from bench.machine import canary

    # On a host that does not saturate, the option would only switch the fast kernels off.
    return settings.exact and canary("onnxruntime") != "exact"


@dataclass(slots=True)
class _Session:
    session: Any
    names: tuple[str, ...]
    device: str
    placement: dict[str, int]
    # Opening compiles, and only both together can be timed.
    compile_ns: int | None = None

    def prepare(self, feeds: Feeds) -> None:
        """Nothing: opening compiled for every shape."""

    def stage(self, feeds: Feeds) -> Callable[[], None]:
        """See `bench.runtimes.seam.Staging`."""
        values = _package().OrtValue
        binding = self.session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, values.ortvalue_from_numpy(array, self.device, 0))
        for name in self.names:
            binding.bind_output(name, self.device)
        binding.synchronize_inputs()

        def run() -> None:
            try:
                self.session.run_with_iobinding(binding)
            except open_errors() as e:
                raise InputError(
                    f"onnxruntime cannot run the model on this sample: {first_line(e)}"
                ) from e
            binding.synchronize_outputs()

        return run

    def run(self, feeds: Feeds) -> Feeds:
        try:
            return dict(zip(self.names, self.session.run(None, feeds), strict=True))
        except open_errors() as e:
            raise InputError(
                f"onnxruntime cannot run the model on this sample: {first_line(e)}"
            ) from e

    def close(self) -> None:
        self.session = None


def _provider_options(settings: Settings) -> dict[str, str]:
    if settings.device != "cuda":
        return {}
    # The default would compute FP32 models in TF32. The search for the fastest convolution is left
    # at its default, EXHAUSTIVE: it belongs to the first inference, which is not counted.
    return {"use_tf32": str(int(settings.precision == "tf32"))}


def _placement(session: Any) -> dict[str, int]:
    """Number of nodes by execution provider; empty if it was not recorded, or cannot be."""
    read = getattr(session, "get_provider_graph_assignment_info", None)
    if read is None:
        return {}
    try:
        parts = read()
    except open_errors():
        return {}
    found: dict[str, int] = {}
    for part in parts:
        found[part.ep_name] = found.get(part.ep_name, 0) + len(part.get_nodes())
    return found


def _halved(path: Path) -> bytes:
    """The model with float16 inside; inputs and outputs keep their types."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        # Of each constant that float16 cannot hold exactly.
        warnings.simplefilter("ignore")
        half = convert_float_to_float16(onnx.load(str(path)), keep_io_types=True)
    return bytes(half.SerializeToString())


def _unshared(path: Path) -> str | bytes:
    """The model with a constant of its own for each node that multiplies by signed codes.

    Exact mode makes such codes unsigned under a name that follows from theirs, and fails at the
    second node that reads them.
    """
    import onnx

    def shared(model: Any) -> Iterator[tuple[Any, int]]:
        """All but the first of the nodes that read the same codes, and at which input."""
        codes = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8}
        taken: set[str] = set()
        for node in model.graph.node:
            place = _CODES_AT.get(node.op_type, 0)
            if place < len(node.input) and (name := node.input[place]) in codes:
                if name in taken:
                    yield node, place
                taken.add(name)

    if not any(shared(without_weights(path))):
        return str(path)
    model = onnx.load(str(path))
    held = {t.name: t for t in model.graph.initializer}
    for number, (node, place) in enumerate(list(shared(model))):
        copy = model.graph.initializer.add()
        copy.CopyFrom(held[node.input[place]])
        copy.name = node.input[place] = f"{node.input[place]} ({number})"
    return bytes(model.SerializeToString())


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
        if stems_from_interrupt(e):
            raise KeyboardInterrupt from e
        raise UnfitError(
            "the runtime `onnxruntime` needs the package onnxruntime: pip install onnxruntime"
        ) from e
    return onnxruntime


def refusal(shown: object, error: Exception) -> InputError | UnfitError:
    """What to raise where onnxruntime does not open a model.

    Args:
        shown: The model, as the user called it.
        error: What onnxruntime raised.
    """
    text = first_line(error)
    if found := _LOCALE.search(text):
        return UnfitError(
            f"{shown}: its StringNormalizer wants the locale {found[1]}, which this machine lacks. "
            "Install it (on Debian: the package locales, then dpkg-reconfigure locales), there "
            "and where the model is served, or export it with the locale C."
        )
    if found := _VERSION.search(text):
        return InputError(
            f"{shown}: has IR version {found[1]}, and this onnxruntime reads up to {found[2]}. "
            f"vnnify convert writes a file that it reads; or set ir_version to {found[2]} before "
            "onnx.save."
        )
    remedy = ""
    if "Could not find an implementation" in text:
        remedy = ". It has no kernel for these types: export the model in float32"
    return InputError(f"{shown}: onnxruntime refuses the model: {text}{remedy}")


def first_line(error: Exception) -> str:
    """What onnxruntime says, without its error codes and the path of a file that is ours."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return _PREAMBLE.sub("", text)[:400]
