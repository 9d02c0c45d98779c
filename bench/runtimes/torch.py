"""PyTorch on CPU and GPU: `.pt2` programs, operator by operator or compiled by Inductor.

This is what people have before they export: the same operators that the trained module calls. The
program is opened from a file and not made by the user's Python, so that a fresh process can open it
and nothing but the model is timed.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from bench.errors import InputError, UnfitError, describe_error
from bench.models import Array, Feeds
from bench.programs import (
    Program,
    import_torch,
    leaves,
    load_program,
    make_module,
    output_names,
    quiet,
)
from bench.runtimes.seam import Session, Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Torch:
    """Opens `.pt2` programs in PyTorch.

    Attributes:
        name: Of the runtime.
        compiled: Compile with Inductor, weights frozen into the code; a C++ compiler is needed.
    """

    name: str
    compiled: bool
    suffixes: tuple[str, ...] = (".pt2",)
    devices: tuple[str, ...] = ("cpu", "cuda")

    def version(self) -> str:
        """Version of the installed torch."""
        return str(import_torch().__version__)

    def open(self, path: Path, settings: Settings) -> Session:
        """Load a program; see `bench.runtimes.seam.Runtime.open`.

        It is taken as safe: `bench.programs.read_program` has looked at it, or it is trusted.

        Raises:
            UnfitError: Also without a C++ compiler where one is needed.
        """
        torch = import_torch()
        if settings.device == "cuda" and not torch.cuda.is_available():
            raise UnfitError(
                f"this torch ({torch.__version__}) sees no GPU. Install a CUDA build of torch and "
                "the NVIDIA driver, or use --device cpu."
            )
        if self.compiled:
            _require_compiler()
        _set_threads(torch, settings.threads)
        _set_tf32(torch, settings.precision)
        program = load_program(path, str(path))
        with quiet():
            exported = program.exported
            if settings.device != "cpu":
                from torch.export.passes import move_to_device_pass

                exported = move_to_device_pass(exported, settings.device)
            call = make_module(exported, str(path))
            weights = {v.device.type for v in call.state_dict().values()}
            if self.compiled:
                import torch._inductor.config as inductor

                inductor.freezing = settings.optimize == "all"
                call = torch.compile(call, backend="inductor", dynamic=False)
        device = weights.pop() if len(weights) == 1 else settings.device
        return _Session(torch, program, call, settings, device)


@dataclass(slots=True)
class _Session:
    torch: Any
    program: Program
    call: Any
    settings: Settings
    device: str
    compile_ns: int | None = None
    placement: dict[str, int] = field(default_factory=dict)

    def prepare(self, feeds: Feeds) -> None:
        """Inductor compiles for the shapes of its first call; eager has nothing to do."""
        if not hasattr(self.call, "_orig_mod"):
            return
        start = perf_counter_ns()
        with quiet():
            self.run(feeds)
        self.compile_ns = perf_counter_ns() - start

    def run(self, feeds: Feeds) -> Feeds:
        self._check(feeds)
        tensors = [self._tensor(feeds[s.name]) for s in self.program.inputs]
        if self.settings.device != "cpu":
            tensors = [t.to(self.settings.device) for t in tensors]
        outputs = self._call(tensors)
        # Copying to the host waits for the GPU.
        arrays = [_array(t, self.torch) for _, t in outputs]
        names: Sequence[str] = self.program.outputs
        if len(names) != len(arrays):
            names = output_names(outputs, [s.name for s in self.program.inputs])
        return dict(zip(names, arrays, strict=True))

    def stage(self, feeds: Feeds) -> Callable[[], None]:
        """See `bench.runtimes.seam.Staging`."""
        self._check(feeds)
        device = self.settings.device
        tensors = [self._tensor(feeds[s.name]).to(device) for s in self.program.inputs]
        wait = self.torch.cuda.synchronize if device == "cuda" else (lambda: None)

        def run() -> None:
            self._call(tensors)
            wait()

        return run

    def close(self) -> None:
        self.call = None

    def _call(self, tensors: list[Any]) -> list[Any]:
        torch = self.torch
        half = (
            torch.autocast(self.settings.device, dtype=torch.float16)
            if self.settings.precision == "fp16"
            else contextlib.nullcontext()
        )
        args, kwargs = self.program.arrange(tensors)
        try:
            with torch.inference_mode(), half:
                return list(leaves(self.call(*args, **kwargs), torch))
        except Exception as e:
            raise InputError(
                f"torch cannot run the program on this sample: {describe_error(e)}"
            ) from e

    def _tensor(self, array: Array) -> Any:
        shared = array.flags.writeable and not self.program.changes_inputs
        return self.torch.from_numpy(array) if shared else self.torch.tensor(array)

    def _check(self, feeds: Feeds) -> None:
        takes = {s.name: s.dtype for s in self.program.inputs}
        if feeds.keys() != takes.keys():
            raise InputError(
                f"the sample has inputs {sorted(feeds)}, the model takes {sorted(takes)}."
            )
        for name, array in feeds.items():
            if str(array.dtype) != takes[name]:
                raise InputError(
                    f"input {name!r} has type {array.dtype}, the model takes {takes[name]}."
                )


def _array(tensor: Any, torch: Any) -> Array:
    # Half precision of torch's own has no counterpart in numpy.
    host = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    array: Array = host.cpu().numpy()
    return array


def _set_threads(torch: Any, threads: int) -> None:
    torch.set_num_threads(threads)
    with contextlib.suppress(RuntimeError):  # Only settable once; it is for graphs with forks.
        torch.set_num_interop_threads(1)


def _set_tf32(torch: Any, precision: str) -> None:
    """TF32 is torch's default for convolutions and not for products: both follow what was asked."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def _require_compiler() -> None:
    asked = os.environ.get("CXX")
    for name in [asked] if asked else ["g++", "clang++", "c++"]:
        if shutil.which(name):
            return
    raise UnfitError(
        f"torch.compile needs a C++ compiler, and {asked or 'none of g++, clang++, c++'} is not "
        "here. Install one (Debian, Ubuntu: apt-get install g++), or use --runtime torch."
    )
