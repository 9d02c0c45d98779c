"""Which layers cost accuracy, and which gain nothing: looks at one candidate, layer by layer.

candidate ─┬─▶ each fusion group alone ─▶ noise at the outputs ─▶ what to keep in float first
└─▶ kernels of FP32 and INT8, timed ─▶ what gains nothing here
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from bench.errors import InputError, UnsupportedError
from bench.kernels import find_kernels
from bench.profile import node_times
from quantize.anchors import Anchor, Mode
from quantize.graphs import load
from quantize.outputs import noise_shares
from quantize.placement import place
from quantize.quantizers import quantize
from quantize.recipe import Recipe
from quantize.trials import Trial, Workbench, run_probes

logger = logging.getLogger(__name__)

_PROFILED = 5
# An INT8 kernel has to be this much faster to pay for the pairs around it.
_GAIN = 0.9


Group: TypeAlias = tuple[str, ...]
"""Names of anchors that go to float together."""


@dataclass(frozen=True, slots=True)
class Alone:
    """Noise of each group by itself, by its first anchor, as the journal keeps it."""

    by_anchor: dict[str, float]


@dataclass(frozen=True, slots=True)
class Modes:
    """Modes by anchor name, as the journal keeps them."""

    by_anchor: dict[str, Mode]


def fusion_groups(bench: Workbench, recipe: Recipe) -> tuple[Group, ...]:
    """The anchors in INT8, together where one Add, Mul or Concat takes their outputs in integers.

    With one of them in float the other's output is no integer either, and the scale that they
    share, which may be what costs accuracy, is gone for all of them.
    """
    model = load(bench.fp32.path)
    magnitudes = bench.calibration.magnitudes()
    placement = place(model, bench.anchors, recipe.modes, magnitudes, recipe.fused_for)
    ends = {a.end: a.name for a in bench.anchors if placement.modes[a.name] == "static"}
    group = {n: {n} for n, m in placement.modes.items() if m != "float"}
    for node in model.graph:
        if node.name not in placement.glue or node.op_type not in ("Add", "Mul", "Concat"):
            continue
        sources = {_source(v, placement.glue) for v in node.inputs if v is not None}
        joined = [ends[s] for s in sources if s in ends]
        together = set().union(*(group[n] for n in joined)) if joined else set()
        group |= dict.fromkeys(together, together)
    order = {a.name: i for i, a in enumerate(bench.anchors)}
    groups = {tuple(sorted(g, key=order.__getitem__)) for g in group.values()}
    return tuple(sorted(groups, key=lambda g: order[g[0]]))


def _source(value: ir.Value, glue: frozenset[str]) -> str:
    """The tensor that a value is, seen through what only moves bytes."""
    maker = value.producer()
    while maker is not None and maker.name in glue and len(maker.inputs) == 1:
        value = maker.inputs[0] or value
        maker = value.producer()
    return str(value.name)


def single_noise(
    bench: Workbench, trial: Trial, groups: Sequence[Group], enough: Callable[[], bool]
) -> dict[Group, float]:
    """Noise at the outputs that each group of INT8 anchors causes alone, all others in float.

    Noise of independent sources adds up, so the sum over a set of groups predicts the noise of the
    set; that is what `quantize.search` ranks by. Which layers are delicate is up to the model, so
    the native engine, which needs no new statistics, tells it for every other too.

    Args:
        bench: What all candidates share.
        trial: Whose anchors are looked at.
        groups: Of them.
        enough: Asked before each group; those not reached are missing.

    Returns:
        Noise over signal, mean over outputs.
    """
    recipe = replace(trial.quantized.recipe, engine="native")
    key = bench.key(recipe=asdict(recipe))
    if (known := bench.journal.recall(Alone, "alone", key)) is not None:
        return {g: known.by_anchor[g[0]] for g in groups if g[0] in known.by_anchor}
    start = bench.start(recipe)
    few = bench.probes[:3]
    alone: dict[Group, float] = {}
    out = bench.scratch / "single.onnx"
    for group in groups:
        if enough():
            return alone
        modes: dict[str, Mode] = {name: recipe.modes[name] for name in group}
        try:
            made = quantize(
                start.model, start.anchors, start.calibration, replace(recipe, modes=modes), out
            )
            found = run_probes(made.model, few, bench.threads)
        except (UnsupportedError, InputError) as e:
            logger.info("%s alone: %s", ", ".join(group), e)
            continue
        shares = noise_shares(bench.probe_outputs[: len(few)], found)
        alone[group] = float(np.mean(list(shares.values()))) if shares else 0.0
    bench.journal.keep(Alone({g[0]: share for g, share in alone.items()}), "alone", key)
    return alone


def paying(bench: Workbench, trial: Trial, runtime: str) -> dict[str, Mode]:
    """The trial's modes, with anchors back in float whose INT8 kernel gains nothing here.

    Read from one profile of each model; an anchor that cannot be found in both keeps its mode, and
    anchors of one fusion group stay together.

    Args:
        bench: What all candidates share.
        trial: Whose anchors are looked at.
        runtime: Whose kernels are looked at.
    """
    model = trial.quantized.model
    key = bench.key(int8=model.sha256, threads=bench.threads, runtime=runtime)
    found = bench.journal.remember(Modes, "paying", key, lambda: _paying(bench, trial, runtime))
    return dict(found.by_anchor)


def _paying(bench: Workbench, trial: Trial, runtime: str) -> Modes:
    recipe = trial.quantized.recipe
    try:
        fp32 = kernel_times(bench, bench.fp32.path, runtime)
        int8 = kernel_times(bench, trial.quantized.model.path, runtime)
    except InputError as e:
        logger.info("%s", e)
        return Modes(recipe.modes)
    modes = dict(recipe.modes)
    anchors = {a.name: a for a in bench.anchors}
    for group in fusion_groups(bench, recipe):
        times = [(_time_of(anchors[n], fp32), _time_of(anchors[n], int8)) for n in group]
        seen = all(before and after for before, after in times)
        before, after = (sum(t[i] for t in times) for i in (0, 1))
        if seen and after > _GAIN * before:
            modes |= {n: "float" for n in group if modes[n] == "static"}
    return Modes(modes)


def _time_of(anchor: Anchor, times: dict[str, float]) -> float:
    prefixes = (f"{anchor.name}_token_", f"{anchor.output}_nchwc", f"{anchor.end}_nchwc")
    own = {anchor.name, anchor.output}
    return sum(
        ms for name, ms in times.items() if own & set(name.split(",")) or name.startswith(prefixes)
    )


def kernel_times(bench: Workbench, path: Path, runtime: str) -> dict[str, float]:
    """Mean ms of the kernels of one inference, by the names in the file that they compute.

    Raises:
        InputError: The runtime refuses the file.
    """
    feeds, threads = bench.probes[0], bench.threads
    if runtime == "onnxruntime":
        return node_times(path, feeds, threads=threads, runs=_PROFILED, scratch=bench.scratch)
    found = find_kernels(path, runtime, threads=threads, scratch=bench.scratch, feeds=feeds)
    # OpenVINO names a convolution apart from its bias before it fuses the two.
    return {
        ",".join(n.partition("/WithoutBiases")[0] for n in k.origins or (k.name,)): k.ms
        for k in found.kernels
        if k.ms is not None and k.kind == "product"
    }


def steps(noise: Sequence[float]) -> list[int]:
    """How many of the noisiest to keep in float so that half, 80 %, 95 %, 99 % of the noise goes.

    Args:
        noise: Per anchor, falling.
    """
    total = sum(noise)
    found: list[int] = []
    for share in (0.5, 0.8, 0.95, 0.99):
        gone, count = 0.0, 0
        while count < len(noise) and gone < share * total:
            gone += noise[count]
            count += 1
        if count and count not in found and count < len(noise):
            found.append(count)
    return found
