"""How far to even out channels: graphs with less noise of INT8 that compute the same.

groups + captured rows ─▶ `quantize.strengths` ─▶ rewritten FP32 graphs, their changed tensors
calibrated again ─▶ `quantize.trials` compares
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bench.errors import InputError, UnsupportedError
from bench.models import Feeds, Model, read_model
from bench.runtimes import RUNTIMES, Settings
from quantize.anchors import Anchor, find_anchors
from quantize.calibrate import calibrate
from quantize.data import Samples
from quantize.equalize import Factors, Group, apply, find_groups
from quantize.graphs import opened
from quantize.journal import remember_calibration
from quantize.outputs import noise_shares, to_db
from quantize.placement import watch_list
from quantize.recipe import Recipe
from quantize.strengths import Captured, Weights, best_strength, factors_of
from quantize.trials import Start, Workbench, attempt_or_none, run_probes
from quantize.watching import light, write_beside

logger = logging.getLogger(__name__)

# Enough to know channels by; rows per sample and tensor.
_SAMPLES = 32
_ROWS = 16
# What rounding in FP32 leaves is about 120 dB below the signal; less means a rewrite was wrong.
_PARITY_DB = 70.0
# A plain candidate with less noise needs no help.
_QUIET_DB = 45.0
_AXES_AS_INPUT = 18


def even_out(
    bench: Workbench, target: str, samples: Samples, states: Mapping[str, str]
) -> Workbench:
    """Add graphs with evened-out channels to those that candidates start from.

    Args:
        bench: With the statistics of its own graph.
        target: Of the plain candidate, which has to leave something to gain.
        samples: Those that calibrated it.
        states: Output to input names that carry state.

    Returns:
        The same with up to two starts more: what folds into constants, and that with Muls put in
        front of products whose input others read as well.
    """
    with opened(bench.fp32.path) as model:
        groups = find_groups(model, bench.anchors)
    if not groups or not _is_noisy(bench, target) or bench.late:
        return bench
    try:
        captured = capture(bench, groups, samples, states)
    except (InputError, UnsupportedError) as e:
        logger.info("channels stay as they are: %s", e)
        return bench
    strengths, factors = _choose(bench, groups, captured)
    kept = [g for g in groups if g.name in strengths]
    folded = [g for g in kept if not g.inserted]
    evened = _started(bench, kept, strengths, factors, samples, states)
    if len(folded) == len(kept) or evened is bench or bench.late:
        return evened
    return _started(evened, folded, strengths, factors, samples, states)


def _choose(
    bench: Workbench,
    groups: Sequence[Group],
    captured: Mapping[str, Captured],
    given: Mapping[str, float] | None = None,
) -> tuple[dict[str, float], dict[str, Factors]]:
    """Strength and factors of the groups that gain from it, or of all with the strengths given."""
    strengths: dict[str, float] = {}
    factors: dict[str, Factors] = {}
    with opened(bench.fp32.path) as model:
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


def even_out_as(
    bench: Workbench, strengths: Mapping[str, float], samples: Samples, states: Mapping[str, str]
) -> Workbench:
    """The same with strengths that a recipe gives, without looking for any.

    Raises:
        UnsupportedError: The graph has no such groups, or they change what it computes.
    """
    # No deadline ends what a recipe asks for.
    bench = replace(bench, deadline_s=float("inf"))
    with opened(bench.fp32.path) as model:
        known = find_groups(model, bench.anchors)
    groups = [g for g in known if g.name in strengths]
    unknown = sorted(set(strengths) - {g.name for g in groups})
    if not unknown:
        captured = capture(bench, groups, samples, states)
        _, factors = _choose(bench, groups, captured, strengths)
        if len(factors) == len(strengths):
            bench = _started(bench, groups, strengths, factors, samples, states)
    if not any(s.strengths == dict(strengths) for s in bench.starts):
        where = f"node {unknown[0]!r}" if unknown else "this model"
        raise UnsupportedError(
            f"the recipe evens out channels in front of {len(strengths)} nodes, which cannot be "
            f"done at {where}. Run `vnnify quantize` without --recipe."
        )
    return bench


def capture(
    bench: Workbench, groups: Sequence[Group], samples: Samples, states: Mapping[str, str]
) -> dict[str, Captured]:
    """Rows and largest values of the tensors that groups' anchors read.

    The rows are taken inside the graph, so that no tensor is held longer than in a plain run. A
    tensor that was not finite is missing.
    """
    path = bench.scratch / "captured.onnx"
    wanted = {t: (g.tensors[t], g.channels) for g in groups for t, _ in g.reads}
    _expose_rows(bench.fp32, wanted, path)
    session = RUNTIMES["onnxruntime"].open(path, Settings(threads=bench.threads))
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    count = min(_SAMPLES, len(samples))
    chosen = range(count) if states else range(0, len(samples), max(len(samples) // count, 1))
    parts: dict[str, list[NDArray[np.float32]]] = {t: [] for t in wanted}
    largest: dict[str, list[NDArray[np.float32]]] = {t: [] for t in wanted}
    carried: Feeds = {}
    for i in chosen:
        found = session.run({**samples[i].feeds, **carried})
        carried = {states[name]: found[name] for name in states}
        for tensor, (_, channels) in wanted.items():
            rows = np.moveaxis(found[f"{tensor}/rows"], 1, -1).reshape(-1, channels)
            parts[tensor].append(rows.astype(np.float32))
            largest[tensor].append(found[f"{tensor}/largest"])
    session.close()
    made = {t: Captured(np.concatenate(parts[t]), np.max(largest[t], axis=0)) for t in wanted}
    return {t: c for t, c in made.items() if np.isfinite(c.largest).all()}


def _expose_rows(fp32: Model, wanted: Mapping[str, tuple[int, int]], out: Path) -> None:
    """Write a copy whose outputs are also `_ROWS` rows and the largest values of tensors."""
    source = light(fp32, out.parent)
    with opened(source) as model:
        _append_rows(model, wanted)
        write_beside(model, source, out)


def _append_rows(model: ir.Model, wanted: Mapping[str, tuple[int, int]]) -> None:
    """Add nodes and outputs for the axis of the channels and their number, by tensor."""
    values = {str(v.name): v for n in model.graph for v in n.outputs}
    values |= {str(v.name): v for v in model.graph.inputs}
    places = np.random.default_rng(0).random(_ROWS).astype(np.float32)
    for tensor, (axis, channels) in wanted.items():
        # [n, channels, positions], or [positions, channels, 1].
        shape = [0, 0, -1] if axis == 1 else [-1, channels, 1]
        along = 2 if axis == 1 else 0
        add = _Adder(model, tensor)
        folded = add("Reshape", values[tensor], np.array(shape, np.int64))
        size = add("Gather", add("Shape", folded), np.array(along, np.int64))
        at = add("Mul", add("Cast", size, to=int(ir.DataType.FLOAT)), places)
        at = add("Cast", at, to=int(ir.DataType.INT64))
        rows = add("Gather", folded, at, axis=along)
        sizes = add("Abs", folded)
        if model.opset_imports.get("", 0) >= _AXES_AS_INPUT:
            largest = add("ReduceMax", sizes, np.array([0, 2], np.int64), keepdims=0)
        else:
            largest = add("ReduceMax", sizes, axes=[0, 2], keepdims=0)
        for value, name in ((rows, "rows"), (largest, "largest")):
            value.name, value.type = f"{tensor}/{name}", ir.TensorType(ir.DataType.FLOAT)
            model.graph.outputs.append(value)


class _Adder:
    """Appends nodes that read one tensor."""

    def __init__(self, model: ir.Model, tensor: str) -> None:
        self.graph, self.tensor, self.count = model.graph, tensor, 0

    def __call__(
        self, op: str, *inputs: "ir.Value | NDArray[np.generic]", **attributes: object
    ) -> ir.Value:
        self.count += 1
        stem = f"{self.tensor}/captured/{self.count}"
        held = [self._value(v, f"{stem}/{i}") for i, v in enumerate(inputs)]
        node = ir.node(op, held, attributes=attributes, name=stem)
        node.outputs[0].name = f"{stem}/output"
        self.graph.append(node)
        return node.outputs[0]

    def _value(self, value: "ir.Value | NDArray[np.generic]", name: str) -> ir.Value:
        if isinstance(value, ir.Value):
            return value
        tensor = ir.Tensor(value, name=name)
        held = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
        )
        self.graph.register_initializer(held)
        return held


def _started(
    bench: Workbench,
    groups: Sequence[Group],
    strengths: Mapping[str, float],
    factors: Mapping[str, Factors],
    samples: Samples,
    states: Mapping[str, str],
) -> Workbench:
    """Add the graph in which these groups are evened out, if there are any.

    It has statistics of its own. Those of a graph with more groups would do but for the last bits
    of some, and a replay, which makes one graph, would not make the file that its search made.
    """
    if not groups or (rewritten := _rewritten(bench, groups, factors)) is None:
        return bench
    model, anchors = rewritten
    changed = {t for g in groups for t in g.tensors}
    old = bench.calibration.tensors
    with opened(model.path) as graph:
        watch = [t for t in watch_list(graph, anchors) if t in changed or t not in old]
    key = bench.key(evened=model.sha256, samples=samples.digest, tensors=watch, states=states)
    new = remember_calibration(
        bench.journal,
        {**key, "threads": bench.threads},
        lambda: calibrate(
            model, watch, samples, threads=bench.threads, scratch=bench.scratch, states=states
        ),
    ).tensors
    muls = sum(a.data != b.data for a, b in zip(anchors, bench.anchors, strict=True))
    calibration = replace(bench.calibration, tensors=old | new, model_sha256=model.sha256)
    start = Start({g.name: strengths[g.name] for g in groups}, muls, model, anchors, calibration)
    return replace(bench, starts=(*bench.starts, start))


def _rewritten(
    bench: Workbench, groups: Sequence[Group], factors: Mapping[str, Factors]
) -> tuple[Model, tuple[Anchor, ...]] | None:
    """The FP32 graph with groups evened out and its anchors; None where it computes otherwise."""
    out = bench.scratch / f"even-{len(groups)}.onnx"
    # Weights go from file to file: inside one they would be in memory three times.
    with opened(light(bench.fp32, bench.scratch)) as model:
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
