"""Evaluations in ONNX Runtime on tiny models, and in a fake where order and threads matter."""

import itertools
import threading
import time
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bench.errors import InputError, UsageError
from bench.models import Model, TensorSpec, read_model
from bench.runtimes.onnxruntime import OnnxRuntime
from bench.runtimes.seam import Settings
from quantize.data import read_samples
from quantize.evaluate import Execution, evaluate, first_scores, opened_beside
from quantize.gate import judge
from quantize.metrics import METRICS, Metric, resolve_metric
from quantize.outputs import OutputStore
from quantize.tolerance import Tolerance


@dataclass
class FakeSession:
    compute: object
    delay: float = 0.0
    device: str = "cpu"
    running: int = 0
    most: int = 0
    closed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, feeds):
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        # Later samples finish first.
        time.sleep(self.delay * (5 - float(feeds["x"].ravel()[0]) % 5))
        with self.lock:
            self.running -= 1
        return self.compute(feeds)

    def close(self):
        self.closed = True


class FakeRuntime:
    name = "fake"

    def __init__(self, compute, delay=0.0):
        self.session = FakeSession(compute, delay)
        self.settings = None

    def version(self):
        return "7"

    def open(self, path, settings):
        self.settings = settings
        return self.session


def spec(name, *shape, dtype="float32"):
    return TensorSpec(name, dtype, shape)


@pytest.fixture
def model(tmp_path):
    inputs, outputs = (spec("x", "N", 1), spec("s", 1, 1)), (spec("y", "N", 1), spec("t", 1, 1))
    return Model(tmp_path / "m.onnx", inputs, outputs, 21, "m" * 64, 1)


def samples_of(tmp_path, labels=None, *, inputs=None, name="data.npz", **arrays):
    if labels is not None:
        arrays["labels"] = np.asarray(labels)
    np.savez(tmp_path / name, **arrays)
    inputs = inputs or (spec("x", "N", 1),)
    return read_samples(str(tmp_path / name), inputs, scratch=tmp_path / "scratch")


def numbered_samples(tmp_path, count):
    x = np.arange(count, dtype=np.float32)[:, None]
    return samples_of(tmp_path, np.zeros((count, 1), np.float32), x=x)


def run_with(compute, *, threads=1, delay=0.0, states=None, exact=False):
    runtime = FakeRuntime(compute, delay)
    return Execution(runtime, Settings(threads=threads, exact=exact), states or {})


def echo(feeds):
    return {"y": feeds["x"]}


# --- order, threads, stopping ---


@pytest.mark.parametrize("threads", [1, 4])
def test_scores_come_in_the_order_of_the_samples(tmp_path, model, threads):
    execution = run_with(echo, threads=threads, delay=0.0004)
    result = evaluate(model, numbered_samples(tmp_path, 23), METRICS["mae"], execution)
    assert result.scores == tuple(float(i) for i in range(23))
    assert result.value == 11.0
    session = execution.runtime.session
    assert session.closed
    assert session.most <= threads
    assert (session.most > 1) == (threads > 1)


def test_independent_samples_share_the_threads(tmp_path, model):
    execution = run_with(echo, threads=4, exact=True)
    evaluate(model, numbered_samples(tmp_path, 3), METRICS["mae"], execution)
    assert execution.runtime.settings == Settings(threads=1, exact=True, streams=4)


def test_the_record_says_how_it_was_made(tmp_path, model):
    samples = numbered_samples(tmp_path, 3)
    result = evaluate(model, samples, METRICS["mae"], run_with(echo, exact=True))
    assert (result.runtime, result.runtime_version) == ("fake", "7")
    assert result.arithmetic == "exact"
    assert result.model_sha256 == model.sha256
    assert result.samples_sha256 == samples.digest
    assert result.outputs == ("y", "t")
    assert (result.metric, result.higher_is_better, result.bounded) == ("mae", False, False)
    assert result.seconds > 0
    assert result.nonfinite == 0


def test_watching_sees_every_score_and_can_stop(tmp_path, model):
    seen = []

    def watch(scores, done, total):
        seen.append((list(scores), done, total))
        return done == 3

    execution = run_with(echo, threads=2)
    samples = numbered_samples(tmp_path, 20)
    result = evaluate(model, samples, METRICS["mae"], execution, watch=watch)
    assert seen == [([0.0], 1, 20), ([0.0, 1.0], 2, 20), ([0.0, 1.0, 2.0], 3, 20)]
    assert result.scores == (0.0, 1.0, 2.0)
    assert execution.runtime.session.closed
    full = evaluate(model, samples, METRICS["mae"], run_with(echo))
    assert first_scores(full, 3).scores == result.scores
    assert judge(first_scores(full, 3), result, Tolerance(0.1, "abs")).n == 3


def test_runs_in_flight_are_bounded_by_what_they_hold(tmp_path, model):
    started, most = [], []

    def compute(feeds):
        started.append(1)
        return {"y": np.zeros((1, 1 << 18), np.float32)}

    def watch(scores, done, total):
        most.append(len(started) - done)
        return False

    result = evaluate(
        model,
        numbered_samples(tmp_path, 90),
        Metric("mine", lambda *_: [0.0]),
        run_with(compute, threads=2),
        watch=watch,
    )
    assert len(result.scores) == len(started) == 90
    # Four chunks wait, one is being scored, and each holds at most four runs of 1 MiB.
    assert max(most) <= 20


def test_small_runs_follow_each_other_without_a_score_in_between(tmp_path, model):
    happened = []

    def compute(feeds):
        happened.append("run")
        return echo(feeds)

    def watch(scores, done, total):
        happened.append("score")
        return False

    evaluate(model, numbered_samples(tmp_path, 400), METRICS["mae"], run_with(compute), watch=watch)
    runs = [len(list(g)) for key, g in itertools.groupby(happened) if key == "score"]
    assert sum(runs) == 400
    assert max(runs) > 20


def test_samples_are_read_by_the_threads_that_run_them(tmp_path, model):
    samples = numbered_samples(tmp_path, 20)
    readers = set()

    def load(i):
        readers.add(threading.current_thread())
        return samples._load(i)

    watched = replace(samples, _load=load)
    result = evaluate(model, watched, METRICS["mae"], run_with(echo, threads=2, delay=0.0004))
    assert result.scores == tuple(float(i) for i in range(20))
    assert threading.main_thread() not in readers
    assert len(readers) == 2


def test_a_failing_run_is_numbered_and_the_session_closed(tmp_path, model):
    def compute(feeds):
        if feeds["x"][0, 0] == 7:
            raise InputError("cannot run the model on this sample")
        return echo(feeds)

    execution = run_with(compute, threads=3)
    with pytest.raises(InputError, match=r"^sample 7: cannot run"):
        evaluate(model, numbered_samples(tmp_path, 30), METRICS["mae"], execution)
    assert execution.runtime.session.closed


def test_a_refused_label_is_numbered(tmp_path, model):
    samples = samples_of(tmp_path, [0, 1, 2], x=np.zeros((3, 1), np.float32))
    execution = run_with(lambda f: {"y": np.zeros((1, 2), np.float32)})
    with pytest.raises(InputError, match=r"^sample 2: label 2 is out of range.*1-based"):
        evaluate(model, samples, METRICS["top1"], execution)


def test_a_nan_label_is_no_score(tmp_path, model):
    samples = samples_of(tmp_path, [0.0, np.nan], x=np.zeros((2, 1), np.float32))
    with pytest.raises(InputError, match=r"^sample 1: .*nan"):
        evaluate(model, samples, METRICS["mse"], run_with(echo))


# --- states ---


def stateful_samples(tmp_path):
    return samples_of(
        tmp_path,
        np.zeros((4, 1), np.float32),
        inputs=(spec("x", "N", 1), spec("s", 1, 1)),
        x=np.ones((4, 1), np.float32),
        s=np.array([[100.0], [-1], [-1], [-1]], np.float32),
    )


def add_state(feeds):
    total = feeds["x"] + feeds["s"]
    return {"y": total, "t": total}


def test_states_are_carried_from_the_first_samples_own(tmp_path, model):
    execution = run_with(add_state, threads=4, states={"t": "s"})
    result = evaluate(model, stateful_samples(tmp_path), METRICS["mae"], execution)
    assert result.scores == (101.0, 102.0, 103.0, 104.0)
    assert execution.runtime.settings.threads == 4
    assert execution.runtime.session.most == 1


def test_without_states_each_sample_keeps_its_own(tmp_path, model):
    result = evaluate(model, stateful_samples(tmp_path), METRICS["mae"], run_with(add_state))
    assert result.scores == (101.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("states", "words"), [({"q": "s"}, "no output 'q'.*t, y"), ({"t": "q"}, "no input 'q'.*s, x")]
)
def test_unknown_states_are_refused(tmp_path, model, states, words):
    with pytest.raises(UsageError, match=words):
        evaluate(
            model, stateful_samples(tmp_path), METRICS["mae"], run_with(add_state, states=states)
        )


# --- non-finite outputs ---


def breaks_at(broken, value, *, metric="mae"):
    def compute(feeds):
        y = np.zeros((1, 3), np.float32)
        if feeds["x"][0, 0] in broken:
            y[0, 1] = value
        return {"y": y}

    return compute


@pytest.mark.parametrize(("name", "worst"), [("top1", 0.0), ("mse", 3.4028234663852886e38)])
def test_nonfinite_samples_are_counted_named_and_score_worst(tmp_path, model, name, worst):
    labels = np.zeros(5, np.int64) if name == "top1" else np.zeros((5, 3), np.float32)
    samples = samples_of(tmp_path, labels, x=np.arange(5, dtype=np.float32)[:, None])
    result = evaluate(model, samples, METRICS[name], run_with(breaks_at((2, 4), np.nan)))
    assert result.nonfinite == 2
    assert result.first_nonfinite == "sample 2, output 'y'"
    assert result.scores[2] == result.scores[4] == worst
    assert np.isfinite(result.value)


def test_masked_logits_are_not_broken_when_fp32_has_them_too(tmp_path, model):
    samples = samples_of(tmp_path, np.zeros(3, np.int64), x=np.zeros((3, 1), np.float32))
    masked = run_with(breaks_at((0,), -np.inf))
    with OutputStore() as store:
        baseline = evaluate(model, samples, METRICS["top1"], masked, keep=store)
        assert baseline.nonfinite == 0
        same = evaluate(model, samples, METRICS["top1"], masked, reference=store)
        assert same.nonfinite == 0
    with OutputStore() as store:
        evaluate(model, samples, METRICS["top1"], run_with(breaks_at((), 0)), keep=store)
        assert evaluate(model, samples, METRICS["top1"], masked, reference=store).nonfinite == 3


def test_a_plugin_is_not_asked_about_nonfinite_outputs(tmp_path, model):
    def refuses(outputs, labels, reference, output):
        assert np.isfinite(outputs["y"]).all()
        return [0.5]

    metric = Metric("mine", refuses, bounded=None)
    result = evaluate(
        model, numbered_samples(tmp_path, 3), metric, run_with(breaks_at((1,), np.nan))
    )
    assert result.scores == (0.5, 0.0, 0.5)


# --- references and batches ---


def test_without_labels_a_model_is_compared_with_the_kept_outputs(tmp_path, model):
    samples = samples_of(tmp_path, x=np.arange(1, 4, dtype=np.float32)[:, None])
    metric = resolve_metric(None, labelled=samples.labelled)
    with OutputStore(budget_bytes=0) as store:
        baseline = evaluate(model, samples, metric, run_with(echo), keep=store)
        flipped = run_with(lambda f: {"y": np.where(f["x"] == 2, -f["x"], f["x"])})
        candidate = evaluate(model, samples, metric, flipped, reference=store)
    assert baseline.scores == (1.0, 1.0, 1.0)
    assert candidate.scores == (1.0, 0.0, 1.0)
    assert not candidate.binary


def test_a_reference_of_other_samples_is_refused(tmp_path, model):
    with OutputStore() as store:
        evaluate(model, numbered_samples(tmp_path, 3), METRICS["mae"], run_with(echo), keep=store)
        other = samples_of(
            tmp_path, np.zeros(3), name="other.npz", x=np.full((3, 1), 9, np.float32)
        )
        with pytest.raises(InputError, match=r"^sample 0: .*same order"):
            evaluate(model, other, METRICS["mae"], run_with(echo), reference=store)


@pytest.mark.parametrize(("name", "binary"), [("top1", True), ("mae", False)])
def test_binary_and_bounded_are_told(tmp_path, model, name, binary):
    samples = samples_of(tmp_path, np.zeros(2, np.int64), x=np.zeros((2, 1), np.float32))
    logits = np.array([[1, 0]], np.float32)
    compute = (lambda f: {"y": logits}) if name == "top1" else echo
    result = evaluate(model, samples, METRICS[name], run_with(compute))
    assert (result.binary, result.bounded) == (binary, binary)
    assert result.chance == (0.5 if binary else None)


def test_a_plugins_bounds_are_read_off_its_scores(tmp_path, model):
    metric = Metric("mine", lambda o, *_: [float(o["y"].ravel()[0])], bounded=None)
    inside = evaluate(model, numbered_samples(tmp_path, 2), metric, run_with(echo))
    assert (inside.bounded, inside.binary) == (True, True)
    outside = evaluate(model, numbered_samples(tmp_path, 3), metric, run_with(echo))
    assert (outside.bounded, outside.binary) == (False, False)


def test_a_run_of_several_samples_gives_as_many_scores(tmp_path):
    inputs = (spec("x", 3, 2),)
    model = Model(tmp_path / "m.onnx", inputs, (spec("y", 3, 2),), 21, "m" * 64, 1)
    file = tmp_path / "batches.py"
    file.write_text(
        "import numpy as np\n"
        "def batches():\n"
        "    for start in (0, 1):\n"
        "        x = np.eye(2, dtype=np.float32)[[0, 1, start]]\n"
        "        yield {'x': x}, np.array([0, 1, 1])\n"
    )
    samples = read_samples(f"{file}:batches", inputs, scratch=tmp_path / "scratch")
    result = evaluate(model, samples, METRICS["top1"], run_with(echo))
    assert result.scores == (1.0, 1.0, 0.0, 1.0, 1.0, 1.0)


# --- real runtime ---


@pytest.fixture
def classifier(tmp_path):
    def build(weights):
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
            [onnx.numpy_helper.from_array(np.asarray(weights, np.float32), "w")],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.save(proto, tmp_path / "c.onnx")
        return read_model(tmp_path / "c.onnx")

    return build


# --- opened beside other work ---


def test_a_model_that_is_being_opened_is_judged_and_not_opened_again(tmp_path, model):
    asked = run_with(echo, threads=3)
    opened = []
    asked.runtime.open = lambda *how: opened.append(how) or FakeRuntime.open(asked.runtime, *how)
    with opened_beside(model, asked) as beside:
        execution = replace(asked, opened=beside)
        evaluate(model, numbered_samples(tmp_path, 5), METRICS["mae"], execution)
        assert asked.runtime.session.closed
    # As it would have been opened: one thread for each of so many samples.
    assert opened == [(model.path, Settings(threads=1, streams=3))]
    evaluate(model, numbered_samples(tmp_path, 5), METRICS["mae"], asked)
    assert len(opened) == 2


def test_a_model_that_nobody_judged_is_closed(model):
    execution = run_with(echo)
    with opened_beside(model, execution):
        pass
    assert execution.runtime.session.closed


def test_why_a_model_could_not_be_opened_is_told_to_who_judges_it(tmp_path, model):
    def refuse(*_):
        raise InputError("m.onnx: refused")

    execution = run_with(echo)
    execution.runtime.open = refuse
    with opened_beside(model, execution):
        pass
    samples = numbered_samples(tmp_path, 5)
    with opened_beside(model, execution) as beside, pytest.raises(InputError, match="refused"):
        evaluate(model, samples, METRICS["mae"], replace(execution, opened=beside))


def test_two_models_are_evaluated_and_judged(tmp_path, classifier):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(4, 3))
    x = rng.normal(size=(600, 4)).astype(np.float32)
    labels = (x @ weights).argmax(axis=1)
    samples = samples_of(tmp_path, labels, inputs=(spec("x", "N", 4),), x=x)
    execution = Execution(OnnxRuntime(), Settings(threads=2))
    exact, rounded, broken = (
        evaluate(classifier(w), samples, METRICS["top1"], execution)
        for w in (weights, np.round(weights, 4), -weights)
    )
    assert exact.value == 1.0
    assert judge(exact, rounded, Tolerance(1, "pt")).outcome == "pass"
    assert judge(exact, broken, Tolerance(1, "pt")).outcome == "refuse"
