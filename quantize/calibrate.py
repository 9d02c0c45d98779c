"""Statistics of activations: one streaming pass over the samples.

samples ─▶ FP32 graph with the wanted tensors as outputs ─▶ TensorStatistics of each
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.models import Array, Model
from quantize.data import Samples
from quantize.histograms import TensorStatistics
from quantize.rows import RowStore
from quantize.sources.seam import ModelSpec
from quantize.watching import Watch, passes


@dataclass(frozen=True, slots=True)
class Calibration:
    """What one pass over the calibration samples learned.

    Attributes:
        tensors: Statistics by tensor name.
        model_sha256: Of the FP32 model that ran.
        samples_sha256: Of the samples that ran through it.
        samples: How many.
        source: The samples themselves, for what takes more of them than statistics.
        states: Output to input names that carry state from one to the next.
        rows: Of what FP32 feeds its layers; taken when the first candidate asks for them.
        origin: The trained model as the user named it, for what quantizes that and not its graph.
    """

    tensors: dict[str, TensorStatistics]
    model_sha256: str
    samples_sha256: str
    samples: int
    source: Samples | None = None
    states: Mapping[str, str] = field(default_factory=dict)
    rows: RowStore | None = None
    origin: ModelSpec | None = None

    def magnitudes(self) -> dict[str, float]:
        """Largest absolute value of every tensor that can be quantized."""
        return {
            name: max(-t.low, t.high)
            for name, t in self.tensors.items()
            if t.count and not t.nonfinite
        }

    def sizes(self) -> dict[str, float]:
        """Values of every tensor in one sample, the mean where samples differ."""
        return {n: t.count / t.samples for n, t in self.tensors.items() if t.count}


def calibrate(
    model: Model,
    tensors: Sequence[str],
    samples: Samples,
    *,
    threads: int,
    scratch: Path,
    states: Mapping[str, str],
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Stream samples through the FP32 model and collect statistics of its tensors.

    Args:
        model: The prepared FP32 model.
        tensors: Names to watch.
        samples: Fed one by one; once, or once per group of tensors that fits in memory.
        threads: In all; samples without state run side by side.
        scratch: Where the instrumented copy goes.
        states: Output to input names; an output is fed back as the next sample's input.
        progress: Called with samples done and in all.

    Raises:
        InputError: The model cannot run on a sample.
    """
    stats = {name: TensorStatistics() for name in tensors}
    for watched in passes(model, sorted(tensors), samples, threads, scratch, states):
        before, total = watched.number * len(samples), watched.passes * len(samples)
        for done, _ in enumerate(_taken(watched, samples, stats), start=1):
            if progress is not None:
                progress(before + done, total)
    rows = RowStore(model, samples, states, threads, scratch)
    return Calibration(stats, model.sha256, samples.digest, len(samples), samples, states, rows)


def _taken(
    watched: Watch, samples: Samples, stats: Mapping[str, TensorStatistics]
) -> Iterator[None]:
    """Add every sample to `stats`, and yield after each."""
    # Of each thread; merged, they are the same however samples fell to threads.
    own: dict[int, dict[str, TensorStatistics]] = defaultdict(
        lambda: {n: TensorStatistics() for n in watched.wanted}
    )

    def take(_: int, values: Iterator[tuple[str, Array]]) -> None:
        seen = own[threading.get_ident()]
        for name, array in values:
            if array.dtype == np.float32:
                seen[name].add(array)

    yield from watched.over(samples, take)
    for seen in own.values():
        for name, found in seen.items():
            stats[name].merge(found)
