"""Who is measured when, and what cannot be measured together."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bench.errors import UsageError
from bench.models import Feeds

if TYPE_CHECKING:
    from bench.latency import Variant


# Of model files that are open at once.
OPEN_BYTES = 512 * 2**20


def turns(count: int, rounds: int, seed: int) -> list[list[int]]:
    """Who runs when: a random order for every other round, its mirror image for the next.

    A drift that is linear in time then cancels out within each pair of rounds.
    """
    rng = np.random.default_rng(seed)
    orders: list[list[int]] = []
    for i in range(rounds):
        orders.append(orders[-1][::-1] if i % 2 else rng.permutation(count).tolist())
    return orders


def batches(queue: Sequence[int], sizes_bytes: Sequence[int], most: int) -> Iterator[list[int]]:
    """Cut a queue into parts whose models may be open at once.

    Args:
        queue: Who runs when, by number.
        sizes_bytes: Of their model files.
        most: Processes at once.

    Yields:
        Parts of `most` numbers at most, in order; a single one where its model is large.
    """
    part: list[int] = []
    for which in queue:
        open_bytes = sum(sizes_bytes[w] for w in (*part, which))
        if part and (len(part) == most or open_bytes > OPEN_BYTES):
            yield part
            part = []
        part.append(which)
    yield part


def refuse_nonsense(
    variants: "Sequence[Variant]", feeds: Sequence[Feeds], rounds: int, seconds: float
) -> None:
    """Refuse what cannot be measured together.

    Raises:
        UsageError: A variant does not fit the inputs, or a number makes no sense.
    """
    names = [v.name for v in variants]
    if not variants or not feeds:
        raise UsageError("nothing to measure: give at least one model and one input.")
    if len(set(names)) < len(names):
        raise UsageError(f"variants need different names, found {names}.")
    if rounds < 1 or not 0 < seconds < math.inf:
        raise UsageError(f"rounds and seconds must be positive, found {rounds} and {seconds:g}.")
    for variant in variants:
        if variant.threads < 1:
            raise UsageError(f"{variant.name}: threads must be at least 1, not {variant.threads}.")
        takes = {s.name for s in variant.model.inputs}
        for feed in feeds:
            if feed.keys() != takes:
                raise UsageError(
                    f"{variant.name}: the model takes {sorted(takes)}, the inputs are "
                    f"{sorted(feed)}. Models measured together need the same inputs."
                )
        _refuse_batch(variant, feeds)


def _refuse_batch(variant: "Variant", feeds: Sequence[Feeds]) -> None:
    free = [s.name for s in variant.model.inputs if s.batch_is_free]
    sizes = {f[n].shape[:1] for f in feeds for n in free}
    if free and variant.batch != 1 and (variant.batch,) not in sizes:
        found = ", ".join(sorted(str(s[0]) for s in sizes if s)) or "no"
        raise UsageError(
            f"{variant.name}: batch is {variant.batch}, but the inputs hold {found} samples each."
        )
