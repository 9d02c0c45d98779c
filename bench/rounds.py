"""One round of a benchmark, and what its times tell.

Inputs are given in rotation, and a model takes twice as long for a text twice as long. The times of
unlike inputs together never settle, and their median jumps from one input's time to the next. So
every time is held against those of inputs of its own shape.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.gpu import Gpu
from bench.models import Feeds

Shapes = tuple[int, ...]
"""Number of the shape of every input in the rotation; `ONE_SHAPE` where all are alike."""

ONE_SHAPE: Shapes = (0,)
_WINDOW = 10
# Of a window, times of each input where their shapes differ.
_OF_EACH = 3
_STABLE = 1.02


@dataclass(frozen=True, slots=True)
class Round:
    """One process: it loads the model, warms up, and is timed.

    Attributes:
        load_ns: To open and compile the model; importing the runtime not counted. None where
            processes opened models side by side.
        first_ns: The first inference, of the first input.
        warmup_ns: Inferences after it that are not counted, in order.
        samples_ns: Inferences that are, in order; nothing is dropped.
        peak_rss_bytes: The most memory that the process held.
        steal_share: Share of the machine's CPU time, while sampling, that the hypervisor gave away.
        others_share: Share of it that other processes of this machine took.
        throttled_periods: How often the CPU quota stopped the process while sampling.
        held_up_share: Of the time in which its threads were ready to run, the share in which others
            had their CPU: other processes, or other guests of the hypervisor.
        compile_ns: Of `load_ns`, what compiling took; None where the runtime cannot tell.
        cold_ns: From asking for the process to its first answer: starting Python, importing
            vnnify and the runtime, opening, compiling, one inference. Files are in the page cache.
            None where processes started side by side.
        placement: Nodes by execution provider, where the runtime tells it.
        gpu: On a GPU, its clock, power and temperature right after the samples.
        shapes: Of the inputs, which were given in rotation from `first_ns` on.
    """

    load_ns: int | None
    first_ns: int
    warmup_ns: tuple[int, ...]
    samples_ns: tuple[int, ...]
    peak_rss_bytes: int
    steal_share: float
    others_share: float
    throttled_periods: int
    held_up_share: float = 0.0
    compile_ns: int | None = None
    cold_ns: int | None = None
    placement: dict[str, int] = field(default_factory=dict)
    gpu: Gpu | None = None
    shapes: Shapes = ONE_SHAPE

    @property
    def settled(self) -> bool:
        """Whether times were steady when the warm-up ended; also if it was too short to tell."""
        fewest = fewest_to_tell(self.shapes)
        return len(self.warmup_ns) < fewest or is_stable(self.warmup_ns, self.shapes)

    @property
    def median_ns(self) -> float:
        """Median of the samples; see `typical_ns` for inputs of unlike shapes."""
        return typical_ns(self.samples_ns, self.shapes, self._start)

    @property
    def spread(self) -> float:
        """Interquartile range of the samples, each over the median of its own shape."""
        alike = relative(self.samples_ns, self.shapes, self._start)
        low, high = np.percentile(alike, (25, 75))
        return float(high - low)

    @property
    def _start(self) -> int:
        """Place in the rotation of the first sample."""
        return 1 + len(self.warmup_ns)


def shapes_of(feeds: Sequence[Feeds]) -> Shapes:
    """Which inputs have the same shapes."""
    known: dict[object, int] = {}
    kinds = (tuple(sorted((n, a.shape) for n, a in feed.items())) for feed in feeds)
    found = tuple(known.setdefault(kind, len(known)) for kind in kinds)
    return found if len(known) > 1 else ONE_SHAPE


def shapes_note(rounds: Iterable[Round]) -> str:
    """What a median is, as a sentence behind others; empty where all inputs have one shape."""
    if all(r.shapes == ONE_SHAPE for r in rounds):
        return ""
    return " Inputs differ in shape: a median is the mean of what each of them takes."


def typical_ns(times_ns: Sequence[int], shapes: Shapes, start: int) -> float:
    """What an input takes: the mean over all inputs of the median of their shape.

    Args:
        times_ns: At least one, in order.
        shapes: Of the inputs.
        start: Place in the rotation of the first of them.
    """
    medians = _medians(times_ns, shapes, start)
    return statistics.fmean(medians[kind] for kind in shapes if kind in medians)


def relative(times_ns: Sequence[int], shapes: Shapes, start: int) -> list[float]:
    """Every time over the median of its own shape; arguments as of `typical_ns`."""
    medians = _medians(times_ns, shapes, start)
    return [t / medians[shapes[(start + i) % len(shapes)]] for i, t in enumerate(times_ns)]


def _medians(times_ns: Sequence[int], shapes: Shapes, start: int) -> dict[int, float]:
    """Of each shape that was timed."""
    if shapes == ONE_SHAPE:
        return {0: statistics.median(times_ns)}
    alike: dict[int, list[int]] = {}
    for i, time_ns in enumerate(times_ns, start):
        alike.setdefault(shapes[i % len(shapes)], []).append(time_ns)
    return {kind: statistics.median(times) for kind, times in alike.items()}


def is_stable(warmup_ns: Sequence[int], shapes: Shapes = ONE_SHAPE, start: int = 1) -> bool:
    """Whether the last medians of a sliding window over the warm-up agree.

    Args:
        warmup_ns: In order.
        shapes: Of the inputs.
        start: Place in the rotation of the first of them; one inference comes before a warm-up.
    """
    fewest = fewest_to_tell(shapes)
    if len(warmup_ns) < fewest:
        return False
    tail = relative(warmup_ns[-fewest:], shapes, start + len(warmup_ns) - fewest)
    window = (fewest + 1) // 2
    medians = [statistics.median(tail[i : i + window]) for i in range(window)]
    return max(medians) <= min(medians) * _STABLE


def fewest_to_tell(shapes: Shapes = ONE_SHAPE) -> int:
    """Times that a warm-up needs before it may be called stable: two windows, one in the other."""
    window = _WINDOW if shapes == ONE_SHAPE else max(_WINDOW, _OF_EACH * len(shapes))
    return 2 * window - 1
