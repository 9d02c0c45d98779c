import os
from dataclasses import replace
from pathlib import Path

import pytest

from bench.disturbance import Disturbance, between, disturbance


def _put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_disturbance_reads_steal_and_throttling(tmp_path: Path) -> None:
    files = {
        "proc/stat": "cpu  1 2 3 4 5 6 7 8 100 100\ncpu0 9 9\n",
        "proc/self/cgroup": "0::/",
        "sys/fs/cgroup/cpu.stat": "nr_throttled 3\n",
        "proc/self/task/11/schedstat": "500 70 9\n",
        "proc/self/task/12/schedstat": "600 0 9\n",
        "proc/self/task/13/schedstat": "",
    }
    found = disturbance(_put(tmp_path, files))
    assert found.own_ns > 0
    assert found.waited_ns == {"11": 70, "12": 0}
    found = replace(found, own_ns=0, waited_ns={})
    # Guest time (the last two columns) is contained in user time already.
    assert found == Disturbance(36, busy_ticks=19, steal_ticks=8, throttled_periods=3)


def test_disturbance_of_an_unknown_system_is_nothing(tmp_path: Path) -> None:
    found = disturbance(tmp_path)
    assert replace(found, own_ns=0) == Disturbance(0, 0, 0, 0)
    taken = between(found, replace(found, own_ns=found.own_ns + 10**9))
    assert (taken.steal_share, taken.others_share, taken.held_up_share) == (0, 0, 0)


S = 10**9
TICKS = os.sysconf("SC_CLK_TCK")
BEFORE = Disturbance(1000, 500, 20, 2, own_ns=S, waited_ns={"1": 5 * S, "ended": S})


def later(total_s: float, busy_s: float, *, steal_s: float = 0, **changes: object) -> Disturbance:
    """After so many seconds of CPU time of all CPUs, and one of this process's."""
    total, busy, steal = (round(s * TICKS) for s in (total_s, busy_s, steal_s))
    found = Disturbance(1000 + total, 500 + busy, 20 + steal, 5, 2 * S, {"1": 5 * S})
    return replace(found, **changes)  # type: ignore[arg-type]


def test_what_others_took_is_told_by_the_share_of_the_machine() -> None:
    found = between(BEFORE, later(4, 3, steal_s=0.5))
    assert found.others_share == pytest.approx(2 / 4)
    assert found.steal_share == pytest.approx(0.5 / 4)
    assert found.throttled_periods == 3


def test_who_waits_while_others_run_is_held_up() -> None:
    # One second ran, one waited; a thread that is new counts from its start.
    found = between(BEFORE, later(4, 3, waited_ns={"1": 5.5 * S, "new": 0.5 * S}))
    assert found.held_up_share == pytest.approx(0.5)


def test_others_on_other_cpus_hold_nobody_up() -> None:
    assert between(BEFORE, later(4, 3)).held_up_share == 0


def test_threads_that_wait_for_each_other_are_not_held_up() -> None:
    assert between(BEFORE, later(2, 1, waited_ns={"1": 9 * S})).held_up_share == pytest.approx(0)
    found = between(BEFORE, later(2, 1.5, waited_ns={"1": 9 * S}))
    assert found.held_up_share == pytest.approx(0.5 / 1.5)


def test_what_the_hypervisor_took_held_up_whatever_ran() -> None:
    found = between(BEFORE, later(2, 1, steal_s=0.25))
    assert found.held_up_share == pytest.approx(0.2)
    found = between(BEFORE, later(4, 2, steal_s=0.5, waited_ns={"1": 6 * S}))
    assert found.held_up_share == pytest.approx(1 - 0.5 * 0.8)
