"""`make bench-search`: vnnify's search against NNCF's accuracy control, on every case, in one run.

    python -m tests.benchmarks.searches [--cases a,b] [--models DIR …] [--max-drop 1pt] [--quick]

Both get the same model, the same calibration and evaluation samples and the same limit, each in a
process of its own. Then vnnify replays the recipe that it found. All files are scored in one
process and timed taking turns.
"""

import argparse
import compileall
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from bench.errors import VnnifyError
from bench.isolate import ChildError
from bench.machine import available_threads, describe
from bench.runtimes import RUNTIMES
from quantize.tolerance import parse_tolerance
from tests.benchmarks import quantizers
from tests.benchmarks.cases import Case
from tests.benchmarks.quantizers import Row

RIVALS = {
    "vnnify": "tests.benchmarks.searches:work",
    "nncf accuracy control": "tests.benchmarks.accuracy_control:work",
}
_ALL = 10**9
_ROOT = Path(__file__).parents[2]


def work(job: dict[str, Any]) -> dict[str, Any]:
    """The child process: vnnify on one case."""
    case = Case(**{**job["case"], "path": Path(job["case"]["path"])})
    return _vnnify(case, Path(job["folder"]), job["calibrate_on"], job["max_drop"])


def _vnnify(case: Case, folder: Path, calibrate_on: int, max_drop: str) -> dict[str, Any]:
    """The search as a user runs it, and a replay of what it found."""
    out = folder / "out"
    found = _command(case, out, calibrate_on, max_drop)
    report = found["report"]
    recipe = (out / report["int8"]["path"]).parent / "recipe.toml"
    again = _command(case, folder / "again", calibrate_on, max_drop, "--recipe", str(recipe))
    judged = [t for t in report["trials"] if t["value"] is not None]
    total = report["data"]["evaluation_count"]
    stages = {s["name"]: s["seconds"] for s in report["stages"]}
    return {
        "path": str(out / report["int8"]["path"]),
        "seconds": found["seconds"],
        "first_pass_s": report["first_pass_s"],
        "first_pass_share": (report["first_pass_samples"] or total) / total,
        "search_s": sum(s for n, s in stages.items() if n not in ("verify", "benchmark")),
        "evaluations": sum(t["samples"] / total for t in judged),
        "replay_s": again["seconds"],
        "replayed": again["report"]["conclusion"]["outcome"],
        "outcome": report["conclusion"]["outcome"],
    }


def _command(case: Case, out: Path, calibrate_on: int, max_drop: str, *more: str) -> dict[str, Any]:
    words = ["quantize", str(case.path), "--data", case.data, "--out", str(out), "--json"]
    words += ["--calibration-samples", str(calibrate_on), "--max-drop", max_drop, *more]
    words += ["--inconclusive", "warn", "--budget", "1h"]
    words += ["--calibration", case.calibration] if case.calibration else []
    words += ["--metric", case.metric] if case.metric else []
    words += ["--output", case.output] if case.output else []
    for output, taker in case.states.items():
        words += ["--state", f"{output}:{taker}"]
    code = "import sys; from quantize.cli import main; sys.exit(main())"
    started_s = perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True)
    seconds = perf_counter() - started_s
    try:
        return {"seconds": seconds, "report": json.loads(done.stdout)}
    except ValueError as e:
        raise RuntimeError(f"vnnify quantize ended with status {done.returncode}") from e


def compare(case: Case, options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """Both searches on one case; what is known of the case comes second."""
    folder = options.out / "work" / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    plain = {**asdict(case), "path": str(case.path), "states": dict(case.states)}
    rows = []
    for rival, target in RIVALS.items():
        scratch = folder / rival.replace(" ", "-")
        scratch.mkdir()
        job = {"case": plain, "folder": str(scratch)}
        job |= {"calibrate_on": options.calibrate_on, "max_drop": options.max_drop}
        rows.append(Row(case.name, rival))
        try:
            rows[-1].cost = quantizers._isolated(target, job, scratch, rival)
        except (VnnifyError, ChildError) as e:
            rows[-1].failed = str(e).strip().splitlines()[-1][:300]
    files = {r.rival: r.cost["path"] for r in rows if r.cost}
    judged = quantizers._judged(plain, files, folder, options)
    about = {k: v for k, v in judged.items() if k != "scores"}
    limit = parse_tolerance(options.max_drop).absolute(about["fp32"], bounded=about["percent"])
    for row in rows:
        row.score = judged["scores"].get(row.rival, {})
        drop = row.score.get("drop")
        if drop is not None and drop <= limit and "saved_s" in row.cost:
            row.cost["first_pass_s"] = row.cost["saved_s"]
    quantizers._time(case, rows, folder, options)
    shutil.rmtree(folder, ignore_errors=True)
    return rows, {**about, "limit": limit}


def render(rows: Sequence[Row], facts: Mapping[str, Any], options: argparse.Namespace) -> str:
    """A Markdown table, one row per case and search."""
    machine = describe()
    host = f"{machine.cpu}, {machine.isa_class}, {available_threads()} threads"
    headings = (
        "Case | Search | Drop | Within | First passing s | Evaluations | Seconds | of the search | "
        "Replay s | ORT | OpenVINO"
    )
    about_run = (
        f"{quantizers._today()}, {host}. Limit {options.max_drop}; at most {options.calibrate_on} "
        "calibration samples. Speeds are against FP32 in the same runtime."
    )
    lines = ["# Searches", "", about_run, "", _LEGEND, "", f"| {headings} |"]
    lines.append("| --- | --- |" + " ---: |" * 9)
    for row in rows:
        about, drop, cost = facts[row.case], row.score.get("drop"), row.cost
        factor, unit = (100.0, " pt") if about["percent"] else (1.0, "")
        within = "" if drop is None else "yes" if drop <= about["limit"] else "no"
        cells = (
            quantizers._shown(drop, factor, "{:+.3g}" + unit),
            within,
            _first_pass(cost),
            quantizers._shown(cost.get("evaluations"), 1, "{:.1f}"),
            quantizers._shown(cost.get("seconds"), 1, "{:.1f}"),
            quantizers._shown(cost.get("search_s"), 1, "{:.1f}"),
            quantizers._shown(cost.get("replay_s"), 1, "{:.1f}"),
            *(quantizers._shown(row.speedup.get(r), 1, "{:.2f}×") for r in RUNTIMES if r in _TIMED),
        )
        lines.append(f"| {row.case} | {row.rival} | " + " | ".join(cells) + " |")
    lines += [""] + [f"- {r.case}, {r.rival}: {r.failed}" for r in rows if r.failed]
    return "\n".join(lines) + "\n"


def _first_pass(cost: Mapping[str, Any]) -> str:
    """Seconds, and on which share of the samples the model had passed by then."""
    seconds = quantizers._shown(cost.get("first_pass_s"), 1, "{:.1f}")
    share = cost.get("first_pass_share", 1.0)
    return f"{seconds} on {share:.0%}" if seconds and share < 1 else seconds


_TIMED = ("onnxruntime", "openvino")
_LEGEND = (
    "First passing: from the start of the process, imports and reading included, to the first "
    "model within the limit on disk, as vnnify's report says; the model of the other columns comes "
    "later and may be better. `on 25 %`: by then it had passed on that share of the samples, by a "
    "test whose looks together err as often as one verdict; the others are scored after it, and "
    "the verdict comes from all. NNCF scores both models on all samples first; it has one model, "
    "saved at its end; what the benchmark itself "
    "imports and looks at in its process is not counted. Empty where no model is within the limit. "
    "Seconds: vnnify's are those of its whole command, those of the search end with its last "
    "verdict, and NNCF's are those of its one call; replay is the whole command again. An "
    "evaluation is one pass over all samples."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked; the exit status is 0 unless a case itself could not be read."""
    options = _parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for package in ("bench", "quantize"):
        # As pip did for NNCF: an editable install may lie in a place that Python does not write to.
        compileall.compile_dir(_ROOT / package, quiet=1)
    rows: list[Row] = []
    facts: dict[str, Any] = {}
    failed = 0
    for case in quantizers._cases(options):
        quantizers._say(f"== {case.name}")
        try:
            found, facts[case.name] = compare(case, options)
        except (VnnifyError, ChildError) as e:
            quantizers._say(f"{case.name}: {e}")
            failed += 1
            continue
        rows += found
        # After every case, so that a run that is cut short leaves what it has.
        (options.out / "searches.md").write_text(render(rows, facts, options), encoding="utf-8")
        record = {"cases": facts, "rows": [asdict(r) for r in rows], "machine": asdict(describe())}
        text = json.dumps(record, indent=1, default=str)
        (options.out / "searches.json").write_text(text, encoding="utf-8")
    if rows:
        sys.stdout.write(render(rows, facts, options))
    return 1 if failed else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="searches", description=__doc__)
    parser.add_argument("--cases", type=quantizers._names, default=[])
    parser.add_argument("--models", type=Path, action="append", default=[], help="folders")
    parser.add_argument("--max-drop", default="1pt")
    parser.add_argument("--calibrate-on", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args(arguments)
    options.evaluate_on = _ALL
    if options.quick:
        options.rounds, options.seconds, options.calibrate_on = 1, 0.1, 64
    options.out = options.out.absolute()
    return options


if __name__ == "__main__":
    sys.exit(main())
