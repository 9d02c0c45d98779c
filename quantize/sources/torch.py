"""PyTorch models: `.pt2` programs, and factories with their weights, exported with torch.export.

Weights are read from safetensors or by torch's restricted unpickler; there is no second try
without the restriction. A `.pt2` file is opened where `torch_archive` finds nothing in it but data;
any other has to be trusted explicitly.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bench.errors import InputError, UnsupportedError, UsageError
from bench.models import Array, Feeds, Model, TensorSpec, read_model
from bench.programs import leaves, output_names
from quantize.data import Samples
from quantize.plugins import blame, is_function_text, load_function
from quantize.sources.parity import check_parity, refuse_random
from quantize.sources.seam import ModelSpec
from quantize.sources.torch_export import example_of, export, export_program, fix_batch, flat
from quantize.sources.torch_program import (
    Program,
    import_torch,
    open_factory,
    open_program,
)

logger = logging.getLogger(__name__)

_PARITY_SAMPLES = 8
# Size of free axes besides the batch in made-up samples.
_SYNTHETIC_SIZE = 8
_UNREADABLE = ("string", "bfloat16")


def accepts(text: str) -> bool:
    """Whether `text` names a `.pt2` file or a factory."""
    return Path(text).suffix == ".pt2" or is_function_text(text)


def describe_inputs(spec: ModelSpec) -> Sequence[TensorSpec] | None:
    """The signature of a `.pt2` program, or what the user named, or None."""
    if Path(spec.text).suffix == ".pt2":
        return open_program(spec).inputs
    return spec.inputs or None


def convert(spec: ModelSpec, samples: Samples | None, out: Path) -> Model:
    """Export a module and compare the ONNX file with it on real samples.

    Raises:
        UsageError: Its inputs are unknown.
        InputError: A `.pt2` file could run code and is not trusted, weights do not fit, the module
            fails on a sample, or the export computes something else.
        UnsupportedError: torch cannot export it, it draws random numbers, or it is quantized
            already.
    """
    program = _open(spec, samples)
    feeds = _samples_for(program, samples)
    run = _reference(program, spec)
    refuse_random(run, feeds[0], spec.text)
    outputs = [run(f) for f in feeds]
    inputs = program.inputs if spec.dynamic_batch else fix_batch(program.inputs, feeds[0])
    export(replace(program, inputs=inputs), feeds, outputs, out)
    known = iter(outputs)
    check_parity(lambda _: next(known), out, feeds)
    return read_model(out)


class Change(Protocol):
    """Makes another module of a module of tensors in, tensors out."""

    def __call__(
        self, module: Any, example: tuple[Any, ...], free: Any, batches: Iterator[tuple[Any, ...]]
    ) -> Any:
        """The changed module; it takes and returns what `module` does.

        Args:
            module: `torch.nn.Module`.
            example: Tensors that it takes, free axes stretched.
            free: Its free axes, as `torch.export.export` takes them; None where there are none.
            batches: Tensors that it takes, one sample after the other.
        """
        ...


def convert_changed(
    spec: ModelSpec,
    like: Model,
    samples: Samples,
    feeds: Iterable[Feeds],
    change: Change,
    out: Path,
) -> None:
    """Export what `change` makes of a module.

    Args:
        spec: The module.
        like: Its ONNX form, whose free axes and names the file gets.
        samples: Real ones, to export with.
        feeds: What `change` gets to see, by input name.
        change: Makes another module of it.
        out: The file to write.

    Raises:
        UnsupportedError: torch cannot export the result.
    """
    program = replace(_open(spec, samples), inputs=like.inputs)
    torch = import_torch()
    few = _samples_for(program, samples)
    run = _reference(program, spec)
    outputs = [run(f) for f in few]
    order = [s.name for s in program.inputs]
    example = example_of(program.inputs, few)
    free = tuple(
        {a: torch.export.Dim.AUTO for a, d in enumerate(s.shape or ()) if not isinstance(d, int)}
        for s in program.inputs
    )
    changed = change(
        flat(program, torch),
        tuple(torch.tensor(example[n]) for n in order),
        (free,) if any(free) else None,
        (tuple(torch.tensor(f[n]) for n in order) for f in feeds),
    )
    changed = replace(program, module=changed, arrange=lambda tensors: (tuple(tensors), {}))
    export(changed, few, outputs, out)


def write_program(spec: ModelSpec, samples: Samples | None, out: Path) -> None:
    """Write a module as a `.pt2` program with the names that its ONNX form would have.

    Raises:
        UsageError: Its inputs are unknown.
        InputError: Weights do not fit, or the module fails on a sample.
        UnsupportedError: torch cannot export it.
    """
    program = _open(spec, samples)
    feeds = _samples_for(program, samples)
    run = _reference(program, spec)
    export_program(program, feeds, [run(feeds[0])], out)


def _open(spec: ModelSpec, samples: Samples | None) -> Program:
    if Path(spec.text).suffix == ".pt2":
        return open_program(spec)
    inputs = spec.inputs or (samples.inputs if samples is not None else ())
    if not inputs:
        # That the function is not there is told first.
        load_function(spec.text, what="model factory")
        raise UsageError(
            f"{spec.text}: what does it take? Give --data, or --input as in "
            "--input image:f32[N,3,224,224]."
        )
    return open_factory(spec, inputs)


def _samples_for(program: Program, samples: Samples | None) -> list[Feeds]:
    for spec in program.inputs:
        if spec.dtype in _UNREADABLE:
            raise UnsupportedError(f"input {spec}: PyTorch cannot be fed {spec.dtype} arrays.")
    if samples is not None:
        return [samples[i].feeds for i in range(min(_PARITY_SAMPLES, len(samples)))]
    return made_up(program.inputs)


def made_up(inputs: Sequence[TensorSpec]) -> list[Feeds]:
    """Samples of two sizes: an axis that became fixed in the conversion shows only at another."""
    batches = {s.shape[0] for s in inputs if s.shape}
    rng = np.random.default_rng(0)
    return [{s.name: _made_up(s, batches, more, rng) for s in inputs} for more in range(2)]


def _made_up(
    spec: TensorSpec, batches: set[int | str | None], more: int, rng: np.random.Generator
) -> Array:
    """A batch of one, and a small size for other free axes; each larger by `more`."""
    dims = [
        d if isinstance(d, int) else more + (1 if axis == 0 or d in batches else _SYNTHETIC_SIZE)
        for axis, d in enumerate(spec.shape or ())
    ]
    if np.issubdtype(np.dtype(spec.dtype), np.floating):
        return rng.standard_normal(dims).astype(spec.dtype)
    # Small: whole numbers are mostly indices, and the size of the table is not known.
    return rng.integers(0, 2, dims).astype(spec.dtype)


def _reference(program: Program, spec: ModelSpec) -> Callable[[Feeds], Feeds]:
    """The module as a function from feeds to outputs by name."""
    torch = import_torch()
    order = [s.name for s in program.inputs]

    def run(feeds: Feeds) -> Feeds:
        # Copies: samples are read-only, which torch does not respect.
        tensors = [torch.tensor(feeds[n]) for n in order]
        with blame(spec.text, what="model"), torch.inference_mode():
            outputs = list(leaves(program.call(tensors), torch))
        if not outputs:
            raise InputError(f"{spec.text}: the model returns no tensor.")
        # Half precision that the module made by itself has no counterpart in numpy.
        arrays = [t.float() if t.dtype == torch.bfloat16 else t for _, t in outputs]
        return {n: t.numpy() for n, t in zip(output_names(outputs, order), arrays, strict=True)}

    return run
