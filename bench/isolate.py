"""Run native code in a child process, so that its crash is one line and not the end of everything.

A model file is a program for its runtime: a broken one may end the process by a signal, hang, or
eat the memory. The child gets its job as JSON and leaves its answer so, in memory that both see: a
full disk keeps neither back. Big things go as files. Nothing is pickled, and what native code
prints cannot corrupt the answer. The child's own side is `bench.child`.
"""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from bench import cgroup, errors
from bench.errors import ResourceError, VnnifyError

_GRACE_S = 5.0
# Threads of numpy's OpenBLAS spin for 2**28 cycles from its import on, beside what shall be timed;
# with the least that it takes (`THREAD_TIMEOUT`, blas_server.c) they sleep.
ENVIRONMENT = {"OPENBLAS_THREAD_TIMEOUT": "4"}
_NATIVE = ("onnxruntime", "openvino", "torch", "nncf", "onnx")
# Looks for the packages where the parent found them, and never in the current folder (-P).
_BOOTSTRAP = (
    "import sys; root = sys.argv[1]; root in sys.path or sys.path.insert(0, root); "
    "from bench.child import main; main(*sys.argv[2:])"
)


class ChildError(RuntimeError):
    """A bug, raised in the child process; the message is its traceback."""


@dataclass(frozen=True, slots=True)
class Child:
    """A process that was started before its order; see `head_start`.

    Attributes:
        process: It gets its order through its stdin; see `bench.child`.
        readiness: A pipe that it writes to each time it is ready.
        answer: A file in memory for its answer.
        fault: One for what is known of a crash.
    """

    process: subprocess.Popen[bytes]
    readiness: int
    answer: int
    fault: int

    def get_ready(self, ready: str, *words: str) -> None:
        """Have it call a function before there is an order; see `head_start`."""
        _send({"ready": ready, "words": words}, self.process)

    def has_ended(self) -> bool:
        """Whether it is gone. It stays to be reaped: until then its group's number is its own."""
        how = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.process.pid, how) is not None

    def until_ready(self, timeout_s: float) -> bool:
        """Wait until it has done what it was last told, or has ended; so long at most.

        What it does late is told when it got its order.

        Returns:
            Whether it has, or has ended.
        """
        poll = select.poll()
        poll.register(self.readiness, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            return False
        os.read(self.readiness, 1)
        return True


def run_isolated(
    target: str,
    job: dict[str, Any],
    *,
    scratch: Path,
    name: str,
    timeout_s: float | None = None,
    patient: bool = False,
    child: Child | None = None,
) -> Any:
    """Call a function in a fresh child process and wait for what it returns.

    The child ends with this process (or with the thread that called), leaves no core file, and
    writes what it prints to this process's stderr.

    Args:
        target: `package.module:function`; called with `job`, returns something JSON can hold.
        job: Its argument: strings, numbers, lists, dicts.
        scratch: The folder in which the work writes, to be named where its disk is full.
        name: What to call the work in messages.
        timeout_s: After this long it is ended; None waits for ever.
        patient: Hand the first SIGINT or SIGTERM to the child, which may come to an end of its own
            and still answer; the second one ends it.
        child: A process that waits for an order, and gets this one; None starts one.

    Raises:
        VnnifyError: Of the class and with the message that the child raised.
        ResourceError: The child crashed, was killed, ran out of memory or over time.
        ChildError: Anything else that the child raised.
        KeyboardInterrupt: Here or in the child; the child is gone.
    """
    order = {"target": target, "job": job, "parent": os.getpid(), "folder": str(scratch.parent)}
    killed_before = cgroup.oom_kills()
    with head_start() if child is None else contextlib.nullcontext(child) as at_work:
        status = _run(order, timeout_s, at_work.process, patient=patient)
        if status is None:
            raise ResourceError(f"{name} ran over its {timeout_s:g} s and was ended.")
        if patient and status in (-signal.SIGINT, -signal.SIGTERM):
            raise KeyboardInterrupt  # It came before the child could listen.
        if status < 0:
            oom = cgroup.oom_kills() > killed_before
            raise _crash(name, -status, _content(at_work.fault), oom=oom)
        return _answer(name, status, _content(at_work.answer))


@contextlib.contextmanager
def head_start(ready: str = "", *words: str) -> Iterator[Child]:
    """Start a child that has no order yet; a `run_isolated` inside gives it one.

    Its interpreter starts and imports while this process finds out what there is to do. A child
    that nobody needed ends with the block, and with this process in any case.

    Args:
        ready: `package.module:function`, which the child calls meanwhile; empty for none. What it
            returns, if not None, the target of the order gets as its second argument.
        words: What it is called with.
    """
    process = None
    readiness, told = os.pipe()
    answer, fault = os.memfd_create("answer"), os.memfd_create("fault")
    try:
        with _interrupts_later():
            try:
                process = _started((told, answer, fault))
            finally:
                os.close(told)
        child = Child(process, readiness, answer, fault)
        if ready:
            child.get_ready(ready, *words)
        yield child
    finally:
        for file in (readiness, answer, fault):
            os.close(file)
        # One that got an order has ended.
        if process is not None and process.returncode is None:
            _end(process)


def _run(
    order: dict[str, Any],
    timeout_s: float | None,
    process: subprocess.Popen[bytes],
    *,
    patient: bool,
) -> int | None:
    """Exit status of a child that does `order`; None if it had to be ended."""
    try:
        _send(order, process)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        with _first_interrupt_to(process.pid) if patient else contextlib.nullcontext():
            on_time = _wait(process, timeout_s)
        if not on_time:
            _signal_group(process.pid, signal.SIGTERM)
            _wait(process, _GRACE_S)
    finally:
        _end(process)
    return process.returncode if on_time else None


def _started(files: Sequence[int]) -> subprocess.Popen[bytes]:
    """A child that calls `bench.child.main`, with open files."""
    root = str(Path(__file__).resolve().parent.parent)
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _BOOTSTRAP, root, *map(str, files)],
        stdin=subprocess.PIPE,
        stdout=2,
        process_group=0,
        pass_fds=files,
        env={**ENVIRONMENT, **os.environ},
    )


def _send(message: dict[str, Any], process: subprocess.Popen[bytes]) -> None:
    """Write a line to a child's stdin."""
    assert process.stdin is not None
    # A child that is dead by now is told of by its status.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(message).encode() + b"\n")
        process.stdin.flush()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a child and all that it started, whatever they do."""
    # One that had died left unread what it was told.
    with contextlib.suppress(BrokenPipeError), process:
        # Before the child is reaped, while its group's number cannot be another's.
        _signal_group(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the end: a child that is half started has no name yet."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    listeners = {n: heard for n, heard in before.items() if callable(heard)}
    came: list[tuple[int, FrameType | None]] = []
    for number in listeners:
        signal.signal(number, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        for number, heard in listeners.items():
            signal.signal(number, heard)
    for n, frame in came:
        listeners[signal.Signals(n)](n, frame)


@contextlib.contextmanager
def _first_interrupt_to(child: int) -> Iterator[None]:
    """Hand the first SIGINT or SIGTERM to a child that was not reaped yet; the next is ours again.

    Whoever listened before hears of the first one too, but does not end the wait by it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    listeners = {n: heard for n, heard in before.items() if callable(heard)}

    def ours_again() -> None:
        for number, heard in listeners.items():
            signal.signal(number, heard)

    def hand_on(number: int, frame: FrameType | None) -> None:
        ours_again()
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)
        with contextlib.suppress(KeyboardInterrupt):
            listeners[signal.Signals(number)](number, frame)

    for number in listeners:
        signal.signal(number, hand_on)
    try:
        yield
    finally:
        ours_again()


def _wait(process: subprocess.Popen[bytes], timeout_s: float | None) -> bool:
    """Whether the process ended in time. Sleeps in the kernel: polling would disturb a timing."""
    try:
        handle = os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
        return process.poll() is not None
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))
    finally:
        os.close(handle)


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _answer(name: str, status: int, text: str) -> Any:
    try:
        answer = json.loads(text)
    except ValueError:
        raise ResourceError(
            f"{name} ended with status {status} and left no result. Its own messages are above."
        ) from None
    if "value" in answer:
        return answer["value"]
    kind, message = answer["error"], answer["message"]
    if kind == "KeyboardInterrupt":
        raise KeyboardInterrupt
    if not kind:
        raise ChildError(f"{name} failed in its process:\n{message}")
    error: VnnifyError = getattr(errors, kind)(message)
    raise error


def _content(file: int) -> str:
    return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")


def _crash(name: str, number: int, log: str, *, oom: bool) -> ResourceError:
    try:
        text = signal.Signals(number).name
    except ValueError:
        text = f"signal {number}"
    if number == signal.SIGKILL:
        why = (
            "the kernel ended it for using too much memory"
            if oom
            else "most likely the system ran out of memory"
        )
        return ResourceError(
            f"{name} was killed ({text}): {why}. Use a smaller batch or fewer samples at once."
        )
    if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        return ResourceError(f"{name} was ended from outside by {text}. Run it again.")
    loaded = [f"{p} {_version(p)}" for p in _NATIVE if re.search(rf"\b{p}[./]", log)]
    # The crashed thread's calls, innermost first, follow this line.
    calls = log.partition("Current thread")[2].splitlines()
    frames = [s.strip() for s in calls if s.lstrip().startswith("File ")]
    return ResourceError(
        f"{name} crashed with {text} in native code"
        + (f" ({', '.join(loaded)})" if loaded else "")
        + (f"; last line: {frames[0]}" if frames else "")
        + ". The model file may be damaged, or the runtime has a bug with it: try another runtime."
    )


def _version(package: str) -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(unknown version)"
