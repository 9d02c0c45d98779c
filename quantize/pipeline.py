"""The only place that knows the order.

    convert ─▶ read data ─▶ prepare ─▶ baseline ─▶ calibrate ─▶ search ─▶ verify ─▶ benchmark ─▶
    prove, if asked for ─▶ Report

Everything is written into a staging folder; the caller publishes it whole. A model that was refused
goes to `refused/` in it.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import onnx_ir as ir

from bench.errors import UnsupportedError, UsageError
from bench.isolate import Stage, stage
from bench.machine import available_threads, canary
from bench.models import Model, TensorSpec
from bench.runtimes import RUNTIMES, Settings, find_runtime, installed_runtimes
from quantize.anchors import find_anchors
from quantize.calibrate import Calibration, calibrate
from quantize.data import Samples, infer_inputs, read_samples, refuse_overlap, split
from quantize.debian import require_packages
from quantize.drift import Drift, drift, drift_note, read_seen, seen_ranges
from quantize.evaluate import Evaluation, Execution, evaluate, is_deterministic
from quantize.finishing import Results, fastest, finish, keep_best
from quantize.gate import judge
from quantize.job import Effort, Job, Progress
from quantize.journal import (
    Journal,
    context_of,
    digest_of_plugin,
    keep_calibration,
    not_fatal,
    recall_calibration,
    renamed,
    storable,
)
from quantize.judging import Judging
from quantize.metrics import Metric, resolve_metric
from quantize.outputs import OutputStore
from quantize.placement import watch_list
from quantize.prepare import prepare
from quantize.proofs import Proof
from quantize.proving import prove_model
from quantize.quantizers import find_engines
from quantize.recipe import Recipe, fingerprints, from_toml
from quantize.report import Data, Report
from quantize.rows import RowStore
from quantize.search import Aim, Found, Judged, search
from quantize.sequential import Looks
from quantize.smoothing import even_out, even_out_as
from quantize.sources import check_parity, convert, describe_inputs
from quantize.stopping import Interrupt
from quantize.targets import find_target
from quantize.timing import time_models
from quantize.tolerance import Tolerance, default_tolerance, parse_tolerance
from quantize.trials import PROBES, Workbench, attempt, run_probes

logger = logging.getLogger(__name__)

# Of AUTO: what is right on every CPU comes first.
_AUTO = ("portable", "vnni")
_PARITY_SAMPLES = 4
_FEW = 100
# Of the benchmark, once a person asked for the end.
_HURRIED_ROUNDS = 2
# Of the budget, for evening out channels.
_EVEN_OUT_SHARE = 0.25


def run(
    job: Job,
    staging: Path,
    progress: Progress,
    *,
    work: Path | None = None,
    interrupt: Interrupt | None = None,
) -> Report:
    """Do a whole job.

    Args:
        job: What to do.
        staging: An empty folder; holds the results afterwards, besides a `scratch` folder that is
            removed.
        progress: Told what happens.
        work: Where finished steps are kept for a run that goes on after a kill; None: nowhere.
        interrupt: Asked where a person may ask for an early end.

    Returns:
        What `report.json` says; every format of it is left to the caller.

    Raises:
        VnnifyError: See `bench.errors`.
    """
    scratch = staging / "scratch"
    scratch.mkdir()
    journal = Journal(work, context_of({})) if work is not None else Journal()
    return _Run(job, staging, progress, journal, interrupt or Interrupt()).report()


class _Run:
    """One job while it runs; every method is one stage."""

    def __init__(
        self, job: Job, staging: Path, progress: Progress, journal: Journal, interrupt: Interrupt
    ) -> None:
        self.job, self.staging, self.progress = job, staging, progress
        self.scratch, self.journal, self.interrupt = staging / "scratch", journal, interrupt
        self.stages: list[Stage] = []
        self.replayed: Recipe | None = None
        self.drift: tuple[Drift, ...] = ()
        self.notes: list[str] = []
        self.threads = job.effort.threads or available_threads()
        self.runtimes = _runtimes(job.effort.runtimes)
        self.engines = find_engines(job.effort.engines)
        self.targets = (
            _AUTO if job.effort.target == "auto" else (find_target(job.effort.target).name,)
        )
        if job.effort.recipe is not None:
            _text_of(job.effort.recipe)  # Now, and not after the calibration.
        if job.effort.prove is not None:
            require_packages(job.effort.prove)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.progress.begin(name)
        with stage(name) as watch:
            yield
        if watch.result is not None:
            self.stages.append(watch.result)

    def report(self) -> Report:
        if count := self.journal.count():
            self.progress.say(
                f"going on where an earlier run ended: {count} results of it are kept"
            )
        with self.stage("read"):
            everything, calibration = self.read()
            source = self.convert(everything)
        with self.stage("prepare"):
            fp32 = self.prepare(source, everything)
            calibration, evaluation = self.divide(everything, calibration)
            metric = self.metric(evaluation)
        with OutputStore(folder=self.scratch) as reference:
            with self.stage("baseline"):
                baseline, tolerance = self.baseline(fp32, evaluation, metric, reference)
            judging = Judging(
                samples=evaluation,
                metric=metric,
                reference=reference,
                baseline=baseline,
                tolerance=tolerance,
                confidence=self.job.limits.confidence,
                threads=self.threads,
                states=self.job.data.states,
                watch=self._watch,
                metric_sha256=digest_of_plugin(self.job.limits.metric),
                journal=self.journal,
                interrupt=self.interrupt,
                looks=self.looks(baseline, tolerance),
            )
            with self.stage("calibrate"):
                bench = self.calibrate(fp32, calibration)
            with self.stage("even out"):
                bench = self.even_out(bench, calibration)
            with self.stage("search"):
                found = self.search(bench, judging)
            with self.stage("verify"):
                served, elsewhere = self.verify(found, judging)
            with self.stage("benchmark"):
                assert found.best is not None
                timing = time_models(
                    bench,
                    found.best.trial.quantized.model,
                    found.fp32_ms,
                    found.best.trial.latency_ms,
                    self.effort(),
                    self.progress.step,
                )
            proofs = self.prove(found.best, evaluation)
        best = fastest(served, timing.latencies)
        others = tuple(j.evaluation for j in served if j is not best)
        results = Results(
            source=source,
            fp32=fp32,
            bench=bench,
            found=found,
            best=best,
            metric=metric.name,
            tolerance=tolerance,
            data=Data(
                calibration.source,
                len(calibration),
                calibration.digest,
                evaluation.source,
                len(evaluation),
                evaluation.digest,
            ),
            evaluations=(baseline, best.evaluation, *others, *elsewhere),
            timing=timing,
            proofs=proofs,
            drift=self.drift,
        )
        return finish(self.job, self.staging, results, self.stages, self.notes)

    # Stages

    def read(self) -> tuple[Samples, Samples | None]:
        spec, data = self.job.model, self.job.data
        inputs = describe_inputs(spec) or spec.inputs or infer_inputs(data.source)
        everything = self._samples(data.source, inputs)
        calibration = self._samples(data.calibration, inputs) if data.calibration else None
        return everything, calibration

    def _samples(self, source: str, inputs: tuple[TensorSpec, ...]) -> Samples:
        data = self.job.data
        return read_samples(
            source,
            inputs,
            scratch=self.scratch,
            preprocessing=data.preprocessing,
            states={i: o for o, i in data.states.items()},
            limit=data.limit,
        )

    def convert(self, samples: Samples) -> Model:
        folder = self.scratch / "source"
        folder.mkdir()
        model = convert(self.job.model, samples, folder / "model.onnx")
        _refuse_unknown_states(model, self.job.data.states)
        return model

    def prepare(self, source: Model, samples: Samples) -> Model:
        prepared = prepare(source, self.staging / "model.fp32.onnx", name=self.job.model.text)
        self.notes += prepared.notes
        reference = RUNTIMES["onnxruntime"].open(source.path, Settings(threads=self.threads))
        feeds = [samples[i].feeds for i in range(min(_PARITY_SAMPLES, len(samples)))]
        check_parity(reference.run, prepared.model.path, feeds)
        reference.close()
        execution = Execution(RUNTIMES["onnxruntime"], Settings(threads=self.threads))
        if not is_deterministic(prepared.model, samples[0], execution):
            raise UnsupportedError(
                f"{self.job.model.text}: two runs on one sample give different outputs, so INT8 "
                f"cannot "
                "be compared with FP32. Export it in evaluation mode (dropout and noise off)."
            )
        return prepared.model

    def divide(self, everything: Samples, calibration: Samples | None) -> tuple[Samples, Samples]:
        data = self.job.data
        if calibration is None:
            calibration, evaluation = split(
                everything,
                calibration_count=data.calibration_count,
                seed=data.seed,
                ordered=bool(data.states),
            )
        else:
            evaluation = everything
            if len(calibration) > data.calibration_count:
                count = data.calibration_count
                chosen = range(count) if data.states else _spread(len(calibration), count)
                calibration = calibration.subset(list(chosen))
            refuse_overlap(calibration, evaluation)
        if not data.states:
            # So that the first samples of an evaluation stand for all of them.
            order = np.random.default_rng(data.seed).permutation(len(evaluation))
            evaluation = evaluation.subset([int(i) for i in order])
        if len(calibration) < _FEW:
            self.notes.append(
                f"only {len(calibration)} samples calibrate; ranges settle with {_FEW} and more"
            )
        return calibration, evaluation

    def metric(self, evaluation: Samples) -> Metric:
        limits = self.job.limits
        label = evaluation.label(0) if evaluation.labelled else None
        return resolve_metric(
            limits.metric,
            labelled=evaluation.labelled,
            first_label=label,
            output=limits.output,
            decode=limits.decode,
        )

    def baseline(
        self, fp32: Model, samples: Samples, metric: Metric, keep: OutputStore
    ) -> tuple[Evaluation, Tolerance]:
        found = self._scores(fp32, samples, metric, keep)
        asked = self.job.limits.max_drop
        tolerance = parse_tolerance(asked) if asked else default_tolerance(found)
        self.progress.say(f"FP32: {metric.name} {found.value:.4f} on {len(samples):,} samples")
        # Refuses a broken baseline and a tolerance that does not fit, before the work begins.
        judge(found, found, tolerance, confidence=self.job.limits.confidence)
        return found, tolerance

    def _scores(
        self, fp32: Model, samples: Samples, metric: Metric, keep: OutputStore
    ) -> Evaluation:
        """FP32's scores and, in `keep`, its outputs: from the journal, or by running it."""
        execution = Execution(
            RUNTIMES["onnxruntime"], Settings(threads=self.threads), self.job.data.states
        )
        key = {
            "fp32": fp32.sha256,
            "samples": samples.digest,
            "metric": (metric.name, metric.output, digest_of_plugin(self.job.limits.metric)),
            "states": self.job.data.states,
        }
        outputs = self.journal.file("outputs", key, ".zip")
        known = self.journal.recall(Evaluation, "baseline", key)
        if known is not None and outputs is not None and outputs.is_file():
            with suppress(OSError, ValueError):
                keep.read(outputs)
                return known
        found = evaluate(fp32, samples, metric, execution, keep=keep, watch=self._watch)
        if outputs is not None and storable(found):
            with not_fatal("outputs of FP32"), renamed(outputs) as beside:
                keep.write(beside)
            self.journal.keep(found, "baseline", key)
        return found

    def _watch(self, _scores: object, done: int, total: int) -> bool:
        self.progress.step(done, total)
        return False

    def calibrate(self, fp32: Model, samples: Samples) -> Workbench:
        model = ir.load(fp32.path)
        anchors, left = find_anchors(model)
        if not anchors:
            why = "; ".join(sorted(set(left.values()))) or "it has no Conv, Gemm, MatMul or LSTM"
            raise UnsupportedError(f"nothing to quantize (0 of {len(left)}): {why}.")
        # Whether it fits is known before anything is calibrated.
        self.replayed = self._recipe(fingerprints(model, anchors))
        held, rest = self._held(len(samples))
        statistics = self._statistics(fp32, watch_list(model, anchors), samples.subset(rest))
        probes = tuple(samples[i].feeds for i in held)
        timed_threads = self.job.effort.threads or 1 if self._is_throughput() else self.threads
        return Workbench(
            fp32,
            anchors,
            statistics,
            probes,
            run_probes(fp32, probes, self.threads),
            self.runtimes,
            timed_threads,
            self.scratch,
            journal=self.journal,
            engines=self.engines,
            rounding=self.job.effort.rounding,
        )

    def _statistics(self, fp32: Model, tensors: tuple[str, ...], samples: Samples) -> Calibration:
        states = self.job.data.states
        key = {
            "fp32": fp32.sha256,
            "samples": samples.digest,
            "tensors": tensors,
            "states": states,
            "threads": self.threads,
        }
        found = recall_calibration(self.journal, key)
        if found is None:
            found = calibrate(
                fp32,
                tensors,
                samples,
                threads=self.threads,
                scratch=self.scratch,
                states=states,
                progress=self.progress.step,
            )
            keep_calibration(self.journal, key, found)
        # The journal keeps what was learned, not the samples; an engine may want to see them.
        rows = RowStore(fp32, samples, states, self.threads, self.scratch)
        return replace(found, source=samples, states=states, rows=rows)

    def looks(self, baseline: Evaluation, tolerance: Tolerance) -> Looks | None:
        """When evaluations may end early; never where samples hang together."""
        if self.job.data.states or baseline.corpus_value is not None:
            return None
        confidence = self.job.limits.confidence
        itself = judge(baseline, baseline, tolerance, confidence=confidence)
        return Looks(baseline, itself.limit, confidence, itself.outcome == "pass")

    def _held(self, total: int) -> tuple[list[int], list[int]]:
        """Which calibration samples are held out as probes, and the rest."""
        count = min(PROBES, max(total // 4, 1))
        ordered = bool(self.job.data.states)
        # A state is carried from sample to sample, so a sequence is cut once and not thinned out.
        held = _last(total, count) if ordered else _spread(total, count)
        return held, [i for i in range(total) if i not in set(held)] or held

    def even_out(self, bench: Workbench, samples: Samples) -> Workbench:
        """Offer graphs with evened-out channels, as the recipe says or where it may help."""
        states, effort = self.job.data.states, self.job.effort
        rest = samples.subset(self._held(len(samples))[1])
        if self.replayed is not None:
            strengths = self.replayed.strengths
            return even_out_as(bench, strengths, rest, states) if strengths else bench
        if "native" not in self.engines:
            return bench
        # Costs up to two passes more.
        if 2 * self.stages[-1].seconds > effort.budget_s * _EVEN_OUT_SHARE:
            self.notes.append(
                "channels were not evened out: a pass over the samples takes too long"
            )
            return bench
        return even_out(bench, self.targets[0], rest, states)

    def search(self, bench: Workbench, judging: Judging) -> Found:
        if self.job.effort.recipe is not None:
            return self._replay(bench, judging, self.job.effort.recipe)
        itself = judge(
            judging.baseline,
            judging.baseline,
            judging.tolerance,
            confidence=self.job.limits.confidence,
        )
        aim = Aim(
            can_pass=itself.outcome == "pass",
            need_speed=self.job.limits.need_speed,
            deadline_s=perf_counter() + self.job.effort.budget_s,
            say=self.progress.say,
            stopped=lambda: self.interrupt.asked,
            keep=partial(self._keep, bench),
        )
        found = search(bench, judging, self.targets, aim)
        if self.interrupt.asked:
            self.notes.append("the search was interrupted; this is the best it had found")
        return found

    def _keep(self, bench: Workbench, best: Judged) -> None:
        """The best so far, complete on disk."""
        if self.journal.folder is not None:
            with not_fatal("the best so far"):
                keep_best(best, bench, self.journal.folder)

    def effort(self) -> Effort:
        """What the benchmark may take: little once a person asked for the end."""
        effort = self.job.effort
        hurried = replace(effort, rounds=min(effort.rounds, _HURRIED_ROUNDS))
        return hurried if self.interrupt.asked else effort

    def _is_throughput(self) -> bool:
        return self.job.limits.objective == "throughput"

    def _recipe(self, marks: dict[str, str]) -> Recipe | None:
        path = self.job.effort.recipe
        return None if path is None else from_toml(_text_of(path), marks, str(path))

    def _replay(self, bench: Workbench, judging: Judging, path: Path) -> Found:
        from quantize.trials import time_quickly

        recipe = self.replayed
        assert recipe is not None
        marks = fingerprints(ir.load(bench.fp32.path), bench.anchors)
        before = read_seen(_text_of(path), str(path))
        self.drift = drift(before, seen_ranges(bench.calibration, bench.anchors), marks)
        if (note := drift_note(self.drift)) is not None:
            self.notes.append(note)
            self.progress.say(note)
        timed, fp32_ms = time_quickly(bench, [attempt(bench, recipe, "recipe")])
        runtime = timed[0].fastest
        if runtime is None:
            raise UnsupportedError(
                f"recipe {path}: its model opens in none of {', '.join(self.runtimes)}. Allow "
                "another --runtime."
            )
        if (outcome := judging(timed[0].quantized, runtime)) is None:
            raise KeyboardInterrupt
        judged = Judged(timed[0], runtime, *outcome)
        return Found(judged, (judged,), timed, fp32_ms, "the recipe was replayed")

    def verify(
        self, found: Found, judging: Judging
    ) -> tuple[tuple[Judged, ...], tuple[Evaluation, ...]]:
        """Judge the chosen model in every runtime that takes it, and natively where that differs.

        Returns:
            Verdicts on the target's arithmetic, one per runtime; evaluations on this CPU's own.
        """
        if found.best is None:
            raise UnsupportedError(
                f"no INT8 candidate could be made of this model: {found.reason}."
            )
        best, native = found.best, list[Evaluation]()
        served, quantized = [best], best.trial.quantized
        for runtime in sorted(best.trial.latency_ms, key=lambda r: r != best.runtime):
            judged = best
            if runtime != best.runtime or best.evaluation.count < judging.baseline.count:
                if (outcome := judging(quantized, runtime, whole=True)) is None:
                    break
                judged = Judged(best.trial, runtime, *outcome)
                served = [*served[runtime == best.runtime :], judged]
            if self.interrupt.asked:
                break
            if canary(runtime) != "exact" and judged.evaluation.arithmetic == "exact":
                here = judging.evaluate(quantized, runtime, native=True)
                native += [here] if here is not None else []
        return tuple(served), tuple(native)

    def prove(self, best: Judged, samples: Samples) -> tuple[Proof, ...]:
        """On emulated CPUs, if that was asked for."""
        cache, quantized = self.job.effort.prove, best.trial.quantized
        if cache is None:
            return ()
        with self.stage("prove"):
            target, states = find_target(quantized.recipe.target), self.job.data.states
            return prove_model(
                quantized.model.path,
                samples,
                states,
                target,
                cache=cache,
                stopped=lambda: self.interrupt.asked,
            )


def _runtimes(asked: tuple[str, ...]) -> tuple[str, ...]:
    """Those asked for, or all that are installed.

    Raises:
        UnfitError: One that was asked for is missing.
    """
    if asked:
        for name in asked:
            find_runtime(name).version()
        return asked
    return installed_runtimes()


def _text_of(recipe: Path) -> str:
    try:
        return recipe.read_text(encoding="utf-8")
    except OSError as e:
        raise UsageError(f"recipe {recipe}: cannot be read: {e.strerror}.") from e
    except UnicodeDecodeError as e:
        raise UsageError(f"recipe {recipe}: not TOML: {e}.") from e


def _refuse_unknown_states(model: Model, states: dict[str, str]) -> None:
    inputs, outputs = {i.name for i in model.inputs}, {o.name for o in model.outputs}
    for output, target in states.items():
        if output not in outputs or target not in inputs:
            raise UsageError(
                f"--state {output}:{target}: the model has outputs {sorted(outputs)} and inputs "
                f"{sorted(inputs)}. Write --state OUTPUT:INPUT."
            )


def _spread(total: int, count: int) -> list[int]:
    """`count` indices spread evenly over `total`."""
    return sorted({i * total // count for i in range(count)})


def _last(total: int, count: int) -> list[int]:
    return list(range(total - count, total))
