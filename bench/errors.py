"""Every error that vnnify raises on purpose, and the exit codes of its commands.

    VnnifyError
    ├── UsageError        2  the command or the configuration is wrong
    ├── InputError        5  a model or data file is unusable or unsafe
    ├── UnsupportedError  6  the model is valid but cannot be handled or gains nothing
    ├── UnfitError        7  this machine or environment lacks something: an extra, a GPU, an ISA
    ├── ResourceError     8  memory, disk, a timeout or a crash of native code
    └── OutputError       9  the output exists, is locked or cannot be written

A message says what went wrong, where, what was found, what was expected, and what to do. Verdicts
(3 refused, 4 inconclusive) are results, not errors. Anything else that escapes is a bug of ours: 1.
"""

import errno
from enum import IntEnum

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def describe_error(error: BaseException) -> str:
    """`ValueError: the first line of its message`, cut to a readable length."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def stems_from_interrupt(error: BaseException) -> bool:
    """Whether an interrupt is behind an error.

    One that comes while a native module is imported, the module turns into an ImportError.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__
    return cause is not None


class ExitCode(IntEnum):
    """What a command's exit status means to a CI job."""

    OK = 0
    BUG = 1
    USAGE = 2
    REFUSED = 3
    INCONCLUSIVE = 4
    INPUT = 5
    UNSUPPORTED = 6
    UNFIT = 7
    RESOURCE = 8
    OUTPUT = 9
    INTERRUPTED = 130
    TERMINATED = 143


class VnnifyError(Exception):
    """Root of the tree; never raised itself."""

    exit_code = ExitCode.BUG


class UsageError(VnnifyError):
    """The command line or the configuration contradicts itself or names something unknown."""

    exit_code = ExitCode.USAGE


class InputError(VnnifyError):
    """A model, data or weights file is unusable or unsafe."""

    exit_code = ExitCode.INPUT


class UnsupportedError(VnnifyError):
    """The model is valid, but vnnify cannot handle it or has nothing to quantize in it."""

    exit_code = ExitCode.UNSUPPORTED


class UnfitError(VnnifyError):
    """This machine or environment lacks something: a package, a device, an instruction set."""

    exit_code = ExitCode.UNFIT


class ResourceError(VnnifyError):
    """Memory, disk or time ran out, or native code crashed."""

    exit_code = ExitCode.RESOURCE


class OutputError(VnnifyError):
    """The output exists already, is locked by another run, or cannot be written."""

    exit_code = ExitCode.OUTPUT


def full_disk(error: BaseException, folder: object) -> ResourceError | None:
    """What to tell where a full disk, a quota or a limit on files was behind an error.

    Args:
        error: Of the filesystem, or of what came of one.
        folder: Where it happened, as far as is known.

    Returns:
        None where something else was behind it.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            # Of a copy, the second one is what was written.
            where = cause.filename2 or cause.filename or folder
            return ResourceError(
                f"{where}: cannot be written: {cause.strerror}. Free space there, or choose "
                "another place: --out, or TMPDIR for what is temporary."
            )
        cause = cause.__cause__ or cause.__context__
    return None
