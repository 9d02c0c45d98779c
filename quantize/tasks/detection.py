"""Detection: mean average precision as COCO defines it.

Boxes of one image are matched by pycocotools; what is done here is to average over any selection of
images, so that the gate can draw images with repetition.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.errors import InputError, UnfitError, UsageError
from bench.models import Array, Feeds
from quantize.evidence import Rows
from quantize.scores import Labels

# COCO's: https://cocodataset.org/#detection-eval, section "Metrics".
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MOST_DETECTIONS = 100

Floats = NDArray[np.float64]


class Matched(NamedTuple):
    """One image's detections, matched with its boxes.

    Attributes:
        classes: int64 [detections].
        scores: float64 [detections].
        hits: int8 [detections, thresholds]; 1 matched, 0 not, -1 matched a box that does not count.
        wanted: int64 [boxes], class of each box that counts.
    """

    classes: NDArray[np.int64]
    scores: Floats
    hits: NDArray[np.int8]
    wanted: NDArray[np.int64]


def match(
    outputs: Any, labels: Labels, _: Feeds | None, output: str | None
) -> list[tuple[NDArray[Any], ...]]:
    """Match the detections of each image with its boxes: a `Matched` as a plain tuple, to be kept.

    Args:
        outputs: From `--decode`: per image (boxes [n, 4], scores [n], classes [n]); or the model's
            own outputs of those names (`labels` for `classes` too), one image per run. A box is x1,
            y1, x2, y2.
        labels: Per image an array [m, 5]: box and class; a sixth column of 1 marks a crowd, which
            costs nothing to miss or to find. Rows of class -1 are padding.
        output: Has no meaning here.

    Raises:
        InputError: Shapes do not fit.
        UsageError: The outputs are no detections, or --output is given.
        UnfitError: pycocotools is missing.
    """
    if output is not None:
        raise UsageError("--output: detection takes boxes, scores and classes at once; leave it.")
    images = _images(outputs, len(labels))
    return [
        tuple(_match(*_detections(image), _boxes(label)))
        for image, label in zip(images, labels, strict=True)
    ]


def average_precision(rows: Rows, *, thresholds: slice = slice(None)) -> float:
    """Mean average precision over classes with boxes, and over IoU thresholds; 0 without boxes.

    Precision at 101 recalls, each the best at that recall or a higher one (COCO's `accumulate`).

    Args:
        rows: From `match`, any selection.
        thresholds: Which of `IOU_THRESHOLDS` count.
    """
    found = [Matched(*row) for row in rows]
    wanted = np.concatenate([f.wanted for f in found]) if found else np.zeros(0, np.int64)
    if not wanted.size:
        return 0.0
    classes = np.concatenate([f.classes for f in found])
    scores = np.concatenate([f.scores for f in found])
    hits = np.concatenate([f.hits for f in found])[:, thresholds]
    # Stable, as COCO's: equal scores keep the order of images.
    order = np.lexsort((-scores, classes))
    classes, hits = classes[order], hits[order]
    precisions = []
    for kind, boxes in zip(*np.unique(wanted, return_counts=True), strict=True):
        start, end = np.searchsorted(classes, [kind, kind + 1])
        precisions.append(_precision(hits[start:end], int(boxes)))
    return float(np.mean(precisions))


def nothing_found(rows: Rows) -> Rows:
    """The rows of images in which every detection is false.

    Args:
        rows: From `match`.
    """
    found = [Matched(*row) for row in rows]
    return [m._replace(hits=np.where(m.hits > 0, np.int8(0), m.hits)) for m in found]


def _precision(hits: NDArray[np.int8], boxes: int) -> Floats:
    """Average precision of one class per threshold, float64 [thresholds]."""
    true, false = (np.cumsum(hits == kind, axis=0, dtype=np.float64) for kind in (1, 0))
    if not len(hits):
        return np.zeros(hits.shape[1])
    recall = true / boxes
    precision = true / np.maximum(true + false, np.spacing(1))
    best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    found = np.zeros(hits.shape[1])
    for i in range(hits.shape[1]):
        at = np.searchsorted(recall[:, i], RECALLS, side="left")
        found[i] = best[at[at < len(best)], i].sum() / len(RECALLS)
    return found


def _images(outputs: Any, count: int) -> list[Any]:
    if isinstance(outputs, (list, tuple)):
        if len(outputs) != count:
            raise InputError(
                f"--decode returned {len(outputs)} entries for {count} image(s); expected one "
                "(boxes, scores, classes) per image."
            )
        return list(outputs)
    names = {n.rpartition(":")[0] or n: n for n in outputs}
    classes = next((names[n] for n in ("classes", "labels") if n in names), None)
    if classes is None or not {"boxes", "scores"} <= set(names) or count != 1:
        raise UsageError(
            f"metric map: the outputs {', '.join(map(repr, outputs))} are no detections of one "
            "image. Give --decode file.py:function, which returns one (boxes [n, 4], scores [n], "
            "classes [n]) per image."
        )
    return [(outputs[names["boxes"]], outputs[names["scores"]], outputs[classes])]


def _detections(image: Any) -> tuple[Floats, Floats, NDArray[np.int64]]:
    try:
        boxes, scores, classes = (np.asarray(part, np.float64) for part in image)
        boxes, scores, classes = boxes.reshape(-1, 4), scores.reshape(-1), classes.reshape(-1)
    except (TypeError, ValueError) as e:
        raise InputError(
            f"detections {image!r:.80}: expected (boxes [n, 4], scores [n], classes [n]): {e}."
        ) from e
    if not len(boxes) == len(scores) == len(classes):
        raise InputError(
            f"detections: {len(boxes)} boxes, {len(scores)} scores and {len(classes)} classes of "
            "one image; expected as many of each."
        )
    return boxes, scores, classes.astype(np.int64)


def _boxes(label: Any) -> Array:
    try:
        boxes = np.asarray(label, np.float64)
    except (TypeError, ValueError):
        boxes = np.zeros(0)
    if boxes.size == 0 and label is not None and not isinstance(label, str):
        return np.zeros((0, 6))
    if boxes.ndim != 2 or boxes.shape[1] not in (5, 6):
        raise InputError(
            f"label {label!r:.80}: expected an array [m, 5] of x1, y1, x2, y2, class per image "
            "(and a sixth column of 1 for a crowd)."
        )
    if boxes.shape[1] == 5:
        boxes = np.concatenate([boxes, np.zeros((len(boxes), 1))], axis=1)
    kept: Array = boxes[boxes[:, 4] >= 0]
    return kept


def _match(boxes: Floats, scores: Floats, classes: NDArray[np.int64], truth: Array) -> Matched:
    parts = []
    for kind in np.unique(np.concatenate([classes, truth[:, 4].astype(np.int64)])):
        mine = classes == kind
        parts.append(_match_class(boxes[mine], scores[mine], truth[truth[:, 4] == kind], int(kind)))
    if not parts:
        none = np.zeros(0, np.int64)
        return Matched(none, np.zeros(0), np.zeros((0, len(IOU_THRESHOLDS)), np.int8), none)
    return Matched(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _match_class(boxes: Floats, scores: Floats, truth: Array, kind: int) -> Matched:
    """One image and class, matched as pycocotools does it."""
    wanted = [_annotation(i, t[:4], crowd=bool(t[5])) for i, t in enumerate(truth, 1)]
    found = [
        {**_annotation(i, b, crowd=False), "score": s}
        for i, (b, s) in enumerate(zip(boxes, scores, strict=True), 1)
    ]
    counted = np.full(sum(not w["iscrowd"] for w in wanted), kind, np.int64)
    judged = _judge()
    # The public way in is files on disk, and it prints.
    judged._gts[1, 1], judged._dts[1, 1] = wanted, found  # noqa: SLF001
    judged.ious = {(1, 1): judged.computeIoU(1, 1)}
    result = judged.evaluateImg(1, 1, [0, np.inf], MOST_DETECTIONS)
    if result is None:
        none = np.zeros(0, np.int64)
        return Matched(none, np.zeros(0), np.zeros((0, len(IOU_THRESHOLDS)), np.int8), counted)
    hits = np.where(result["dtIgnore"], -1, result["dtMatches"] > 0).astype(np.int8).T
    best = np.asarray(result["dtScores"], np.float64)
    return Matched(np.full(len(best), kind, np.int64), best, hits, counted)


def _annotation(number: int, box: Floats, *, crowd: bool) -> dict[str, Any]:
    x1, y1, x2, y2 = (float(v) for v in box)
    width, height = x2 - x1, y2 - y1
    return {
        "id": number,
        "bbox": [x1, y1, width, height],
        "area": width * height,
        "iscrowd": int(crowd),
        "ignore": int(crowd),
    }


def _judge() -> Any:
    try:
        from pycocotools.cocoeval import COCOeval
    except ImportError as e:
        raise UnfitError(
            "metric map needs pycocotools, which is not installed: pip install 'vnnify[detection]'."
        ) from e
    judge = COCOeval(iouType="bbox")
    judge.params.iouThrs = IOU_THRESHOLDS
    judge.params.maxDets = [MOST_DETECTIONS]
    return judge
