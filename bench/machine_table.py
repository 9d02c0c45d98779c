"""A machine as a table: what `vnnify doctor` shows and every report ends with."""

from collections.abc import Iterator, Mapping, Sequence

from bench.gpu import Gpu
from bench.machine import Machine
from bench.peaks import Peaks
from bench.render import Column, Table


def machine_table(machine: Machine, peaks: Sequence[Peaks] = ()) -> Table:
    """A line per thing to know; few of them, so that `doctor` fits one screen."""
    m = machine
    quota = "none" if m.quota_cpus is None else f"{m.quota_cpus:g} CPUs"
    cores = f"{m.physical_cores} ({m.logical_cores} hardware threads)"
    place = "virtual machine" if m.hypervisor else "no virtual machine"
    memory = [f"{m.memory_bytes / 2**30:.1f} GiB"]
    memory += [f"{_level(k)} {_size(v)}" for k, v in m.caches.items()]
    versions = {"Python": m.python, **m.packages}
    rows = (
        ("CPU", f"{m.cpu}, family {m.family} model {m.model} stepping {m.stepping}"),
        ("Instructions", f"{m.isa_class}: {' '.join(m.flags) or 'none known'}"),
        ("INT8 products", _grouped(m.canaries)),
        ("Cores", f"{cores}, {m.threads} threads usable (CPU quota: {quota})"),
        ("Memory", ", ".join(memory)),
        *(("At best", _peaks(p)) for p in peaks),
        *_gpus(m),
        (
            "System",
            f"Linux {m.kernel}, {place}, governor {m.governor}, microcode {m.microcode}",
        ),
        ("Versions", ", ".join(f"{k} {v}" for k, v in versions.items())),
        ("Variables", ", ".join(f"{k}={v}" for k, v in m.variables.items())),
    )
    return Table("", (Column(""), Column("")), tuple(row for row in rows if row[1]))


def _peaks(peaks: Peaks) -> str:
    threads = f"{peaks.threads} thread" + ("" if peaks.threads == 1 else "s")
    return (
        f"{peaks.fp32_per_second / 1e9:,.0f} GFLOP/s FP32 ({peaks.fp32_runtime}), "
        f"{peaks.int8_per_second / 1e9:,.0f} GOP/s INT8 ({peaks.int8_runtime}), "
        f"{peaks.bytes_per_second / 1e9:.1f} GB/s copying {peaks.copied_bytes / 2**20:,.0f} MiB; "
        f"{threads}"
    )


def _grouped(canaries: Mapping[str, str]) -> str:
    """`exact in onnxruntime and openvino`; nothing where no runtime could be tried."""
    names: dict[str, list[str]] = {}
    for runtime, seen in canaries.items():
        names.setdefault(seen, []).append(runtime)
    return "; ".join(f"{seen} in {' and '.join(by)}" for seen, by in names.items())


def _gpus(machine: Machine) -> Iterator[tuple[str, str]]:
    if not machine.gpus:
        yield "GPU", f"none: {machine.no_gpu_reason}"
    elif not machine.gpu_states:
        yield "GPU", f"{', '.join(machine.gpus)}; nvidia-smi, which tells driver and clocks, fails"
    for gpu in machine.gpu_states:
        yield "GPU", ", ".join(_gpu_parts(gpu))
    if machine.gpus and machine.no_gpu_reason:
        yield "", f"not usable: {machine.no_gpu_reason}"


def _gpu_parts(gpu: Gpu) -> Iterator[str]:
    yield gpu.name
    yield f"driver {gpu.driver}"
    if gpu.memory_mib is not None:
        yield f"{gpu.memory_mib / 1024:.0f} GiB"
    if gpu.power_limit_w is not None:
        yield f"at most {gpu.power_limit_w:.0f} W"
    if gpu.most_clock_mhz is not None:
        yield f"at most {gpu.most_clock_mhz:,.0f} MHz"


def _level(cache: str) -> str:
    """`L1d` for "L1 data", `L3` for "L3 unified"."""
    level, _, kind = cache.partition(" ")
    return level + {"data": "d", "instruction": "i"}.get(kind, "")


def _size(count: int) -> str:
    return f"{count / 2**20:g} MiB" if count >= 2**20 else f"{count / 2**10:g} KiB"
