import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import InputError
from bench.models import Feeds
from bench.percentiles import P99_SAMPLES
from bench.serving import arrivals_ns, closed_loop, open_loop
from tests.fakes import MS

FEEDS: list[Feeds] = [{"x": np.zeros(1)}]


class Sleeping:
    """Takes as long as told, whatever else the machine does; counts who is in it."""

    device = "cpu"
    compile_ns = None
    placement: dict[str, int] = {}  # noqa: RUF012 - never changed

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.inside = 0
        self.most = 0
        self.lock = threading.Lock()

    def prepare(self, feeds: Feeds) -> None: ...

    def run(self, feeds: Feeds) -> Feeds:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        time.sleep(self.seconds)
        with self.lock:
            self.inside -= 1
        return feeds

    def close(self) -> None: ...


def test_a_closed_loop_keeps_every_stream_busy() -> None:
    session = Sleeping(0.005)
    span, samples, left = closed_loop(session, FEEDS, 3, 0.1)
    assert session.most == 3
    assert left == 0
    assert span >= 100 * MS
    assert min(samples) >= 5 * MS


def test_latency_counts_from_when_a_request_was_due() -> None:
    # Ten requests are due at once, one stream takes 10 ms for each: the last waits for nine others.
    _, samples, left = open_loop(Sleeping(0.01), FEEDS, 1, [0] * 10, 10**10)
    assert left == 0
    assert samples == sorted(samples)
    assert samples[-1] >= 10 * 10 * MS


def test_no_request_is_taken_before_it_is_due() -> None:
    span, samples, _ = open_loop(Sleeping(0.001), FEEDS, 4, [0, 30 * MS, 60 * MS], 10**9)
    assert len(samples) == 3
    assert span >= 61 * MS


def test_what_waits_too_long_is_counted_and_not_forgotten() -> None:
    _, samples, left = open_loop(Sleeping(0.05), FEEDS, 1, [0] * 50, 60 * MS)
    assert left > 0
    assert len(samples) + left == 50


def test_an_error_in_a_stream_is_an_error() -> None:
    class Broken(Sleeping):
        def run(self, feeds: Feeds) -> Feeds:
            raise InputError("broken")

    with pytest.raises(InputError, match="broken"):
        closed_loop(Broken(0.0), FEEDS, 2, 0.01)


@given(st.floats(1, 10_000), st.floats(0.01, 5), st.integers(0, 9))
def test_arrivals_are_drawn_up_front(rate: float, seconds: float, seed: int) -> None:
    due = arrivals_ns(rate, seconds, seed)
    assert due == sorted(due)
    assert len(due) >= max(P99_SAMPLES, rate * seconds)
    assert due == arrivals_ns(rate, seconds, seed)
    # 662 exponential gaps have a mean within 20 % of theirs, but for one draw in a million.
    assert due[-1] / len(due) == pytest.approx(1e9 / rate, rel=0.2)
