"""Result folders that are published whole or not at all.

A folder is filled in a staging folder beside it, gets its manifest last, and is moved into place by
a rename: whoever looks sees the old folder or the new one. A lock keeps two runs apart; it belongs
to the process, so a killed run leaves nothing to unlock, only a staging folder that the next run
removes.
"""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.errors import OutputError
from bench.store import SCHEMA, atomic_write, sync, sync_folder, translated

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_TOOL = "vnnify"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def staging_for(out: Path, *, force: bool = False) -> Iterator[Path]:
    """A fresh folder beside `out` to fill and then `publish`; gone afterwards if not published.

    Holds the lock on `out` throughout. Everything that would make publishing fail is looked for
    first, so that hours of work do not end in "exists already".

    Args:
        out: The folder to be.
        force: Let it replace a folder that vnnify made.

    Raises:
        OutputError: `out` exists and may not be replaced, is no folder, is locked by another run,
            or cannot be made.
    """
    out = out.absolute()
    if not out.name:
        raise OutputError(f"{out}: is the root of the filesystem. Choose another --out.")
    with contextlib.ExitStack() as held:
        # Not around the yield: an error of the work in there is not about `out`.
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(_locked(out))
            _recover(out)
            _refuse_existing(out, force=force)
            staging = out.with_name(f".{out.name}.staging-{uuid.uuid4().hex[:12]}")
            staging.mkdir()
        except OSError as e:
            raise translated(e, out) from e
        held.callback(shutil.rmtree, staging, ignore_errors=True)
        yield staging


def publish(staging: Path, out: Path, *, force: bool = False) -> None:
    """Move a filled staging folder to its place; `out` is then new and complete, or untouched.

    Args:
        staging: From `staging_for(out)`, with a manifest.
        out: Where it goes.
        force: As there.

    Raises:
        OutputError: `out` may not be replaced, or the manifest is missing.
        ResourceError: The disk is full.
    """
    out = out.absolute()
    if not (staging / MANIFEST).is_file():
        raise OutputError(f"{staging}: has no {MANIFEST}, so it is not complete. Write that last.")
    _refuse_existing(out, force=force)
    try:
        if not os.path.lexists(out):
            staging.rename(out)
        elif _exchange(staging, out):
            shutil.rmtree(staging, ignore_errors=True)  # Now the old one.
        else:
            _replace(staging, out)
        sync_folder(out.parent)
    except OSError as e:
        raise translated(e, out) from e


def write_manifest(folder: Path, extra: Mapping[str, Any], packages: Mapping[str, str]) -> None:
    """Write `manifest.json`: every file's SHA-256 and size, versions, and `extra`.

    Flushes all files to disk. Without it a folder counts as incomplete, so this comes last.

    Args:
        folder: To publish.
        extra: What else the manifest says.
        packages: Versions by name, as `bench.machine.installed_packages` finds them.

    Raises:
        OutputError: It cannot be written.
        ResourceError: The disk is full.
    """
    try:
        files = {}
        for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
            sync(file)
            files[file.relative_to(folder).as_posix()] = {
                "sha256": _sha256(file),
                "size_bytes": file.stat().st_size,
            }
        for inner in sorted(p for p in folder.rglob("*") if p.is_dir()):
            sync_folder(inner)
        manifest = {
            **extra,
            "schema": SCHEMA,
            "tool": _TOOL,
            "version": packages.get(_TOOL, "unknown"),
            "packages": {n: v for n, v in packages.items() if n != _TOOL},
            "files": files,
        }
        text = json.dumps(manifest, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False)
        atomic_write(folder / MANIFEST, text.encode() + b"\n")
    except OSError as e:
        raise translated(e, folder) from e


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    ours = isinstance(found, dict) and found.get("tool") == _TOOL
    return found if ours and isinstance(found.get("files"), dict) else None


def _refuse_existing(out: Path, *, force: bool) -> None:
    if out.is_symlink():
        raise OutputError(f"{out}: is a symbolic link; give the folder itself.")
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise OutputError(f"{out}: is a file, expected a folder or nothing. Choose another --out.")
    if not any(out.iterdir()):
        return
    if not force:
        raise OutputError(f"{out}: exists already. Choose another --out, or --force to replace it.")
    if _manifest(out) is None:
        raise OutputError(
            f"{out}: was not made by vnnify (no {MANIFEST}), so --force does not delete it. "
            "Remove it yourself or choose another --out."
        )


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the lock of `out`: the kernel's, which ends with the process; the file names us."""
    path = out.with_name(f".{out.name}.lock")
    handle = _lock(path, out)
    # Its last holder may have removed the file between our opening and our locking it.
    while not _is_same(handle, path):
        os.close(handle)
        handle = _lock(path, out)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _lock(path: Path, out: Path) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        owner = os.read(handle, 200).decode(errors="replace").strip() or "another run"
        os.close(handle)
        if e.errno != errno.EWOULDBLOCK:
            raise
        raise OutputError(
            f"{out}: is being written by {owner}. Wait for it, or choose another --out."
        ) from e
    return handle


def _is_same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _recover(out: Path) -> None:
    """Tidy up after a killed run: only called with the lock held, so nobody uses these folders."""
    for old in sorted(out.parent.glob(f".{_literal(out.name)}.old-*")):
        if os.path.lexists(out):
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(out)
    for stale in out.parent.glob(f".{_literal(out.name)}.staging-*"):
        logger.info("removing %s, left by a run that was killed", stale)
        shutil.rmtree(stale, ignore_errors=True)


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step, renameat2(2); False where kernel or filesystem cannot."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    status: int = function(
        _AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), ctypes.c_uint(_RENAME_EXCHANGE)
    )
    return status == 0


def _replace(staging: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old-{uuid.uuid4().hex[:12]}")
    out.rename(old)
    try:
        staging.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
