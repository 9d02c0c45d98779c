"""What others took from this machine while something was timed."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench import cgroup

_TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Counters of this machine and this process at one moment; `between` compares two of them.

    Attributes:
        total_ticks: CPU time of all CPUs since boot, idle included.
        busy_ticks: Of it, time in which any process ran here, this one included.
        steal_ticks: Of it, time in which the hypervisor ran somebody else.
        throttled_periods: How often the cgroup's quota stopped this process.
        own_ns: CPU time of this process.
        waited_ns: How long each of its threads was ready to run and had no CPU; empty where the
            kernel does not count that.
    """

    total_ticks: int
    busy_ticks: int
    steal_ticks: int
    throttled_periods: int
    own_ns: int = 0
    waited_ns: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Taken:
    """What others took between two moments; see `bench.rounds.Round`.

    Attributes:
        steal_share: Share of the CPU time of all CPUs that the hypervisor gave away.
        others_share: Share of it that other processes of this machine took.
        held_up_share: Of the time in which this process's threads were ready to run, the share in
            which others had their CPU.
        throttled_periods: How often the CPU quota stopped this process.
    """

    steal_share: float
    others_share: float
    held_up_share: float
    throttled_periods: int


def disturbance(root: Path = cgroup.ROOT) -> Disturbance:
    """Read the counters; see proc_stat(5), and sched-stats.rst of the kernel for `schedstat`."""
    # user nice system idle iowait irq softirq steal; guest time, after them, is part of user time.
    ticks = [int(t) for t in _first_line(root / "proc/stat").split()[1:9]]
    ticks += [0] * (8 - len(ticks))
    idle, steal = ticks[3] + ticks[4], ticks[7]
    total = sum(ticks)
    waited = {}
    for file in (root / "proc/self/task").glob("*/schedstat"):
        # A thread that ended meanwhile has no line any more.
        if len(fields := _first_line(file).split()) > 1:
            waited[file.parent.name] = int(fields[1])
    return Disturbance(
        total_ticks=total,
        busy_ticks=total - idle - steal,
        steal_ticks=steal,
        throttled_periods=cgroup.throttled_periods(root),
        own_ns=time.process_time_ns(),
        waited_ns=waited,
    )


def between(before: Disturbance, after: Disturbance) -> Taken:
    """What others took from the first to the second."""
    total = max(after.total_ticks - before.total_ticks, 1)
    busy, steal = after.busy_ticks - before.busy_ticks, after.steal_ticks - before.steal_ticks
    own_ns = max(after.own_ns - before.own_ns, 1)
    others = max(busy - own_ns / _TICK_NS, 0.0)
    waits_ns = sum(ns - before.waited_ns.get(t, 0) for t, ns in after.waited_ns.items())
    # Threads that outnumber the CPUs wait for each other, too.
    waited_ns = min(waits_ns, others * _TICK_NS)
    ran = own_ns / (own_ns + waited_ns) * (1 - steal / max(busy + steal, 1))
    return Taken(
        steal_share=steal / total,
        others_share=others / total,
        held_up_share=1 - ran,
        throttled_periods=after.throttled_periods - before.throttled_periods,
    )


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0]
    except OSError:
        return ""
