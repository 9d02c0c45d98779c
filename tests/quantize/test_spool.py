"""Arrays in one file on disk; functions that yield samples are tested in test_data.py."""

import errno
import io
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bench.errors import ResourceError
from bench.models import Array
from quantize import spool
from quantize.feeds import Request

KINDS = st.sampled_from(["<f4", "<f8", "<i8", "|u1", "|b1", "<U5", "<f2"])


@given(st.lists(KINDS.flatmap(lambda k: arrays.arrays(k, arrays.array_shapes(min_dims=0)))))
def test_arrays_come_back_as_they_went(written: list[Array]) -> None:
    stream = io.BytesIO()
    places = [spool._write(stream, a) for a in written]
    data = np.frombuffer(stream.getvalue(), np.uint8)
    for before, place in zip(written, places, strict=True):
        after = spool._fetch(data, place)
        assert (after.dtype, after.shape) == (before.dtype, before.shape)
        assert after.tobytes() == before.tobytes()
        assert place[0] % 64 == 0


def test_types_that_numpy_does_not_know_keep_their_name() -> None:
    stream = io.BytesIO()
    before = np.arange(5).astype(ml_dtypes.bfloat16)
    place = spool._write(stream, before)
    after = spool._fetch(np.frombuffer(stream.getvalue(), np.uint8), place)
    assert after.dtype == before.dtype
    np.testing.assert_array_equal(after.astype(np.float32), np.arange(5))


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, ResourceError), (errno.EIO, OSError)])
def test_a_full_disk_is_told_from_a_broken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(spool, "_spool", fail)
    with pytest.raises(error):
        spool.read_function("data.py:f", Request((), tmp_path))
