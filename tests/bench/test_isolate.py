import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import child, isolate
from bench.errors import InputError, ResourceError, UsageError
from bench.isolate import ChildError, head_start, run_isolated

ROOT = str(Path(__file__).parents[2])


class Exited(BaseException):
    """A child process would have ended, with this status."""


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process `os._exit` raises."""

    def leave(status: int) -> None:
        raise Exited(status)

    monkeypatch.setattr(os, "_exit", leave)


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that child processes can import."""
    (tmp_path / "jobs_for_test.py").write_text(
        "import os, sys, time, signal, subprocess, resource\n"
        "from bench.errors import InputError\n"
        "class Own(InputError): pass\n"
        "def add(job): print('noise'); return job['a'] + job['b']\n"
        "def variable(job): return os.environ.get(job['name'])\n"
        "def own(job): raise Own('said so')\n"
        "def bug(job): return 1 / 0\n"
        "def full(job): open('/dev/full', 'w').write('x' * 9999)\n"
        "def full_archive(job):\n"
        "    try:\n"
        "        full(job)\n"
        "    finally:\n"
        "        raise ValueError('archive left open')\n"
        "def memory(job): raise MemoryError\n"
        "def interrupt(job): raise KeyboardInterrupt\n"
        "def half_imported(job):\n"
        "    try:\n"
        "        raise KeyboardInterrupt\n"
        "    except KeyboardInterrupt as e:\n"
        "        raise ImportError('initialization failed') from e\n"
        "def leave(job): sys.exit(3)\n"
        "def segv(job): os.kill(os.getpid(), signal.SIGSEGV); time.sleep(9)\n"
        "def kill(job): os.kill(os.getpid(), job['signal']); time.sleep(9)\n"
        "def sleep(job): time.sleep(60)\n"
        "def stubborn(job):\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    open(job['ready'], 'w').close()\n"
        "    time.sleep(60)\n"
        "def brood(job):\n"
        "    return subprocess.Popen(['sleep', '60']).pid\n"
        "def ready():\n"
        "    open('ready', 'w').write(str(os.getpid()))\n"
        "def never():\n"
        "    ready()\n"
        "    time.sleep(60)\n"
        "def slowly(name):\n"
        "    time.sleep(0.2)\n"
        "    open('slow-' + name, 'w').close()\n"
        "def gone():\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "def unready():\n"
        "    raise ValueError('too early')\n"
        "def broken(): os.kill(os.getpid(), signal.SIGSEGV); time.sleep(9)\n"
        "def twice(word): return 2 * word\n"
        "def both(job, made): return [job, made]\n"
        "def number(job): return os.getpid()\n"
        "def asks(job): return sys.stdin.read()\n"
        "def limits(job):\n"
        "    core = resource.getrlimit(resource.RLIMIT_CORE)[0]\n"
        "    return [core, os.getpgrp() == os.getpid()]\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "jobs_for_test"


def _run(target: str, scratch: Path, **rest: Any) -> Any:
    job = rest.pop("job", {})
    return run_isolated(target, job, scratch=scratch, name="stage 'test'", **rest)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def _gone_soon(pid: int) -> bool:
    for _ in range(100):
        if not _alive(pid):
            return True
        time.sleep(0.05)
    return False


def test_a_value_comes_back_whatever_is_printed(
    jobs: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _run(f"{jobs}:add", tmp_path, job={"a": [1], "b": ["é"]}) == [1, "é"]
    out, err = capfd.readouterr()
    assert out == ""
    assert "noise" in err
    # Python may leave what it compiled.
    assert {f.name for f in tmp_path.iterdir()} <= {"jobs_for_test.py", "__pycache__"}


@pytest.mark.parametrize(("chosen", "found"), [(None, "4"), ("20", "20")])
def test_threads_that_numpy_starts_sleep_soon_unless_a_user_says_how_long(
    jobs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str | None, found: str
) -> None:
    name = "OPENBLAS_THREAD_TIMEOUT"
    monkeypatch.delenv(name, raising=False)
    if chosen is not None:
        monkeypatch.setenv(name, chosen)
    assert _run(f"{jobs}:variable", tmp_path, job={"name": name}) == found


def test_errors_keep_class_and_message(jobs: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^said so$"):
        _run(f"{jobs}:own", tmp_path)


def test_bugs_keep_their_traceback(jobs: str, tmp_path: Path) -> None:
    with pytest.raises(ChildError, match=r"(?s)in bug.*ZeroDivisionError"):
        _run(f"{jobs}:bug", tmp_path)


def test_want_of_memory_is_a_matter_of_resources(jobs: str, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="out of memory"):
        _run(f"{jobs}:memory", tmp_path)


@pytest.mark.parametrize("job", ["interrupt", "half_imported"])
def test_an_interrupt_stays_an_interrupt(jobs: str, tmp_path: Path, job: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        _run(f"{jobs}:{job}", tmp_path)


def test_leaving_without_an_answer_is_said(jobs: str, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="status 3"):
        _run(f"{jobs}:leave", tmp_path)


def test_a_crash_is_one_line_with_signal_and_place(jobs: str, tmp_path: Path) -> None:
    with pytest.raises(ResourceError) as caught:
        _run(f"{jobs}:segv", tmp_path)
    message = str(caught.value)
    assert message.startswith("stage 'test' crashed with SIGSEGV")
    assert "jobs_for_test.py" in message
    assert "in segv" in message
    assert "\n" not in message


def test_a_crash_names_the_native_package() -> None:
    log = (
        "Fatal Python error: Segmentation fault\n\n"
        "Thread 0x01 (most recent call first):\n"
        '  File "other.py", line 1 in idle\n'
        "Current thread 0x02 (most recent call first):\n"
        '  File "/lib/onnxruntime/capi/session.py", line 7 in run\n'
        '  File "caller.py", line 2 in call\n'
    )
    message = str(isolate._crash("stage 'run'", signal.SIGSEGV, log, oom=False))
    assert "(onnxruntime 1." in message
    assert 'last line: File "/lib/onnxruntime/capi/session.py", line 7 in run' in message


@pytest.mark.parametrize(
    ("number", "oom", "says"),
    [
        (signal.SIGKILL, False, "most likely the system ran out of memory"),
        (signal.SIGKILL, True, "the kernel ended it for using too much memory"),
        (signal.SIGTERM, False, "ended from outside by SIGTERM"),
        (64, False, "SIGRTMAX"),
        (63, False, "signal 63"),
    ],
)
def test_other_signals_are_told_apart(number: int, says: str, *, oom: bool) -> None:
    assert says in str(isolate._crash("it", number, "", oom=oom))


def test_a_killed_child_is_a_matter_of_resources(jobs: str, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="SIGKILL"):
        _run(f"{jobs}:kill", tmp_path, job={"signal": int(signal.SIGKILL)})


def test_time_runs_out_even_for_the_stubborn(
    jobs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolate, "_GRACE_S", 0.1)
    ready = tmp_path / "ready"
    with pytest.raises(ResourceError, match="ran over its 2 s"):
        _run(f"{jobs}:stubborn", tmp_path, job={"ready": str(ready)}, timeout_s=2.0)
    assert ready.exists()


def test_what_the_child_started_ends_with_it(jobs: str, tmp_path: Path) -> None:
    assert _gone_soon(_run(f"{jobs}:brood", tmp_path))


def test_no_core_file_and_a_group_of_its_own(jobs: str, tmp_path: Path) -> None:
    assert _run(f"{jobs}:limits", tmp_path) == [0, True]


def test_an_interrupt_here_ends_the_child(
    jobs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def interrupted(process: subprocess.Popen[bytes], _timeout_s: float | None) -> bool:
        started.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(isolate, "_wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _run(f"{jobs}:sleep", tmp_path)
    assert started[0].returncode == -signal.SIGKILL


def test_the_child_dies_with_its_parent(jobs: str, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from bench.isolate import run_isolated; "
        "run_isolated(sys.argv[1], {'ready': sys.argv[2]}, scratch=Path(sys.argv[3]), name='x')"
    )
    ready = tmp_path / "ready"
    arguments = [sys.executable, "-c", code, f"{jobs}:stubborn", str(ready), str(tmp_path)]
    parent = subprocess.Popen(arguments, cwd=ROOT)
    while not ready.exists():
        assert parent.poll() is None
        time.sleep(0.02)
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent.pid)], stdout=subprocess.PIPE)
    child = int(listed.stdout)
    parent.kill()
    parent.wait()
    assert _gone_soon(child)


def test_waiting_works_without_pidfd(
    jobs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    assert _run(f"{jobs}:add", tmp_path, job={"a": 1, "b": 2}) == 3
    with pytest.raises(ResourceError, match="ran over"):
        _run(f"{jobs}:sleep", tmp_path, timeout_s=0.2)


def test_the_current_folder_is_not_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError('hijacked')")
    monkeypatch.chdir(tmp_path)
    assert run_isolated("math:isfinite", 1.0, scratch=tmp_path, name="x") is True  # type: ignore[arg-type]


@pytest.mark.usefixtures("exits")
@pytest.mark.parametrize(
    ("target", "answer"),
    [
        ("math:isfinite", {"value": True}),
        ("bench.runtimes:find_runtime", {"error": "UsageError"}),
        ("json:loads", {"error": ""}),
    ],
)
def test_the_child_leaves_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, answer: dict[str, Any]
) -> None:
    """The child's side in this process, where its lines can be seen to run."""
    monkeypatch.setattr(child, "_tie_to", lambda _parent: None)
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)
    monkeypatch.setattr("faulthandler.enable", lambda *_: None)
    order = {"target": target, "job": 1, "parent": os.getpid(), "folder": "/a"}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(order).encode())))
    readiness, told = os.pipe()
    with (tmp_path / "answer").open("w+b") as file:
        with pytest.raises(Exited) as ended:
            child.main(str(told), str(os.dup(file.fileno())), "0")
        assert ended.value.args == (0,)
        file.seek(0)
        found = json.load(file)
    os.close(readiness)
    assert found.items() >= answer.items()


def _told(monkeypatch: pytest.MonkeyPatch, *messages: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(messages))))


@pytest.mark.usefixtures("exits")
def test_the_child_gets_ready_and_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, where its lines can be seen to run."""
    order, readiness, told = {"target": "a:b", "job": 1}, *os.pipe()
    last = json.dumps(order).encode()
    number, wrong = (
        json.dumps({"ready": f"os:{name}", "words": words}).encode()
        for name, words in (("getpid", []), ("strerror", [""]))
    )
    for before, made in (((), None), ((number,), os.getpid()), ((wrong, wrong), None)):
        _told(monkeypatch, *before, last)
        assert child.awaited(told) == (order, made)
        os.write(told, b"!")
        # Once per call, whatever became of it.
        assert os.read(readiness, 9) == b"." * len(before) + b"!"
    _told(monkeypatch, number, wrong, last)
    assert child.awaited(told) == (order, os.getpid())
    for cut in (b"", b'{"job', number):
        _told(monkeypatch, cut)
        with pytest.raises(Exited) as ended:
            child.awaited(told)
        assert ended.value.args == (1,)
    os.close(readiness)
    # Its parent was killed meanwhile: there is nobody to tell, and nothing to tell the user.
    _told(monkeypatch, number)
    with pytest.raises(Exited) as ended:
        child.awaited(told)
    assert ended.value.args == (1,)
    os.close(told)


@pytest.mark.usefixtures("exits")
def test_an_orphan_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    code = threading.get_ident  # Any number that is no parent of ours.
    monkeypatch.setattr(child, "_PR_SET_PDEATHSIG", 0)
    with pytest.raises(Exited) as ended:
        child._tie_to(-code())
    assert ended.value.args == (1,)


@pytest.mark.parametrize("job", ["full", "full_archive"])
def test_a_full_disk_is_told_with_its_folder(jobs: str, tmp_path: Path, job: str) -> None:
    with pytest.raises(ResourceError) as caught:
        _run(f"{jobs}:{job}", tmp_path / "scratch")
    assert str(caught.value) == (
        f"{tmp_path}: cannot be written: No space left on device. Free space there, or choose "
        "another place: --out, or TMPDIR for what is temporary."
    )


def test_orders_and_answers_need_no_disk(jobs: str) -> None:
    """Not even a folder, and more than a pipe holds."""
    job = {"a": "x" * 10**6, "b": "y" * 10**6}
    assert _run(f"{jobs}:add", Path("/proc/none"), job=job) == job["a"] + job["b"]


def test_an_unknown_error_class_cannot_be_forged() -> None:
    from bench.errors import OutputError

    class CustomError(OutputError):
        pass

    assert child._public_class(CustomError("x")) == "OutputError"
    assert child._public_class(UsageError("x")) == "UsageError"


def _ready(folder: Path) -> int:
    """Number of the process that got ready in a folder."""
    while not (folder / "ready").is_file() or not (folder / "ready").read_text():
        time.sleep(0.02)
    return int((folder / "ready").read_text())


def test_a_child_with_a_head_start_gets_the_next_order(
    jobs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with head_start(f"{jobs}:ready") as waiting:
        first = _ready(tmp_path)
        assert _run(f"{jobs}:number", tmp_path) not in (first, os.getpid())
        assert _run(f"{jobs}:number", tmp_path, child=waiting) == first
    assert not _alive(first)


def test_what_was_made_ahead_is_handed_to_the_job(jobs: str, tmp_path: Path) -> None:
    with head_start(f"{jobs}:twice", "ab") as waiting:
        assert _run(f"{jobs}:both", tmp_path, job={"a": 1}, child=waiting) == [{"a": 1}, "abab"]


def test_a_job_that_asks_for_input_gets_none(jobs: str, tmp_path: Path) -> None:
    assert _run(f"{jobs}:asks", tmp_path, timeout_s=60) == ""


def test_a_crash_before_the_order_is_told_with_its_place(jobs: str, tmp_path: Path) -> None:
    with head_start(f"{jobs}:broken") as waiting:
        waiting.until_ready(60)
        with pytest.raises(ResourceError, match=r"SIGSEGV.*jobs_for_test.py.* in broken"):
            _run(f"{jobs}:number", tmp_path, child=waiting)


def test_it_is_known_when_children_are_ready(
    jobs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with head_start(f"{jobs}:slowly", "a") as a, head_start(f"{jobs}:slowly", "b") as b:
        a.until_ready(60)
        b.until_ready(60)
        assert sorted(f.name for f in tmp_path.glob("slow-*")) == ["slow-a", "slow-b"]
    # Nor is it before what it was told last.
    with head_start(f"{jobs}:slowly", "c") as waiting:
        waiting.until_ready(60)
        waiting.get_ready(f"{jobs}:slowly", "d")
        waiting.until_ready(60)
        assert (tmp_path / "slow-d").exists()
        assert _run(f"{jobs}:number", tmp_path, child=waiting) == waiting.process.pid
    # One that ends is not waited for.
    with head_start(f"{jobs}:gone") as broken:
        broken.until_ready(60)
        with pytest.raises(ResourceError, match="SIGKILL"):
            _run(f"{jobs}:number", tmp_path, child=broken)


def test_a_child_that_does_not_get_ready_is_waited_for_so_long_only(
    jobs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with head_start(f"{jobs}:never") as waiting:
        waiting.until_ready(0.01)
        number = _ready(tmp_path)
    assert not _alive(number)


def test_a_child_that_nobody_needed_ends(
    jobs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with head_start(f"{jobs}:ready"):
        waiting = _ready(tmp_path)
    assert not _alive(waiting)


def test_a_child_that_waits_ends_with_its_parent(
    jobs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")
    code = (
        "import sys, time; from bench.isolate import head_start\n"
        "with head_start(sys.argv[1]): time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, f"{jobs}:ready"], cwd=tmp_path)
    waiting = _ready(tmp_path)
    parent.kill()
    parent.wait()
    assert _gone_soon(waiting)


def test_what_fails_before_the_order_is_told_by_the_order_alone(jobs: str, tmp_path: Path) -> None:
    with head_start(f"{jobs}:unready") as waiting:
        assert _run(f"{jobs}:add", tmp_path, job={"a": 1, "b": 2}, child=waiting) == 3
    with head_start("no_such_module:ready") as waiting:
        waiting.until_ready(60)
        with pytest.raises(ChildError, match="no_such_module"):
            _run("no_such_module:work", tmp_path, child=waiting)


def test_an_interrupt_before_the_order_is_read_needs_no_traceback(
    jobs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    wait = isolate._wait

    def interrupted(*arguments: Any) -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        return wait(*arguments)

    monkeypatch.setattr(isolate, "_wait", interrupted)
    with head_start(f"{jobs}:never") as waiting:
        _ready(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            _run(f"{jobs}:add", tmp_path, patient=True, child=waiting)
    assert capfd.readouterr().err == ""


def test_a_child_that_died_before_its_order_is_a_matter_of_resources(
    jobs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with head_start(f"{jobs}:ready") as waiting:
        os.kill(_ready(tmp_path), signal.SIGKILL)
        with pytest.raises(ResourceError, match="SIGKILL"):
            _run(f"{jobs}:add", tmp_path, job={"a": 1, "b": 2}, child=waiting)


def test_what_a_dead_child_was_told_is_no_error_of_ours(
    jobs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with head_start(f"{jobs}:ready") as waiting:
        assert not waiting.has_ended()
        os.kill(_ready(tmp_path), signal.SIGKILL)
        waiting.until_ready(60)
        os.waitid(os.P_PID, waiting.process.pid, os.WEXITED | os.WNOWAIT)
        assert waiting.has_ended()
        waiting.get_ready(f"{jobs}:ready")
    assert waiting.process.returncode == -signal.SIGKILL


def _open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _nap(scratch: Path) -> None:
    run_isolated("time:sleep", {}, scratch=scratch, name="a nap")


def _wait_for_a_nap(_scratch: Path) -> None:
    with head_start("time:time") as waiting:
        waiting.until_ready(60)


@pytest.mark.parametrize("start", [_nap, _wait_for_a_nap])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_a_child_starts_leaves_no_child(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    start: Callable[[Path], None],
) -> None:
    files = _open_files()
    started = []

    class Interrupted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)
            os.kill(os.getpid(), number)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [child.returncode for child in started] == [-signal.SIGKILL]
    assert not list(tmp_path.iterdir())
    started.clear()
    assert _open_files() == files
