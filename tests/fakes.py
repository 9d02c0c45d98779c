"""Stand-ins for what is slow, random or missing: a clock, a session, a runtime, a person."""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest

from bench.models import Feeds
from bench.runtimes import Session, Settings
from quantize.stopping import Interrupt

MS = 1_000_000


class FakeClock:
    """Stands still until told to advance; nanoseconds."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, ns: int) -> None:
        self.now_ns += ns


@dataclass
class FakeSession:
    """Takes as long as `durations_ns` says (the last one for ever), and notes what it was fed."""

    clock: FakeClock
    durations_ns: Sequence[int]
    device: str = "cpu"
    fed: list[Feeds] = field(default_factory=list)
    closed: bool = False
    compile_ns: int | None = None
    placement: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._left: Iterator[int] = chain(self.durations_ns, repeat(self.durations_ns[-1]))

    def run(self, feeds: Feeds) -> Feeds:
        self.fed.append(feeds)
        self.clock.advance(next(self._left))
        return feeds

    def prepare(self, feeds: Feeds) -> None:
        """Nothing to compile."""

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeRuntime:
    """Opens the same session for every file, and notes the settings."""

    session: Session
    name: str = "fake"
    suffixes: tuple[str, ...] = (".onnx",)
    devices: tuple[str, ...] = ("cpu",)
    opened: list[tuple[Path, Settings]] = field(default_factory=list)

    def version(self) -> str:
        return "1.2.3"

    def open(self, path: Path, settings: Settings) -> Session:
        self.opened.append((path, settings))
        return self.session


def fail_at(monkeypatch: pytest.MonkeyPatch, step: int, code: int = errno.EIO) -> None:
    """Make the `step`-th call that changes the disk fail, and later ones work."""
    count = iter(range(1_000_000))

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(count) == step:
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        return call

    for owner, name in (
        (os, "fsync"),
        (Path, "rename"),
        (Path, "replace"),
        (Path, "mkdir"),
        (Path, "open"),
    ):
        monkeypatch.setattr(owner, name, failing(getattr(owner, name)))


@dataclass
class Silent:
    """Progress that remembers what it is told."""

    stages: list[str] = field(default_factory=list)
    steps: list[tuple[str, int, int]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def begin(self, name: str) -> None:
        self.stages.append(name)

    def step(self, done: int, total: int) -> None:
        self.steps.append((self.stages[-1], done, total))

    def say(self, text: str) -> None:
        self.said.append(text)


@dataclass
class Ending(Silent):
    """Ends the run as if it were killed, at the first line that starts so."""

    at: str = ""
    interrupt: Interrupt | None = None

    def heard(self, text: str) -> None:
        if not text.startswith(self.at):
            return
        if self.interrupt is None:
            raise KeyboardInterrupt
        self.interrupt.ask()

    def begin(self, name: str) -> None:
        super().begin(name)
        self.heard(name)

    def say(self, text: str) -> None:
        super().say(text)
        self.heard(text)
