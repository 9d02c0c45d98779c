"""Samples that INT8 scores otherwise than FP32: found, and written as CSV."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.errors import ResourceError, full_disk
from quantize.columns import labels_of, scores_per_run
from quantize.data import Samples
from quantize.evaluate import Evaluation


@dataclass(frozen=True, slots=True)
class Flip:
    """A sample that INT8 scores otherwise than FP32.

    Attributes:
        sample: Its number in the data, from 0.
        place: Where it came from: a file, or a number in one.
        sha256: Of its content.
        label: As text; empty without labels.
        before: What FP32 answers, or its score.
        after: The same of INT8.
        drop: What the sample lost; negative where INT8 is better.
    """

    sample: int
    place: str
    sha256: str
    label: str
    before: str
    after: str
    drop: float


def find_flips(baseline: Evaluation, candidate: Evaluation, samples: Samples) -> Iterator[Flip]:
    """Samples whose score differs, those that lost most first.

    A metric of the whole data set has no scores, and so no flips.
    """
    sign = 1.0 if baseline.higher_is_better else -1.0
    drops = sign * (np.asarray(baseline.scores) - np.asarray(candidate.scores)) + 0.0
    changed = np.flatnonzero(drops)
    changed = changed[np.argsort(-drops[changed], kind="stable")]
    if not changed.size:
        return
    batch = scores_per_run(samples, baseline.count)
    labels = labels_of(samples, baseline.count)
    before, after = (
        e.answers or tuple(f"{s:.6g}" for s in e.scores) for e in (baseline, candidate)
    )
    for i in map(int, changed):
        yield Flip(
            sample=samples.number(i // batch) * batch + i % batch,
            place=samples.place(i // batch),
            sha256=samples.digests[i // batch],
            label="" if labels[i] is None else f"{labels[i]!s:.80}",
            before=before[i],
            after=after[i],
            drop=float(drops[i]),
        )


def write_flips(path: Path, flips: Iterable[Flip]) -> None:
    """Write flips as a CSV file with a header, one after the other.

    Raises:
        ResourceError: It cannot be written.
    """
    try:
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["sample", "place", "sha256", "label", "before", "after", "drop"])
            for f in flips:
                row = [f.sample, f.place, f.sha256, f.label, f.before, f.after, f"{f.drop:.6g}"]
                writer.writerow(row)
    except OSError as e:
        raise full_disk(e, path) or ResourceError(
            f"{path}: the flips cannot be written: {e.strerror}."
        ) from e
