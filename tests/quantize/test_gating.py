"""Two files, one verdict. What `vnnify gate` does around it stands in test_commands.py."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bench.errors import InputError, UnsupportedError, UsageError
from bench.render import FORMATS, render
from bench.runtimes import RUNTIMES, Session, Settings
from bench.store import dump, load
from quantize import gating, served
from quantize.checks import compression_check, slices_check, speed_check
from quantize.gate_report import GateReport, gate_document
from quantize.gating import lock_of, run_gate
from quantize.job import DataSpec, GateBounds, GateJob, Limits, flips_file
from quantize.lock import lock_checks, write_lock
from tests import classifier, tiny
from tests.fakes import Silent
from tests.timing import Stopwatch


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
        bounds=GateBounds(),
        runtimes=("onnxruntime",),
        native=False,
        threads=1,
        timed=False,
        lock=None,
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
    report = run_gate(replace(job, bounds=GateBounds(least)), tmp_path, heard)
    assert heard.stages[-1] == "benchmark"
    assert report.exit_code == (3 if slow else 0)
    shown = gate_document(report)
    assert shown.verdict.outcome == ("refuse" if slow else "pass")
    assert ("times as fast" in shown.verdict.headline) == slow
    assert [(c.name, c.outcome) for c in shown.checks] == [
        ("accuracy", "pass"),
        ("threads", "pass"),
        ("speed", "fail" if slow else "pass"),
        ("finite", "pass"),
        ("deterministic", "pass"),
        ("plausible", "pass"),
    ]
    assert "Latency" in [s.title for s in shown.sections]


@pytest.mark.parametrize(
    ("held_up", "least", "policy", "code"),
    [
        (0.8, 1.5, "fail", 4),
        (0.8, 2.5, "fail", 4),
        (0.8, 1.5, "warn", 0),
        # So far from the limit that others cannot have made the difference.
        (0.8, 0.3, "fail", 0),
        (0.8, 11.0, "warn", 3),
        # A little is on any machine.
        (0.25, 1.5, "fail", 0),
        (0.25, 2.5, "fail", 3),
    ],
)
def test_a_busy_machine_tells_no_speed_near_the_limit(
    job: GateJob, stopwatch: Stopwatch, tmp_path: Path, held_up: float, least: float,
    policy: Any, code: int
) -> None:  # fmt: skip
    stopwatch.speedup, stopwatch.held_up = 2.0, held_up
    asked = replace(job, bounds=GateBounds(least), limits=replace(job.limits, inconclusive=policy))
    report = run_gate(asked, tmp_path, Silent())
    (check,) = (c for c in report.checks if c.name == "speed")
    unclear = held_up > 0.5 and 0.4 < least < 10
    assert report.exit_code == code
    assert (check.outcome == "inconclusive") == unclear
    assert ("others had the CPU in 80% of the time in which FP32" in check.message) == unclear
    assert check.message.startswith("INT8 is 2.00 times as fast (")


def test_an_uncertain_speed_up_is_none(job: GateJob, stopwatch: Stopwatch, tmp_path: Path) -> None:
    report = run_gate(replace(job, timed=True), tmp_path, Silent())
    speed = report.judged[0].speed
    assert speed is not None
    assert speed_check(replace(speed, ratio=2.0, low=1.4, high=3.0), 1.5).outcome == "fail"
    nearly = speed_check(replace(speed, ratio=1.3, low=1.1996, high=1.4), 1.2)
    assert nearly.message.startswith("INT8 is 1.30 times as fast (1.1996 to 1.40), at least 1.2 a")
    alone = replace(speed, low=None, high=None)
    assert speed_check(alone, 1.5).outcome == "fail"
    one_round = replace(report, judged=(replace(report.judged[0], speed=alone),))
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
    assert text.count("Two runs on one sample give") == 1


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
    assert (drop.value, drop.note[:6]) == ("0", "limit ")


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
    for module in (gating, served):
        monkeypatch.setattr(module, "find_runtime", lambda _: recorder)
        monkeypatch.setattr(module, "canary", lambda _: canary)
    monkeypatch.setattr(gating, "granted_threads", lambda _: 2)
    report = run_gate(replace(job, runtimes=(runtime,), native=native), tmp_path, Silent())
    opened = [(s.exact, s.threads) for s in recorder.asked]
    # FP32 and INT8 to be scored, and INT8 as it would be served wherever that is something else.
    other = [(False, 1)] if exact and canary != "exact" else []
    assert opened == [(False, 1), (exact, 1), *other, (False, 2)]
    assert list(report.judged[0].served.noise_db) == [1, 2]
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


# --- several runtimes, sizes, a baseline ---


def test_each_runtime_has_a_verdict_and_a_latency(
    job: GateJob, stopwatch: Stopwatch, tmp_path: Path
) -> None:
    both = replace(job, runtimes=("onnxruntime", "openvino"), bounds=GateBounds(1.5))
    stopwatch.speedup = 2.0
    report = run_gate(both, tmp_path, Silent())
    assert [j.runtime for j in report.judged] == ["onnxruntime", "openvino"]
    assert [x.variant.name for x in report.latencies] == [
        "FP32 onnxruntime",
        "INT8 onnxruntime",
        "FP32 openvino",
        "INT8 openvino",
    ]
    assert [c.name for c in report.checks][:6] == [
        "accuracy in onnxruntime",
        "threads in onnxruntime",
        "speed in onnxruntime",
        "accuracy in openvino",
        "threads in openvino",
        "speed in openvino",
    ]
    text = render(gate_document(report), "text")
    assert "FP32 openvino" in text


def test_sizes_are_gated(job: GateJob, tmp_path: Path) -> None:
    size = job.int8.stat().st_size
    asked = (GateBounds(max_bytes=size), GateBounds(max_bytes=size - 1))
    asked += (GateBounds(min_compression=1.0), GateBounds(min_compression=1.01))
    codes = [run_gate(replace(job, bounds=b), tmp_path, Silent()).exit_code for b in asked]
    assert codes == [0, 3, 0, 3]


def test_calibration_samples_must_not_judge(job: GateJob, shelf: Path, tmp_path: Path) -> None:
    classifier.samples(tmp_path / "other.npz", 20, seed=9)
    apart = replace(job, data=replace(job.data, calibration=str(tmp_path / "other.npz")))
    assert "calibration apart" in [c.name for c in run_gate(apart, tmp_path, Silent()).checks]
    same = replace(job, data=replace(job.data, calibration=job.data.source))
    with pytest.raises(InputError, match="400 of 400 evaluation samples"):
        run_gate(same, tmp_path, Silent())


def test_a_model_that_rolls_dice_is_refused(job: GateJob, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("RandomUniformLike", ["x"], ["r"]),
        helper.make_node("Flatten", ["r"], ["logits"]),
    ]
    x: tiny.Port = ("x", TensorProto.FLOAT, ["n", 1, 8, 8])
    y: tiny.Port = ("logits", TensorProto.FLOAT, ["n", 64])
    random = tiny.save(tmp_path / "r.onnx", nodes, [x], [y])
    steady = tiny.save(
        tmp_path / "s.onnx", [helper.make_node("Flatten", ["x"], ["logits"])], [x], [y]
    )
    for fp32, int8 in ((random, steady), (steady, random)):
        with pytest.raises(UnsupportedError, match=r"/r.onnx: two runs .* different outputs"):
            run_gate(replace(job, fp32=fp32, int8=int8), tmp_path, Silent())


def test_a_model_is_held_to_its_committed_baseline(
    job: GateJob, shelf: Path, stopwatch: Stopwatch, tmp_path: Path
) -> None:
    stopwatch.speedup = 2.0
    timed = replace(job, timed=True)
    good = run_gate(timed, tmp_path, Silent())
    file = tmp_path / "vnnify.lock.json"
    write_lock(file, lock_of(good))
    assert file.read_text().count("\n") > 20
    again = run_gate(replace(timed, lock=file), tmp_path, Silent())
    named = {c.name: c.outcome for c in again.checks if c.name.startswith("baseline")}
    assert named == {
        "baseline: size": "pass",
        "baseline: coverage": "pass",
        "baseline: accuracy in onnxruntime": "pass",
        "baseline: speed in onnxruntime": "pass",
    }
    stopwatch.speedup = 1.2
    slower = run_gate(replace(timed, lock=file), tmp_path, Silent())
    failed = [c.name for c in slower.checks if c.outcome == "fail"]
    assert (failed, slower.exit_code) == (["baseline: speed in onnxruntime"], 3)
    stopwatch.held_up = 0.6
    busy = run_gate(replace(timed, lock=file), tmp_path, Silent())
    (open_,) = (c for c in busy.checks if c.outcome == "inconclusive")
    assert (open_.name, busy.exit_code) == ("baseline: speed in onnxruntime", 4)
    assert "1.20x as fast as FP32, 2.00x before and then surely above 2.00x, but" in open_.message
    assert open_.message.endswith("Try again where less else runs.")
    assert (lock_of(good).entries[0].disturbed, lock_of(busy).entries[0].disturbed) == (False, True)
    other = replace(timed, lock=file, data=replace(job.data, limit=300))
    with pytest.raises(UsageError, match=r"data \(SHA-256\).*--update-baseline"):
        run_gate(other, tmp_path, Silent())


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({"size_bytes": 1000}, "baseline: size"),
        ({"int8_layers": 3, "layers": 3}, "baseline: coverage"),
    ],
)
def test_what_grew_or_went_back_to_float_fails(
    job: GateJob, tmp_path: Path, changes: dict[str, int], failed: str
) -> None:
    file = tmp_path / "vnnify.lock.json"
    write_lock(file, replace(lock_of(run_gate(job, tmp_path, Silent())), **changes))
    report = run_gate(replace(job, lock=file), tmp_path, Silent())
    assert [c.name for c in report.checks if c.outcome == "fail"] == [failed]
    assert report.exit_code == 3


def test_speed_of_another_cpu_is_not_compared(job: GateJob, tmp_path: Path) -> None:
    lock = lock_of(run_gate(replace(job, timed=True), tmp_path, Silent()))
    elsewhere = replace(lock, entries=(replace(lock.entries[0], cpu="Other"),))
    checks = lock_checks(elsewhere, lock, {})
    found = {c.name: c for c in checks}["baseline: speed in onnxruntime"]
    assert found.outcome == "skipped"
    assert "Other" in found.message


# --- slices and flips ---


def lost_class(path: Path) -> Path:
    """The classifier with one class never named."""
    import onnx

    classifier.network(path)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "b3":
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[2] -= 1e6
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, "b3"))
    path.write_bytes(model.SerializeToString())
    return path


def test_a_mean_cannot_hide_a_lost_class(job: GateJob, tmp_path: Path) -> None:
    bad = lost_class(tmp_path / "bad.onnx")
    # The mean may lose half, a class may not.
    limits = Limits(max_drop="50pt", max_slice_drop="60pt")
    report = run_gate(replace(job, int8=bad, limits=limits), tmp_path, Silent())
    outcomes = {c.name: c.outcome for c in report.checks}
    assert (outcomes["accuracy"], outcomes["slices"], report.exit_code) == ("pass", "fail", 3)
    worst = report.judged[0].slices[0]
    assert (worst.name, worst.outcome, worst.candidate_value) == ("class=2", "refuse", 0.0)
    assert "class=2" in gate_document(report).verdict.headline
    told = run_gate(replace(job, int8=bad, limits=Limits(max_drop="50pt")), tmp_path, Silent())
    assert told.exit_code == 0
    assert any(x.startswith("class=2 lost") for x in gate_document(told).verdict.lines)
    for form in FORMATS:
        assert "class=2" in render(gate_document(told), form) or form == "junit"


def test_flips_are_listed_with_what_was_said(job: GateJob, tmp_path: Path) -> None:
    bad = lost_class(tmp_path / "bad.onnx")
    limits = Limits(max_drop="50pt")
    report = run_gate(replace(job, int8=bad, limits=limits, flips=True), tmp_path, Silent())
    flips = report.judged[0].flips
    assert len(flips) == report.verdict.losses + report.verdict.gains > 50
    first = flips[0]
    assert (first.label, first.before, first.drop) == ("2", "2", 1.0)
    assert first.after != "2"
    lines = flips_file(tmp_path, "onnxruntime").read_text().splitlines()
    assert lines[0] == "sample,place,sha256,label,before,after,drop"
    assert len(lines) == len(flips) + 1


def test_slices_of_the_users_own(job: GateJob, tmp_path: Path) -> None:
    file = tmp_path / "s.csv"
    lines = [f"{i},{'night' if i % 4 == 0 else 'day'},{i // 2}" for i in range(400)]
    file.write_text("sample,light,person\n" + "\n".join(lines))
    limits = Limits(max_drop="2pt", slices=file, unit="person", max_slice_drop="5pt")
    report = run_gate(replace(job, limits=limits), tmp_path, Silent())
    judged = report.judged[0]
    assert {s.column for s in judged.slices} == {"light", "class"}
    assert {s.value: s.n for s in judged.slices if s.column == "light"} == {
        "night": 100,
        "day": 200,
    }
    assert judged.verdict.n == 200
    assert report.exit_code == 0
    file.write_text("sample,light\n0,day\n")
    with pytest.raises(InputError, match="no row for sample 1 "):
        run_gate(replace(job, limits=limits), tmp_path, Silent())
    rows = [f"{i},{'rare' if i < 3 else 'day'}" for i in range(400)]
    file.write_text("sample,light\n" + "\n".join(rows))
    alone = Limits(max_drop="2pt", slices=file, max_slice_drop="9pt")
    report = run_gate(replace(job, limits=alone), tmp_path, Silent())
    told = next(c.message for c in report.checks if c.name == "slices")
    assert "fewer than five samples are not judged: 1." in told
    file.write_text("file,light\n0,day\n")
    with pytest.raises(InputError, match="expected a row of names, sample"):
        run_gate(replace(job, limits=limits), tmp_path, Silent())
    file.write_text("sample,light,light\n" + "\n".join(f"{i},a,b" for i in range(400)))
    with pytest.raises(InputError, match="names 'light' 2 times"):
        run_gate(replace(job, limits=limits), tmp_path, Silent())
    file.write_text("sample,light\n0,night\n" + "\n".join(f"{i},day" for i in range(400)))
    with pytest.raises(InputError, match="rows 2 and 3 both name sample '0'"):
        run_gate(replace(job, limits=limits), tmp_path, Silent())
    file.write_text("sample,light\n" + "\n".join(f"{i},day" for i in range(400)))
    with pytest.raises(UsageError, match=r"--unit 'person': no such column.*light"):
        run_gate(replace(job, limits=limits), tmp_path, Silent())


def test_small_slices_are_inconclusive_and_not_passed(job: GateJob, tmp_path: Path) -> None:
    limits = Limits(max_drop="5pt", max_slice_drop="1pt")
    report = run_gate(replace(job, limits=limits), tmp_path, Silent())
    found = next(c for c in report.checks if c.name == "slices")
    assert (found.outcome, report.exit_code) == ("inconclusive", 4)
    assert "samples of each would settle it" in found.message
    (judged,) = report.judged
    lost = [replace(s, outcome="inconclusive", samples_needed=None) for s in judged.slices]
    told = slices_check(lost, 0, 0.01, judged.evaluations[0])
    assert told.message.endswith(
        "They lost so much that more are unlikely to settle it; a larger limit may."
    )


# --- models that are not quite alike ---


def with_input(path: Path, shape: list[int | str], kind: int = TensorProto.FLOAT) -> Path:
    """The classifier, declared to take that."""
    import onnx

    classifier.network(path)
    model = onnx.load(path)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", kind, shape))
    path.write_bytes(model.SerializeToString())
    return path


def test_a_batch_that_one_model_fixes_holds_for_both(job: GateJob, tmp_path: Path) -> None:
    fixed = with_input(tmp_path / "fixed.onnx", [4, 1, 8, 8])
    for changed in (replace(job, int8=fixed), replace(job, fp32=fixed)):
        report = run_gate(changed, tmp_path, Silent())
        assert report.verdict.n == 400
        assert [len(e.scores) for e in report.evaluations] == [400, 400]


def test_inputs_that_no_sample_fits_are_told_before_the_work(job: GateJob, tmp_path: Path) -> None:
    wide = with_input(tmp_path / "wide.onnx", ["n", 1, 9, 9])
    with pytest.raises(UsageError, match=r"x:float32\[n,1,8,8\].*\[n,1,9,9\]: no sample fits"):
        run_gate(replace(job, int8=wide), tmp_path, Silent())


def test_what_is_sure_is_not_rounded_up_to_certain(job: GateJob, tmp_path: Path) -> None:
    limits = Limits(max_drop="5pt", confidence=0.999)
    shown = render(gate_document(run_gate(replace(job, limits=limits), tmp_path, Silent())), "html")
    assert "99.9 % sure" in shown
    assert "99.9 % one-sided" in shown


def test_a_runtime_that_opens_no_onnx_is_told_before_the_work(job: GateJob, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--runtime torch: opens .pt2.*there is onnxruntime"):
        run_gate(replace(job, runtimes=("torch",)), tmp_path, Silent())


def test_a_larger_model_is_called_larger() -> None:
    assert "2.00 times larger" in compression_check(100, 200, 2.0).message
    assert "2.00 times smaller" in compression_check(200, 100, 2.0).message
    assert compression_check(1999, 1000, 2.0).found == "1.999x"


def test_an_output_that_no_metric_looks_at_is_told(
    job: GateJob, shelf: Path, tmp_path: Path
) -> None:
    for name, sign in (("two.onnx", 1), ("broken.onnx", -1)):
        _two_heads(shelf / name, sign)
    two = replace(job, fp32=shelf / "two.onnx", int8=shelf / "broken.onnx")
    report = run_gate(two, tmp_path, Silent())
    assert report.exit_code == 0
    (note,) = report.notes
    assert note.startswith("top1 looks at one output only")
    assert "'other' -6 dB, 'logits' alike" in note
    assert note in " ".join(render(gate_document(report), "text").split())
    whole = replace(two, limits=replace(two.limits, metric="cosine"))
    assert run_gate(whole, tmp_path, Silent()).exit_code == 3


def _two_heads(path: Path, sign: float) -> None:
    classifier.network(path)
    model = onnx.load(path)
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.array([sign], np.float32), "sign")
    )
    model.graph.node.append(helper.make_node("Mul", ["features", "sign"], ["other"]))
    model.graph.output.append(
        helper.make_tensor_value_info("other", TensorProto.FLOAT, ["n", None])
    )
    onnx.save(model, path)
