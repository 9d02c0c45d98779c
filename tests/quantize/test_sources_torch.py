"""Exports cost seconds, so each test that makes one looks at several properties of it."""

import logging
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bench.errors import InputError, UnsupportedError, UsageError
from bench.inputs import parse_input
from bench.models import Feeds, Model
from bench.runtimes.onnxruntime import OnnxRuntime
from bench.runtimes.seam import Settings
from quantize.data import infer_inputs, read_samples
from quantize.sources import ModelSpec, convert, describe_inputs, torch_export
from quantize.sources.torch_weights import load_weights

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vnnify[torch]'")
pytestmark = [
    pytest.mark.slow,
    # torch's own modules use what Python and numpy deprecate; ours may not.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

NETS = '''
import dataclasses
import torch
from torch import nn

class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 2)

    def forward(self, image):
        print("noise")
        return self.fc(self.drop(self.bn(self.conv(image)).relu().mean((2, 3))))

@dataclasses.dataclass
class Out:
    logits: object
    hidden: object
    loss: object = None

class Transformer(nn.Module):
    """Positions come from a table of 32, so the length is free up to there."""

    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(50, 8)
        self.pos = nn.Embedding(32, 8)
        self.att = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, ids, mask):
        x = self.emb(ids) + self.pos(torch.arange(ids.shape[1]))
        y, _ = self.att(x, x, x, key_padding_mask=mask == 0)
        return Out(self.head(y[:, 0]), y)

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x, h, c):
        y, (h, c) = self.lstm(x, (h, c))
        return {"x": y, "state": (h, c), "count": 3}

class OneAtATime(nn.Module):
    def forward(self, x):
        if x.shape[0] != 1:
            raise ValueError("one at a time")
        return x.view(3) * 2

class Branching(nn.Module):
    def forward(self, x):
        return x + 1 if float(x.sum()) > 0 else x - 1

class Dice(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True)

class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, dtype=torch.complex64))

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = nn.Linear(2, 2)
        self.b.weight = self.a.weight

class Bags(nn.Module):
    def __init__(self):
        super().__init__()
        self.plain = nn.EmbeddingBag(9, 4)
        self.padded = nn.EmbeddingBag(9, 4, mode="sum", padding_idx=-1)
        self.parted = nn.EmbeddingBag(9, 4, padding_idx=2, include_last_offset=True)

    def forward(self, cat, weights, linear, offsets):
        whole = torch.cat([self.plain(cat), self.padded(cat, per_sample_weights=weights)], 1)
        return {"whole": -whole, "parted": self.parted(linear, offsets)}

def seeded(kind):
    def make():
        print("noise")
        torch.manual_seed(0)
        return kind()
    return make

cnn, transformer, recurrent = seeded(Cnn), seeded(Transformer), seeded(Recurrent)
bags = seeded(Bags)

def no_module():
    return 3
'''


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(NETS)
    return path


def _make(nets: Path, name: str) -> Any:
    scope: dict[str, Any] = {"__name__": "nets_for_tests"}
    module = type(sys)("nets_for_tests")
    sys.modules["nets_for_tests"] = module
    exec(NETS, scope)
    vars(module).update(scope)
    return scope[name]().eval()


def _run(model: Model, feeds: Feeds) -> Feeds:
    session = OnnxRuntime().open(model.path, Settings(threads=1))
    try:
        return session.run(feeds)
    finally:
        session.close()


def test_a_network_with_weights_becomes_a_checked_onnx_file(
    nets: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    trained = _make(nets, "cnn")
    with torch.no_grad():
        trained.bn.running_mean += 3
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    np.savez(
        tmp_path / "data.npz",
        image=np.random.default_rng(0).standard_normal((5, 3, 6, 6)).astype(np.float32),
    )
    data = str(tmp_path / "data.npz")
    samples = read_samples(data, infer_inputs(data), scratch=tmp_path)
    spec = ModelSpec(f"{nets}:cnn", weights=tmp_path / "w.safetensors")
    assert describe_inputs(spec) is None
    capfd.readouterr()

    model = convert(spec, samples, tmp_path / "out" / "fp32.onnx")

    assert capfd.readouterr().out == ""
    assert [str(s) for s in model.inputs] == ["image:float32[N,3,6,6]"]
    assert [str(s) for s in model.outputs] == ["output_0:float32[N,2]"]
    graph = onnx.load(model.path).graph
    assert {n.op_type for n in graph.node} >= {"Conv", "Relu", "Gemm"}
    assert "fc.weight" in {i.name for i in graph.initializer}
    assert os.fsencode(tmp_path) not in model.path.read_bytes()
    assert [p.name for p in model.path.parent.iterdir()] == ["fp32.onnx"]

    batch = np.concatenate([s.feeds["image"] for s in samples])
    wanted = trained(torch.tensor(batch)).detach().numpy()
    np.testing.assert_allclose(_run(model, {"image": batch})["output_0"], wanted, atol=1e-5)


def test_lengths_that_vary_stay_free_and_dataclasses_name_the_outputs(
    nets: Path, tmp_path: Path
) -> None:
    source = tmp_path / "data.py"
    source.write_text(
        "import numpy as np\n"
        "def samples():\n"
        "    for n in (5, 3, 9):\n"
        "        ids = np.arange(n, dtype=np.int64)[None]\n"
        "        yield {'mask': np.ones_like(ids), 'ids': ids}, 0\n"
    )
    data = f"{source}:samples"
    samples = read_samples(data, infer_inputs(data), scratch=tmp_path)
    model = convert(ModelSpec(f"{nets}:transformer"), samples, tmp_path / "fp32.onnx")

    assert [str(s) for s in model.inputs] == ["mask:int64[N,S]", "ids:int64[N,S]"]
    assert [s.name for s in model.outputs] == ["logits", "hidden"]
    ids = np.arange(24, dtype=np.int64).reshape(2, 12)
    found = _run(model, {"ids": ids, "mask": np.ones_like(ids)})
    assert found["hidden"].shape == (2, 12, 8)


def _bags(bags: int, entries: int) -> Feeds:
    """Offsets that leave bags empty, at the end too."""
    rng = np.random.default_rng(bags)
    starts = np.sort(rng.integers(0, entries, bags - 2))
    return {
        "cat": rng.integers(0, 9, (bags, 3)),
        "weights": rng.standard_normal((bags, 3)).astype(np.float32),
        "linear": rng.integers(0, 9, entries),
        "offsets": np.array([0, *starts, entries, entries]),
    }


@pytest.mark.parametrize("packed", [False, True])
def test_embedding_bags_need_no_loop_and_inputs_may_be_called_like_operators(
    nets: Path, tmp_path: Path, *, packed: bool
) -> None:
    text, feeds = f"{nets}:bags", _bags(5, 7)
    if packed:
        text = str(tmp_path / "bags.pt2")
        free = ({0: torch.export.Dim.DYNAMIC},) * 4
        given = tuple(torch.tensor(a) for a in feeds.values())
        program = torch.export.export(_make(nets, "bags"), given, dynamic_shapes=free)
        torch.export.save(program, text)
    for i, size in enumerate((4, 6)):
        np.savez(tmp_path / f"{i}.npz", **_bags(size, size + 2))
    samples = read_samples(str(tmp_path), infer_inputs(str(tmp_path)), scratch=tmp_path)
    model = convert(ModelSpec(text), samples, tmp_path / "fp32.onnx")

    graph = onnx.load(model.path).graph
    assert not {n.op_type for n in graph.node} & {"Loop", "SequenceEmpty"}
    assert [s.name for s in model.inputs] == list(feeds)
    wanted = _make(nets, "bags")(*(torch.tensor(a) for a in feeds.values()))
    found = _run(model, feeds)
    for name in ("whole", "parted"):
        np.testing.assert_allclose(found[name], wanted[name].detach().numpy(), atol=1e-5)


def test_a_recurrent_network_keeps_its_length_free_without_data(
    nets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_export, "_MAX_INLINE_BYTES", 0)
    inputs = ("x:f32[N,T,3]", "h:f32[1,N,4]", "c:f32[1,N,4]")
    spec = ModelSpec(f"{nets}:recurrent", inputs=tuple(parse_input(i) for i in inputs))
    assert describe_inputs(spec) == spec.inputs
    model = convert(spec, None, tmp_path / "fp32.onnx")

    assert [s.name for s in model.outputs] == ["x_out", "state_0", "state_1"]
    assert not isinstance((model.outputs[0].shape or ())[1], int)
    assert (tmp_path / "fp32.onnx.data").exists()
    state = np.zeros((1, 2, 4), np.float32)
    feeds = {"x": np.zeros((2, 13, 3), np.float32), "h": state, "c": state}
    assert _run(model, feeds)["x_out"].shape == (2, 13, 4)


def test_a_plain_program_needs_no_trust(nets: Path, tmp_path: Path) -> None:
    batch = torch.export.Dim.DYNAMIC
    exported = torch.export.export(
        _make(nets, "cnn"), (torch.zeros(2, 3, 6, 6),), dynamic_shapes=({0: batch},)
    )
    path = tmp_path / "cnn.pt2"
    torch.export.save(exported, path)

    (image,) = describe_inputs(ModelSpec(str(path))) or ()
    assert image.name == "image"
    assert image.batch_is_free
    model = convert(ModelSpec(str(path)), None, tmp_path / "fp32.onnx")
    assert model.inputs[0].batch_is_free

    path.write_bytes(path.read_bytes()[:400])
    for trust in (False, True):
        with pytest.raises(InputError, match="cannot load it"):
            describe_inputs(ModelSpec(str(path), trust=trust))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch's own decompositions
@pytest.mark.parametrize("decomposed", [False, True])
def test_a_program_in_training_mode_is_refused(tmp_path: Path, *, decomposed: bool) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).train()
    program = torch.export.export(module, (torch.ones(2, 4),))
    path = tmp_path / "m.pt2"
    torch.export.save(program.run_decompositions() if decomposed else program, path)
    with pytest.raises(UnsupportedError, match=r"m\.pt2: was exported in training mode"):
        describe_inputs(ModelSpec(str(path)))
    torch.export.save(torch.export.export(module.eval(), (torch.ones(2, 4),)), path)
    assert describe_inputs(ModelSpec(str(path)))


def test_a_pickle_named_like_a_program_does_nothing(tmp_path: Path) -> None:
    path = tmp_path / "hostile.pt2"
    path.write_bytes(pickle.dumps(_Touch(tmp_path / "canary")))
    with pytest.raises(InputError):
        convert(ModelSpec(str(path)), None, tmp_path / "out" / "fp32.onnx")
    assert not (tmp_path / "canary").exists()


def test_a_batch_axis_that_cannot_be_free_is_fixed(
    nets: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = ModelSpec(f"{nets}:OneAtATime", inputs=(parse_input("x:f32[N,3]"),))
    np.save(tmp_path / "x.npy", np.ones((3, 3), np.float32))
    samples = read_samples(str(tmp_path / "x.npy"), spec.inputs, scratch=tmp_path)
    model = convert(spec, samples, tmp_path / "b.onnx")
    assert [str(s) for s in model.inputs] == ["x:float32[1,3]"]
    assert "free batch axis, so it is fixed: ValueError: one at a time" in caplog.text


def test_code_that_depends_on_values_cannot_be_exported(nets: Path, tmp_path: Path) -> None:
    spec = ModelSpec(f"{nets}:Branching", inputs=(parse_input("x:f32[1,3]"),))
    with pytest.raises(UnsupportedError, match=r"torch cannot export the model: \w+"):
        convert(spec, None, tmp_path / "fp32.onnx")


@pytest.mark.parametrize(
    ("name", "inputs", "error", "message"),
    [
        ("cnn", (), UsageError, r"Give --data, or --input"),
        ("cnn", ("a:f32[N]", "b:f32[N]"), UsageError, "forward takes image, the inputs are a, b"),
        ("cnn", ("image:f32[N,4,6,6]",), InputError, r"nets.py:16: the model raised RuntimeError"),
        ("transformer", ("ids:i64[N,S]",), UsageError, "forward takes ids, mask"),
        ("cnn", ("image:string[N]",), UnsupportedError, "cannot be fed string"),
        ("Half", ("x:f32[N]",), UnsupportedError, "weight 'w' is complex"),
        ("Dice", ("x:f32[N,64]",), UnsupportedError, "two runs on one sample give different"),
        ("no_module", ("x:f32[N]",), InputError, r"made a int, expected a torch.nn.Module"),
        ("cmn", ("x:f32[N]",), UsageError, "Did you mean 'cnn'"),
    ],
)
def test_a_factory_that_does_not_fit_is_answered_with_what_to_do(
    nets: Path,
    tmp_path: Path,
    name: str,
    inputs: tuple[str, ...],
    error: type[Exception],
    message: str,
) -> None:
    spec = ModelSpec(f"{nets}:{name}", inputs=tuple(parse_input(i) for i in inputs))
    with pytest.raises(error, match=message):
        convert(spec, None, tmp_path / "out" / "fp32.onnx")


# Weights


class _Touch:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_weights_that_are_a_pickle_are_never_run(nets: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save({"conv.weight": _Touch(canary)}, tmp_path / "zip.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(_Touch(canary)))
    torch.save(_make(nets, "cnn"), tmp_path / "module.pt")
    for name in ("zip.pt", "raw.pt", "module.pt"):
        with pytest.raises(InputError, match=r"holds Python objects.*save_file"):
            load_weights(_make(nets, "cnn"), tmp_path / name)
    assert not canary.exists()


def test_checkpoints_are_unwrapped_and_it_is_said(
    nets: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = {f"module._orig_mod.{k}": v + 1 for k, v in _make(nets, "cnn").state_dict().items()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "w.pt")
    module = _make(nets, "cnn")
    with caplog.at_level(logging.INFO):
        load_weights(module, tmp_path / "w.pt")
    assert torch.equal(module.fc.bias, state["module._orig_mod.fc.bias"])
    assert "entry 'model'" in caplog.text
    assert "prefix 'module.'" in caplog.text


def test_tied_weights_may_be_stored_once(nets: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = _make(nets, "Tied").state_dict()
    kept = {k: v.clone() + 1 for k, v in state.items() if k != "b.weight"}
    save_file(kept, tmp_path / "w.safetensors")
    module = _make(nets, "Tied")
    load_weights(module, tmp_path / "w.safetensors")
    assert torch.equal(module.b.weight, kept["a.weight"])


def _state(nets: Path, **changes: Any) -> dict[str, Any]:
    state = {k: v for k, v in _make(nets, "cnn").state_dict().items() if k not in changes}
    return {**state, **{k: v for k, v in changes.items() if v is not None}}


def test_weights_that_do_not_fit_name_the_key(nets: Path, tmp_path: Path) -> None:
    cases = [
        ({"fc.bias": None, "fc.bais": torch.zeros(2)}, r"'fc.bias'. Did you mean 'fc.bais'"),
        ({"fc.bias": None}, r"1 missing key\(s\), the first is 'fc.bias'"),
        ({"extra": torch.zeros(1)}, r"1 unexpected key\(s\), the first is 'extra'"),
        ({"fc.weight": torch.zeros(3, 4)}, "size mismatch for fc.weight"),
        ({"epoch": 3}, "holds a dict, expected a state dict"),
    ]
    for changes, message in cases:
        torch.save(_state(nets, **changes), tmp_path / "w.pt")
        with pytest.raises(InputError, match=message):
            load_weights(_make(nets, "cnn"), tmp_path / "w.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x10\0\0\0\0\0\0\0{bad json", "not a complete|holds Python objects"),
        (None, "no such file"),
    ],
)
def test_damaged_weights_are_refused(
    nets: Path, tmp_path: Path, suffix: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_weights(_make(nets, "cnn"), path)


def test_there_is_no_way_to_unpickle_without_restriction() -> None:
    sources = Path(torch_export.__file__).parent.glob("*.py")
    assert not [p.name for p in sources if "weights_only=False" in p.read_text()]
