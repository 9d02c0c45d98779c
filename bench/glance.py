"""A quick look at which variant is faster, to choose what is measured."""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.feeds import save_feeds
from bench.isolate import run_isolated
from bench.latency import TIMEOUT_S, Variant, job_of
from bench.models import Feeds
from bench.turns import refuse_nonsense, turns


def glance(
    variants: Sequence[Variant], feeds: Sequence[Feeds], *, rounds: int, seconds: float
) -> dict[str, float]:
    """A quick look: medians in ms by variant, all of a runtime's rounds in one fresh process.

    It saves starting Python and importing the runtime for every round. What two processes differ by
    stays unseen, so it may choose what to measure, and is no measurement.

    Args:
        variants: What to compare; one runtime's take turns.
        feeds: Distinct inputs, given in rotation.
        rounds: Turns of each variant.
        seconds: Of one turn.

    Raises:
        VnnifyError: As `measure`.
    """
    refuse_nonsense(variants, feeds, rounds, seconds)
    found: dict[str, list[float]] = {v.name: [] for v in variants}
    with tempfile.TemporaryDirectory(prefix="vnnify-glance-") as folder:
        inputs = Path(folder) / "feeds.npz"
        save_feeds(feeds, inputs)
        for runtime in dict.fromkeys(v.runtime for v in variants):
            own = [v for v in variants if v.runtime == runtime]
            order = [own[i] for turn in turns(len(own), rounds, seed=0) for i in turn]
            medians = run_isolated(
                "bench.sampling:run_turns",
                {"turns": [job_of(v, inputs, seconds) for v in order]},
                scratch=Path(folder),
                name=f"a quick look at {len(own)} models in {runtime}",
                timeout_s=len(order) * (TIMEOUT_S + 10 * seconds),
            )
            for variant, median_ns in zip(order, medians, strict=True):
                found[variant.name].append(median_ns / 1e6)
    return {name: statistics.median(ms) for name, ms in found.items()}
