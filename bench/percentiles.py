"""Percentiles of latencies, only where there are enough samples to know them."""

from collections.abc import Sequence

# Fewest samples that bound a percentile with 99 % confidence and one outlier to spare: MLPerf
# Inference, loadgen/early_stopping.cc.
P90_SAMPLES = 64
P99_SAMPLES = 662
_FEWEST = {90: P90_SAMPLES, 99: P99_SAMPLES}


def percentile_ms(samples_ns: Sequence[int], percent: int, *, unanswered: int = 0) -> float | None:
    """The sample at rank ceil(percent / 100 * n): a latency that was measured.

    Args:
        samples_ns: Latencies in any order.
        percent: 90 or 99.
        unanswered: Requests that were never answered; they count as slower than all others.

    Returns:
        Milliseconds; None with too few samples, or where unanswered requests hide it.
    """
    count = len(samples_ns) + unanswered
    rank = -(-percent * count // 100)
    if count < _FEWEST[percent] or rank > len(samples_ns):
        return None
    return sorted(samples_ns)[rank - 1] / 1e6
