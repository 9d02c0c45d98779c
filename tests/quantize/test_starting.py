from pathlib import Path

import numpy as np
import pytest

from bench.errors import InputError
from bench.models import TensorSpec
from quantize.data import Samples, read_samples
from quantize.job import Limits
from quantize.starting import chosen_metric


def _samples(folder: Path, labels: object) -> Samples:
    x = np.arange(8, dtype=np.float32)[:, None]
    np.savez(folder / "val.npz", x=x, labels=np.asarray(labels))
    inputs = (TensorSpec("x", "float32", ("N", 1)),)
    return read_samples(str(folder / "val.npz"), inputs, scratch=folder)


@pytest.mark.parametrize("metric", [None, "mse", "top1"])
def test_missing_labels_are_called_so(tmp_path: Path, metric: str | None) -> None:
    samples = _samples(tmp_path, [0, 1, 2, 1, 0, np.nan, 2, np.nan])
    with pytest.raises(InputError, match=r"2 of 8 labels are NaN, first that of .*5.*integers"):
        chosen_metric(Limits(metric=metric), samples)


def test_a_metric_of_ones_own_may_know_what_a_missing_label_means(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("def m(outputs, labels):\n    return [1.0]\n")
    samples = _samples(tmp_path, [np.nan, *range(7)])
    text = f"{tmp_path}/m.py:m"
    assert chosen_metric(Limits(metric=text), samples).name == text


def test_whole_labels_are_classes_and_others_numbers(tmp_path: Path) -> None:
    assert chosen_metric(Limits(), _samples(tmp_path, [0, 1] * 4)).name == "top1"
    assert chosen_metric(Limits(), _samples(tmp_path, np.arange(8) / 2)).name == "mse"
