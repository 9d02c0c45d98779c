"""Imports that take less time than the packages would have them take."""

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

# What onnx_ir loads for arithmetic on symbolic shapes alone, which nothing here does; SymPy takes
# longer than onnx_ir itself.
_LATER = ("sympy", "onnx_ir._symbolic_shapes")


@contextmanager
def swift_imports() -> Iterator[None]:
    """Inside, modules are imported without SymPy behind onnx_ir, and without garbage collection.

    SymPy is imported when it is first used. What modules hold stays alive, so that looking through
    it for garbage, again and again while it grows, finds none.
    """
    waiting = {n: _Later(n) for n in _LATER if n not in sys.modules}
    sys.modules.update(waiting)
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
        for later in waiting.values():
            later.leave()


class _Later(ModuleType):
    """Stands for a module that is imported when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        self.leave()
        return getattr(importlib.import_module(self.__name__), name)

    def leave(self) -> None:
        """Whoever imports the module from now on gets the real one."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
