"""Where the time of one inference goes: the operators of each variant, timed in its own process."""

import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import VnnifyError
from bench.feeds import load_feeds, save_feeds
from bench.islands import Kernel
from bench.isolate import run_isolated
from bench.kernels import TELLING, Kernels, find_kernels
from bench.latency import Progress, Variant
from bench.models import Feeds
from bench.store import dump, load

CONVERSIONS = "conversions"
_TIMEOUT_S = 600.0
# What runtimes put around the name of an operator when they fuse it or run it in integers.
_AROUND = re.compile(r"^(QLinear|Fused|DynamicQuantize|Nhwc|Q(?=Gemm|Attention))|(Integer.*)$")
_ALIKE = {"Convolution": "Conv", "FullyConnected": "MatMul and Gemm"}
_ALIKE |= {"MatMul": "MatMul and Gemm", "Gemm": "MatMul and Gemm", "Pooling": "AveragePool"}
_ALIKE |= {"GlobalAveragePool": "AveragePool"}


@dataclass(frozen=True, slots=True)
class Operators:
    """The kernels of one variant, with their times.

    Attributes:
        variant: What ran.
        kernels: What its runtime made of the model.
    """

    variant: Variant
    kernels: Kernels


def measure_operators(
    variants: Sequence[Variant],
    feeds: Sequence[Feeds],
    *,
    seconds: float,
    failed: Callable[[Variant, VnnifyError], None],
    progress: Progress,
) -> tuple[Operators, ...]:
    """Ask every runtime that tells it how long each of its kernels takes.

    Args:
        variants: Those on GPUs, and in runtimes that do not tell, are left out.
        feeds: The first one is run.
        seconds: How long to time each variant, about.
        failed: Told of each variant that could not be timed like this, and why.
        progress: Told before each variant.
    """
    found = []
    telling = [v for v in variants if v.device == "cpu" and v.runtime in TELLING]
    for number, variant in enumerate(telling):
        progress(number, len(telling), f"{variant.name} (operators)")
        with tempfile.TemporaryDirectory(prefix="vnnify-operators-") as folder:
            try:
                found.append(_measure(variant, feeds[0], seconds, Path(folder)))
            except VnnifyError as e:
                failed(variant, e)
    return tuple(found)


def run_kernels(job: dict[str, Any]) -> str:
    """Time the kernels, in the process that calls; returns a `Kernels` as JSON."""
    scratch = Path(job["scratch"])
    found = find_kernels(
        Path(job["model"]),
        job["runtime"],
        threads=job["threads"],
        scratch=scratch,
        feeds=load_feeds(scratch / "feeds.npz")[0],
        seconds=job["seconds"],
    )
    return dump(found).decode()


def family(kernel: Kernel) -> str:
    """What a kernel computes, by one name for float, integer and fused forms in every runtime."""
    if kernel.kind == "conversion" or kernel.op.startswith("Reorder"):
        return CONVERSIONS
    name = _AROUND.sub("", kernel.op) or kernel.op
    return _ALIKE.get(name, name)


def by_family(kernels: Iterable[Kernel]) -> dict[str, float]:
    """Milliseconds by family, the largest first."""
    spent: dict[str, float] = {}
    for kernel in kernels:
        if kernel.ms is not None:
            spent[family(kernel)] = spent.get(family(kernel), 0.0) + kernel.ms
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


def matched_layers(before: Kernels, after: Kernels) -> list[tuple[str, float, float | None]]:
    """Products of `before` with their ms and those of the same layer in `after`, slowest first.

    Layers are the same if a name of the file, which the runtime says a kernel computes, is in both.

    Returns:
        Nothing where less than half of the layers have a counterpart: then the runtime renamed
        them, and the others would look as if they were gone.
    """
    ours = [k for k in before.products if k.ms is not None]
    theirs = {o: k.ms for k in after.products for o in _names(k)}
    found = []
    for kernel in sorted(ours, key=lambda k: -(k.ms or 0.0)):
        names = _names(kernel)
        twin = next((theirs[n] for n in names if n in theirs), None)
        found.append((names[0], kernel.ms or 0.0, twin))
    known = sum(twin is not None for _, _, twin in found)
    return found if 2 * known >= max(len(found), 1) else []


def _names(kernel: Kernel) -> tuple[str, ...]:
    """Its names in the file; OpenVINO's own additions come after a slash that no node has there."""
    plain = (o.removesuffix("/WithoutBiases") for o in (*kernel.origins, kernel.name))
    return tuple(dict.fromkeys(plain))


def _measure(variant: Variant, feeds: Feeds, seconds: float, scratch: Path) -> Operators:
    save_feeds([feeds], scratch / "feeds.npz")
    answer = run_isolated(
        "bench.operators:run_kernels",
        {
            "model": str(variant.model.path.absolute()),
            "runtime": variant.runtime,
            "threads": variant.threads,
            "scratch": str(scratch),
            "seconds": seconds,
        },
        scratch=scratch,
        name=f"timing the operators of {variant.name!r}",
        timeout_s=_TIMEOUT_S + 10 * seconds,
    )
    return Operators(variant, load(Kernels, answer.encode(), variant.name))
