"""Programs are exported once; each test looks at several properties of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import programs
from bench.errors import InputError, UnfitError
from bench.models import read_model
from bench.programs import read_program, save_program
from bench.runtimes import RUNTIMES, Settings

torch = pytest.importorskip("torch", reason="needs torch: pip install 'vnnify[torch]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


class _Net(torch.nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(4, 2)

    def forward(self, x: Any) -> Any:
        return self.linear(x).relu(), x.sum(1)


class _Changing(torch.nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return x.add_(1)


def _export(module: Any, path: Path, names: dict[str, list[str]] | None = None) -> Path:
    axes = ({0: torch.export.Dim.AUTO},)
    exported = torch.export.export(module.eval(), (torch.ones(3, 4),), dynamic_shapes=axes)
    if names is None:
        torch.export.save(exported, path)
    else:
        save_program(exported, path, **names)
    return path


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = {"inputs": ["image/0"], "outputs": ["probabilities", "sum"]}
    return _export(_Net(), tmp_path_factory.mktemp("net") / "net.pt2", names)


def _expected() -> tuple[Any, Any]:
    with torch.no_grad():
        return tuple(t.numpy() for t in _Net()(torch.tensor(X)))


def test_a_program_says_what_it_takes_by_the_names_it_was_given(net: Path) -> None:
    model = read_model(net)
    assert str(model.inputs[0]).startswith("image/0:float32[")
    assert model.inputs[0].batch_is_free
    assert [s.name for s in model.outputs] == ["probabilities", "sum"]
    assert model.size_bytes == net.stat().st_size
    assert len(model.sha256) == 64


def test_eager_computes_what_the_module_does(net: Path) -> None:
    session = RUNTIMES["torch"].open(net, Settings(threads=1))
    session.prepare({"image/0": X})
    assert (session.device, session.compile_ns) == ("cpu", None)
    found = session.run({"image/0": X})
    assert list(found) == ["probabilities", "sum"]
    for got, expected in zip(found.values(), _expected(), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    # Arrays that may not be written to are no reason for a warning or a wrong answer.
    frozen = X.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(session.run({"image/0": frozen})["sum"], found["sum"])
    session.stage({"image/0": X})()  # type: ignore[attr-defined]
    session.close()


@pytest.mark.parametrize(
    ("feeds", "says"),
    [
        ({"x": X}, r"inputs \['x'\], the model takes \['image/0'\]"),
        ({"image/0": X.astype(np.float64)}, "float64, the model takes float32"),
        ({"image/0": X[:, :3]}, "on this sample"),
    ],
)
def test_what_does_not_fit_is_said(net: Path, feeds: dict[str, Any], says: str) -> None:
    session = RUNTIMES["torch"].open(net, Settings(threads=1))
    with pytest.raises(InputError, match=says):
        session.run(feeds)


def test_half_precision_computes_in_half_precision(net: Path) -> None:
    session = RUNTIMES["torch"].open(net, Settings(threads=1, precision="fp16"))
    got = session.run({"image/0": X})["probabilities"]
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, _expected()[0], rtol=0.01)


def test_compiling_is_timed_and_computes_the_same(net: Path) -> None:
    pytest.importorskip("torch._inductor")
    try:
        session = RUNTIMES["torch-compile"].open(net, Settings(threads=1))
    except UnfitError as e:
        pytest.skip(str(e))
    session.prepare({"image/0": X})
    assert session.compile_ns is not None
    assert session.compile_ns > 10_000_000
    found = session.run({"image/0": X})
    np.testing.assert_allclose(found["probabilities"], _expected()[0], rtol=1e-5)


class _Int8(torch.nn.Module):  # type: ignore[misc]
    """A layer as PT2E writes it: u8 activations, s8 weights, and the product between pairs."""

    def __init__(self) -> None:
        super().__init__()
        codes = torch.arange(-4, 4, dtype=torch.int8).reshape(2, 4) * 30
        self.register_buffer("codes", codes)

    def forward(self, x: Any) -> Any:
        pairs = torch.ops.quantized_decomposed
        code = pairs.quantize_per_tensor.default(x, 1 / 127, 128, 0, 255, torch.uint8)
        real = pairs.dequantize_per_tensor.default(code, 1 / 127, 128, 0, 255, torch.uint8)
        weights = pairs.dequantize_per_tensor.default(self.codes, 0.01, 0, -128, 127, torch.int8)
        return torch.nn.functional.linear(real, weights)


@pytest.mark.parametrize("runtime", ["torch", "torch-compile"])
def test_an_int8_program_of_pt2e_computes_its_integers(tmp_path: Path, runtime: str) -> None:
    import torch.ao.quantization.fx._decomposed  # noqa: F401 - registers its operators

    file = _export(_Int8(), tmp_path / "int8.pt2")
    try:
        session = RUNTIMES[runtime].open(file, Settings(threads=1))
    except UnfitError as e:
        pytest.skip(str(e))
    (name,) = read_program(file).inputs
    feeds = {name.name: X}
    session.prepare(feeds)
    codes = np.clip(np.round(X.astype(np.float64) * 127) + 128, 0, 255).astype(np.int64) - 128
    weights = np.arange(-4, 4).reshape(2, 4) * 30
    (found,) = session.run(feeds).values()
    np.testing.assert_allclose(found, (codes @ weights.T) / 127 * 0.01, rtol=1e-5, atol=1e-6)


def test_a_missing_compiler_is_named(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UnfitError, match=r"no-such-compiler is not here.*apt-get install g\+\+"):
        RUNTIMES["torch-compile"].open(net, Settings(threads=1))


def test_a_gpu_that_is_not_there_is_named(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnfitError, match="sees no GPU"):
        RUNTIMES["torch"].open(net, Settings(threads=1, device="cuda"))


def test_a_program_that_writes_into_its_input_leaves_ours_alone(tmp_path: Path) -> None:
    path = _export(_Changing(), tmp_path / "c.pt2")
    session = RUNTIMES["torch"].open(path, Settings(threads=1))
    mine = X.copy()
    np.testing.assert_array_equal(session.run({"x": mine})["output_0"], X + 1)
    np.testing.assert_array_equal(mine, X)


def test_names_that_do_not_fit_are_refused(net: Path, tmp_path: Path) -> None:
    path = _export(_Net(), tmp_path / "n.pt2", {"inputs": ["a", "b"], "outputs": []})
    with pytest.raises(InputError, match="does not name its inputs"):
        read_program(path)


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.pt2").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no complete"):
        read_program(tmp_path / "m.pt2")
    with pytest.raises(InputError, match="no such file"):
        read_program(tmp_path / "none.pt2")


def test_a_program_is_checked_before_torch_opens_it(
    net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: Path, name: str) -> None:
        raise InputError(f"{name}: refused")

    monkeypatch.setattr(programs, "refuse_unsafe", refuse)
    monkeypatch.setattr(programs, "load_program", lambda *_: pytest.fail("opened"))
    with pytest.raises(InputError, match="refused"):
        read_program(net)
