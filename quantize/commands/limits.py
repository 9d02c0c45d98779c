"""The limits that both `quantize` and `gate` take: as options, and as what they ask for."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from typer import Option

if TYPE_CHECKING:
    from quantize.job import GateBounds, Limits

DROP = "1pt: percentage points of a 0..1 metric; 1%: of FP32's value; 0.1abs: its own unit."

Metric: TypeAlias = Annotated[
    str | None,
    Option(
        help="top1, f1, mse, cosine (to FP32's outputs), map, miou, wer, … (docs/quantize.md: The "
        "metric), or file.py:function, called as function(outputs, labels). Chosen by the labels "
        "where it is left out."
    ),
]
Output: TypeAlias = Annotated[str | None, Option(help="The output that the metric scores.")]
Decode: TypeAlias = Annotated[
    str | None,
    Option(help="file.py:function: turns the outputs of one run into what the metric takes."),
]
Confidence: TypeAlias = Annotated[float, Option(help="One-sided, of the verdict.")]
Inconclusive: TypeAlias = Annotated[
    str, Option(help="fail, warn or pass: what too few samples count as.")
]
Slices: TypeAlias = Annotated[
    Path | None,
    Option(
        help="CSV file: a column `sample` (number or file name), and columns that divide the "
        "samples."
    ),
]
SliceDrop: TypeAlias = Annotated[
    str | None, Option(help="As --max-drop, for every class and every slice.")
]
Unit: TypeAlias = Annotated[
    str | None,
    Option(help="Column of --slices that names what is independent: person, document, video."),
]
Flips: TypeAlias = Annotated[Path | None, Option(help="Write the samples that changed, as CSV.")]
MaxSize: TypeAlias = Annotated[str | None, Option(help="As in 10MB: refuse a larger INT8 model.")]
Compression: TypeAlias = Annotated[
    str | None, Option(help="As in 3x: refuse unless INT8 is so much smaller.")
]
Baseline: TypeAlias = Annotated[
    Path | None, Option(help="Refuse what is worse than this vnnify.lock.json.")
]
Update: TypeAlias = Annotated[
    bool, Option("--update-baseline", help="Write --baseline, if the model passes.")
]
Github: TypeAlias = Annotated[
    bool, Option("--github", help="Annotations and job summary for GitHub Actions.")
]


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
