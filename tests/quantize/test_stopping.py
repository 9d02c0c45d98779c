"""What an interrupt does before and after there is something to keep."""

import signal
import threading

import pytest

from quantize.stopping import Interrupt, listening


def test_with_nothing_to_keep_the_run_ends() -> None:
    with pytest.raises(KeyboardInterrupt):
        Interrupt().ask()


def test_with_something_to_keep_it_is_only_asked() -> None:
    told: list[bool] = []
    interrupt = Interrupt(lambda: told.append(True))
    interrupt.arm()
    assert not interrupt.asked
    interrupt.ask()
    assert interrupt.asked
    assert told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_while_somebody_listens(number: signal.Signals) -> None:
    interrupt = Interrupt()
    before = signal.getsignal(number)
    with listening(interrupt):
        interrupt.arm()
        signal.raise_signal(number)
        assert interrupt.asked
    assert signal.getsignal(number) is before


def test_other_threads_do_not_listen() -> None:
    before = signal.getsignal(signal.SIGINT)
    heard = []

    def work() -> None:
        with listening(Interrupt()):
            heard.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == [before]
