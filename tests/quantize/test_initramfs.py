import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench.errors import ResourceError
from quantize.proof import initramfs
from quantize.proof.initramfs import (
    Entry,
    cpio,
    digest,
    needed_files,
    plain_file,
    system,
    with_links,
)


def read(archive: bytes) -> Iterator[tuple[str, int, bytes, int]]:
    """Name, mode, contents and time of an archive's entries, as the kernel reads them."""
    at = 0
    while True:
        assert at % 4 == 0
        assert archive[at : at + 6] == b"070701"
        numbers = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, mtime, size, length = numbers[1], numbers[5], numbers[6], numbers[11]
        name = archive[at + 110 : at + 110 + length]
        assert name.endswith(b"\0")
        start = (at + 110 + length + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            assert not archive[start:].strip(b"\0")
            return
        yield name[:-1].decode(), mode, archive[start : start + size], mtime
        at = (start + size + 3) // 4 * 4


def test_an_archive_holds_what_went_in_and_its_folders() -> None:
    link = Entry("lib", stat.S_IFLNK | 0o777, b"usr/lib")
    archive = cpio([plain_file("a/b/c", b"12345", 0o755), plain_file("a/d", b""), link])
    assert len(archive) % 512 == 0
    assert list(read(archive)) == [
        ("a", stat.S_IFDIR | 0o755, b"", 0),
        ("a/b", stat.S_IFDIR | 0o755, b"", 0),
        ("a/b/c", stat.S_IFREG | 0o755, b"12345", 0),
        ("a/d", stat.S_IFREG | 0o644, b"", 0),
        ("lib", stat.S_IFLNK | 0o777, b"usr/lib", 0),
    ]


@pytest.mark.parametrize(
    "change", [{"name": "b"}, {"mode": 0o100755}, {"data": b"y"}, {"mtime": 2}]
)
def test_the_digest_sees_every_change(change: dict[str, object]) -> None:
    entry = Entry("a", 0o100644, b"x", 1)
    assert digest([entry]) == digest([replace(entry)])
    assert digest([entry]) != digest([replace(entry, **change)])  # type: ignore[arg-type]


def test_links_on_the_way_to_a_file_come_along(tmp_path: Path) -> None:
    real = tmp_path / "usr" / "lib" / "libx.so.1.2"
    real.parent.mkdir(parents=True)
    real.write_bytes(b"ELF")
    os.utime(real, (7, 7))
    (tmp_path / "lib").symlink_to("usr/lib")
    (real.parent / "libx.so.1").symlink_to("libx.so.1.2")
    (real.parent / "libxy.so.1").write_bytes(b"another")
    found = {e.name: e for e in with_links(tmp_path / "lib" / "libx.so.1.2")}
    base = str(tmp_path)[1:]
    assert {n.removeprefix(base): e.data for n, e in found.items()} == {
        "/lib": b"usr/lib",
        "/usr/lib/libx.so.1.2": b"ELF",
        "/usr/lib/libx.so.1": str(real).encode(),
    }
    assert found[str(real)[1:]].mtime == 7


def test_a_file_that_is_not_there_adds_nothing(tmp_path: Path) -> None:
    assert list(with_links(tmp_path / "busybox")) == []


def test_the_guest_gets_what_a_run_here_needs(tmp_path: Path) -> None:
    files = [str(f) for f in needed_files(tmp_path)]
    wanted = ("libc.so", "ld-linux", "onnxruntime_pybind11_state", "_multiarray_umath", "/os.py")
    for part in (*wanted, "python3"):
        assert any(part in f for f in files), part
    assert not [f for f in files if f.endswith((".db", ".db-shm", "inside.py"))]
    entries = {e.name: e for e in system(map(Path, files[:3]))}
    assert entries["init"].mode & 0o111
    assert b"ORT_DISABLE_TELEMETRY=1" in entries["init"].data
    assert b"def loaded_files" in entries["inside.py"].data
    assert {"proc", "sys", "dev"} <= set(entries)


def test_a_program_that_fails_here_is_not_put_into_a_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = {**initramfs.interpreter(), "path": str(tmp_path)}
    monkeypatch.setattr(initramfs, "interpreter", lambda: where)
    with pytest.raises(ResourceError, match="No module named 'numpy'"):
        needed_files(tmp_path)
