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
from pathlib import Path
from typing import Any

from bench import errors
from bench.errors import VnnifyError

_PR_SET_PDEATHSIG = 1


def awaited(readiness: str = "", ready: str = "", *words: str) -> str:
    """The file of the order that this child process gets, once it has come.

    Args:
        readiness: Number of the pipe to close after that; empty for none.
        ready: `package.module:function`, called before; empty for none.
        words: What it is called with.
    """
    # Nothing has begun that an interrupt could explain: it ends this process without a traceback.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    # What fails here fails again when it is needed, and is told then.
    with contextlib.suppress(Exception):
        if ready:
            _function(ready)(*words)
    if readiness:
        os.close(int(readiness))
    order_file = os.fsdecode(sys.stdin.buffer.read())
    signal.signal(signal.SIGINT, before)
    if not order_file:
        os._exit(1)  # The parent died before it had an order; nobody waits for an answer.
    return order_file


def work(order_file: str) -> None:
    """Do the job of an order, leave the answer, and end this process."""
    order = json.loads(Path(order_file).read_text(encoding="utf-8"))
    _tie_to(order["parent"])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    status = 0
    with Path(order["fault"]).open("w", encoding="utf-8") as fault:
        faulthandler.enable(fault)
        try:
            value = _function(order["target"])(order["job"])
            answer = json.dumps({"value": value})
        except VnnifyError as e:
            answer = json.dumps({"error": _public_class(e), "message": str(e)})
        except MemoryError:
            answer = json.dumps({"error": "ResourceError", "message": "out of memory."})
        except KeyboardInterrupt:
            answer, status = json.dumps({"error": "KeyboardInterrupt", "message": ""}), 130
        except Exception:  # noqa: BLE001 - carried to the parent, which raises it as ChildError
            import traceback

            answer = json.dumps({"error": "", "message": traceback.format_exc()})
        Path(order["answer"]).write_text(answer, encoding="utf-8")
        sys.stdout.flush()
        sys.stderr.flush()
        # Native libraries may crash while Python takes them down; the answer is already complete.
        os._exit(status)


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
