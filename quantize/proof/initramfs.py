"""The file system of the emulated machine: what a run here needs, as an archive for its kernel."""

import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import ResourceError
from quantize.proof import inside

INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox stty -F /dev/ttyS1 115200 raw
export PYTHONHOME={home} PYTHONPATH={path} HOME=/ ORT_DISABLE_TELEMETRY=1
{python} -S /inside.py /job /dev/ttyS1 $(/bin/busybox cat /modes)
/bin/busybox poweroff -f
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an archive; folders come by themselves.

    Attributes:
        name: Path without the first slash.
        mode: As in `stat`.
        data: Contents, or where a link leads.
        mtime: Seconds; bytecode is valid only beside a source of the right time.
    """

    name: str
    mode: int
    data: bytes
    mtime: int = 0


def plain_file(name: str, data: bytes, permissions: int = 0o644) -> Entry:
    """An entry that is neither a folder nor a link."""
    return Entry(name, stat.S_IFREG | permissions, data)


def system(files: Iterable[Path]) -> list[Entry]:
    """The files, a shell, and the two programs of the guest: `init` and `inside.py`."""
    found = {e.name: e for f in (*files, Path("/bin/busybox")) for e in with_links(f)}
    made = (
        plain_file("init", INIT.format(**interpreter()).encode(), 0o755),
        plain_file("inside.py", Path(inside.__file__).read_bytes()),
        *(Entry(n, stat.S_IFDIR | 0o755, b"") for n in ("proc", "sys", "dev", "tmp")),
    )
    found |= {e.name: e for e in made}
    return [found[n] for n in sorted(found)]


def with_links(file: Path) -> Iterator[Entry]:
    """A file, every link on the way to it, and the other names of a library beside it."""
    if not file.exists():
        return
    for part in [*reversed(file.parents[:-1]), file]:
        if part.is_symlink():
            target = part.readlink()
            yield Entry(str(part)[1:], stat.S_IFLNK | 0o777, str(target).encode())
            yield from with_links(
                Path(os.path.normpath(part.parent / target)) / file.relative_to(part)
            )
            return
    there = file.stat()
    yield Entry(
        str(file)[1:],
        stat.S_IFREG | (there.st_mode & 0o777),
        file.read_bytes(),
        int(there.st_mtime),
    )
    if ".so" in file.name:
        for other in file.parent.glob(f"{file.name.partition('.so')[0]}.so*"):
            if other.is_symlink() and other.resolve() == file.resolve():
                yield Entry(str(other)[1:], stat.S_IFLNK | 0o777, str(file).encode())


def cpio(entries: Iterable[Entry]) -> bytes:
    """An archive of these files in the format "newc", which the kernel unpacks.

    A folder is added before the first file in it.
    """
    out = bytearray()
    made: set[str] = set()
    for entry in entries:
        parents = [str(p) for p in reversed(Path(entry.name).parents[:-1])]
        folders = (Entry(p, stat.S_IFDIR | 0o755, b"") for p in parents)
        for each in (*folders, entry):
            if each.name not in made:
                made.add(each.name)
                _append(out, each, len(made))
    _append(out, Entry("TRAILER!!!", 0, b""), 0)
    out.extend(bytes(-len(out) % 512))
    return bytes(out)


def _append(out: bytearray, entry: Entry, number: int) -> None:
    """Header of 13 numbers, name, contents; see buffer-format of initramfs in the kernel's docs."""
    name, size = entry.name.encode() + b"\0", len(entry.data)
    header = (number, entry.mode, 0, 0, 1, entry.mtime, size, 0, 0, 0, 0, len(name), 0)
    out.extend(b"070701" + b"".join(b"%08X" % n for n in header) + name)
    out.extend(bytes(-len(out) % 4))
    out.extend(entry.data)
    out.extend(bytes(-len(out) % 4))


def digest(entries: Iterable[Entry]) -> str:
    """SHA-256 of the entries with their contents; 16 digits of it."""
    total = hashlib.sha256()
    for e in entries:
        inner = hashlib.sha256(e.data).hexdigest()
        total.update(f"{e.name}\0{e.mode}\0{e.mtime}\0{inner}\n".encode())
    return total.hexdigest()[:16]


def needed_files(scratch: Path) -> tuple[Path, ...]:
    """Files of Python, numpy and ONNX Runtime that a run on this machine needs.

    Found by doing one: a tiny model in a fresh process, which then names its modules and the
    libraries mapped into its memory.

    Raises:
        ResourceError: That process failed.
    """
    from bench.machine import canary_feeds, canary_model

    case, out = scratch / "trace" / "canary", scratch / "trace.txt"
    case.mkdir(parents=True)
    (case / "model.onnx").write_bytes(canary_model())
    feeds: dict[str, Any] = {f"={n}": a for n, a in canary_feeds().items()}
    np.savez(case / "0000.npz", allow_pickle=False, **feeds)
    where = interpreter()
    program = (where["python"], "-S", inside.__file__, str(case.parent), str(out))
    # As in `INIT`.
    environment = {
        "PYTHONHOME": where["home"],
        "PYTHONPATH": where["path"],
        "ORT_DISABLE_TELEMETRY": "1",
    }
    done = subprocess.run(
        [*program, *inside.MODES, "files"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    last = json.loads(out.read_text("utf-8").splitlines()[-1]) if done.returncode == 0 else {}
    if "files" not in last:
        raise ResourceError(f"the guest's program does not run on this machine: {done.stderr}")
    own = Path(inside.__file__).resolve()
    files = [f for f in map(Path, last["files"]) if f.resolve() != own]
    return (*files, Path("/lib64/ld-linux-x86-64.so.2"), Path("/etc/ld.so.cache"))


def interpreter() -> dict[str, str]:
    """Python as it is started without a virtual environment, in the guest and to trace it."""
    import onnxruntime

    places = {str(Path(m.__file__).parents[1]) for m in (np, onnxruntime) if m.__file__}
    return {
        "python": os.path.realpath(sys.executable),
        "home": sys.base_prefix,
        "path": ":".join(sorted(places)),
    }
