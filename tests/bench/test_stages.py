import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench import stages
from bench.stages import stage

ROOT = str(Path(__file__).parents[2])


def test_a_stage_measures_time_and_memory() -> None:
    with stage("grow") as watch:
        block = bytearray(60 * 2**20)
        time.sleep(0.02)
    del block
    assert watch.result is not None
    assert watch.result.name == "grow"
    assert 0.02 <= watch.result.seconds < 5
    assert watch.result.peak_rss_bytes > 60 * 2**20


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="mark is not resettable"
)
def test_memory_of_an_earlier_stage_does_not_count() -> None:
    with stage("large") as large:
        block = bytearray(200 * 2**20)
        del block
    with stage("small") as small:
        pass
    assert large.result is not None
    assert small.result is not None
    assert large.result.peak_rss_bytes - small.result.peak_rss_bytes > 150 * 2**20


def test_a_stage_that_fails_is_measured_too() -> None:
    with pytest.raises(ValueError, match="x"), stage("fails") as watch:
        raise ValueError("x")
    assert watch.result is not None


def test_peak_memory_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> str:
        raise OSError

    monkeypatch.setattr(Path, "read_text", refused)
    assert stages.peak_rss_bytes() > 2**20


def test_a_process_began_before_its_first_line_and_after_its_parent() -> None:
    code = "from bench.stages import started_ns; print(started_ns())"
    before, two_ticks = time.perf_counter_ns(), 20_000_000
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    imported = time.perf_counter_ns()
    assert before - two_ticks <= int(done.stdout) < imported - two_ticks


def test_where_proc_tells_nothing_a_process_begins_now(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: object, **__: object) -> str:
        raise OSError

    before = time.perf_counter_ns()
    monkeypatch.setattr(Path, "read_text", unreadable)
    assert before <= stages.started_ns() <= time.perf_counter_ns()
