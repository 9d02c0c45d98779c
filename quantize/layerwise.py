"""Work of numpy on some layers side by side, with no more threads than there may be.

A BLAS takes every core of the machine by itself, whatever share of it the process may use, and its
threads wait for each other in every product. Layers do not have to.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from quantize.graphs import give_back

# At once: each has its rows and a few copies of its weights in memory.
_LAYERS = 4


def side_by_side(jobs: Iterable[Callable[[], object]], threads: int) -> None:
    """Do every job; what it finds it keeps itself.

    Args:
        jobs: Each is called once, by one of several threads; drawn here, a few ahead.
        threads: In all, those of the BLAS among them.
    """
    from threadpoolctl import threadpool_limits

    workers = max(min(threads, _LAYERS), 1)
    each = max(threads // workers, 1)
    waiting: set[Future[object]] = set()
    with threadpool_limits(each, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        # One that waits holds its weights already.
        for job in jobs:
            if len(waiting) > workers:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for ended in done:
                    ended.result()
            waiting.add(pool.submit(job))
        for ended in waiting:
            ended.result()
    give_back()
