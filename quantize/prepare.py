"""One clean FP32 graph out of whatever an exporter wrote.

    model.onnx ─▶ opset ≥ 13 ─▶ functions inlined ─▶ half → float ─▶ constants lifted, names fixed
               ─▶ folded by ONNX Runtime's basic passes ─▶ own rewrites ─▶ weights checked finite

Every step keeps what the graph computes; the caller compares the result with its source on real
samples.
"""

import gc
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from bench.errors import InputError, UnsupportedError, VnnifyError
from bench.models import Model, read_model
from bench.runtimes.onnxruntime import first_line, open_errors, refusal, session_options
from bench.runtimes.seam import Settings
from bench.store import refuse_full
from quantize.amounts import size_text
from quantize.einsums import write_out_einsums
from quantize.graphs import (
    constants_of,
    load,
    release,
    save,
    save_apart,
    tensors_of,
    too_large,
    weight_bytes,
)
from quantize.halves import widen
from quantize.loops import free_invariants
from quantize.protos import load_graph
from quantize.rewrites import rewrite

logger = logging.getLogger(__name__)

# Weights that are worth looking for at once when nobody needs them any more.
_LARGE_BYTES = 16 << 20
_QUANTIZED_OPS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger"}
    | {"ConvInteger", "DynamicQuantizeLinear", "QGemm", "DynamicQuantizeMatMul", "QAttention"}
    | {"DynamicQuantizeLSTM", "MatMulIntegerToFloat", "MatMulNBits"}
)
# Left out of the folding: they change the graph's shape for one runtime's sake.
_SKIPPED_PASSES = (
    "MatMulAddFusion",
    "TransposeOptimizer",
    "ConstantSharing",
    "GemmActivationFusion",
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A clean FP32 model and what was done to get it.

    Attributes:
        model: The file, opset 13 or newer.
        notes: One sentence per change that a user may want to know of.
    """

    model: Model
    notes: tuple[str, ...]


def prepare(
    source: Model, out: Path, *, name: str | None = None, folder: Path | None = None
) -> Prepared:
    """Write a clean FP32 copy of `source` to `out`.

    Args:
        source: A model as exported; not changed.
        out: The `.onnx` to write, in a folder that holds nothing of the same name.
        name: What the user calls the model; None for its path.
        folder: For what is written on the way, that of `out` if None. Weights that lie in files
            there are not copied.

    Raises:
        InputError: A weight is NaN or infinite, or the runtime refuses the graph.
        UnsupportedError: It is quantized already, its opset cannot be raised, or it uses unknown
            operators.
        UnfitError: It handles text by the rules of a locale that is not installed.
    """
    notes: list[str] = []
    shown = name or str(source.path)
    # The source may have brought files of any name.
    raw = (folder or out.parent) / f"raw-{source.sha256[:16]}.onnx"
    try:
        model = _cleaned(source, notes, shown)
        # Apart, so that neither we nor the runtime hold the weights several times over.
        save_apart(model, raw)
    except (ir.serde.SerdeError, TypeError, ValueError) as e:
        raise InputError(
            f"{shown}: its graph makes no sense: {_root(e)}. The file is damaged, or its exporter "
            "has a bug: export or copy it again."
        ) from e
    swishes = _hard_swishes(model)
    model = _fold(raw, model, notes, shown)
    notes += rewrite(model, hard_swishes=swishes - _hard_swishes(model))
    if count := write_out_einsums(model):
        notes.append(f"{count} Einsums with constant weights written as MatMul")
    model = tidy(model)
    refuse_nonfinite(model, shown)
    save(model, out, share=True)
    release(model)
    for leftover in raw.parent.glob(f"{raw.stem}*"):
        leftover.unlink()
    return Prepared(read_model(out), tuple(notes))


def _cleaned(source: Model, notes: list[str], shown: str) -> ir.Model:
    """The graph in FP32, each tensor found whole and finite, before ONNX Runtime folds it."""
    # Functions first: what is in them is not looked into below.
    model = passes.InlinePass()(load_graph(source, notes, shown)).model
    _refuse_quantized(model, shown)
    _refuse_damaged(model, shown)
    _leave_training(model, notes)
    if count := free_invariants(model):
        notes.append(f"{count} values that never change in their loops taken out of them")
    if widen(model):
        notes.append(
            "half precision widened to float inside; inputs and outputs keep their types. FP32 is "
            f"that wider model; the source is {size_text(source.size_bytes)} large"
        )
    model = tidy(model)
    # Here already, since folding renames weights and spreads what is in them.
    refuse_nonfinite(model, shown)
    return model


def _refuse_quantized(model: ir.Model, shown: str) -> None:
    found = sorted(
        {
            n.op_type
            for n in model.graph.all_nodes()
            if n.op_type in _QUANTIZED_OPS and not _converts_ports(n)
        }
    )
    if found:
        raise UnsupportedError(
            f"{shown}: is quantized already (it holds {', '.join(found)}). Give the FP32 "
            f"model; to judge "
            "this one use `vnnify gate FP32 INT8`."
        )


def _leave_training(model: ir.Model, notes: list[str]) -> None:
    """Switch dropout off, as every runtime does, and tell of batch norms that go on learning."""
    dropouts = norms = 0
    for node in (n for n in model.graph.all_nodes() if n.domain in ("", "ai.onnx")):
        if node.op_type == "Dropout" and _is_training(node):
            node.resize_inputs(2)
            dropouts += 1
        # In any opset, a norm that learns says so by returning what it has learned.
        norms += node.op_type == "BatchNormalization" and len(node.outputs) > 1
    if dropouts:
        notes.append(f"{dropouts} Dropout nodes were exported in training mode; switched off")
    if norms:
        notes.append(
            f"{norms} batch norms were exported in training mode: they normalize with each "
            "batch's own statistics, not with what was learned. Unless that is meant, export the "
            "model in evaluation mode (`module.eval()`)"
        )


def _is_training(dropout: ir.Node) -> bool:
    """Whether a Dropout may be told to drop something; from opset 12 on an input says so."""
    mode = dropout.inputs[2] if len(dropout.inputs) > 2 else None
    known = ir.convenience.get_const_tensor(mode) if mode is not None else None
    return mode is not None and (known is None or bool(known.numpy()))


def _converts_ports(node: ir.Node) -> bool:
    """Whether it only turns an input of codes into floats, or floats into an output of codes."""
    if node.op_type == "DequantizeLinear":
        return node.inputs[0] is not None and node.inputs[0].is_graph_input()
    return node.op_type == "QuantizeLinear" and all(
        v.is_graph_output() and not v.uses() for v in node.outputs
    )


def _refuse_damaged(model: ir.Model, shown: str) -> None:
    """Refuse tensors whose data is not what their shape and type, or their file, promise."""
    for tensor in tensors_of(model):
        try:
            tensor.numpy()
        except (OSError, TypeError, ValueError) as e:
            raise InputError(
                f"{shown}: the data of tensor {tensor.name!r}, {tensor.dtype.name} "
                f"{list(tensor.shape.numpy())}, cannot be read: {e}. The file or its external data "
                "is damaged: export or copy it again."
            ) from e


def _root(error: BaseException) -> str:
    """The first line of what the error goes back to; onnx_ir wraps once per level of the graph."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")


def tidy(model: ir.Model) -> ir.Model:
    """Lift Constant nodes, drop what is unused, give everything a unique name."""
    for domain_pass in (
        passes.RemoveInitializersFromInputsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.RemoveUnusedNodesPass(),
        passes.NameFixPass(),
        passes.TopologicalSortPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.ClearMetadataAndDocStringPass(),
    ):
        model = domain_pass(model).model
    _name_apart(model)
    # Initializers were inputs up to IR 3; what runtimes of today read is 8 and newer.
    model.ir_version = max(model.ir_version, 8)
    return model


def _name_apart(model: ir.Model) -> None:
    """Tell nodes of sibling branches apart, which NameFixPass lets share a name."""
    nodes = list(model.graph.all_nodes())
    taken = {n.name for n in nodes}
    seen: set[str | None] = set()
    for node in nodes:
        stem, count = node.name, 1
        while node.name in seen:
            free = f"{stem}_{count}"
            node.name = free if free not in taken else node.name
            count += 1
        seen.add(node.name)


def _fold(path: Path, before: ir.Model, notes: list[str], shown: str) -> ir.Model:
    """Fold constants, batch norms and no-ops by ONNX Runtime's basic, CPU-independent passes.

    Args:
        path: The graph as a file.
        before: The same; its weights are given back.
        notes: Where to say what was done.
        shown: What the user calls the model.
    """
    import onnxruntime as ort

    options = session_options(Settings(threads=1, packed=False))
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    folded = path.with_name(f"{path.stem}.folded.onnx")
    options.optimized_model_filepath = str(folded)
    held = weight_bytes(before)
    if too_large(held):
        # Not otherwise: the runtime writes nodes in another order then.
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", f"{folded.name}.data"
        )
    ours = {n.domain for n in before.graph.all_nodes()} | {"", "ai.onnx"}
    # For a HardSwish the runtime, which has no kernel for it, writes two nodes.
    nodes = sum(1 for _ in before.graph.all_nodes()) + _hard_swishes(before)
    release(before)
    if held > _LARGE_BYTES:
        # Nodes that were taken out of the graph hold on to the whole file until then.
        gc.collect()
    try:
        ort.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(_SKIPPED_PASSES),
        )
    except open_errors() as e:
        refuse_full(folded.parent, max(held, path.stat().st_size))
        raise _refused(e, shown) from e
    after = load(folded)
    if any(n.domain not in ours for n in after.graph.all_nodes()):
        notes.append("constants not folded: the runtime's passes use operators of its own here")
        return load(path)
    count = nodes - sum(1 for _ in after.graph.all_nodes()) - _hard_swishes(after)
    if count > 0:
        plural = "s" * (count > 1)
        notes.append(f"{count} node{plural} folded away (constants, batch norms, no-ops)")
    return after


def _hard_swishes(model: ir.Model) -> int:
    return sum(n.op_type == "HardSwish" for n in model.graph.all_nodes())


def _refused(error: Exception, shown: str) -> VnnifyError:
    text = first_line(error)
    if "not a registered function/op" in text or "No Op registered" in text:
        return UnsupportedError(
            f"{shown}: uses an operator that onnxruntime does not know: {text}. Custom operators "
            "cannot be quantized; export the model without them."
        )
    return refusal(shown, error)


def refuse_nonfinite(model: ir.Model, shown: str) -> None:
    """Refuse NaN anywhere and infinity in weights; elsewhere it is a mask or an open bound.

    Raises:
        InputError: It names the first three tensors.
    """
    bad = []
    for value in constants_of(model):
        tensor = value.const_value
        if tensor is None or tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
            continue
        array = tensor.numpy()
        bounds = not np.isnan(array).any() and not _is_weight(value)
        if bounds or np.isfinite(array).all():
            continue
        bad.append(f"{value.name!r} ({np.count_nonzero(~np.isfinite(array)):,} of {array.size:,})")
    if bad:
        raise InputError(
            f"{shown}: {len(bad)} weight tensors hold NaN or infinity: {', '.join(bad[:3])}. "
            "The training diverged or the file is damaged; no quantization can mend it."
        )


def _is_weight(value: ir.Value) -> bool:
    kinds = {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "BatchNormalization"}
    return any(use.node.op_type in kinds for use in value.uses())
