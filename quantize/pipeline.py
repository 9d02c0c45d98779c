"""The only place that knows the order; the stages after the first verdict are in `concluding`.

    convert ─▶ read data ─▶ prepare ─▶ baseline ─▶ calibrate ─▶ first model ─▶ …

Where a verdict can be told before all samples have run, FP32 is scored beside the first model, or
the one of a replay, and not before the calibration (`quantize.opening`).

Everything is written into a staging folder; the caller publishes it whole. A model that was refused
goes to `refused/` in it.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import TYPE_CHECKING

from bench.ahead import started_ahead
from bench.errors import UnsupportedError
from bench.machine import granted_threads
from bench.models import Model
from bench.runtimes import find_runtime, installed_runtimes
from bench.stages import Stage, stage
from quantize.anchors import Anchor, find_anchors
from quantize.calibrate import Calibration, calibrate_for
from quantize.candidates import Aim, Judge, Judged
from quantize.data import Samples
from quantize.early import first_models
from quantize.gate import Verdict
from quantize.graphs import light, load
from quantize.ground import Ground
from quantize.job import Effort, Job, Progress
from quantize.journal import (
    Journal,
    context_of,
    not_fatal,
    remember_calibration,
)
from quantize.keeping import keep_best
from quantize.kept import ValueStore
from quantize.metric import Metric
from quantize.opening import Opening
from quantize.outputs import OutputStore
from quantize.placement import watch_list
from quantize.quantizers import QuantizedModel, find_engines
from quantize.recipe import RecipeFile, fingerprints, read_recipe
from quantize.rows import RowStore, Window, windows_of
from quantize.starting import chosen_metric, converted, divide, held_out, prepared, read
from quantize.stopping import Interrupt
from quantize.targets import find_target
from quantize.trials import PROBES, Workbench, run_probes

if TYPE_CHECKING:
    import onnx_ir as ir

    from bench.ahead import Ahead
    from bench.forecast import Elsewhere
    from quantize.lock import Lock
    from quantize.replaying import Replay
    from quantize.report import Report

# Of AUTO: what is right on every CPU comes first.
_AUTO = ("portable", "vnni")
_FEW = 100
# What the first models are made for and judged in, where the user did not choose.
_FIRST = ("onnxruntime",)


def run(
    job: Job,
    staging: Path,
    progress: Progress,
    *,
    work: Path | None = None,
    interrupt: Interrupt | None = None,
    started_ns: int | None = None,
) -> "Report":
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
    made = Run(job, staging, progress, journal, interrupt or Interrupt())
    made.started_ns = started_ns if started_ns is not None else began_ns
    return made.report()


class Run:
    """One job while it runs; every method is one stage, up to the first verdict."""

    def __init__(
        self, job: Job, staging: Path, progress: Progress, journal: Journal, interrupt: Interrupt
    ) -> None:
        self.job, self.staging, self.progress = job, staging, progress
        self.scratch, self.journal, self.interrupt = staging / "scratch", journal, interrupt
        self.stages: list[Stage] = []
        self.started_ns = 0
        self.first_pass_s: float | None = None
        self.first_pass_samples: int | None = None
        self.recipe: RecipeFile | None = None
        self.ahead: Ahead | None = None
        self.replay: Replay | None = None
        self.fp32: Model
        self.ground: Ground
        self.lock: Lock | None = None
        self.elsewhere: Elsewhere | None = None
        self.notes: list[str] = []
        self.threads = granted_threads(job.effort.threads)
        # What cannot be is refused now, and not after the calibration.
        self.runtimes = tuple(r for r in job.effort.runtimes if find_runtime(r).version())
        self.engines = find_engines(job.effort.engines, job.model)
        self.targets = (
            _AUTO if job.effort.target == "auto" else (find_target(job.effort.target).name,)
        )
        self._read_files(job.effort)

    def _read_files(self, effort: Effort) -> None:
        """What few runs need, and takes long to import."""
        if self.job.lock is not None:
            from quantize.lock import read_lock

            self.lock = read_lock(self.job.lock)
        if effort.recipe is not None:
            from quantize.replaying import refuse_options

            self.recipe = read_recipe(effort.recipe)
            refuse_options(self.recipe, effort)
            find_engines((self.recipe.recipe.engine,), self.job.model)
        if effort.predict_for is not None:
            from bench.forecast import read_elsewhere

            self.elsewhere = read_elsewhere(effort.predict_for)
        if effort.prove is not None:
            from quantize.proof.debian import require_packages

            require_packages(effort.prove)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Tell of a stage, and measure what it costs."""
        self.progress.begin(name)
        with stage(name) as watch:
            yield
        if watch.result is not None:
            self.stages.append(watch.result)

    def report(self) -> "Report":
        """Do all of it."""
        with started_ahead(self._timed()) as self.ahead:
            return self._report()

    def _timed(self) -> list[str]:
        """Runtimes of the processes that the recipe lets foresee in the benchmark."""
        if self.recipe is None or self.job.effort.full:
            return []
        from quantize.speeds import read_speeds
        from quantize.timing import FEWEST

        known = read_speeds(self.recipe)
        # One that knows no FP32 foresees nothing either: every runtime is timed then.
        if known is None or not known.fp32:
            return []
        timed = (known.fastest, self.recipe.served_by)
        return [r for r in timed if not self.runtimes or r in self.runtimes] * FEWEST

    def _report(self) -> "Report":
        if count := self.journal.count():
            self.progress.say(
                f"going on where an earlier run ended: {count} results of it are kept"
            )
        with self.stage("read"):
            everything, calibration = read(self.job, self.scratch)
            source = converted(self.job, everything, self.scratch)
        with self.stage("prepare"):
            calibration, evaluation = self.divide(everything, calibration)
            metric = chosen_metric(self.job.limits, evaluation)
            self.fp32 = self.prepare(source, everything, metric)
            opened = light(self.fp32, self.scratch)
            if self.lock is not None:
                from quantize.lock import refuse_other

                refuse_other(self.lock, evaluation.digest, metric.name)
        with OutputStore(folder=self.scratch) as reference:
            self.ground = Ground(
                *(self.job, opened, evaluation, metric, reference, self.threads, self.progress),
                self.journal,
                self.interrupt,
            )
            bench, opening, first = self.first_verdict(self.ground, calibration)
            # Not before: whoever waits for a first answer need not wait for these imports.
            from quantize.concluding import Begun, conclude

            # Looking for the others imports them.
            bench = replace(bench, runtimes=self.runtimes or installed_runtimes())
            return conclude(self, Begun(source, calibration, bench, opening, first))

    # Stages

    def first_verdict(
        self, ground: Ground, calibration: Samples
    ) -> tuple[Workbench, Opening, tuple[Judged, ...]]:
        """What candidates share, what judges them, and the first of them; none of a replay."""
        seen, judging = ground.foresight(), None
        if seen is None:
            with self.stage("baseline"):
                judging = ground.settle(ground.score)
        with self.stage("calibrate"):
            bench = self.calibrate(self.fp32, calibration)
        opening = Opening(ground, seen, partial(self._told, bench), bench.few, judging)
        if self.replay is not None:
            return bench, opening, ()
        with self.stage("first model"):
            bench, first = self.first_models(bench, opening)
            opening.rest()
        return bench, opening, first

    def prepare(self, source: Model, samples: Samples, metric: Metric) -> Model:
        """One clean FP32 graph, compared with what it was made from."""
        # What names its weights where they lie has to lie beside it, so it is published at the end.
        out = self.scratch / "model.fp32.onnx"
        made = prepared(self.job, source, samples, metric, out, self.threads)
        # It may be gigabytes, and nothing reads it any more.
        shutil.rmtree(source.path.parent)
        self.notes += made.notes
        return made.model

    def divide(self, everything: Samples, calibration: Samples | None) -> tuple[Samples, Samples]:
        """Samples that calibrate, and those that judge."""
        calibration, evaluation = divide(self.job.data, everything, calibration)
        if len(calibration) < _FEW:
            self.notes.append(
                f"only {len(calibration)} samples calibrate; ranges settle with {_FEW} and more"
            )
        return calibration, evaluation

    def calibrate(self, fp32: Model, samples: Samples) -> Workbench:
        """What all candidates share; says if there is nothing to quantize."""
        model = load(fp32.path)
        anchors, left = find_anchors(model)
        if not anchors:
            why = "; ".join(sorted(set(left.values()))) or "it has no Conv, Gemm, MatMul or LSTM"
            raise UnsupportedError(f"nothing to quantize (0 of {len(left)}): {why}.")
        # Whether it fits is known before anything is calibrated.
        if self.recipe is not None:
            from quantize.replaying import fitted

            self.replay = fitted(self.recipe, fingerprints(model, anchors))
        held, rest = self._held(len(samples))
        statistics = self._statistics(fp32, model, anchors, samples.subset(rest))
        probes = tuple(samples[i].feeds for i in held)
        timed_threads = self.job.effort.threads or 1 if self._is_throughput() else self.threads
        return Workbench(
            fp32,
            anchors,
            statistics,
            probes,
            run_probes(light(fp32, self.scratch), probes, self.threads),
            self.runtimes or _FIRST,
            timed_threads,
            self.scratch,
            journal=self.journal,
            engines=self.engines,
            need_speed=self.job.limits.need_speed,
            rounding=self.job.effort.rounding,
            stopped=lambda: self.interrupt.asked,
        )

    def _windows(self, model: "ir.Model", anchors: tuple[Anchor, ...]) -> tuple[Window, ...]:
        """Whose rows are read for sure; a search's first model does without any."""
        recipe = self.replay.recipe if self.replay is not None else None
        # Those tell as well how far to even out channels.
        if recipe is None or not (recipe.reads_rows or recipe.strengths):
            return ()
        nodes = {str(n.name): n for n in model.graph}
        return tuple(windows_of(nodes, anchors).values())

    def _divided(
        self, model: "ir.Model", anchors: tuple[Anchor, ...], watched: tuple[str, ...]
    ) -> tuple[dict[str, int], set[str]]:
        """Of a replay: axes of what any graph divides, and the tensors that its own graph does."""
        recipe = self.replay.recipe if self.replay is not None else None
        if recipe is None or not (recipe.is_static and recipe.strengths):
            return {}, set()
        from quantize.equalize import axes_of, find_groups

        groups = find_groups(model, anchors)
        ours = axes_of((g for g in groups if g.name in recipe.strengths), watched)
        return axes_of(groups, watched), set(ours)

    def _statistics(
        self, fp32: Model, model: "ir.Model", anchors: tuple[Anchor, ...], samples: Samples
    ) -> Calibration:
        states, tensors = self.job.data.states, watch_list(model, anchors)
        rows = RowStore(fp32, samples, states, self.threads, self.scratch, tensors)
        windows = self._windows(model, anchors)
        axes, divided = self._divided(model, anchors, tensors)
        values = ValueStore(axes, self.scratch)

        def make() -> Calibration:
            with values.keeping(divided, len(samples)) as keeping:
                return calibrate_for(rows, windows, self.progress.step, keeping)

        key = {
            "fp32": fp32.sha256,
            "samples": samples.digest,
            "tensors": tensors,
            "states": states,
            "threads": self.threads,
        }
        found = remember_calibration(self.journal, key, make)
        # The journal keeps what was learned, not the samples; an engine may want to see them.
        found = replace(found, source=samples, states=states, origin=self.job.model)
        return replace(found, rows=rows, values=values)

    def _held(self, total: int) -> tuple[list[int], list[int]]:
        return held_out(total, PROBES, ordered=bool(self.job.data.states))

    def first_models(self, bench: Workbench, judge: Judge) -> tuple[Workbench, tuple[Judged, ...]]:
        """A first verdict, and a bench that keeps the models it is on; the budget begins."""
        found = first_models(bench, judge, self.targets[0], self.aim(bench))
        pinned = frozenset(j.trial.quantized.model.sha256 for j in found)
        deadline_s = perf_counter() + self.job.effort.budget_s
        return replace(bench, pinned=pinned, deadline_s=deadline_s), found

    def aim(self, bench: Workbench) -> Aim:
        """What candidates are judged and kept for."""
        return Aim(
            can_pass=lambda: self.ground.can_pass,
            need_speed=self.job.limits.need_speed,
            say=self.progress.say,
            stopped=lambda: self.interrupt.asked,
            is_last_chance=lambda: self.ground.is_last_chance,
            keep=partial(self._keep, bench),
        )

    def _keep(self, bench: Workbench, best: Judged) -> None:
        """The best so far, complete on disk."""
        self._keep_file(bench, best.trial.quantized, best.runtime, best.verdict)
        passed = best.verdict.outcome == "pass"
        if best.rank[0] > (0 if self.ground.can_pass else 1):
            if self.first_pass_s is not None:
                self.progress.say(f"on all {best.verdict.n:,} samples it does not pass")
            self.first_pass_s = self.first_pass_samples = None
        elif self.first_pass_s is None:
            what = "passing model" if passed else "model within the limit"
            self._say_first(what, best.verdict.n, "")

    def _told(
        self, bench: Workbench, quantized: QuantizedModel, runtime: str, verdict: Verdict
    ) -> None:
        """The first model passes on the samples so far."""
        self._keep_file(bench, quantized, runtime, verdict)
        self._say_first("passing model", verdict.n, f" (on {verdict.n:,} samples; more follow)")

    def _keep_file(
        self, bench: Workbench, quantized: QuantizedModel, runtime: str, verdict: Verdict
    ) -> None:
        if self.journal.folder is not None:
            with not_fatal("the best so far"):
                keep_best(quantized, runtime, verdict, bench, self.journal.folder)

    def _say_first(self, what: str, samples: int, more: str) -> None:
        self.first_pass_s = (perf_counter_ns() - self.started_ns) / 1e9
        self.first_pass_samples = samples
        self.progress.say(f"first {what} after {self.first_pass_s:.1f} s{more}")

    def _is_throughput(self) -> bool:
        return self.job.limits.objective == "throughput"
