"""An emulated x86 machine that runs the installed ONNX Runtime: kernel, image, boot, answer.

Bochs emulates AVX-512 VNNI to the bit, thousands of times slower than silicon. The image holds
Debian's kernel and an initramfs with those files of Python, numpy and ONNX Runtime that a run on
this machine needs. Everything comes from Debian's packages and the installed wheels; nothing is
downloaded here.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import tty
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np

from bench.errors import ResourceError
from bench.models import Feeds
from quantize.proof import inside
from quantize.proof.debian import kernel_in, require_packages, run_tool
from quantize.proof.initramfs import Entry, cpio, digest, needed_files, plain_file, system

VNNI_CPU = "corei7_icelake_u"
AVX2_CPU = "corei7_haswell_4770"

# Linux 6.1 on Bochs 2.7. fsrm: its memmove loops for ever where the CPU has FSRM and fast strings
# are off. pku, xsavec, xsaves: Bochs reports an XSAVE area that the kernel finds inconsistent, and
# Linux then switches AVX off.
_CURES = "nopku clearcpuid=fsrm,pku,xsavec,xsaves"
_COMMAND_LINE = (
    f"console=ttyS0 loglevel=4 mitigations=off random.trust_cpu=on panic=-1 nowatchdog {_CURES}"
)
_BOCHS = """config_interface: textconfig
display_library: term
cpu: model={cpu}, count=1, ips=20000000, ignore_bad_msrs=1
memory: guest={memory}, host={memory}
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path=guest.iso, status=inserted
boot: cdrom
clock: sync=none
com1: enabled=1, mode=file, dev=console.txt
com2: enabled=1, mode=file, dev=answer.txt
log: bochs.log
panic: action=fatal
error: action=ignore
info: action=ignore
"""
_MEMORY_MIB = 1536
# A boot CD as the manual of isolinux(1) makes it.
_MAKE_DISC = (
    *("xorriso", "-as", "mkisofs", "-quiet", "-o", "guest.iso", "-b", "isolinux.bin"),
    *("-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"),
)
_POLL_S = 0.2
_SCREEN = re.compile(r'Bochs connected to screen "([^"]+)"')


@dataclass(frozen=True, slots=True)
class Job:
    """Models and the samples to run them on.

    Attributes:
        models: ONNX file by case.
        feeds: Samples by case.
        modes: Of `inside.MODES`.
    """

    models: Mapping[str, Path]
    feeds: Mapping[str, Sequence[Feeds]]
    modes: tuple[str, ...] = ("native",)


@dataclass(frozen=True, slots=True)
class Limits:
    """When the machine is switched off.

    Attributes:
        timeout_s: From power on; not to be done by then is an error.
        enough_s: From the first line on; what came by then is taken, if a model ran on a sample.
        stopped: Whether a person wants an end; that is an error too.
    """

    timeout_s: float = 3600.0
    enough_s: float | None = None
    stopped: Callable[[], bool] = bool  # bool() is False.


@dataclass(frozen=True, slots=True)
class Answer:
    """What came out of the machine.

    Attributes:
        flags: Of its CPU, as its kernel gives them.
        onnxruntime: Version that ran there.
        outputs: One set per sample, by case and mode.
        errors: Why a model did not run, by case and mode.
    """

    flags: tuple[str, ...]
    onnxruntime: str
    outputs: dict[tuple[str, str], tuple[Feeds, ...]]
    errors: dict[tuple[str, str], str]


@dataclass(frozen=True, slots=True)
class Visit:
    """One boot.

    Attributes:
        cpu: Bochs's name of the emulated CPU.
        answer: What it said.
        image_cached: Whether the image was there already.
        image_bytes: Its size.
        image_seconds: To make or find the image and add the job to it.
        boot_seconds: From power on to the first line of the guest's Python.
        run_seconds: From then to the last.
    """

    cpu: str
    answer: Answer
    image_cached: bool
    image_bytes: int = 0
    image_seconds: float = 0.0
    boot_seconds: float = 0.0
    run_seconds: float = 0.0


def visit(cpu: str, job: Job, *, cache: Path, scratch: Path, limits: Limits) -> Visit:
    """Boot the emulated machine, run the job in it, and read what it says.

    Args:
        cpu: `VNNI_CPU` or `AVX2_CPU`.
        job: To run.
        cache: Keeps the image for the next time.
        scratch: An existing folder; a folder in it is made and removed.
        limits: When it is switched off.

    Raises:
        UnfitError: Packages are missing.
        ResourceError: The machine did not come up, fell silent or ran over its time.
    """
    require_packages(cache)
    folder = scratch / f"guest-{cpu}"
    folder.mkdir()
    try:
        started = perf_counter()
        kernel = kernel_in(cache)
        image, was_there = _image(cache, kernel)
        _write_disc(folder, kernel, image, job)
        made = perf_counter()
        first, last = _boot(folder, cpu, limits)
        whole = limits.enough_s is None or last - first < limits.enough_s
        answer = parse(_lines(folder / "answer.txt"), whole=whole)
        return Visit(
            cpu, answer, was_there, image.stat().st_size, made - started, first - made, last - first
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def parse(lines: Iterable[str], *, whole: bool = True) -> Answer:
    """What the machine said; see `quantize.inside`.

    Args:
        lines: From its second serial port.
        whole: Whether it was left to say its last line.

    Raises:
        ResourceError: A line is damaged or the last one is missing.
    """
    flags: tuple[str, ...] = ()
    version, ended = "", False
    outputs: dict[tuple[str, str], list[Feeds]] = {}
    errors: dict[tuple[str, str], str] = {}
    for number, line in enumerate(lines, 1):
        try:
            record = dict(json.loads(line))
            if "flags" in record:
                flags, version = tuple(record["flags"]), record["onnxruntime"]
            elif "error" in record:
                errors[record["case"], record["mode"]] = record["error"]
            elif "outputs" in record:
                found = {n: inside.decode(v) for n, v in record["outputs"].items()}
                outputs.setdefault((record["case"], record["mode"]), []).append(found)
            ended = ended or "end" in record
        except (ValueError, KeyError, TypeError) as e:
            raise ResourceError(
                f"line {number} from the emulated machine is damaged ({e}): {line[:80]!r}. "
                "Run it again."
            ) from e
    if whole and not ended:
        raise ResourceError(
            f"the emulated machine stopped after {sum(map(len, outputs.values()))} samples, "
            "before its last line. Most likely its memory ran out: prove fewer or smaller models."
        )
    return Answer(flags, version, {k: tuple(v) for k, v in outputs.items()}, errors)


# The image


def _image(cache: Path, kernel: Path) -> tuple[Path, bool]:
    """The compressed initramfs without a job, and whether the cache had it."""
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f".image.{os.getpid()}"
    folder.mkdir()
    try:
        entries = system(needed_files(folder))
        image = cache / f"guest-{digest([*entries, plain_file('kernel', kernel.read_bytes())])}.lz4"
        if image.exists():
            return image, True
        archive = folder / "guest.cpio"
        archive.write_bytes(cpio(entries))
        # The kernel reads the legacy format only.
        run_tool(["lz4", "-l", "-9", "-q", str(archive), str(folder / "guest.lz4")])
        (folder / "guest.lz4").replace(image)
        return image, False
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_disc(folder: Path, kernel: Path, image: Path, job: Job) -> None:
    """`guest.iso`: boot loader, kernel, and the initramfs with the job in front."""
    disc = folder / "disc"
    disc.mkdir()
    for file in ("/usr/lib/ISOLINUX/isolinux.bin", "/usr/lib/syslinux/modules/bios/ldlinux.c32"):
        shutil.copy(file, disc)
    shutil.copy(kernel, disc / "vmlinuz")
    with (disc / "initrd").open("wb") as out:
        out.write(cpio(_job_entries(job, folder)))
        out.write(image.read_bytes())
    (disc / "isolinux.cfg").write_text(
        f"default v\nprompt 0\nlabel v\n kernel vmlinuz\n append initrd=initrd {_COMMAND_LINE}\n"
    )
    run_tool(
        [*_MAKE_DISC, "disc"],
        folder,
    )
    shutil.rmtree(disc)


def _job_entries(job: Job, folder: Path) -> Iterator[Entry]:
    yield plain_file("modes", " ".join(job.modes).encode())
    for case, model in job.models.items():
        yield plain_file(f"job/{case}/model.onnx", model.read_bytes())
        for beside in model.parent.glob(f"{model.name}.data"):
            yield plain_file(f"job/{case}/{beside.name}", beside.read_bytes())
        for number, feeds in enumerate(job.feeds[case]):
            file = folder / "feeds.npz"
            # `savez` has parameters of its own, whose names an input may have.
            arrays: dict[str, Any] = {f"={n}": _plain(a) for n, a in feeds.items()}
            np.savez(file, allow_pickle=False, **arrays)
            yield plain_file(f"job/{case}/{number:04}.npz", file.read_bytes())


def _plain(array: Any) -> Any:
    """Strings as fixed-width text: objects would have to be pickled."""
    return array.astype(str) if array.dtype == object else array


# The machine


def _boot(folder: Path, cpu: str, limits: Limits) -> tuple[float, float]:
    """Run Bochs until the guest has said enough; when its first and its last line came."""
    (folder / "bochsrc").write_text(_BOCHS.format(cpu=cpu, memory=_MEMORY_MIB))
    # Debian's Bochs is built with its debugger, which waits at a prompt: `c` continues.
    (folder / "start").write_text("c\n")
    with (folder / "screen.txt").open("wb") as screen:
        machine = subprocess.Popen(
            ["bochs", "-q", "-f", "bochsrc", "-rc", "start"],
            cwd=folder,
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=screen,
            stderr=subprocess.STDOUT,
        )
        try:
            with _watched(folder) as look:
                return _listen(machine, folder, limits, look)
        finally:
            # In this process's group, so that whoever ends that ends the emulator too.
            machine.kill()
            machine.wait()


@contextlib.contextmanager
def _watched(folder: Path) -> Iterator[Callable[[], None]]:
    """Look at Bochs's screen from time to time: it stops for ever when too much is unread.

    Its `term` display draws on a terminal of its own making, which it names in what it prints.
    """
    with contextlib.ExitStack() as opened:
        screens: list[int] = []

        def look() -> None:
            # Of a machine that has ended, the terminal is gone.
            with contextlib.suppress(OSError):
                said = (folder / "screen.txt").read_text("utf-8", "replace")
                if not screens and (found := _SCREEN.search(said)):
                    screens.append(os.open(found[1], os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
                    opened.callback(os.close, screens[0])
                    tty.setraw(screens[0])
                while screens and os.read(screens[0], 65536):
                    pass

        yield look


def _listen(
    machine: subprocess.Popen[bytes], folder: Path, limits: Limits, look: Callable[[], None]
) -> tuple[float, float]:
    answer, started, first = folder / "answer.txt", perf_counter(), 0.0
    while True:
        look()
        if limits.stopped():
            raise ResourceError("the emulated machine was switched off by an interrupt.")
        over = machine.poll() is not None  # Asked before reading: what it said last is there.
        said = answer.read_bytes() if answer.exists() else b""
        now = perf_counter()
        if not first and b"\n" in said:
            first = now
        if b'{"end": true}' in said[-64:] or (over and first):
            return first, now
        late = first and limits.enough_s is not None and now - first > limits.enough_s
        # The canary's line, and at least one of a model.
        if late and said.count(b'"outputs"') > 1:
            return first, now
        if over or now - started > limits.timeout_s:
            raise _silent(folder, limits.timeout_s, over=over)
        sleep(_POLL_S)


_ENVIRONMENT = {"TERM": "xterm", "PATH": "/usr/bin:/bin", "LANG": "C"}


def _silent(folder: Path, timeout_s: float, *, over: bool) -> ResourceError:
    console = folder / "console.txt"
    said = _lines(console)[-3:] if console.exists() else []
    what = "ended by itself" if over else f"was not done after {timeout_s:g} s and was ended"
    return ResourceError(
        f"the emulated machine {what}. Its console's last lines: {' / '.join(said) or 'none'}. "
        "See docs/proof.md."
    )


def _lines(file: Path) -> list[str]:
    """Whole lines: the last one may be on its way."""
    whole = file.read_bytes().rpartition(b"\n")[0].decode("utf-8", errors="replace")
    return [line for line in whole.splitlines() if line.strip()]
