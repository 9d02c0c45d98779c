"""The only place that knows the order.

    convert ─▶ read data ─▶ prepare ─▶ baseline ─▶ calibrate ─▶ first model ─▶ search ─▶ verify ─▶
    benchmark ─▶ prove, if asked for ─▶ Report

Everything is written into a staging folder; the caller publishes it whole. A model that was refused
goes to `refused/` in it.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter, perf_counter_ns

import onnx_ir as ir

from bench.errors import UnsupportedError
from bench.forecast import Forecast, forecast, read_elsewhere
from bench.isolate import Stage, stage
from bench.machine import canary, describe, granted_threads
from bench.models import Model
from bench.runtimes import RUNTIMES, Settings, find_runtime, installed_runtimes
from quantize.anchors import find_anchors
from quantize.calibrate import Calibration, calibrate
from quantize.candidates import Aim, Found, Judged
from quantize.data import Samples
from quantize.drift import Drift, drift_note
from quantize.early import first_models
from quantize.evaluate import Evaluation, Execution, evaluate
from quantize.finishing import Results, fastest, finish, keep_best
from quantize.gate import can_pass, judge
from quantize.job import Effort, Job, Progress, flips_file
from quantize.journal import (
    Journal,
    context_of,
    metric_digest,
    not_fatal,
    remember_calibration,
    remember_scores,
)
from quantize.judging import Judging
from quantize.lock import read_lock, refuse_other
from quantize.metric import Metric
from quantize.outputs import OutputStore
from quantize.placement import watch_list
from quantize.proof.comparing import Proof
from quantize.proof.debian import require_packages
from quantize.proof.proving import prove_model
from quantize.quantizers import find_engines
from quantize.recipe import engine_of, fingerprints
from quantize.replaying import (
    Replay,
    drift_of,
    fitted,
    recipe_text,
    run_recipe,
    serving_fp32,
    what_to_time,
)
from quantize.report import Data, Report
from quantize.rows import RowStore
from quantize.search import search
from quantize.sequential import Looks
from quantize.slices import Division, look_into, slice_limit
from quantize.slices import divide as divided
from quantize.smoothing import even_out, even_out_as
from quantize.speeds import Speeds
from quantize.starting import chosen_metric, converted, divide, held_out, prepared, read
from quantize.stopping import Interrupt
from quantize.targets import find_target
from quantize.timing import Question, Timing, time_models
from quantize.tolerance import Tolerance, default_tolerance, parse_tolerance
from quantize.trials import PROBES, Workbench, run_probes

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
    started_ns: int | None = None,
) -> Report:
    """Do a whole job.

    Args:
        job: What to do.
        staging: An empty folder; holds the results afterwards, besides a `scratch` folder that is
            removed.
        progress: Told what happens.
        work: Where finished steps are kept for a run that goes on after a kill; None: nowhere.
        interrupt: Asked where a person may ask for an early end.
        started_ns: When the command began, by `perf_counter_ns`; None: now.

    Returns:
        What `report.json` says; every format of it is left to the caller.

    Raises:
        VnnifyError: See `bench.errors`.
    """
    began_ns = perf_counter_ns()
    scratch = staging / "scratch"
    scratch.mkdir()
    journal = Journal(work, context_of({})) if work is not None else Journal()
    made = _Run(job, staging, progress, journal, interrupt or Interrupt())
    made.started_ns = started_ns if started_ns is not None else began_ns
    return made.report()


class _Run:
    """One job while it runs; every method is one stage."""

    def __init__(
        self, job: Job, staging: Path, progress: Progress, journal: Journal, interrupt: Interrupt
    ) -> None:
        self.job, self.staging, self.progress = job, staging, progress
        self.scratch, self.journal, self.interrupt = staging / "scratch", journal, interrupt
        self.stages: list[Stage] = []
        self.started_ns = 0
        self.first_pass_s: float | None = None
        self.can_pass = False
        self.replay: Replay | None = None
        self.drift: tuple[Drift, ...] = ()
        self.speeds: Speeds | None = None
        self.division = Division()
        self.lock = read_lock(job.lock) if job.lock is not None else None
        self.notes: list[str] = []
        self.threads = granted_threads(job.effort.threads)
        self.runtimes = _runtimes(job.effort.runtimes)
        # What cannot be is refused now, and not after the calibration.
        self.engines = find_engines(job.effort.engines, job.model)
        if (recipe := job.effort.recipe) is not None:
            find_engines((engine_of(recipe_text(recipe), str(recipe)),), job.model)
        self.targets = (
            _AUTO if job.effort.target == "auto" else (find_target(job.effort.target).name,)
        )
        elsewhere = job.effort.predict_for
        self.elsewhere = read_elsewhere(elsewhere) if elsewhere is not None else None
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
            everything, calibration = read(self.job, self.scratch)
            source = converted(self.job, everything, self.scratch)
        with self.stage("prepare"):
            fp32 = self.prepare(source, everything)
            calibration, evaluation = self.divide(everything, calibration)
            metric = chosen_metric(self.job.limits, evaluation)
            if self.lock is not None:
                refuse_other(self.lock, evaluation.digest, metric.name)
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
                metric_sha256=metric_digest(self.job.limits),
                journal=self.journal,
                interrupt=self.interrupt,
                looks=self.looks(baseline, tolerance),
                units=self.division.units,
            )
            # Once: a metric of the whole data set is resampled thousands of times for it.
            self.can_pass = can_pass(baseline, judging.judge(baseline))
            with self.stage("calibrate"):
                bench = self.calibrate(fp32, calibration)
            first: tuple[Judged, ...] = ()
            if self.replay is None:
                with self.stage("first model"):
                    bench, first = self.first_models(bench, judging)
            with self.stage("even out"):
                bench = self.even_out(bench, calibration)
            with self.stage("search"):
                found = self.search(bench, judging, first)
            with self.stage("verify"):
                served, elsewhere = self.verify(found, judging)
            with self.stage("benchmark"):
                timing = self.benchmark(bench, found)
            predicted = self.predict(bench, timing)
            assert found.best is not None
            proofs = self.prove(found.best, evaluation)
        best = fastest(served, timing.latencies)
        others = tuple(j.evaluation for j in served if j is not best)
        allowed = slice_limit(self.job.limits, baseline)
        looked = look_into(
            (baseline, best.evaluation),
            evaluation,
            self.division,
            best.verdict.limit if allowed is None else allowed,
            self.job.limits.confidence,
            flips_file(self.staging, best.runtime) if self.job.flips else None,
        )
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
            looked=looked,
            slice_limit=allowed,
            lock=self.lock,
            timing=timing,
            forecast=predicted,
            proofs=proofs,
            drift=self.drift,
            speeds=self.speeds,
            first_pass_s=self.first_pass_s,
        )
        return finish(self.job, self.staging, results, self.stages, self.notes)

    # Stages

    def prepare(self, source: Model, samples: Samples) -> Model:
        out = self.staging / "model.fp32.onnx"
        made = prepared(self.job, source, samples, out, self.threads)
        # It may be gigabytes, and nothing reads it any more.
        shutil.rmtree(source.path.parent)
        self.notes += made.notes
        return made.model

    def divide(self, everything: Samples, calibration: Samples | None) -> tuple[Samples, Samples]:
        calibration, evaluation = divide(self.job.data, everything, calibration)
        if len(calibration) < _FEW:
            self.notes.append(
                f"only {len(calibration)} samples calibrate; ranges settle with {_FEW} and more"
            )
        return calibration, evaluation

    def baseline(
        self, fp32: Model, samples: Samples, metric: Metric, keep: OutputStore
    ) -> tuple[Evaluation, Tolerance]:
        states, runtime = self.job.data.states, RUNTIMES["onnxruntime"]
        execution = Execution(runtime, Settings(threads=self.threads), states)
        found = remember_scores(
            self.journal,
            {
                "fp32": fp32.sha256,
                "samples": samples.digest,
                "metric": (metric.name, metric_digest(self.job.limits)),
                "states": states,
            },
            metric,
            keep,
            lambda: evaluate(fp32, samples, metric, execution, keep=keep, watch=self._watch),
        )
        asked = self.job.limits.max_drop
        tolerance = parse_tolerance(asked) if asked else default_tolerance(found)
        self.progress.say(f"FP32: {metric.name} {found.value:.4f} on {len(samples):,} samples")
        # Refuses a broken baseline and tolerances that do not fit, before the work begins.
        judge(found, found, tolerance, confidence=self.job.limits.confidence)
        slice_limit(self.job.limits, found)
        self.division = divided(self.job.limits, samples, found.count)
        return found, tolerance

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
        if self.job.effort.recipe is not None:
            self.replay = fitted(self.job.effort.recipe, fingerprints(model, anchors))
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
            stopped=lambda: self.interrupt.asked,
        )

    def _statistics(self, fp32: Model, tensors: tuple[str, ...], samples: Samples) -> Calibration:
        states = self.job.data.states
        found = remember_calibration(
            self.journal,
            {
                "fp32": fp32.sha256,
                "samples": samples.digest,
                "tensors": tensors,
                "states": states,
                "threads": self.threads,
            },
            lambda: calibrate(
                fp32,
                tensors,
                samples,
                threads=self.threads,
                scratch=self.scratch,
                states=states,
                progress=self.progress.step,
            ),
        )
        # The journal keeps what was learned, not the samples; an engine may want to see them.
        rows = RowStore(fp32, samples, states, self.threads, self.scratch)
        return replace(found, source=samples, states=states, rows=rows, origin=self.job.model)

    def _held(self, total: int) -> tuple[list[int], list[int]]:
        return held_out(total, PROBES, ordered=bool(self.job.data.states))

    def looks(self, baseline: Evaluation, tolerance: Tolerance) -> Looks | None:
        """When evaluations may end early; never where samples hang together."""
        whole = baseline.corpus_value is not None
        if self.job.data.states or whole or self.division.units is not None:
            return None
        confidence = self.job.limits.confidence
        itself = judge(baseline, baseline, tolerance, confidence=confidence)
        return Looks(baseline, itself.limit, confidence, can_pass(baseline, itself))

    def first_models(
        self, bench: Workbench, judging: Judging
    ) -> tuple[Workbench, tuple[Judged, ...]]:
        """A first verdict, and a bench that keeps the models it is on; the budget begins."""
        found = first_models(bench, judging, self.targets[0], self.aim(bench))
        pinned = frozenset(j.trial.quantized.model.sha256 for j in found)
        deadline_s = perf_counter() + self.job.effort.budget_s
        return replace(bench, pinned=pinned, deadline_s=deadline_s), found

    def even_out(self, bench: Workbench, samples: Samples) -> Workbench:
        """Offer graphs with evened-out channels, as the recipe says or where it may help."""
        states, effort = self.job.data.states, self.job.effort
        rest = samples.subset(self._held(len(samples))[1])
        if self.replay is not None:
            strengths = self.replay.recipe.strengths
            return even_out_as(bench, strengths, rest, states) if strengths else bench
        if "native" not in self.engines:
            return bench
        # Costs up to two passes more. A run that goes on decides as the first one did.
        key = bench.key(samples=rest.digest)
        took = next(s for s in self.stages if s.name == "calibrate")
        calibrating = self.journal.remember(Stage, "calibrating", key, lambda: took)
        if 2 * calibrating.seconds > effort.budget_s * _EVEN_OUT_SHARE:
            self.notes.append(
                "channels were not evened out: a pass over the samples takes too long"
            )
            return bench
        end_s = min(bench.deadline_s, perf_counter() + effort.budget_s * _EVEN_OUT_SHARE)
        evened = even_out(replace(bench, deadline_s=end_s), self.targets[0], rest, states)
        return replace(evened, deadline_s=bench.deadline_s)

    def search(self, bench: Workbench, judging: Judging, first: Sequence[Judged]) -> Found:
        if self.replay is not None:
            self.drift = drift_of(self.replay, bench)
            if (note := drift_note(self.drift)) is not None:
                self.notes.append(note)
                self.progress.say(note)
            found = run_recipe(self.replay, bench, partial(judging, whole=True))
            assert found.best is not None
            self.aim(bench).keep(found.best)
            return found
        found = search(bench, judging, self.targets, self.aim(bench), first)
        if self.interrupt.asked:
            self.notes.append("the search was interrupted; this is the best it had found")
        return found

    def aim(self, bench: Workbench) -> Aim:
        """What candidates are judged and kept for."""
        return Aim(
            can_pass=self.can_pass,
            need_speed=self.job.limits.need_speed,
            say=self.progress.say,
            stopped=lambda: self.interrupt.asked,
            keep=partial(self._keep, bench),
        )

    def _keep(self, bench: Workbench, best: Judged) -> None:
        """The best so far, complete on disk."""
        if self.journal.folder is not None:
            with not_fatal("the best so far"):
                keep_best(best, bench, self.journal.folder)
        if self.first_pass_s is None and best.rank[0] <= (0 if self.can_pass else 1):
            self.first_pass_s = (perf_counter_ns() - self.started_ns) / 1e9
            passed = best.verdict.outcome == "pass"
            what = "passing model" if passed else "model within the limit"
            self.progress.say(f"first {what} after {self.first_pass_s:.1f} s")

    def predict(self, bench: Workbench, timing: Timing) -> Forecast | None:
        """Latencies on the machine that was named, if one was."""
        if self.elsewhere is None:
            return None
        with self.stage("predict"):
            step = lambda done, total, _: self.progress.step(done, total)  # noqa: E731
            return forecast(self.elsewhere, describe(), timing.latencies, bench.probes[0], step)

    def effort(self) -> Effort:
        """What the benchmark may take: little once a person asked for the end."""
        effort = self.job.effort
        hurried = replace(effort, rounds=min(effort.rounds, _HURRIED_ROUNDS))
        return hurried if self.interrupt.asked else effort

    def benchmark(self, bench: Workbench, found: Found) -> Timing:
        """FP32 beside the chosen model; what a recipe tells and holds here is not timed again."""
        assert found.best is not None
        served, fp32_ms = found.best.runtime, found.fp32_ms
        short = self.replay is not None and not self.job.effort.full
        # Of a search, the fastest of its quick look first.
        int8 = list(found.best.trial.latency_ms) or [served]
        if self.replay is not None and short:
            # A baseline compares within one runtime.
            beside = [served] if self.lock is not None else []
            self.speeds, fp32, note = what_to_time(self.replay, bench, beside)
            self.notes.append(note)
        else:
            fp32 = sorted(fp32_ms, key=fp32_ms.__getitem__) or serving_fp32(bench)
        asked = (self.job.bounds.min_speedup, 1.0 if self.job.limits.need_speed else None)
        question = Question(
            tuple(limit for limit in asked if limit is not None),
            brief=short or self.interrupt.asked,
            quick=self.speeds is not None,
        )
        quantized, step = found.best.trial.quantized, self.progress.step
        return time_models(bench, quantized.model, (fp32, int8), self.effort(), question, step)

    def _is_throughput(self) -> bool:
        return self.job.limits.objective == "throughput"

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
        others = [r for r in best.trial.latency_ms if r != best.runtime]
        for runtime in (best.runtime, *others):
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
