"""The candidates of one target: static in each runtime's way, dynamic, evened out, where it pays.

plans ─▶ least noisy variant of each ─▶ with channels evened out ─▶ without layers that gain nothing
"""

from collections.abc import Sequence
from dataclasses import replace

from bench.kernels import TELLING
from quantize.candidates import Aim, expectation, plans, told
from quantize.ranking import paying
from quantize.recipe import Recipe
from quantize.trials import Trial, Workbench, attempt_or_none, explained
from quantize.variants import best_variant, smoothed


def candidates_for(bench: Workbench, target: str, aim: Aim) -> list[Trial]:
    """One candidate per plan; range method and bias correction are chosen on the first.

    Args:
        bench: What all candidates share.
        target: Name of the target.
        aim: Whether speed counts, and whether a person asked for the end.
    """
    trials: list[Trial] = []
    chosen: Recipe | None = None
    expected = expectation(bench) if aim.need_speed else None
    if expected is not None and not expected.gains:
        aim.say("no layer does enough work to gain from INT8, judged by its size alone")
    modes = expected.modes if expected is not None else None
    for name, plan in plans(bench.anchors, target, bench.runtimes, bench.engines, modes).items():
        if trials and (bench.late or aim.stopped()):
            break
        if plan.engine != "native" or chosen is None or not chosen.is_static:
            trial = best_variant(bench, plan, name)
        else:
            like = replace(chosen, modes=plan.modes, fused_for=plan.fused_for)
            trial = attempt_or_none(bench, like, name)
        if trial is not None:
            chosen = chosen or trial.quantized.recipe
            trials.append(told(trial))
    even = smoothed(bench, trials)
    pays = _where_it_pays(bench, trials, target) if aim.need_speed and not bench.late else []
    return [*trials, *even, *pays]


def _where_it_pays(bench: Workbench, trials: Sequence[Trial], target: str) -> list[Trial]:
    """Per runtime: its widest static candidate without the layers that gain nothing in it."""
    made: list[Trial] = []
    for runtime in bench.runtimes:
        fitting = [
            t
            for t in trials
            if t.quantized.recipe.fused_for == runtime
            and t.quantized.recipe.engine == "native"
            and t.quantized.recipe.is_static
        ]
        if not fitting or runtime not in TELLING:
            continue
        # What was left in float by its size alone is looked at, too.
        widest = max(fitting, key=_layers_in_int8)
        recipe = widest.quantized.recipe
        modes = paying(bench, widest, runtime)
        if modes == recipe.modes or all(m == "float" for m in modes.values()):
            continue
        name = f"static where it pays in {runtime}, {target}"
        found = attempt_or_none(bench, replace(recipe, modes=modes), name)
        slow = dict.fromkeys(modes, f"its INT8 kernel in {runtime} gains nothing on this CPU")
        made += [explained(found, slow)] if found is not None else []
    return made


def _layers_in_int8(trial: Trial) -> int:
    return sum(mode != "float" for mode in trial.quantized.recipe.modes.values())
