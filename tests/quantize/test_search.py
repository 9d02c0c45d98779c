"""The search in a world where the noise and time of every layer are known."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.models import Model
from quantize import making, ranking
from quantize import search as searching
from quantize.anchors import Anchor, Mode
from quantize.calibrate import Calibration
from quantize.candidates import SHOULD_PAY, Aim, Found, Judged, plans, told
from quantize.evaluate import Evaluation
from quantize.gains import NO_GAIN, Expected
from quantize.gate import Outcome, Verdict
from quantize.outputs import to_db
from quantize.quantizers import QuantizedLayer, QuantizedModel
from quantize.recipe import Recipe
from quantize.search import MAX_EVALUATIONS, search
from quantize.trials import Trial, Workbench
from tests.scored import evaluation

LIMIT = 1.0
EVALUATION = evaluation([1.0], seconds=0.0)


def anchor(name: str, op: str = "Conv") -> Anchor:
    return Anchor(name, op, f"{name}_in", f"{name}_out", f"{name}_out", 0, 9)


def model(name: str) -> Model:
    return Model(path=Path(name), sha256=name, size_bytes=1000, opset=17, inputs=(), outputs=())


def verdict(outcome: Outcome, drop: float, limit: float = LIMIT, unsure: float = 0.0) -> Verdict:
    return Verdict(
        outcome=outcome,
        drop=drop,
        low=drop - unsure,
        high=drop + unsure,
        limit=limit,
        confidence=0.95,
        method="",
        n=1,
        baseline_value=1.0,
        candidate_value=1.0 - drop,
        losses=0,
        gains=0,
        samples_needed=None,
        reason="",
        higher_is_better=True,
        suspicious=(),
    )


@dataclass
class World:
    """Layers with a known cost each.

    Attributes:
        drops: What each layer in INT8 costs in accuracy.
        ops: Of the layers; Conv where missing.
        fp32_ms: Time of FP32.
        gain_ms: What each static layer saves; a dynamic one saves half.
        slower: Layers that take so much longer instead.
        fused_ms: What pairs that stand where OpenVINO fuses them save besides.
        worse: Factor on drops by target.
        noise_db: Of every candidate.
        fading_db: What each candidate has less of it than the one made before.
        few: Whether samples are too few, so that nothing passes.
        last: Whether they are too few for another one, should the next one fail.
        unsure: How far the interval of a drop reaches on either side.
        pays: Layers whose kernel gains nothing.
        impossible: Plans that leave nothing in INT8.
        groups: Layers that go to float together; each alone where none are given.
        noises: Of layers whose noise is not what they cost.
        expects: Modes that should be fastest, where they differ; None where nothing is expected.
        gains: Whether anything should be faster than FP32.
        learned: Factor on drops of what is learned layer by layer; None where nothing is learned.
        sizes: Bytes of a layer by its mode; all files are of one size where there are none.
        stopped: Whether somebody asked for the end.
    """

    drops: dict[str, float]
    ops: dict[str, str] = field(default_factory=dict)
    fp32_ms: float = 100.0
    gain_ms: float = 1.0
    slower: frozenset[str] = frozenset()
    fused_ms: float = 0.0
    worse: dict[str, float] = field(default_factory=dict)
    noise_db: float = 30.0
    fading_db: float = 0.0
    few: bool = False
    last: bool = False
    unsure: float = 0.0
    pays_not: frozenset[str] = frozenset()
    impossible: Callable[[Recipe], bool] = lambda _: False
    runtimes: tuple[str, ...] = ("onnxruntime",)
    judged: list[Recipe] = field(default_factory=list)
    made: list[Recipe] = field(default_factory=list)
    timings: int = 0
    rankings: int = 0
    lines: list[str] = field(default_factory=list)
    groups: Sequence[tuple[str, ...]] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    noises: dict[str, float] = field(default_factory=dict)
    learned: float | None = None
    expects: dict[str, Mode] | None = None
    gains: bool = True
    pinned: list[str] = field(default_factory=list)
    kept: list[Judged] = field(default_factory=list)
    stopped: Callable[[], bool] = lambda: False

    def ms(self, recipe: Recipe) -> float:
        saved = {"static": self.gain_ms, "dynamic": self.gain_ms / 2, "float": 0.0}
        fused_ms = self.fused_ms if recipe.fused_for == "openvino" else 0.0
        signs = {n: -1 if n in self.slower else 1 for n in recipe.modes}
        return self.fp32_ms - fused_ms - sum(signs[n] * saved[m] for n, m in recipe.modes.items())

    def drop(self, recipe: Recipe) -> float:
        part = {"static": 1.0, "dynamic": 0.5, "float": 0.0}
        total = sum(self.drops[n] * part[m] for n, m in recipe.modes.items())
        total *= self.learned or 1.0 if recipe.rounding == "learned" else 1.0
        return total * self.worse.get(recipe.target, 1.0)

    # What `quantize.search` calls

    def attempt_or_none(self, bench: Workbench, recipe: Recipe, name: str) -> Trial | None:
        self.made.append(recipe)
        if self.impossible(recipe):
            return None
        made = model(str(len(self.made)))
        if self.sizes:
            made = replace(made, size_bytes=sum(self.sizes[m] for m in recipe.modes.values()))
        quantized = QuantizedModel(made, recipe, (), "")
        noise_db = self.noise_db - self.fading_db * len(self.made)
        return Trial(name, quantized, noise_db, {})

    def best_variant(self, bench: Workbench, plan: Recipe, name: str) -> Trial | None:
        return self.attempt_or_none(bench, replace(plan, ranges="minmax"), name)

    def refined(self, bench: Workbench, trial: Trial, modes: dict[str, Any]) -> Trial:
        self.pinned += bench.pinned
        if self.learned is None:
            return trial
        recipe = replace(trial.quantized.recipe, rounding="learned", modes=modes)
        return self.attempt_or_none(bench, recipe, trial.name) or trial

    def time_quickly(
        self, bench: Workbench, trials: Sequence[Trial], **_: Any
    ) -> tuple[tuple[Trial, ...], dict[str, float]]:
        self.timings += 1
        timed = tuple(
            replace(t, latency_ms={"onnxruntime": self.ms(t.quantized.recipe)}) for t in trials
        )
        return timed, {"onnxruntime": self.fp32_ms}

    def fusion_groups(self, bench: Workbench, recipe: Recipe) -> tuple[tuple[str, ...], ...]:
        groups = self.groups or [(n,) for n in self.drops]
        return tuple(g for g in groups if recipe.modes[g[0]] != "float")

    def single_noise(
        self, bench: Workbench, trial: Trial, groups: Sequence[tuple[str, ...]], *_: Any
    ) -> dict[tuple[str, ...], float]:
        self.rankings += 1
        return {g: sum(self.noises.get(n, self.drops[n]) for n in g) for g in groups}

    def paying(self, bench: Workbench, trial: Trial, runtime: str) -> dict[str, Any]:
        modes = trial.quantized.recipe.modes
        return {n: "float" if n in self.pays_not else m for n, m in modes.items()}

    def expectation(self, bench: Workbench) -> Expected | None:
        if self.expects is None:
            return None
        modes = {a.name: self.expects.get(a.name, a.modes[0]) for a in bench.anchors}
        return Expected(modes, self.gains)

    def judge(
        self, quantized: QuantizedModel, runtime: str, *, unlikely: bool = False
    ) -> tuple[Evaluation, Verdict]:
        self.judged.append(quantized.recipe)
        drop = self.drop(quantized.recipe)
        if self.few:
            return EVALUATION, verdict("inconclusive", drop)
        outcome: Outcome = "refuse" if drop - self.unsure > LIMIT else "inconclusive"
        outcome = "pass" if drop + self.unsure <= LIMIT else outcome
        return EVALUATION, verdict(outcome, drop, unsure=self.unsure)

    # The search itself

    def search(
        self,
        *targets: str,
        need_speed: bool = True,
        deadline_s: float = 1e18,
        first: Sequence[Judged] = (),
    ) -> Found:
        anchors = tuple(anchor(n, self.ops.get(n, "Conv")) for n in self.drops)
        bench = Workbench(
            model("fp32"),
            anchors,
            Calibration({}, "", "", 0),
            (),
            (),
            self.runtimes,
            1,
            Path(),
            deadline_s=deadline_s,
        )
        aim = Aim(
            can_pass=lambda: not self.few,
            is_last_chance=lambda: self.last,
            need_speed=need_speed,
            say=self.lines.append,
            stopped=lambda: self.stopped(),
            keep=self.kept.append,
        )
        return search(bench, self.judge, targets or ("portable",), aim, first)


CALLED = (
    (making, "attempt_or_none"), (making, "best_variant"), (making, "paying"),
    (searching, "attempt_or_none"), (searching, "time_quickly"), (searching, "fusion_groups"),
    (searching, "single_noise"), (searching, "refined"), (making, "expectation"),
)  # fmt: skip


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    def build(drops: Sequence[float] | dict[str, float], **options: Any) -> World:
        named = drops if isinstance(drops, dict) else {f"n{i}": d for i, d in enumerate(drops)}
        made = World(named, **options)
        for module, name in CALLED:
            monkeypatch.setattr(module, name, getattr(made, name))
        return made

    return build


Build = Callable[..., World]


def floats(found: Found) -> set[str]:
    assert found.best is not None
    modes = found.best.trial.quantized.recipe.modes
    return {n for n, m in modes.items() if m == "float"}


# --- plans ---


def test_plans_divide_the_layers_without_duplicates() -> None:
    convolutions = plans([anchor("a"), anchor("b")], "vnni", ["onnxruntime"])
    assert list(convolutions) == ["static, vnni"]
    mixed = plans([anchor("a"), anchor("g", "Gemm")], "vnni", ["onnxruntime"])
    assert [r.modes for r in mixed.values()] == [
        {"a": "static", "g": "static"},
        {"a": "static", "g": "dynamic"},
        {"a": "float", "g": "dynamic"},
    ]
    assert all(r.target == "vnni" for r in mixed.values())
    assert all(name.endswith(", vnni") for name in mixed)


def test_what_should_be_fastest_is_the_first_plan_and_no_plan_twice() -> None:
    layers = [anchor("a"), anchor("b")]
    first = plans(layers, "vnni", ["onnxruntime"], expected={"a": "float", "b": "static"})
    assert [r.modes["a"] for r in first.values()] == ["float", "static"]
    same = plans(layers, "vnni", ["onnxruntime"], expected={"a": "static", "b": "static"})
    assert list(same) == ["static, vnni"]
    other = plans(layers, "vnni", ["openvino"], expected={"a": "float", "b": "static"})
    assert all(r.modes["a"] == "static" for r in other.values())


def test_openvino_gets_a_plan_of_its_own_only_where_something_is_static() -> None:
    both = plans([anchor("a")], "portable", ["onnxruntime", "openvino"])
    assert [r.fused_for for r in both.values()] == ["onnxruntime", "openvino"]
    lstm = plans([anchor("l", "LSTM")], "portable", ["onnxruntime", "openvino"])
    assert [r.modes for r in lstm.values()] == [{"l": "dynamic"}]


def test_each_other_engine_gets_one_plan_of_what_it_can_quantize() -> None:
    layers = [anchor("a"), anchor("l", "LSTM")]
    both = plans(layers, "vnni", ["onnxruntime"], ("nncf", "native"))
    assert [r.engine for r in both.values()] == ["native", "native", "nncf"]
    assert both["nncf, vnni"].modes == {"a": "static", "l": "float"}
    alone = plans(layers, "vnni", ["onnxruntime"], ("nncf",))
    assert list(alone) == ["nncf, vnni"]
    assert plans([anchor("l", "LSTM")], "vnni", ["onnxruntime"], ("nncf",)) == {}


# --- what should gain ---


def test_layers_that_should_not_gain_are_in_float_with_that_reason(world: Build) -> None:
    w = world([0.1, 0.1], expects={"n0": "float"}, gain_ms=-1.0)
    trial = next(t for t in w.search().trials if t.name.startswith(SHOULD_PAY))
    layers = tuple(
        QuantizedLayer(n, "Conv", m, 0, 1, None) for n, m in trial.quantized.recipe.modes.items()
    )
    trial = replace(trial, quantized=replace(trial.quantized, layers=layers))
    assert [x.reason for x in told(trial).quantized.layers] == [NO_GAIN, None]
    plain = replace(trial, name="static, vnni")
    assert told(plain) == plain


def test_a_graph_with_nothing_to_gain_is_told_before_it_is_timed(world: Build) -> None:
    w = world([0.1, 0.1], expects={"n0": "float"}, gain_ms=-1.0, gains=False)
    found = w.search()
    assert found.reason == "no candidate is faster than FP32"
    assert "no layer does enough work" in w.lines[0]


def test_the_clock_has_the_last_word_on_what_should_gain(world: Build) -> None:
    w = world([0.1, 0.1], expects={"n0": "float"})
    assert floats(w.search()) == set()
    w = world([0.1, 0.1], expects={"n0": "float"})
    w.search(need_speed=False)
    assert not any("float" in r.modes.values() for r in w.made)


# --- one evaluation is enough ---


def test_a_fastest_candidate_that_passes_is_the_only_one_evaluated(world: Build) -> None:
    w = world([0.1, 0.1, 0.1], ops={"n2": "Gemm"})
    found = w.search("portable", "vnni")
    assert len(w.judged) == 1
    assert set(w.judged[0].modes.values()) == {"static"}
    assert w.judged[0].target == "portable"
    assert found.reason == "a candidate passed"
    assert w.rankings == 0
    assert w.timings == 1
    assert not any(r.target == "vnni" for r in w.made)


def test_candidates_are_evaluated_fastest_first_until_one_passes(world: Build) -> None:
    w = world([0.3, 1.2], ops={"n1": "Gemm"}, fp32_ms=10)
    found = w.search()
    assert [tuple(r.modes.values()) for r in w.judged] == [
        ("static", "static"),
        ("static", "dynamic"),
    ]
    assert found.best is not None
    assert found.best.trial.quantized.recipe == w.judged[-1]
    assert [j.verdict.outcome for j in found.judged] == ["refuse", "pass"]


def test_a_faster_candidate_is_mended_after_a_slower_one_passed(world: Build) -> None:
    # Static loses 1.2 and saves 80 ms; dynamic loses 0.6 and saves 40; static but for the first
    # layer loses nothing and saves 60.
    gemms = dict.fromkeys(("n0", "n1", "n2", "n3"), "Gemm")
    w = world([1.2, 0.0, 0.0, 0.0], ops=gemms, gain_ms=20)
    found = w.search()
    assert floats(found) == {"n0"}
    assert found.best is not None
    assert found.best.trial.latency_ms == {"onnxruntime": 40.0}
    assert [j.verdict.outcome for j in found.judged] == ["refuse", "pass", "pass"]


def test_what_would_not_beat_the_passed_candidate_is_not_tried(world: Build) -> None:
    # With its first layer in float, static saves 30 ms, no more than dynamic.
    w = world([1.2, 0.0], ops={"n0": "Gemm", "n1": "Gemm"}, gain_ms=30)
    found = w.search()
    assert floats(found) == set()
    assert found.best is not None
    assert set(found.best.trial.quantized.recipe.modes.values()) == {"dynamic"}
    assert len(w.judged) == 2


def test_a_little_faster_than_what_passed_is_not_worth_mending(world: Build) -> None:
    # Static takes 80 ms and fails, dynamic takes 90 and passes.
    w = world([1.2, 0.0], ops={"n0": "Gemm", "n1": "Gemm"}, gain_ms=10)
    found = w.search()
    assert [j.verdict.outcome for j in found.judged] == ["refuse", "pass"]
    assert w.rankings == 0


def test_range_method_and_bias_are_chosen_once(world: Build) -> None:
    w = world([0.1, 0.1], ops={"n1": "Gemm"}, runtimes=("onnxruntime", "openvino"))
    w.search()
    # `best_variant` answers minmax; the others follow the first.
    assert {r.ranges for r in w.made} == {"minmax"}


# --- speed ---


def test_what_is_no_faster_than_fp32_is_not_evaluated(world: Build) -> None:
    w = world([0.1, 3.0], ops={"n1": "Gemm"}, fp32_ms=100, gain_ms=1.6)
    # Static saves 3.2 %, the others less than 3 %: not worth it.
    found = w.search()
    assert {tuple(r.modes.values()) for r in w.judged} == {("static", "static")}
    assert found.best is not None
    assert found.best.verdict.outcome == "refuse"


def test_near_ties_get_a_second_longer_look(world: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    w = world([0.1, 0.1], ops={"n1": "Gemm"}, fp32_ms=100, gain_ms=10)
    looks: list[tuple[int, int]] = []
    real = w.time_quickly

    def time_quickly(bench: Workbench, trials: Sequence[Trial], *, rounds: int = 1) -> Any:
        looks.append((len(trials), rounds))
        return real(bench, trials)

    monkeypatch.setattr(searching, "time_quickly", time_quickly)
    found = w.search()
    # 80, 85 and 95 ms: the first two are within 10 % of each other.
    assert looks == [(3, 1), (2, 3)]
    assert len(found.trials) == 3
    assert sum("in a longer look (to beat: 100 ms)" in line for line in w.lines) == 2


@pytest.mark.parametrize(("fused_ms", "first"), [(4.0, "onnxruntime"), (6.0, "openvino")])
def test_pairs_for_openvino_alone_have_to_save_a_twentieth(
    world: Build, fused_ms: float, first: str
) -> None:
    both = ("onnxruntime", "openvino")
    w = world([0.1, 0.1], fp32_ms=120, gain_ms=10, fused_ms=fused_ms, runtimes=both)
    w.search()
    assert [r.fused_for for r in w.judged] == [first]


def test_for_size_the_smallest_that_passes_wins(world: Build) -> None:
    w = world([0.1, 0.1], ops={"n1": "Gemm"}, sizes={"static": 400, "dynamic": 300, "float": 900})
    found = w.search(need_speed=False)
    assert found.best is not None
    # 700 bytes with the Gemm dynamic; 800 with both static, which is faster.
    assert set(found.best.trial.quantized.recipe.modes.values()) == {"static", "dynamic"}


def test_for_size_a_first_model_counts_by_its_size_too(world: Build) -> None:
    w = world([0.1, 0.1], ops={"n1": "Gemm"}, sizes={"static": 400, "dynamic": 300, "float": 900})
    recipe = Recipe("portable", "mse", correct_bias=True, modes={"n0": "static", "n1": "static"})
    # The file of the first candidate, made before.
    made = QuantizedModel(replace(model("1"), size_bytes=800), recipe, (), "")
    first = Judged(Trial("first", made, 30.0, {}), "onnxruntime", EVALUATION, verdict("pass", 0.2))
    found = w.search(need_speed=False, first=[first])
    assert found.best is not None
    assert found.best.trial.quantized.model.size_bytes == 700


def test_for_size_alone_a_slow_candidate_will_do(world: Build) -> None:
    w = world([0.1, 0.1], gain_ms=-5)
    found = w.search(need_speed=False)
    assert len(w.judged) == 1
    assert found.reason == "a candidate passed"


def test_where_nothing_gains_the_fastest_is_still_evaluated_once(world: Build) -> None:
    w = world([0.1, 0.1], ops={"n1": "Gemm"}, gain_ms=-5)
    found = w.search("portable", "vnni")
    assert found.reason == "no candidate is faster than FP32"
    assert len(w.judged) == 1
    # Of those that cost time, the least: only the Gemm, dynamic.
    assert w.judged[0].modes == {"n0": "float", "n1": "dynamic"}
    assert not any(r.target == "vnni" for r in w.made)


def test_layers_that_gain_nothing_make_one_more_candidate(world: Build) -> None:
    w = world([0.1] * 4, gain_ms=5, pays_not=frozenset({"n3"}))
    found = w.search()
    assert "static where it pays in onnxruntime, portable" in {t.name for t in found.trials}
    without = world([0.1] * 4, gain_ms=5, pays_not=frozenset({"n3"}))
    found = without.search(need_speed=False)
    assert "static where it pays in onnxruntime, portable" not in {t.name for t in found.trials}


def test_hopeless_noise_is_not_evaluated(world: Build) -> None:
    w = world([0.1, 0.1], noise_db=-0.1, fp32_ms=10)
    found = w.search()
    assert any("outputs are noise, not evaluated" in line for line in w.lines)
    # The report needs one all the same.
    assert found.best is not None


def test_what_is_noisier_than_a_refused_candidate_is_not_evaluated(world: Build) -> None:
    """Similar candidates would use up the evaluations, and no layer be tried in float."""
    evaluated = {}
    for fading_db in (0.0, 0.1):
        ops = {f"n{i}": "Gemm" for i in range(6)}
        w = world([20.0, *[0.1] * 5], ops=ops, gain_ms=9, fading_db=fading_db)
        assert floats(w.search()) == {"n0"}
        evaluated[fading_db] = len(w.judged)
    assert evaluated == {0.0: 3, 0.1: 2}
    assert any("too much like what did not pass, not evaluated" in line for line in w.lines)


@pytest.mark.parametrize(
    ("fading_db", "evaluated"),
    [
        # An interval to 1.5 at a limit of 1 asks for 10 log10(1.5) = 1.76 dB less noise.
        (-1.7, False),
        (-1.8, True),
    ],
)
def test_what_is_hardly_less_noisy_than_an_inconclusive_candidate_is_not_evaluated(
    world: Build, fading_db: float, *, evaluated: bool
) -> None:
    ops = {f"n{i}": "Gemm" for i in range(6)}
    w = world([0.7, *[0.1] * 5], ops=ops, gain_ms=9, unsure=0.3, fading_db=fading_db)
    assert floats(w.search()) == {"n0"}
    assert any("dynamic" in r.modes.values() for r in w.judged) == evaluated
    assert len(w.judged) == 2 + evaluated


@pytest.mark.parametrize("corrected", [False, True])
def test_an_inconclusive_first_model_without_corrected_biases_tells_nothing_of_others(
    world: Build, *, corrected: bool
) -> None:
    w = world([0.1, 0.1], gain_ms=9)
    recipe = Recipe("portable", "mse", correct_bias=corrected, modes={"n0": "static"})
    trial = Trial("first", QuantizedModel(model("first"), recipe, (), ""), 30.0, {})
    before = verdict("inconclusive", 0.9, unsure=0.3)
    w.search(first=[Judged(trial, "onnxruntime", EVALUATION, before)])
    whole = [r for r in w.judged if set(r.modes.values()) == {"static"}]
    assert bool(whole) == (not corrected)


def test_where_nothing_can_be_made_there_is_no_best(world: Build) -> None:
    w = world([0.1], impossible=lambda _: True)
    found = w.search("portable", "vnni")
    assert (found.best, found.judged, found.trials) == (None, (), ())
    assert found.reason == "no candidate passed"


# --- floats ---


@given(
    drops=st.lists(st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0, 3.0]), min_size=2, max_size=60),
    gemms=st.integers(0, 3),
)
def test_the_search_never_evaluates_more_than_it_may(drops: list[float], gemms: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        ops = {f"n{i}": "Gemm" for i in range(gemms)}
        w = World({f"n{i}": d for i, d in enumerate(drops)}, ops=ops, fp32_ms=1000, gain_ms=10)
        for module, name in CALLED:
            patch.setattr(module, name, getattr(w, name))
        found = w.search("portable", "vnni")
    assert len(w.judged) <= MAX_EVALUATIONS
    assert len(found.judged) == len(w.judged)
    passed = [j for j in found.judged if j.verdict.outcome == "pass"]
    assert found.best is not None
    if passed:
        # The fastest of those that pass, and they do.
        fastest = min(w.ms(j.trial.quantized.recipe) for j in passed)
        assert w.ms(found.best.trial.quantized.recipe) == fastest
        assert w.drop(found.best.trial.quantized.recipe) <= LIMIT
    else:
        assert found.best.verdict.drop == min(j.verdict.drop for j in found.judged)


def test_the_noisiest_layers_stay_in_float(world: Build) -> None:
    w = world({"calm": 0.1, "loud": 5.0, "fair": 0.2, "mild": 0.3}, fp32_ms=10)
    found = w.search()
    assert floats(found) == {"loud"}
    assert found.reason == "a candidate passed"
    # Of the noise of each layer alone, what is left.
    assert found.best is not None
    assert found.best.trial.predicted_db == pytest.approx(to_db({"outputs": 0.1 + 0.2 + 0.3}))


@pytest.mark.parametrize("needed", range(1, 9))
def test_bisection_finds_the_fewest_floats_that_pass(world: Build, needed: int) -> None:
    # Every layer costs the same; all but `needed` of 12 may stay.
    count = 12
    w = world([LIMIT / (count - needed) - 1e-9] * count, fp32_ms=30)
    found = w.search()
    assert found.best is not None
    assert found.best.verdict.outcome == "pass"
    tried = {sum(m == "float" for m in r.modes.values()) for r in w.judged}
    passing = {n for n in tried if n >= needed}
    assert len(floats(found)) == min(passing)
    below = max(n for n in tried if n < needed)
    assert min(passing) - below <= 2


def test_the_way_back_is_halved_twice(world: Build) -> None:
    # Eleven of twelve may stay, and their sums are exact.
    w = world([11 / 128] * 12, fp32_ms=30)
    w.search()
    counts = [sum(m == "float" for m in r.modes.values()) for r in w.judged]
    assert counts[:4] == [0, 6, 3, 1]


def test_integers_are_learned_before_layers_go_to_float(world: Build) -> None:
    w = world([0.5, 0.5, 0.5], learned=0.6, fp32_ms=10)
    found = w.search()
    assert found.best is not None
    assert found.best.trial.quantized.recipe.rounding == "learned"
    assert floats(found) == set()
    assert len(w.judged) == 2
    assert w.rankings == 0
    # The one that was judged first may have stayed the best.
    assert w.pinned == [found.judged[0].trial.quantized.model.sha256]
    assert found.best.trial in found.trials
    assert found.best.trial.latency_ms == found.judged[0].trial.latency_ms


def test_layers_go_to_float_from_what_was_learned(world: Build) -> None:
    w = world({"calm": 0.3, "loud": 5.0, "fair": 0.9}, learned=0.6, fp32_ms=10)
    found = w.search()
    # Not learned, "fair" would have had to go too.
    assert floats(found) == {"loud"}
    assert found.best is not None
    assert found.best.trial.quantized.recipe.rounding == "learned"


def test_what_is_learned_already_is_not_learned_again(
    world: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = world([5.0, 0.1], learned=0.9, fp32_ms=10)

    def best_variant(bench: Workbench, plan: Recipe, name: str) -> Trial | None:
        return w.attempt_or_none(bench, replace(plan, rounding="learned"), name)

    monkeypatch.setattr(making, "best_variant", best_variant)
    assert floats(w.search()) == {"n0"}
    assert w.pinned == []


def test_floats_stop_where_they_take_the_gain_away(world: Build) -> None:
    # Faster than FP32 by 5 % with all four, by less than 3 % without two of them.
    w = world([5.0, 5.0, 5.0, 5.0], fp32_ms=100, gain_ms=1.2)
    found = w.search()
    assert found.best is not None
    assert found.best.verdict.outcome == "refuse"
    assert any(line.endswith("in float: no faster") for line in w.lines)
    assert all(w.ms(r) * 1.03 < 100 for r in w.judged)


def test_layers_that_are_loud_but_innocent_go_back_to_int8(world: Build) -> None:
    # The four loudest hide the one that costs accuracy.
    loud = {f"loud{i}": 0.01 for i in range(4)}
    noises = {**dict.fromkeys(loud, 50.0), "guilty": 40.0}
    w = world({**loud, "guilty": 5.0, "calm": 0.1}, noises=noises, fp32_ms=60, gain_ms=8)
    found = w.search()
    assert floats(found) == {"guilty"}
    assert len(w.judged) <= MAX_EVALUATIONS


def test_what_is_innocent_but_slow_in_int8_is_not_evaluated_again(world: Build) -> None:
    loud = {f"loud{i}": 0.01 for i in range(4)}
    noises = {**dict.fromkeys(loud, 50.0), "guilty": 40.0}
    drops = {**loud, "guilty": 5.0, **{f"calm{i}": 0.01 for i in range(8)}}
    w = world(drops, noises=noises, fp32_ms=100, gain_ms=8, slower=frozenset(loud))
    found = w.search()
    assert floats(found) == {*loud, "guilty"}
    assert w.judged[-1] == found.best.trial.quantized.recipe


def test_what_turns_out_guilty_stays_in_float(world: Build) -> None:
    w = world({"a": 5.0, "b": 5.0, "c": 5.0, "calm": 0.1}, fp32_ms=60, gain_ms=8)
    found = w.search()
    assert floats(found) == {"a", "b", "c"}
    assert found.best is not None
    assert found.best.verdict.outcome == "pass"
    # What was tried afterwards is no better, and not kept.
    assert w.kept[-1] is found.best is not found.judged[-1]


def test_layers_of_one_fusion_group_go_to_float_together(world: Build) -> None:
    drops = {"a": 5.0, "b": 0.01, "c": 0.1, "d": 0.1}
    w = world(drops, groups=[("a", "b"), ("c",), ("d",)], fp32_ms=60, gain_ms=8)
    assert floats(w.search()) == {"a", "b"}
    assert all((r.modes["a"] == "float") == (r.modes["b"] == "float") for r in w.judged)


# --- a person who asks for the end ---


def test_after_an_interrupt_nothing_new_is_made(world: Build) -> None:
    w = world([5.0, 0.1, 0.1, 0.1], fp32_ms=30)
    w.stopped = lambda: bool(w.judged)
    found = w.search("portable", "vnni")
    assert len(w.judged) == len(found.judged) == 1
    assert w.rankings == 0
    assert found.reason == "interrupted"
    assert found.best is not None


def test_an_evaluation_that_was_cut_off_does_not_count(
    world: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = world([5.0, 0.1, 0.1, 0.1], fp32_ms=30)
    judge = w.judge
    monkeypatch.setattr(w, "judge", lambda q, r: None if w.judged else judge(q, r))
    found = w.search()
    assert len(found.judged) == 1


def test_each_best_so_far_is_kept(world: Build) -> None:
    w = world({"calm": 0.1, "loud": 5.0, "fair": 0.2, "mild": 0.3}, fp32_ms=10)
    found = w.search()
    assert w.kept[0] is found.judged[0]
    assert w.kept[-1] is found.best
    assert [j.rank for j in w.kept] == sorted((j.rank for j in w.kept), reverse=True)


def test_a_person_hears_how_much_may_be_left(world: Build) -> None:
    w = world([5.0, 0.1, 0.1, 0.1], fp32_ms=30)
    w.search()
    assert any("at most 9 more, 0 s of evaluation" in line for line in w.lines)


def test_the_longest_evaluation_tells_how_long_the_rest_may_take(
    world: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = world([5.0, 5.0, 5.0, 0.1], fp32_ms=30)
    judge, seconds = w.judge, iter([20.0, *[1.0] * MAX_EVALUATIONS])

    def timed(quantized: QuantizedModel, runtime: str) -> tuple[Evaluation, Verdict]:
        return replace(EVALUATION, seconds=next(seconds)), judge(quantized, runtime)[1]

    monkeypatch.setattr(w, "judge", timed)
    w.search()
    left = [line.rpartition("at most ")[2] for line in w.lines if "at most" in line]
    assert left[:2] == ["9 more, 3 min of evaluation", "8 more, 3 min of evaluation"]


def test_looks_at_single_layers_leave_half_of_the_time(
    world: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = world([5.0, 0.1, 0.1, 0.1], fp32_ms=30)
    begun_s, passed_s, told = perf_counter(), 0.0, []
    monkeypatch.setattr(searching, "perf_counter", lambda: begun_s + passed_s)

    def single_noise(
        _bench: Workbench, _trial: Trial, groups: Sequence[Any], enough: Callable[[], bool]
    ) -> dict[Any, float]:
        nonlocal passed_s
        for seconds in (499.0, 501.0):
            passed_s = seconds
            told.append(enough())
        return dict.fromkeys(groups, 1.0)

    monkeypatch.setattr(searching, "single_noise", single_noise)
    w.search(deadline_s=begun_s + 1000)
    assert told == [False, True]


# --- targets ---


def test_vnni_is_tried_only_where_portable_fails(world: Build) -> None:
    w = world([0.6, 0.6, 0.6], fp32_ms=3.2, worse={"portable": 50.0, "vnni": 0.5})
    found = w.search("portable", "vnni")
    assert found.best is not None
    assert found.best.trial.quantized.recipe.target == "vnni"
    assert found.best.verdict.outcome == "pass"
    assert w.judged[0].target == "portable"


def test_a_hard_portable_search_leaves_evaluations_for_vnni(world: Build) -> None:
    ops = {f"n{i}": "Gemm" for i in range(16)}
    hard = {"fp32_ms": 80, "gain_ms": 2.4, "worse": {"portable": 1e6}}
    w = world([0.01] * 32, ops=ops, pays_not=frozenset({"n20"}), **hard)
    found = w.search("portable", "vnni")
    assert found.best is not None
    assert found.best.verdict.outcome == "pass"
    assert found.best.trial.quantized.recipe.target == "vnni"


# --- too few samples ---


def test_where_samples_are_too_few_the_first_within_the_limit_is_taken(world: Build) -> None:
    w = world([0.6, 0.6, 0.1], ops={"n1": "Gemm"}, few=True, fp32_ms=10)
    found = w.search("portable", "vnni")
    assert [w.drop(r) <= LIMIT for r in w.judged] == [False, True]
    assert found.best is not None
    assert found.best.verdict.outcome == "inconclusive"
    assert found.best.trial.quantized.recipe == w.judged[-1]


def test_a_first_model_that_gained_passes_where_the_samples_are_too_few(world: Build) -> None:
    w = world([0.6, 0.6, 0.1], ops={"n1": "Gemm"}, few=True, fp32_ms=10)
    recipe = Recipe("portable", "mse", correct_bias=False, modes={"n0": "static"})
    gained = Trial("first", QuantizedModel(model("first"), recipe, (), ""), 30.0, {})
    first = Judged(gained, "onnxruntime", EVALUATION, verdict("pass", -0.5))
    found = w.search("portable", first=[first])
    assert found.best is not None
    assert found.best.verdict.outcome == "pass"
    # It is timed all the same.
    assert found.best.trial.latency_ms


# --- time ---


def test_after_the_deadline_one_evaluation_is_made_and_no_more(world: Build) -> None:
    w = world([9.0] * 6, ops={"n0": "Gemm"}, fp32_ms=10)
    found = w.search("portable", "vnni", deadline_s=perf_counter() - 1)
    assert len(w.judged) == 1
    assert w.rankings == 0
    assert len(w.made) == 1
    assert found.best is not None
    assert not any(r.target == "vnni" for r in w.made)


# --- rank ---

OUTCOMES: tuple[Outcome, ...] = ("pass", "inconclusive", "refuse")


def judged(outcome: Outcome, drop: float, ms: float) -> Judged:
    recipe = Recipe("portable", "mse", correct_bias=True, modes={"a": "static"})
    quantized = QuantizedModel(model("m"), recipe, (), "")
    trial = Trial("t", quantized, 30.0, {"onnxruntime": ms})
    return Judged(trial, "onnxruntime", EVALUATION, verdict(outcome, drop))


@given(
    st.sampled_from(OUTCOMES),
    st.sampled_from(OUTCOMES),
    st.tuples(st.floats(-1, 3), st.floats(-1, 3)),
    st.tuples(st.floats(0.1, 9), st.floats(0.1, 9)),
)
def test_a_better_verdict_ranks_before_speed(
    one: Outcome, other: Outcome, drops: tuple[float, float], ms: tuple[float, float]
) -> None:
    a, b = judged(one, drops[0], ms[0]), judged(other, drops[1], ms[1])
    if OUTCOMES.index(one) < OUTCOMES.index(other):
        assert a.rank < b.rank
    if one == other == "pass":
        assert (a.rank < b.rank) == (ms[0] < ms[1])
    if one == other == "inconclusive" and drops[0] <= LIMIT < drops[1]:
        assert a.rank < b.rank
    if one == other == "refuse":
        assert (a.rank < b.rank) == (drops[0] < drops[1])


def test_a_runtime_that_was_not_timed_ranks_last_among_equals() -> None:
    timed = judged("pass", 0.0, 5.0)
    assert timed.rank < replace(timed, runtime="openvino").rank


# --- steps ---


@given(st.lists(st.floats(0, 1e6), max_size=40).map(lambda x: sorted(x, reverse=True)))
def test_steps_grow_and_never_take_everything(noise: list[float]) -> None:
    steps = ranking.steps(noise)
    assert len(steps) <= 4
    assert all(a < b for a, b in itertools.pairwise(steps))
    assert all(0 < s < len(noise) for s in steps)


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=40).map(lambda x: sorted(x)[::-1]))
def test_each_step_is_the_fewest_that_take_its_share(noise: list[float]) -> None:
    steps = ranking.steps(noise)
    total = sum(noise)
    for share in (0.5, 0.8, 0.95, 0.99):
        least = next(n for n in range(1, len(noise) + 1) if sum(noise[:n]) >= share * total)
        assert least in steps or least == len(noise)


def test_without_noise_there_are_no_steps() -> None:
    assert ranking.steps([]) == []
    assert ranking.steps([0.0, 0.0]) == []
    assert ranking.steps([1.0]) == []


@pytest.mark.parametrize(
    ("gain_ms", "noise_db", "last", "need_speed", "first"),
    [
        (2.0, 18.0, False, True, "static"),
        (2.0, 18.0, True, True, "dynamic"),
        # The fastest is quiet enough.
        (2.0, 28.0, True, True, "static"),
        # The quieter one is much slower.
        (8.0, 18.0, True, True, "static"),
        # Nobody asked how fast it is.
        (2.0, 18.0, True, False, "static"),
    ],
)
def test_with_one_chance_left_the_quieter_of_two_that_are_about_as_fast_is_judged_first(
    world: Callable[..., World],
    gain_ms: float,
    noise_db: float,
    *,
    last: bool,
    need_speed: bool,
    first: str,
) -> None:
    made = world(
        [0.0] * 4,
        ops=dict.fromkeys((f"n{i}" for i in range(4)), "MatMul"),
        gain_ms=gain_ms,
        noise_db=noise_db,
        fading_db=-3.0,
        last=last,
    )
    found = made.search(need_speed=need_speed)
    assert set(made.judged[0].modes.values()) == {first}
    assert found.best is not None
    assert found.best.verdict.outcome == "pass"
