"""The user's own Python: `file.py:function` and `package.module:function`.

Nothing is discovered: only what a command or a configuration names is imported. What such code
prints goes to stderr, because stdout may carry our JSON; what it raises becomes one line with its
file and line, because it is the user's error and not a bug of ours.
"""

import contextlib
import difflib
import importlib
import os
import sys
import types
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from bench.errors import InputError, UsageError, VnnifyError, describe_error


def is_function_text(text: str) -> bool:
    """Whether `text` has the form `file.py:function` or `package.module:function`."""
    origin, colon, name = text.rpartition(":")
    if not colon or not name.isidentifier():
        return False
    return origin.endswith(".py") or all(part.isidentifier() for part in origin.split("."))


def load_function(text: str, *, what: str) -> Callable[..., Any]:
    """Import a function or class that the user named.

    Args:
        text: `path/to/file.py:function`, or `package.module:function`, importable from the working
            folder or the environment.
        what: What it is for, as in "metric"; it stands in the messages.

    Raises:
        UsageError: The text has another form, or the module or function does not exist.
        InputError: The file is missing, or importing it fails; the message holds file and line.
    """
    if not is_function_text(text):
        raise UsageError(
            f"{what} {text!r} is neither file.py:function nor package.module:function."
        )
    origin, _, name = text.rpartition(":")
    with blame(text, what=what):
        module = _run_file(Path(origin)) if origin.endswith(".py") else _import(origin, what)
    found = getattr(module, name, None)
    if not callable(found):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        state = "is not callable" if found is not None else "does not exist"
        raise UsageError(f"{what} {text!r}: {name!r} {state} in {origin}.{_nearest(name, known)}")
    return found  # type: ignore[no-any-return]


@contextlib.contextmanager
def blame(text: str, *, what: str) -> Iterator[None]:
    """Run the user's code: importable siblings, prints to stderr, errors with file and line.

    Args:
        text: The function as it was named to `load_function`.
        what: What it is for; it stands in the message.

    Raises:
        InputError: The code inside raised anything but an error of ours, or tried to exit.
    """
    origin = text.rpartition(":")[0]
    is_file = origin.endswith(".py")
    folder = _folder(os.path.abspath(origin)) if is_file else os.getcwd()  # noqa: PTH100, PTH109
    try:
        with _importable(folder), contextlib.redirect_stdout(sys.stderr):
            yield
    except VnnifyError:
        raise
    except (Exception, SystemExit) as e:
        place = _place(e, Path(origin).resolve() if is_file else _module_file(origin))
        raise InputError(f"{place}: the {what} raised {describe_error(e)}") from e


@lru_cache
def _folder(file: str) -> str:
    # Metrics are called thousands of times, and resolving a path asks the disk for each part.
    return str(Path(file).resolve().parent)


def nearest(name: str, known: list[str]) -> str:
    """` Did you mean 'x'?`, or an empty text where nothing is near."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _nearest(name: str, known: list[str]) -> str:
    return nearest(name, known) or (f" It has: {', '.join(sorted(known)[:8])}." if known else "")


def _run_file(path: Path) -> types.ModuleType:
    """Run a file as a module of its own. No byte code is written beside the user's file."""
    if not path.is_file():
        near = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise InputError(f"{path}: no such file.{nearest(str(path), near)}")
    resolved = path.resolve()
    module = types.ModuleType(f"vnnify_plugin_{path.stem}")
    module.__file__ = str(resolved)
    # Dataclasses and pickles inside the file look their module up by name.
    sys.modules[module.__name__] = module
    exec(compile(resolved.read_bytes(), str(resolved), "exec"), module.__dict__)
    return module


def _import(name: str, what: str) -> types.ModuleType:
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name is None or not (name == e.name or name.startswith(f"{e.name}.")):
            raise
        near = [p.stem for p in Path.cwd().glob("*.py")]
        raise UsageError(
            f"{what}: there is no module {name!r} here or in the environment.{nearest(name, near)} "
            "For a file, write file.py:function."
        ) from e


@contextlib.contextmanager
def _importable(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _module_file(name: str) -> Path | None:
    file = getattr(sys.modules.get(name), "__file__", None)
    return Path(file).resolve() if file else None


def _place(error: BaseException, origin: Path | None) -> str:
    """`file:line` of the innermost frame in the user's file, or else of the innermost at all."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    own = [f for f in frames if origin is not None and Path(f[0]) == origin]
    if not own and origin is not None and isinstance(error, TypeError):
        return str(origin)  # it was called in another way than it is written for
    file, line = (own or frames)[-1]
    return f"{file}:{line}"
