"""Which samples calibrate a model, and which judge it; no sample does both."""

import logging

import numpy as np

from bench.errors import InputError, UsageError
from quantize.data import Samples

logger = logging.getLogger(__name__)


def split(
    samples: Samples, *, calibration_count: int, seed: int, ordered: bool
) -> tuple[Samples, Samples]:
    """Divide samples into some to calibrate with and the rest to judge by.

    At most half of the distinct samples calibrate. Copies of a calibration sample are left out of
    both parts, because they would flatter the verdict.

    Args:
        samples: All samples.
        calibration_count: How many should calibrate.
        seed: Of the choice.
        ordered: The samples follow each other in time (a stateful model): the first part
            calibrates, the order stays, and equal content does not make two samples the same.

    Returns:
        Calibration and evaluation samples, both in their original order. Where all labels are whole
        numbers, classes have their share of the calibration samples.

    Raises:
        UsageError: `calibration_count` is below one.
        InputError: There are fewer than two distinct samples.
    """
    if calibration_count < 1:
        raise UsageError(f"{calibration_count} calibration samples asked for, at least 1 needed.")
    # In time, a sample is its content and all that came before it.
    keys = [str(i) for i in range(len(samples))] if ordered else list(samples.digests)
    first = {key: i for i, key in reversed(list(enumerate(keys)))}
    distinct = sorted(first.values())
    count = _calibration_count(samples, len(distinct), calibration_count)
    chosen = distinct[:count] if ordered else _choose(samples, distinct, count, seed)
    spent = {keys[i] for i in chosen}
    rest = [i for i, key in enumerate(keys) if key not in spent]
    if copies := len(samples) - len(chosen) - len(rest):
        logger.info("%s: %d copies of calibration samples are left out", samples.source, copies)
    return samples.subset(chosen), samples.subset(rest)


def refuse_overlap(calibration: Samples, evaluation: Samples) -> None:
    """Refuse to judge a model by samples that it was calibrated with.

    Raises:
        InputError: Some sample is in both.
    """
    known = {d: i for i, d in reversed(list(enumerate(calibration.digests)))}
    both = [i for i, d in enumerate(evaluation.digests) if d in known]
    if both:
        pair = known[evaluation.digests[both[0]]]
        raise InputError(
            f"{len(both)} of {len(evaluation)} evaluation samples ({evaluation.source}) are among "
            f"the {len(calibration)} calibration samples ({calibration.source}); the first is "
            f"evaluation sample {both[0]}, calibration sample {pair}. That flatters the verdict: "
            "keep them apart, or give one data set and let it be split."
        )


def _calibration_count(samples: Samples, distinct: int, asked: int) -> int:
    if distinct < 2:
        raise InputError(
            f"{samples.source}: {len(samples)} sample(s), of which {distinct} distinct; "
            "calibration and evaluation need at least one each. Give more data."
        )
    count = min(asked, distinct // 2)
    if count < asked:
        logger.warning(
            "%s: %d samples calibrate instead of %d, so that as many are left to judge by",
            samples.source,
            count,
            asked,
        )
    return count


def _choose(samples: Samples, distinct: list[int], count: int, seed: int) -> list[int]:
    """Choose at random, and where labels are classes, from each in proportion.

    The k-th of a class of n gets the key (k + u) / n with one random u per class; the smallest
    keys of all classes together are then a proportional sample of any size.
    """
    rng = np.random.default_rng(seed)
    shuffled = [distinct[i] for i in rng.permutation(len(distinct))]
    labels = [samples.label(i) for i in shuffled]
    if not samples.labelled or not all(type(v) is int for v in labels):
        return sorted(shuffled[:count])
    classes: dict[object, list[int]] = {}
    for index, label in zip(shuffled, labels, strict=True):
        classes.setdefault(label, []).append(index)
    keyed = []
    for members in classes.values():
        u = rng.random()
        keyed += [((k + u) / len(members), index) for k, index in enumerate(members)]
    return sorted(index for _, index in sorted(keyed)[:count])
