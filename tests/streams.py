"""Arrays of every scale, cut into batches, and the statistics of them."""

import numpy as np
from hypothesis import strategies as st

from quantize.histograms import TensorStatistics


def streamed(*batches: np.ndarray) -> TensorStatistics:
    stats = TensorStatistics()
    for batch in batches:
        stats.add(batch)
    return stats


def same(a: TensorStatistics, b: TensorStatistics) -> None:
    assert (a.low, a.high, a.count, a.exponent) == (b.low, b.high, b.count, b.exponent)
    assert (a.samples, a.nonfinite, a.zeros) == (b.samples, b.nonfinite, b.zeros)
    np.testing.assert_array_equal(a.bins, b.bins)


@st.composite
def values(draw: st.DrawFn) -> np.ndarray:
    """Float32 of one or many scales, from denormals to the largest, with zeros of both signs."""
    size = draw(st.integers(1, 60))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["one scale", "all scales", "zeros", "special", "positive"]))
    if kind == "zeros":
        return np.zeros(size, np.float32)
    if kind == "special":
        special = [0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, 3.4028235e38, -3.4028235e38, 1.0, -1.0]
        special += [0.5, 2.0, -2.0, 2.0**-100, -(2.0**-100)]
        return random.choice(np.array(special, np.float32), size)
    exponents = (
        draw(st.integers(-40, 37)) if kind != "all scales" else random.integers(-44, 38, size)
    )
    found = (random.standard_normal(size) * 10.0**exponents).astype(np.float32)
    found = np.clip(found, -3.4e38, 3.4e38)
    return np.abs(found) if kind == "positive" else found


def parts(array: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
    at = sorted({c % (len(array) + 1) for c in cuts})
    return [p for p in np.split(array, at) if len(p)]


CUTS = st.lists(st.integers(0, 1000), max_size=6)
