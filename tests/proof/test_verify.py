import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.errors import ResourceError, UnfitError
from quantize.proof.comparing import Compared, Proof
from quantize.proof.guest import AVX2_CPU, VNNI_CPU
from quantize.targets import can_saturate
from tests.int8 import File
from tests.proof import models, verify


def proof(cpu: str, mode: str, differ: int) -> Proof:
    canary = "saturating" if (cpu, mode) == (AVX2_CPU, "native") else "exact"
    compared = tuple(
        Compared(name, 2, 8, differ, 0.25 if differ else 0.0, integer=True) for name in "ab"
    )
    return Proof(cpu, ("avx2",), "1.31", mode, canary, compared, image_cached=True)


class FakeProofs:
    """Stands for `prove`; says how many values differ by CPU and mode."""

    def __init__(self, differ: dict[tuple[str, str], int]) -> None:
        self.differ = {(AVX2_CPU, "native"): 8, **differ}

    def __call__(
        self, _: Any, *, cache: Path, cpu: str, modes: tuple[str, ...] = ("native",)
    ) -> tuple[Proof, ...]:
        return tuple(proof(cpu, mode, self.differ.get((cpu, mode), 0)) for mode in modes)


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["verify", "--markdown", str(tmp_path / "table.md")])
    monkeypatch.setattr(verify, "missing_packages", lambda _: ())
    monkeypatch.setattr(verify, "require_packages", lambda _: None)
    monkeypatch.setattr(models, "everything", lambda _: ())


@pytest.mark.parametrize(
    ("differ", "status"),
    [
        ({}, 0),
        ({(VNNI_CPU, "native"): 1}, 3),
        ({(AVX2_CPU, "exact"): 1}, 3),
    ],
)
def test_the_status_is_that_of_exact_judging(
    ready: None,
    differ: dict[tuple[str, str], int],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(verify, "prove", FakeProofs(differ))
    assert verify.main() == status
    said = capsys.readouterr().out
    assert ("FAIL a" in said) == bool(status)
    assert "minilm skipped: pip install" in said


def test_the_table_sets_the_arithmetics_side_by_side(
    ready: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "prove", FakeProofs({}))
    verify.main()
    head, _, *rows = (tmp_path / "table.md").read_text().splitlines()
    assert head.endswith("| AVX2, default kernels | AVX2, exact judging | AVX512-VNNI |")
    assert rows == [f"| {name} | 2 | 8 | 8 (25.00%) | 0 | **0** |" for name in "ab"]


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UnfitError("missing here: bochs."), 7, "skipped: missing here: bochs."),
        (ResourceError("fell silent."), 8, "error: fell silent."),
    ],
)
def test_what_is_missing_is_named(
    ready: None,
    error: Exception,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: Path) -> None:
        raise error

    monkeypatch.setattr(verify, "require_packages", fail)
    assert verify.main() == status
    assert capsys.readouterr().out == f"{said}\n"


@pytest.mark.parametrize("user", [0, 1000])
def test_only_root_installs_and_the_kernel_is_only_downloaded(
    user: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[list[str], Any]] = []

    def run(command: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        ran.append((command, how.get("cwd")))
        said = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-9-cloud-amd64\n"
        return subprocess.CompletedProcess(command, 0, said)

    monkeypatch.setattr(verify.os, "geteuid", lambda: user)
    monkeypatch.setattr(verify.shutil, "which", lambda _: "/usr/bin/apt-get")
    monkeypatch.setattr(verify.subprocess, "run", run)
    verify.install(["bochs", "linux-image-cloud-amd64"], tmp_path / "cache")
    tasks = [(c[-1], "install" in c, cwd) for c, cwd in ran]
    assert tasks == (
        [
            ("update", False, None),
            ("bochs", True, None),
            ("linux-image-cloud-amd64", False, None),
            ("linux-image-6.1.0-9-cloud-amd64", False, tmp_path / "cache"),
        ]
        if user == 0
        else []
    )


def test_the_small_models_saturate_and_are_legal(tmp_path: Path) -> None:
    cases = list(models.adversarial(tmp_path))
    assert [c.name for c in cases] == [
        *("conv", "depthwise-conv", "depthwise-5x5", "depthwise-1d"),
        *("gemm", "matmul", "dynamic-matmul", "lstm"),
    ]
    for case in cases[:5]:
        file = File.read(case.model)
        codes = next(c for c in file.constants.values() if c.dtype == np.int8 and c.ndim > 1)
        assert can_saturate(codes).all(), case.name
        assert np.abs(codes.astype(int)).max() == 127


def test_words_become_the_longest_pieces() -> None:
    known = ["[CLS]", "[SEP]", "[UNK]", "play", "##ing", "p", "##l", "!"]
    vocabulary = {piece: code for code, piece in enumerate(known)}
    assert models.tokens("Playing pl! x", vocabulary) == [0, 3, 4, 5, 6, 7, 2, 1]
    assert len(models.tokens("play " * 99, vocabulary)) == 32
