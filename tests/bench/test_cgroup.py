from pathlib import Path

import pytest

from bench import cgroup


def _put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


V2 = {"proc/self/cgroup": "0::/a/b"}
V1 = {"proc/self/cgroup": "4:memory:/m\n3:cpu,cpuacct:/c/d\n0::/"}


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({**V2, "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, None),
        ({**V2, "sys/fs/cgroup/a/b/cpu.max": "150000 100000"}, 1.5),
        (
            {
                **V2,
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
                "sys/fs/cgroup/a/cpu.max": "50000 100000",
            },
            0.5,
        ),
        (
            {
                **V1,
                "sys/fs/cgroup/cpu,cpuacct/c/d/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu,cpuacct/c/d/cpu.cfs_period_us": "100000",
            },
            None,
        ),
        (
            {
                **V1,
                "sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_quota_us": "250000",
                "sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
    ],
)
def test_the_tightest_quota_of_all_groups_counts(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    assert cgroup.cpu_quota(_put(tmp_path, files)) == quota


def test_a_container_sees_its_own_group_at_the_root(tmp_path: Path) -> None:
    root = _put(
        tmp_path,
        {"proc/self/cgroup": "0::/../outside", "sys/fs/cgroup/cpu.max": "100000 100000"},
    )
    assert cgroup.cpu_quota(root) == 1.0


def test_counters_are_read_from_the_innermost_group(tmp_path: Path) -> None:
    root = _put(
        tmp_path,
        {
            **V2,
            "sys/fs/cgroup/a/b/cpu.stat": "usage_usec 5\nnr_throttled 7",
            "sys/fs/cgroup/a/cpu.stat": "nr_throttled 100",
            "sys/fs/cgroup/a/b/memory.events": "oom 3\noom_kill 2",
        },
    )
    assert cgroup.throttled_periods(root) == 7
    assert cgroup.oom_kills(root) == 2


def test_memory_limit_of_either_version(tmp_path: Path) -> None:
    v2 = _put(tmp_path / "2", {**V2, "sys/fs/cgroup/a/memory.max": "1000"})
    v1 = _put(tmp_path / "1", {**V1, "sys/fs/cgroup/memory/m/memory.limit_in_bytes": "2000"})
    free = _put(tmp_path / "0", {**V2, "sys/fs/cgroup/a/memory.max": "max"})
    assert cgroup.memory_limit_bytes(v2) == 1000
    assert cgroup.memory_limit_bytes(v1) == 2000
    assert cgroup.memory_limit_bytes(free) is None
