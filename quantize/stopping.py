"""What Ctrl-C does to a run: it ends one that has nothing to keep, and only the search of another.

The process that a person talks to hands the first SIGINT on and ends the run on the second; see
`bench.isolate.run_isolated`.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Whether a person asked the run to come to its end.

    Attributes:
        asked: Once true, nothing new is searched; what was found is verified and published.
        armed: Whether there is something to publish; before, the run simply ends.
    """

    def __init__(self) -> None:
        self.asked = False
        self.armed = False

    def arm(self) -> None:
        """From now on an interrupt ends the search and not the run."""
        self.armed = True

    def ask(self) -> None:
        """Come to an end.

        Raises:
            KeyboardInterrupt: There is nothing to keep yet.
        """
        self.asked = True
        if not self.armed:
            raise KeyboardInterrupt


@contextmanager
def listening(interrupt: Interrupt) -> Iterator[None]:
    """Have SIGINT ask `interrupt`; only a process's main thread hears signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def heard(_number: int, _frame: FrameType | None) -> None:
        interrupt.ask()

    before = signal.signal(signal.SIGINT, heard)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
