"""What a run starts from: samples, the converted model, one clean FP32 graph, who judges it.

job ─▶ read ─▶ convert ─▶ prepare ─▶ divide ─▶ metric
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx_ir.passes.common import NameFixPass

from bench.errors import InputError, UnsupportedError, UsageError
from bench.models import Model, TensorSpec
from bench.runtimes import RUNTIMES, Settings
from bench.runtimes.seam import Session
from quantize.data import Samples, infer_inputs, read_samples
from quantize.evaluate import try_metric
from quantize.graphs import light, load, save
from quantize.job import DataSpec, Job, Limits
from quantize.metric import Metric
from quantize.metrics import METRICS, compares_texts, resolve_metric
from quantize.prepare import Prepared, prepare
from quantize.sources import check_parity, convert, describe_inputs, refuse_random
from quantize.splitting import refuse_overlap, split

_PARITY_SAMPLES = 4


def read(job: Job, scratch: Path) -> tuple[Samples, Samples | None]:
    """The samples of `--data`, and those of `--calibration` where it is given."""
    spec, data = job.model, job.data
    inputs = describe_inputs(spec) or spec.inputs or infer_inputs(data.source)
    texts = compares_texts(job.limits.metric)
    everything = read_source(data, data.source, inputs, scratch, texts=texts)
    if not data.calibration:
        return everything, None
    return everything, read_source(data, data.calibration, inputs, scratch, texts=texts)


def read_source(
    data: DataSpec, source: str, inputs: Sequence[TensorSpec], scratch: Path, *, texts: bool
) -> Samples:
    """Samples of one source: the data, or what calibrates.

    Args:
        data: How it is read.
        source: What is read.
        inputs: What the model takes.
        scratch: Folder for temporary files.
        texts: Whether labels are text to the metric.

    Raises:
        InputError: It cannot be read, or does not fit the inputs.
    """
    return read_samples(
        source,
        inputs,
        scratch=scratch,
        preprocessing=data.preprocessing,
        states={i: o for o, i in data.states.items()},
        limit=data.limit,
        texts=texts,
    )


def converted(job: Job, samples: Samples, scratch: Path) -> Model:
    """The trained model as ONNX.

    Raises:
        UsageError: It lacks an output or input that `--state` names.
    """
    folder = scratch / "source"
    folder.mkdir()
    model = convert(job.model, samples, folder / "model.onnx")
    if not model.inputs:
        raise UnsupportedError(
            f"{job.model.text}: takes no inputs, so no samples can be run through it. Export it "
            "with the input that varies."
        )
    _refuse_unknown_states(model, job.data.states)
    return model


def _refuse_unknown_states(model: Model, states: dict[str, str]) -> None:
    inputs, outputs = {i.name for i in model.inputs}, {o.name for o in model.outputs}
    for output, target in states.items():
        if output not in outputs or target not in inputs:
            raise UsageError(
                f"--state {output}:{target}: the model has outputs {sorted(outputs)} and inputs "
                f"{sorted(inputs)}. Write --state OUTPUT:INPUT."
            )


def prepared(
    job: Job, source: Model, samples: Samples, metric: Metric, out: Path, threads: int
) -> Prepared:
    """One clean FP32 graph that computes what `source` does, the same each time.

    Light copies of both are left beside them.

    Raises:
        UnsupportedError: Two runs on one sample differ.
        InputError: The metric does not fit its outputs.
    """
    source = light(source, source.path.parent)
    made = prepare(source, out, name=job.model.text, folder=source.path.parent)
    # Run a few times only, and as large as the model is.
    settings = Settings(threads=threads, packed=False)
    reference = _opened(source.path, settings, job.model.text)
    feeds = [samples[i].feeds for i in range(min(_PARITY_SAMPLES, len(samples)))]
    refuse_random(reference.run, feeds[0], job.model.text)
    check_parity(reference.run, light(made.model, out.parent).path, feeds)
    try_metric(metric, reference, samples)
    reference.close()
    return made


def _opened(path: Path, settings: Settings, shown: str) -> Session:
    """The converted model as it is; with names of its own where nodes share one.

    Raises:
        InputError: ONNX Runtime refuses it.
    """
    runtime = RUNTIMES["onnxruntime"]
    try:
        return runtime.open(path, settings)
    except InputError as refused:
        # Names of nodes mean nothing, but ONNX Runtime takes no two of one name.
        named = path.with_name("named.onnx")
        save(NameFixPass()(load(path)).model, named)
        try:
            return runtime.open(named, settings)
        except InputError:
            why = str(refused).removeprefix(f"{path}: ")
            raise InputError(
                f"{shown}: {why}. It cannot be compared with what INT8 computes; export it in "
                "float32, with operators that ONNX Runtime runs on CPUs."
            ) from refused


def divide(
    data: DataSpec, everything: Samples, calibration: Samples | None
) -> tuple[Samples, Samples]:
    """Samples to calibrate with, and those to judge by, in random order where they may be."""
    if calibration is None:
        calibration, evaluation = split(
            everything,
            calibration_count=data.calibration_count,
            seed=data.seed,
            ordered=bool(data.states),
        )
    else:
        evaluation = everything
        if len(calibration) > data.calibration_count:
            count = data.calibration_count
            chosen = range(count) if data.states else spread(len(calibration), count)
            calibration = calibration.subset(list(chosen))
        refuse_overlap(calibration, evaluation)
    if not data.states:
        # So that the first samples of an evaluation stand for all of them.
        order = np.random.default_rng(data.seed).permutation(len(evaluation))
        evaluation = evaluation.subset([int(i) for i in order])
    return calibration, evaluation


def chosen_metric(limits: Limits, evaluation: Samples) -> Metric:
    """The metric that was asked for, or the one that fits the labels.

    Raises:
        UsageError: There is no such metric, or it needs labels and there are none.
        InputError: The user's file cannot be loaded, or a label is NaN.
    """
    if limits.metric is None or limits.metric in METRICS:
        _refuse_missing(evaluation)
    return resolve_metric(
        limits.metric,
        labelled=evaluation.labelled,
        first_label=evaluation.first_label if evaluation.labelled else None,
        output=limits.output,
        decode=limits.decode,
    )


def _refuse_missing(samples: Samples) -> None:
    """Refuse NaN among plain numbers: one turns a whole array of classes into floats."""
    if not samples.labelled or type(samples.first_label) is not float:
        return
    missing = [i for i in range(len(samples)) if samples.label(i) != samples.label(i)]
    if missing:
        raise InputError(
            f"{samples.source}: {len(missing)} of {len(samples)} labels are NaN, first that of "
            f"{samples.place(missing[0])}. Leave those samples out, and save labels that name "
            "classes as integers; or use a metric function of your own that knows what NaN means."
        )


def spread(total: int, count: int) -> list[int]:
    """`count` indices spread evenly over `total`."""
    return sorted({i * total // count for i in range(count)})


def held_out(total: int, count: int, *, ordered: bool) -> tuple[list[int], list[int]]:
    """Which of so many calibration samples are held out as probes, and the rest.

    Args:
        total: Samples.
        count: To hold out, at most; at most a quarter.
        ordered: They carry a state, so the sequence is cut once and not thinned out.
    """
    count = min(count, max(total // 4, 1))
    held = list(range(total - count, total)) if ordered else spread(total, count)
    return held, [i for i in range(total) if i not in set(held)] or held
