"""A machine as a table: what `vnnify doctor` shows and every report ends with."""

from collections.abc import Sequence

from bench.machine import Machine
from bench.peaks import Peaks
from bench.render import Column, Table


def machine_table(machine: Machine, peaks: Sequence[Peaks] = ()) -> Table:
    """What `doctor` shows and every report ends with."""
    quota = "none" if machine.quota_cpus is None else f"{machine.quota_cpus:g} CPUs"
    rows = [
        ("CPU", machine.cpu),
        ("Identity", f"family {machine.family} model {machine.model} stepping {machine.stepping}"),
        ("Microcode", machine.microcode),
        ("Class", machine.isa_class),
        ("AVX2", _flags(machine, "avx2", "fma", "avx_")),
        ("AVX-512", _flags(machine, "avx512")),
        ("AMX", _flags(machine, "amx")),
        *((f"INT8 in {name}", seen) for name, seen in machine.canaries.items()),
        ("Cores", f"{machine.physical_cores} ({machine.logical_cores} hardware threads)"),
        ("Threads usable", f"{machine.threads} (CPU quota: {quota})"),
        ("Caches", ", ".join(f"{k[:3]} {v / 2**10:g}K" for k, v in machine.caches.items())),
        ("Memory", f"{machine.memory_bytes / 2**30:.1f} GiB"),
        *(row for p in peaks for row in _peak_rows(p)),
        ("Virtual", "yes" if machine.hypervisor else "no"),
        ("Governor", machine.governor),
        ("GPU", ", ".join(machine.gpus) or f"none: {machine.no_gpu_reason}"),
        ("Kernel", machine.kernel),
        ("Python", machine.python),
        *((name, version) for name, version in machine.packages.items()),
        *((name, value) for name, value in machine.variables.items()),
    ]
    return Table("This machine", (Column("what"), Column("found")), tuple(rows))


def _peak_rows(peaks: Peaks) -> tuple[tuple[str, str], ...]:
    fp32, int8, memory = _peak_parts(peaks)
    return (f"Reached, {peaks.threads} threads", fp32), ("", int8), ("", memory)


def peaks_text(peaks: Peaks) -> str:
    """What the machine reached, in one line."""
    return ", ".join(_peak_parts(peaks))


def _peak_parts(peaks: Peaks) -> tuple[str, str, str]:
    return (
        f"{peaks.fp32_per_second / 1e9:,.0f} GFLOP/s FP32 ({peaks.fp32_runtime})",
        f"{peaks.int8_per_second / 1e9:,.0f} GOP/s INT8 ({peaks.int8_runtime})",
        f"{peaks.bytes_per_second / 1e9:.1f} GB/s copying {peaks.copied_bytes / 2**20:,.0f} MiB",
    )


def _flags(machine: Machine, *prefixes: str) -> str:
    return " ".join(f for f in machine.flags if f.startswith(prefixes)) or "no"
