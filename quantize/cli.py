"""The command `vnnify`."""

import contextlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.isolate import Child


def main() -> None:
    """Entry point of the console script."""
    with _head_start(sys.argv[1:]) as child:
        # Here: the process that will work imports what it needs meanwhile.
        from bench.cli import Given, guard
        from quantize.commands.app import app
        from quantize.commands.program import export_program

        guard(app, given=Given(export_program, child))


def _head_start(words: Sequence[str]) -> "contextlib.AbstractContextManager[Child | None]":
    """Start the process that works before its options are read, where it is sure to be needed."""
    if words[:1] != ["quantize"] or "--help" in words:
        return contextlib.nullcontext()
    from bench.isolate import head_start

    return head_start("quantize.commands.work:get_ready")


if __name__ == "__main__":
    main()
