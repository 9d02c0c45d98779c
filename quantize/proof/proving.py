"""Proof on the hardware that a model is meant for: emulated VNNI against exact judging here.

Verdicts come from exact judging: ONNX Runtime on this machine, switched to exact products where
the CPU would saturate. That is right only if the VNNI kernels of the shipped runtime give the same
outputs. Here the same wheel runs on an emulated CPU with AVX512-VNNI, and the outputs are compared.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import VnnifyError
from bench.machine import canary_feeds, canary_model, canary_verdict, relevant_flags
from bench.models import Feeds
from bench.runtimes import Settings, find_runtime
from bench.runtimes.onnxruntime import session_options
from quantize.data import Samples
from quantize.proof.comparing import Compared, Proof, compare
from quantize.proof.guest import AVX2_CPU, VNNI_CPU, Answer, Job, Limits, Visit, visit
from quantize.targets import Target

# Operators that compute with integers, move values, or round once per value as IEEE 754 says: every
# x86 kernel gives the same bits for them. Sums of floats (whose order is the kernel's), exp, tanh
# and erf (whose polynomials are) are not among them.
_INTEGER = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger"),
        *("MatMulInteger", "QLinearConv", "QLinearMatMul", "QGemm", "QLinearAdd", "QLinearMul"),
        *("QLinearConcat", "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearLeakyRelu"),
        *("DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
    }
)
_ONCE = frozenset(
    {
        *("Abs", "Add", "ArgMax", "Cast", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape"),
        *("Div", "Equal", "Expand", "Flatten", "Floor", "Gather", "Greater", "Identity", "Less"),
        *("LeakyRelu", "Max", "MaxPool", "Min", "Mul", "Neg", "Not", "PRelu", "Pad", "Range"),
        *("Relu", "Reshape", "Shape", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Tile"),
        *("Transpose", "Unsqueeze", "Where"),
    }
)
_CANARY = "canary"
_WHOLE = Limits()
# Of one's own model: as many of these samples as the emulated CPU does in this time.
SAMPLES = 32
_ENOUGH_S = 300.0


@dataclass(frozen=True, slots=True)
class Case:
    """A model and the samples on which it is proved.

    Attributes:
        name: Of the case; a folder of that name is made.
        model: ONNX file.
        feeds: What each run takes.
    """

    name: str
    model: Path
    feeds: tuple[Feeds, ...]


def prove_model(
    model: Path,
    samples: Samples,
    states: Mapping[str, str],
    target: Target,
    *,
    cache: Path,
    stopped: Callable[[], bool] = bool,  # bool() is False.
) -> tuple[Proof, ...]:
    """Prove one model on emulated VNNI and, if it is made for every CPU, on emulated AVX2 too.

    Args:
        model: INT8.
        samples: The first ones are used: up to `SAMPLES`, fewer where the model is slow.
        states: Output to input names that carry state.
        target: What the model was made for.
        cache: Keeps the guest's image.
        stopped: Whether a person wants an end.

    Returns:
        One proof per CPU; where the machine failed, it says why: an hour's search is worth a
        report all the same.
    """
    case = Case("model", model, _feeds(model, samples, states))
    limits = Limits(enough_s=_ENOUGH_S, stopped=stopped)
    cpus = (VNNI_CPU, AVX2_CPU) if target.narrow else (VNNI_CPU,)
    proofs: list[Proof] = []
    for cpu in cpus:
        try:
            proofs += prove([case], cache=cache, cpu=cpu, limits=limits)
        except VnnifyError as e:
            failed = Compared(case.name, 0, 0, 0, 0.0, integer=False, error=str(e))
            nothing = Visit(cpu, Answer((), "", {}, {}), image_cached=False)
            proofs.append(_proof(nothing, "native", (failed,)))
    return tuple(proofs)


def _feeds(model: Path, samples: Samples, states: Mapping[str, str]) -> tuple[Feeds, ...]:
    """What each of the first runs takes, states that the run before it left included."""
    first = [samples[i].feeds for i in range(min(SAMPLES, len(samples)))]
    if not states:
        return tuple(first)
    session = find_runtime("onnxruntime").open(model, Settings(threads=1, exact=True))
    carried: Feeds = {}
    found = []
    for feeds in first:
        found.append({**feeds, **carried})
        outputs = session.run(found[-1])
        carried = {taker: outputs[giver] for giver, taker in states.items()}
    session.close()
    return tuple(found)


def expect(case: Case) -> tuple[Feeds, ...]:
    """Outputs of exact judging on this machine.

    Raises:
        InputError: The model does not open or run.
    """
    session = find_runtime("onnxruntime").open(case.model, Settings(threads=1, exact=True))
    try:
        return tuple(session.run(f) for f in case.feeds)
    finally:
        session.close()


def prove(
    cases: Sequence[Case],
    *,
    cache: Path,
    cpu: str = VNNI_CPU,
    modes: tuple[str, ...] = ("native",),
    limits: Limits = _WHOLE,
) -> tuple[Proof, ...]:
    """Run models on an emulated CPU and compare with exact judging here.

    Args:
        cases: Models with their samples.
        cache: Keeps the guest's image.
        cpu: As Bochs calls it.
        modes: See `Proof.mode`; one proof for each.
        limits: When the emulated machine is switched off.

    Raises:
        UnfitError: Packages are missing.
        ResourceError: The machine did not come up, fell silent or ran over its time.
    """
    with tempfile.TemporaryDirectory(prefix="vnnify-") as folder:
        small = Path(folder) / "canary.onnx"
        small.write_bytes(canary_model())
        job = Job(
            {_CANARY: small, **{c.name: c.model for c in cases}},
            {_CANARY: (canary_feeds(),), **{c.name: c.feeds for c in cases}},
            modes,
        )
        expected = {c.name: expect(c) for c in cases}
        integer = {c.name: integers_decide(operators(c.model, Path(folder))) for c in cases}
        seen = visit(cpu, job, cache=cache, scratch=Path(folder), limits=limits)

    def compared(mode: str) -> tuple[Compared, ...]:
        return tuple(
            _compared(seen.answer, (name, mode), wanted, limits, integer=integer[name])
            for name, wanted in expected.items()
        )

    return tuple(_proof(seen, mode, compared(mode)) for mode in modes)


def _proof(seen: Visit, mode: str, compared: tuple[Compared, ...]) -> Proof:
    return Proof(
        cpu=seen.cpu,
        flags=relevant_flags(seen.answer.flags),
        onnxruntime=seen.answer.onnxruntime,
        mode=mode,
        canary=_canary(seen.answer, mode),
        compared=compared,
        image_cached=seen.image_cached,
        image_bytes=seen.image_bytes,
        image_seconds=seen.image_seconds,
        boot_seconds=seen.boot_seconds,
        run_seconds=seen.run_seconds,
    )


def operators(model: Path, scratch: Path) -> frozenset[str]:
    """Operators that ONNX Runtime really runs, after its own fusions."""
    import onnx
    import onnxruntime as ort

    options = session_options(Settings(threads=1))
    # One level below the layouts of single kernels, which have operators of their own.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    fused = scratch / "fused.onnx"
    options.optimized_model_filepath = str(fused)
    ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return frozenset(_operators_of(onnx.load(str(fused), load_external_data=False).graph))


def integers_decide(names: frozenset[str]) -> bool:
    """Whether every one of these operators gives the same bits on every CPU that is exact."""
    return names <= _INTEGER | _ONCE


def _operators_of(graph: Any) -> set[str]:
    found = {n.op_type for n in graph.node}
    inner = (a.g for n in graph.node for a in n.attribute if a.HasField("g"))
    return found.union(*map(_operators_of, inner))


def _compared(
    answer: Answer,
    which: tuple[str, str],
    expected: Sequence[Feeds],
    limits: Limits,
    *,
    integer: bool,
) -> Compared:
    if which in answer.errors:
        return Compared(which[0], 0, 0, 0, 0.0, integer, answer.errors[which])
    found = answer.outputs.get(which, ())
    if found and limits.enough_s is not None:
        expected = expected[: len(found)]
    return compare(which[0], expected, found, integer=integer)


def _canary(answer: Answer, mode: str) -> str:
    runs = answer.outputs.get((_CANARY, mode))
    return canary_verdict(runs[0]["y"]) if runs else "not tried"
