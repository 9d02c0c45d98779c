"""The seam to whatever runs a model: open a file, run feeds. Two protocols and their settings."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from bench.models import Feeds

Precision: TypeAlias = Literal["fp32", "tf32", "fp16"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a model is opened.

    Attributes:
        threads: Threads inside one inference. Always explicit: no runtime's default honours a CPU
            quota.
        device: "cpu" or "cuda".
        exact: Compute INT8 products as VNNI does, without 16-bit saturation, on any x86 host.
            Slower where the host saturates, free where it does not.
        precision: Of float arithmetic on a GPU: "fp32", "tf32" (products of 10-bit mantissas) or
            "fp16". The CPU always computes in the file's own types.
        streams: Inferences that are going to run at once, each with `threads` of its own.
        optimize: Graph optimizations of the runtime: "all" for serving, "none" for reading
            intermediate tensors.
        packed: Let kernels keep copies of the weights in an order of their own, as for serving.
            Without, large models open at once and take half the memory, and may run slower.
        arena: Let the runtime keep memory for the next tensors and runs, as for serving. Without,
            what no node reads any more is given back at once.
    """

    threads: int
    device: str = "cpu"
    exact: bool = False
    precision: Precision = "fp32"
    streams: int = 1
    optimize: Literal["all", "none"] = "all"
    packed: bool = True
    arena: bool = True


class Session(Protocol):
    """An open model. `run` is safe to call from several threads."""

    device: str
    """The device that really runs it, asked of the runtime after opening."""

    compile_ns: int | None
    """What compiling took, of opening and preparing; None where the runtime cannot tell."""

    placement: dict[str, int]
    """Nodes by where they run, as the runtime tells it; empty where it does not."""

    def prepare(self, feeds: Feeds) -> None:
        """Compile for inputs of these shapes, where opening the file could not do it."""
        ...

    def run(self, feeds: Feeds) -> Feeds:
        """Outputs by name, once they are in host memory."""
        ...

    def close(self) -> None:
        """Give back its memory."""
        ...


class Staging(Session, Protocol):
    """A session that can leave inputs and outputs on the device."""

    def stage(self, feeds: Feeds) -> Callable[[], None]:
        """Copy inputs to the device; the call that comes back runs there and waits for the end."""
        ...


class Runtime(Protocol):
    """Something that opens models."""

    @property
    def name(self) -> str:
        """Its key in `RUNTIMES`."""
        ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Ends of the names of the files that it opens."""
        ...

    @property
    def devices(self) -> tuple[str, ...]:
        """Where it can run them."""
        ...

    def version(self) -> str:
        """Version of the package that runs.

        Raises:
            UnfitError: It is not installed; the message holds the pip command.
        """
        ...

    def open(self, path: Path, settings: Settings) -> Session:
        """Load and compile a model.

        Raises:
            UnfitError: The package or the device is missing.
            InputError: The runtime refuses the file.
        """
        ...
