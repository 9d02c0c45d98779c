"""What the process that quantizes does without, until it is asked for."""

import gc
import subprocess
import sys
from pathlib import Path

from quantize.imports import swift_imports

ROOT = Path(__file__).parents[2]


def _python(code: str) -> list[str]:
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment, timeout=60
    ).stdout.split()


SHOW = "print(*sorted(n for n in sys.modules if n.partition('.')[0] == 'sympy'))"


def test_the_stages_are_imported_without_sympy() -> None:
    code = "import sys\nfrom quantize.imports import swift_imports\nwith swift_imports():\n"
    assert _python(f"{code}    import quantize.pipeline\n{SHOW}") == []


def test_arithmetic_on_symbolic_shapes_still_works() -> None:
    code = "import sys\nfrom quantize.imports import swift_imports\nwith swift_imports():\n"
    code += "    import onnx_ir\n"
    code += "dim = onnx_ir.SymbolicDim('n') + 1\nprint(dim.evaluate({'n': 2}))\n"
    code += "import sympy\nprint(sympy.Symbol('x') + 1, isinstance(1, sympy.Expr))"
    assert _python(code) == ["3", "x", "+", "1", "False"]


def test_a_package_that_needs_sympy_meanwhile_gets_it() -> None:
    code = "import sys\nfrom quantize.imports import swift_imports\nwith swift_imports():\n"
    code += "    import sympy\n    from sympy import Symbol\n    import sympy.core.add\n"
    assert _python(f"{code}print(Symbol('x') + 1)\nimport sympy.abc") == ["x", "+", "1"]


def test_garbage_is_collected_again_afterwards() -> None:
    before = gc.isenabled()
    with swift_imports():
        assert not gc.isenabled()
    assert gc.isenabled() == before
