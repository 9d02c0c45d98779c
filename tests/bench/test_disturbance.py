from pathlib import Path

from bench.disturbance import Disturbance, disturbance


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
    }
    found = disturbance(_put(tmp_path, files))
    # Guest time (the last two columns) is contained in user time already.
    assert found == Disturbance(36, busy_ticks=19, steal_ticks=8, throttled_periods=3)


def test_disturbance_of_an_unknown_system_is_nothing(tmp_path: Path) -> None:
    assert disturbance(tmp_path) == Disturbance(0, 0, 0, 0)
