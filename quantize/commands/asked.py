"""What the options of a command ask for, as the records that its work takes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

# No typer: the process that works reads options too, and needs nothing of the command line.
if TYPE_CHECKING:
    from quantize.images import Preprocessing
    from quantize.job import DataSpec, Effort, GateBounds, Job, Limits
    from quantize.sources.seam import ModelSpec


def asked_job(asked: dict[str, Any], command: str) -> "Job":
    """What the options ask for; read where the work is done, since reading them takes imports.

    Args:
        asked: Options by parameter name, paths as texts.
        command: As typed.

    Raises:
        UsageError: An option makes no sense.
    """
    from quantize.job import Job

    return Job(
        model=model_spec(
            asked["model"], path_of(asked["weights"]), asked["inputs"], trust=asked["trust_model"]
        ),
        data=_data(asked),
        limits=_limits(asked),
        effort=_effort(asked),
        command=command,
        bounds=bounds_of(asked),
        lock=None if asked["update_baseline"] else path_of(asked["baseline"]),
        flips=asked["flips"] is not None,
    )


def _data(asked: dict[str, Any]) -> "DataSpec":
    from quantize.job import DataSpec
    from quantize.options import parse_states

    return DataSpec(
        source=asked["data"],
        calibration=asked["calibration"],
        calibration_count=asked["calibration_samples"],
        limit=asked["limit"],
        preprocessing=preprocessing(),
        states=parse_states(asked["state"] or []),
        seed=asked["seed"],
    )


def _limits(asked: dict[str, Any]) -> "Limits":
    from quantize.options import one_of

    known = ("latency", "throughput", "size")
    objective = one_of("--objective", asked["objective"], known)
    return replace(limits_of(asked), objective=objective)


def _effort(asked: dict[str, Any]) -> "Effort":
    from quantize.job import ROUNDS, Effort
    from quantize.options import (
        between,
        checked_rounding,
        checked_runtimes,
        checked_target,
        names,
        parse_budget,
    )
    from quantize.proof.debian import cache_folder

    return Effort(
        target=checked_target(asked["target"]),
        runtimes=checked_runtimes(asked["runtime"]),
        threads=asked["threads"],
        rounds=asked["rounds"] or ROUNDS,
        seconds=between("--seconds", asked["seconds"], 0, 3600),
        recipe=path_of(asked["recipe"]),
        # A baseline is what later runs are held against.
        full=asked["rounds"] is not None or asked["update_baseline"],
        budget_s=parse_budget(asked["budget"]),
        prove=cache_folder() if asked["prove"] else None,
        predict_for=path_of(asked["predict_for"]),
        engines=names(asked["engine"]),
        rounding=checked_rounding(asked["rounding"]),
    )


def model_spec(
    text: str, weights: Path | None, inputs: list[str] | None, *, trust: bool
) -> "ModelSpec":
    """What the options say of a model."""
    from bench.inputs import parse_input
    from quantize.sources.seam import ModelSpec

    return ModelSpec(text, weights, tuple(parse_input(i) for i in inputs or ()), trust)


def preprocessing() -> "Preprocessing | None":
    """From `[tool.vnnify.preprocessing]` or `[preprocessing]` of vnnify.toml; images need it."""
    from quantize.config import read_config

    return read_config(Path.cwd()).preprocessing


def limits_of(asked: Mapping[str, Any]) -> "Limits":
    """What is judged, and how strictly.

    Args:
        asked: Options by parameter name, paths as they are or as texts.

    Raises:
        UsageError: One of them makes no sense.
    """
    from quantize.job import Limits
    from quantize.options import between, checked_metric, checked_tolerance, one_of

    return Limits(
        metric=checked_metric(asked["metric"]),
        output=asked["output"],
        decode=asked["decode"],
        max_drop=checked_tolerance(asked["max_drop"]),
        confidence=between("--confidence", asked["confidence"], 0.5, 1),
        inconclusive=one_of("--inconclusive", asked["inconclusive"], ("fail", "warn", "pass")),
        slices=path_of(asked["slices"]),
        unit=asked["unit"],
        max_slice_drop=checked_tolerance(asked["max_slice_drop"]),
    )


def bounds_of(asked: Mapping[str, Any]) -> "GateBounds":
    """What is asked of speed and size.

    Args:
        asked: Options by parameter name.

    Raises:
        UsageError: One of them makes no sense.
    """
    from quantize.job import GateBounds
    from quantize.options import parse_factor, parse_size

    return GateBounds(
        min_speedup=parse_factor("--min-speedup", asked["min_speedup"]),
        max_bytes=parse_size("--max-size", asked["max_size"]),
        min_compression=parse_factor("--min-compression", asked["min_compression"]),
    )


def path_of(given: Path | str | None) -> Path | None:
    """The path that an option names."""
    return None if given is None else Path(given)
