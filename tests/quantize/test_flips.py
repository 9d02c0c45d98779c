"""Samples that INT8 scores otherwise: which, in which order, and how they are told."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.errors import ResourceError
from quantize.data import Samples
from quantize.flips import Flip, find_flips, write_flips
from tests.int8 import samples_of
from tests.scored import evaluation


def samples(*labels: object) -> Samples:
    made = samples_of([{}] * len(labels), ())
    return replace(made, labelled=True, _label=labels.__getitem__)


def test_what_lost_most_comes_first_and_what_did_not_change_is_left_out() -> None:
    before, after = evaluation([1.0, 0.5, 0.2, 1.0]), evaluation([0.9, 0.5, 0.4, 0.25])
    found = list(find_flips(before, after, samples("a", "b", "c", "d")))
    assert [(f.sample, f.label, f.before, f.after) for f in found] == [
        (3, "d", "1", "0.25"),
        (0, "a", "1", "0.9"),
        (2, "c", "0.2", "0.4"),
    ]
    assert [f.drop for f in found] == pytest.approx([0.75, 0.1, -0.2])


def test_where_lower_is_better_what_grew_is_a_loss() -> None:
    before = evaluation([1.0, 1.0], higher_is_better=False)
    after = evaluation([3.0, 0.5], higher_is_better=False)
    found = find_flips(before, after, samples("a", "b"))
    assert [(f.sample, f.drop) for f in found] == [(0, 2.0), (1, -0.5)]


def test_answers_are_told_rather_than_scores() -> None:
    before = evaluation([1.0, 1.0], answers=("cat", "dog"))
    after = evaluation([1.0, 0.0], answers=("cat", "cow"))
    (flip,) = find_flips(before, after, samples("cat", "dog"))
    assert (flip.before, flip.after) == ("dog", "cow")


def test_a_sample_of_a_batch_goes_by_its_own_number_and_the_place_of_its_batch() -> None:
    batches = samples(np.array([5, 6]), np.array([7, 8]), np.array([9, 0])).subset([2, 1])
    (flip,) = find_flips(evaluation([1, 1, 1, 1]), evaluation([1, 1, 1, 0]), batches)
    assert (flip.sample, flip.label, flip.place) == (3, "8", "1")
    assert flip.sha256 == batches.digests[1]


def test_long_labels_are_cut_and_missing_ones_empty() -> None:
    before, after = evaluation([1.0, 1.0]), evaluation([0.0, 0.0])
    labels = [f.label for f in find_flips(before, after, samples("x" * 500, None))]
    assert labels == ["x" * 80, ""]


def test_nothing_changed_is_nothing_listed() -> None:
    assert list(find_flips(evaluation([1.0]), evaluation([1.0]), samples("a"))) == []


def test_flips_are_rows_of_a_table(tmp_path: Path) -> None:
    file = tmp_path / "flips.csv"
    write_flips(file, [Flip(3, "a,b.png", "d1", "cat", "0.9", "0.1", 0.8)])
    assert file.read_text(encoding="utf-8").splitlines() == [
        "sample,place,sha256,label,before,after,drop",
        '3,"a,b.png",d1,cat,0.9,0.1,0.8',
    ]
    with pytest.raises(ResourceError, match="the flips cannot be written: Is a directory"):
        write_flips(tmp_path, [])
