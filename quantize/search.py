"""Which layers run in INT8, and how: accuracy first, then latency, few evaluations.

    strategies ─▶ least noisy variant of each ─▶ quick latency ─▶ fastest first: evaluate, judge
       none passes ─▶ ranges and rounding learned layer by layer, where they were not
       none passes ─▶ noise of each fusion group alone ─▶ the noisiest stay in float, by
       bisection ─▶ innocent ones return

Full evaluations are what costs; noise at the outputs of a few samples is cheap and decides
everything but the verdict.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import log, log10
from time import perf_counter

from quantize.anchors import Mode
from quantize.candidates import HOPELESS_DB, Aim, Found, Judge, Judged
from quantize.findings import COSTLY
from quantize.making import candidates_for
from quantize.outputs import to_db
from quantize.ranking import Group, fusion_groups, single_noise, steps
from quantize.recipe import ROUNDED
from quantize.trials import Trial, Workbench, attempt_or_none, explained, time_quickly
from quantize.variants import refined

logger = logging.getLogger(__name__)

MAX_EVALUATIONS = 10
# Of these, kept for each target that comes later.
_RESERVED = 3
# Attempts to return layers to INT8 after a pass.
_RETURNS = 3
# A candidate has to beat FP32 by this much in the quick look to be worth an evaluation.
_WORTH = 1.03
# A failed candidate this much faster than the one that passed is worth mending.
_MUCH_FASTER = 0.8
# What a candidate that is fast in both runtimes may cost more than one that is fast in one.
_ONE_RUNTIME = 1.05
# Candidates within this factor of the fastest are timed again, longer.
_NEAR = 1.1
# Outputs with less noise seldom change an answer.
_CALM_DB = 30.0
# Sizes within this factor count as the same.
_SAME_SIZE = 1.02


def search(
    bench: Workbench,
    judge: Judge,
    targets: Sequence[str],
    aim: Aim,
    first: Sequence[Judged] = (),
) -> Found:
    """Find the fastest INT8 model that passes.

    Args:
        bench: What all candidates share.
        judge: Evaluates a candidate.
        targets: Names of targets, the preferred one first.
        aim: What for.
        first: What was judged before, and not timed.
    """
    return _Search(bench, judge, aim, first).run(targets)


class _Search:
    def __init__(
        self, bench: Workbench, judge: Judge, aim: Aim, first: Sequence[Judged] = ()
    ) -> None:
        self.bench, self.judge, self.aim, self.say = bench, judge, aim, aim.say
        self.need_speed = aim.need_speed
        self.allowed = MAX_EVALUATIONS
        self.judged = list(first)
        self.trials: list[Trial] = []
        self.fp32_ms: dict[str, float] = {}
        self.to_beat = float("inf")

    def run(self, targets: Sequence[str]) -> Found:
        slower = False
        for later, target in zip(reversed(range(len(targets))), targets, strict=True):
            self.allowed = MAX_EVALUATIONS - _RESERVED * later
            trials = [] if self._spent() else candidates_for(self.bench, target, self.aim)
            if not trials:
                continue
            ready = self._look_closer(self._timed(trials)) or self._timed_again(trials)
            if not ready:
                # Another target rounds differently; it is no faster.
                slower = True
                break
            if self._first_pass(ready):
                self._improve(ready)
                break
            if self._floats(ready):
                break
        reason = "a candidate passed" if self._settled() else "no candidate passed"
        if slower or not self.judged:
            reason = "no candidate is faster than FP32" if slower else reason
            self._judge_fastest()
        if self.aim.stopped():
            reason = "interrupted"
        elif (best := self._best()) is not None and not best.trial.latency_ms:
            self._timed([best.trial])
        timed = [t.quantized.model.sha256 for t in self.trials]
        rest = [j.trial for j in self.judged if j.trial.quantized.model.sha256 not in timed]
        tried = (*rest, *self.trials)
        return Found(self._best(), tuple(self.judged), tried, self.fp32_ms, reason)

    def _best(self) -> Judged | None:
        return min(self.judged, key=lambda j: j.rank, default=None)

    def _timed(self, trials: list[Trial], rounds: int = 1) -> list[Trial]:
        """Candidates that gain, fastest first."""
        timed, self.fp32_ms = time_quickly(self.bench, trials, rounds=rounds)
        self.trials.extend(timed)
        self._retell(timed)
        floor = min(*self.fp32_ms.values(), self.to_beat)
        gains = [
            t
            for t in timed
            if t.latency_ms and (not self.need_speed or self._ms(t) * _WORTH < floor)
        ]
        look = ", in a longer look" if rounds > 1 else ""
        for t in timed:
            quick = f"{self._ms(t):.3g} ms{look}" if t.latency_ms else "does not run"
            self.say(f"{t.name}: {t.noise_db:.1f} dB, {quick} (to beat: {floor:.3g} ms)")
        return sorted(gains, key=self._cost)

    def _retell(self, timed: Sequence[Trial]) -> None:
        """Let candidates that were judged before they were timed know their time."""
        known = {t.quantized.model.sha256: t for t in timed}
        for i, judged in enumerate(self.judged):
            trial = known.get(judged.trial.quantized.model.sha256)
            if trial is not None:
                cost = None if self.need_speed else self._cost(trial)
                self.judged[i] = replace(judged, trial=trial, cost=cost)

    def _look_closer(self, ready: list[Trial]) -> list[Trial]:
        """The same, the fastest first, after a longer look at those that one look cannot tell."""
        near = [t for t in ready if self._ms(t) < _NEAR * self._ms(ready[0])]
        if not self.need_speed or len(near) < 2 or self.bench.late or self._spent():
            return ready
        self.trials = [t for t in self.trials if t not in near]
        again = self._timed(near, rounds=3)
        return sorted([*again, *(t for t in ready if t not in near)], key=self._cost)

    def _timed_again(self, trials: list[Trial]) -> list[Trial]:
        """A second, longer look at the two fastest before INT8 is given up for being slow."""
        if not self.need_speed:
            return []
        timed = [t for t in self.trials if t.quantized in [x.quantized for x in trials]]
        close = sorted((t for t in timed if t.latency_ms), key=self._ms)[:2]
        self.trials = [t for t in self.trials if t not in close]
        return self._timed(close, rounds=3) if close else []

    def _cost(self, trial: Trial) -> float:
        """What is to be small: its size, or its time, a little more where one runtime fuses it."""
        if not self.need_speed:
            # Some bytes of names and scales are no reason to prefer one.
            return float(round(log(trial.quantized.model.size_bytes, _SAME_SIZE)))
        only = trial.quantized.recipe.fused_for == "openvino"
        return self._ms(trial) * (_ONE_RUNTIME if only else 1.0)

    @staticmethod
    def _ms(trial: Trial) -> float:
        return min(trial.latency_ms.values(), default=float("inf"))

    def _first_pass(self, trials: Sequence[Trial]) -> bool:
        turn = self._in_turn(trials)
        return any(self._may_pass(trial) and self._passes(trial) for trial in turn)

    def _in_turn(self, trials: Sequence[Trial]) -> Sequence[Trial]:
        """The fastest first; where only one more can pass, the least noisy that is about as fast.

        With so few samples a failure leaves nothing to show a pass by.
        """
        calm = not trials or trials[0].noise_db >= _CALM_DB
        if calm or not self.need_speed or not self.aim.is_last_chance():
            return trials
        near = [t for t in trials if self._ms(t) < _NEAR * self._ms(trials[0])]
        quiet = sorted(near, key=lambda t: -t.noise_db)
        return [*quiet, *(t for t in trials if t not in near)]

    def _may_pass(self, trial: Trial) -> bool:
        """Whether its noise leaves that open: others want the evaluation that it would take."""
        # So few samples that none can pass tell little of a drop, unless it is a refusal.
        told = self.aim.can_pass()
        known = [j for j in self.judged if told or j.verdict.outcome == "refuse"]
        if trial.noise_db >= max(map(_to_pass_db, known), default=HOPELESS_DB):
            return True
        noise = "noise" if trial.noise_db < HOPELESS_DB else "too much like what did not pass"
        self.say(f"{trial.name}: outputs are {noise}, not evaluated")
        return False

    def _improve(self, ready: Sequence[Trial]) -> None:
        """A slower candidate passed; a faster one may, with its noisiest layers in float."""
        winner = min(self.judged, key=lambda j: j.rank)
        # The first model may have gained so much that it passes where no other can.
        ms = winner.trial.latency_ms.get(winner.runtime, 0.0)
        failed = [
            j.trial
            for j in self.judged
            if j.rank[0] > winner.rank[0] and self._ms(j.trial) < _MUCH_FASTER * ms
        ]
        fastest = [t for t in ready if t in failed][:1]
        if fastest and self.need_speed:
            self.to_beat = ms
            self._floats(fastest)

    def _passes(self, trial: Trial) -> bool:
        """Whether a candidate is as good as the samples can show, where it is fastest."""
        self._evaluate(trial)
        judged = self._known(trial)
        return judged is not None and judged.rank[0] <= self.aim.enough

    def _known(self, trial: Trial) -> Judged | None:
        """Its verdict where it is fastest, if there is one."""
        sha256, runtime = trial.quantized.model.sha256, trial.fastest
        same = (j for j in self.judged if j.trial.quantized.model.sha256 == sha256)
        return next((j for j in same if j.runtime == runtime), None)

    def _evaluate(self, trial: Trial) -> None:
        if trial.fastest is None or self._spent() or self._known(trial) is not None:
            return
        found = self.judge(trial.quantized, trial.fastest)
        if found is None:
            return
        evaluation, verdict = found
        cost = None if self.need_speed else self._cost(trial)
        self.judged.append(Judged(trial, trial.fastest, evaluation, verdict, cost))
        self.say(
            f"{trial.name} in {trial.fastest}: {verdict.outcome}, drop {verdict.drop:.4g} "
            f"(limit {verdict.limit:.4g}){self._left()}"
        )
        if self._best() is self.judged[-1]:
            self.aim.keep(self.judged[-1])

    def _left(self) -> str:
        """How long the rest can take at most, judged by what the evaluations took so far."""
        count = self.allowed - len(self.judged)
        if self._settled() or count <= 0:
            return ""
        seconds = max(j.evaluation.seconds for j in self.judged) * count
        seconds = max(min(seconds, self.bench.deadline_s - perf_counter()), 0.0)
        return f"; at most {count} more, {_duration(seconds)} of evaluation"

    def _spent(self) -> bool:
        """Whether evaluations or time are used up; the first evaluation is always made."""
        late = bool(self.judged) and self.bench.late
        return late or self.aim.stopped() or len(self.judged) >= self.allowed

    def _settled(self) -> bool:
        """Whether the best so far is as good as the samples can show."""
        best = self._best()
        return best is not None and best.rank[0] <= self.aim.enough

    def _judge_fastest(self) -> None:
        """No candidate gains; evaluate the fastest all the same, so that the report can show it."""
        timed = [t for t in self.trials if t.latency_ms]
        if timed:
            self._evaluate(min(timed, key=self._ms))

    def _floats(self, trials: Sequence[Trial]) -> bool:
        """Keep the noisiest anchors in float: as few as pass, found by bisection."""
        for base in trials[:2]:
            if self._spent():
                return False
            finer = self._finer(base)
            if finer is not base and self._may_pass(finer) and self._passes(finer):
                return True
            self.say(f"{finer.name}: looking for the layers that cost accuracy")
            # Half of what is left, so that there is time to use the answer.
            now = perf_counter()
            half = now + (self.bench.deadline_s - now) / 2
            groups = fusion_groups(self.bench, finer.quantized.recipe)
            alone = single_noise(self.bench, finer, groups, partial(self._late, half))
            floats = self._bisect(finer, alone)
            if floats is not None:
                self._give_back(finer, floats, alone)
                return True
        return False

    def _finer(self, base: Trial) -> Trial:
        """The same layers in INT8 with ranges and rounding learned, where they are not yet."""
        recipe, sha256 = base.quantized.recipe, base.quantized.model.sha256
        learned = recipe.rounding == "learned" or recipe.ranges_by_tensor
        if recipe.engine not in ROUNDED or learned:
            return base
        self.say(f"{base.name}: learning how its weights are rounded")
        # It was judged, and may stay the best.
        bench = replace(self.bench, pinned=self.bench.pinned | {sha256})
        found = refined(bench, base, recipe.modes)
        if found is base:
            return base
        # The same kernels on other integers, so its time is known.
        name = f"{base.name}, refined"
        found = replace(found, name=name, latency_ms=dict(base.latency_ms))
        self.trials.append(found)
        return found

    def _late(self, by_s: float) -> bool:
        return perf_counter() > by_s or self.aim.stopped()

    def _bisect(self, base: Trial, alone: Mapping[Group, float]) -> list[Group] | None:
        """The fewest of the noisiest groups whose return to float passes, the noisiest first.

        Growing numbers of them are tried; after the first pass, the way back is halved.
        """
        order = sorted(alone, key=alone.__getitem__, reverse=True)
        failed, passed = 0, None
        for count in steps([alone[n] for n in order]):
            outcome = self._with_floats(base, order[:count], alone)
            if outcome is None:
                break
            if outcome:
                passed = count
                break
            failed = count
        if passed is None:
            return None
        for _ in range(2):
            middle = (failed + passed) // 2
            if middle in (failed, passed):
                break
            if self._with_floats(base, order[:middle], alone):
                passed = middle
            else:
                failed = middle
        return order[:passed]

    def _give_back(
        self, base: Trial, floats: Sequence[Group], alone: Mapping[Group, float]
    ) -> None:
        """Return to INT8 what turned out innocent: noise at the outputs need not cost accuracy.

        Without the last group the candidate failed or was not tried; of the others, halves are
        returned, and what fails stays in float.
        """
        kept, suspects = list(floats), list(floats[:-1])
        for _ in range(_RETURNS):
            if not suspects or self._spent():
                return
            best = self._best()
            if best is not None:
                # It has to be faster than what passed, or it is not worth an evaluation.
                self.to_beat = min(self.to_beat, self._ms(best.trial))
            half = suspects[: -(-len(suspects) // 2)]
            rest = [g for g in kept if g not in half]
            if self._with_floats(base, rest, alone):
                kept = rest
            suspects = [g for g in suspects if g not in half]

    def _with_floats(
        self, base: Trial, groups: Sequence[Group], alone: Mapping[Group, float]
    ) -> bool | None:
        """Whether `base` passes with `groups` in float; None where it is not faster any more."""
        if self._spent():
            return None
        share = {n: alone[g] / sum(alone.values()) for g in groups for n in g}
        modes: dict[str, Mode] = {
            n: "float" if n in share else m for n, m in base.quantized.recipe.modes.items()
        }
        if all(m == "float" for m in modes.values()):
            return None
        name = f"{base.name}, {len(share)} in float"
        trial = attempt_or_none(self.bench, replace(base.quantized.recipe, modes=modes), name)
        if trial is None:
            return None
        why = {n: f"{COSTLY}: {part:.0%} of the noise" for n, part in share.items()}
        known = {x.name: x.reason for x in base.quantized.layers if x.reason is not None}
        rest = {"outputs": sum(share for g, share in alone.items() if g not in groups)}
        trial = replace(explained(trial, {**known, **why}), predicted_db=to_db(rest))
        if not (ready := self._timed([trial])):
            self.say(f"{name}: no faster")
            return None
        return self._passes(ready[0])


def _to_pass_db(judged: Judged) -> float:
    """Signal over noise that others need at least, where this candidate did not pass."""
    verdict, noise_db = judged.verdict, judged.trial.noise_db
    # A mean that is off may cost more than its part of the noise, so a first model tells little.
    corrected = judged.trial.quantized.recipe.correct_bias
    if verdict.outcome == "inconclusive" and corrected and verdict.limit > 0:
        # A drop falls with the power of the noise (squared errors) or slower (changed classes).
        noise_db += 10 * log10(max(verdict.high / verdict.limit, 1.0))
    elif verdict.outcome != "refuse":
        return HOPELESS_DB
    return max(noise_db, HOPELESS_DB)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
