"""The order of one `vnnify bench`: models, what can run, latencies, loads, limits."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from bench.errors import InputError, ResourceError, UnfitError, UsageError, VnnifyError
from bench.feeds import read_feeds, refuse_fixed_batch
from bench.isolate import run_isolated
from bench.latency import Latency, Progress, Variant, measure, refusal, with_control
from bench.load import Demand, Load, measure_load
from bench.machine import Machine, granted_threads
from bench.models import Feeds, Model, read_model, synthetic_feeds
from bench.operators import Operators, measure_operators
from bench.peaks import Peaks, measure_peaks
from bench.report import BenchReport, Missing, assemble, with_names
from bench.runtimes import RUNTIMES, find_runtime, installed_runtimes
from bench.runtimes.seam import Precision
from bench.store import load
from bench.work import Work, count_work

DEVICES = ("cpu", "cuda")
_SYNTHETIC = 8
# On a GPU, "FP32" is ambiguous: TF32 products are what many people get without asking.
_PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "fp16")
_DEFAULT_CACHE = 32 * 2**20


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
        inputs: The same for `--input`.
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


def run(
    plan: Plan,
    machine: Machine,
    scratch: Path,
    *,
    exporter: Exporter | None,
    progress: Progress,
) -> BenchReport:
    """Measure everything that a plan asks for and that can run here.

    Args:
        plan: What.
        machine: Where.
        scratch: An empty folder.
        exporter: Makes programs of models that are no files to run.
        progress: Told before every process.

    Raises:
        UsageError: The plan contradicts itself.
        UnfitError: Nothing of it can run here.
        VnnifyError: A model or the data is unusable.
    """
    _refuse_unknown(plan)
    plan = replace(plan, threads=tuple(dict.fromkeys(granted_threads(t) for t in plan.threads)))
    models = open_models(plan, scratch, exporter)
    refuse_fixed_batch(models[0], max(plan.batches))
    possible, missing = what_runs(plan, models, machine)
    latencies: list[Latency] = []
    controls: list[Latency] = []
    loads: list[Load] = []
    works: list[Work] = []
    operators: tuple[Operators, ...] = ()
    for batch in plan.batches:
        feeds = _feeds(models[0], plan.data, batch, plan.seed)
        variants = [replace(v, batch=batch) for v in possible]
        variants, failed = _runnable(variants, feeds, progress)
        missing += [m for m in failed if m not in missing]
        variants = _named(variants, plan)
        *found, control = measure(
            with_control(variants),
            feeds,
            rounds=plan.rounds,
            seconds_per_round=plan.seconds,
            seed=plan.seed,
            progress=progress,
        )
        latencies += found
        controls.append(control)
        loads += _loads(plan, variants, feeds, machine, progress)
        if batch == plan.batches[0]:
            operators = _operators(plan, variants, feeds, missing)
        works += [_work(m, feeds[0], batch) for m in models if m.path.suffix == ".onnx"]
    report = assemble(machine, latencies, controls, missing)
    peaks = _peaks(plan, machine, progress) if plan.peaks else ()
    shown = replace(
        report, loads=tuple(loads), works=tuple(works), peaks=peaks, operators=operators
    )
    return with_names(shown, dict(zip((m.path for m in models), plan.models, strict=True)))


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
        missing.append(Missing("GPU", reason))
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
                f"{name}, {_plural(threads, 'thread')}" if several else name,
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


def _runnable(
    variants: Sequence[Variant], feeds: Sequence[Feeds], progress: Progress
) -> tuple[list[Variant], list[Missing]]:
    """Those that really run, seen by trying each once, where there are several."""
    if len(variants) == 1:
        return list(variants), []
    errors: dict[str, VnnifyError] = {}
    for number, variant in enumerate(variants):
        progress(number, len(variants), f"{variant.name} (trying)")
        error = refusal(variant, feeds)
        if error is not None:
            errors[variant.name] = error
    if len(errors) == len(variants):
        raise next(iter(errors.values()))
    missing = [Missing(name, str(error)) for name, error in errors.items()]
    return [v for v in variants if v.name not in errors], missing


def _loads(
    plan: Plan,
    variants: Sequence[Variant],
    feeds: Sequence[Feeds],
    machine: Machine,
    progress: Progress,
) -> tuple[Load, ...]:
    if not plan.demand.wanted:
        return ()
    # Streams share out the threads themselves.
    chosen = [v for v in variants if v.copies and v.threads == plan.threads[0]]
    done = 0

    def tell(name: str) -> None:
        nonlocal done
        done += 1
        progress(done, 0, name)

    return measure_load(
        chosen,
        feeds,
        plan.demand,
        granted=machine.threads,
        seconds=plan.seconds,
        seed=plan.seed,
        progress=tell,
    )


def _operators(
    plan: Plan, variants: Sequence[Variant], feeds: Sequence[Feeds], missing: list[Missing]
) -> tuple[Operators, ...]:
    """Of each variant with the first number of threads; what fails is added to `missing`."""
    if not plan.operators:
        return ()
    return measure_operators(
        [v for v in variants if v.threads == plan.threads[0]],
        feeds,
        seconds=plan.seconds,
        failed=lambda v, e: missing.append(Missing(f"operators of {v.name}", str(e))),
    )


def _work(model: Model, feeds: Feeds, batch: int) -> Work:
    return count_work(model.path, feeds, sha256=model.sha256, batch=batch)


def _peaks(plan: Plan, machine: Machine, progress: Progress) -> tuple[Peaks, ...]:
    found = []
    for number, threads in enumerate(plan.threads):
        progress(number, len(plan.threads), f"the machine's limits, {_plural(threads, 'thread')}")
        found.append(machine_peaks(machine, threads))
    return tuple(found)


def machine_peaks(machine: Machine, threads: int) -> Peaks:
    """What this machine can do at best with so many threads."""
    cache = max(machine.caches.values(), default=_DEFAULT_CACHE)
    return measure_peaks(threads, cache_bytes=cache, memory_bytes=machine.memory_bytes)


def _feeds(model: Model, data: Path | None, batch: int, seed: int) -> list[Feeds]:
    if data is not None:
        return read_feeds(data, model, batch=batch)
    return synthetic_feeds(model, batch=batch, seed=seed, count=_SYNTHETIC)


def _labels(texts: Sequence[str]) -> list[str]:
    """Short names that tell models apart: stems, or else everything that was typed."""
    stems = [Path(t).stem if ":" not in t else Path(t).name for t in texts]
    return stems if len(set(stems)) == len(stems) else list(texts)


def _named(variants: Sequence[Variant], plan: Plan) -> list[Variant]:
    """Names that differ between batches, where there are several."""
    if len(plan.batches) == 1:
        return list(variants)
    return [replace(v, name=f"{v.name}, batch {v.batch}") for v in variants]


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _refuse_unknown(plan: Plan) -> None:
    for device in plan.devices:
        if device not in DEVICES:
            raise UsageError(f"unknown device {device!r}; known: {', '.join(DEVICES)}.")
    for name in plan.runtimes:
        find_runtime(name)
    if any(b < 1 for b in plan.batches):
        raise UsageError(f"--batch takes sizes of at least 1, found {min(plan.batches)}.")
