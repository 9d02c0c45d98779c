"""The child's side of `bench.isolate`: wait for an order, do it, leave the answer.

Little is imported here: every child waits for it, and some are timed.
"""

import contextlib
import faulthandler
import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

from bench import errors
from bench.errors import VnnifyError, full_disk, stems_from_interrupt

_PR_SET_PDEATHSIG = 1


def main(readiness: str, answer: str, fault: str) -> None:
    """Entry point of the child process.

    Args:
        readiness: Number of a pipe that is written to each time this process is ready for more.
        answer: Number of the file for the answer.
        fault: Number of the file for what is known of a crash.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable(int(fault))
    work(*awaited(int(readiness)), int(answer))


def awaited(readiness: int) -> tuple[dict[str, Any], Any]:
    """The order that this process gets, and what was made before it came.

    Messages come by stdin, a line of JSON each: what to call to get ready, with `words`, as often
    as the parent wants; then the order. What the last of those calls returned, the target of the
    order gets besides its job.
    """
    # Nothing has begun that an interrupt could explain: it ends this process without a traceback.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    made = None
    try:
        for line in sys.stdin.buffer:
            message: dict[str, Any] = json.loads(line)
            if "target" in message:
                return message, made
            # What fails here fails again when it is needed, and is told then.
            with contextlib.suppress(Exception):
                made = _function(message["ready"])(*message["words"])
            os.write(readiness, b".")
    except (ValueError, BrokenPipeError):
        pass  # Cut off in the middle of a line, or before it could be told that this is ready.
    finally:
        signal.signal(signal.SIGINT, before)
    os._exit(1)  # The parent is gone; nobody waits for an answer.


def work(order: dict[str, Any], made: Any, answer_file: int) -> None:
    """Do the job of an order, leave the answer, and end this process.

    Args:
        order: What to call, and with what.
        made: What was made ahead, and the call gets as well; None: nothing.
        answer_file: Number of the file for the answer.
    """
    _tie_to(order["parent"])
    answer, status = _answer(order, made)
    with os.fdopen(answer_file, "w", encoding="utf-8") as file:
        file.write(answer)
    sys.stdout.flush()
    sys.stderr.flush()
    # Native libraries may crash while Python takes them down; the answer is already complete.
    os._exit(status)


def _answer(order: dict[str, Any], made: Any) -> tuple[str, int]:
    """What the job returns, or the error that it ended with, as JSON; the exit status."""
    arguments = [order["job"]] if made is None else [order["job"], made]
    try:
        return json.dumps({"value": _function(order["target"])(*arguments)}), 0
    except (Exception, KeyboardInterrupt) as e:  # noqa: BLE001 - the parent raises it again
        kind, message = _told(e, order["folder"])
    status = 130 if kind == "KeyboardInterrupt" else 0
    return json.dumps({"error": kind, "message": message}), status


def _told(error: BaseException, folder: str) -> tuple[str, str]:
    """What the parent gets to raise: a class, empty for a bug of ours, and a message."""
    if stems_from_interrupt(error):
        return "KeyboardInterrupt", ""
    if isinstance(error, VnnifyError):
        return _public_class(error), str(error)
    if isinstance(error, MemoryError):
        return "ResourceError", "out of memory."
    if (full := full_disk(error, folder)) is not None:
        return "ResourceError", str(full)
    import traceback

    return "", "".join(traceback.format_exception(error))


def _function(text: str) -> Callable[..., Any]:
    """`package.module:function`, imported."""
    module, _, name = text.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def _public_class(error: VnnifyError) -> str:
    return next(c.__name__ for c in type(error).__mro__ if c.__module__ == errors.__name__)


def _tie_to(parent: int) -> None:
    """Have the kernel kill this process when its parent dies."""
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # It died before the call; nobody waits for the answer.
