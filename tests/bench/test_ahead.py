"""Processes start one after the other beside other work, and none is left when that is done."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import ahead as module
from bench.ahead import Ahead, started_ahead
from bench.isolate import Child, head_start, run_isolated


def taken(ahead: Ahead, runtime: str) -> Child:
    """One that waits, once it does; looked for in a way that lets more start meanwhile."""
    end = time.monotonic() + 60
    while not ahead._waiting[runtime] and time.monotonic() < end:
        time.sleep(0.01)
    child = ahead.take(runtime)
    assert child is not None
    return child


def test_one_that_waits_has_its_runtime_and_gets_the_next_order(tmp_path: Path) -> None:
    with started_ahead(["onnxruntime"]) as ahead:
        child = taken(ahead, "onnxruntime")
        files = Path(f"/proc/{child.process.pid}/maps").read_text()
        assert "onnxruntime" in files
        assert "openvino" not in files
        assert ahead.take("onnxruntime") is None
        assert ahead.take("openvino") is None
        found = run_isolated("math:sqrt", 4, scratch=tmp_path, name="x", child=child)  # type: ignore[arg-type]
        assert found == 2.0


def test_those_that_nobody_needed_end_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[Child] = []

    @contextlib.contextmanager
    def started(*words: str) -> Iterator[Child]:
        with head_start(*words) as child:
            children.append(child)
            yield child

    def interrupted(ahead: Ahead) -> None:
        end = time.monotonic() + 60
        # One that cannot import its runtime tells that when it gets an order.
        while not ahead._waiting["no such"] and time.monotonic() < end:
            time.sleep(0.01)
        assert [c.process.poll() for c in children] == [None, None]
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "head_start", started)
    with pytest.raises(KeyboardInterrupt), started_ahead(["onnxruntime", "no such"]) as ahead:
        interrupted(ahead)
    assert [c.process.returncode for c in children] == [-signal.SIGKILL] * 2
    assert "ahead" not in {t.name for t in threading.enumerate()}


def test_one_that_was_killed_while_it_waited_is_not_taken() -> None:
    with started_ahead(["onnxruntime"] * 2) as ahead:
        end = time.monotonic() + 60
        while len(ahead._waiting["onnxruntime"]) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        first, second = ahead._waiting["onnxruntime"]
        os.kill(first.process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, first.process.pid, os.WEXITED | os.WNOWAIT)
        assert ahead.take("onnxruntime") is second
        assert ahead.take("onnxruntime") is None


class Slow:
    """A process that gets ready when it is told to."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def has_ended(self) -> bool:
        return False

    def until_ready(self, timeout_s: float) -> bool:
        return self.go.wait(timeout_s)


def test_they_start_one_after_the_other_and_none_once_one_was_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Slow] = []

    @contextlib.contextmanager
    def start(ready: str, runtime: str) -> Iterator[Slow]:
        assert (ready, runtime) == ("bench.sampling:get_ready", "r")
        started.append(Slow())
        yield started[-1]

    def are(count: int) -> bool:
        end = time.monotonic() + 60
        while len(started) < count and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.05)
        return len(started) == count

    monkeypatch.setattr(module, "head_start", start)
    with started_ahead(["r"] * 4) as ahead:
        assert are(1)
        started[0].go.set()
        assert are(2)
        assert ahead.take("r") is started[0]
        started[1].go.set()
        assert are(2)
        # It was started before, and serves the next one.
        assert taken(ahead, "r") is started[1]


def test_an_import_that_hangs_does_not_keep_the_end_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime").mkdir()
    hangs = "import pathlib, time; pathlib.Path('begun').touch(); time.sleep(60)"
    (tmp_path / "onnxruntime" / "__init__.py").write_text(hangs)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with started_ahead(["onnxruntime"] * 2):
        end = time.monotonic() + 30
        while not Path("begun").exists() and time.monotonic() < end:
            time.sleep(0.01)
        begun = time.monotonic()
    # Far less than it would be waited for otherwise.
    assert time.monotonic() - begun < 10


def test_where_no_process_can_start_the_work_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: str) -> None:
        raise OSError(11, os.strerror(11))

    monkeypatch.setattr(module, "head_start", full)
    with started_ahead(["onnxruntime"] * 2) as ahead:
        assert ahead.take("onnxruntime") is None


def test_nothing_runs_where_nothing_is_foreseen() -> None:
    before = threading.active_count()
    with started_ahead([]) as ahead:
        assert threading.active_count() == before
        assert ahead.take("onnxruntime") is None
