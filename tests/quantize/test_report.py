"""What a run comes to, and how it is told."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from bench.compare import Comparison, compare
from bench.latency import Variant
from bench.machine import Machine, describe
from bench.models import Model
from bench.render import FORMATS, Check, Document, Forest, Scatter, Table, render
from bench.stages import Stage
from bench.store import dump, load
from quantize.document import document, summary
from quantize.evaluate import Evaluation
from quantize.flips import Flip
from quantize.gate import Outcome, Verdict
from quantize.inspection import Inspection, Layer
from quantize.proof.comparing import Compared, Proof
from quantize.proof.guest import VNNI_CPU
from quantize.quantizers.native import QuantizedLayer
from quantize.recipe import Recipe
from quantize.report import Data, Report, TrialRow, conclude
from quantize.slices import SliceVerdict
from tests.timing import latency

HOSTILE = '<script>alert("x")</script>'


def verdict(outcome: Outcome = "pass", **changes: Any) -> Verdict:
    plain = Verdict(
        outcome=outcome,
        drop=0.004,
        low=-0.002,
        high=0.009,
        limit=0.01,
        confidence=0.95,
        method="Tango score test",
        n=1000,
        baseline_value=0.95,
        candidate_value=0.946,
        losses=6,
        gains=2,
        samples_needed=None,
        reason="The reason for it.",
        higher_is_better=True,
        suspicious=(),
        scale="points",
    )
    return replace(plain, **changes)


def speed(
    ratio: float, low: float | None = None, high: float | None = None, name: str = "onnxruntime"
) -> Comparison:
    return Comparison("FP32 onnxruntime", f"INT8 {name}", ratio, low, high, 0.95, ())


FAST, SAME, SLOW = speed(2.0, 1.9, 2.1), speed(1.01, 0.9, 1.1), speed(0.8, 0.7, 0.9)
CODES = {"pass": 0, "refuse": 3, "inconclusive": 4}


@pytest.mark.parametrize("outcome", ["pass", "refuse", "inconclusive"])
@pytest.mark.parametrize("policy", ["fail", "warn", "pass"])
@pytest.mark.parametrize("ratio", [FAST, SAME, SLOW])
@pytest.mark.parametrize("need_speed", [True, False])
def test_accuracy_and_speed_come_to_one_conclusion(
    outcome: Outcome, policy: Any, ratio: Comparison, *, need_speed: bool
) -> None:
    found = conclude(verdict(outcome), "onnxruntime", (ratio,), policy, need_speed=need_speed)
    slow = need_speed and ratio is SLOW
    code = 0 if outcome == "inconclusive" and policy != "fail" else CODES[outcome]
    assert found.exit_code == (3 if slow else code)
    assert found.outcome == ("refuse" if slow else outcome)
    assert found.ships == (found.exit_code == 0)
    assert found.too_slow == slow
    assert found.headline.startswith("Not worth quantizing: INT8 runs at 0.80") == slow
    assert (found.speedup, found.speedup_low, found.speedup_high) == (
        ratio.ratio,
        ratio.low,
        ratio.high,
    )


@pytest.mark.parametrize(
    ("ratio", "told"),
    [
        (speed(8.264, 2.41, 22.21), "8.26 times as fast (2.41 to 22.21) as the fastest FP32, "),
        (speed(2.0), "2.00 times as fast (no interval) as the fastest FP32, "),
        (
            SAME,
            "as accurate as asked, but it is not certain to be faster: 1.01 times as fast (0.90 ",
        ),
    ],
)
def test_a_pass_tells_how_sure_its_speed_is(ratio: Comparison, told: str) -> None:
    found = conclude(verdict(), "onnxruntime", (ratio,), "fail", need_speed=True)
    assert found.headline.startswith(f"INT8 may ship: {told}")


@pytest.mark.parametrize(
    ("ratio", "slow"),
    [
        (speed(1.0), False),
        (speed(0.98), True),
        (speed(0.99, 0.985, 0.995), True),
        (speed(0.98, 0.9, 1.01), True),
        (speed(0.9, 0.8, 0.99), True),
        (speed(0.9, 0.5, 1.5), False),
    ],
)
def test_what_is_no_faster_is_not_worth_it(ratio: Comparison, *, slow: bool) -> None:
    found = conclude(verdict(), "onnxruntime", (ratio,), "fail", need_speed=True)
    assert (found.outcome == "refuse") == slow


@pytest.mark.parametrize(
    ("ratio", "told"),
    [
        (speed(0.998, 0.99, 0.9991), "Not worth quantizing: INT8 runs at 0.998 times the speed "),
        (speed(0.998, 0.5, 1.5), " whether INT8 is slower: it runs at 0.998 times the speed "),
        (speed(1.01, 0.9993, 1.1), "certain to be faster: 1.01 times as fast (0.999 to 1.10) "),
        (speed(1.01, 1.0012, 1.1), "INT8 may ship: 1.01 times as fast (1.001 to 1.10) "),
    ],
)
def test_a_headline_never_shows_a_ratio_of_one_that_is_not(ratio: Comparison, told: str) -> None:
    found = conclude(verdict(), "onnxruntime", (ratio,), "fail", need_speed=True)
    assert told in found.headline


@pytest.mark.parametrize("policy", ["fail", "warn", "pass"])
@pytest.mark.parametrize(
    "ratio", [speed(0.9, 0.5, 1.5), replace(speed(0.97, 0.93, 1.02), sound=False)]
)
def test_on_a_very_noisy_machine_slower_is_inconclusive(ratio: Comparison, policy: Any) -> None:
    found = conclude(verdict(), "onnxruntime", (ratio,), policy, need_speed=True)
    assert found.outcome == "inconclusive"
    assert found.exit_code == (4 if policy == "fail" else 0)
    assert found.headline.startswith("The machine is too noisy to tell whether INT8 is slower: ")
    assert (found.too_noisy, found.too_slow) == (True, False)
    # What accuracy refused is no less refused.
    lost = conclude(verdict("refuse"), "onnxruntime", (ratio,), policy, need_speed=True)
    assert (lost.outcome, lost.exit_code) == ("refuse", 3)
    size = conclude(verdict(), "onnxruntime", (ratio,), policy, need_speed=False)
    assert (size.outcome, size.too_noisy) == ("pass", False)


def test_on_a_busy_machine_it_is_told_why_nothing_is_certain() -> None:
    busy = replace(speed(2.3, 0.9, 5.0), held_up=(0.6, 0.5))
    found = conclude(verdict(), "onnxruntime", (busy,), "fail", need_speed=True)
    assert (found.outcome, found.exit_code) == ("pass", 0)
    assert found.headline == (
        "INT8 may ship: as accurate as asked, but it is not certain to be faster: 2.30 times as "
        "fast (0.90 to 5.00) as the fastest FP32, and the machine is too busy to tell: others had "
        "the CPU in 60% of the time in which FP32 onnxruntime was ready to run. Try again where "
        "less else runs."
    )


def test_what_is_surely_slower_is_refused_on_any_machine() -> None:
    ratio = replace(speed(0.6, 0.4, 0.9), sound=False)
    found = conclude(verdict(), "onnxruntime", (ratio,), "pass", need_speed=True)
    assert (found.exit_code, found.too_slow, found.too_noisy) == (3, True, False)


def test_speed_is_that_of_the_runtime_that_serves() -> None:
    pairs = (speed(0.5), speed(3.0, name="openvino"), speed(9.0, name="openvino"))
    found = conclude(verdict(), "openvino", pairs, "fail", need_speed=True)
    assert (found.outcome, found.speedup) == ("pass", 3.0)


def proof(differ: int = 0, error: str = "") -> Proof:
    compared = Compared("model", 32, 320, differ, differ / 320, integer=True, error=error)
    cpu = (VNNI_CPU, ("avx512_vnni",), "1.31.1", "native", "exact", (compared,))
    return Proof(*cpu, image_cached=False)


@pytest.mark.parametrize(
    ("outcome", "second", "ends"),
    [
        ("pass", proof(), "pass"),
        ("pass", proof(differ=1), "refuse"),
        ("pass", proof(error="no memory"), "inconclusive"),
        ("inconclusive", proof(differ=1), "refuse"),
        ("refuse", proof(error="no memory"), "refuse"),
    ],
)
def test_a_verdict_that_the_emulated_cpu_refutes_does_not_count(
    outcome: Outcome, second: Proof, ends: Outcome
) -> None:
    proofs = (proof(), second)
    found = conclude(
        verdict(outcome), "onnxruntime", (FAST,), "pass", need_speed=True, proofs=proofs
    )
    assert (found.outcome, found.exit_code) == (ends, CODES[ends])
    assert found.ships == (ends == "pass")
    refuted = not second.holds and outcome != "refuse"
    assert found.headline.startswith("The verdict does not count: not proved on") == refuted


@pytest.mark.parametrize(
    ("outcome", "checked", "policy", "ends", "code"),
    [
        ("pass", "pass", "fail", "pass", 0),
        ("pass", "fail", "fail", "refuse", 3),
        ("inconclusive", "fail", "pass", "refuse", 3),
        ("pass", "inconclusive", "fail", "inconclusive", 4),
        ("pass", "inconclusive", "warn", "inconclusive", 0),
        ("refuse", "inconclusive", "warn", "refuse", 3),
        ("pass", "skipped", "fail", "pass", 0),
    ],
)
def test_what_else_was_asked_counts_too(
    outcome: Outcome, checked: Any, policy: Any, ends: Outcome, code: int
) -> None:
    further = (Check("size", "pass", "Small."), Check("slices", checked, "The class 7."))
    found = conclude(
        verdict(outcome), "onnxruntime", (FAST,), policy, need_speed=True, further=further
    )
    assert (found.outcome, found.exit_code, found.ships) == (ends, code, code == 0)
    assert (found.headline == "The class 7.") == (ends not in (outcome, "pass"))


# --- the report ---


def model(name: str, size: int) -> Model:
    return Model(
        path=Path(name), sha256=name[:1] * 64, size_bytes=size, opset=17, inputs=(), outputs=()
    )


FP32, INT8 = model("fp32.onnx", 4_000_000), model("int8.onnx", 1_100_000)


def evaluation(runtime: str, model: Model, wrong: int) -> Evaluation:
    return Evaluation(
        model_sha256=model.sha256,
        runtime=runtime,
        runtime_version="1",
        arithmetic="exact",
        metric="top1",
        output=None,
        higher_is_better=True,
        binary=True,
        bounded=True,
        chance=0.1,
        scores=(0.0,) * wrong + (1.0,) * (1000 - wrong),
        nonfinite=0,
        first_nonfinite=None,
        samples_sha256="d",
        outputs=("y",),
        seconds=1.0,
    )


@pytest.fixture(scope="module")
def machine() -> Machine:
    found = describe()
    flags = ("avx2", "avx512bw", "avx512_vnni")
    return replace(found, flags=flags, canaries={"onnxruntime": "exact"}, cpu=HOSTILE)


@pytest.fixture
def report(machine: Machine) -> Report:
    def variant(name: str, model: Model, runtime: str) -> Variant:
        return Variant(f"{name} {runtime}", model, runtime, "cpu", 2, 1)

    # The one that came first in the quick look is not the fastest in the end.
    slow = latency(variant("FP32", FP32, "openvino"), 4.0)
    fast = latency(variant("FP32", FP32, "onnxruntime"), 3.0, spread=0.01)
    served = latency(variant("INT8", INT8, "onnxruntime"), 1.5, spread=0.02)
    control = compare(slow, replace(slow, variant=replace(slow.variant, name="control")))
    comparisons = (compare(fast, slow), compare(fast, served))
    checked = verdict()
    return Report(
        command=f"vnnify quantize {HOSTILE}",
        source="net.onnx",
        source_sha256="s",
        fp32=FP32,
        int8=INT8,
        conclusion=conclude(checked, "onnxruntime", comparisons, "fail", need_speed=True),
        verdict=checked,
        metric="mine.py:top1",
        max_drop="1pt",
        served_by="onnxruntime",
        target="portable",
        recipe=Recipe("portable", "mse", correct_bias=True, modes={"a": "static", "b": "float"}),
        layers=(
            QuantizedLayer("a", "Conv", "static", 3, 16, None),
            QuantizedLayer(HOSTILE, "Gemm", "float", 0, 0, None),
        ),
        left={"deconv": "transposed convolution"},
        coverage="1 of 2",
        data=Data("train.npz", 200, "c", "val.npz", 1000, "e"),
        evaluations=(
            evaluation("onnxruntime", FP32, 50),
            evaluation("onnxruntime", INT8, 54),
            evaluation("openvino", INT8, 55),
        ),
        latencies=(slow, fast, served),
        comparisons=comparisons,
        control=control,
        trials=(
            TrialRow("static", "r", 31.0, {"onnxruntime": 1.5}, 10, "1 of 2", "o", 0.9, 0, "pass"),
            TrialRow("dynamic", "r", 35.0, {}, 10, "1 of 2", None, None, None, "not evaluated"),
        ),
        stages=(Stage("read", 1.5, 10**8), Stage("search", 20.0, 10**9)),
        machine=machine,
        notes=("opset raised from 9 to 17",),
    )


def blocks(shown: Document, kind: type[Any]) -> dict[str, Any]:
    found = (b for s in shown.sections for b in s.blocks if isinstance(b, kind))
    return {b.title: b for b in found}


@pytest.mark.parametrize("form", FORMATS)
def test_a_report_renders_in_every_format(report: Report, form: str) -> None:
    text = render(document(report), form)
    assert "net.onnx" in text
    assert HOSTILE not in text or form == "text"
    if form == "html":
        assert "<script" not in text
    if form == "junit":
        assert len(list(ET.fromstring(text).iter("testcase"))) == 4
    else:
        for said in ("95.00 %", "94.60 %", "1 pt", "transposed convolution", "opset raised from 9"):
            assert said in text, said
        assert "2.00" in text


def test_the_report_survives_json(report: Report) -> None:
    raw = dump(report)
    again = load(Report, raw, "report.json")
    assert again == report
    assert dump(load(Report, dump(again), "report.json")) == dump(again)
    assert render(document(again), "html") == render(document(report), "html")


def test_the_summary_says_accuracy_latency_size_and_layers(report: Report) -> None:
    shown = summary(report, "out")
    table = blocks(shown, Table)["Before and after"]
    rows = {row[0]: row[1:] for row in table.rows}
    assert list(rows)[:4] == ["top1", "latency", "in", "size"]
    assert rows["top1"][:2] == ("95.00 %", "94.60 %")
    assert "0.4 pt" in rows["top1"][2]
    assert "0.9 pt" in rows["top1"][2]
    assert "limit 1 pt" in rows["top1"][2]
    # Of the FP32 variants, the fastest; the interval of the two rounds with it.
    assert rows["latency"][:2] == ("3 ms", "1.5 ms")
    assert rows["in"][:2] == ("onnxruntime", "onnxruntime")
    assert re.fullmatch(r"2\.00× as fast \(\d\.\d\d to \d\.\d\d\)", rows["latency"][2])
    assert rows["size"] == ("4 MB", "1.1 MB", "3.64× smaller")
    assert rows["layers in INT8"][1] == "1 of 2"
    assert "out/report.html" in render(shown, "text")


def test_layers_without_a_choice_count_as_float(report: Report) -> None:
    static = Layer(
        name="a",
        op="Conv",
        mode="static",
        cause="",
        activation="u8",
        weights="s8",
        per_channel=True,
        symmetric=True,
        weight_count=9,
        depthwise=False,
        risk=None,
        observed=None,
        kernels={},
    )
    plain = replace(static, mode="float")
    layers = (static, plain, replace(plain, op="GRU"), replace(plain, weight_count=0))
    inside = Inspection("", INT8, {}, 0, {}, 0, layers, (), (), {}, ())
    told = replace(report, inspection=inside, coverage="1 of 3")
    rows = {row[0]: row[1:] for row in blocks(summary(told, "out"), Table)["Before and after"].rows}
    assert rows["layers in INT8"] == ("0", "1 of 3", "static 1, float 2")
    banner = document(told).verdict
    assert banner is not None
    assert banner.figures[-1].note == "static 1, float 2; mse ranges; portable; for onnxruntime"


def test_a_file_that_grew_is_called_larger(report: Report) -> None:
    grown = replace(report, int8=replace(report.int8, size_bytes=2 * report.fp32.size_bytes))
    shown = summary(grown, "out")
    assert ("4 MB", "8 MB", "2.00× larger") in [
        r[1:] for r in blocks(shown, Table)["Before and after"].rows
    ]
    assert any("larger than FP32" in line for line in shown.verdict.lines)
    assert not any("larger than FP32" in line for line in summary(report, "out").verdict.lines)
    assert [f.value for f in document(grown).verdict.figures if f.label == "Larger"] == ["2.00×"]


@pytest.mark.parametrize(
    ("drop", "high", "said"),
    [
        (0.004, 0.009, "lost 0.4 pt, at most 0.9 pt (limit 1 pt)"),
        (-0.004, 0.001, "gained 0.4 pt, lost at most 0.1 pt (limit 1 pt)"),
        (-0.004, -0.001, "gained 0.4 pt, at least 0.1 pt (limit 1 pt)"),
    ],
)
def test_a_gain_is_not_called_a_negative_loss(
    report: Report, drop: float, high: float, said: str
) -> None:
    verdict = replace(report.verdict, drop=drop, high=high)
    table = blocks(summary(replace(report, verdict=verdict), "out"), Table)["Before and after"]
    assert {row[0]: row[3] for row in table.rows}["top1"] == said


def test_a_runtime_that_loses_too_much_is_named(report: Report) -> None:
    ours = report.evaluations[1]
    bad = replace(ours, runtime="elsewhere", scores=(0.0,) * len(ours.scores))
    warned = summary(replace(report, evaluations=(*report.evaluations[:2], bad)), "out")
    said = "Do not serve it with elsewhere: there it scores 0.00 %."
    assert said in warned.verdict.lines
    assert not any("Do not serve" in x for x in summary(report, "out").verdict.lines)
    refused = replace(report, evaluations=(*report.evaluations[:2], bad))
    refused = replace(refused, conclusion=replace(report.conclusion, ships=False))
    assert not any("Do not serve" in x for x in summary(refused, "out").verdict.lines)


@pytest.mark.parametrize("width", ["text", "markdown"])
def test_the_summary_is_not_cut(report: Report, width: str) -> None:
    assert "…" not in render(summary(report, "out"), width)


def test_accuracy_is_shown_in_points_of_a_bounded_metric(report: Report) -> None:
    forest = blocks(document(report), Forest)["Drop of top1 against the limit"]
    row = forest.rows[0]
    assert (row.estimate, row.low, row.high) == pytest.approx((0.4, -0.2, 0.9))
    assert (forest.limit, forest.unit) == (1.0, "pt")
    scores = blocks(document(report), Table)["Scores"]
    assert [r[:3] for r in scores.rows] == [
        ("FP32", "onnxruntime", "float"),
        ("INT8", "onnxruntime", "exact"),
        ("INT8", "openvino", "exact"),
    ]
    # Wilson's interval of 946 of 1000: 0.94429 ± 0.01409.
    assert scores.rows[1][4] == "93.02 % to 95.84 %"


def test_other_metrics_are_shown_in_their_own_unit(report: Report) -> None:
    plain = [replace(e, binary=False, bounded=False) for e in report.evaluations]
    own = replace(report.verdict, scale="plain")
    shown = document(replace(report, evaluations=tuple(plain), verdict=own))
    forest = blocks(shown, Forest)["Drop of top1 against the limit"]
    assert (forest.rows[0].estimate, forest.limit, forest.unit) == (0.004, 0.01, "")
    scores = blocks(shown, Table)["Scores"]
    assert (scores.rows[0][3], scores.rows[0][4]) == ("0.95", "–")


def test_every_latency_is_compared_with_the_fastest_fp32(report: Report) -> None:
    table = blocks(document(report), Table)["Latency"]
    ratios = {row[0]: row[3] for row in table.rows}
    assert ratios == {
        "FP32 openvino": "0.75",
        "FP32 onnxruntime": "1 (baseline)",
        "INT8 onnxruntime": "2.00",
    }


def test_layers_in_float_say_why(report: Report) -> None:
    rows = {r[0]: r[2] for r in blocks(document(report), Table)["In float"].rows}
    assert rows == {
        HOSTILE: "the recipe leaves it in float",
        "deconv": "transposed convolution",
    }
    section = next(s for s in document(report).sections if s.title == "Layers")
    text = " ".join(b.text for b in section.blocks if hasattr(b, "text"))
    assert "3 of 16 output channels" in text


def test_candidates_that_do_not_run_are_listed_but_not_drawn(report: Report) -> None:
    shown = document(report)
    rows = {r[0]: r for r in blocks(shown, Table)["Everything that was tried"].rows}
    assert "does not run" in rows["dynamic"]
    assert rows["dynamic"][-1] == "not evaluated"
    points = blocks(shown, Scatter)["Latency and fidelity of the candidates"].points
    assert [p.label for p in points] == ["static"]


def test_a_model_for_vnni_and_a_cpu_without_it_are_warned_of(report: Report) -> None:
    def lines(changed: Report) -> str:
        return " ".join(document(changed).verdict.lines)

    assert "wrong answers" not in lines(report)
    assert "is not measured" not in lines(report)
    assert "wrong answers" in lines(replace(report, target="vnni"))
    old = replace(report.machine, flags=("avx2",), canaries={"onnxruntime": "saturating"})
    assert "the speed on VNNI is not measured" in lines(replace(report, machine=old))


def test_a_proof_is_told_with_what_was_compared(report: Report) -> None:
    proved = replace(report, proofs=(proof(),))
    shown = document(proved)
    said = "Proved on emulated AVX512-VNNI, 32 samples, 0 of 320 values differ."
    assert said in shown.verdict.lines
    assert shown.checks[-1].name == "proof on AVX512-VNNI"
    assert "Emulated and judged" in blocks(shown, Table)
    assert "Emulated and judged" not in blocks(document(report), Table)
    assert load(Report, dump(proved), "again") == proved


def test_a_refused_model_is_not_offered_for_serving(report: Report) -> None:
    assert any(x.startswith("Serve int8.onnx with") for x in document(report).verdict.lines)
    refused = replace(report.conclusion, outcome="refuse", ships=False, exit_code=3)
    shown = document(replace(report, conclusion=refused))
    assert not any(x.startswith("Serve ") for x in shown.verdict.lines)
    assert any("int8.onnx" in x for x in shown.verdict.lines)


def test_checks_tell_accuracy_speed_and_finiteness_apart(report: Report) -> None:
    def outcomes(changed: Report) -> dict[str, str]:
        return {c.name: c.outcome for c in document(changed).checks}

    sound = {"finite": "pass", "plausible": "pass"}
    assert outcomes(report) == {"accuracy": "pass", "speed": "pass", **sound}
    for outcome, said in (("refuse", "fail"), ("inconclusive", "inconclusive")):
        judged = verdict(outcome)  # type: ignore[arg-type]
        slow = conclude(judged, "onnxruntime", (SLOW,), "fail", need_speed=True)
        changed = replace(report, verdict=judged, conclusion=slow)
        assert outcomes(changed) == {"accuracy": said, "speed": "fail", **sound}
    noisy = conclude(verdict(), "onnxruntime", (speed(0.9, 0.5, 1.5),), "fail", need_speed=True)
    open_ = outcomes(replace(report, conclusion=noisy))
    assert open_ == {"accuracy": "pass", "speed": "inconclusive", **sound}
    broken = replace(report.evaluations[2], nonfinite=1, first_nonfinite="sample 0")
    changed = replace(report, evaluations=(*report.evaluations[:2], broken))
    assert outcomes(changed)["finite"] == "fail"


def test_what_else_was_asked_is_a_check_and_a_line(report: Report) -> None:
    further = (Check("speed", "fail", "Too slow.", "", "1.1x", "2x"), Check("size", "pass", "S."))
    shown = document(replace(report, further=further))
    assert [c.name for c in shown.checks] == ["accuracy", "finite", "plausible", "speed", "size"]
    assert "Too slow." in shown.verdict.lines
    assert "S." not in shown.verdict.lines


def test_one_round_has_no_interval(report: Report) -> None:
    single = tuple(replace(x, rounds=x.rounds[:1]) for x in report.latencies)
    comparisons = (compare(single[1], single[0]), compare(single[1], single[2]))
    ended = conclude(report.verdict, "onnxruntime", comparisons, "fail", need_speed=True)
    changed = replace(
        report, latencies=single, comparisons=comparisons, conclusion=ended, control=None
    )
    for form in FORMATS:
        assert "None" not in render(document(changed), form)
        assert "None" not in render(summary(changed, "out"), form)
    assert load(Report, dump(changed), "r") == changed


def test_the_report_says_why_bounds_are_wider_than_those_of_one_test(report: Report) -> None:
    def told(share: float) -> str:
        return render(
            document(replace(report, verdict=replace(report.verdict, share=share))), "text"
        )

    first, later = (" ".join(told(share).split()) for share in (0.9, 0.05))
    assert "bounds of this one are those of 95.5 %" in first
    assert "Of many candidates that are judged on the same samples" not in first
    assert "one would pass by chance, so the bounds of this one are those of 99.75 %." in later
    assert "bounds of this one" not in " ".join(told(1.0).split())


def test_a_lost_class_is_named_and_flips_are_listed(report: Report) -> None:
    lost = SliceVerdict("class", "7", 100, 0.95, 0.6, 0.35, 0.2, 0.5, "refuse", None)
    flip = Flip(3, HOSTILE, "d" * 64, "7", "7", "1", 1.0)
    told = replace(report, slices=(lost,), flips=(flip,))
    assert any(x.startswith("class=7 lost 35 pt") for x in summary(told, "out").verdict.lines)
    tables = blocks(document(told), Table)
    assert tables["Slices"].rows[0][:2] == ("class=7", "100")
    assert tables["Samples that changed"].rows[0] == ("3", HOSTILE, "7", "7", "1", "100 pt")
    figure = blocks(document(told), Forest)["Worst slices"]
    assert figure.rows[0].outcome == "refuse"
    assert "They decide nothing without --max-slice-drop" in figure.description
    judged = blocks(document(replace(told, slice_limit=0.05)), Forest)["Worst slices"]
    assert "They decide nothing" not in judged.description
    assert "<script" not in render(document(told), "html")
    assert load(Report, dump(told), "r") == told
