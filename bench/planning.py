"""What one `vnnify bench` is going to run: its models, and every way to run each of them."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from bench.errors import InputError, ResourceError, UnfitError, UsageError
from bench.forecast import Elsewhere
from bench.isolate import run_isolated
from bench.latency import Variant
from bench.load import Demand
from bench.machine import Machine
from bench.models import Model, read_model
from bench.report import GPU, Missing
from bench.runtimes import RUNTIMES, find_runtime, installed_runtimes
from bench.runtimes.seam import Precision
from bench.store import load

DEVICES = ("cpu", "cuda")
# On a GPU, "FP32" is ambiguous: TF32 products are what many people get without asking.
_PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "fp16")


@dataclass(frozen=True, slots=True)
class Request:
    """A trained model that is no file to run yet.

    Attributes:
        text: As the user named it.
        weights: Of a factory.
        inputs: What it takes, as `--input` says it.
        data: Samples.
        trust: A file that may run code is allowed.
        out: The `.pt2` file to write.
    """

    text: str
    weights: Path | None
    inputs: tuple[str, ...]
    data: Path | None
    trust: bool
    out: Path


Exporter: TypeAlias = Callable[[Request], None]
"""Writes a `.pt2` file; given by whoever knows trained models, which `bench` does not."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    Attributes:
        models: Texts; the first is the baseline.
        weights: Of factories among them.
        inputs: The same for `--input`; of ONNX files they give free axes their sizes.
        trust: Files that may run code are allowed.
        runtimes: Names; empty for every one that is installed.
        devices: Of "cpu" and "cuda".
        batches: Samples in one inference.
        threads: Inside one inference; 0 is what is granted.
        rounds: Processes per variant.
        seconds: Of sampling in each.
        seed: Of orders, arrivals and made-up inputs.
        data: Inputs; None makes them up.
        demand: Load.
        peaks: Measure what the machine can do at best, too.
        operators: Time the operators of the first batch size, too.
        predict_for: Another machine; latencies of the first batch size are predicted for it.
    """

    models: tuple[str, ...]
    weights: Path | None = None
    inputs: tuple[str, ...] = ()
    trust: bool = False
    runtimes: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu",)
    batches: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = (0,)
    rounds: int = 6
    seconds: float = 1.0
    seed: int = 0
    data: Path | None = None
    demand: Demand = field(default_factory=Demand)
    peaks: bool = True
    operators: bool = True
    predict_for: Elsewhere | None = None


def open_models(plan: Plan, scratch: Path, exporter: Exporter | None) -> tuple[Model, ...]:
    """Look at every model, in order; programs are copied, and modules exported, into `scratch`.

    Raises:
        VnnifyError: One is missing, unusable or unsafe.
    """
    if len(set(plan.models)) < len(plan.models):
        raise UsageError("the same model is given twice; noise is measured without that.")
    found = []
    for number, text in enumerate(plan.models):
        path = Path(text)
        if path.suffix == ".pt2":
            found.append(_program(path, scratch / f"{number}.pt2", scratch, trust=plan.trust))
        elif exporter is None or path.suffix == ".onnx" or ":" not in text:
            found.append(read_model(path))
        else:
            out = scratch / f"{number}.pt2"
            exporter(Request(text, plan.weights, plan.inputs, plan.data, plan.trust, out))
            found.append(_described(out, scratch, trust=True, name=text))
    return tuple(found)


def _program(path: Path, copy: Path, scratch: Path, *, trust: bool) -> Model:
    """A copy that nobody changes between the check and the last round."""
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    try:
        shutil.copyfile(path, copy)
    except OSError as e:
        raise ResourceError(f"{path}: cannot be copied to {scratch}: {e.strerror}.") from e
    return _described(copy, scratch, trust=trust, name=str(path))


def _described(copy: Path, scratch: Path, *, trust: bool, name: str) -> Model:
    answer = run_isolated(
        "bench.programs:describe_program",
        {"path": str(copy), "trust": trust, "name": name},
        scratch=scratch,
        name=f"opening {name}",
    )
    return load(Model, answer.encode(), name)


def what_runs(
    plan: Plan, models: Sequence[Model], machine: Machine
) -> tuple[list[Variant], list[Missing]]:
    """Every way to run every model that is worth a row, and what is missing for the others.

    On the CPU each model runs in each runtime that opens its kind of file. On a GPU only the first
    model of each kind does: what INT8 on a CPU is held against is the model as it was.
    """
    labels = _labels(plan.models)
    found: list[Variant] = []
    missing: list[Missing] = []
    for device in plan.devices:
        seen: set[str] = set()
        for label, model in zip(labels, models, strict=True):
            if device != "cpu" and model.path.suffix in seen:
                continue
            seen.add(model.path.suffix)
            for runtime in _runtimes(plan, model, device):
                reason = why_not(runtime, device, machine)
                if reason:
                    missing.append(Missing(f"{label}, {runtime}, {device}", reason))
                else:
                    found += _variants(plan, f"{label}, {runtime}", model, runtime, device)
        if device == "cuda" and not found and not missing:
            missing.append(Missing("cuda", "no runtime that was asked for runs on it"))
    if not found:
        reasons = dict.fromkeys(m.reason for m in missing)
        raise UnfitError(
            f"cannot measure on {' or '.join(map(repr, plan.devices))}: "
            f"{'; '.join(reasons) or 'no runtime that opens these models is installed'}."
        )
    if "cuda" not in plan.devices:
        reason = machine.no_gpu_reason or "not asked for (--device cpu,cuda)"
        missing.append(Missing(GPU, reason))
    return found, missing


def why_not(runtime: str, device: str, machine: Machine) -> str:
    """Why a runtime cannot use a device here; empty if it can, as far as one sees from outside."""
    if device == "cpu":
        return ""
    if not machine.gpus:
        return machine.no_gpu_reason
    # Only onnxruntime is looked at in `Machine`; what torch sees is known when it opens a model.
    return machine.no_gpu_reason if runtime == "onnxruntime" else ""


def _runtimes(plan: Plan, model: Model, device: str) -> list[str]:
    """Those that open this kind of file on this device, of those asked for or installed."""
    suffix = model.path.suffix
    names = plan.runtimes or installed_runtimes(suffix)
    fit = [n for n in names if suffix in RUNTIMES[n].suffixes and device in RUNTIMES[n].devices]
    if plan.runtimes:
        for name in fit:
            find_runtime(name).version()
    return fit


def _variants(plan: Plan, name: str, model: Model, runtime: str, device: str) -> list[Variant]:
    if device == "cpu":
        several = len(plan.threads) > 1
        return [
            Variant(
                f"{name}, {threads_text(threads)}" if several else name,
                model,
                runtime,
                device,
                threads,
                1,
            )
            for threads in plan.threads
        ]
    return [
        Variant(
            f"{name}, {device} {precision}{'' if copies else ' without copies'}",
            model,
            runtime,
            device,
            plan.threads[0],
            1,
            precision,
            copies,
        )
        for precision in _PRECISIONS
        for copies in (True, False)
    ]


def _labels(texts: Sequence[str]) -> list[str]:
    """Short names that tell models apart: stems, or else everything that was typed."""
    stems = [Path(t).stem if ":" not in t else Path(t).name for t in texts]
    return stems if len(set(stems)) == len(stems) else list(texts)


def named(variants: Sequence[Variant], plan: Plan) -> list[Variant]:
    """Names that differ between batches, where there are several."""
    if len(plan.batches) == 1:
        return list(variants)
    return [replace(v, name=f"{v.name}, batch {v.batch}") for v in variants]


def threads_text(count: int) -> str:
    """`1 thread`, `2 threads`."""
    return "1 thread" if count == 1 else f"{count} threads"


def refuse_unknown(plan: Plan) -> None:
    """Refuse names that are none, and batches of nothing.

    Raises:
        UsageError: There is one.
    """
    for device in plan.devices:
        if device not in DEVICES:
            raise UsageError(f"unknown device {device!r}; known: {', '.join(DEVICES)}.")
    for name in plan.runtimes:
        find_runtime(name)
    if any(b < 1 for b in plan.batches):
        raise UsageError(f"--batch takes sizes of at least 1, found {min(plan.batches)}.")
