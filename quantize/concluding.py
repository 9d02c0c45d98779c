"""The stages after the first verdict; `quantize.pipeline` has those before.

    first verdict ─▶ even out ─▶ search ─▶ verify ─▶ benchmark ─▶ predict, prove, if asked for ─▶
    Report

They stand apart so that nobody who waits for the first verdict waits for the imports of these, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING

from bench.errors import UnsupportedError
from bench.forecast import Forecast, forecast
from bench.machine import canary, describe
from bench.models import Model
from bench.stages import Stage
from quantize.candidates import Found, Judged
from quantize.data import Samples
from quantize.drift import Drift, drift_note
from quantize.evaluate import Evaluation
from quantize.finishing import Results, fastest, finish
from quantize.job import Effort, flips_file
from quantize.judging import Judging
from quantize.opening import Opening
from quantize.proof.comparing import Proof
from quantize.proof.proving import prove_model
from quantize.replaying import (
    Replay,
    drift_of,
    early_note,
    run_recipe,
    serving_fp32,
    what_to_time,
)
from quantize.report import Data, Report
from quantize.search import search
from quantize.served import Served, serve, unscored
from quantize.slices import Looked, look_into, slice_limit
from quantize.smoothing import even_out, even_out_as
from quantize.speeds import Speeds, is_close, to_beat
from quantize.targets import find_target
from quantize.timing import FEWEST, Question, Timing, time_models
from quantize.trials import Workbench

if TYPE_CHECKING:
    from quantize.pipeline import Run

# Of the benchmark, once a person asked for the end.
_HURRIED_ROUNDS = 2
# Of the budget, for evening out channels.
_EVEN_OUT_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Begun:
    """What the first stages leave to these.

    Attributes:
        source: The converted model.
        calibration: Samples to calibrate with.
        bench: What all candidates share.
        opening: Their judge.
        first: Candidates that were judged already.
    """

    source: Model
    calibration: Samples
    bench: Workbench
    opening: Opening
    first: tuple[Judged, ...]


def conclude(run: "Run", begun: Begun) -> Report:
    """Do the stages that are left.

    Raises:
        VnnifyError: See `bench.errors`.
    """
    return _Conclusion(run, begun).report()


class _Conclusion:
    """The rest of one job; every method is one stage."""

    def __init__(self, run: "Run", begun: Begun) -> None:
        self.run, self.begun = run, begun
        self.job, self.interrupt = run.job, run.interrupt
        self.drift: tuple[Drift, ...] = ()
        self.speeds: Speeds | None = None

    def report(self) -> Report:
        run = self.run
        with run.stage("even out"):
            bench = self.even_out()
        with run.stage("search"):
            found = self.search(bench)
        with run.stage("verify"):
            served, elsewhere = self.verify(found)
            served, tried = self.serve(bench, served)
        if (note := unscored(tried[0], self.judging.metric)) is not None:
            run.notes.append(note)
        with run.stage("benchmark"):
            timing = self.benchmark(bench, found)
        predicted = self.predict(bench, timing)
        assert found.best is not None
        proofs = self.prove(found.best)
        best = fastest(served, timing.latencies)
        others = tuple(j.evaluation for j in served if j is not best)
        looked, allowed = self.look(best)
        results = Results(
            source=self.begun.source,
            fp32=bench.fp32,
            bench=bench,
            found=found,
            best=best,
            metric=self.judging.metric.name,
            tolerance=self.judging.tolerance,
            data=self.data(),
            evaluations=(self.judging.baseline, best.evaluation, *others, *elsewhere),
            looked=looked,
            slice_limit=allowed,
            lock=run.lock,
            timing=timing,
            forecast=predicted,
            proofs=proofs,
            drift=self.drift,
            speeds=self.speeds,
            served=tried,
            first_pass_s=run.first_pass_s,
            first_pass_samples=run.first_pass_samples,
        )
        return finish(self.job, run.staging, results, run.stages, run.notes)

    @property
    def judging(self) -> Judging:
        """What FP32's scores became; of a replay, once its model was judged beside FP32."""
        return self.begun.opening.rest()

    def data(self) -> Data:
        """Which samples were used for what."""
        ours, theirs = self.begun.calibration, self.judging.samples
        return Data(ours.source, len(ours), ours.digest, theirs.source, len(theirs), theirs.digest)

    def look(self, best: Judged) -> tuple[Looked, float | None]:
        """How classes and slices fare, and the limit that they are held against, if any."""
        baseline, confidence = self.judging.baseline, self.job.limits.confidence
        allowed = slice_limit(self.job.limits, baseline)
        if best.verdict.look is not None:
            # Of the look that ended a replay.
            confidence = best.verdict.level
        looked = look_into(
            (baseline, best.evaluation),
            self.judging.samples,
            self.run.ground.division,
            best.verdict.limit if allowed is None else allowed,
            confidence,
            flips_file(self.run.staging, best.runtime) if self.job.flips else None,
            # Only a limit makes them part of what the candidate was chosen by.
            share=1.0 if allowed is None else best.verdict.share,
        )
        return looked, allowed

    # Stages

    def even_out(self) -> Workbench:
        """Offer graphs with evened-out channels, as the recipe says or where it may help."""
        run, bench = self.run, self.begun.bench
        effort = self.job.effort
        if run.replay is not None:
            recipe = run.replay.recipe
            return even_out_as(bench, recipe) if recipe.strengths else bench
        if "native" not in bench.engines:
            return bench
        # Costs a pass, or one for each of up to two graphs where too much would have to be kept. A
        # run that goes on decides as the first did.
        took = next(s for s in run.stages if s.name == "calibrate")
        calibrating = run.journal.remember(Stage, "calibrating", bench.key(), lambda: took)
        if 2 * calibrating.seconds > effort.budget_s * _EVEN_OUT_SHARE:
            run.notes.append("channels were not evened out: a pass over the samples takes too long")
            return bench
        end_s = min(bench.deadline_s, perf_counter() + effort.budget_s * _EVEN_OUT_SHARE)
        evened = even_out(replace(bench, deadline_s=end_s), run.targets[0])
        return replace(evened, deadline_s=bench.deadline_s)

    def search(self, bench: Workbench) -> Found:
        run, aim = self.run, self.run.aim(bench)
        if run.replay is not None:
            self.drift = drift_of(run.replay, bench)
            if (note := drift_note(self.drift)) is not None:
                run.notes.append(note)
                run.progress.say(note)
            found = run_recipe(run.replay, bench, self.begun.opening)
            assert found.best is not None
            if (note := early_note(found.best.verdict)) is not None:
                run.notes.append(note)
            aim.keep(found.best)
            return found
        found = search(bench, self.judging, run.targets, aim, self.begun.first)
        if self.interrupt.asked:
            run.notes.append("the search was interrupted; this is the best it had found")
        elif bench.late and found.best is not None and found.best.rank[0] > aim.enough:
            run.notes.append(
                f"the search ended with its --budget of {self.job.effort.budget_s:g} s; with more, "
                "it may find a model that passes"
            )
        return found

    def predict(self, bench: Workbench, timing: Timing) -> Forecast | None:
        """Latencies on the machine that was named, if one was."""
        if self.run.elsewhere is None:
            return None
        with self.run.stage("predict"):
            step = lambda done, total, _: self.run.progress.step(done, total)  # noqa: E731
            return forecast(self.run.elsewhere, describe(), timing.latencies, bench.probes[0], step)

    def effort(self) -> Effort:
        """What the benchmark may take: little once a person asked for the end."""
        effort = self.job.effort
        hurried = replace(effort, rounds=min(effort.rounds, _HURRIED_ROUNDS))
        return hurried if self.interrupt.asked else effort

    def benchmark(self, bench: Workbench, found: Found) -> Timing:
        """FP32 beside the chosen model; what a recipe tells and holds here is not timed again."""
        assert found.best is not None
        run, served, fp32_ms = self.run, found.best.runtime, found.fp32_ms
        # Of a search, the fastest of its quick look first.
        int8 = list(found.best.trial.latency_ms) or [served]
        if run.replay is not None and not self.job.effort.full:
            fp32 = self.recalled(run.replay, bench, served)
        else:
            fp32 = sorted(fp32_ms, key=fp32_ms.__getitem__) or serving_fp32(bench)
        model, asked = found.best.trial.quantized.model, self.question(bench, fp32)
        step, ahead = run.progress.step, run.ahead
        return time_models(bench, model, (fp32, int8), self.effort(), asked, step, ahead)

    def recalled(self, replay: Replay, bench: Workbench, served: str) -> list[str]:
        """The runtimes to time FP32 in, by what the recipe tells of speeds and holds here."""
        # A baseline compares within one runtime.
        beside = [served] if self.run.lock is not None else []
        self.speeds, fp32, note = what_to_time(replay, bench, beside, exactly=self.is_demanding)
        self.run.notes.append(note)
        return fp32

    def question(self, bench: Workbench, fp32: Sequence[str]) -> Question:
        """What the benchmark has to tell, where FP32 is timed in these runtimes."""
        known, limits = self.speeds, {self.job.bounds.min_speedup}
        if self.job.limits.need_speed:
            limits |= {1.0, 1.0 if known is None else to_beat(known, bench.runtimes, fp32)}
        once = known is not None and is_close(known, fp32[0]) and not self.is_demanding
        if once:
            self.run.notes.append(
                f"by the recipe INT8 is about as fast as FP32, so {FEWEST} processes of each were "
                "timed, which may leave open which is faster"
            )
        short = self.run.replay is not None and not self.job.effort.full
        return Question(
            tuple(sorted(limit for limit in limits if limit is not None)),
            brief=short or self.interrupt.asked,
            quick=known is not None,
            once=once,
        )

    @property
    def is_demanding(self) -> bool:
        """Whether a speed-up was asked for, which has to be certain, however long that takes."""
        return self.job.bounds.min_speedup is not None or self.run.lock is not None

    def verify(self, found: Found) -> tuple[tuple[Judged, ...], tuple[Evaluation, ...]]:
        """Judge the chosen model in every runtime that takes it, and natively where that differs.

        Returns:
            Verdicts on the target's arithmetic, one per runtime; evaluations on this CPU's own.
        """
        if found.best is None:
            raise UnsupportedError(
                f"no INT8 candidate could be made of this model: {found.reason}."
            )
        judging, few = self.judging, self.begun.bench.few
        best, native = found.best, list[Evaluation]()
        served, quantized = [best], best.trial.quantized
        others = [r for r in best.trial.latency_ms if r != best.runtime]
        for runtime in (best.runtime, *others):
            judged = best
            if runtime != best.runtime or best.evaluation.count < judging.baseline.count:
                if (outcome := judging(quantized, runtime, whole=True, few=few)) is None:
                    break
                judged = Judged(best.trial, runtime, *outcome)
                served = [*served[runtime == best.runtime :], judged]
            if self.interrupt.asked:
                break
            if canary(runtime) != "exact" and judged.evaluation.arithmetic == "exact":
                here = judging.evaluate(quantized, runtime, native=True, few=few)
                native += [here] if here is not None else []
        return tuple(served), tuple(native)

    def serve(
        self, bench: Workbench, judged: tuple[Judged, ...]
    ) -> tuple[tuple[Judged, ...], tuple[Served, ...]]:
        """Where the model is computed right with any threads, if anywhere; and what was tried."""
        model = judged[0].trial.quantized.model
        tried = tuple(serve(bench.few, model, j.runtime, bench.threads) for j in judged)
        sound = tuple(j for j, s in zip(judged, tried, strict=True) if s.is_sound)
        return sound or judged, tried

    def prove(self, best: Judged) -> tuple[Proof, ...]:
        """On emulated CPUs, if that was asked for."""
        cache, quantized = self.job.effort.prove, best.trial.quantized
        if cache is None:
            return ()
        with self.run.stage("prove"):
            target, states = find_target(quantized.recipe.target), self.job.data.states
            return prove_model(
                quantized.model.path,
                self.judging.samples,
                states,
                target,
                cache=cache,
                stopped=lambda: self.interrupt.asked,
            )
