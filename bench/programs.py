"""PyTorch programs: `.pt2` files that `torch.export.save` wrote, opened without running their code.

A program is what a runtime of PyTorch gets to run, as an `.onnx` file is what the others get. Names
of inputs and outputs that differ from the program's own stand in a file inside the archive.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import InputError, UnfitError, describe_error
from bench.models import Model, TensorSpec, digest
from bench.torch_archive import private_copy, refuse_unsafe, register_quantized

logger = logging.getLogger(__name__)

_NAMES = "vnnify.json"


@dataclass(frozen=True, slots=True)
class Program:
    """A program in memory.

    Attributes:
        exported: `torch.export.ExportedProgram`.
        inputs: What it takes, in order.
        outputs: Names that the archive gives to what it returns; empty where it gives none.
        arrange: Tensors in order, as the arguments and keyword arguments of a call.
        changes_inputs: Whether an operator may write into what it was given.
    """

    exported: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    arrange: Callable[[Sequence[Any]], tuple[tuple[Any, ...], dict[str, Any]]]
    changes_inputs: bool


def read_program(path: Path, *, trust: bool = False, name: str = "") -> Model:
    """Look at a `.pt2` file; torch opens it only if nothing in it could run code.

    Args:
        path: The file.
        trust: Open it whatever it holds.
        name: What to call it in messages, where not by its path.

    Raises:
        InputError: It is missing or damaged, or could run code and is not trusted.
        UnfitError: torch is not installed.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    import_torch()
    name = name or str(path)
    if trust:
        return _model(path, path, name)
    with private_copy(path) as copy:
        with quiet():
            refuse_unsafe(copy, name)
        return _model(path, copy, name)


def _model(path: Path, copy: Path, name: str) -> Model:
    program = load_program(copy, name)
    return Model(
        path=path,
        inputs=program.inputs,
        outputs=_outputs(program),
        opset=0,
        sha256=digest([copy]),
        size_bytes=copy.stat().st_size,
    )


def describe_program(job: dict[str, Any]) -> str:
    """A `Model` as JSON; `read_program` in a process of its own, which torch may crash."""
    from bench.store import dump

    return dump(read_program(Path(job["path"]), trust=job["trust"], name=job["name"])).decode()


def load_program(path: Path, name: str) -> Program:
    """Open a program that was found safe, or is trusted.

    Args:
        path: The archive; torch may run code that is in it, see `read_program`.
        name: What to call it in messages.

    Raises:
        InputError: torch cannot load it.
    """
    import torch
    from torch.utils import _pytree

    extra = {_NAMES: ""}
    try:
        with quiet():
            register_quantized()
            exported = torch.export.load(path, extra_files=extra)
    except Exception as e:  # the archive reader, JSON and torch raise anything
        raise _unloadable(name, e) from e
    structure, given = exported.call_spec.in_spec, exported.graph_signature.user_inputs
    values = {n.name: n.meta.get("val") for n in exported.graph.nodes if n.op == "placeholder"}
    tensors = [n for n in given if values.get(n) is not None]
    inputs, outputs = _names(extra[_NAMES], tensors, name)

    def arrange(arguments: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        by_name = dict(zip(tensors, arguments, strict=True))
        args, kwargs = _pytree.tree_unflatten([by_name.get(n, n) for n in given], structure)
        return tuple(args), kwargs

    specs = tuple(_spec(new, values[old]) for new, old in zip(inputs, tensors, strict=True))
    return Program(exported, specs, outputs, arrange, _changes_inputs(exported))


def make_module(exported: Any, name: str) -> Any:
    """A module of an exported program.

    Raises:
        InputError: torch cannot make one of it.
    """
    try:
        with quiet():
            return exported.module()
    except Exception as e:  # the graph's own code, made of the archive's texts
        raise _unloadable(name, e) from e


def _unloadable(name: str, error: Exception) -> InputError:
    import torch

    return InputError(
        f"{name}: torch {torch.__version__} cannot load it: {describe_error(error)}. "
        "Save it again with torch.export.save of this version."
    )


def save_program(
    exported: Any, path: Path, *, inputs: Sequence[str], outputs: Sequence[str]
) -> None:
    """Write a program with names of its own for inputs and outputs.

    Args:
        exported: `torch.export.ExportedProgram`.
        path: The `.pt2` file.
        inputs: A name per tensor that it takes, in order.
        outputs: A name per tensor that it returns, in order.
    """
    import torch

    text = json.dumps({"inputs": list(inputs), "outputs": list(outputs)})
    with quiet():
        torch.export.save(exported, path, extra_files={_NAMES: text})


def leaves(value: Any, torch: Any, path: tuple[str | int, ...] = ()) -> Iterator[Any]:
    """Tensors in an output, each with its path; anything else is left out."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif hasattr(value, "items"):
        for key, inner in value.items():
            yield from leaves(inner, torch, (*path, str(key)))
    elif hasattr(value, "__dataclass_fields__") or hasattr(value, "_fields"):
        for key in getattr(value, "_fields", None) or value.__dataclass_fields__:
            yield from leaves(getattr(value, key), torch, (*path, key))
    elif isinstance(value, tuple | list):
        for i, inner in enumerate(value):
            yield from leaves(inner, torch, (*path, i))


def output_names(outputs: list[tuple[tuple[str | int, ...], Any]], inputs: list[str]) -> list[str]:
    """`output_0`, `output_1` … in order, or the keys where the module returns some."""
    names: list[str] = []
    for number, (path, _) in enumerate(outputs):
        if any(isinstance(p, str) for p in path):
            name = "_".join(str(p) for p in path)
            name = f"output_{name}" if isinstance(path[0], int) else name
        else:
            name = f"output_{number}"
        while name in inputs or name in names:
            name += "_out"
        names.append(name)
    return names


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's progress, advice and deprecations off both streams."""
    packages = (
        "torch.onnx",
        "torch.export",
        "torch.fx",
        "torch._inductor",
        "onnxscript",
        "onnx_ir",
    )
    noisy = [logging.getLogger(n) for n in packages]
    levels = [n.level for n in noisy]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for log in noisy:
                log.setLevel(logging.CRITICAL)
            yield
        finally:
            for log, level in zip(noisy, levels, strict=True):
                log.setLevel(level)


def import_torch() -> Any:
    """The package torch.

    Raises:
        UnfitError: It is not installed.
    """
    try:
        import torch
        import torch.export
    except ImportError as e:
        raise UnfitError(f"PyTorch programs need torch ({e}): pip install 'vnnify[torch]'") from e
    return torch


def _names(text: str, tensors: Sequence[str], name: str) -> tuple[list[str], tuple[str, ...]]:
    """Names of inputs and outputs, from the archive's own file where it has one."""
    if not text:
        return list(tensors), ()
    try:
        found = json.loads(text)
        inputs, outputs = list(found["inputs"]), tuple(found["outputs"])
        sound = all(isinstance(n, str) for n in (*inputs, *outputs))
    except (ValueError, TypeError, KeyError):
        sound = False
    if not sound or len(inputs) != len(tensors) or len(set(inputs)) < len(inputs):
        raise InputError(f"{name}: its {_NAMES} does not name its inputs. Make the file again.")
    return inputs, outputs


def _spec(name: str, value: Any) -> TensorSpec:
    shape = tuple(d if isinstance(d, int) else str(d) for d in value.shape)
    return TensorSpec(name, str(value.dtype).removeprefix("torch."), shape)


def _outputs(program: Program) -> tuple[TensorSpec, ...]:
    """Outputs as far as the graph tells them; names are `output_i` where the archive has none."""
    nodes = {n.name: n.meta.get("val") for n in program.exported.graph.nodes}
    found = [nodes.get(n) for n in program.exported.graph_signature.user_outputs if n in nodes]
    values = [v for v in found if hasattr(v, "dtype")]
    names = program.outputs
    if len(names) != len(values):
        names = tuple(f"output_{i}" for i in range(len(values)))
    return tuple(_spec(n, v) for n, v in zip(names, values, strict=True))


def _changes_inputs(exported: Any) -> bool:
    schemas = (getattr(n.target, "_schema", None) for n in exported.graph.nodes)
    return any(s is not None and s.is_mutable for s in schemas)
