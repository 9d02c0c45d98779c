"""`nncf.quantize_with_accuracy_control` on one case, timed from the start of its process.

    process ─▶ import NNCF ─▶ read ─▶ its one call ─▶ saved file

Nothing of this repository is imported before the clock can leave it out.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from bench.stages import started_ns

_ALL = 10**9


class _Clock:
    """Seconds since this process began, but for what is left out."""

    def __init__(self) -> None:
        self.began_ns = started_ns()

    @property
    def seconds(self) -> float:
        return (perf_counter_ns() - self.began_ns) / 1e9

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        start = perf_counter_ns()
        try:
            yield
        finally:
            self.began_ns += perf_counter_ns() - start


def work(job: dict[str, Any]) -> dict[str, Any]:
    """The child process."""
    clock = _Clock()
    import nncf
    import openvino

    with clock.stopped():
        from tests.benchmarks.cases import Case, read_case

    case = Case(**{**job["case"], "path": Path(job["case"]["path"])})
    if case.states:
        raise RuntimeError("carries state from sample to sample, which its dataset cannot")
    folder = Path(job["folder"])
    data = read_case(case, folder, job["calibrate_on"], _ALL)
    if data.metric.gathers:
        raise RuntimeError(f"metric {data.metric.name} is no mean of scores of samples")
    with clock.stopped():
        limit, score, seen = _validation(data, folder, job["max_drop"])
    calibration = nncf.Dataset(data.calibration, lambda s: s.feeds)
    validation = nncf.Dataset([(i, s.feeds, s.label) for i, s in enumerate(data.evaluation)])
    model = openvino.Core().read_model(str(case.path))
    before_s = clock.seconds
    made = nncf.quantize_with_accuracy_control(
        model,
        calibration,
        validation,
        score,
        max_drop=limit,
        drop_type=nncf.DropType.ABSOLUTE,
        subset_size=len(data.calibration),
    )
    seconds = clock.seconds - before_s
    out = folder / "int8.xml"
    openvino.save_model(made, str(out), compress_to_fp16=False)
    evaluations = seen["samples"] / len(data.evaluation)
    costs = {"seconds": seconds, "search_s": seconds, "evaluations": evaluations}
    return {"path": str(out), "saved_s": clock.seconds, **costs}


def _validation(data: Any, folder: Path, max_drop: str) -> tuple[float, Any, dict[str, int]]:
    """The limit as a number, NNCF's validation function, and what counts its samples."""
    from bench.machine import available_threads
    from bench.runtimes import RUNTIMES, Settings
    from quantize.evaluate import Execution, evaluate
    from quantize.metrics import run_labels
    from quantize.outputs import OutputStore
    from quantize.tolerance import parse_tolerance

    how = Execution(RUNTIMES["onnxruntime"], Settings(threads=available_threads()))
    kept = OutputStore(folder=folder)
    fp32 = evaluate(data.model, data.evaluation, data.metric, how, keep=kept)
    limit = parse_tolerance(max_drop).absolute(fp32.value, bounded=fp32.bounded or fp32.binary)
    sign = 1.0 if data.metric.higher_is_better else -1.0
    seen = {"samples": 0}

    def score(compiled: Any, samples: Iterator[Any]) -> tuple[float, list[float]]:
        scores: list[float] = []
        for index, feeds, label in samples:
            answer = compiled(feeds)
            outputs = {o.get_any_name(): answer[o] for o in compiled.outputs}
            seen["samples"] += 1
            scores += data.metric.score(outputs, run_labels(label, 1), kept[index])
        return sign * sum(scores) / len(scores), [sign * s for s in scores]

    return limit, score, seen
