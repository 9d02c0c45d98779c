"""PyTorch programs: a `.pt2` file, or what a factory makes, called with tensors in order."""

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import InputError, UnfitError, UnsupportedError, UsageError
from bench.models import TensorSpec
from bench.programs import load_program, make_module, quiet
from bench.torch_archive import private_copy, refuse_unsafe
from quantize.plugins import blame, load_function
from quantize.sources.seam import ModelSpec
from quantize.sources.torch_weights import load_weights

logger = logging.getLogger(__name__)

# Whose arguments are data, weight, bias, running mean, running variance, training, …
_NORMS = ("aten.batch_norm.default", "aten._native_batch_norm_legit_functional.default")
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")


@dataclass(frozen=True, slots=True)
class Program:
    """A module that can be called with its inputs in order.

    Attributes:
        module: The module, ready for inference.
        inputs: What it takes, in order.
        arrange: Tensors in order, as the arguments and keyword arguments of a call.
    """

    module: Any
    inputs: tuple[TensorSpec, ...]
    arrange: Callable[[Sequence[Any]], tuple[tuple[Any, ...], dict[str, Any]]]

    def call(self, tensors: Sequence[Any]) -> Any:
        """Run the module, and return what it returns."""
        args, kwargs = self.arrange(tensors)
        return self.module(*args, **kwargs)


def open_program(spec: ModelSpec) -> Program:
    """Load a `.pt2` file.

    Raises:
        UsageError: Weights were given with it.
        InputError: It is missing or damaged, or could run code and is not trusted.
        UnsupportedError: It was exported in training mode.
    """
    if spec.weights is not None:
        raise UsageError(f"{spec.text}: a .pt2 file has its own weights; leave --weights out.")
    if not Path(spec.text).is_file():
        raise InputError(f"{spec.text}: no such file.")
    import_torch()
    if spec.trust:
        return _opened(Path(spec.text), spec.text)
    with private_copy(Path(spec.text)) as copy:
        with quiet():
            refuse_unsafe(copy, spec.text)
        return _opened(copy, spec.text)


def _opened(path: Path, name: str) -> Program:
    found = load_program(path, name)
    _refuse_training(found.exported, name)
    return Program(make_module(found.exported, name), found.inputs, found.arrange)


def _refuse_training(exported: Any, name: str) -> None:
    """Refuse batch norms that go on learning: torch writes them to ONNX as if they did not."""
    for node in exported.graph.nodes:
        if str(node.target) in _NORMS and node.args[3] is not None and node.args[5] is True:
            raise UnsupportedError(
                f"{name}: was exported in training mode: its batch norm {node.name!r} normalizes "
                "with each batch's own statistics, not with what was learned. Call `module.eval()` "
                "and export it again."
            )


def open_factory(spec: ModelSpec, inputs: tuple[TensorSpec, ...]) -> Program:
    """Call a factory, load its weights, and make the module ready for inference."""
    torch = import_torch()
    factory = load_function(spec.text, what="model factory")
    with blame(spec.text, what="model factory"):
        module = factory()
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedError(
            f"{spec.text}: made a TorchScript module, which cannot be exported. Return the "
            "nn.Module that it was scripted from."
        )
    if not isinstance(module, torch.nn.Module):
        raise InputError(
            f"{spec.text}: made a {type(module).__name__}, expected a torch.nn.Module."
        )
    # torch.compile and DataParallel wrap the module that is meant.
    module = getattr(module, "_orig_mod", module)
    if isinstance(module, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
        module = module.module
    _refuse_unsupported(module, spec)
    if spec.weights is not None:
        load_weights(module, spec.weights)
    odd = {str(t.dtype) for t in module.state_dict().values() if t.is_floating_point()}
    if odd - {"torch.float32"}:
        logger.warning("%s: has weights in %s; exported in float32", spec.text, ", ".join(odd))
        module = module.float()
    module = module.cpu().eval().requires_grad_(requires_grad=False)
    return Program(module, inputs, _binding(module, inputs, spec))


def _binding(
    module: Any, inputs: tuple[TensorSpec, ...], spec: ModelSpec
) -> Callable[[Sequence[Any]], tuple[tuple[Any, ...], dict[str, Any]]]:
    """Pass inputs by name where forward knows the names, else in the order of --input."""
    names = [s.name for s in inputs]
    parameters = inspect.signature(module.forward).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes = [p.name for p in named]
    missing = [p.name for p in named if p.default is p.empty and p.name not in names]
    if set(names) <= set(takes) and not missing:
        return lambda tensors: ((), dict(zip(names, tensors, strict=True)))
    room = len(takes) if not any(p.kind == p.VAR_POSITIONAL for p in parameters) else len(names)
    required = sum(p.default is p.empty for p in named)
    if (len(names) == 1 or spec.inputs) and required <= len(names) <= room:
        logger.info("%s: feeding %s in this order", spec.text, ", ".join(names))
        return lambda tensors: (tuple(tensors), {})
    raise UsageError(
        f"{spec.text}: forward takes {', '.join(takes) or 'nothing'}, the inputs are "
        f"{', '.join(names)}. Name the arrays like the parameters of forward, or give one "
        "--input for each in their order."
    )


def _refuse_unsupported(module: Any, spec: ModelSpec) -> None:
    for name, part in module.named_modules():
        if type(part).__module__.startswith(_QUANTIZED):
            raise UnsupportedError(
                f"{spec.text}: {name or 'the module'} is quantized already "
                f"({type(part).__name__}). Give the float model that it was made from."
            )
    for name, tensor in module.state_dict().items():
        if not hasattr(tensor, "is_complex"):
            continue
        if tensor.is_complex() or tensor.is_quantized:
            kind = "complex" if tensor.is_complex() else "quantized"
            raise UnsupportedError(
                f"{spec.text}: weight {name!r} is {kind}; only real float models can be converted."
            )


def import_torch() -> Any:
    """The package torch, with what exporting needs."""
    try:
        import onnxscript  # noqa: F401 - torch.onnx.export needs it and says so late
        import torch
        import torch.export
        import torch.onnx
    except ImportError as e:
        raise UnfitError(
            f"PyTorch models need torch and onnxscript ({e}): pip install 'vnnify[torch]'"
        ) from e
    return torch
