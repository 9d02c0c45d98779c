"""`make bench-quantizers`: native against its rivals, on every case, in one run.

    python -m tests.benchmarks.quantizers [--cases a,b] [--models DIR …] [--rivals x,y] [--quick]

Every quantizer runs in a process of its own (time, peak memory, its crash costs one row), then all
files of a case are scored in one process, then FP32 and all files are timed taking turns. The table
goes to stdout and, with everything behind it, to --out.
"""

import argparse
import datetime
import json
import math
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import VnnifyError
from bench.isolate import ChildError, run_isolated
from bench.latency import Variant, measure
from bench.machine import available_threads, describe
from bench.models import read_model
from tests.benchmarks import graphs, models
from tests.benchmarks.cases import Case, find_case, read_case
from tests.benchmarks.judging import as_model
from tests.benchmarks.rivals import RIVALS

_RUNTIMES = ("onnxruntime", "openvino")
_TIMEOUT_S = 3600.0
_QUICK = {"calibrate_on": 32, "evaluate_on": 200, "rounds": 1, "seconds": 0.1}


@dataclass(slots=True)
class Row:
    """One quantizer on one case.

    Attributes:
        case: Name of the case.
        rival: Name of the quantizer.
        cost: What its process reported: path, seconds, peak memory.
        score: Of `judging.Score`; empty where there was no file.
        speedup: FP32's median over this file's, by runtime.
        failed: Why there is no file, or "".
    """

    case: str
    rival: str
    cost: dict[str, Any] = field(default_factory=dict)
    score: dict[str, Any] = field(default_factory=dict)
    speedup: dict[str, float] = field(default_factory=dict)
    failed: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked; the exit status is 0 unless a case itself could not be read."""
    options = _parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    facts: dict[str, Any] = {}
    failed = 0
    for case in _cases(options):
        _say(f"== {case.name}")
        try:
            found, about = compare(case, options)
        except (VnnifyError, ChildError) as e:
            _say(f"{case.name}: {e}")
            failed += 1
            continue
        rows += found
        facts[case.name] = about
        # After every case, so that a run that is cut short leaves what it has.
        text = render(rows, facts, options)
        (options.out / "quantizers.md").write_text(text, encoding="utf-8")
        record = {
            "machine": asdict(describe()),
            "date": _today(),
            "options": {k: str(v) for k, v in vars(options).items()},
            "cases": facts,
            "rows": [asdict(r) for r in rows],
        }
        text_of = json.dumps(record, indent=1, default=str)
        (options.out / "quantizers.json").write_text(text_of, encoding="utf-8")
    if rows:
        sys.stdout.write(render(rows, facts, options))
    return 1 if failed else 0


def compare(case: Case, options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """All quantizers on one case; what is known of the case comes second."""
    folder = options.out / "work" / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    plain = {**asdict(case), "path": str(case.path), "states": dict(case.states)}
    rows = [_made(rival, plain, folder, options) for rival in options.rivals]
    files = {r.rival: r.cost["path"] for r in rows if r.cost and r.rival != "fp32"}
    judged = _judged(plain, files, folder, options)
    for row in rows:
        row.score = judged["scores"].get(row.rival, {})
    if options.rounds:
        _time(case, rows, folder, options)
    for row in rows:
        _say(f"   {row.rival}: {row.failed or row.score.get('exact', row.cost)}")
    shutil.rmtree(folder, ignore_errors=True)
    return rows, {k: v for k, v in judged.items() if k != "scores"}


def _made(rival: str, plain: dict[str, Any], folder: Path, options: argparse.Namespace) -> Row:
    scratch = folder / rival.replace(" ", "-")
    scratch.mkdir()
    job = {
        "case": plain,
        "rival": rival,
        "folder": str(scratch),
        "calibrate_on": options.calibrate_on,
        "target": options.target,
    }
    row = Row(plain["name"], rival)
    try:
        row.cost = _isolated("tests.benchmarks.rivals:work", job, scratch, rival)
    except (VnnifyError, ChildError) as e:
        # The last line of a traceback is what it was.
        row.failed = str(e).strip().splitlines()[-1][:300]
    return row


def _judged(
    plain: dict[str, Any], files: Mapping[str, str], folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Scores of all files in one process; one process each where a file crashes it."""
    scratch = folder / "judging"
    scratch.mkdir()
    job = {
        "case": plain,
        "folder": str(scratch),
        "calibrate_on": options.calibrate_on,
        "evaluate_on": options.evaluate_on,
    }
    target = "tests.benchmarks.judging:work"
    try:
        whole: dict[str, Any] = _isolated(target, {**job, "files": dict(files)}, scratch, "judging")
    except (VnnifyError, ChildError):
        whole = _isolated(target, {**job, "files": {}}, scratch, "judging")
        for rival, path in files.items():
            try:
                one = _isolated(target, {**job, "files": {rival: path}}, scratch, "judging")
                whole["scores"] |= one["scores"]
            except (VnnifyError, ChildError) as e:
                whole["scores"][rival] = {"why": str(e).strip().splitlines()[-1][:300]}
    return whole


def _time(case: Case, rows: Sequence[Row], folder: Path, options: argparse.Namespace) -> None:
    """Fill in how many times as fast each file is as FP32 in the same runtime."""
    fp32 = read_model(case.path)
    data = read_case(case, folder, options.calibrate_on, 4)
    threads = available_threads()
    for runtime in _RUNTIMES:
        there = [r for r in rows if runtime in r.score.get("loads", ())]
        variants = [Variant("fp32", fp32, runtime, "cpu", threads, 1)]
        for row in there:
            model = as_model(Path(row.cost["path"]), fp32)
            variants.append(Variant(row.rival, model, runtime, "cpu", threads, 1))
        feeds = [data.evaluation[i].feeds for i in range(len(data.evaluation))]
        try:
            base, *timed = measure(
                variants,
                feeds,
                rounds=options.rounds,
                seconds_per_round=options.seconds,
            )
        except VnnifyError as e:
            _say(f"{case.name} in {runtime}: {e}")
            continue
        for row, latency in zip(there, timed, strict=True):
            row.speedup[runtime] = base.median_ms / latency.median_ms


def _isolated(target: str, job: dict[str, Any], scratch: Path, name: str) -> Any:
    return run_isolated(target, job, scratch=scratch, name=name, timeout_s=_TIMEOUT_S)


# What is shown


def render(rows: Sequence[Row], facts: Mapping[str, Any], options: argparse.Namespace) -> str:
    """A Markdown document: one table per case, and where native is behind."""
    machine = describe()
    versions = ", ".join(f"{k} {v}" for k, v in machine.packages.items() if v)
    host = f"{machine.cpu}, {machine.isa_class}, {available_threads()} threads"
    how = (
        f"At most {options.calibrate_on} calibration samples, the same for all; FP32 and INT8 in "
        f"{options.rounds} rounds of {options.seconds:g} s. {_LEGEND}"
    )
    lines = ["# Quantizers", "", f"{_today()}, {host}; {versions}.", "", how, ""]
    for case, about in facts.items():
        lines += _table(case, about, [r for r in rows if r.case == case])
    return "\n".join(lines)


_LEGEND = (
    "Seconds without imports and without reading samples; peak memory of the quantizer's process. "
    "`native` is one pass of the engine for --target, `native vnni` the same with all 8 bits of "
    "all weights, `vnnify` the whole command, search and verdict included; `native via torch` and "
    "`inc` start from the PyTorch module, where there is one, and export it themselves."
)
_HEADINGS = (
    "Quantizer | Loads | Score, exact | Score, this CPU | Drop | dB | ORT | OpenVINO | Seconds | "
    "Calibrating | Peak MB"
)


def _table(case: str, about: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    factor, unit = (100.0, " pt") if about["percent"] else (1.0, "")
    cells = [
        f"## {case}",
        "",
        f"FP32: {about['metric']} {about['fp32'] * factor:.5g}, {about['samples']:,} samples.",
        "",
        f"| {_HEADINGS} |",
        "| --- | --- |" + " ---: |" * 9,
    ]
    for row in rows:
        s, cost = row.score, row.cost
        loads = ", ".join(_SHORT[r] for r in s.get("loads", ())) or ("" if not s else "no")
        seconds = cost.get("own_seconds", cost.get("seconds"))
        peak = cost.get("own_peak_rss_bytes", cost.get("peak_rss_bytes"))
        ratios = (_shown(row.speedup.get(r), 1, "{:.2f}×") for r in _RUNTIMES)
        cells.append(
            f"| {row.rival} | {'fails' if row.failed else loads} | "
            + " | ".join(
                (
                    _shown(s.get("exact"), factor, "{:.5g}"),
                    _shown(s.get("native"), factor, "{:.5g}"),
                    _shown(s.get("drop"), factor, "{:+.3g}" + unit),
                    _shown(s.get("noise_db"), 1, "{:.1f}"),
                    *ratios,
                    _shown(seconds, 1, "{:.2f}"),
                    _shown(cost.get("calibrate_s"), 1, "{:.2f}"),
                    _shown(peak, 1e-6, "{:,.0f}"),
                )
            )
            + " |"
        )
    notes = [f"- {r.rival}: {_plain(r)}" for r in rows if _plain(r)]
    notes += _behind(about, rows) + _narrowed(about, rows)
    return [*cells, "", *notes, ""] if notes else [*cells, ""]


# Not rivals of one another.
_OURS = ("native", "native vnni", "vnnify")
_SHORT = {"onnxruntime": "ORT", "openvino": "OV"}


def _plain(row: Row) -> str:
    """Why it failed, on one line that a table bears and without this machine's folders."""
    text = " ".join((row.failed or row.score.get("why", "")).split())
    return re.sub(r"(?<!\w)/(?:[\w.@+-]+/)+", "", text).replace("|", "/")


def _shown(value: float | None, factor: float, form: str) -> str:
    return "" if value is None or not math.isfinite(value) else form.format(value * factor)


def _behind(about: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """Where native's drop is larger than the best rival's by more than 0.1 point.

    A gain is luck, and counts as no drop.
    """
    known = {r.rival: r.score.get("drop") for r in rows}
    drops = {rival: max(drop, 0.0) for rival, drop in known.items() if drop is not None}
    rivals = {n: d for n, d in drops.items() if n not in _OURS}
    if "native" not in drops or not rivals:
        return []
    best = min(rivals, key=rivals.__getitem__)
    allowed = 0.001 if about["percent"] else 0.001 * abs(about["fp32"])
    if drops["native"] <= rivals[best] + allowed:
        return []
    behind = drops["native"] - rivals[best]
    one = f"; one sample counts {1 / about['samples']:.4g}" if about["percent"] else ""
    return [f"- **native is behind {best} by {behind:.4g}{one}.**"]


def _narrowed(about: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """What `native` loses to the same engine for CPUs that are exact, and what saturates in each.

    It is set in bold beyond 0.2 points, where the interval does not hold 0.
    """
    found = about.get("narrowing")
    if found is None:
        return []
    factor, unit = (100.0, " pt") if about["percent"] else (1.0, "")
    allowed = 0.002 if about["percent"] else 0.002 * abs(about["fp32"])
    lost, low, high = (found[k] * factor for k in ("lost", "low", "high"))
    text = f"native loses {lost:.2g}{unit} to native vnni (95 %: {low:.2g} to {high:.2g})"
    text = f"**{text}**" if found["lost"] > allowed and found["low"] > 0 else text
    costs = next((r.cost for r in rows if r.rival == "native" and "channels" in r.cost), None)
    share = (
        f" {costs['narrowed']:,} of {costs['channels']:,} channels use less than 8 bits."
        if costs is not None
        else ""
    )
    wide, narrow = found["native vnni"], found["native"]
    seen = f"{wide['wrong'] / wide['outputs']:.1%} of" if wide["outputs"] else "none of"
    risk = (
        f"Channels that can saturate without VNNI: {narrow['channels']:,} of native's, "
        f"{wide['channels']:,} of native vnni's; there {seen} the outputs looked at do, "
        f"{narrow['wrong']:,} of native's."
    )
    return [f"- {text}.{share} {risk}"]


def _cases(options: argparse.Namespace) -> list[Case]:
    """Cases that are asked for, made where they are not there yet."""
    cache = options.out / "cases"
    usual = {**models.MODELS, **graphs.GRAPHS}
    asked = options.cases or ([] if options.models else usual)
    found = []
    for name, build in {**usual, **models.LARGER}.items():
        if name not in asked:
            continue
        folder = cache / name
        if not (folder / "model.onnx").is_file():
            _say(f"making {name}")
            shutil.rmtree(folder, ignore_errors=True)
            making = cache / f".{name}"
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir(parents=True)
            build(making)
            making.rename(folder)
        found.append(find_case(folder))
    for folder in options.models:
        one = (folder / "model.onnx").is_file()
        inside = [folder] if one else sorted(f.parent for f in folder.glob("*/model.onnx"))
        found += [find_case(f.absolute()) for f in inside]
    return found


def _names(text: str) -> list[str]:
    return [n.strip() for n in text.split(",") if n.strip()]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="quantizers", description=__doc__)
    known = (*models.MODELS, *graphs.GRAPHS, *models.LARGER)
    parser.add_argument("--cases", type=_names, default=[], help=f"of {', '.join(known)}")
    parser.add_argument("--models", type=Path, action="append", default=[], help="folders")
    parser.add_argument("--rivals", type=_names, default=list(RIVALS), help=", ".join(RIVALS))
    parser.add_argument("--target", default="portable", help="of native")
    parser.add_argument("--calibrate-on", type=int, default=256)
    parser.add_argument("--evaluate-on", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5, help="0: nothing is timed")
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument(
        "--quick", action="store_true", help="few samples, one short round, no search"
    )
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(_QUICK)
        options.rivals = [r for r in options.rivals if r != "vnnify"]
    options.out = options.out.absolute()
    unknown = [n for n in options.cases if n not in known]
    unknown += [n for n in options.rivals if n not in RIVALS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    return options


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


if __name__ == "__main__":
    sys.exit(main())
