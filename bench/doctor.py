"""`vnnify doctor`: what this machine is, what is missing, and the command that would help."""

from collections.abc import Iterator, Sequence

from bench.errors import UnfitError, UsageError
from bench.machine import Machine
from bench.machine_table import machine_table
from bench.peaks import Peaks
from bench.render import Banner, Document, Section

_EXTRAS = {
    "openvino": "pip install 'vnnify[openvino]'",
    "torch": "pip install 'vnnify[torch]'",
}
_CLASSES = {
    "vnni": ("amx", "avx512_vnni", "avx_vnni"),
    "amx": ("amx",),
    "avx2": ("amx", "avx512_vnni", "avx_vnni", "avx512", "avx2"),
}
_ANY_TARGET = ("auto", "portable")
_DEVICES = ("cpu", "cuda")


def refuse_unknown(target: str, device: str) -> None:
    """Refuse names that are none.

    Raises:
        UsageError: There is no such target or device.
    """
    if target not in (*_CLASSES, *_ANY_TARGET):
        known = ", ".join((*_ANY_TARGET, *_CLASSES))
        raise UsageError(f"unknown target {target!r}; known: {known}.")
    if device not in _DEVICES:
        raise UsageError(f"unknown device {device!r}; known: {', '.join(_DEVICES)}.")


def refuse_unfit(machine: Machine, target: str, device: str) -> None:
    """Refuse what cannot be had here.

    Raises:
        UnfitError: The target's speed cannot be measured, or the device not be used.
    """
    wanted = _CLASSES.get(target)
    if wanted is not None and machine.isa_class not in wanted:
        raise UnfitError(
            f"target {target!r} needs a CPU of class {' or '.join(wanted)} and a runtime that "
            f"computes exactly on it; this is {machine.isa_class!r}. Its accuracy can still be "
            "judged here, its speed cannot."
        )
    if device == "cuda" and machine.no_gpu_reason:
        raise UnfitError(f"device 'cuda' cannot be used here: {machine.no_gpu_reason}.")


def diagnosis(machine: Machine, peaks: Sequence[Peaks] = ()) -> Document:
    """Everything about a machine on one screen, what to mend first."""
    vnni = "has" if machine.isa_class in _CLASSES["vnni"] else "has no"
    return Document(
        title="vnnify doctor",
        verdict=Banner(
            "info",
            f"class {machine.isa_class}: {vnni} fast exact INT8; {machine.threads} threads; "
            f"GPU: {', '.join(machine.gpus) or 'none'}",
            tuple(_advice(machine)) or ("Nothing to mend.",),
        ),
        sections=(Section("This machine", (machine_table(machine, peaks),)),),
    )


def _advice(machine: Machine) -> Iterator[str]:
    for name, command in _EXTRAS.items():
        if name not in machine.packages:
            yield f"Not installed, optional: {name}: {command}"
    saturating = [n for n, v in machine.canaries.items() if v == "saturating"]
    if saturating:
        yield (
            f"INT8 products saturate here in {', '.join(saturating)}: a model made for VNNI "
            "gives other answers on this CPU than on its target."
        )
    if machine.governor not in ("performance", "unknown"):
        yield (
            f"The governor {machine.governor!r} lowers the clock between measurements: "
            "sudo cpupower frequency-set -g performance"
        )
    if machine.quota_cpus is not None and machine.quota_cpus < machine.logical_cores:
        yield (
            f"The container's quota is {machine.quota_cpus:g} of {machine.logical_cores} CPUs; "
            "more threads than that are stopped together: docker run --cpus N"
        )
    if machine.gpus and machine.no_gpu_reason:
        yield f"The GPU cannot be used: {machine.no_gpu_reason}."
