"""What a committed baseline lets pass, value by value; with real models in test_gating.py."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.errors import ExitCode, InputError, UsageError
from quantize.commands.arguments import update_baseline
from quantize.lock import Entry, Lock, lock_checks, read_lock, write_lock

ENTRY = Entry(
    runtime="onnxruntime",
    fp32=0.9,
    int8=0.895,
    drop=0.005,
    drop_high=0.008,
    speedup=2.0,
    speedup_low=1.9,
    speedup_high=2.1,
    cpu="Xeon",
)
LOCK = Lock(
    data_sha256="d" * 64,
    metric="top1",
    samples=1000,
    scale="points",
    size_bytes=1000,
    int8_layers=9,
    layers=10,
    entries=(ENTRY,),
)


def checked(check: str, entry: dict[str, Any] | None = None, **lock: Any) -> str:
    """The outcome of one check of a new model that differs in this."""
    new = replace(LOCK, entries=(replace(ENTRY, **(entry or {})),), **lock)
    found = {c.name: c.outcome for c in lock_checks(LOCK, new, {})}
    return found[f"baseline: {check}"]


@pytest.mark.parametrize(("drop", "outcome"), [(0.008, "pass"), (0.0081, "fail"), (-1.0, "pass")])
def test_a_drop_may_be_as_large_as_the_bound_of_the_one_before(drop: float, outcome: str) -> None:
    assert checked("accuracy in onnxruntime", {"drop": drop}) == outcome


@pytest.mark.parametrize(
    ("entry", "outcome"),
    [
        ({}, "pass"),
        # The intervals touch.
        ({"speedup": 1.7, "speedup_low": 1.5, "speedup_high": 1.9}, "pass"),
        ({"speedup": 1.7, "speedup_low": 1.5, "speedup_high": 1.89}, "fail"),
        # Of one round there is no interval.
        ({"speedup": 1.9, "speedup_low": None, "speedup_high": None}, "pass"),
        ({"speedup": 1.8, "speedup_low": None, "speedup_high": None}, "fail"),
        ({"speedup": 1.0, "speedup_high": 1.1, "cpu": "Epyc"}, "skipped"),
        ({"speedup": None}, "skipped"),
    ],
)
def test_speed_fails_where_it_is_surely_lower_on_the_same_cpu(
    entry: dict[str, Any], outcome: str
) -> None:
    assert checked("speed in onnxruntime", entry) == outcome


def test_speeds_beside_the_baseline_s_show_their_side() -> None:
    new = replace(LOCK, entries=(replace(ENTRY, speedup=1.898, speedup_low=None),))
    (check,) = (c for c in lock_checks(LOCK, new, {}) if c.name == "baseline: speed in onnxruntime")
    assert (
        "INT8 is 1.898x as fast as FP32, 2.00x before and then surely above 1.90x" in check.message
    )


def test_speed_is_not_held_to_a_baseline_that_was_timed_beside_other_work() -> None:
    new = replace(LOCK, entries=(replace(ENTRY, speedup=1.0, speedup_low=0.9, speedup_high=1.1),))
    found = {}
    for disturbed in (False, True):
        old = replace(LOCK, entries=(replace(ENTRY, disturbed=disturbed),))
        checks = {c.name: c for c in lock_checks(old, new, {})}
        found[disturbed] = checks["baseline: speed in onnxruntime"]
    assert [c.outcome for c in found.values()] == ["fail", "skipped"]
    assert "update it where less else runs" in found[True].message


def test_a_baseline_of_one_round_is_held_to_its_ratio() -> None:
    old = replace(LOCK, entries=(replace(ENTRY, speedup_low=None, speedup_high=None),))
    new = replace(LOCK, entries=(replace(ENTRY, speedup=1.9, speedup_high=1.95),))
    outcomes = {c.name: c.outcome for c in lock_checks(old, new, {})}
    assert outcomes["baseline: speed in onnxruntime"] == "fail"


@pytest.mark.parametrize(("size", "outcome"), [(10, "pass"), (1010, "pass"), (1011, "fail")])
def test_a_file_may_grow_by_a_hundredth(size: int, outcome: str) -> None:
    assert checked("size", size_bytes=size) == outcome


@pytest.mark.parametrize(
    ("int8", "layers", "outcome"),
    [(9, 10, "pass"), (18, 20, "pass"), (8, 8, "pass"), (17, 20, "fail"), (8, 10, "fail")],
)
def test_the_share_of_layers_in_int8_may_not_fall(int8: int, layers: int, outcome: str) -> None:
    assert checked("coverage", int8_layers=int8, layers=layers) == outcome


def test_a_runtime_that_the_baseline_does_not_know_is_skipped() -> None:
    assert checked("accuracy in openvino", {"runtime": "openvino"}) == "skipped"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data_sha256": "e" * 64}, "data .SHA-256. is dddddddddddd, and now it is eeeeeeeeeeee"),
        ({"metric": "f1"}, "metric is top1, and now it is f1"),
    ],
)
def test_what_was_judged_otherwise_is_not_compared(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        lock_checks(LOCK, replace(LOCK, **change), {})


def test_a_baseline_comes_back_as_it_was_with_one_value_per_line(tmp_path: Path) -> None:
    file = tmp_path / "vnnify.lock.json"
    write_lock(file, LOCK)
    assert read_lock(file) == LOCK
    assert '  "int8_layers": 9,\n' in file.read_text(encoding="utf-8")
    with pytest.raises(InputError, match=r"none\.json: cannot be read: .*--update-base"):
        read_lock(tmp_path / "none.json")


@pytest.mark.parametrize("disturbed", [False, True])
def test_who_updates_a_baseline_beside_other_work_is_told_that_no_speed_is_held_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, disturbed: bool
) -> None:
    file = tmp_path / "vnnify.lock.json"
    update_baseline(
        file, replace(LOCK, entries=(replace(ENTRY, disturbed=disturbed),)), ExitCode.OK
    )
    told = capsys.readouterr().err
    assert "updated; commit it" in told
    assert ("no later speed is held to that in onnxruntime" in told) == disturbed
    assert read_lock(file).entries[0].disturbed == disturbed
