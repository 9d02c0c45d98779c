from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bench import latency, running
from bench.errors import InputError, UnfitError, UnsupportedError, UsageError
from bench.latency import Variant
from bench.load import Demand
from bench.machine import Machine, describe
from bench.models import Model, read_model
from bench.others import Planned
from bench.planning import Plan, Request, open_models, what_runs
from bench.report import BenchReport
from bench.running import run
from tests import tiny

ORT = ("onnxruntime",)
QUICK: dict[str, Any] = {
    "runtimes": ORT,
    "threads": (1,),
    "rounds": 1,
    "seconds": 0.01,
}


@pytest.fixture(scope="module")
def here() -> Machine:
    return describe()


@pytest.fixture
def with_gpu(here: Machine) -> Machine:
    return replace(here, gpus=("H100",), no_gpu_reason="")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tiny.linear(tmp_path / "m.onnx"))


def _run(plan: Plan, machine: Machine, folder: Path) -> BenchReport:
    scratch = folder / "scratch"
    scratch.mkdir()
    return run(plan, machine, scratch, exporter=None, progress=lambda *_: None)


def _models(*texts: str) -> list[Model]:
    return [Model(Path(t), (), (), 17, t, 1) for t in texts]


def test_each_kind_of_file_runs_in_its_runtimes(here: Machine) -> None:
    plan = Plan(("a.onnx", "b.pt2"), runtimes=("onnxruntime", "torch"), threads=(2,))
    found, missing = what_runs(plan, _models("a.onnx", "b.pt2"), here)
    assert [v.name for v in found] == ["a, onnxruntime", "b, torch"]
    assert [m.name for m in missing] == ["GPU"]


def test_threads_are_swept_on_the_cpu(here: Machine) -> None:
    plan = Plan(("a.onnx",), runtimes=("onnxruntime",), threads=(1, 2))
    found, _ = what_runs(plan, _models("a.onnx"), here)
    assert [(v.name, v.threads) for v in found] == [
        ("a, onnxruntime, 1 thread", 1),
        ("a, onnxruntime, 2 threads", 2),
    ]


def test_a_gpu_runs_the_first_model_in_every_precision(with_gpu: Machine) -> None:
    plan = Plan(("a.onnx", "b.onnx"), runtimes=ORT, devices=("cpu", "cuda"), threads=(1,))
    found, missing = what_runs(plan, _models("a.onnx", "b.onnx"), with_gpu)
    gpu = [v for v in found if v.device == "cuda"]
    assert {v.model.sha256 for v in gpu} == {"a.onnx"}
    assert {(v.precision, v.copies) for v in gpu} == {
        (p, c) for p in ("fp32", "tf32", "fp16") for c in (True, False)
    }
    assert len({v.name for v in found}) == len(found)
    assert missing == []


def test_a_device_that_is_missing_is_a_row_unless_it_is_all_that_was_asked(here: Machine) -> None:
    bare = replace(here, gpus=(), no_gpu_reason="no driver")
    both = Plan(("a.onnx",), runtimes=ORT, devices=("cpu", "cuda"), threads=(1,))
    found, missing = what_runs(both, _models("a.onnx"), bare)
    assert [v.device for v in found] == ["cpu"]
    assert str(missing[0]) == "a, onnxruntime, cuda: not measured: no driver."
    with pytest.raises(UnfitError, match="cannot measure on 'cuda': no driver"):
        what_runs(replace(both, devices=("cuda",)), _models("a.onnx"), bare)


@pytest.mark.slow
def test_batches_and_loads_are_measured(here: Machine, path: str, tmp_path: Path) -> None:
    plan = Plan(
        (path,), **QUICK, batches=(1, 4), demand=Demand(streams=(1,), rounds=1), peaks=False
    )
    report = _run(plan, here, tmp_path)
    assert [(x.variant.name, x.variant.batch) for x in report.latencies] == [
        ("m, onnxruntime, batch 1", 1),
        ("m, onnxruntime, batch 4", 4),
    ]
    assert len(report.controls) == 2
    assert [(x.variant.name, x.streams) for x in report.loads] == [
        ("m, onnxruntime, batch 1", 1),
        ("m, onnxruntime, batch 4", 1),
    ]
    assert [w.float_ops for w in report.works] == [24, 96]
    assert report.comparisons == ()


@pytest.mark.slow
def test_what_one_runtime_refuses_is_a_row_and_not_the_end(
    here: Machine, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = str(tiny.linear(tmp_path / "n.onnx", seed=1))
    plan = Plan((path, other), **QUICK, peaks=False)

    def refusal(variant: Variant, _feeds: object) -> InputError | None:
        return InputError("refused.") if variant.name.startswith("n") else None

    monkeypatch.setattr(running, "refusal", refusal)
    report = _run(plan, here, tmp_path)
    assert [x.variant.name for x in report.latencies] == ["m, onnxruntime"]
    assert str(report.missing[-1]) == "n, onnxruntime: not measured: refused."
    monkeypatch.setattr(running, "refusal", lambda *_: InputError("refused."))
    with pytest.raises(InputError, match="refused"):
        run(plan, here, tmp_path, exporter=None, progress=lambda *_: None)


def test_a_model_that_is_no_file_is_exported_by_whoever_can(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'vnnify[torch]'")
    asked: list[Request] = []

    def export(request: Request) -> None:
        asked.append(request)
        exported = torch.export.export(torch.nn.Linear(4, 2).eval(), (torch.ones(1, 4),))
        torch.export.save(exported, request.out)

    plan = Plan(("net.py:build",), weights=Path("w"), inputs=("x:f32[1,4]",))
    (found,) = open_models(plan, tmp_path, export)
    assert asked == [
        Request(
            text="net.py:build",
            weights=Path("w"),
            inputs=("x:f32[1,4]",),
            data=None,
            trust=False,
            out=tmp_path / "0.pt2",
        )
    ]
    assert found.path == tmp_path / "0.pt2"
    assert found.inputs[0].shape == (1, 4)


def test_a_program_is_copied_before_it_is_checked(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs torch: pip install 'vnnify[torch]'")
    (tmp_path / "m.pt2").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"m\.pt2: .*no complete \.pt2 archive") as caught:
        open_models(Plan((str(tmp_path / "m.pt2"),)), tmp_path, None)
    assert "0.pt2" not in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        open_models(Plan(("none.pt2",)), tmp_path, None)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"devices": ("tpu",)}, "unknown device 'tpu'"),
        ({"runtimes": ("abacus",)}, "unknown runtime 'abacus'"),
        ({"batches": (0,)}, "at least 1"),
        ({"threads": (10**6,)}, "hardware threads"),
        ({"models": ("a.onnx", "a.onnx")}, "given twice"),
    ],
)
def test_nonsense_is_refused(
    here: Machine, path: str, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        _run(replace(Plan((path,)), **changes), here, tmp_path)


def test_a_batch_of_a_model_with_a_fixed_one_is_refused(here: Machine, tmp_path: Path) -> None:
    fixed = tiny.unary(tmp_path / "f.onnx", "Relu", onnx.TensorProto.FLOAT, [1, 4])
    with pytest.raises(UsageError, match=r"--batch 4 needs an input .* x:float32\[1,4\]"):
        _run(Plan((str(fixed),), **QUICK, batches=(1, 4)), here, tmp_path)


def test_a_fixed_batch_can_be_named(here: Machine, tmp_path: Path) -> None:
    fixed = tiny.unary(tmp_path / "f.onnx", "Relu", onnx.TensorProto.FLOAT, [8, 4])
    plan = Plan((str(fixed),), **QUICK, batches=(8,), peaks=False, operators=False)
    (found,) = _run(plan, here, tmp_path).latencies
    assert found.per_second == pytest.approx(8000 / found.median_ms)


def test_free_axes_get_the_sizes_that_were_given(here: Machine, tmp_path: Path) -> None:
    free = str(tiny.unary(tmp_path / "f.onnx", "Relu", onnx.TensorProto.FLOAT, ["n", 3, "w"]))
    quick = {**QUICK, "peaks": False, "operators": False}
    with pytest.raises(UnsupportedError, match="or sizes with --input, as in --input x:float32"):
        run(Plan((free,), **quick), here, tmp_path, exporter=None, progress=lambda *_: None)
    plan = Plan((free,), **quick, inputs=("x:f32[N,3,7]",), batches=(2,))
    assert len(_run(plan, here, tmp_path).latencies) == 1
    for text in ("y:f32[N,3,7]", "x:f16[N,3,7]", "x:f32[N,4,7]", "x:f32[N,3]"):
        with pytest.raises(UsageError, match=r"--input .*takes x:float32\[n,3,w\]"):
            run(
                replace(plan, inputs=(text,)), here, tmp_path, exporter=None,
                progress=lambda *_: None,
            )  # fmt: skip


def test_what_could_not_be_laid_beside_is_refused_before_anything_runs(
    here: Machine, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("measure", "refusal"):
        monkeypatch.setattr(running, name, lambda *_, **__: pytest.fail("something ran"))
    seen: list[Planned] = []

    def refuse(_machine: Machine, rows: Sequence[Planned]) -> None:
        seen.extend(rows)
        raise InputError("unlike")

    plan = Plan((path,), **QUICK, batches=(1, 2))
    with pytest.raises(InputError, match="unlike"):
        run(plan, here, tmp_path, exporter=None, progress=lambda *_: None, refuse=refuse)
    assert [(p.variant.name, p.variant.batch) for p in seen] == [
        ("m, onnxruntime, batch 1", 1),
        ("m, onnxruntime, batch 2", 2),
    ]
    assert seen[0].feeds_sha256 != seen[1].feeds_sha256
    monkeypatch.undo()
    found = _run(replace(plan, peaks=False, operators=False), here, tmp_path)
    assert [x.feeds_sha256 for x in found.latencies] == [p.feeds_sha256 for p in seen]


def test_an_interruption_keeps_what_was_measured(
    here: Machine, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan((path,), **{**QUICK, "rounds": 3}, batches=(1, 2))
    rounds = 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal rounds
        rounds += 1
        if rounds == stop:
            raise KeyboardInterrupt
        return once(*args, **kwargs)

    once = latency._isolated
    monkeypatch.setattr(latency, "_isolated", interrupted)
    stop = 2  # In the middle of the first round.
    with pytest.raises(KeyboardInterrupt):
        run(plan, here, tmp_path, exporter=None, progress=lambda *_: None)
    rounds, stop = 0, 4  # In the second: the variant and its control have had one each.
    found = _run(plan, here, tmp_path)
    assert [(x.variant.batch, len(x.rounds)) for x in found.latencies] == [(1, 1)]
    assert [len(found.controls), found.loads, found.peaks] == [1, (), ()]
    assert str(found.missing[-1]).endswith("not measured: interrupted.")


def test_data_may_hold_labels(tmp_path: Path, path: str) -> None:
    from bench.feeds import read_feeds

    np.savez(tmp_path / "d.npz", x=np.zeros((4, 4), np.float32), labels=np.zeros(4, np.int64))
    assert read_feeds(tmp_path / "d.npz", read_model(Path(path)), batch=2)[0].keys() == {"x"}
