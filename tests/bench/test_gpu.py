import subprocess
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bench import gpu, machine, sampling
from bench.compare import compare
from bench.document import bench_document
from bench.gpu import Gpu, first_visible, read_gpus
from bench.latency import Latency, Variant
from bench.machine import describe
from bench.machine_table import machine_table
from bench.models import Model
from bench.render import Table
from bench.report import assemble
from tests.fakes import MS, FakeClock, FakeRuntime, FakeSession
from tests.timing import latency

L4 = "NVIDIA L4, 550.54.15, 23034, 72.00, 31.75, 1215, 2040, 54\n"
HELD = Gpu("NVIDIA L4", "550.54.15", 23034.0, 72.0, 31.75, 1215.0, 2040.0, 54.0)


class Asked:
    """Stands in for nvidia-smi."""

    def __init__(self, answer: str) -> None:
        self.answer = answer
        self.commands: list[Sequence[str]] = []

    def __call__(self, command: Sequence[str]) -> str:
        self.commands.append(command)
        return self.answer


def test_the_tool_is_asked_once_for_everything() -> None:
    ask = Asked(L4 * 2)
    assert read_gpus(ask=ask) == (HELD, HELD)
    (command,) = ask.commands
    assert command[0] == "nvidia-smi"
    assert "power.limit" in command[1]
    assert "-i" not in command
    read_gpus(ask=ask, only="1")
    assert list(ask.commands[1][-2:]) == ["-i", "1"]


@pytest.mark.parametrize("answer", ["", "Failed to initialize NVML\n", "a, b, c\n"])
def test_a_tool_that_fails_tells_nothing(answer: str) -> None:
    assert read_gpus(ask=Asked(answer)) == ()


def test_what_the_board_does_not_tell_is_unknown() -> None:
    (found,) = read_gpus(ask=Asked("GeForce, 470.1, 8192, [N/A], [Not Supported], 300, [N/A], 40"))
    assert (found.power_limit_w, found.power_w, found.clock_share) == (None, None, None)
    assert found.clock_mhz == 300
    assert HELD.clock_share == pytest.approx(1215 / 2040)


def test_a_missing_a_failing_and_a_hanging_tool_print_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu.run_tool(["no-such-tool-here"]) == ""
    assert gpu.run_tool(["false"]) == ""
    assert gpu.run_tool(["echo", "x"]) == "x\n"

    def hang(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 20)

    monkeypatch.setattr(subprocess, "run", hang)
    assert gpu.run_tool(["echo", "x"]) == ""


@pytest.mark.parametrize(
    ("visible", "first"), [(None, "0"), ("", "0"), ("2,3", "2"), ("GPU-8f, 1", "GPU-8f")]
)
def test_the_gpu_that_cuda_calls_0_is_the_first_visible_one(
    visible: str | None, first: str
) -> None:
    assert first_visible({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == first


def test_a_round_on_a_gpu_records_its_state_and_one_on_a_cpu_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = FakeSession(FakeClock(), [MS])
    monkeypatch.setattr(sampling, "find_runtime", lambda _: FakeRuntime(session))
    monkeypatch.setattr(sampling, "load_feeds", lambda _: [{}])
    monkeypatch.setattr(sampling, "read_gpus", lambda *, only: (HELD,) if only else ())
    job = {
        "model": "m.onnx", "runtime": "fake", "precision": "fp32", "copies": True, "threads": 1,
        "feeds": str(tmp_path), "seconds": 1e-3, "spawned_ns": 0,
    }  # fmt: skip
    assert sampling.run_round({**job, "device": "cuda"})["gpu"] == asdict(HELD)
    assert sampling.run_round({**job, "device": "cpu"})["gpu"] is None


ON_CPU = Variant("m, ort", Model(Path("m.onnx"), (), (), 17, "0" * 64, 9), "ort", "cpu", 1, 1)
ON_GPU = replace(ON_CPU, name="m, ort, cuda fp16", device="cuda")


def on_gpu(state: Gpu) -> Latency:
    found = latency(ON_GPU, 1.0)
    return replace(found, rounds=tuple(replace(r, gpu=state) for r in found.rounds))


def test_a_clock_below_the_highest_is_a_doubt_and_is_shown() -> None:
    cpu, slow = latency(ON_CPU, 2.0), on_gpu(HELD)
    assert "the GPU ran at 60% of its highest clock" in " ".join(compare(cpu, slow).doubts)
    full = on_gpu(replace(HELD, clock_mhz=2040.0))
    assert "clock" not in " ".join(compare(cpu, full).doubts)
    document = bench_document(assemble(describe(), [cpu, slow], [], []))
    tables = [b for s in document.sections for b in s.blocks if isinstance(b, Table)]
    (clocks,) = [t for t in tables if t.title == "The GPU while it was timed"]
    assert clocks.rows == ((slow.variant.name, "550.54.15", "1215", "2040", "32", "72", "54"),)


def test_the_machine_shows_driver_memory_power_limit_and_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = replace(describe(), gpus=("NVIDIA L4",), gpu_states=(HELD,), no_gpu_reason="")
    shown = dict(machine_table(here).rows)["GPU"]
    assert shown == "NVIDIA L4, driver 550.54.15, 22 GiB, at most 72 W, at most 2,040 MHz"
    monkeypatch.setattr(machine, "gpu_names", lambda _: ("NVIDIA L4",))
    monkeypatch.setattr(machine, "no_gpu_reason", lambda _: "")
    monkeypatch.setattr(machine, "read_gpus", lambda: (HELD,))
    assert describe().gpu_states == (HELD,)
