"""Two files, one verdict. What `vnnify gate` does around it stands in test_commands.py."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from bench.errors import UsageError
from bench.render import FORMATS, render
from bench.runtimes import RUNTIMES, Session, Settings
from bench.store import dump, load
from quantize import gating
from quantize.gating import GateReport, gate_document, run_gate
from quantize.job import DataSpec, GateJob, Limits
from tests import classifier, tiny
from tests.timing import Stopwatch


class Silent:
    def __init__(self) -> None:
        self.stages: list[str] = []

    def begin(self, name: str) -> None:
        self.stages.append(name)

    def step(self, done: int, total: int) -> None: ...

    def say(self, text: str) -> None: ...


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    classifier.network(folder / "a.onnx")
    classifier.network(folder / "same.onnx")
    classifier.network(folder / "bad.onnx", fault=1000.0)
    classifier.samples(folder / "d.npz", 400)
    return folder


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    made = Stopwatch()
    monkeypatch.setattr(gating, "measure", made)
    return made


@pytest.fixture
def job(shelf: Path, stopwatch: Stopwatch) -> GateJob:
    return GateJob(
        fp32=shelf / "a.onnx",
        int8=shelf / "same.onnx",
        data=DataSpec(str(shelf / "d.npz")),
        limits=Limits(max_drop="1pt"),
        min_speedup=None,
        runtime="onnxruntime",
        native=False,
        threads=1,
        command="vnnify gate",
    )


def test_an_equal_model_passes(job: GateJob, tmp_path: Path) -> None:
    heard = Silent()
    report = run_gate(job, tmp_path, heard)
    assert (report.verdict.outcome, report.exit_code) == ("pass", 0)
    assert heard.stages == ["read", "baseline", "verify"]
    assert [e.metric for e in report.evaluations] == ["top1", "top1"]
    assert load(GateReport, dump(report), "r") == report


@pytest.mark.parametrize(
    ("other", "limit", "policy", "code"),
    [
        ("bad.onnx", None, "fail", 3),
        ("bad.onnx", None, "pass", 3),
        ("same.onnx", 50, "fail", 4),
        ("same.onnx", 50, "warn", 0),
        ("same.onnx", 50, "pass", 0),
    ],
)
def test_the_exit_code_follows_verdict_and_policy(
    job: GateJob, shelf: Path, tmp_path: Path, other: str, limit: int | None, policy: Any, code: int
) -> None:
    changed = replace(
        job,
        int8=shelf / other,
        data=replace(job.data, limit=limit),
        limits=replace(job.limits, inconclusive=policy),
    )
    report = run_gate(changed, tmp_path, Silent())
    assert report.exit_code == code
    assert report.verdict.n == (limit or 400)


@pytest.mark.parametrize(
    ("speedup", "least", "slow"), [(2.0, 1.5, False), (2.0, 2.5, True), (0.5, 1.0, True)]
)
def test_speed_is_refused_by_the_lower_end(
    job: GateJob, stopwatch: Stopwatch, tmp_path: Path, speedup: float, least: float, *, slow: bool
) -> None:
    stopwatch.speedup = speedup
    heard = Silent()
    report = run_gate(replace(job, min_speedup=least), tmp_path, heard)
    assert heard.stages[-1] == "benchmark"
    assert report.too_slow == slow
    assert report.exit_code == (3 if slow else 0)
    shown = gate_document(report)
    assert shown.verdict.outcome == ("refuse" if slow else "pass")
    assert shown.verdict.headline.startswith("Too slow: ") == slow
    assert [(c.name, c.outcome) for c in shown.checks] == [
        ("accuracy", "pass"),
        ("speed", "fail" if slow else "pass"),
    ]


def test_an_uncertain_speed_up_is_none(job: GateJob, tmp_path: Path) -> None:
    report = run_gate(replace(job, min_speedup=1.5), tmp_path, Silent())
    assert report.speed is not None
    wide = replace(report, speed=replace(report.speed, ratio=2.0, low=1.4, high=3.0))
    assert wide.too_slow
    one_round = replace(report, speed=replace(report.speed, low=None, high=None))
    assert one_round.too_slow
    for form in FORMATS:
        assert "None" not in render(gate_document(one_round), form)


@pytest.mark.parametrize("form", FORMATS)
def test_a_refusal_renders_in_every_format(
    job: GateJob, shelf: Path, tmp_path: Path, form: str
) -> None:
    report = run_gate(replace(job, int8=shelf / "bad.onnx"), tmp_path, Silent())
    text = render(gate_document(report), form)
    assert "above the limit" in text
    assert "<script" not in text


def test_an_unbounded_metric_is_not_shown_in_percent(
    job: GateJob, shelf: Path, tmp_path: Path
) -> None:
    x, _ = classifier.images(60)
    labels = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, labels=labels)
    changed = replace(
        job, data=DataSpec(str(tmp_path / "d.npz")), limits=Limits(metric="mae", max_drop="5%")
    )
    report = run_gate(changed, tmp_path, Silent())
    assert report.exit_code == 0
    drop = gate_document(report).verdict.figures[0]
    assert (drop.value, drop.note) == ("0", "limit 5%")


# --- which arithmetic ---


@dataclass
class Recorder:
    """A runtime that notes how it is asked to open a file."""

    name: str
    asked: list[Settings]

    def version(self) -> str:
        return "1"

    def open(self, path: Path, settings: Settings) -> Session:
        self.asked.append(settings)
        return RUNTIMES["onnxruntime"].open(path, replace(settings, exact=False))


@pytest.mark.parametrize(
    ("runtime", "canary", "native", "exact"),
    [
        ("onnxruntime", "saturating", False, True),
        ("onnxruntime", "saturating", True, False),
        ("onnxruntime", "exact", False, True),
        ("openvino", "saturating", False, False),
        ("openvino", "exact", False, True),
        ("openvino", "exact", True, False),
    ],
)
def test_int8_is_judged_exactly_wherever_the_runtime_can(
    job: GateJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runtime: str,
    canary: str,
    *,
    native: bool,
    exact: bool,
) -> None:
    recorder = Recorder(runtime, [])
    monkeypatch.setattr(gating, "find_runtime", lambda _: recorder)
    monkeypatch.setattr(gating, "canary", lambda _: canary)
    report = run_gate(replace(job, runtime=runtime, native=native), tmp_path, Silent())
    assert [s.exact for s in recorder.asked] == [False, exact]
    assert [e.arithmetic for e in report.evaluations] == ["native", "exact" if exact else "native"]


# --- what cannot be compared ---


def identity(path: Path, given: str, returned: str) -> Path:
    nodes = [helper.make_node("Flatten", [given], [returned])]
    x: tiny.Port = (given, TensorProto.FLOAT, ["n", 1, 8, 8])
    return tiny.save(path, nodes, [x], [(returned, TensorProto.FLOAT, ["n", 64])])


@pytest.mark.parametrize(
    ("names", "says"), [(("image", "logits"), "takes"), (("x", "scores"), "returns")]
)
def test_models_of_other_tensors_are_a_usage_error(
    job: GateJob, tmp_path: Path, names: tuple[str, str], says: str
) -> None:
    other = identity(tmp_path / "m.onnx", *names)
    heard = Silent()
    with pytest.raises(UsageError, match=says):
        run_gate(replace(job, int8=other), tmp_path, heard)
    assert heard.stages == []


def test_states_are_carried_in_both_models(job: GateJob, tmp_path: Path) -> None:
    # s_out = s + x, so the state is a running sum.
    nodes = [
        helper.make_node("Add", ["s", "x"], ["s_out"]),
        helper.make_node("Identity", ["s_out"], ["y"]),
    ]
    x: list[tiny.Port] = [(n, TensorProto.FLOAT, [1, 1]) for n in ("x", "s")]
    y: list[tiny.Port] = [(n, TensorProto.FLOAT, [1, 1]) for n in ("y", "s_out")]
    for name in ("a.onnx", "b.onnx"):
        tiny.save(tmp_path / name, nodes, x, y)
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def data():\n"
        "    for i in range(6):\n"
        "        yield {'x': np.ones((1, 1), 'f4')}, float(i + 1)\n"
        "def far(outputs, labels):\n"
        "    return [abs(float(outputs['y'][0, 0]) - labels[0])]\n"
        "far.higher_is_better = False\n"
    )
    changed = replace(
        job,
        fp32=tmp_path / "a.onnx",
        int8=tmp_path / "b.onnx",
        data=DataSpec(f"{tmp_path}/mine.py:data", states={"s_out": "s"}),
        limits=Limits(metric=f"{tmp_path}/mine.py:far", max_drop="0.1abs"),
    )
    report = run_gate(changed, tmp_path, Silent())
    assert report.evaluations[0].scores == report.evaluations[1].scores == (0.0,) * 6
    assert report.exit_code == 0
