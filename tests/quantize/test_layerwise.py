"""Layers side by side: all done, by as many threads as there may be."""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from threadpoolctl import threadpool_info

from quantize.layerwise import side_by_side


def _blas_threads() -> set[int]:
    return {p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"}


def test_every_job_is_done_and_no_product_takes_more_threads() -> None:
    before, done, inside, both = _blas_threads(), list[int](), set[int](), threading.Barrier(2)

    def job(number: int) -> None:
        if number < 2:
            # With one thread for all, nobody would come.
            both.wait(timeout=20)
        inside.update(_blas_threads())
        done.append(number)

    side_by_side([partial(job, i) for i in range(9)], 2)
    assert sorted(done) == list(range(9))
    assert inside <= {1}
    assert _blas_threads() == before


def test_a_long_job_keeps_nobody_waiting() -> None:
    others = threading.Event()
    done: list[int] = []

    def long() -> None:
        assert others.wait(timeout=20)

    def short(number: int) -> None:
        done.append(number)
        if len(done) == 8:
            others.set()

    side_by_side([long, *(partial(short, i) for i in range(8))], 2)
    assert sorted(done) == list(range(8))


def test_what_a_job_raises_ends_the_rest() -> None:
    done: list[int] = []

    def broken() -> None:
        raise ValueError("no")

    def slow() -> None:
        time.sleep(0.01)
        done.append(1)

    with pytest.raises(ValueError, match="no"):
        side_by_side([broken, *[slow] * 1000], 1)
    assert len(done) < 1000


def test_a_job_is_drawn_only_when_its_turn_is_near() -> None:
    # Each that was drawn may hold a layer's weights.
    drawn, done, ahead = list[int](), list[int](), list[int]()

    def jobs() -> Iterator[Callable[[], object]]:
        for i in range(20):
            drawn.append(i)
            ahead.append(len(drawn) - len(done))
            yield partial(done.append, i)

    side_by_side(jobs(), 2)
    assert len(done) == 20
    assert max(ahead) <= 5
