"""The committed baseline: what the last accepted model reached, so that the next is no worse.

`vnnify.lock.json` lies in the repository. `--baseline` compares with it, `--update-baseline` writes
it, and the diff of it is what a reviewer sees.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.compare import Comparison, ratio_text, too_busy
from bench.errors import UsageError
from bench.machine import describe
from bench.models import Model
from bench.render import Check, CheckOutcome
from bench.store import atomic_write, dump, load, read_bytes
from quantize.amounts import Scale, drop_text, score_text, size_text
from quantize.coverage import coverage_of
from quantize.gate import Verdict

# A file may grow by so much without being another model: names, metadata.
_GROWTH = 1.01


@dataclass(frozen=True, slots=True)
class Entry:
    """One runtime's part of a baseline.

    Attributes:
        runtime: Its name.
        fp32: FP32's score.
        int8: INT8's.
        drop: Observed.
        drop_high: The drop was below this, at the gate's confidence.
        speedup: INT8 against FP32 in this runtime; None where it was not timed.
        speedup_low: Lower end of its interval.
        speedup_high: Upper end.
        cpu: Where it was timed.
        disturbed: Whether other work made that interval wide, so that nothing is held to it.
    """

    runtime: str
    fp32: float
    int8: float
    drop: float
    drop_high: float
    speedup: float | None
    speedup_low: float | None
    speedup_high: float | None
    cpu: str
    disturbed: bool = False


@dataclass(frozen=True, slots=True)
class Lock:
    """What a model reached.

    Attributes:
        data_sha256: Of the samples it was judged on.
        metric: Name.
        samples: How many.
        scale: How its scores are written.
        size_bytes: Of the INT8 model.
        int8_layers: Of them in INT8.
        layers: In all.
        entries: By runtime.
    """

    data_sha256: str
    metric: str
    samples: int
    scale: Scale
    size_bytes: int
    int8_layers: int
    layers: int
    entries: tuple[Entry, ...]


def read_lock(path: Path) -> Lock:
    """Read a committed baseline.

    Raises:
        InputError: It cannot be read, or is none.
    """
    return load(Lock, read_bytes(path, "Make it with --update-baseline."), path)


def write_lock(path: Path, lock: Lock) -> None:
    """Write it with one value per line, so that a diff of it can be read.

    Raises:
        OutputError: It cannot be written.
    """
    text = json.dumps(json.loads(dump(lock)), indent=2, sort_keys=True, ensure_ascii=False)
    atomic_write(path, text.encode() + b"\n")


def lock_of(
    verdict: Verdict,
    data_sha256: str,
    metric: str,
    int8: Model,
    speed: Comparison | None,
    runtime: str,
) -> Lock:
    """What a baseline keeps of a model that one runtime serves.

    Args:
        verdict: On its accuracy.
        data_sha256: Of the samples.
        metric: Name.
        int8: The model, on disk.
        speed: Against FP32 in the same runtime; None where that was not timed.
        runtime: Its name.
    """
    coverage = coverage_of(int8.path)
    return Lock(
        data_sha256=data_sha256,
        metric=metric,
        samples=verdict.n,
        scale=verdict.scale,
        size_bytes=int8.size_bytes,
        int8_layers=coverage.int8,
        layers=coverage.layers,
        entries=(entry_of(verdict, speed, runtime, describe().cpu),),
    )


def entry_of(verdict: Verdict, speed: Comparison | None, runtime: str, cpu: str) -> Entry:
    """What a baseline keeps of one runtime."""
    return Entry(
        runtime=runtime,
        fp32=verdict.baseline_value,
        int8=verdict.candidate_value,
        drop=verdict.drop,
        drop_high=verdict.high,
        speedup=speed.ratio if speed is not None else None,
        speedup_low=speed.low if speed is not None else None,
        speedup_high=speed.high if speed is not None else None,
        cpu=cpu,
        disturbed=speed is not None and speed.is_disturbed,
    )


def refuse_other(old: Lock, data_sha256: str, metric: str) -> None:
    """Refuse to compare with what was judged on other data, or otherwise.

    Raises:
        UsageError: It was.
    """
    pairs = (
        ("data (SHA-256)", old.data_sha256[:12], data_sha256[:12]),
        ("metric", old.metric, metric),
    )
    for field, before, now in pairs:
        if before != now:
            raise UsageError(
                f"the baseline cannot be compared with: its {field} is {before}, and now it is "
                f"{now}. If that is meant, make it anew with --update-baseline."
            )


def lock_checks(old: Lock, new: Lock, speeds: Mapping[str, Comparison | None]) -> tuple[Check, ...]:
    """Whether the new model is no worse than the committed one.

    Accuracy fails where the new drop is beyond the bound that the old one had. Speed fails where
    the new ratio's interval lies wholly below the old ratio's, is inconclusive where it does not
    lie above it and others ran meanwhile, and is skipped on another CPU, or where others ran beside
    the old one.

    Args:
        old: The committed one.
        new: Of this run.
        speeds: Of this run, by runtime.

    Raises:
        UsageError: They were not judged alike.
    """
    refuse_other(old, new.data_sha256, new.metric)
    known = {e.runtime: e for e in old.entries}
    checks = [_size(old, new), _coverage(old, new)]
    for entry in new.entries:
        before_entry = known.get(entry.runtime)
        if before_entry is None:
            text = f"The baseline says nothing of {entry.runtime}; update it."
            checks.append(Check(f"baseline: accuracy in {entry.runtime}", "skipped", text))
        else:
            speed = speeds.get(entry.runtime)
            checks += [
                _accuracy(before_entry, entry, new.scale),
                _speed(before_entry, entry, speed),
            ]
    return tuple(checks)


def _accuracy(old: Entry, new: Entry, scale: Scale) -> Check:
    worse = new.drop > old.drop_high
    found, limit = drop_text(new.drop, scale), drop_text(old.drop_high, scale)
    text = (
        f"INT8 scores {score_text(new.int8, scale)}, {score_text(old.int8, scale)} before; the "
        f"drop is {found}, and that of the baseline was surely below {limit}."
    )
    name = f"baseline: accuracy in {new.runtime}"
    return Check(name, "fail" if worse else "pass", text, "", found, limit)


def _speed(old: Entry, new: Entry, measured: Comparison | None) -> Check:
    name = f"baseline: speed in {new.runtime}"
    if old.speedup is None or new.speedup is None:
        text = "Not timed in both; add --time to both."
        return Check(name, "skipped", text)
    if old.cpu != new.cpu:
        text = f"The baseline was timed on {old.cpu}, this is {new.cpu}."
        return Check(name, "skipped", text)
    if old.disturbed:
        text = "The baseline was timed beside other work; update it where less else runs."
        return Check(name, "skipped", text)
    floor = old.speedup_low or old.speedup
    low, high = new.speedup_low or new.speedup, new.speedup_high or new.speedup
    found, limit = f"{ratio_text(new.speedup, floor)}x", f"{ratio_text(floor, new.speedup)}x"
    text = (
        f"INT8 is {found} as fast as FP32, {old.speedup:.2f}x before and then surely above {limit}"
    )
    outcome: CheckOutcome = "fail" if high < floor else "pass"
    if low < floor <= high and measured is not None and measured.is_disturbed:
        outcome, text = "inconclusive", f"{text}, but {too_busy(measured)}"
    return Check(name, outcome, f"{text}.", "", found, limit)


def _size(old: Lock, new: Lock) -> Check:
    grown = new.size_bytes > old.size_bytes * _GROWTH
    found, limit = size_text(new.size_bytes), size_text(old.size_bytes)
    text = f"INT8 takes {found}, {limit} before."
    return Check("baseline: size", "fail" if grown else "pass", text, "", found, limit)


def _coverage(old: Lock, new: Lock) -> Check:
    fewer = new.int8_layers * old.layers < old.int8_layers * new.layers
    found = f"{new.int8_layers} of {new.layers}"
    limit = f"{old.int8_layers} of {old.layers}"
    text = f"{found} layers are in INT8, {limit} before."
    return Check("baseline: coverage", "fail" if fewer else "pass", text, "", found, limit)
