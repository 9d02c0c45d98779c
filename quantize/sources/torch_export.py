"""Writing a PyTorch program as ONNX: free axes, tensors in and out, nothing of this machine."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import UnsupportedError, describe_error
from bench.models import Feeds, TensorSpec
from bench.programs import leaves, quiet, save_program
from quantize.sources.torch_bags import bags_as_sums
from quantize.sources.torch_program import Program, import_torch

logger = logging.getLogger(__name__)

# torch's own translations are written for this opset; newer ones are made from it by conversion.
_OPSET = 18
# protobuf's limit is 2 GiB for everything together.
_MAX_INLINE_BYTES = 1_800_000_000


def export(program: Program, feeds: Sequence[Feeds], outputs: Sequence[Feeds], out: Path) -> None:
    """Export with free axes; where torch cannot, once more with a fixed batch.

    Args:
        program: What to export; its inputs say which axes are free.
        feeds: Samples, at best of several sizes.
        outputs: What the program returns for them, by the names that the outputs get.
        out: The file to write.

    Raises:
        UnsupportedError: torch cannot export it either way.
    """
    try:
        _write(program, example_of(program.inputs, feeds), outputs, out)
    except Exception as e:
        # torch.export passes on whatever the model's code raises.
        fixed = fix_batch(program.inputs, feeds[0])
        if fixed == program.inputs:
            raise UnsupportedError(f"torch cannot export the model: {_reason(e)}") from e
        logger.warning(
            "torch cannot export the model with a free batch axis, so it is fixed: %s", _reason(e)
        )
        _write_fixed(replace(program, inputs=fixed), feeds, outputs, out)


def export_program(
    program: Program, feeds: Sequence[Feeds], outputs: Sequence[Feeds], out: Path
) -> None:
    """Write a `.pt2` program: the module as it is, for PyTorch itself to run.

    Args:
        program: What to export; axes that its inputs leave free stay free where torch allows it.
        feeds: Samples.
        outputs: What the program returns for them, by the names that the outputs get.
        out: The file to write.

    Raises:
        UnsupportedError: torch cannot export it.
    """
    torch = import_torch()
    example = example_of(program.inputs, feeds)
    free = tuple(
        {a: torch.export.Dim.AUTO for a, d in enumerate(s.shape or ()) if not isinstance(d, int)}
        for s in program.inputs
    )
    arguments = tuple(torch.tensor(example[s.name]) for s in program.inputs)
    try:
        with quiet(), torch.no_grad():
            exported = torch.export.export(
                flat(program, torch), arguments, dynamic_shapes=(free,) if any(free) else None
            )
    except Exception as e:
        raise UnsupportedError(f"torch cannot export the model: {_reason(e)}") from e
    save_program(exported, out, inputs=[s.name for s in program.inputs], outputs=list(outputs[0]))


def _write_fixed(
    program: Program, feeds: Sequence[Feeds], outputs: Sequence[Feeds], out: Path
) -> None:
    fixed = program.inputs
    try:
        _write(program, example_of(fixed, feeds), outputs, out)
    except Exception as e:
        free = [str(s) for s in fixed if any(not isinstance(d, int) for d in s.shape or ())]
        advice = f" Fix the free axes of {', '.join(free)} with --input." if free else ""
        raise UnsupportedError(f"torch cannot export the model: {_reason(e)}.{advice}") from e


def fix_batch(inputs: Sequence[TensorSpec], sample: Feeds) -> tuple[TensorSpec, ...]:
    """Specs whose free first axes have the size that they have in a sample."""
    sizes: dict[int | str | None, int | str | None] = {
        s.shape[0]: sample[s.name].shape[0]
        for s in inputs
        if s.shape and s.batch_is_free and s.shape[0] is not None
    }
    return tuple(
        replace(
            s,
            shape=tuple(
                sample[s.name].shape[0] if axis == 0 and d is None else sizes.get(d, d)
                for axis, d in enumerate(s.shape or ())
            ),
        )
        for s in inputs
    )


def example_of(inputs: Sequence[TensorSpec], feeds: Sequence[Feeds]) -> Feeds:
    """The first sample with every free axis stretched to a size of its own, at least 2.

    torch.export takes an axis of size 1 for fixed, and two axes of one size for the same.
    """
    sizes: dict[str, int] = {}
    example = {s.name: feeds[0][s.name] for s in inputs}
    for spec in inputs:
        for axis, dim in enumerate(spec.shape or ()):
            if isinstance(dim, int):
                continue
            symbol = dim or f"{spec.name}_{axis}"
            if symbol not in sizes:
                sizes[symbol] = max(2, *(f[spec.name].shape[axis] for f in feeds), 2)
                while list(sizes.values()).count(sizes[symbol]) > 1:
                    sizes[symbol] += 1
            array = example[spec.name]
            cycle = np.arange(sizes[symbol]) % array.shape[axis]
            example[spec.name] = array.take(cycle, axis=axis)
    return example


def _write(program: Program, example: Feeds, outputs: Sequence[Feeds], out: Path) -> None:
    torch = import_torch()
    order = [s.name for s in program.inputs]
    free = tuple(
        {
            axis: dim or f"{s.name}_{axis}"
            for axis, dim in enumerate(s.shape or ())
            if not isinstance(dim, int)
        }
        for s in program.inputs
    )
    with quiet(), bags_as_sums(torch):
        exported = torch.onnx.export(
            flat(program, torch),
            tuple(torch.tensor(example[n]) for n in order),
            dynamo=True,
            verbose=False,
            input_names=order,
            output_names=list(outputs[0]),
            opset_version=_OPSET,
            dynamic_shapes=(free,) if any(free) else None,
        )
        _clean(exported.model)
        if any(free):
            _free_shapes(exported.model.graph, outputs)
        constants = exported.model.graph.initializers.values()
        size = sum(v.const_value.nbytes for v in constants if v.const_value is not None)
        exported.save(str(out), external_data=size > _MAX_INLINE_BYTES)


def flat(program: Program, torch: Any) -> Any:
    """A module of tensors in, tensors out, whatever structure the user's has."""

    class Flat(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.module = program.module
            # Not `eval()`: a module that comes from a .pt2 file refuses to be switched.
            self.training = False

        def train(self, mode: bool = True) -> Any:  # noqa: ARG002, FBT001, FBT002 - torch's own
            # Nor does it refuse when somebody else asks.
            return self

        def forward(self, *tensors: Any) -> tuple[Any, ...]:
            return tuple(t for _, t in leaves(program.call(tensors), torch))

    return Flat()


def _clean(model: Any) -> None:
    """Undo the wrapper's prefix, and remove source lines and paths of this machine.

    Names inside the graph make way for those of inputs and outputs: torch calls what `torch.cat`
    returns "cat", whether or not an input is called so.
    """
    from onnx_ir.passes.common import NameFixPass

    for value in list(model.graph.initializers.values()):
        value.name = value.name.removeprefix("module.")
    taken = {v.name for v in (*model.graph.inputs, *model.graph.outputs)}
    if any(v.name in taken for v in _inside(model.graph)):
        NameFixPass()(model)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _inside(graph: Any) -> Iterator[Any]:
    """Values that are neither inputs nor outputs."""
    declared = {id(v) for v in (*graph.inputs, *graph.outputs)}
    made = (v for node in graph.all_nodes() for v in node.outputs)
    return (v for v in (*graph.initializers.values(), *made) if id(v) not in declared)


def _free_shapes(graph: Any, outputs: Sequence[Feeds]) -> None:
    """Withdraw sizes that hold for the example alone.

    torch writes the example's length into what an LSTM returns, although the exported operator
    takes any. Shapes inside the graph are left to shape inference; those of outputs are kept as
    far as they agree with what the program returned.
    """
    declared = {id(v) for v in graph.outputs}
    for node in graph.all_nodes():
        for value in node.outputs:
            if id(value) not in declared:
                value.shape = None
    for value in graph.outputs:
        for axis, size in enumerate(value.shape or ()):
            seen = {o[value.name].shape[axis] for o in outputs}
            if isinstance(size, int) and seen != {size}:
                value.shape[axis] = f"{value.name}_{axis}"


def _reason(error: BaseException) -> str:
    """The innermost cause: what the exporter wraps around it is advice for its own developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return describe_error(error)
