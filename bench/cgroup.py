"""What the control groups of this process allow it, and did to it; versions 1 and 2.

A limit may stand on the process's own group or on any above it. Everything is read afresh: limits
change while processes run.
"""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def cpu_quota(root: Path = ROOT) -> float | None:
    """CPUs' worth of time that may be used; None if unlimited.

    Args:
        root: Where `/proc` and `/sys` are mounted; another one in tests.
    """
    found = []
    for folder in _folders("cpu", root):
        v2 = text_of(folder / "cpu.max").split()
        if len(v2) == 2 and v2[0].isdigit():
            found.append(int(v2[0]) / int(v2[1]))
        v1 = _number(folder / "cpu.cfs_quota_us")  # -1: unlimited
        period = _number(folder / "cpu.cfs_period_us")
        if v1 > 0 and period > 0:
            found.append(v1 / period)
    return min(found, default=None)


def throttled_periods(root: Path = ROOT) -> int:
    """How often the CPU quota has stopped the group."""
    return _counter("cpu", ("cpu.stat",), "nr_throttled", root)


def memory_limit_bytes(root: Path = ROOT) -> int | None:
    """Memory that may be used; None if unlimited (version 1 then says some 9e18)."""
    files = ("memory.max", "memory.limit_in_bytes")
    found = [_number(folder / file) for folder in _folders("memory", root) for file in files]
    return min((n for n in found if n > 0), default=None)


def oom_kills(root: Path = ROOT) -> int:
    """How often the kernel has ended a process of the group for want of memory."""
    return _counter("memory", ("memory.events", "memory.oom_control"), "oom_kill", root)


def _counter(controller: str, files: tuple[str, ...], key: str, root: Path) -> int:
    """A counter of the process's own group, which includes those below it."""
    for folder in _folders(controller, root):
        for file in files:
            for line in text_of(folder / file).splitlines():
                name, _, value = line.partition(" ")
                if name == key and value.isdigit():
                    return int(value)
    return 0


def _folders(controller: str, root: Path) -> Iterator[Path]:
    """The process's group and those above it, innermost first."""
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        parts = [p for p in path.split("/") if p not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            folder = mount.joinpath(*parts[:depth])
            if folder.is_dir():
                yield folder


def text_of(path: Path) -> str:
    """What a file of the kernel says; nothing where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int:
    try:
        return int(text_of(path))
    except ValueError:
        return 0
