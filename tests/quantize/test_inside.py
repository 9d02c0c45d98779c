import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bench.machine import canary_feeds, canary_model, canary_verdict
from quantize.proof import inside

DTYPES = st.sampled_from(["f4", "f8", "i8", "u1", "?", "U5", "f2"]).flatmap(
    lambda d: hnp.arrays(np.dtype(d), hnp.array_shapes(min_dims=0, min_side=0))
)


@given(DTYPES)
def test_arrays_come_out_as_they_were(array: np.ndarray[Any, Any]) -> None:
    found = inside.decode(json.loads(json.dumps(inside.encode(array))))
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()


def test_strings_come_out_as_text() -> None:
    found = inside.decode(inside.encode(np.array(["a", "bcd"], dtype=object)))
    assert found.tolist() == ["a", "bcd"]


@pytest.mark.parametrize("cut", [0, 3, 9])
def test_a_damaged_array_is_noticed(cut: int) -> None:
    dtype, shape, packed = inside.encode(np.arange(99.0))
    with pytest.raises(ValueError):  # noqa: PT011 - base64, zlib and numpy each say it their way
        inside.decode([dtype, shape, packed[:cut] + packed[cut + 4 :]])


@pytest.fixture
def job(tmp_path: Path) -> Path:
    feeds = {f"={name}": array for name, array in canary_feeds().items()}
    for name, model in (("canary", canary_model()), ("broken", b"not a model")):
        folder = tmp_path / "job" / name
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(model)
        for number in range(2):
            np.savez(folder / f"{number:04}.npz", allow_pickle=False, **feeds)
    return tmp_path / "job"


def test_every_sample_of_every_model_is_a_line(job: Path) -> None:
    out = io.BytesIO()
    inside.run(job, out, ["native", "exact"])
    first, *records, last = map(json.loads, out.getvalue().splitlines())
    assert "sse2" in first["flags"]
    assert last == {"end": True}
    told = [(r["case"], r["mode"], r.get("sample")) for r in records]
    assert told == [
        ("broken", "native", None),
        ("broken", "exact", None),
        *(("canary", mode, sample) for mode in ("native", "exact") for sample in (0, 1)),
    ]
    assert "onnxruntime" in records[0]["error"] or "INVALID" in records[0]["error"]
    assert canary_verdict(inside.decode(records[-1]["outputs"]["y"])) == "exact"


def test_the_files_that_were_needed_can_be_asked_for(job: Path, tmp_path: Path) -> None:
    inside.main([str(job), str(tmp_path / "out"), "native", "files"])
    *_, end, last = map(json.loads, (tmp_path / "out").read_text().splitlines())
    assert end == {"end": True}
    assert any("onnxruntime_pybind11_state" in f for f in last["files"])
    assert all(Path(f).is_file() for f in last["files"])
