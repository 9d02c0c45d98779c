"""What others took from this machine while something was timed."""

from dataclasses import dataclass
from pathlib import Path

from bench import cgroup


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What others took from this machine, as counters since boot; subtract two of them.

    Attributes:
        total_ticks: CPU time of all CPUs, idle included.
        busy_ticks: Of it, time in which any process ran here, this one included.
        steal_ticks: Of it, time in which the hypervisor ran somebody else.
        throttled_periods: How often the cgroup's quota stopped this process.
    """

    total_ticks: int
    busy_ticks: int
    steal_ticks: int
    throttled_periods: int


def disturbance(root: Path = cgroup.ROOT) -> Disturbance:
    """Read the counters; see proc_stat(5)."""
    # user nice system idle iowait irq softirq steal; guest time, after them, is part of user time.
    ticks = [int(t) for t in _first_line(root / "proc/stat").split()[1:9]]
    ticks += [0] * (8 - len(ticks))
    idle, steal = ticks[3] + ticks[4], ticks[7]
    total = sum(ticks)
    return Disturbance(total, total - idle - steal, steal, cgroup.throttled_periods(root))


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0]
    except OSError:
        return ""
