"""PyTorch models for `vnnify bench`: what a factory makes, as a program of its own."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.isolate import run_isolated
from bench.store import dump, load
from quantize.commands.arguments import model_spec, preprocessing

if TYPE_CHECKING:
    from bench.planning import Request

# More samples than the export looks at would only be read.
_SAMPLES = 8


def export_program(request: "Request") -> None:
    """Write the `.pt2` file that `vnnify bench` asks for; the user's code runs in a child process.

    Raises:
        VnnifyError: The model or its data is unusable, or torch cannot export it.
    """
    spec = model_spec(request.text, request.weights, list(request.inputs), trust=request.trust)
    run_isolated(
        "quantize.commands.program:work",
        {
            "spec": dump(spec).decode(),
            "data": None if request.data is None else str(request.data),
            "out": str(request.out),
        },
        scratch=request.out.parent,
        name=f"exporting {request.text}",
    )


def work(job: dict[str, Any]) -> None:
    """The child process."""
    from quantize.data import infer_inputs, read_samples
    from quantize.sources import ModelSpec, describe_inputs
    from quantize.sources.torch import write_program

    spec, out = load(ModelSpec, job["spec"].encode(), "spec"), Path(job["out"])
    samples = None
    if job["data"] is not None:
        inputs = describe_inputs(spec) or spec.inputs or infer_inputs(job["data"])
        scratch = out.with_suffix("")
        scratch.mkdir()
        samples = read_samples(
            job["data"], inputs, scratch=scratch, preprocessing=preprocessing(), limit=_SAMPLES
        )
    write_program(spec, samples, out)
