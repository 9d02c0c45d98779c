"""Metrics of whole tasks, against the libraries and definitions that others use."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bench.errors import InputError, UsageError
from quantize.evidence import read_rows, stacked, write_rows
from quantize.metrics import METRICS, resolve_metric, run_labels
from quantize.tasks.classes import count_classes, macro_f1, mean_iou
from quantize.tasks.detection import average_precision, match
from quantize.tasks.features import (
    gain,
    keep_features,
    keep_pairs,
    probe,
    rank_correlation,
    recall,
)
from quantize.tasks.transcripts import count_errors, error_rate

Array = NDArray[Any]


# --- detection ---


def scene(seed: int, *, crowd: bool = False) -> tuple[tuple[Array, Array, Array], Array]:
    """Detections and boxes of one image: some found well, some badly, some made up."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 6))
    corners = rng.uniform(0, 60, (count, 2))
    truth = np.concatenate([corners, corners + rng.uniform(8, 40, (count, 2))], axis=1)
    kinds = rng.integers(0, 3, count)
    moved = truth + rng.normal(0, 3, truth.shape)
    extra = rng.uniform(0, 50, (3, 2))
    boxes = np.concatenate([moved, np.concatenate([extra, extra + 20], axis=1)])
    classes = np.concatenate([np.where(rng.random(count) < 0.8, kinds, 1), rng.integers(0, 3, 3)])
    # Few distinct scores, so that ties are common.
    scores = rng.integers(1, 6, len(boxes)) / 5
    label = np.column_stack([truth, kinds, (rng.random(count) < 0.3) if crowd else np.zeros(count)])
    return (boxes, scores, classes), label


def coco(scenes: list[tuple[tuple[Array, Array, Array], Array]]) -> tuple[float, float]:
    """AP and AP50 as pycocotools computes them from files."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = [{"id": i} for i in range(len(scenes))]
    wanted, found = [], []
    for i, ((boxes, scores, classes), label) in enumerate(scenes):
        for row in label:
            x1, y1, x2, y2 = row[:4].tolist()
            box = [x1, y1, x2 - x1, y2 - y1]
            area, crowd = box[2] * box[3], int(row[5])
            wanted.append(
                {"image_id": i, "category_id": int(row[4]), "bbox": box, "area": area}
                | {"iscrowd": crowd, "id": len(wanted) + 1}
            )
        for box, score, kind in zip(boxes.tolist(), scores, classes, strict=True):
            x1, y1, x2, y2 = box
            bbox = [x1, y1, x2 - x1, y2 - y1]
            found.append({"image_id": i, "category_id": int(kind), "bbox": bbox, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": images,
            "annotations": wanted,
            "categories": [{"id": k} for k in range(3)],
        }
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(found), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[0]), float(judge.stats[1])


@pytest.mark.parametrize("crowd", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_coco_s(seed: int, *, crowd: bool) -> None:
    scenes = [scene(100 * seed + i, crowd=crowd) for i in range(12)]
    rows = [match([found], run_labels(label, 1), None, None)[0] for found, label in scenes]
    wanted = coco(scenes)
    assert 0.05 < wanted[0] < 0.95
    assert average_precision(rows) == pytest.approx(wanted[0], abs=1e-12)
    assert average_precision(rows, thresholds=slice(0, 1)) == pytest.approx(wanted[1], abs=1e-12)


def test_images_can_be_drawn_twice() -> None:
    scenes = [scene(i) for i in range(8)]
    rows = [match([found], [label], None, None)[0] for found, label in scenes]
    picks = [0, 0, 3, 5, 5, 5]
    assert average_precision([rows[i] for i in picks]) == pytest.approx(
        coco([scenes[i] for i in picks])[0], abs=1e-12
    )


def test_matched_images_can_be_kept_for_a_run_that_goes_on(tmp_path: Path) -> None:
    scenes = [scene(i) for i in range(8)]
    rows = [match([found], [label], None, None)[0] for found, label in scenes]
    write_rows(rows, tmp_path / "rows.zip")
    assert average_precision(read_rows(tmp_path / "rows.zip")) == average_precision(rows)


def test_padding_is_no_box_and_an_empty_image_is_allowed() -> None:
    found, label = scene(3)
    padded = np.concatenate([label, np.full((4, 6), -1.0)])
    assert len(label)
    (row,), (same,) = (match([found], [x], None, None) for x in (label, padded))
    assert all(np.array_equal(a, b) for a, b in zip(row, same, strict=True))
    none = (np.zeros((0, 4)), np.zeros(0), np.zeros(0))
    empty = match([none], [np.zeros((0, 5))], None, None)
    assert average_precision(empty) == 0.0
    assert average_precision([row, *empty]) == average_precision([row])


def test_outputs_of_the_usual_names_need_no_decoder() -> None:
    (boxes, scores, classes), label = scene(3)
    outputs = {"boxes": boxes, "labels": classes, "scores": scores}
    (row,) = match(outputs, [label], None, None)
    (same,) = match([(boxes, scores, classes)], [label], None, None)
    assert all(np.array_equal(a, b) for a, b in zip(row, same, strict=True))


@pytest.mark.parametrize(
    ("outputs", "labels", "output", "error", "message"),
    [
        ({"raw": np.zeros((1, 9))}, [np.zeros((0, 5))], None, UsageError, "--decode"),
        ([], [np.zeros((0, 5))], None, InputError, "0 entries for 1 image"),
        ([(np.zeros((2, 4)), [1.0], [0])], [np.zeros((0, 5))], None, InputError, "2 boxes, 1 sc"),
        ([(np.zeros((2, 3)), [1.0], [0])], [np.zeros((0, 5))], None, InputError, "expected"),
        ([(np.zeros((1, 4)), [1.0], [0])], [np.zeros((2, 3))], None, InputError, "array [m, 5]"),
        ([(np.zeros((1, 4)), [1.0], [0])], ["cat"], None, InputError, "array [m, 5]"),
        ([(np.zeros((1, 4)), [1.0], [0])], [None], "boxes", UsageError, "--output"),
    ],
)
def test_what_is_no_detection_says_so(
    outputs: Any, labels: Any, output: str | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message.replace("[", r"\[")):
        match(outputs, labels, None, output)


# --- transcripts ---


def distance(one: list[str] | str, other: list[str] | str) -> int:
    """Levenshtein's, by its recurrence."""
    previous = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        current = [i]
        for j, b in enumerate(other, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (a != b)))
        previous = current
    return previous[-1]


@given(st.text("ab ", max_size=8), st.text("ab ", max_size=8))
def test_errors_are_edits(wanted: str, found: str) -> None:
    ((errors, units),) = count_errors("words", [found], [wanted], None, None)
    assert (errors, units) == (distance(wanted.split(), found.split()), len(wanted.split()))


def test_characters_are_counted_as_they_are() -> None:
    rows = count_errors("characters", ["kitten", "a", "xy"], ["sitting", "a", ""], None, None)
    assert rows == [(3, 7), (0, 1), (2, 0)]
    assert error_rate(stacked(rows)) == 5 / 8
    assert error_rate(stacked(rows[2:])) == 2.0


def test_a_text_output_needs_no_decoder() -> None:
    outputs = {"scores": np.zeros((2, 3)), "text": np.array(["a b", "c"])}
    assert count_errors("words", outputs, ["a b", "d"], None, None) == [(0, 2), (1, 1)]


@pytest.mark.parametrize(
    ("outputs", "label", "error", "message"),
    [
        ({"logits": np.zeros((1, 4))}, "a", UsageError, "--decode"),
        (["a", "b"], "a", InputError, "one text per sample"),
        ([3], "a", InputError, "one text per sample"),
        (["a"], 3, InputError, "label 3 is no text.*Save labels as text"),
    ],
)
def test_what_is_no_text_says_so(
    outputs: Any, label: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        count_errors("words", outputs, [label], None, None)


# --- classes ---


def test_f1_and_iou_follow_their_definitions() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (6, 4, 5))
    scores = rng.standard_normal((6, 3, 4, 5)) + 1.5 * np.eye(3)[truth].transpose(0, 3, 1, 2)
    found = scores.argmax(axis=1)
    rows = stacked(count_classes({"y": scores}, truth, None, None))
    f1, iou = [], []
    for k in range(3):
        both = ((found == k) & (truth == k)).sum()
        f1.append(2 * both / ((found == k).sum() + (truth == k).sum()))
        iou.append(both / ((found == k) | (truth == k)).sum())
    assert macro_f1(rows) == pytest.approx(np.mean(f1))
    assert mean_iou(rows) == pytest.approx(np.mean(iou))
    assert len(set(found.reshape(-1))) == 3


def test_void_places_do_not_count() -> None:
    truth = np.array([[[0, 255], [1, 1]]])
    scores = np.eye(2)[np.array([[[0, 1], [1, 1]]])].transpose(0, 3, 1, 2)
    rows = stacked(count_classes({"y": scores}, truth, None, None))
    assert mean_iou(rows) == 1.0
    assert rows.sum() == 9  # type: ignore[union-attr]


def test_class_255_counts_where_there_are_that_many_classes() -> None:
    scores = np.eye(300)[[255, 7]]
    rows = stacked(count_classes({"y": scores}, np.array([255, 8]), None, None))
    assert macro_f1(rows) == pytest.approx(1 / 3)


def test_class_maps_of_any_size_count_together() -> None:
    maps = [np.array([[[0, 2]]]), np.array([[[1, 1, 0]]])]
    truths = [np.array([[[0, 2]]]), np.array([[[1, 0, 0]]])]
    rows = [count_classes({"y": m}, t, None, None)[0] for m, t in zip(maps, truths, strict=True)]
    assert mean_iou(stacked(rows)) == pytest.approx(np.mean([2 / 3, 1 / 2, 1.0]))


# --- features ---


def clusters(noise: float = 0.1, count: int = 60) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 4, count)
    return rng.standard_normal((4, 16))[kinds] + noise * rng.standard_normal((count, 16)), kinds


def kept(vectors: Array, kinds: Array) -> Any:
    return stacked(
        [
            keep_features({"y": v[None]}, [k], None, None)[0]
            for v, k in zip(vectors, kinds, strict=True)
        ]
    )


def test_neighbours_are_found_by_likeness() -> None:
    vectors, kinds = clusters(noise=1.2)
    rows = kept(vectors, kinds)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    likeness = unit @ unit.T
    np.fill_diagonal(likeness, -2)
    near = np.argsort(-likeness, axis=1)
    assert recall(rows, k=1) == [float(kinds[n[0]] == k) for n, k in zip(near, kinds, strict=True)]
    ten = recall(rows, k=10)
    assert ten == [float((kinds[n[:10]] == k).any()) for n, k in zip(near, kinds, strict=True)]
    assert 0.3 < np.mean(recall(rows, k=1)) < np.mean(ten)


def test_gain_is_one_for_the_best_ranking_and_less_for_others() -> None:
    vectors, kinds = clusters(noise=0.01)
    assert gain(kept(vectors, kinds), k=10) == pytest.approx([1.0] * len(kinds))
    # Of three samples: the second is alike, the third nearer.
    rows = np.array([[1.0, 0.0, 0.0, 7], [0.6, 0.8, 0.0, 7], [0.8, 0.6, 0.0, 3]])
    assert gain(rows, k=2)[0] == pytest.approx(1 / np.log2(3))
    assert gain(rows, k=2)[2] == 0.0


def test_a_probe_reads_labels_from_features() -> None:
    vectors, kinds = clusters(noise=0.1)
    assert np.mean(probe(kept(vectors, kinds))) == 1.0
    shuffled = np.random.default_rng(1).permutation(kinds)
    assert np.mean(probe(kept(vectors, shuffled))) < 0.6


@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=12))
def test_rank_correlation_depends_on_order_alone(pairs: list[tuple[int, int]]) -> None:
    rows = np.array(pairs, float)
    found = rank_correlation(rows)
    assert -1.0 - 1e-12 <= found <= 1.0 + 1e-12
    assert rank_correlation(np.exp(rows)) == pytest.approx(found)
    assert rank_correlation(rows * [1, -1]) == pytest.approx(-found)


def test_ties_share_their_rank() -> None:
    # By hand: ranks 0, 1.5, 1.5, 3 against 0, 1, 2, 3.
    rows = np.array([[1, 1], [2, 2], [2, 3], [5, 4]], float)
    assert rank_correlation(rows) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert rank_correlation(np.ones((3, 2))) == 0.0


def test_pairs_come_in_one_run() -> None:
    outputs = {"y": np.array([[3.0, 4.0], [4.0, 3.0]])}
    assert keep_pairs(outputs, [0.7], None, None) == [(pytest.approx(0.96), 0.7)]
    with pytest.raises(InputError, match="one run per pair"):
        keep_pairs(outputs, [0.7, 0.8], None, None)
    with pytest.raises(InputError, match="vectors, expected 2"):
        keep_pairs({"y": np.ones((3, 2))}, [0.7], None, None)


@pytest.mark.parametrize("label", ["cat", 1.5, None])
def test_a_label_of_features_is_a_class(label: object) -> None:
    with pytest.raises(InputError, match="is no class"):
        keep_features({"y": np.ones((1, 3))}, [label], None, None)


# --- as metrics ---


@pytest.mark.parametrize(
    "name", ["f1", "miou", "map", "map50", "cer", "wer", "sts", "recall@1", "ndcg@10", "probe"]
)
def test_each_has_a_row(name: str) -> None:
    metric = METRICS[name]
    assert metric.name == name
    assert metric.gathers
    assert metric.higher_is_better == (name not in ("cer", "wer"))


def test_a_decoder_stands_between_outputs_and_metric(tmp_path: Any) -> None:
    file = tmp_path / "decode.py"
    file.write_text(
        "def text(outputs):\n    return ['ab'[int(i)] for i in outputs['y'].argmax(1)]\n"
    )
    metric = resolve_metric("wer", labelled=True, decode=f"{file}:text")
    outputs = {"y": np.array([[0.0, 1.0], [1.0, 0.0]])}
    assert metric.score(outputs, ["b", "b"]) == [(0, 1), (1, 1)]


def test_a_decoder_s_arrays_reach_any_metric_and_its_chance(tmp_path: Any) -> None:
    file = tmp_path / "decode.py"
    file.write_text("def head(outputs):\n    return {'y': outputs['y'][:, :2]}\n")
    metric = resolve_metric("top1", labelled=True, decode=f"{file}:head")
    outputs = {"y": np.array([[0.0, 1.0, 9.0, 9.0]])}
    assert metric.score(outputs, np.array([1])) == [1.0]
    assert metric.chance(outputs) == 0.5
    against = resolve_metric("agreement", labelled=False, decode=f"{file}:head")
    assert against.score(outputs, [None], {"y": np.array([[0.0, 1.0, 99.0, 0.0]])}) == [1.0]


def test_a_decoder_that_fails_is_named_with_its_line(tmp_path: Any) -> None:
    file = tmp_path / "decode.py"
    file.write_text(
        "def bad(outputs):\n    return outputs['none']\n\ndef empty(outputs):\n    pass\n"
    )
    outputs = {"y": np.zeros((1, 2))}
    with pytest.raises(InputError, match=r"decode.py:2: the decoder raised KeyError"):
        resolve_metric("wer", labelled=True, decode=f"{file}:bad").score(outputs, ["a"])
    with pytest.raises(InputError, match=r"decode.py:4: the decoder returned None"):
        resolve_metric("wer", labelled=True, decode=f"{file}:empty").score(outputs, ["a"])
