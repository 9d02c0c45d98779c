"""How other work moves the ratio of two models: `python -m tests.benchmarks.busy FP32 INT8`.

Both run beside more and more processes that never sleep. Printed is what vnnify measures of it, and
the ratio with the interval that allows for it, which has to hold the ratio of a machine of its own.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.compare import compare
from bench.latency import Variant, measure
from bench.machine import available_threads
from bench.models import read_model, synthetic_feeds
from bench.runtimes import RUNTIMES

_ROUNDS, _SECONDS = 3, 0.2


@contextmanager
def _beside(count: int) -> Iterator[None]:
    """So many processes that take all the CPU time they can get."""
    spinning = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spinning) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def main(arguments: Sequence[str]) -> None:
    """Print one row per number of processes and runtime."""
    models = [read_model(Path(a)) for a in arguments]
    threads = available_threads()
    feeds = synthetic_feeds(models[0], batch=1, seed=0, count=4)
    sys.stdout.write("| Spinning | Runtime | FP32 held up | INT8 held up | Ratio | Interval |\n")
    sys.stdout.write("| ---: | --- | ---: | ---: | ---: | --- |\n")
    for count in range(2 * threads + 1):
        variants = [
            Variant(f"{kind} {name}", model, name, "cpu", threads, 1)
            for name, runtime in RUNTIMES.items()
            if ".onnx" in runtime.suffixes
            for kind, model in zip(("FP32", "INT8"), models, strict=True)
        ]
        with _beside(count):
            found = measure(variants, feeds, rounds=_ROUNDS, seconds_per_round=_SECONDS)
        for fp32, int8 in zip(found[::2], found[1::2], strict=True):
            ratio = compare(fp32, int8)
            sys.stdout.write(
                f"| {count} | {fp32.variant.runtime} | {fp32.held_up_share:.0%} | "
                f"{int8.held_up_share:.0%} | {ratio.ratio:.2f} | {ratio.low:.2f} to "
                f"{ratio.high:.2f} |\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
