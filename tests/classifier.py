"""A small image classifier that knows its task, with samples to calibrate and judge it."""

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from tests import tiny

CLASSES = 4
_Array = np.ndarray[Any, np.dtype[np.float32]]


def images(count: int, *, seed: int = 1, noise: float = 0.3) -> tuple[_Array, _Array]:
    """Float32 [count, 1, 8, 8] and int64 labels [count]: each class has a pattern of its own."""
    patterns = np.random.default_rng(0).standard_normal((CLASSES, 1, 8, 8)).astype(np.float32)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    noises = rng.standard_normal((count, 1, 8, 8)).astype(np.float32)
    return patterns[labels] + np.float32(noise) * noises, labels


def samples(path: Path, count: int = 400, *, seed: int = 1, noise: float = 0.3) -> Path:
    """An .npz of them, labelled."""
    x, labels = images(count, seed=seed, noise=noise)
    np.savez(path, x=x, labels=labels)
    return path


def network(path: Path, *, channels: int = 8, seed: int = 0, fault: float | None = None) -> Path:
    """Random convolutions and a linear layer fitted to their features: right on nearly all samples.

    Args:
        path: The file to write.
        channels: Of the convolutions.
        seed: Of the convolutions' weights.
        fault: Put in place of one weight.
    """
    rng = np.random.default_rng(seed)
    constants: dict[str, Any] = {
        "w1": rng.standard_normal((channels, 1, 3, 3)).astype(np.float32) / 3,
        "b1": rng.standard_normal(channels).astype(np.float32) / 4,
        "w2": (rng.standard_normal((channels, channels, 3, 3)) / (3 * channels**0.5)).astype("f4"),
        "b2": rng.standard_normal(channels).astype(np.float32) / 4,
    }
    pads = [1, 1, 1, 1]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="first", pads=pads),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="second", pads=pads),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Flatten", ["r2"], ["features"]),
    ]
    image = ("x", TensorProto.FLOAT, ["n", 1, 8, 8])
    size = channels * 64
    body = ("features", TensorProto.FLOAT, ["n", size])
    x, labels = images(256, seed=2)
    features = _run(tiny.save(path, nodes, [image], [body], constants), x)
    constants["w3"], constants["b3"] = _fitted(features, labels)
    if fault is not None:
        constants["w2"][0, 0, 0, 0] = fault
    head = helper.make_node("Gemm", ["features", "w3", "b3"], ["logits"], name="head")
    logits = ("logits", TensorProto.FLOAT, ["n", CLASSES])
    return tiny.save(path, [*nodes, head], [image], [logits], constants)


def _fitted(features: _Array, labels: _Array) -> tuple[_Array, _Array]:
    """Ridge regression on one-hot labels."""
    centre = features.mean(axis=0)
    wanted = np.eye(CLASSES)[labels.astype(int)] - 1 / CLASSES
    shifted = (features - centre).astype(np.float64)
    gram = shifted.T @ shifted + 10 * np.eye(features.shape[1])
    weights = np.linalg.solve(gram, shifted.T @ wanted)
    return weights.astype(np.float32), (-centre @ weights).astype(np.float32)


def _run(path: Path, x: _Array) -> _Array:
    import onnxruntime as ort

    found: _Array = ort.InferenceSession(str(path)).run(None, {"x": x})[0]
    return found
