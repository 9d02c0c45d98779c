"""Ranges of activations: one streaming pass, bounded memory, every range method afterwards.

    samples ─▶ FP32 graph with the wanted tensors as outputs, a few at a time ─▶ TensorStatistics
    TensorStatistics ─▶ choose_range(minmax | percentile | mse | entropy) ─▶ Range

A histogram has bins whose width is a power of two and whose edges are multiples of it. When a value
does not fit, the width doubles and neighbours merge, which loses nothing: floor(x / 2w) equals
floor(floor(x / w) / 2). The result therefore depends on the data alone, never on how it was cut up.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bench.errors import InputError
from bench.models import Array, Feeds, Model
from bench.runtimes.onnxruntime import open_errors, session_options
from bench.runtimes.seam import Settings
from quantize.data import Samples
from quantize.prepare import save

# Bins on either side of zero. 2,048 in all at most when a tensor has both signs.
HALF_BINS = 1024
# Tensors fetched in one run hold at most this much together, so that memory stays near the plain
# run's.
GROUP_BYTES = 96 << 20
# 2**110 still fits a float32, so that scaling by it stays exact.
_SMALLEST_EXPONENT = -110


@dataclass(slots=True)
class TensorStatistics:
    """What one pass learns of one tensor; grows as samples stream through.

    Attributes:
        low: Smallest value seen.
        high: Largest value seen.
        count: Values seen.
        zeros: Values that were exactly zero, which 8 bits hold without error.
        exponent: Bins are 2**exponent wide; bin i covers [i, i + 1) * 2**exponent.
        bins: int64 [2 * HALF_BINS]; entry HALF_BINS + i is the count of bin i.
        channel_sum: float64 [channels], sums per channel of axis 1 (last axis for rank <= 3), or
            None where the size of that axis varies.
        channel_count: Values per channel summed.
        samples: Samples seen.
        nonfinite: Samples in which it held NaN or infinity (a mask, say); these left no other
            trace.
    """

    low: float = np.inf
    high: float = -np.inf
    count: int = 0
    zeros: int = 0
    exponent: int = _SMALLEST_EXPONENT
    bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2 * HALF_BINS, np.int64))
    channel_sum: NDArray[np.float64] | None = None
    channel_count: int = 0
    samples: int = 0
    nonfinite: int = 0

    def add(self, values: Array) -> None:
        """Take in one tensor of any shape."""
        self.samples += 1
        if values.size == 0:
            return
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        low, high = float(flat.min()), float(flat.max())
        if not np.isfinite(low) or not np.isfinite(high):
            self.nonfinite += 1
            return
        self._widen(max(-low, high))
        # Scaling by a power of two is exact, so the bin of a value never depends on rounding.
        scaled = flat * np.float32(2.0**-self.exponent)
        np.floor(scaled, out=scaled)
        # A tiny negative value scales to -0, and would move to the other side of zero.
        np.minimum(scaled, -1, out=scaled, where=flat < 0)
        scaled += HALF_BINS
        self.bins += np.bincount(scaled.astype(np.intp), minlength=2 * HALF_BINS)
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += flat.size
        self.zeros += flat.size - int(np.count_nonzero(flat))

    def add_channels(self, values: Array, axis: int) -> None:
        """Take in the per-channel sums of one tensor along every axis but `axis`."""
        others = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
        sums = values.sum(axis=others, dtype=np.float64)
        if self.channel_sum is None:
            self.channel_sum = np.zeros_like(sums)
        if self.channel_sum.shape == sums.shape:
            self.channel_sum += sums
            self.channel_count += values.size // max(sums.size, 1)

    def merge(self, other: "TensorStatistics") -> None:
        """Take in what another pass over other samples learned; order does not matter."""
        exponent = max(self.exponent, other.exponent)
        self._coarsen(exponent)
        self.bins += _coarser(other.bins, exponent - other.exponent)
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.count += other.count
        self.zeros += other.zeros
        self.samples += other.samples
        self.nonfinite += other.nonfinite
        if other.channel_sum is not None:
            # A new array either way: the other's own must not grow with this one.
            self.channel_sum = other.channel_sum + (
                0.0 if self.channel_sum is None else self.channel_sum
            )
            self.channel_count += other.channel_count

    def mean(self) -> NDArray[np.float64] | None:
        """Mean per channel, float64 [channels]; None too where a sample was not finite."""
        if self.channel_sum is None or self.channel_count == 0 or self.nonfinite:
            return None
        return self.channel_sum / self.channel_count

    def _widen(self, magnitude: float) -> None:
        """Make sure that `magnitude` falls into a bin."""
        if magnitude <= 0:
            return
        # frexp: magnitude = m * 2**e with m in [0.5, 1), so magnitude < 2**e.
        _, e = np.frexp(magnitude)
        needed = int(e) - int(np.log2(HALF_BINS))
        if needed > self.exponent:
            self._coarsen(needed)

    def _coarsen(self, exponent: int) -> None:
        self.bins = _coarser(self.bins, exponent - self.exponent)
        self.exponent = exponent


def _coarser(bins: NDArray[np.int64], steps: int) -> NDArray[np.int64]:
    """Merge 2**steps neighbours; bin i goes to floor(i / 2**steps)."""
    if steps <= 0:
        return bins.copy()
    index = (np.arange(-HALF_BINS, HALF_BINS) >> min(steps, 31)) + HALF_BINS
    out = np.zeros_like(bins)
    np.add.at(out, index, bins)
    return out


@dataclass(frozen=True, slots=True)
class Range:
    """Where a tensor's 8-bit codes begin and end; always holds zero.

    Attributes:
        low: Value of code 0, at most 0.
        high: Value of code 255, at least 0.
    """

    low: float
    high: float

    @property
    def scale(self) -> np.float32:
        """Step between two codes."""
        width = self.high - self.low
        if width <= 0:
            # Always zero so far (a dead Relu): a step of 1e-14 would clip whatever comes later.
            width = 1.0
        # Above the denormals, so that a product of two scales does not vanish.
        return np.float32(max(width / 255.0, 1e-14))

    @property
    def zero_point(self) -> int:
        """Code of the value zero, 0..255."""
        return int(np.clip(round(-self.low / float(self.scale)), 0, 255))


def minmax_range(stats: TensorStatistics) -> Range:
    """The whole range that was seen."""
    return Range(min(stats.low, 0.0), max(stats.high, 0.0))


def percentile_range(stats: TensorStatistics, percent: float = 99.99) -> Range:
    """The range that holds `percent` of the values, the rest cut off alike on both sides.

    Args:
        stats: Of the tensor.
        percent: 50 < percent <= 100.
    """
    edges = np.ldexp(np.arange(-HALF_BINS, HALF_BINS + 1, dtype=np.float64), stats.exponent)
    below = np.concatenate([[0], np.cumsum(stats.bins)]) / max(stats.count, 1)
    tail = (100.0 - percent) / 200.0
    low = edges[max(int(np.searchsorted(below, tail, side="right")) - 1, 0)]
    high = edges[min(int(np.searchsorted(below, 1.0 - tail, side="left")), len(edges) - 1)]
    whole = minmax_range(stats)
    return Range(max(min(low, 0.0), whole.low), min(max(high, 0.0), whole.high))


def mse_range(stats: TensorStatistics, *, power: float = 2.0) -> Range:
    """The range with the smallest expected |x - Q(x)|**power, from the histogram.

    Every pair of cuts on a grid is tried: 24 high ends and, where the tensor is negative too, 24
    low ends. The rounding error inside the range is step**2 / 12 (Widrow, 1961), except that exact
    zeros, most of what a Relu leaves, have none; every value outside pays its distance to the end.

    Args:
        stats: Of the tensor.
        power: 2 for the mean squared error; higher powers cut less.
    """
    whole = minmax_range(stats)
    centres, counts = _occupied(stats)
    if not counts.size or whole.high - whole.low <= 0:
        return whole
    cuts = np.geomspace(1.0, 0.1, 24)
    highs = whole.high * cuts if whole.high > 0 else np.zeros(1)
    lows = whole.low * cuts if whole.low < 0 else np.zeros(1)
    over = np.maximum(centres[None, :] - highs[:, None], 0.0)
    under = np.maximum(lows[:, None] - centres[None, :], 0.0)
    clipped = ((over**power) @ counts)[:, None] + ((under**power) @ counts)[None, :]
    step = (highs[:, None] - lows[None, :]) / 255.0
    # E|u|**p of an error uniform in ±step/2 is (step/2)**p / (p + 1).
    rounding = (step / 2.0) ** power / (power + 1.0) * (counts.sum() - stats.zeros)
    i, j = np.unravel_index(int(np.argmin(clipped + rounding)), clipped.shape)
    return Range(float(min(lows[j], 0.0)), float(max(highs[i], 0.0)))


def entropy_range(stats: TensorStatistics) -> Range:
    """The range whose 256 levels lose the least information (KL divergence), symmetric cuts.

    S. Migacz, "8-bit Inference with TensorRT", GTC 2017: the clipped distribution is compared with
    its own quantized form for every cut. A cut is one distance from zero to both sides, so that an
    outlier on one side does not cost the other its tail.
    """
    whole = minmax_range(stats)
    centres, counts = _occupied(stats)
    if not counts.size:
        return whole
    best, chosen = np.inf, whole
    farthest = max(-whole.low, whole.high)
    for cut in farthest * np.geomspace(1.0, 0.03, 60):
        low, high = max(whole.low, -cut), min(whole.high, cut)
        loss = _divergence(centres, counts, low, high)
        if loss < best:
            best, chosen = loss, Range(float(low), float(high))
    return chosen


def _divergence(
    centres: NDArray[np.float64], counts: NDArray[np.float64], low: float, high: float
) -> float:
    clipped = np.clip(centres, low, high)
    level = np.clip(
        ((clipped - low) / max(high - low, 1e-30) * 255).round().astype(np.int64), 0, 255
    )
    inside = (centres >= low) & (centres <= high)
    mass = np.bincount(level, weights=counts, minlength=256)
    kept = np.bincount(level, weights=np.where(inside, counts, 0.0), minlength=256)
    width = np.bincount(level, weights=inside.astype(np.float64), minlength=256)
    total = counts.sum()
    p = np.where(inside, counts, 0.0)
    # What lies outside is counted in the outermost bins, as the runtime's clipping does.
    p[np.argmax(inside)] += counts[centres < low].sum()
    p[len(p) - 1 - np.argmax(inside[::-1])] += counts[centres > high].sum()
    q = np.where(inside & (width[level] > 0), kept[level] / np.maximum(width[level], 1.0), 0.0)
    q_total = q.sum()
    if q_total <= 0 or mass.sum() <= 0:
        return float("inf")
    p, q = p / total, q / q_total
    used = p > 0
    return float(np.sum(p[used] * np.log(p[used] / np.maximum(q[used], 1e-12))))


def _occupied(stats: TensorStatistics) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres and counts of the bins that hold anything."""
    index = np.flatnonzero(stats.bins)
    centres = np.ldexp(index.astype(np.float64) - HALF_BINS + 0.5, stats.exponent)
    return np.clip(centres, stats.low, stats.high), stats.bins[index].astype(np.float64)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What one pass over the calibration samples learned.

    Attributes:
        tensors: Statistics by tensor name.
        model_sha256: Of the FP32 model that ran.
        samples_sha256: Of the samples that ran through it.
        samples: How many.
        source: The samples themselves, for an engine that takes statistics of its own.
        states: Output to input names that carry state from one to the next.
    """

    tensors: dict[str, TensorStatistics]
    model_sha256: str
    samples_sha256: str
    samples: int
    source: Samples | None = None
    states: Mapping[str, str] = field(default_factory=dict)

    def magnitudes(self) -> dict[str, float]:
        """Largest absolute value of every tensor that can be quantized."""
        return {
            name: max(-t.low, t.high)
            for name, t in self.tensors.items()
            if t.count and not t.nonfinite
        }


def calibrate(
    model: Model,
    tensors: Mapping[str, int | None],
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
        tensors: Names to watch, each with the axis of its channels or None.
        samples: Fed one by one, in order.
        threads: Of one inference.
        scratch: Where the instrumented copy goes.
        states: Output to input names; an output is fed back as the next sample's input.
        progress: Called with samples done and in all.

    Raises:
        InputError: The model cannot run on a sample.
    """
    session = _Watched(model, sorted(tensors), threads, scratch)
    stats = {name: TensorStatistics() for name in tensors}
    carried: Feeds = {}
    for done, sample in enumerate(samples):
        feeds = {**sample.feeds, **carried}
        for name, values in session.run(feeds):
            if name in stats and values.dtype == np.float32:
                stats[name].add(values)
                axis = tensors[name]
                if axis is not None and values.ndim > 1 and stats[name].nonfinite == 0:
                    stats[name].add_channels(values, axis)
            if name in states:
                carried[states[name]] = values
        if progress is not None:
            progress(done + 1, len(samples))
    return Calibration(stats, model.sha256, samples.digest, len(samples), samples, states)


class _Watched:
    """The FP32 model with tensors as extra outputs, fetched a few at a time.

    Fetching all at once would hold every activation in memory; a run per group costs time instead.
    Groups are packed by the sizes seen on the first sample.
    """

    def __init__(self, model: Model, names: Sequence[str], threads: int, scratch: Path) -> None:
        import onnxruntime as ort

        path = scratch / "watched.onnx"
        self.inputs = {s.name for s in model.inputs}
        self.outputs = [s.name for s in model.outputs]
        expose(model.path, [n for n in names if n not in self.inputs], path)
        self.session = ort.InferenceSession(
            str(path),
            session_options(Settings(threads=threads)),
            providers=["CPUExecutionProvider"],
        )
        hidden = [n for n in names if n not in self.inputs and n not in self.outputs]
        self.first = [hidden[i : i + 4] for i in range(0, len(hidden), 4)] or [[]]
        self.groups: list[list[str]] | None = None

    def run(self, feeds: Feeds) -> Iterator[tuple[str, Array]]:
        """Every watched tensor and output with its values, group by group."""
        yield from feeds.items()
        # An input may be an output as well, and is counted once.
        outputs = [n for n in self.outputs if n not in feeds]
        sizes: dict[str, int] = {}
        for i, group in enumerate(self.groups or self.first):
            wanted = group + (outputs if i == 0 else [])
            try:
                values = self.session.run(wanted, feeds)
            except open_errors() as e:
                text = str(e).strip().splitlines()[0]
                raise InputError(f"the model cannot run on a calibration sample: {text}") from e
            for name, value in zip(wanted, values, strict=True):
                sizes[name] = value.nbytes if isinstance(value, np.ndarray) else 0
                if isinstance(value, np.ndarray):
                    yield name, value
        if self.groups is None:
            self.groups = _pack({n: sizes[n] for g in self.first for n in g})


def _pack(sizes: Mapping[str, int]) -> list[list[str]]:
    """Groups of names of at most GROUP_BYTES together, or one name alone."""
    groups: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if groups[-1] and held + size > GROUP_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    return groups


def expose(path: Path, names: Sequence[str], out: Path) -> None:
    """Write a copy of a model in which the tensors called `names` are outputs too."""
    model = ir.load(path)
    known = {v.name: v for node in model.graph for v in node.outputs}
    there = {v.name for v in model.graph.outputs}
    for name in names:
        if name not in there:
            value = known[name]
            if value.type is None:
                value.type = ir.TensorType(ir.DataType.FLOAT)
            model.graph.outputs.append(value)
    save(model, out)


RANGE_METHODS: dict[str, Callable[[TensorStatistics], Range]] = {
    "minmax": minmax_range,
    "percentile": percentile_range,
    "mse": mse_range,
    "entropy": entropy_range,
}
