"""Run native code in a child process, so that its crash is one line and not the end of everything.

A model file is a program for its runtime: a broken one may end the process by a signal, hang, or
eat the memory. The child gets its job as a JSON file and leaves its answer as one; big things go
as files too. Nothing is pickled, and what native code prints cannot corrupt the answer.
"""

import contextlib
import faulthandler
import importlib
import json
import logging
import os
import re
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from types import FrameType
from typing import Any

from bench import cgroup, errors
from bench.errors import ResourceError, VnnifyError

logger = logging.getLogger(__name__)

_GRACE_S = 5.0
_PR_SET_PDEATHSIG = 1
_NATIVE = ("onnxruntime", "openvino", "torch", "nncf", "onnx")
# Looks for the packages where the parent found them, and never in the current folder (-P).
_BOOTSTRAP = (
    "import sys; root = sys.argv[1]; root in sys.path or sys.path.insert(0, root); "
    "from bench.isolate import child; child(sys.argv[2])"
)


class ChildError(RuntimeError):
    """A bug, raised in the child process; the message is its traceback."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage of the work cost.

    Attributes:
        name: Of the stage.
        seconds: How long it took.
        peak_rss_bytes: The most memory that the process held during it; over the process's whole
            life where the kernel does not let the mark be reset.
    """

    name: str
    seconds: float
    peak_rss_bytes: int


@dataclass(slots=True)
class StageWatch:
    """Becomes complete when its `stage` ends."""

    result: Stage | None = None


@contextlib.contextmanager
def stage(name: str) -> Iterator[StageWatch]:
    """Measure time and memory of the enclosed code; `watch.result` holds them afterwards."""
    watch = StageWatch()
    reset_peak_rss()
    start = perf_counter_ns()
    try:
        yield watch
    finally:
        watch.result = Stage(name, (perf_counter_ns() - start) / 1e9, peak_rss_bytes())


def reset_peak_rss() -> None:
    """Start a new high-water mark of resident memory, if the kernel allows (Linux, proc(5))."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss_bytes() -> int:
    """The most resident memory of this process since `reset_peak_rss`, or ever."""
    # Not ru_maxrss first: across fork and exec it remembers the memory of the parent.
    with contextlib.suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def started_ns() -> int:
    """When the kernel made this process, on the clock of `perf_counter_ns`; see proc_pid_stat(5).

    It is exact to a tick, usually 10 ms, and later than any import can tell.
    """
    now = perf_counter_ns()
    try:
        # Field 22; the second one, a name in brackets, may hold blanks itself.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return now
    return now - int(max(age_s, 0.0) * 1e9)


def run_isolated(
    target: str,
    job: dict[str, Any],
    *,
    scratch: Path,
    name: str,
    timeout_s: float | None = None,
    patient: bool = False,
    meanwhile: Callable[[], None] = lambda: None,
) -> Any:
    """Call a function in a fresh child process and wait for what it returns.

    The child ends with this process (or with the thread that called), leaves no core file, and
    writes what it prints to this process's stderr.

    Args:
        target: `package.module:function`; called with `job`, returns something JSON can hold.
        job: Its argument: strings, numbers, lists, dicts.
        scratch: An existing folder for the job's and the answer's files, which are removed.
        name: What to call the work in messages.
        timeout_s: After this long it is ended; None waits for ever.
        patient: Hand the first SIGINT or SIGTERM to the child, which may come to an end of its own
            and still answer; the second one ends it.
        meanwhile: Called here while the child is at work.

    Raises:
        VnnifyError: Of the class and with the message that the child raised.
        ResourceError: The child crashed, was killed, ran out of memory or over time.
        ChildError: Anything else that the child raised.
        KeyboardInterrupt: Here or in the child; the child is gone.
    """
    stem = scratch / f"job-{uuid.uuid4().hex}"
    order, answer, fault = (stem.with_suffix(s) for s in (".order", ".answer", ".fault"))
    order.write_text(
        json.dumps(
            {
                "target": target,
                "job": job,
                "parent": os.getpid(),
                "answer": str(answer),
                "fault": str(fault),
            }
        ),
        encoding="utf-8",
    )
    killed_before = cgroup.oom_kills()
    try:
        status = _run(order, timeout_s, meanwhile, patient=patient)
        if status is None:
            raise ResourceError(f"{name} ran over its {timeout_s:g} s and was ended.")
        if patient and status in (-signal.SIGINT, -signal.SIGTERM):
            raise KeyboardInterrupt  # It came before the child could listen.
        if status < 0:
            raise _crash(name, -status, fault, oom=cgroup.oom_kills() > killed_before)
        return _answer(name, status, answer)
    finally:
        for file in (order, answer, fault):
            file.unlink(missing_ok=True)


def _run(
    order: Path, timeout_s: float | None, meanwhile: Callable[[], None], *, patient: bool
) -> int | None:
    """Exit status of a child that does `order`; None if it had to be ended."""
    root = str(Path(__file__).resolve().parent.parent)
    process = None
    try:
        with _interrupts_later():
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOTSTRAP, root, str(order)],
                stdin=subprocess.DEVNULL,
                stdout=2,
                process_group=0,
            )
        with _first_interrupt_to(process.pid) if patient else contextlib.nullcontext():
            meanwhile()
            on_time = _wait(process, timeout_s)
        if not on_time:
            _signal_group(process.pid, signal.SIGTERM)
            _wait(process, _GRACE_S)
    finally:
        if process is not None:
            # Before the child is reaped, while its group's number cannot be another's.
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode if on_time else None


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


def child(order_file: str) -> None:
    """Entry point of the child process: do the job of the file, leave the answer, exit."""
    order = json.loads(Path(order_file).read_text(encoding="utf-8"))
    _tie_to(order["parent"])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    status = 0
    with Path(order["fault"]).open("w", encoding="utf-8") as fault:
        faulthandler.enable(fault)
        try:
            module, _, function = order["target"].partition(":")
            value = getattr(importlib.import_module(module), function)(order["job"])
            answer = json.dumps({"value": value})
        except VnnifyError as e:
            answer = json.dumps({"error": _public_class(e), "message": str(e)})
        except MemoryError:
            answer = json.dumps({"error": "ResourceError", "message": "out of memory."})
        except KeyboardInterrupt:
            answer, status = json.dumps({"error": "KeyboardInterrupt", "message": ""}), 130
        except Exception:  # noqa: BLE001 - carried to the parent, which raises it as ChildError
            answer = json.dumps({"error": "", "message": traceback.format_exc()})
        Path(order["answer"]).write_text(answer, encoding="utf-8")
        sys.stdout.flush()
        sys.stderr.flush()
        # Native libraries may crash while Python takes them down; the answer is already complete.
        os._exit(status)


def _public_class(error: VnnifyError) -> str:
    return next(c.__name__ for c in type(error).__mro__ if c.__module__ == errors.__name__)


def _tie_to(parent: int) -> None:
    """Have the kernel kill this process when its parent dies."""
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # It died before the call; nobody waits for the answer.


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


def _answer(name: str, status: int, file: Path) -> Any:
    try:
        answer = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
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


def _crash(name: str, number: int, fault: Path, *, oom: bool) -> ResourceError:
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
    log = fault.read_text(encoding="utf-8", errors="replace") if fault.is_file() else ""
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
