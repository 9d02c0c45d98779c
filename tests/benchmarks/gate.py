"""`make bench-gate`: how often the gate errs, and what an evaluation costs besides the model.

    python -m tests.benchmarks.gate docs/gate.md MODEL.onnx DATA.npz

writes the tables of docs/gate.md anew. Error rates of 0/1 scores are sums over all outcomes, so
they are exact; those of the bootstrap are simulated with a fixed seed. Times are ratios to a loop
that does nothing but run the model in ONNX Runtime.
"""

import datetime
import math
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from bench.machine import describe
from bench.models import Array, Model, read_model
from bench.runtimes import Settings, find_runtime
from quantize.data import Samples, read_samples
from quantize.evaluate import Evaluation, Execution, evaluate
from quantize.evidence import Evidence
from quantize.intervals import (
    clopper_pearson_lower,
    clopper_pearson_upper,
    is_surely_better,
    score_quantile,
    tango_z,
    zero_loss_samples,
)
from quantize.judging import Judging
from quantize.metric import Metric
from quantize.metrics import METRICS
from quantize.outputs import OutputStore
from quantize.pairing import whole_bounds
from quantize.resampling import mean_bounds
from quantize.shares import Shares
from quantize.tolerance import Tolerance
from tests.scored import evaluation

LIMITS = (0.01, 0.0)
SIZES = (10, 100, 200, 300, 500, 1000, 2000, 5000, 10_000)
DISCORDANCES = (0.01, 0.02, 0.03, 0.05, 0.10, 0.20, 0.50)
BEGIN, END = "<!-- bench-gate:begin -->", "<!-- bench-gate:end -->"
_CONFIDENCE = 0.95
Draw = Callable[[np.random.Generator, int], tuple[Array, Array]]
_UNLIKELY = 1e-10
# Of a simulated run: the share of samples that FP32 has right, and candidates, as many as a search
# judges at most.
_RIGHT, _CANDIDATES = 0.9, 10
_TIMED = _TRIALS = 1000
_FEW_TRIALS = 200


# --- error rates ---


def false_passes(n: int, limit: float, discordance: float, drop: float | None = None) -> float:
    """Exact probability of a pass, summed over all outcomes.

    Args:
        n: Paired samples.
        limit: Tolerated drop.
        discordance: Share of samples that the models score otherwise, at least `drop`.
        drop: The true one; None for the limit itself, where a pass is an error.
    """
    z = score_quantile(_CONFIDENCE)
    enough = limit > 0 and n >= zero_loss_samples(limit, _CONFIDENCE)

    def passes(losses: int, gains: int) -> bool:
        if not enough and not is_surely_better(losses, gains, _CONFIDENCE):
            return False
        exact = gains or clopper_pearson_upper(losses, n, _CONFIDENCE) < limit
        return bool(exact) and tango_z(losses, gains, n, limit) < -z

    return _probability(n, discordance, limit if drop is None else drop, passes)


def false_refusals(n: int, limit: float, discordance: float) -> float:
    """Exact probability of a refusal where the true drop is the limit."""
    z = score_quantile(_CONFIDENCE)

    def kept(losses: int, gains: int) -> bool:
        exact = not gains and clopper_pearson_lower(losses, n, _CONFIDENCE) <= limit
        sure = is_surely_better(gains, losses, _CONFIDENCE)
        return exact or not sure or tango_z(losses, gains, n, limit) <= z

    return max(0.0, 1 - _probability(n, discordance, limit, kept))


def _probability(
    n: int, discordance: float, drop: float, holds: Callable[[int, int], bool]
) -> float:
    """Of outcomes (losses, gains) that hold, where fewer losses hold with any that do."""
    loss_rate, gain_rate = (discordance + drop) / 2, max(0.0, (discordance - drop) / 2)
    total, most = 0.0, -1
    gains_p = _binomial(n, gain_rate)
    for gains in map(int, np.flatnonzero(gains_p > _UNLIKELY)):
        # More gains allow more losses, so the search goes on from where it was.
        while most + 1 <= n - gains and holds(most + 1, gains):
            most += 1
        if most >= 0:
            losses_p = _binomial(n - gains, loss_rate / (1 - gain_rate))
            total += float(gains_p[gains] * losses_p[: most + 1].sum())
    return total


def _binomial(n: int, rate: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    if not 0 < rate < 1:
        return np.eye(1, n + 1, n if rate >= 1 else 0)[0]
    k = np.arange(n + 1)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    logs = factorials[n] - factorials[k] - factorials[n - k]
    return np.exp(logs + k * math.log(rate) + (n - k) * math.log1p(-rate))


def bootstrap_errors(n: int, trials: int, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Share of trials in which the true mean lies beyond the upper and the lower bound.

    Args:
        n: Samples of one trial.
        trials: How many.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    draws: dict[str, tuple[Callable[..., object], float]] = {
        "normal": (rng.standard_normal, 0.0),
        "skewed (exponential)": (rng.standard_exponential, 1.0),
        "mostly zero (1 in 10)": (
            lambda size: rng.standard_exponential(size) * (rng.random(size) < 0.1),
            0.1,
        ),
        "mostly zero (1 in 20)": (
            lambda size: rng.standard_exponential(size) * (rng.random(size) < 0.05),
            0.05,
        ),
    }
    found = {}
    for name, (draw, truth) in draws.items():
        bounds = [
            mean_bounds(np.asarray(draw(size=n)), _CONFIDENCE, resamples=1000)
            for _ in range(trials)
        ]
        high = sum(b[1] < truth for b in bounds) / trials
        low = sum(b[0] > truth for b in bounds) / trials
        found[name] = (high, low)
    return found


def corpus_errors(n: int, trials: int, seed: int = 0) -> dict[str, tuple[float, float]]:
    """The same for the drop of metrics of the whole data set.

    The truth is that of 2,000,000 samples; that of a tenth of them was off by a tenth of what
    the bounds allow for.

    F1: FP32 has nine in ten of three uneven classes right, and INT8 turns one answer in ten
    into the commonest class. Words: one text in five has errors, and INT8 adds some to one in ten.
    The rare ones do so once in 200 samples, so that many trials see no sample change.
    """
    found = {}
    cases: tuple[tuple[str, Draw, Metric], ...] = (
        ("F1 of 3 classes", partial(_classes, 0.1), METRICS["f1"]),
        ("F1 of 3 classes, rare changes", partial(_classes, 0.005), METRICS["f1"]),
        ("word error rate", partial(_words, 0.1), METRICS["wer"]),
        ("word error rate, rare changes", partial(_words, 0.005), METRICS["wer"]),
    )
    units = list(np.arange(n)[:, None])
    for name, draw, metric in cases:
        rng = np.random.default_rng(seed)
        sign = 1.0 if metric.higher_is_better else -1.0
        first, second = (_evidence(metric, rows) for rows in draw(rng, 2_000_000))
        truth = sign * (first.value() - second.value())
        high = low = 0
        for _ in range(trials):
            both = [_evidence(metric, rows) for rows in draw(rng, n)]
            scale = 1.0 if metric.bounded else both[0].value()
            bounds, _ = whole_bounds(
                both[0], both[1], units, _CONFIDENCE, scale, sign, resamples=500
            )
            high += bounds.high < truth
            low += bounds.low > truth
        found[name] = (high / trials, low / trials)
    return found


def run_errors(
    n: int, alike: float, trials: int, *, shared: bool = True, binary: bool = True, seed: int = 0
) -> float:
    """Share of runs that pass a model, where all of ten candidates are at the limit of 1 pt.

    Each candidate answers 4 in 100 samples otherwise than FP32, or is off by 5 pt in scores that
    are not 0 or 1.

    Args:
        n: Samples of a run.
        alike: Correlation of what decides which samples two candidates change: 0 for none.
        trials: Runs.
        shared: Whether candidates share the error, as those of a search do.
        binary: Whether scores are 0 and 1.
        seed: Of the draws.
    """
    rng, passed = np.random.default_rng(seed), 0
    for _ in range(trials):
        before = rng.random(n) < _RIGHT if binary else rng.standard_normal(n)
        judging = searching(_scores(before), Shares() if shared else None)
        common = rng.standard_normal(n)
        for candidate in range(_CANDIDATES):
            own = rng.standard_normal(n)
            push = math.sqrt(alike) * common + math.sqrt(1 - alike) * own
            after = _answers(before, push) if binary else before - 0.01 - 0.05 * push
            found = _scores(after, str(candidate))
            if judging.told(found)[1].outcome == "pass":
                passed += 1
                break
    return passed / trials


def _answers(before: Array, push: Array) -> Array:
    """Whether INT8 is right: of 1,000 samples FP32 alone is on 25, INT8 alone on 15."""
    quantile = NormalDist().inv_cdf
    lost, gained = (quantile(1 - r) for r in (0.025 / _RIGHT, 0.015 / (1 - _RIGHT)))
    return np.where(before, push <= lost, push > gained)


def _scores(scores: Array, model: str = "fp32") -> Evaluation:
    return evaluation(scores, model_sha256=model, binary=scores.dtype == bool, bounded=True)


def searching(baseline: Evaluation, shares: Shares | None) -> Judging:
    """What judges the candidates of a run that keeps nothing, against these scores of FP32."""
    rest: Any = {"samples": None, "metric": None, "reference": None, "watch": None}
    return Judging(
        **rest,
        baseline=baseline,
        tolerance=Tolerance(1.0, "pt"),
        confidence=_CONFIDENCE,
        threads=1,
        states={},
        shares=shares,
    )


def _evidence(metric: Metric, rows: Array) -> Evidence:
    assert metric.corpus is not None
    return Evidence(rows, metric.corpus, metric.name, metric.spoil, additive=metric.additive)


def _classes(changed: float, rng: np.random.Generator, n: int) -> tuple[Array, Array]:
    """Rows of `macro_f1` of FP32 and INT8."""
    truth = rng.choice(3, n, p=(0.7, 0.2, 0.1))
    fp32 = np.where(rng.random(n) < 0.9, truth, rng.integers(0, 3, n))
    int8 = np.where(rng.random(n) < changed, 0, fp32)
    once = np.eye(3)
    first, second = (
        np.stack([once[x] * once[truth], once[x], once[truth]], axis=1) for x in (fp32, int8)
    )
    return first, second


def _words(changed: float, rng: np.random.Generator, n: int) -> tuple[Array, Array]:
    """Rows of `error_rate` of FP32 and INT8."""
    length = rng.integers(3, 15, n)
    wrong = rng.geometric(0.4, n) * (rng.random(n) < 0.2)
    more = wrong + rng.geometric(0.4, n) * (rng.random(n) < changed)
    return np.stack([wrong, length], axis=1), np.stack([more, length], axis=1)


# --- cost ---


def throughput(model: Model, samples: Samples, rounds: int = 5) -> tuple[float, float]:
    """Samples per second of CPU time of a bare loop and of an evaluation.

    Medians of rounds that alternate. CPU time, because it also counts what an evaluation does
    while the model runs in another thread, and what else runs on the machine changes it less.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model.path), options)
    feeds = [s.feeds for s in samples]
    execution = Execution(find_runtime("onnxruntime"), Settings(threads=1))
    bare, ours = [], []
    for _ in range(rounds):
        begun = time.process_time()
        for one in feeds:
            session.run(None, one)
        bare.append(time.process_time() - begun)
        begun = time.process_time()
        evaluate(model, samples, METRICS["top1"], execution)
        ours.append(time.process_time() - begun)
    count = len(feeds)
    return count / statistics.median(bare), count / statistics.median(ours)


def memory(model: Model, samples: Samples, times: Sequence[int]) -> list[tuple[int, float]]:
    """Peak memory of this process, MiB, after evaluations of more and more samples."""
    execution = Execution(find_runtime("onnxruntime"), Settings(threads=1))
    found = []
    for factor in times:
        many = samples.subset(list(range(len(samples))) * factor)
        with OutputStore() as kept:
            evaluate(model, many, METRICS["top1"], execution, keep=kept)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found.append((len(many), peak))
    return found


# --- the document ---


def tables(model: Model, samples: Samples) -> str:
    """The measured part of docs/gate.md."""
    machine = describe()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    # Before the simulations, which take more memory than any evaluation: peaks never fall.
    costs = _costs(model, samples.subset(list(range(min(len(samples), _TIMED)))))
    lines = [f"Made by `make bench-gate` on {machine.cpu}, {today}.", ""]
    for limit in LIMITS:
        at = f"the true drop is the limit of {limit * 100:g} pt"
        lines += _rates(f"False passes, %: {at}", limit, false_passes)
        lines += _rates(f"False refusals, %: {at}", limit, false_refusals)
    lines += [f"Bootstrap, %; {_TRIALS:,} trials each:", ""]
    lines += ["| Scores | n | false passes | false refusals |", "| --- | ---: | ---: | ---: |"]
    rates = [(100, bootstrap_errors(100, _TRIALS)), (200, corpus_errors(200, _TRIALS))]
    for n, found in rates:
        for name, (high, low) in found.items():
            lines.append(f"| {name} | {n:,} | {high * 100:.1f} | {low * 100:.1f} |")
    return "\n".join([*lines, "", *_runs(), "", *costs])


def _runs() -> list[str]:
    """What a search does with ten candidates that are all at the limit."""
    lines = [
        "Runs that pass one of ten candidates, %: the true drop of each is the limit of 1 pt.",
        "",
        "| Ten candidates, judged | Scores | n | runs | not alike | alike by 0.5 | by 0.9 |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    cases = (("0 or 1", True, 1000, _TRIALS), ("other", False, 100, _FEW_TRIALS))
    for judged, shared in (("each by itself", False), ("as `quantize` does", True)):
        for scores, binary, n, trials in cases:
            rates = [
                run_errors(n, alike, trials, shared=shared, binary=binary)
                for alike in (0.0, 0.5, 0.9)
            ]
            cells = " | ".join(f"{r * 100:.1f}" for r in rates)
            lines.append(f"| {judged} | {scores} | {n:,} | {trials:,} | {cells} |")
    return lines


def _costs(model: Model, samples: Samples) -> list[str]:
    peaks = memory(model, samples, (1, 4, 16))
    bare, ours = throughput(model, samples)
    lines = [f"Evaluation of {model.path.name} on {len(samples):,} samples, 1 thread:", ""]
    lines += ["| | samples/s of CPU time | of the bare loop |", "| --- | ---: | ---: |"]
    lines.append(f"| bare ONNX Runtime loop | {bare:,.0f} | 100 % |")
    lines.append(f"| `evaluate` | {ours:,.0f} | {ours / bare:.1%} |".replace("%", " %"))
    lines += ["", "| Samples | peak memory, MiB |", "| ---: | ---: |"]
    return lines + [f"| {n:,} | {peak:.0f} |" for n, peak in peaks]


def _rates(title: str, limit: float, rate: Callable[[int, float, float], float]) -> list[str]:
    head = " | ".join(f"{d:.0%}".replace("%", " %") for d in DISCORDANCES)
    lines = [f"{title}.", "", f"| n | {head} |", "| ---: |" + " ---: |" * len(DISCORDANCES)]
    for n in SIZES:
        cells = " | ".join(f"{rate(n, limit, d) * 100:.2f}" for d in DISCORDANCES)
        lines.append(f"| {n:,} | {cells} |")
    return [*lines, ""]


def main(arguments: Sequence[str]) -> None:
    """Write the tables between the marks of a document."""
    document, model_file, data = Path(arguments[0]), Path(arguments[1]), arguments[2]
    model = read_model(model_file)
    with tempfile.TemporaryDirectory() as scratch:
        samples = read_samples(data, model.inputs, scratch=Path(scratch))
        made = tables(model, samples)
    text = document.read_text("utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    document.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}", "utf-8")
    sys.stdout.write(made + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
