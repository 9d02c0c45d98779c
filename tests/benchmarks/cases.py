"""Cases: a model with its data, as a folder that any quantizer can be given.

    folder/model.onnx + data.npz | data.py:data | samples/ (+ calibration.npz, metric.py, case.json)

`case.json` may say `metric`, `output`, `states` (output to input), `module` (what makes the model
in PyTorch, as `vnnify quantize` takes it), `weights` (of the module; a file of the folder) and
`note`; all of it is optional.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.models import Model, read_model
from quantize.data import Samples, read_samples
from quantize.metric import Metric
from quantize.metrics import resolve_metric
from quantize.splitting import split

_SEED = 0


@dataclass(frozen=True, slots=True)
class Case:
    """One model to compare quantizers on.

    Attributes:
        name: Of the folder.
        path: The FP32 ONNX file as its exporter left it.
        data: What `--data` takes.
        calibration: What `--calibration` takes; None to split `data`.
        metric: What `--metric` takes; None for the one that fits the labels.
        output: The output to score.
        states: Output to input names that carry state.
        module: `file.py:factory` or `package.module:factory`; None where the model is a file only.
        weights: Of the module.
    """

    name: str
    path: Path
    data: str
    calibration: str | None = None
    metric: str | None = None
    output: str | None = None
    states: Mapping[str, str] = field(default_factory=dict)
    module: str | None = None
    weights: str | None = None


@dataclass(frozen=True, slots=True)
class Data:
    """What a case is calibrated and judged on."""

    model: Model
    calibration: Samples
    evaluation: Samples
    metric: Metric


def find_case(folder: Path) -> Case:
    """The case in a folder.

    Raises:
        FileNotFoundError: It holds no model or no data.
    """
    path = folder / "model.onnx"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: holds no model.onnx")
    known = folder / "case.json"
    facts = json.loads(known.read_text(encoding="utf-8")) if known.is_file() else {}
    choices = {"evaluation.npz": "", "data.npz": "", "data.py": ":data", "samples": ""}
    there = next((f for f in choices if (folder / f).exists()), None)
    if there is None:
        raise FileNotFoundError(f"{folder}: holds none of {', '.join(choices)}")
    apart = next((f for f in ("calibration.npz", "calibration") if (folder / f).exists()), None)
    plugin = folder / "metric.py"
    return Case(
        name=folder.name,
        path=path,
        data=f"{folder / there}{choices[there]}",
        calibration=str(folder / apart) if apart else None,
        metric=f"{plugin}:metric" if plugin.is_file() else facts.get("metric"),
        output=facts.get("output"),
        states=facts.get("states", {}),
        module=_inside(folder, facts.get("module")),
        weights=_inside(folder, facts.get("weights")),
    )


def _inside(folder: Path, text: str | None) -> str | None:
    """What names a file of the folder, with the folder; anything else as it is."""
    if text is None or not (folder / text.partition(":")[0]).exists():
        return text
    return str(folder / text)


def read_case(case: Case, scratch: Path, calibrate_on: int, evaluate_on: int) -> Data:
    """Read the data of a case, the same for every quantizer.

    Args:
        case: Which.
        scratch: For temporary files, needed as long as the samples are.
        calibrate_on: Calibration samples, at most.
        evaluate_on: Evaluation samples, at most.
    """
    model = read_model(case.path)
    taken = {i: o for o, i in case.states.items()}

    def read(source: str) -> Samples:
        return read_samples(source, model.inputs, scratch=scratch, states=taken)

    everything = read(case.data)
    ordered = bool(case.states)
    if case.calibration is None:
        calibration, evaluation = split(
            everything, calibration_count=calibrate_on, seed=_SEED, ordered=ordered
        )
    else:
        calibration, evaluation = read(case.calibration), everything
        calibration = _thinned(calibration, calibrate_on, ordered=ordered)
    evaluation = _thinned(evaluation, evaluate_on, ordered=ordered)
    label = evaluation.label(0) if evaluation.labelled else None
    metric = resolve_metric(
        case.metric, labelled=evaluation.labelled, first_label=label, output=case.output
    )
    return Data(model, calibration, evaluation, metric)


def _thinned(samples: Samples, count: int, *, ordered: bool) -> Samples:
    """At most `count` samples: the first ones of a sequence, else spread evenly."""
    total = len(samples)
    if total <= count:
        return samples
    chosen = range(count) if ordered else sorted({i * total // count for i in range(count)})
    return samples.subset(list(chosen))
