"""When the benchmark that ends a run has told enough, and that it stays honest."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.ahead import Ahead
from bench.compare import CONFIDENCE, Comparison
from bench.latency import Latency, Variant
from bench.models import Model
from bench.rounds import Round
from bench.turns import turns
from quantize import timing
from quantize.job import Effort
from quantize.report import served_speed
from quantize.timing import Question, Timing, _looks, time_models
from quantize.trials import Workbench
from tests.timing import latency

FASTER = Question((1.0,))
Draw = Callable[[int], Sequence[float]]


def model(name: str) -> Model:
    return Model(path=Path(name), sha256=name, size_bytes=1000, opset=17, inputs=(), outputs=())


def timed(
    draw: Draw,
    question: Question = FASTER,
    *,
    speedup: float = 2.0,
    effort: Effort = Effort(),  # noqa: B008 - frozen
    asked: list[dict[str, Any]] | None = None,
    held_up: float = 0.0,
    ahead: Ahead | None = None,
) -> Timing:
    """A benchmark whose INT8 rounds are off by so much, as logarithms."""
    offsets = iter(draw(100))

    def measure(variants: Sequence[Variant], _: object, **options: Any) -> tuple[Latency, ...]:
        if asked is not None:
            asked.append({**options, "variants": variants})
        options["progress"](0, 1, "")
        found = []
        for v in variants:
            if not v.name.startswith("INT8"):
                found.append(latency(v, 1.0, rounds=options["rounds"], held_up=held_up))
                continue
            ms = [math.exp(next(offsets)) / speedup for _ in range(options["rounds"])]
            rounds = tuple(r for x in ms for r in latency(v, x, rounds=1).rounds)
            found.append(replace(latency(v, 1.0), rounds=rounds))
        return tuple(found)

    rest: Any = ((), None, (), (), ("onnxruntime",), 1, Path())
    bench = Workbench(model("fp32"), *rest)
    before, timing.measure = timing.measure, measure  # type: ignore[assignment]
    try:
        runtimes = (["onnxruntime"], ["onnxruntime"])
        step = lambda *_: None  # noqa: E731
        return time_models(bench, model("int8"), runtimes, effort, question, step, ahead)
    finally:
        timing.measure = before


def waves(size: float) -> Draw:
    return lambda count: [size * (-1) ** i for i in range(count)]


def rounds_of(found: Timing) -> int:
    (count,) = {len(x.rounds) for x in found.latencies}
    return count


def test_a_narrow_interval_on_one_side_ends_it_after_three_rounds() -> None:
    asked: list[dict[str, Any]] = []
    assert rounds_of(timed(waves(0.005), asked=asked)) == 3
    assert [(a["rounds"], a["seconds_per_round"]) for a in asked] == [(3, 0.3)]
    assert asked[0]["haste"].enough >= 64
    # How long a start takes is measured.
    assert asked[0]["haste"].abreast == 1


def test_a_wide_interval_gets_the_rounds_that_were_asked_for() -> None:
    asked: list[dict[str, Any]] = []
    assert rounds_of(timed(waves(0.05), asked=asked)) == 5
    assert [a["rounds"] for a in asked] == [3, 2]
    # The turns of the second look are not those of the first.
    assert [a["seed"] for a in asked] == [0, 1]
    assert rounds_of(timed(waves(0.05), effort=Effort(rounds=8))) == 8


def test_to_be_brief_a_wide_interval_on_one_side_will_do() -> None:
    assert rounds_of(timed(waves(0.05), Question((1.0,), brief=True))) == 3
    assert rounds_of(timed(waves(0.5), Question((1.0,), brief=True))) > 3


@pytest.mark.parametrize("brief", [False, True])
def test_what_could_be_on_either_side_gets_twice_as_many(*, brief: bool) -> None:
    question = Question((1.0,), brief)
    assert rounds_of(timed(waves(0.05), question, speedup=1.001)) == 10
    assert rounds_of(timed(waves(0.05), question, speedup=0.8)) == (3 if brief else 5)


def quick(limit: float = 1.0) -> Question:
    """That of a replay whose recipe tells which FP32 is the fastest."""
    return Question((limit,), brief=True, quick=True)


def test_where_the_fastest_fp32_is_known_short_rounds_tell_the_side() -> None:
    asked: list[dict[str, Any]] = []
    found = timed(waves(0.05), quick(), asked=asked)
    assert [(a["rounds"], a["seconds_per_round"], len(a["variants"])) for a in asked] == [
        (3, 0.1, 2)
    ]
    assert asked[0]["haste"].abreast > 1
    assert asked[0]["haste"].enough >= 64
    assert asked[0]["haste"].least_s < 0.1
    assert found.control is None
    assert [x.variant.name for x in found.latencies] == ["FP32 onnxruntime", "INT8 onnxruntime"]
    # A slower one is found out just so.
    found = timed(waves(0.05), quick(), speedup=0.8)
    assert rounds_of(found) == 3
    assert found.comparisons[0].high is not None
    assert found.comparisons[0].high < 1


def test_fp32_runs_beside_itself_once_the_side_is_open() -> None:
    asked: list[dict[str, Any]] = []
    found = timed(waves(0.05), quick(), speedup=1.001, asked=asked)
    assert rounds_of(found) == 10
    assert [(a["rounds"], len(a["variants"])) for a in asked] == [(3, 2), (2, 2), (5, 3)]
    assert found.control is not None
    assert found.control.candidate == "FP32 onnxruntime (control)"
    assert len(found.latencies) == 2


def test_what_was_open_before_is_looked_at_once() -> None:
    asked: list[dict[str, Any]] = []
    once = replace(quick(), once=True)
    found = timed(waves(0.05), once, speedup=1.001, asked=asked)
    assert [(a["rounds"], len(a["variants"])) for a in asked] == [(3, 2)]
    # The one look has the whole error, and a narrower interval for it.
    (low, high), several = (
        (c.low, c.high) for c in (f.comparisons[0] for f in (found, timed(waves(0.05), quick())))
    )
    assert low is not None
    assert high is not None
    assert several[0] is not None
    assert several[1] is not None
    assert high / low < several[1] / several[0]
    assert rounds_of(timed(waves(0.05), once, effort=Effort(rounds=2))) == 2


def test_more_rounds_are_not_asked_for_where_others_make_the_interval_wide() -> None:
    found = timed(waves(0.005), Question((1.5,)), held_up=0.8)
    (speed,) = found.comparisons
    assert rounds_of(found) == 3
    assert speed.low is not None
    assert speed.low < 0.5
    assert rounds_of(timed(waves(0.05), Question((1.5, 2.01)), held_up=0.8)) == 10


def test_every_limit_counts() -> None:
    assert rounds_of(timed(waves(0.05), Question((1.0, 2.01)))) == 10
    assert rounds_of(timed(waves(0.05), Question(()), speedup=1.0)) == 5


def test_one_round_is_one_round() -> None:
    found = timed(waves(0.05), effort=Effort(rounds=1), speedup=1.0)
    assert rounds_of(found) == 1
    assert found.comparisons[0].low is None


@pytest.mark.parametrize("rounds", [1, 2, 3, 4, 5, 20])
def test_errors_of_all_looks_add_up_to_that_of_one_interval(rounds: int) -> None:
    looks = _looks(rounds)
    assert sum(error for _, error in looks) == pytest.approx(1 - CONFIDENCE)
    counts = [n for n, _ in looks]
    assert counts == sorted(set(counts))
    assert rounds in counts


@pytest.mark.parametrize(("question", "ends"), [(FASTER, True), (quick(), False)])
def test_nothing_starts_beside_rounds_that_do_not_take_it(
    question: Question, *, ends: bool
) -> None:
    ahead = Ahead()
    timed(waves(0.05), question, ahead=ahead)
    assert ahead._over.is_set() == ends


@pytest.mark.parametrize("question", [FASTER, Question((1.0,), brief=True), quick()])
@pytest.mark.parametrize("noise", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("speedup", [1.0, 1.03])
def test_intervals_hold_the_true_ratio_whatever_ended_them(
    *, speedup: float, noise: float, question: Question
) -> None:
    """Where stopping is most tempting (a true ratio at the limit) as where it does not matter."""
    rng = np.random.default_rng(7)
    trials, misses = 250, 0
    for _ in range(trials):
        found = timed(lambda n: rng.normal(0, noise, n).tolist(), question, speedup=speedup)
        (speed,) = found.comparisons
        assert speed.low is not None
        assert speed.high is not None
        misses += not speed.low <= speedup <= speed.high
    # Binomial: 5 % of 250 are 12.5; more than 22 come in less than 1 % of such runs.
    assert misses <= 22


# --- nothing is faster than itself ---

Weather = Callable[[np.random.Generator], Callable[[int], float]]


def bimodal(rng: np.random.Generator) -> Callable[[int], float]:
    """Half of all processes lie badly in memory."""
    return lambda _: 1.1 if rng.random() < 0.5 else 1.0


def heavy(rng: np.random.Generator) -> Callable[[int], float]:
    """Some are disturbed, a few of them badly."""
    return lambda _: 1 + 0.1 * float(rng.pareto(1.5)) if rng.random() < 0.3 else 1.0


def drifting(rng: np.random.Generator) -> Callable[[int], float]:
    """The machine becomes slower by 1 % with each process."""
    return lambda process: 1 + 0.01 * process


def stepping(rng: np.random.Generator) -> Callable[[int], float]:
    """The clock falls by a quarter now and then, and comes back."""
    slow = np.cumsum(rng.random(200) < 0.1) % 2
    return lambda process: 4 / 3 if slow[process] else 1.0


def beside_itself(weather: Weather, rng: np.random.Generator) -> Comparison:
    """The same model as FP32 and as INT8 in two runtimes, all equally fast; what is reported."""
    factor, process = weather(rng), itertools.count()

    def measure(variants: Sequence[Variant], _: object, **options: Any) -> tuple[Latency, ...]:
        found: list[list[Round]] = [[] for _ in variants]
        for order in turns(len(variants), options["rounds"], options["seed"]):
            for i in order:
                ms = factor(next(process)) * math.exp(rng.normal(0, 0.01))
                found[i] += latency(variants[i], ms, rounds=1).rounds
        return tuple(
            replace(latency(v, 1.0), rounds=tuple(r)) for v, r in zip(variants, found, strict=True)
        )

    rest: Any = ((), None, (), (), ("onnxruntime",), 1, Path())
    both = ["onnxruntime", "openvino"]
    before, timing.measure = timing.measure, measure  # type: ignore[assignment]
    try:
        bench, step = Workbench(model("fp32"), *rest), lambda *_: None
        told = time_models(bench, model("int8"), (both, both), Effort(), FASTER, step)
    finally:
        timing.measure = before
    int8 = [x for x in told.latencies if x.variant.name.startswith("INT8")]
    served = min(int8, key=lambda x: x.median_ms).variant.runtime
    return served_speed(told.comparisons, served)


@pytest.mark.parametrize("weather", [bimodal, heavy, drifting, stepping])
def test_a_model_beside_itself_is_seldom_surely_faster(weather: Weather) -> None:
    rng = np.random.default_rng(11)
    found = [beside_itself(weather, rng) for _ in range(100)]
    # Binomial: 5 % of 100 are 5; more than 11 come in less than 1 % of such runs.
    assert sum(not f.holds_one for f in found) <= 11
