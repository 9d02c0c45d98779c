"""The journal: what fits is found again, what does not is not, and no failure of it ends a run."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from quantize import journal as journals
from quantize.calibrate import Calibration, TensorStatistics
from quantize.evaluate import Evaluation
from quantize.evidence import Evidence, read_rows, write_rows
from quantize.journal import (
    Journal,
    context_of,
    digest_of_plugin,
    keep_calibration,
    keep_evaluation,
    recall_calibration,
    recall_evaluation,
)
from quantize.metric import Metric
from quantize.outputs import OutputStore


@dataclass(frozen=True)
class Note:
    text: str
    values: tuple[float, ...] = ()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "work", "context")


def test_a_record_is_found_again_under_its_key_and_no_other(journal: Journal) -> None:
    journal.keep(Note("a", (0.1, 2.0)), "note", {"model": "x", "runs": (1, 2)})
    assert journal.recall(Note, "note", {"model": "x", "runs": (1, 2)}) == Note("a", (0.1, 2.0))
    assert journal.recall(Note, "note", {"model": "y", "runs": (1, 2)}) is None
    assert journal.recall(Note, "other", {"model": "x", "runs": (1, 2)}) is None
    assert (
        replace(journal, context="new").recall(Note, "note", {"model": "x", "runs": [1, 2]}) is None
    )
    assert journal.count() == 1


def test_what_was_made_once_is_not_made_again(journal: Journal) -> None:
    made: list[int] = []

    def make() -> Note:
        made.append(1)
        return Note("made")

    assert journal.remember(Note, "note", {}, make) == journal.remember(Note, "note", {}, make)
    assert len(made) == 1


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    nowhere = Journal()
    nowhere.keep(Note("a"), "note", {})
    assert nowhere.recall(Note, "note", {}) is None
    assert nowhere.count() == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"{", b'{"schema": 1, "kind": "Note", "text": 3}'])
def test_a_damaged_entry_counts_as_none(journal: Journal, damage: bytes) -> None:
    journal.keep(Note("a"), "note", {})
    (file,) = (journal.folder or Path()).iterdir()
    file.write_bytes(damage)
    assert journal.recall(Note, "note", {}) is None


def test_a_full_disk_costs_the_entry_and_not_the_run(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    journal.keep(Note("a"), "note", {})
    assert "No space left" in caplog.text
    assert list((journal.folder or Path()).iterdir()) == []


def statistics(seed: int) -> TensorStatistics:
    stats = TensorStatistics()
    values = np.random.default_rng(seed).standard_normal((2, 3, 4)).astype(np.float32)
    stats.add(values)
    return stats


def test_a_calibration_comes_back_to_the_last_bit(journal: Journal) -> None:
    tensors = {"a/b:0": statistics(0), "ü": statistics(1), "": TensorStatistics()}
    keep_calibration(journal, {"m": 1}, Calibration(tensors, "model", "samples", 7))
    found = recall_calibration(journal, {"m": 1})
    assert found is not None
    assert (found.model_sha256, found.samples_sha256, found.samples) == ("model", "samples", 7)
    assert list(found.tensors) == list(tensors)
    for name, stats in tensors.items():
        for field in fields(stats):
            np.testing.assert_array_equal(
                getattr(found.tensors[name], field.name), getattr(stats, field.name)
            )
    assert recall_calibration(journal, {"m": 2}) is None
    assert recall_calibration(Journal(), {"m": 1}) is None


def test_a_damaged_calibration_counts_as_none(journal: Journal) -> None:
    keep_calibration(journal, {}, Calibration({"a": statistics(0)}, "model", "samples", 7))
    (file,) = (journal.folder or Path()).iterdir()
    whole = file.read_bytes()
    for part in (b"", whole[: len(whole) // 2], whole.replace(b'"exponent"', b'"exponend"')):
        file.write_bytes(part)
        assert recall_calibration(journal, {}) is None


def test_outputs_come_back_from_a_file(tmp_path: Path) -> None:
    first = {"a/b": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(3)}
    with OutputStore() as store, OutputStore() as other:
        store.append("d0", first)
        store.append("d1", {"a/b": np.zeros((0, 3), np.float32), "n": np.array(4)})
        store.write(tmp_path / "outputs.zip")
        other.read(tmp_path / "outputs.zip")
        assert len(other) == 2
        for i, digest in enumerate(("d0", "d1")):
            for name, array in store.of(i, digest).items():
                np.testing.assert_array_equal(other.of(i, digest)[name], array)
                assert other.of(i, digest)[name].dtype == array.dtype
    (tmp_path / "outputs.zip").write_bytes(b"PK")
    with OutputStore() as store, pytest.raises(ValueError, match="damaged"):
        store.read(tmp_path / "outputs.zip")


def test_a_changed_metric_file_has_another_digest(tmp_path: Path) -> None:
    file = tmp_path / "metric.py"
    file.write_text("one")
    first = digest_of_plugin(f"{file}:score")
    file.write_text("two")
    assert first not in ("", digest_of_plugin(f"{file}:score"))
    assert digest_of_plugin("top1") == digest_of_plugin(None) == digest_of_plugin("no.py:f") == ""


def test_the_context_changes_with_the_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    before = context_of({})
    assert before == context_of({})
    real = journals.describe()
    monkeypatch.setattr(
        journals, "describe", lambda **_: replace(real, packages={**real.packages, "numpy": "0"})
    )
    assert context_of({}) != before


_NUMBERS = arrays.arrays(
    st.sampled_from(["<f4", ">f8", "<i8", "|u1", "|b1", "<c8", "<U3"]),
    arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
_PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | _NUMBERS
_ROW = st.recursive(
    _PLAIN | st.builds(np.float32, st.floats(width=32)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(rows=st.lists(_ROW, max_size=4) | _NUMBERS)
def test_any_rows_come_back_to_the_last_bit(
    rows: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("rows") / "rows.zip"
    write_rows(rows, file)
    found = read_rows(file)
    assert _same(found, rows)


def _same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray | np.generic):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, dict):
        return list(a) == list(b) and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b) or (a != a and b != b)


def corpus_evaluation(rows: Any, **changes: Any) -> Evaluation:
    found = Evaluation(
        model_sha256="m", runtime="onnxruntime", runtime_version="1", arithmetic="exact",
        metric="mine", output=None, higher_is_better=True, binary=False, bounded=False,
        chance=None, scores=(), nonfinite=0, first_nonfinite=None, samples_sha256="s",
        outputs=("y",), seconds=1.0, corpus_value=float(len(rows)), corpus_count=len(rows),
        evidence=Evidence(rows, lambda rows: float(len(rows)), "mine"),
    )  # fmt: skip
    return replace(found, **changes)


MINE = Metric("mine", lambda *_: [], corpus=lambda rows: 2.0 * len(rows))


def test_scores_of_a_corpus_metric_come_back_with_their_rows(journal: Journal) -> None:
    found = corpus_evaluation([("a", np.arange(3)), ("b", np.zeros(0))])
    assert keep_evaluation(journal, found, "evaluation", {"model": 1})
    again = recall_evaluation(journal, MINE, "evaluation", {"model": 1})
    assert again == found
    assert again.evidence is not None
    # The function is the metric's own: files hold no code.
    assert again.evidence.value(np.array([1, 1, 0])) == 6.0
    assert again.evidence.rows[0][0] == "a"
    assert recall_evaluation(journal, MINE, "evaluation", {"model": 2}) is None


def test_scores_whose_rows_are_lost_or_damaged_count_as_none(journal: Journal) -> None:
    rows = np.arange(4000.0).reshape(1000, 4)
    keep_evaluation(journal, corpus_evaluation(rows), "evaluation", {})
    (file,) = (f for f in (journal.folder or Path()).iterdir() if f.suffix == ".zip")
    whole = file.read_bytes()
    for part in (b"", whole[: len(whole) // 2], whole.replace(b"rows.json", b"sows.json")):
        file.write_bytes(part)
        assert recall_evaluation(journal, MINE, "evaluation", {}) is None
    write_rows(rows[:7], file)
    assert recall_evaluation(journal, MINE, "evaluation", {}) is None
    file.unlink()
    assert recall_evaluation(journal, MINE, "evaluation", {}) is None


def test_rows_that_no_file_holds_cost_the_entry_and_not_the_run(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    assert not keep_evaluation(journal, corpus_evaluation([object()]), "evaluation", {})
    assert "a row of the metric holds a object" in caplog.text
    assert recall_evaluation(journal, MINE, "evaluation", {}) is None
    assert journal.count() == 0


def test_a_corpus_that_is_not_finite_needs_no_rows(journal: Journal) -> None:
    found = corpus_evaluation([1, 2], evidence=None, nonfinite=1)
    assert keep_evaluation(journal, found, "evaluation", {})
    assert recall_evaluation(journal, MINE, "evaluation", {}) == found
