"""Processes that start beside other work, before it is known what they shall measure.

    runtimes ─▶ one process after the other: Python, the runtime's package ─▶ waits
    ─▶ taken, opens a model, is timed (`bench.latency`)

Started when they are needed, they would have whoever waits for a measurement wait for imports.
"""

import contextlib
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence

from bench.isolate import Child, head_start

logger = logging.getLogger(__name__)

# To import a package; one that hangs keeps the next ones from starting no longer than this.
_PATIENCE_S = 30.0
# How long the end of all waits for such a one.
_LOOK_S = 0.05


class Ahead:
    """Processes that wait, by the runtime that each has imported."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Child]] = defaultdict(deque)
        self._enough, self._over = threading.Event(), threading.Event()

    def take(self, runtime: str) -> Child | None:
        """One that waits; None where there is none. No more are started from now on."""
        self._enough.set()
        waiting = self._waiting[runtime]
        while waiting and not self._over.is_set():
            child = waiting.popleft()
            # What ended one while there was no work for it is no failure of the work.
            if not child.has_ended():
                return child
        return None

    def start(self, runtimes: Sequence[str]) -> None:
        """Start one process per runtime, and end those that are left once that is asked for.

        They end with the thread that started them, so that one waits until then.
        """
        with contextlib.ExitStack() as held:
            for runtime in runtimes:
                if self._enough.is_set():
                    break
                try:
                    child = held.enter_context(head_start("bench.sampling:get_ready", runtime))
                except OSError as e:
                    logger.info("no process starts ahead: %s", e)
                    break
                self._until_ready(child)
                self._waiting[runtime].append(child)
            self._over.wait()

    def _until_ready(self, child: Child) -> None:
        """Wait for it as long as it may be needed."""
        end = time.monotonic() + _PATIENCE_S
        while not self._over.is_set() and time.monotonic() < end:
            if child.until_ready(_LOOK_S):
                break

    def end(self) -> None:
        """Start no more, and end those that are left."""
        self._enough.set()
        self._over.set()


@contextlib.contextmanager
def started_ahead(runtimes: Sequence[str]) -> Iterator[Ahead]:
    """Start processes one after the other, beside what the block does; they end with it.

    Args:
        runtimes: What each imports, in order.
    """
    ahead = Ahead()
    if not runtimes:
        yield ahead
        return
    thread = threading.Thread(target=ahead.start, args=(runtimes,), name="ahead")
    thread.start()
    try:
        yield ahead
    finally:
        ahead.end()
        thread.join()
