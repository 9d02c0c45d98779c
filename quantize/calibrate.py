"""Statistics of activations: one streaming pass over the samples.

samples ─▶ FP32 graph with the wanted tensors as outputs ─▶ TensorStatistics of each
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.models import Model
from quantize.data import Samples
from quantize.histograms import TensorStatistics
from quantize.rows import RowStore
from quantize.sources.seam import ModelSpec
from quantize.watching import stream, tensor_groups


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
        samples: Fed one by one, in order; once, or once per group of tensors that fits in memory.
        threads: Of one inference.
        scratch: Where the instrumented copy goes.
        states: Output to input names; an output is fed back as the next sample's input.
        progress: Called with samples done and in all.

    Raises:
        InputError: The model cannot run on a sample.
    """
    stats = {name: TensorStatistics() for name in tensors}
    inputs = {s.name for s in model.inputs}
    groups = tensor_groups(model, [n for n in sorted(tensors) if n not in inputs], samples, scratch)
    for i, group in enumerate(groups):
        # What is fed is counted once.
        wanted = [*group, *(n for n in tensors if n in inputs and i == 0)]
        for done, values in enumerate(stream(model, wanted, samples, threads, scratch, states)):
            for name, array in values:
                if array.dtype == np.float32:
                    stats[name].add(array)
            if progress is not None:
                progress(i * len(samples) + done + 1, len(groups) * len(samples))
    rows = RowStore(model, samples, states, threads, scratch)
    return Calibration(stats, model.sha256, samples.digest, len(samples), samples, states, rows)
