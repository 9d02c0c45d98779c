"""How far to even out channels: graphs with less noise of INT8 that compute the same.

groups + rows of FP32 ─▶ `quantize.strengths` ─▶ rewritten FP32 graphs ─▶ rows and statistics of
what changed: FP32's, divided; what was not kept for that is calibrated again ─▶ `quantize.trials`
compares
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from bench.errors import UnsupportedError
from bench.models import Model, read_model
from quantize.anchors import Anchor, find_anchors
from quantize.calibrate import Calibration, calibrate, keep_values
from quantize.equalize import Factors, Group, apply, axes_of, find_groups
from quantize.graphs import light, opened
from quantize.histograms import TensorStatistics
from quantize.journal import remember_calibration
from quantize.kept import ValueStore
from quantize.outputs import noise_shares, to_db
from quantize.placement import watch_list
from quantize.recipe import Recipe
from quantize.rows import Divided, windows_of
from quantize.strengths import Captured, Weights, best_strength, captured_by, factors_of
from quantize.trials import Start, Workbench, attempt_or_none, run_probes

logger = logging.getLogger(__name__)

# What rounding in FP32 leaves is about 120 dB below the signal; less means a rewrite was wrong.
_PARITY_DB = 70.0
# A plain candidate with less noise needs no help.
_QUIET_DB = 45.0


def even_out(bench: Workbench, target: str) -> Workbench:
    """Add graphs with evened-out channels to those that candidates start from.

    Args:
        bench: With the statistics of its own graph.
        target: Of the plain candidate, which has to leave something to gain.

    Returns:
        The same with up to two starts more: what folds into constants, and that with Muls put in
        front of products whose input others read as well.
    """
    with opened(bench.fp32.path) as model:
        groups = find_groups(model, bench.anchors)
    if not groups or not _is_noisy(bench, target) or bench.late:
        return bench
    strengths, factors = _choose(bench, groups)
    bench = _with_values(bench, groups)
    kept = [g for g in groups if g.name in strengths]
    folded = [g for g in kept if not g.inserted]
    evened = _started(bench, kept, strengths, factors)
    if len(folded) == len(kept) or evened is bench or bench.late:
        return evened
    return _started(evened, folded, strengths, factors)


def _with_values(bench: Workbench, groups: Sequence[Group]) -> Workbench:
    """The same with somewhere to keep values of what these groups, all of the graph, divide."""
    rows, values = bench.calibration.rows, bench.calibration.values
    if rows is None or (values is not None and values.axes):
        return bench
    values = ValueStore(axes_of(groups, rows.tensors), bench.scratch)
    return replace(bench, calibration=replace(bench.calibration, values=values))


def _choose(
    bench: Workbench, groups: Sequence[Group], given: Mapping[str, float] | None = None
) -> tuple[dict[str, float], dict[str, Factors]]:
    """Strength and factors of the groups that gain from it, or of all with the strengths given."""
    strengths: dict[str, float] = {}
    factors: dict[str, Factors] = {}
    with opened(bench.fp32.path) as model:
        captured = _captured(bench, groups, model)
        known = Weights(model, bench.anchors)
        for group in groups:
            if given is None and bench.late:
                # To use what is known by now would take longer still.
                return {}, {}
            if all(tensor in captured for tensor, _ in group.reads):
                weights = {name: known.of(name) for _, name in group.reads}
                found = given[group.name] if given else best_strength(group, captured, weights)
                if found is not None:
                    strengths[group.name] = found
                    factors[group.name] = factors_of(group, found, captured, weights)
    return strengths, factors


def _is_noisy(bench: Workbench, target: str) -> bool:
    """Whether everything in INT8 leaves noise worth the work."""
    modes = {a.name: a.modes[0] for a in bench.anchors}
    trial = attempt_or_none(bench, Recipe(target, "mse", correct_bias=True, modes=modes), "plain")
    return trial is not None and trial.noise_db < _QUIET_DB


def even_out_as(bench: Workbench, recipe: Recipe) -> Workbench:
    """The same with the strengths of a recipe, without looking for any.

    A pass over the samples is spared where no layer of it needs a range.

    Raises:
        UnsupportedError: The graph has no such groups, or they change what it computes.
    """
    strengths = recipe.strengths
    # No deadline ends what a recipe asks for.
    bench = replace(bench, deadline_s=float("inf"))
    with opened(bench.fp32.path) as model:
        known = find_groups(model, bench.anchors)
    groups = [g for g in known if g.name in strengths]
    unknown = sorted(set(strengths) - {g.name for g in groups})
    if not unknown:
        bench = _with_values(bench, known)
        _, factors = _choose(bench, groups, strengths)
        if len(factors) == len(strengths):
            bench = _started(bench, groups, strengths, factors, seen=recipe.is_static)
    if not any(s.strengths == strengths for s in bench.starts):
        where = f"node {unknown[0]!r}" if unknown else "this model"
        raise UnsupportedError(
            f"the recipe evens out channels in front of {len(strengths)} nodes, which cannot be "
            f"done at {where}. Run `vnnify quantize` without --recipe."
        )
    return bench


def _captured(bench: Workbench, groups: Sequence[Group], model: ir.Model) -> dict[str, Captured]:
    """What groups' anchors read; a tensor that was not finite is missing."""
    store, seen = bench.calibration.rows, bench.calibration.tensors
    if store is None:
        return {}
    windows = windows_of({str(n.name): n for n in model.graph}, bench.anchors)
    store.capture(windows.values())
    found: dict[str, Captured] = {}
    for tensor, anchor in (read for group in groups for read in group.reads):
        rows = store.rows(windows[anchor])
        if len(rows) and not seen[tensor].nonfinite:
            new = captured_by(rows, windows[anchor])
            old = found.setdefault(tensor, new)
            found[tensor] = replace(old, largest=np.maximum(old.largest, new.largest))
    return found


def _started(
    bench: Workbench,
    groups: Sequence[Group],
    strengths: Mapping[str, float],
    factors: Mapping[str, Factors],
    *,
    seen: bool = True,
) -> Workbench:
    """Add the graph in which these groups are evened out, if there are any.

    What changed has statistics of its own, or none where none are to be `seen`. Where they are
    calibrated again, those of a graph with more groups would do but for the last bits of some, and
    a replay, which makes one graph, would not make the file that its search made.
    """
    if not groups or (rewritten := _rewritten(bench, groups, factors)) is None:
        return bench
    model, anchors = rewritten
    divided, rows = _divided(bench, groups, factors, anchors), bench.calibration.rows
    tensors = {n: t for n, t in bench.calibration.tensors.items() if n not in divided}
    if seen:
        tensors |= _seen(bench, model, anchors, divided, tensors)
    muls = sum(a.data != b.data for a, b in zip(anchors, bench.anchors, strict=True))
    calibration = replace(
        bench.calibration,
        tensors=tensors,
        model_sha256=model.sha256,
        rows=None if rows is None else rows.evened(divided),
    )
    start = Start({g.name: strengths[g.name] for g in groups}, muls, model, anchors, calibration)
    return replace(bench, starts=(*bench.starts, start))


def _seen(
    bench: Workbench,
    model: Model,
    anchors: tuple[Anchor, ...],
    divided: Mapping[str, Divided],
    known: Collection[str],
) -> dict[str, TensorStatistics]:
    """Statistics of what is not known of an evened-out graph."""
    rows, values = bench.calibration.rows, bench.calibration.values
    assert rows is not None
    assert values is not None
    samples, states, threads = rows.samples, rows.states, bench.threads
    with opened(model.path) as graph:
        watch = [t for t in watch_list(graph, anchors) if t not in known]

    def make() -> Calibration:
        keep_values(values, (d.tensor for d in divided.values()), rows)
        told = {n: values.divided(d.tensor, d.factors) for n, d in divided.items()}
        tensors = {n: found for n, found in told.items() if found is not None}
        if rest := [n for n in watch if n not in tensors]:
            own = calibrate(
                model, rest, samples, threads=threads, scratch=bench.scratch, states=states
            )
            tensors |= own.tensors
        return Calibration(tensors, model.sha256, samples.digest, len(samples))

    key = bench.key(evened=model.sha256, samples=samples.digest, tensors=watch, states=states)
    return remember_calibration(bench.journal, {**key, "threads": threads}, make).tensors


def _divided(
    bench: Workbench,
    groups: Sequence[Group],
    factors: Mapping[str, Factors],
    anchors: Sequence[Anchor],
) -> dict[str, Divided]:
    """What tensors of an evened-out graph are of FP32's, by name."""
    found = {t: Divided(t, factors[g.name]) for g in groups if not g.inserted for t in g.tensors}
    inserted = {t: g for g in groups if g.inserted for t in g.tensors}
    for new, old in zip(anchors, bench.anchors, strict=True):
        # Beside a Mul that was put in, others go on reading the tensor as it was.
        if new.data != old.data:
            found[new.data] = Divided(old.data, factors[inserted[old.data].name])
    return found


def _rewritten(
    bench: Workbench, groups: Sequence[Group], factors: Mapping[str, Factors]
) -> tuple[Model, tuple[Anchor, ...]] | None:
    """The FP32 graph with groups evened out and its anchors; None where it computes otherwise."""
    out = bench.scratch / f"even-{len(groups)}.onnx"
    # Weights go from file to file: inside one they would be in memory three times.
    with opened(light(bench.fp32, bench.scratch).path) as model:
        apply(model, groups, factors)
        anchors = find_anchors(model)[0]
        ir.save(model, out, external_data=f"{out.name}.data")
    written = read_model(out)
    found = run_probes(written, bench.probes, bench.threads)
    parity = to_db(noise_shares(bench.probe_outputs, found))
    if parity < _PARITY_DB:
        logger.warning("channels stay as they are: evened out, outputs differ (%.0f dB)", parity)
        return None
    return written, anchors
