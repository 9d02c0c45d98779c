"""Scores of FP32 and of every INT8 file of one case, on the same samples."""

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.errors import VnnifyError
from bench.machine import available_threads, canary
from bench.models import Model, read_model
from bench.runtimes import RUNTIMES, Settings
from quantize.evaluate import Evaluation, Execution, evaluate
from quantize.outputs import OutputStore
from quantize.trials import noise_shares, to_db
from tests.benchmarks.cases import Case, Data, read_case

_PROBES = 8


@dataclass(frozen=True, slots=True)
class Score:
    """What became of one file.

    Attributes:
        loads: Runtimes that open and run it.
        exact: Score with the arithmetic of VNNI; None where it does not run.
        native: Score with this CPU's own arithmetic; the same on a CPU that is exact.
        drop: Of `exact` against FP32's score, positive where it is worse.
        noise_db: Signal to noise at the float outputs.
        judged_in: The runtime that scored it.
        why: What it failed with.
    """

    loads: tuple[str, ...] = ()
    exact: float | None = None
    native: float | None = None
    drop: float | None = None
    noise_db: float | None = None
    judged_in: str = ""
    why: str = ""


def work(job: dict[str, Any]) -> dict[str, Any]:
    """The child process: FP32 once, then every file.

    Returns:
        `fp32`: its score; `metric`, `percent`; `scores`: by rival, a `Score` as a dict.
    """
    case = Case(**{**job["case"], "path": Path(job["case"]["path"])})
    scratch = Path(job["folder"])
    data = read_case(case, scratch, job["calibrate_on"], job["evaluate_on"])
    with OutputStore(folder=scratch) as kept:
        fp32 = evaluate(data.model, data.evaluation, data.metric, _how(case), keep=kept)
        scores = {}
        for rival, path in job["files"].items():
            model = as_model(Path(path), data.model)
            scores[rival] = asdict(_score(model, case, data, fp32, kept))
    percent = fp32.bounded or fp32.binary
    facts = {"fp32": fp32.value, "metric": fp32.metric.rpartition(":")[2], "percent": percent}
    return {**facts, "samples": len(data.evaluation), "scores": scores}


def as_model(path: Path, fp32: Model) -> Model:
    """The record of a file; OpenVINO's own format has the inputs and outputs of FP32."""
    if path.suffix == ".onnx":
        return read_model(path)
    digest, size = hashlib.sha256(), 0
    for file in (path, path.with_suffix(".bin")):
        content = file.read_bytes()
        digest.update(content)
        size += len(content)
    return replace(fp32, path=path, sha256=digest.hexdigest(), size_bytes=size)


def _how(case: Case, runtime: str = "onnxruntime", *, exact: bool = False) -> Execution:
    settings = Settings(threads=available_threads(), exact=exact)
    return Execution(RUNTIMES[runtime], settings, case.states)


def _score(model: Model, case: Case, data: Data, fp32: Evaluation, kept: OutputStore) -> Score:
    score, probes = Score(), [data.evaluation[i].feeds for i in range(_count(data))]
    found: dict[str, Any] = {}
    for runtime in ("onnxruntime", "openvino"):
        if runtime == "onnxruntime" and model.path.suffix != ".onnx":
            continue
        try:
            session = RUNTIMES[runtime].open(model.path, Settings(threads=1))
            found[runtime] = [session.run(p) for p in probes]
            session.close()
        except VnnifyError as e:
            score = replace(score, why=score.why or f"{runtime}: {e}"[:300])
    if not found:
        return score
    runtime = next(iter(found))
    wanted = [kept.of(i, data.evaluation.digests[i]) for i in range(len(probes))]
    if case.states:
        # What is kept was computed with carried states, the probes were not.
        session = RUNTIMES["onnxruntime"].open(case.path, Settings(threads=1))
        wanted = [session.run(p) for p in probes]
        session.close()
    noise = to_db(noise_shares(wanted, found[runtime]))
    exact = runtime == "onnxruntime" or canary(runtime) == "exact"

    def value(*, exactly: bool) -> Evaluation:
        how = _how(case, runtime, exact=exactly)
        return evaluate(model, data.evaluation, data.metric, how, reference=kept)

    judged = value(exactly=exact)
    native = judged if canary(runtime) == "exact" else value(exactly=False)
    sign = 1 if fp32.higher_is_better else -1
    return Score(
        loads=tuple(found),
        exact=judged.value,
        native=native.value,
        drop=sign * (fp32.value - judged.value),
        noise_db=noise,
        judged_in=runtime,
        why=score.why,
    )


def _count(data: Data) -> int:
    return min(_PROBES, len(data.evaluation))
