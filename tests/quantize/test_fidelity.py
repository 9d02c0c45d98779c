"""Metrics without labels: perfect for FP32 itself, and worse the farther INT8 is from it."""

import numpy as np
import pytest

from bench.errors import InputError, UsageError
from bench.models import Array
from quantize.evidence import stacked
from quantize.gate import judge
from quantize.metrics import METRICS, resolve_metric
from quantize.tasks.fidelity import MOST_DB
from quantize.tolerance import Tolerance, default_tolerance
from tests.scored import evaluation

RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((300, 16)).astype(np.float32)
IMAGE = RNG.random((1, 3, 24, 20)).astype(np.float32)


def finished(name: str, found: Array, wanted: Array) -> list[float]:
    metric = METRICS[name]
    assert metric.finish is not None
    rows = [
        row
        for a, b in zip(found, wanted, strict=True)
        for row in metric.score({"y": a[None]}, [None], {"y": b[None]})
    ]
    return list(metric.finish(stacked(rows)))


def scored(name: str, found: Array, wanted: Array) -> list[float]:
    return METRICS[name].score({"y": found}, [None] * len(found), {"y": wanted})


@pytest.mark.parametrize("name", ["ranking", "neighbours@10"])
def test_embeddings_are_judged_by_who_is_near(name: str) -> None:
    assert np.mean(finished(name, VECTORS, VECTORS)) == pytest.approx(1.0)
    # Neither a rotation nor a length changes who is near.
    turn = np.linalg.qr(RNG.standard_normal((16, 16)))[0].astype(np.float32)
    assert np.mean(finished(name, 3 * VECTORS @ turn, VECTORS)) > 0.999
    noise = RNG.standard_normal(VECTORS.shape).astype(np.float32)
    near, far, apart = (
        np.mean(finished(name, VECTORS + s * noise, VECTORS)) for s in (0.05, 0.5, 50)
    )
    assert 1 > near > far > apart
    assert apart < 0.15


def test_ranking_is_spearmans_correlation() -> None:
    found = VECTORS + RNG.standard_normal(VECTORS.shape).astype(np.float32) / 2
    score = finished("ranking", found[:40], VECTORS[:40])[7]
    ranks = []
    for v in (found[:40], VECTORS[:40]):
        unit = v / np.linalg.norm(v, axis=1, keepdims=True)
        likeness = unit @ unit[7]
        likeness[7] = -2
        ranks.append(likeness.argsort().argsort())
    assert score == pytest.approx(np.corrcoef(ranks)[0, 1])


def test_a_lost_neighbour_counts_a_tenth() -> None:
    line = np.stack([np.cos(np.arange(30) / 20), np.sin(np.arange(30) / 20)], axis=1)
    moved = line.copy()
    moved[1] = -line[1]
    # Sample 0 loses one of its ten nearest.
    assert finished("neighbours@10", moved, line)[0] == 0.9


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", ["ranking", "neighbours@10"])
def test_few_embeddings_do_not_fail(name: str, count: int) -> None:
    assert finished(name, VECTORS[:count], VECTORS[:count]) == [1.0] * count


def test_noise_is_in_decibels() -> None:
    wanted = np.full((1, 100), 2.0, np.float32)
    assert scored("sqnr", wanted + np.float32(0.02), wanted) == [pytest.approx(40, abs=0.01)]
    wanted = np.linspace(0, 1, 100, dtype=np.float32)[None]
    assert scored("psnr", wanted + np.float32(0.01), wanted) == [pytest.approx(40, abs=0.01)]
    assert scored("sqnr", wanted, wanted) == scored("psnr", wanted, wanted) == [MOST_DB]
    outputs = {"a": wanted, "b": wanted + 1}
    assert METRICS["sqnr"].score(outputs, [None], {"a": wanted, "b": wanted})[0] < 0
    alone = resolve_metric("sqnr", labelled=False, output="a")
    assert alone.score(outputs, [None], {"a": wanted, "b": wanted}) == [MOST_DB]


def test_ssim_sees_structure() -> None:
    assert scored("ssim", IMAGE, IMAGE) == [pytest.approx(1.0)]
    noise = RNG.standard_normal(IMAGE.shape).astype(np.float32)
    slight, strong = (scored("ssim", IMAGE + s * noise, IMAGE)[0] for s in (0.02, 0.5))
    assert 1 > slight > 0.95 > 0.6 > strong
    # What is shifted as a whole keeps its structure, and channels may come last.
    assert scored("ssim", IMAGE + np.float32(0.01), IMAGE)[0] > 0.995
    last = np.moveaxis(IMAGE, 1, -1)
    assert scored("ssim", last, last) == [pytest.approx(1.0)]


def test_ssim_of_one_window_is_the_formula() -> None:
    a, b = (RNG.random((1, 1, 11, 11)) for _ in range(2))
    d = np.arange(11) - 5
    w = np.exp(-(d[:, None] ** 2 + d[None] ** 2) / 4.5)
    w /= w.sum()
    ma, mb = (w * a).sum(), (w * b).sum()
    va, vb = (w * a * a).sum() - ma**2, (w * b * b).sum() - mb**2
    c = (w * a * b).sum() - ma * mb
    span = np.ptp(b)
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    formula = (2 * ma * mb + c1) * (2 * c + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    assert scored("ssim", a, b) == [pytest.approx(formula)]


@pytest.mark.parametrize(
    ("name", "found", "words"),
    [
        ("ssim", np.zeros((1, 5)), "no float output is an image"),
        ("ssim", np.zeros((1, 1, 8, 8)), "11 by 11"),
        ("sqnr", np.zeros((1, 4), np.int64), "no float output"),
        ("ranking", np.zeros((3, 4)), "no vector for each"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(name: str, found: Array, words: str) -> None:
    with pytest.raises(InputError, match=words):
        METRICS[name].score({"y": found}, [None], {"y": found})


def test_a_shape_that_changed_is_refused() -> None:
    with pytest.raises(InputError, match="they cannot be compared"):
        METRICS["sqnr"].score({"y": np.zeros((1, 2))}, [None], {"y": np.zeros((1, 3))})


# --- the verdict on them ---


def ratios(values: list[float]) -> tuple[object, object]:
    facts = {"binary": False, "bounded": False, "decibels": True, "metric": "sqnr"}
    return evaluation([MOST_DB] * len(values), **facts), evaluation(values, **facts)


@pytest.mark.parametrize(
    ("floor", "outcome"), [(38.0, "pass"), (42.0, "refuse"), (39.95, "inconclusive")]
)
def test_decibels_have_a_floor(floor: float, outcome: str) -> None:
    # A generator of its own, and a mean of exactly 40: other tests draw from the shared one.
    noise = np.random.default_rng(0).standard_normal(100)
    values = list(40 + noise - noise.mean())
    verdict = judge(*ratios(values), Tolerance(floor, "dB"))
    assert verdict.outcome == outcome
    assert "The observed ratio is" in verdict.reason
    assert f"limit of {floor:.1f} dB" in verdict.reason or outcome == "inconclusive"
    assert "0 dB" not in verdict.reason.replace("40.0 dB", "").replace(f"{floor:.1f} dB", "")


def test_decibels_and_drops_are_not_mixed() -> None:
    pair = ratios([40.0] * 10)
    with pytest.raises(UsageError, match="least ratio in decibels"):
        judge(*pair, Tolerance(1, "abs"))
    with pytest.raises(UsageError, match="least ratio in decibels"):
        judge(evaluation([1] * 10), evaluation([1] * 10), Tolerance(40, "dB"))
    assert str(default_tolerance(pair[0])) == "30dB"


def test_agreement_speaks_of_any_labels() -> None:
    facts = {"metric": "agreement"}
    pair = evaluation([1] * 1000, **facts), evaluation([0] * 2 + [1] * 998, **facts)
    verdict = judge(*pair, Tolerance(1, "pt"))
    assert (verdict.outcome, verdict.method) == ("pass", "Clopper-Pearson")
    assert "on 2 of 1,000 samples, so whatever the labels are" in verdict.reason
    # The 95th percentile of the beta distribution with 3 and 998.
    assert verdict.high == pytest.approx(0.0062826, abs=1e-6)
