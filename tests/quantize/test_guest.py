import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.errors import ResourceError
from quantize.proof import guest, inside
from quantize.proof.guest import VNNI_CPU, Job, Limits, parse, visit
from quantize.proof.initramfs import plain_file
from tests import tiny

FIRST = {"flags": ["avx2", "avx512_vnni"], "onnxruntime": "1.2.3"}
END = {"end": True}


def sample(case: str, number: int, value: float = 1.0, mode: str = "native") -> dict[str, Any]:
    outputs = {"y": inside.encode(np.full(2, value, np.float32))}
    return {"case": case, "mode": mode, "sample": number, "outputs": outputs}


def lines(*records: dict[str, Any]) -> list[str]:
    return [json.dumps(r) for r in records]


def test_outputs_are_sorted_by_case_and_mode() -> None:
    failed = {"case": "b", "mode": "native", "error": "Fail: no"}
    found = parse(lines(FIRST, sample("a", 0), sample("a", 1, 2.0), failed, END))
    assert found.flags == ("avx2", "avx512_vnni")
    assert found.onnxruntime == "1.2.3"
    assert [o["y"].tolist() for o in found.outputs["a", "native"]] == [[1, 1], [2, 2]]
    assert found.errors == {("b", "native"): "Fail: no"}


def test_a_machine_that_stopped_early_is_an_error_unless_it_was_switched_off() -> None:
    said = lines(FIRST, sample("a", 0))
    with pytest.raises(ResourceError, match="stopped after 1 samples, before its last line"):
        parse(said)
    assert len(parse(said, whole=False).outputs["a", "native"]) == 1


@pytest.mark.parametrize(
    "line", ["[    2.5] kernel panic", '{"case": "a", "outputs": {}}', "[1, 2]"]
)
def test_a_damaged_line_is_an_error(line: str) -> None:
    with pytest.raises(ResourceError, match="line 2 from the emulated machine is damaged"):
        parse([*lines(FIRST), line, *lines(END)])


def test_a_job_becomes_files_that_the_guest_reads(tmp_path: Path) -> None:
    model = tiny.linear(tmp_path / "m.onnx")
    (tmp_path / "m.onnx.data").write_bytes(b"weights")
    feeds = {"x": np.ones((1, 4), np.float32), "file": np.array(["ab"], dtype=object)}
    job = Job({"a": model}, {"a": [feeds, feeds]}, ("native", "exact"))
    found = {e.name: e.data for e in guest._job_entries(job, tmp_path)}
    assert list(found) == [
        "modes",
        *(f"job/a/{n}" for n in ("model.onnx", "m.onnx.data", "0000.npz", "0001.npz")),
    ]
    assert found["modes"] == b"native exact"
    assert found["job/a/m.onnx.data"] == b"weights"
    (tmp_path / "again.npz").write_bytes(found["job/a/0001.npz"])
    with np.load(tmp_path / "again.npz") as again:
        assert again["=file"].tolist() == ["ab"]


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that the image needed; none is run."""
    commands: list[list[str]] = []

    def run(command: list[str], folder: Path | None = None) -> None:
        commands.append(command)
        if command[0] == "lz4":
            Path(command[-1]).write_bytes(b"packed")

    monkeypatch.setattr(guest, "run_tool", run)
    monkeypatch.setattr(guest, "needed_files", lambda _: ())
    monkeypatch.setattr(guest, "system", lambda _: [plain_file("init", b"init")])
    return commands


def test_the_image_is_made_once_per_content(
    built: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, cache = tmp_path / "vmlinuz", tmp_path / "cache"
    kernel.write_bytes(b"kernel")
    first, had = guest._image(cache, kernel)
    assert (first.read_bytes(), had, len(built)) == (b"packed", False, 1)
    assert guest._image(cache, kernel) == (first, True)
    assert len(built) == 1
    kernel.write_bytes(b"a newer kernel")
    assert guest._image(cache, kernel) != (first, True)
    monkeypatch.setattr(guest, "system", lambda _: [plain_file("init", b"a newer wheel")])
    guest._image(cache, kernel)
    assert len(built) == 3
    assert sorted(p.suffix for p in cache.iterdir()) == [".lz4"] * 3


@pytest.fixture
def machine(built: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`visit` with a shell script in the place of Bochs."""
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(b"kernel")
    monkeypatch.setattr(guest, "require_packages", lambda _: None)
    monkeypatch.setattr(guest, "kernel_in", lambda _: kernel)
    monkeypatch.setattr(guest, "_write_disc", lambda *_: None)
    path = f"{tmp_path}:{os.environ['PATH']}"
    monkeypatch.setattr(guest, "_ENVIRONMENT", {"PATH": path})

    def boot(script: str, said: list[str], limits: Limits) -> guest.Visit:
        (tmp_path / "said").write_text("".join(f"{s}\n" for s in said))
        program = tmp_path / "bochs"
        program.write_text(f"#!/bin/sh\ncat {tmp_path / 'said'} > answer.txt\n{script}\n")
        program.chmod(0o755)
        return visit(VNNI_CPU, Job({}, {}), cache=tmp_path / "c", scratch=tmp_path, limits=limits)

    return boot


def test_the_machine_is_switched_off_after_its_last_line(machine: Any, tmp_path: Path) -> None:
    found = machine("echo $$ > ../pid; exec sleep 60", lines(FIRST, sample("a", 0), END), Limits())
    assert found.cpu == VNNI_CPU
    assert found.answer.onnxruntime == "1.2.3"
    assert (found.image_cached, found.image_bytes) == (False, len(b"packed"))
    assert found.run_seconds < 30
    deadline = time.perf_counter() + 5
    while Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists():
        assert time.perf_counter() < deadline
    assert not (tmp_path / f"guest-{VNNI_CPU}").exists()


def test_enough_is_taken_when_the_time_is_over(machine: Any) -> None:
    said = lines(FIRST, sample("canary", 0), sample("model", 0))
    found = machine("exec sleep 60", said, Limits(enough_s=0.1))
    assert len(found.answer.outputs["model", "native"]) == 1


def test_a_machine_that_says_nothing_is_switched_off(machine: Any) -> None:
    script = "echo 'Kernel panic: no init' > console.txt; exec sleep 60"
    with pytest.raises(ResourceError, match=r"not done after 1 s.*Kernel panic: no init"):
        machine(script, [], Limits(timeout_s=1))


def test_the_canary_alone_is_not_enough(machine: Any) -> None:
    said = lines(FIRST, sample("canary", 0))
    with pytest.raises(ResourceError, match="not done after 1 s"):
        machine("exec sleep 60", said, Limits(timeout_s=1, enough_s=0.1))


def test_a_machine_that_ends_before_python_starts_is_an_error(machine: Any) -> None:
    with pytest.raises(ResourceError, match=r"ended by itself.*none"):
        machine("exit 1", [], Limits())


def test_a_person_can_switch_it_off(machine: Any) -> None:
    with pytest.raises(ResourceError, match="switched off by an interrupt"):
        machine("exec sleep 60", lines(FIRST), Limits(stopped=lambda: True))


def test_what_the_machine_draws_is_read_away(machine: Any, tmp_path: Path) -> None:
    draw = tmp_path / "draw.py"
    draw.write_text(
        "import os, pty, tty\n"
        "master, slave = pty.openpty()\n"
        "tty.setraw(slave)\n"
        "print(f'Bochs connected to screen \"{os.ttyname(slave)}\"', flush=True)\n"
        "for _ in range(1536): os.write(master, b'screen ' * 8)\n"
    )
    script = f"{sys.executable} {draw} && echo '{json.dumps(END)}' >> answer.txt"
    found = machine(script, lines(FIRST), Limits(timeout_s=20))
    assert found.answer.onnxruntime == "1.2.3"
