"""What calibrates and what judges: apart, of every class, and the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import InputError, UsageError
from quantize.data import Samples
from quantize.splitting import refuse_overlap, split


def samples_of(contents: list[int], labels: list[object] | None = None) -> Samples:
    return Samples(
        source="fake",
        inputs=(),
        labelled=labels is not None,
        digests=tuple(f"d{c}" for c in contents),
        _load=lambda i: {"x": np.array([contents[i]], np.float32)},
        _where=str,
        _label=labels.__getitem__ if labels is not None else None,
        _indices=tuple(range(len(contents))),
    )


@given(
    contents=st.lists(st.integers(0, 30), min_size=2, max_size=60),
    classes=st.none() | st.integers(1, 5),
    count=st.integers(1, 80),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_content_is_in_both_parts_and_nothing_else_is_lost(
    contents: list[int], classes: int | None, count: int, seed: int
) -> None:
    if len(set(contents)) < 2:
        return
    labels: list[object] | None = [c % classes for c in contents] if classes else None
    samples = samples_of(contents, labels)
    calibration, evaluation = split(samples, calibration_count=count, seed=seed, ordered=False)

    refuse_overlap(calibration, evaluation)
    assert len(calibration) == min(count, len(set(contents)) // 2)
    assert len(set(calibration.digests)) == len(calibration)
    assert set(calibration.digests) | set(evaluation.digests) == set(samples.digests)
    spent = set(calibration.digests)
    assert list(evaluation.digests) == [d for d in samples.digests if d not in spent]
    again = split(samples, calibration_count=count, seed=seed, ordered=False)
    assert (again[0].digests, again[1].digests) == (calibration.digests, evaluation.digests)


@given(seed=st.integers(0, 1000), count=st.integers(4, 40))
def test_every_class_has_its_share_of_calibration(seed: int, count: int) -> None:
    labels: list[object] = [0] * 60 + [1] * 30 + [2] * 10
    calibration, _ = split(
        samples_of(list(range(100)), labels), calibration_count=count, seed=seed, ordered=False
    )
    chosen = [calibration.label(i) for i in range(len(calibration))]
    for label, share in ((0, 0.6), (1, 0.3), (2, 0.1)):
        assert abs(chosen.count(label) - share * count) < 2


def test_another_seed_chooses_other_samples() -> None:
    chosen = {
        split(samples_of(list(range(50))), calibration_count=10, seed=s, ordered=False)[0].digests
        for s in range(5)
    }
    assert len(chosen) == 5


def test_ordered_samples_stay_in_time_even_where_they_repeat() -> None:
    calibration, evaluation = split(
        samples_of([1, 1, 2, 3, 1]), calibration_count=2, seed=0, ordered=True
    )
    assert calibration.digests == ("d1", "d1")
    assert evaluation.digests == ("d2", "d3", "d1")


def test_fewer_samples_than_asked_for_calibrate_and_it_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calibration, evaluation = split(
        samples_of([1, 2, 3, 4]), calibration_count=300, seed=0, ordered=False
    )
    assert (len(calibration), len(evaluation)) == (2, 2)
    assert "2 samples calibrate instead of 300" in caplog.text


def test_too_little_data_cannot_be_split() -> None:
    with pytest.raises(InputError, match=r"3 sample\(s\), of which 1 distinct"):
        split(samples_of([1, 1, 1]), calibration_count=1, seed=0, ordered=False)
    with pytest.raises(UsageError, match="at least 1"):
        split(samples_of([1, 2]), calibration_count=0, seed=0, ordered=False)


def test_overlap_names_counts_and_the_first_pair() -> None:
    with pytest.raises(
        InputError, match=r"2 of 3 evaluation .* 4 calibration .*evaluation sample 1, calibra.* 2"
    ):
        refuse_overlap(samples_of([5, 6, 7, 7]), samples_of([1, 7, 6]))
