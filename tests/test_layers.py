"""The arrows between modules, read from their source."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(f for p in ("bench", "quantize") for f in (ROOT / p).rglob("*.py"))

# Seconds to import, or optional.
HEAVY = {
    "torch", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "openvino", "nncf",
    "neural_compressor", "PIL", "safetensors", "pydantic", "rich",
}  # fmt: skip

# Which files may import a heavy package at all, inside functions.
ALLOWED = {
    "torch": (
        "bench/programs.py",
        "bench/torch_archive.py",
        "bench/runtimes/torch.py",
        "quantize/sources/torch*.py",
    ),
    "onnxscript": ("quantize/sources/torch_program.py",),
    "safetensors": ("quantize/sources/torch_weights.py",),
    "PIL": ("quantize/images.py",),
    "openvino": ("bench/runtimes/openvino.py", "quantize/quantizers/nncf.py"),
    "nncf": ("quantize/quantizers/nncf.py",),
    "neural_compressor": ("quantize/quantizers/inc.py",),
    "pydantic": ("bench/store.py", "quantize/config.py"),
    "rich": ("bench/cli.py", "quantize/progress.py"),
    "pycocotools": ("quantize/tasks/detection.py",),
    "jiwer": ("quantize/tasks/transcripts.py",),
    "typer": ("bench/cli.py", "quantize/commands/*.py"),
}

# These work on graphs and nothing else, so they import onnx_ir at the top; none is on the way of
# `vnnify --help` (tests/test_cold_import.py).
GRAPH_MODULES = (
    "quantize/anchors.py",
    "quantize/equalize.py",
    "quantize/rows.py",
    "quantize/watching.py",
    "quantize/einsums.py",
    "quantize/findings.py",
    "quantize/folding.py",
    "quantize/finishing.py",
    "quantize/inspecting.py",
    "quantize/inspection/*.py",
    "quantize/keeping.py",
    "quantize/pipeline.py",
    "quantize/halves.py",
    "quantize/loops.py",
    "quantize/nodes.py",
    "quantize/gains.py",
    "quantize/placement.py",
    "quantize/prepare.py",
    "quantize/protos.py",
    "quantize/graphs.py",
    "quantize/recipe.py",
    "quantize/rewrites.py",
    "quantize/smoothing.py",
    "quantize/starting.py",
    "quantize/strengths.py",
    "quantize/ranking.py",
    "quantize/quantizers/*.py",
)
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "base", "manager"}


def _name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {_name(f) for f in FILES}


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def _statements(node: ast.AST, *, everywhere: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports that run with the module, or all that ever run."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif _is_type_checking(child):
            continue
        elif everywhere or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _statements(child, everywhere=everywhere)


def _imports(file: Path, *, everywhere: bool) -> set[str]:
    found = set()
    for node in _statements(ast.parse(file.read_bytes()), everywhere=everywhere):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif node.module is not None:
            inner = {f"{node.module}.{a.name}" for a in node.names}
            # `from package import module` needs that module, not what else the package holds.
            modules = inner & NAMES
            found |= modules if modules == inner else modules | {node.module}
    return found


def _tops(file: Path, *, everywhere: bool) -> set[str]:
    return {name.partition(".")[0] for name in _imports(file, everywhere=everywhere)}


def _matches(file: Path, patterns: tuple[str, ...]) -> bool:
    return any(file.relative_to(ROOT).match(p) for p in patterns)


def _short(file: Path) -> str:
    return str(file.relative_to(ROOT))


def test_there_is_something_to_check() -> None:
    assert {"bench.cli", "quantize.cli", "quantize.sources"} <= NAMES


def test_bench_knows_nothing_of_quantize() -> None:
    below = [f for f in FILES if f.is_relative_to(ROOT / "bench")]
    assert not [_short(f) for f in below if "quantize" in _tops(f, everywhere=True)]
    # Nor by name: what runs in a child process is named by text.
    assert not [_short(f) for f in below if '"quantize.' in f.read_text(encoding="utf-8")]


def test_no_two_modules_need_each_other() -> None:
    arrows = {_name(f): _imports(f, everywhere=False) & NAMES - {_name(f)} for f in FILES}
    # Raises CycleError, which names the cycle.
    order = list(TopologicalSorter(arrows).static_order())
    assert order.index("bench.errors") < order.index("quantize.commands.app")


@pytest.mark.parametrize("file", FILES, ids=_short)
def test_heavy_packages_are_imported_where_they_are_used(file: Path) -> None:
    allowed = {"onnx_ir"} if _matches(file, GRAPH_MODULES) else set()
    assert not _tops(file, everywhere=False) & HEAVY - allowed


@pytest.mark.parametrize("file", FILES, ids=_short)
def test_each_package_has_its_files(file: Path) -> None:
    used = _tops(file, everywhere=True) & set(ALLOWED)
    assert not {p for p in used if not _matches(file, ALLOWED[p])}


def test_no_file_has_a_name_that_says_nothing() -> None:
    assert not [_short(f) for f in FILES if {*f.relative_to(ROOT).with_suffix("").parts} & VAGUE]
