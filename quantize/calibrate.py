"""Statistics of activations: one streaming pass over the samples.

samples ─▶ FP32 graph with the wanted tensors as outputs ─▶ TensorStatistics of each, and rows
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.models import Array, Model
from quantize.data import Samples
from quantize.histograms import TensorStatistics
from quantize.kept import Keeping, Seen, ValueStore
from quantize.rows import Found, RowStore, Taking, Window
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
        rows: Of what FP32 feeds its layers; those that were not taken meanwhile are taken when the
            first candidate asks for them.
        values: Of tensors that a graph with evened-out channels may divide.
        origin: The trained model as the user named it, for what quantizes that and not its graph.
    """

    tensors: dict[str, TensorStatistics]
    model_sha256: str
    samples_sha256: str
    samples: int
    source: Samples | None = None
    states: Mapping[str, str] = field(default_factory=dict)
    rows: RowStore | None = None
    values: ValueStore | None = None
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
) -> Calibration:
    """Stream samples through the FP32 model and collect statistics of its tensors.

    Args:
        model: The prepared FP32 model.
        tensors: Names to watch.
        samples: Fed one by one; once, or once per group of tensors that fits in memory.
        threads: In all; samples without state run side by side.
        scratch: Where the instrumented copy goes.
        states: Output to input names; an output is fed back as the next sample's input.

    Raises:
        InputError: The model cannot run on a sample.
    """
    return calibrate_for(RowStore(model, samples, states, threads, scratch, tuple(tensors)))


def calibrate_for(
    rows: RowStore,
    windows: Iterable[Window] = (),
    progress: Callable[[int, int], None] | None = None,
    keeping: Keeping | None = None,
) -> Calibration:
    """The same for the model, samples and tensors of a store, which may get rows on the way.

    Args:
        rows: What to run and to watch.
        windows: Layers whose rows are kept; each reads a tensor that is watched.
        progress: Called with samples done and in all.
        keeping: What is to be kept of some tensors, where one pass shows all.

    Raises:
        InputError: The model cannot run on a sample.
    """
    model, samples, states = rows.model, rows.samples, rows.states
    stats = {name: TensorStatistics() for name in rows.tensors}
    every = (model, sorted(rows.tensors), samples, rows.threads, rows.scratch, states)
    with rows.taking(windows) as taking:
        for watched in passes(*every):
            kept = keeping if keeping is not None and watched.passes == 1 else Keeping.nothing()
            before, total = watched.number * len(samples), watched.passes * len(samples)
            for done, _ in enumerate(_taken(watched, samples, stats, taking, kept), start=1):
                if progress is not None:
                    progress(before + done, total)
    return Calibration(stats, model.sha256, samples.digest, len(samples), samples, states, rows)


def keep_values(values: ValueStore, wanted: Iterable[str], rows: RowStore) -> None:
    """Run the samples once more for those of the wanted tensors that were not seen yet.

    The same graph runs as when samples calibrate, so that what is kept is the same to the last bit.
    Where samples have to pass several times, nothing is kept, neither here nor then.

    Args:
        values: Where they go.
        wanted: Names of tensors.
        rows: Model and samples.

    Raises:
        InputError: The model cannot run on a sample.
    """
    model, samples, states = rows.model, rows.samples, rows.states
    every = (model, sorted(rows.tensors), samples, rows.threads, rows.scratch, states)
    with values.keeping(wanted, len(samples)) as keeping:
        if not keeping.axes:
            return

        def take(_: int, found: Iterator[tuple[str, Array]]) -> Seen:
            return [seen for name, array in found for seen in keeping.of(name, array)]

        for watched in passes(*every):
            if watched.passes > 1:
                return
            for seen in watched.over(samples, take):
                keeping.write(seen)
                if not keeping.axes:
                    return


def _taken(
    watched: Watch,
    samples: Samples,
    stats: Mapping[str, TensorStatistics],
    taking: Taking,
    keeping: Keeping,
) -> Iterator[None]:
    """Add every sample to `stats`, write its rows and what is kept of it, and yield after each."""
    # Of each thread; merged, they are the same however samples fell to threads.
    own: dict[int, dict[str, TensorStatistics]] = defaultdict(
        lambda: {n: TensorStatistics() for n in watched.wanted}
    )

    def take(index: int, values: Iterator[tuple[str, Array]]) -> tuple[Found, Seen]:
        rows: Found = []
        kept: Seen = []
        for name, array in values:
            if array.dtype == np.float32:
                own[threading.get_ident()][name].add(array)
            rows += taking.rows(index, name, array)
            kept += keeping.of(name, array)
        return rows, kept

    for rows, kept in watched.over(samples, take):
        taking.write(rows)
        keeping.write(kept)
        yield
    for seen in own.values():
        for name, found in seen.items():
            stats[name].merge(found)
