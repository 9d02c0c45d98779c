import errno
import json
import math
import subprocess
import sys
import threading
import tomllib
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import InputError, OutputError, ResourceError, UsageError
from bench.store import atomic_write, dump, load, read_toml, record_of, refuse_full
from tests.fakes import fail_at

ROOT = str(Path(__file__).parents[2])


@dataclass(frozen=True, slots=True)
class Inner:
    n: int
    shape: tuple[int | str | None, ...] | None = None


@dataclass(frozen=True, slots=True)
class Record:
    path: Path
    inner: tuple[Inner, ...]
    value: float
    names: dict[str, float]


RECORD = Record(Path("a/ü.onnx"), (Inner(1, ("n", 3, None)), Inner(2)), 0.1, {"b": 1.0, "a": 2.0})

RECORDS = st.builds(
    Record,
    path=st.from_regex(r"[a-z/]{1,8}", fullmatch=True).map(Path),
    inner=st.lists(st.builds(Inner, n=st.integers(-(2**60), 2**60))).map(tuple),
    value=st.floats(allow_nan=False, allow_infinity=False),
    names=st.dictionaries(
        st.text(alphabet=st.characters(exclude_categories=["Cs"])),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
)


@settings(max_examples=30)
@given(RECORDS)
def test_records_survive_json(record: Record) -> None:
    data = dump(record)
    assert load(Record, data, "here") == record
    assert dump(load(Record, data, "here")) == data


def test_the_same_record_gives_the_same_bytes() -> None:
    other = Record(RECORD.path, RECORD.inner, 0.1, {"a": 2.0, "b": 1.0})
    assert dump(other) == dump(RECORD)
    assert json.loads(dump(RECORD)).keys() >= {"schema", "kind", "value", "inner"}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused_by_name(bad: float) -> None:
    with pytest.raises(ValueError, match=r"^names\.b: Input should be a finite number"):
        dump(Record(RECORD.path, (), 0.0, {"a": 1.0, "b": bad}))


def test_whole_numbers_in_place_of_floats_are_read_as_floats() -> None:
    whole = replace(RECORD, value=1, names={"a": 2, "b": 1})
    found = load(Record, dump(whole), "here")
    assert found == whole
    assert {type(v) for v in (found.value, *found.names.values())} == {float}


def test_what_is_no_plain_value_is_a_bug_that_is_named() -> None:
    record = Record(RECORD.path, (), 0.0, {"a": threading.Lock()})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="a lock in a record"):
        dump(record)


def test_writing_a_record_imports_no_pydantic() -> None:
    code = (
        "import sys; from bench.store import dump; from bench.stages import Stage; "
        "dump(Stage('a', 1.0, 2)); print('pydantic' in sys.modules)"
    )
    environment = {"PYTHONPATH": ROOT, "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], stdout=-1, text=True, env=environment)
    assert done.stdout == "False\n"


def _edited(edit: Callable[[dict[str, Any]], object]) -> bytes:
    envelope = json.loads(dump(RECORD))
    edit(envelope)
    return json.dumps(envelope).encode()


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda e: e.update(extra=1), "extra: Unexpected"),
        (lambda e: e["inner"][0].update(extra=1), r"inner\.0\.extra: Unexpected"),
        (lambda e: e.pop("value"), "value: "),
        (lambda e: e["inner"][1].update(n="2"), r"inner\.1\.n: "),
        (lambda e: e.update(schema=2), "schema 2, this vnnify reads 1"),
        (lambda e: e.update(kind="Other"), "holds a 'Other', expected a 'Record'"),
        (lambda e: e.pop("kind"), "no record"),
        (lambda e: e.update(value=float("nan")), "NaN is not a finite"),
    ],
)
def test_json_that_does_not_fit_is_refused(edit: Any, says: str) -> None:
    with pytest.raises(InputError, match=f"^report.json: .*{says}"):
        load(Record, _edited(edit), "report.json")


def test_a_number_too_large_for_a_float_is_refused() -> None:
    data = dump(RECORD).replace(b"0.1", b"1e999")
    with pytest.raises(InputError, match=r"^report\.json: value: Input should be a finite number"):
        load(Record, data, "report.json")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_other_json_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match=r"^f: "):
        load(Record, data, "f")


@dataclass(frozen=True, slots=True)
class Opened:
    """A record as a person writes it in TOML."""

    day: str
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.share > 1:
            raise ValueError(f"share {self.share}, expected at most 1")


def test_plain_values_are_the_record_that_they_fit() -> None:
    assert record_of(Opened, {"day": "1 May", "share": 1}) == Opened("1 May", 1.0)
    assert record_of(Opened, tomllib.loads("day = 2026-05-01")) == Opened("2026-05-01")


@pytest.mark.parametrize(
    ("plain", "says"),
    [
        ({"day": 3}, "day: Input should be a valid string, found 3"),
        ({"day": None}, "day: Input should be a valid string, found None"),
        ({"day": ["x" * 99] * 9, "share": "a"}, r"day: .*\.\.\.\] \(2 such problems\)"),
        ({}, "day: Field required"),
        ({"day": "", "share": 2}, "Opened: share 2.0, expected at most 1"),
        ({"day": "", "share": math.inf}, "share: Input should be a finite number, found inf"),
        ({"day": {"a": {"b": 1}}}, "day: Input should be a valid string"),
    ],
)
def test_plain_values_that_do_not_fit_are_told_with_their_place(
    plain: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=f"^{says}$"):
        record_of(Opened, plain)


def test_tables_of_a_file_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('["ü"]\na = 1\n', encoding="utf-8")
    assert read_toml(file, "it", UsageError) == {"ü": {"a": 1}}
    with pytest.raises(InputError, match=r"^it: cannot be read: No such file or directory\.$"):
        read_toml(tmp_path / "none.toml", "it", UsageError)


@pytest.mark.parametrize("data", [b"a =", b"\xff", b"a = " + b"[" * 100_000])
def test_what_is_no_toml_is_the_error_that_the_caller_names(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(data)
    with pytest.raises(UsageError, match=r"^it: not TOML: "):
        read_toml(file, "it", UsageError)


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    failures = 0
    for step in range(20):
        path.write_bytes(b"old")
        with monkeypatch.context() as patch:
            fail_at(patch, step)
            try:
                atomic_write(path, b"new")
            except OutputError:
                failures += 1
        # After the rename it is the new one, whatever fails later.
        assert path.read_bytes() in (b"old", b"new")
        assert list(tmp_path.iterdir()) == [path]
        if path.read_bytes() == b"new" and step > 3:
            break
    assert failures >= 3


def test_a_full_disk_is_a_matter_of_resources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, 0, errno.ENOSPC)
    with pytest.raises(ResourceError, match="No space left"):
        atomic_write(tmp_path / "f", b"new")


def test_native_code_that_found_no_room_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Namespace(free=1000))
    refuse_full(tmp_path, 1000)
    with pytest.raises(ResourceError, match=r"No space left on device \(1,001 bytes are needed\)"):
        refuse_full(tmp_path, 1001)
