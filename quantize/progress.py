"""What a person sees while a job runs: a live line on a terminal, plain lines anywhere else."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TextIO

from bench.escape import clean
from quantize.job import Progress

_STAGES = {
    "read": "reading model and data",
    "prepare": "preparing the FP32 graph",
    "baseline": "scoring FP32",
    "calibrate": "calibrating",
    "first model": "making a first model",
    "even out": "evening out channels",
    "search": "searching",
    "verify": "verifying",
    "benchmark": "timing",
    "prove": "proving on emulated CPUs, which takes minutes",
}
_EVERY_S, _SHOWN_EVERY_S = 5.0, 0.1


@contextmanager
def progress_for(stream: TextIO) -> Iterator[Progress]:
    """A progress that fits the stream."""
    if not stream.isatty():
        yield _Plain(stream)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Live

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Live(*columns, console=Console(file=stream), transient=True) as live:
        yield _Terminal(live)


def tell_of_interrupt(stream: TextIO) -> None:
    """Answer a person at once, from a handler, which may have cut into a write of the stream."""
    text = "stopping: the best so far is verified and kept; once more ends the run without it"
    os.write(stream.fileno(), f"\n  {text}\n".encode())


class _Plain:
    def __init__(self, stream: TextIO) -> None:
        self.stream, self.name, self.last = stream, "", perf_counter()

    def begin(self, name: str) -> None:
        self.name = _STAGES.get(name, name)
        self._line(f"{self.name} …")

    def step(self, done: int, total: int) -> None:
        if perf_counter() - self.last >= _EVERY_S:
            self._line(f"{self.name}: {done:,} of {total:,}")

    def say(self, text: str) -> None:
        self._line(text, indent="  ")

    def _line(self, text: str, indent: str = "") -> None:
        self.last = perf_counter()
        self.stream.write(f"{indent}{clean(text)}\n")
        self.stream.flush()


class _Terminal:
    def __init__(self, live: object) -> None:
        from rich.progress import Progress as Live

        assert isinstance(live, Live)
        self.live, self.last = live, 0.0
        self.task = live.add_task("", total=None)

    def begin(self, name: str) -> None:
        self.last = 0.0
        # A reset keeps the old total, and so would an update to None: a new task has none.
        self.live.remove_task(self.task)
        self.task = self.live.add_task(_STAGES.get(name, name), total=None)

    def step(self, done: int, total: int) -> None:
        # An update costs more than the sample that it is about, and nobody sees that many.
        now = perf_counter()
        if now - self.last >= _SHOWN_EVERY_S or done == total:
            self.last = now
            self.live.update(self.task, completed=done, total=total)

    def say(self, text: str) -> None:
        self.live.console.print(f"  {clean(text)}", markup=False, highlight=False)
