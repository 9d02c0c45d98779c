"""`make bench-predict`: speed predicted for AVX2 kernels and for one thread, and measured.

    python -m tests.benchmarks.predictions MODEL.onnx …

OpenVINO can be held to AVX2 on a machine that has more (ONEDNN_MAX_CPU_ISA), so that both sides of
a prediction can be measured on it. Layers are timed both ways, the models with everything; what
follows for the models with less is printed beside what they take.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.forecast import Elsewhere, Forecast, Survey, forecast
from bench.latency import Latency, Variant, measure
from bench.machine import Machine, available_threads, describe
from bench.models import read_model, synthetic_feeds
from bench.yardsticks import measure_bout

_RUNTIMES = ("onnxruntime", "openvino")


def predicted(paths: list[Path], machine: Machine) -> Forecast:
    """The checks that every prediction brings, for these models."""
    threads = available_threads()
    models = [read_model(p) for p in paths]
    feeds = synthetic_feeds(models[0], batch=1, seed=0)
    variants = [
        Variant(f"{path.name} {r}", model, r, "cpu", threads, 1)
        for path, model in zip(paths, models, strict=True)
        for r in _RUNTIMES
    ]
    latencies: tuple[Latency, ...] = measure(
        variants, feeds, rounds=2, seconds_per_round=0.2, seed=0
    )
    held = measure_bout("openvino", threads, limited="AVX2").yardsticks
    return forecast(Elsewhere("AVX2", Survey(machine, (), (held,))), machine, latencies, feeds[0])


def table(paths: list[Path], machine: Machine) -> list[str]:
    """Lines of Markdown: what AVX2 costs each kind of layer, and every prediction."""
    full, held = (
        measure_bout("openvino", available_threads(), limited=isa).yardsticks.ms
        for isa in ("", "AVX2")
    )
    lines = [f"{machine.cpu}, class {machine.isa_class}, {machine.threads} threads", ""]
    lines += ["| Layer in OpenVINO | all kernels, ms | AVX2 alone, ms | slower |"]
    lines += ["| --- | ---: | ---: | ---: |"]
    for kind in full:
        times = full[kind], held.get(kind, math.nan)
        lines.append(f"| {kind} | {times[0]:.4f} | {times[1]:.4f} | {times[1] / times[0]:.1f}× |")
    lines += ["", "| Model | predicted, ms | measured, ms | off by |"]
    lines += ["| --- | ---: | ---: | ---: |"]
    for folder in dict.fromkeys(p.parent for p in paths):
        for c in predicted([p for p in paths if p.parent == folder], machine).checks:
            name = f"{folder.name}/{c.name}"
            lines.append(
                f"| {name} | {c.predicted_ms:.3g} | {c.measured_ms:.3g} | {c.factor:.2f}× |"
            )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the tables to stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    found = table(parser.parse_args(arguments).models, describe())
    sys.stdout.write("\n".join(found) + "\n")


if __name__ == "__main__":
    main()
