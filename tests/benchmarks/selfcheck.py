"""Do we measure what others measure? `make bench-selfcheck`, on an otherwise idle machine.

The same model with the same settings is timed by `bench.latency`, by OpenVINO's benchmark_app and
by a loop around ONNX Runtime that knows nothing of vnnify. They take turns in fresh processes, so
that a drift of the machine meets all of them; medians have to agree within 2 %. Then the same
comparison is repeated, and its intervals have to overlap in 9 of 10 neighbouring pairs.

Exit status: 0 agreed, 3 not, 4 the machine is too noisy to tell.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.compare import CONFIDENCE, compare
from bench.distributions import student_quantile
from bench.latency import Variant, measure
from bench.models import Feeds, read_model, synthetic_feeds

LIMIT = 0.02
PAIRS, OVERLAPPING = 10, 9

APP = "from openvino.tools.benchmark.main import main; main()"
# Told nothing of vnnify: model, seconds and threads come in, a median in ns comes out.
LOOP = """
import sys, time, statistics
import numpy as np, onnxruntime as ort
path, inputs, seconds, threads = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
options = ort.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
feeds = dict(np.load(inputs))
end = time.perf_counter() + min(seconds, 1.0)
while time.perf_counter() < end:
    session.run(None, feeds)
taken, end = [], time.perf_counter() + seconds
while time.perf_counter() < end:
    start = time.perf_counter_ns()
    session.run(None, feeds)
    taken.append(time.perf_counter_ns() - start)
print(statistics.median(taken))
"""


def main() -> int:
    """Run every check and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8, help="processes of each kind")
    parser.add_argument("--seconds", type=float, default=2.0, help="sampling time of one process")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vnnify-selfcheck-") as name:
        folder = Path(name)
        model = convolutions(folder / "model.onnx")
        feeds = synthetic_feeds(read_model(model), batch=1, seed=0)
        np.savez(folder / "inputs.npz", **feeds[0])
        ours = _ours(model, feeds, options.threads, options.seconds)
        app = _benchmark_app(model, folder, options.threads, options.seconds)
        loop = _loop(model, folder, options.threads, options.seconds)
        outcomes = [
            agree("benchmark_app, OpenVINO", lambda: ours("openvino"), app, options.rounds),
            agree("bare loop, ONNX Runtime", lambda: ours("onnxruntime"), loop, options.rounds),
            repeat(model, feeds, options.threads),
        ]
    return max(outcomes, key=(0, 4, 3).index)


def agree(what: str, ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> int:
    """Take turns (ABBA), and compare medians: exit status of the outcome."""
    logs = []
    for number in range(rounds):
        if number % 2:
            b = theirs()
            a = ours()
        else:
            a = ours()
            b = theirs()
        logs.append(math.log(a / b))
    middle, half = ratio_of(logs)
    low, high = math.exp(middle - half) - 1, math.exp(middle + half) - 1
    outcome = judge(low, high)
    _say(
        f"{what}: we say {math.exp(middle) - 1:+.1%} ({low:+.1%} to {high:+.1%}), "
        f"{rounds} rounds: {('agrees', '', '', 'DIFFERS', 'too noisy to tell')[outcome]}"
    )
    return outcome


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def ratio_of(logs: Sequence[float]) -> tuple[float, float]:
    """Mean of log ratios, and half the width of its 95 % interval."""
    half = (
        student_quantile(0.5 + CONFIDENCE / 2, len(logs) - 1)
        * statistics.stdev(logs)
        / math.sqrt(len(logs))
    )
    return statistics.median(logs), half


def judge(low: float, high: float) -> int:
    """0 where the interval lies within the limit, 3 where it lies outside, 4 between."""
    if low >= -LIMIT and high <= LIMIT:
        return 0
    return 3 if low > LIMIT or high < -LIMIT else 4


def repeat(model: Path, feeds: list[Feeds], threads: int) -> int:
    """Compare two runtimes again and again: do neighbouring intervals overlap?"""
    variants = [
        Variant(name, read_model(model), name, "cpu", threads, 1)
        for name in ("onnxruntime", "openvino")
    ]
    found = []
    for number in range(PAIRS + 1):
        a, b = measure(variants, feeds, rounds=5, seconds_per_round=0.5, seed=number)
        found.append(compare(a, b))
    overlap = sum(
        x.low is not None and y.low is not None and x.high is not None and y.high is not None
        and x.low <= y.high and y.low <= x.high
        for x, y in pairwise(found)
    )  # fmt: skip
    ratios = ", ".join(f"{c.ratio:.3f}" for c in found)
    _say(f"intervals of repeated runs overlap in {overlap} of {PAIRS} pairs; ratios {ratios}")
    return 0 if overlap >= OVERLAPPING else 3


def convolutions(path: Path) -> Path:
    """A few convolutions, about half a billion operations: milliseconds, so that digits count."""
    rng = np.random.default_rng(0)
    nodes, constants, last = [], [], "x"
    for layer, (inputs, outputs) in enumerate([(3, 64), (64, 64), (64, 64), (64, 64)]):
        weight = rng.standard_normal((outputs, inputs, 3, 3)).astype(np.float32) * 0.05
        constants.append(numpy_helper.from_array(weight, f"w{layer}"))
        nodes.append(
            helper.make_node("Conv", [last, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1])
        )
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        last = f"r{layer}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["y"]))
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 48, 48])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64, 1, 1])],
        constants,
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def _ours(model: Path, feeds: list[Feeds], threads: int, seconds: float) -> Callable[[str], float]:
    def run(runtime: str) -> float:
        # benchmark_app fills its inputs once, and leaves outputs where they are.
        copies = runtime != "openvino"
        variant = Variant(runtime, read_model(model), runtime, "cpu", threads, 1, copies=copies)
        (found,) = measure([variant], feeds, rounds=1, seconds_per_round=seconds)
        return found.median_ms

    return run


def _benchmark_app(model: Path, folder: Path, threads: int, seconds: float) -> Callable[[], float]:
    """OpenVINO's own tool, one synchronous request with the properties that we set."""
    config = folder / "config.json"
    properties = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    config.write_text(json.dumps({"CPU": properties}))
    report = folder / "benchmark_report.json"

    def run() -> float:
        command = [
            *(sys.executable, "-c", APP, "-m", str(model)),
            *("-d", "CPU", "-api", "sync", "-hint", "none", "-t", str(max(1, round(seconds)))),
            *("-load_config", str(config), "-report_type", "no_counters"),
            *("-json_stats", "-report_folder", str(folder)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"benchmark_app failed:\n{done.stdout}{done.stderr}")
        found = json.loads(report.read_text())["execution_results"]
        return float(found["latency (ms)"])

    return run


def _loop(model: Path, folder: Path, threads: int, seconds: float) -> Callable[[], float]:
    def run() -> float:
        arguments = [str(model), str(folder / "inputs.npz"), str(seconds), str(threads)]
        done = subprocess.run(
            [sys.executable, "-c", LOOP, *arguments], capture_output=True, text=True, check=True
        )
        return float(done.stdout) / 1e6

    return run


if __name__ == "__main__":
    sys.exit(main())
