"""The first model: judged and on disk before anything is timed, compared or improved.

    calibration ─▶ first plan ─▶ noise, not hopeless ─▶ evaluate, judge ─▶ best so far on disk

A search that is ended early, by a person or by a budget, has that much to publish. It is made in
the plainest way: rows to correct biases by take longer to collect than all else that it needs. That
may cost the search one evaluation, and saves whoever waits most of the time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from quantize.candidates import HOPELESS_DB, Aim, Judge, Judged, expectation, plans, told
from quantize.trials import Workbench, attempt_or_none, may_serve, serves

# A second one follows only where the first failed and the second leaves less noise.
_TRIES = 2
# Noise of a tenth of the outputs may well cost accuracy. A choice, no measurement.
_LOUD_DB = 20.0


def first_models(bench: Workbench, judge: Judge, target: str, aim: Aim) -> tuple[Judged, ...]:
    """Judge the first plan that can be made, and where it fails, a quieter one.

    Args:
        bench: What all candidates share.
        judge: Evaluates a candidate.
        target: The preferred one.
        aim: What for.

    Returns:
        None, one or two candidates, not timed; only the last one may have passed.
    """
    found: list[Judged] = []
    for judged in islice(_judged(bench, judge, target, aim, found), _TRIES):
        found.append(judged)
        aim.say(
            f"{judged.trial.name} in {judged.runtime}: {judged.verdict.outcome}, drop "
            f"{judged.verdict.drop:.4g} (limit {judged.verdict.limit:.4g})"
        )
        if min(found, key=lambda j: j.rank) is judged:
            aim.keep(judged)
        if judged.rank[0] <= aim.enough or aim.stopped():
            break
    return tuple(found)


def _judged(
    bench: Workbench, judge: Judge, target: str, aim: Aim, before: Sequence[Judged]
) -> Iterator[Judged]:
    expected = expectation(bench) if aim.need_speed else None
    modes = expected.modes if expected is not None else None
    named = plans(bench.anchors, target, bench.runtimes, bench.engines, modes)
    for name, plan in named.items():
        if before and plan.fused_for == "openvino":
            continue  # The same numbers in other places.
        plain = replace(plan, correct_bias=False)
        trial = attempt_or_none(bench, plain, f"{name}, first")
        loudest = max((j.trial.noise_db for j in before), default=HOPELESS_DB)
        if trial is None or trial.noise_db <= loudest:
            continue
        trial, model = told(trial), trial.quantized.model
        fitting = (r for r in bench.runtimes if may_serve(r, plan, bench))
        runtime = next((r for r in fitting if serves(r, model, bench, trial.noise_db)), None)
        if runtime is None:
            continue
        outcome = judge(trial.quantized, runtime, unlikely=trial.noise_db < _LOUD_DB)
        if outcome is None:
            return
        yield Judged(trial, runtime, *outcome)
