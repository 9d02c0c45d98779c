"""The seam to whatever runs a model: open a file, run feeds. Two protocols and their settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from bench.models import Feeds


@dataclass(frozen=True, slots=True)
class Settings:
    """How a model is opened.

    Attributes:
        threads: Threads inside one inference. Always explicit: no runtime's default honours a CPU
            quota.
        device: "cpu" or "cuda".
        exact: Compute INT8 products as VNNI does, without 16-bit saturation, on any x86 host.
            Slower where the host saturates, free where it does not.
        optimize: Graph optimizations of the runtime: "all" for serving, "none" for reading
            intermediate tensors.
    """

    threads: int
    device: str = "cpu"
    exact: bool = False
    optimize: Literal["all", "none"] = "all"


class Session(Protocol):
    """An open model. `run` is safe to call from several threads."""

    device: str
    """The device that really runs it, asked of the runtime after opening."""

    def run(self, feeds: Feeds) -> Feeds:
        """Outputs by name, once they are in host memory."""
        ...

    def close(self) -> None:
        """Give back its memory."""
        ...


class Runtime(Protocol):
    """Something that opens models."""

    name: str

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
