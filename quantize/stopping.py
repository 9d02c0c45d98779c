"""What Ctrl-C and SIGTERM do: they end a run without anything to keep, and the search of another.

The process that is told hands the first signal on and ends the run on the second; see
`bench.isolate.run_isolated`.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Whether a person asked the run to come to its end.

    Args:
        tell: Called, from the handler of the signal, where the run goes on to publish.

    Attributes:
        asked: Once true, nothing new is searched; what was found is verified and published.
        armed: Whether there is something to publish; before, the run simply ends.
    """

    def __init__(self, tell: Callable[[], None] = lambda: None) -> None:
        self.tell = tell
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
        self.tell()


@contextmanager
def listening(interrupt: Interrupt) -> Iterator[None]:
    """Have SIGINT and SIGTERM ask `interrupt`; only a process's main thread hears signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def heard(_number: int, _frame: FrameType | None) -> None:
        interrupt.ask()

    before = {n: signal.signal(n, heard) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, listener in before.items():
            signal.signal(number, listener)
