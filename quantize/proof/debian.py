"""What the emulated machine needs of Debian: tools, firmware and a kernel, and where they lie."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from bench.errors import ResourceError, UnfitError

# What has to be there, and Debian's package that has it.
NEEDED = {
    "/usr/bin/bochs": "bochs",
    "/usr/share/bochs/BIOS-bochs-latest": "bochsbios",
    "/usr/share/bochs/VGABIOS-lgpl-latest": "vgabios",
    "/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so": "bochs-term",
    "/usr/lib/ISOLINUX/isolinux.bin": "isolinux",
    "/usr/lib/syslinux/modules/bios/ldlinux.c32": "syslinux-common",
    "/usr/bin/xorriso": "xorriso",
    "/usr/bin/lz4": "lz4",
    "/usr/bin/dpkg-deb": "dpkg",
    "/bin/busybox": "busybox-static",
}
KERNEL_PACKAGE = "linux-image-cloud-amd64"
_BOOT = Path("/boot")


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where images and kernels are kept: under the user's cache, see the XDG base directories."""
    found = environ.get("XDG_CACHE_HOME") or str(
        Path(environ.get("HOME", "~")).expanduser() / ".cache"
    )
    return Path(found) / "vnnify" / "proof"


def missing_packages(cache: Path) -> tuple[str, ...]:
    """Debian packages that a proof needs and that are not here.

    Args:
        cache: Where a downloaded kernel package may lie.
    """
    found = [p for f, p in NEEDED.items() if not Path(f).exists()]
    if _kernel_source(cache) is None:
        found.append(KERNEL_PACKAGE)
    return tuple(found)


def require_packages(cache: Path) -> None:
    """Check that the machine can be emulated here.

    Raises:
        UnfitError: Packages are missing; the message names them and says how to get them.
    """
    missing = missing_packages(cache)
    if not missing:
        return
    wanted = [p for p in missing if p != KERNEL_PACKAGE]
    steps = [f"apt-get install {' '.join(wanted)} (as root)"] if wanted else []
    if KERNEL_PACKAGE in missing:
        steps.append(
            f"put Debian's kernel package into {cache}: apt-get download the linux-image-…-amd64 "
            f"that `apt-cache depends {KERNEL_PACKAGE}` names; nothing of it is installed"
        )
    raise UnfitError(
        "proving on an emulated CPU needs Bochs, the tools that make its boot image and a kernel; "
        f"missing here: {', '.join(missing)}. On Debian 12: {'; '.join(steps)}. "
        "`make verify-vnni` in the repository does both."
    )


def _kernel_source(cache: Path) -> Path | None:
    """An installed cloud kernel, or a downloaded package of one; the newest."""
    there = [p for p in _BOOT.glob("vmlinuz-*-cloud-amd64") if os.access(p, os.R_OK)]
    there += cache.glob("linux-image-*-amd64_*.deb")
    return max(there, key=lambda p: p.stat().st_mtime, default=None)


def kernel_in(cache: Path) -> Path:
    """The kernel to boot: an installed one, or unpacked from a package in the cache.

    Raises:
        UnfitError: The package holds none.
        ResourceError: It cannot be unpacked.
    """
    source = _kernel_source(cache)
    assert source is not None  # `require_packages` has looked.
    if source.suffix != ".deb":
        return source
    target = cache / f"{source.stem}.vmlinuz"
    if not target.exists():
        unpacked = cache / f".{source.stem}.{os.getpid()}"
        try:
            run_tool(["dpkg-deb", "-x", str(source), str(unpacked)])
            found = sorted((unpacked / "boot").glob("vmlinuz-*"))
            if not found:
                raise UnfitError(f"{source}: holds no kernel. Download the package again.")
            found[0].replace(target)
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)
    return target


def run_tool(command: list[str], folder: Path | None = None) -> None:
    """Run a command to its end.

    Raises:
        ResourceError: It failed; the message holds what it said.
    """
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ResourceError(
            f"{command[0]} ended with status {done.returncode}: {done.stderr.strip()[-400:]}"
        )
