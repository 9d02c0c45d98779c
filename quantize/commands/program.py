"""PyTorch models for `vnnify bench`: what a factory makes, as a program of its own."""

from typing import TYPE_CHECKING

from bench.isolate import run_isolated
from bench.store import dump
from quantize.commands.asked import model_spec

if TYPE_CHECKING:
    from bench.planning import Request


def export_program(request: "Request") -> None:
    """Write the `.pt2` file that `vnnify bench` asks for; the user's code runs in a child process.

    Raises:
        VnnifyError: The model or its data is unusable, or torch cannot export it.
    """
    spec = model_spec(request.text, request.weights, list(request.inputs), trust=request.trust)
    run_isolated(
        "quantize.commands.work:program",
        {
            "spec": dump(spec).decode(),
            "data": None if request.data is None else str(request.data),
            "out": str(request.out),
        },
        scratch=request.out.parent,
        name=f"exporting {request.text}",
    )
