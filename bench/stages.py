"""What stages of the work cost, and when this process began."""

import contextlib
import os
import re
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage of the work cost.

    Attributes:
        name: Of the stage.
        seconds: How long it took.
        peak_rss_bytes: The most memory that the process held during it; over the process's whole
            life where the kernel does not let the mark be reset.
    """

    name: str
    seconds: float
    peak_rss_bytes: int


@dataclass(slots=True)
class StageWatch:
    """Becomes complete when its `stage` ends."""

    result: Stage | None = None


@contextlib.contextmanager
def stage(name: str) -> Iterator[StageWatch]:
    """Measure time and memory of the enclosed code; `watch.result` holds them afterwards."""
    watch = StageWatch()
    reset_peak_rss()
    start = perf_counter_ns()
    try:
        yield watch
    finally:
        watch.result = Stage(name, (perf_counter_ns() - start) / 1e9, peak_rss_bytes())


def reset_peak_rss() -> None:
    """Start a new high-water mark of resident memory, if the kernel allows (Linux, proc(5))."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss_bytes() -> int:
    """The most resident memory of this process since `reset_peak_rss`, or ever."""
    # Not ru_maxrss first: across fork and exec it remembers the memory of the parent.
    with contextlib.suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def started_ns() -> int:
    """When the kernel made this process, on the clock of `perf_counter_ns`; see proc_pid_stat(5).

    It is exact to a tick, usually 10 ms, and later than any import can tell.
    """
    now = perf_counter_ns()
    try:
        # Field 22; the second one, a name in brackets, may hold blanks itself.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return now
    return now - int(max(age_s, 0.0) * 1e9)
