"""Scores of FP32 and of every INT8 file of one case, on the same samples."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from bench.errors import VnnifyError
from bench.machine import available_threads, canary
from bench.models import Feeds, Model, read_model
from bench.runtimes import RUNTIMES, Settings
from quantize.evaluate import Evaluation, Execution, evaluate
from quantize.inspection.observing import observe
from quantize.inspection.products import lifted, products
from quantize.inspection.saturation import risk_of
from quantize.outputs import OutputStore, noise_shares, to_db
from quantize.pairing import pair
from tests.benchmarks.cases import Case, Data, read_case

_PROBES = 8
# Whose difference is what weights that cannot saturate cost.
_NARROW, _WIDE = "native", "native vnni"
# Of each end of an interval, so that both hold with 95 %.
_CONFIDENCE = 0.975


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
        `fp32`: its score; `metric`, `percent`; `scores`: by rival, a `Score` as a dict;
        `narrowing`: what `native` loses to `native vnni`, where both are there, and what saturates.
    """
    case = Case(**{**job["case"], "path": Path(job["case"]["path"])})
    scratch = Path(job["folder"])
    data = read_case(case, scratch, job["calibrate_on"], job["evaluate_on"])
    with OutputStore(folder=scratch) as kept:
        fp32 = evaluate(data.model, data.evaluation, data.metric, _how(case), keep=kept)
        scores, judged = {}, {}
        for rival, path in job["files"].items():
            model = as_model(Path(path), data.model)
            score, judged[rival] = _score(model, case, data, fp32, kept)
            scores[rival] = asdict(score)
    percent = fp32.bounded or fp32.binary
    facts = {"fp32": fp32.value, "metric": fp32.metric.rpartition(":")[2], "percent": percent}
    facts |= {"samples": len(data.evaluation), "scores": scores}
    narrow, wide = judged.get(_NARROW), judged.get(_WIDE)
    if narrow is not None and wide is not None:
        found = pair(wide, narrow, _CONFIDENCE, None)
        facts["narrowing"] = {"lost": found.drop, "low": found.low, "high": found.high} | {
            name: _saturating(Path(job["files"][name]), data, scratch) for name in (_NARROW, _WIDE)
        }
    return facts


def _saturating(path: Path, data: Data, scratch: Path) -> dict[str, int]:
    """Channels that can saturate without VNNI, and outputs that do on some evaluation samples."""
    graph = lifted(ir.load(path))
    risks = {p.name: r.channels for p in products(graph) if (r := risk_of(p)) is not None}
    chosen = [p for p in products(graph) if risks.get(p.name)]
    feeds = [data.evaluation[i].feeds for i in range(_count(data))]
    seen = observe(graph, chosen, feeds, threads=available_threads(), scratch=scratch).values()
    outputs = {"outputs": sum(s.looked_at for s in seen), "wrong": sum(s.wrong for s in seen)}
    return {"channels": sum(risks.values()), **outputs}


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


def _score(
    model: Model, case: Case, data: Data, fp32: Evaluation, kept: OutputStore
) -> tuple[Score, Evaluation | None]:
    """Its score, and the evaluation behind it; None where no runtime runs the file."""
    probes = [data.evaluation[i].feeds for i in range(_count(data))]
    found, why = _served(model, probes)
    if not found:
        return Score(why=why), None
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
    score = Score(
        loads=tuple(found),
        exact=judged.value,
        native=native.value,
        drop=sign * (fp32.value - judged.value),
        noise_db=noise,
        judged_in=runtime,
        why=why,
    )
    return score, judged


def _served(model: Model, probes: Sequence[Feeds]) -> tuple[dict[str, list[Feeds]], str]:
    """Outputs by runtime that runs the file, and what the first one said that does not."""
    found: dict[str, list[Feeds]] = {}
    why = ""
    for runtime in ("onnxruntime", "openvino"):
        if runtime == "onnxruntime" and model.path.suffix != ".onnx":
            continue
        try:
            session = RUNTIMES[runtime].open(model.path, Settings(threads=1))
            found[runtime] = [session.run(p) for p in probes]
            session.close()
        except VnnifyError as e:
            why = why or f"{runtime}: {e}"[:300]
    return found, why


def _count(data: Data) -> int:
    return min(_PROBES, len(data.evaluation))
