"""The options of the limits that both `quantize` and `gate` take."""

from pathlib import Path
from typing import Annotated, TypeAlias

from typer import Option

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
    str, Option(help="fail, warn or pass: what too few samples, or too busy a machine, count as.")
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
