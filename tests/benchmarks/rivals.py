"""Quantizers, each run in a process of its own: the file that it makes, its time, its memory.

Everybody gets the same calibration samples. What a quantizer's own documentation asks for first
(`quant_pre_process`) counts as its time; imports and reading the samples do not.
"""

import contextlib
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from bench.errors import UnsupportedError
from bench.machine import available_threads
from bench.models import Feeds, Model
from bench.runtimes import RUNTIMES, Settings
from bench.stages import peak_rss_bytes, reset_peak_rss
from quantize.recipe import Engine
from quantize.sources import ModelSpec
from tests.benchmarks.cases import Case, Data, read_case


@dataclass(frozen=True, slots=True)
class Order:
    """What a quantizer is given."""

    case: Case
    data: Data
    folder: Path
    calibrate_on: int
    target: str

    def feeds(self) -> Iterator[Feeds]:
        """The calibration samples, states carried by FP32 as the native engine does."""
        states = self.case.states
        if not states:
            yield from (s.feeds for s in self.data.calibration)
            return
        session = RUNTIMES["onnxruntime"].open(self.case.path, Settings(threads=1))
        carried: Feeds = {}
        for sample in self.data.calibration:
            feeds = {**sample.feeds, **carried}
            yield feeds
            outputs = session.run(feeds)
            carried = {taker: outputs[giver] for giver, taker in states.items()}
        session.close()


Rival = Callable[[Order], tuple[Path, dict[str, float]]]


def work(job: dict[str, Any]) -> dict[str, Any]:
    """The child process: read the case, quantize, and say what it cost."""
    case = Case(**{**job["case"], "path": Path(job["case"]["path"])})
    folder = Path(job["folder"])
    data = read_case(case, folder, job["calibrate_on"], 1)
    packages, rival = RIVALS[job["rival"]]
    for package in packages:
        importlib.import_module(package)
    order = Order(case, data, folder, job["calibrate_on"], job["target"])
    reset_peak_rss()
    before = perf_counter()
    # Several of them report progress on stdout.
    with contextlib.redirect_stdout(sys.stderr):
        path, facts = rival(order)
    seconds = perf_counter() - before
    return {"path": str(path), "seconds": seconds, "peak_rss_bytes": peak_rss_bytes(), **facts}


def _fp32(order: Order) -> tuple[Path, dict[str, float]]:
    """No quantizer: FP32 on the calibration samples, for comparison."""
    settings = Settings(threads=available_threads())
    session = RUNTIMES["onnxruntime"].open(order.case.path, settings)
    for feeds in order.feeds():
        session.run(feeds)
    session.close()
    return order.case.path, {}


def _native(order: Order) -> tuple[Path, dict[str, float]]:
    """vnnify's engine without its search: one plan, its variant with the least noise."""
    from quantize.prepare import prepare

    fp32 = prepare(order.data.model, order.folder / "model.fp32.onnx").model
    return _by_engine(order, fp32, "native", None)


def _by_engine(
    order: Order, fp32: Model, engine: Engine, origin: ModelSpec | None
) -> tuple[Path, dict[str, float]]:
    import onnx_ir as ir

    from quantize.anchors import find_anchors
    from quantize.calibrate import calibrate
    from quantize.candidates import expectation, plans
    from quantize.placement import watch_list
    from quantize.smoothing import even_out
    from quantize.trials import PROBES, Workbench, run_probes
    from quantize.variants import best_variant

    threads, data = available_threads(), order.data
    model = ir.load(fp32.path)
    anchors, left = find_anchors(model)
    if not anchors:
        raise RuntimeError(f"nothing to quantize: {'; '.join(sorted(set(left.values())))}")
    count = len(data.calibration)
    held = sorted({i * count // PROBES for i in range(PROBES)}) if count > 4 * PROBES else [0]
    rest = [i for i in range(count) if i not in held] or held
    samples, states = data.calibration.subset(rest), dict(order.case.states)
    start = perf_counter()
    found = calibrate(
        fp32,
        watch_list(model, anchors),
        samples,
        threads=threads,
        scratch=order.folder,
        states=states,
    )
    found, calibrated = replace(found, origin=origin), perf_counter()
    probes = tuple(data.calibration[i].feeds for i in held)
    outputs = run_probes(fp32, probes, threads)
    runtimes = ("onnxruntime",)
    bench = Workbench(fp32, anchors, found, probes, outputs, runtimes, threads, order.folder)
    bench = replace(bench, engines=(engine,))
    if engine == "native":
        bench = even_out(bench, order.target)
    expected = expectation(bench)
    modes = expected.modes if expected is not None else None
    name, plan = next(iter(plans(anchors, order.target, runtimes, (engine,), modes).items()))
    trial = best_variant(bench, plan, name)
    if trial is None:
        raise RuntimeError("no candidate runs")
    costs = {"calibrate_s": calibrated - start, "quantize_s": perf_counter() - calibrated}
    layers = trial.quantized.layers
    costs["narrowed"] = sum(x.narrowed for x in layers)
    costs["channels"] = sum(x.channels for x in layers)
    return trial.quantized.model.path, costs


def _native_vnni(order: Order) -> tuple[Path, dict[str, float]]:
    """The same with all 8 bits of every weight, which CPUs without VNNI compute wrong."""
    return _native(replace(order, target="vnni"))


def _from_module(order: Order, engine: Engine) -> tuple[Path, dict[str, float]]:
    """An engine of vnnify's on the PyTorch module of a case, exported as `vnnify quantize` does.

    Raises:
        UnsupportedError: The case has none.
    """
    import onnx_ir as ir

    from quantize.prepare import prepare
    from quantize.sources import convert

    case, data = order.case, order.data
    if case.module is None:
        raise UnsupportedError("no module")
    weights = Path(case.weights) if case.weights else None
    spec = ModelSpec(case.module, weights, data.model.inputs)
    source = convert(spec, data.calibration, order.folder / "source" / "model.onnx")
    fp32 = prepare(source, order.folder / "model.fp32.onnx").model
    made, costs = _by_engine(order, fp32, engine, spec)
    # Outputs are named by whoever exports; they are the same in the same order.
    model = ir.load(made)
    for value, spec_of in zip(model.graph.outputs, data.model.outputs, strict=True):
        value.name = spec_of.name
    out = order.folder / "int8.onnx"
    ir.save(model, out)
    return out, costs


def _native_via_torch(order: Order) -> tuple[Path, dict[str, float]]:
    return _from_module(order, "native")


def _inc(order: Order) -> tuple[Path, dict[str, float]]:
    return _from_module(order, "inc")


def _vnnify(order: Order) -> tuple[Path, dict[str, float]]:
    """`vnnify quantize` as a user runs it: search, verdict and final benchmark included."""
    case, out = order.case, order.folder / "out"
    command = ["quantize", str(case.path), "--data", case.data, "--out", str(out), "--json"]
    command += ["--calibration-samples", str(order.calibrate_on), "--objective", "size"]
    command += ["--calibration", case.calibration] if case.calibration else []
    command += ["--metric", case.metric] if case.metric else []
    command += ["--output", case.output] if case.output else []
    for output, taker in case.states.items():
        command += ["--state", f"{output}:{taker}"]
    code = "import sys; from quantize.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, *command], stdout=subprocess.PIPE, text=True)
    try:
        report = json.loads(done.stdout)
    except ValueError as e:
        raise RuntimeError(f"vnnify quantize ended with status {done.returncode}") from e
    stages = {s["name"]: s for s in report["stages"]}
    costs = {
        "own_seconds": sum(s["seconds"] for n, s in stages.items() if n != "benchmark"),
        "calibrate_s": stages["calibrate"]["seconds"],
        "own_peak_rss_bytes": max(s["peak_rss_bytes"] for s in stages.values()),
    }
    return out / report["int8"]["path"], costs


def _preprocessed(order: Order) -> Path:
    """The model after `quant_pre_process`, or as it was where that fails, as it often does."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    out = order.folder / "preprocessed.onnx"
    try:
        quant_pre_process(str(order.case.path), str(out))
    except Exception as e:  # noqa: BLE001 - it raises what its many passes raise
        sys.stderr.write(f"quant_pre_process: {e}\n")
        return order.case.path
    return out


def _static(order: Order, **options: Any) -> tuple[Path, dict[str, float]]:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = order.feeds()

        def get_next(self) -> Feeds | None:
            return next(self.rest, None)

    out = order.folder / "int8.onnx"
    quantize_static(str(_preprocessed(order)), str(out), Reader(), **options)
    return out, {}


def _static_narrow(order: Order) -> tuple[Path, dict[str, float]]:
    from onnxruntime.quantization import QuantType

    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    return _static(order, per_channel=True, reduce_range=True, **kinds)


def _static_percentile(order: Order) -> tuple[Path, dict[str, float]]:
    from onnxruntime.quantization import CalibrationMethod, QuantType

    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    method = CalibrationMethod.Percentile
    return _static(order, per_channel=True, calibrate_method=method, **kinds)


def _dynamic(order: Order) -> tuple[Path, dict[str, float]]:
    from onnxruntime.quantization import quantize_dynamic

    out = order.folder / "int8.onnx"
    quantize_dynamic(str(_preprocessed(order)), str(out))
    return out, {}


def _nncf_onnx(order: Order) -> tuple[Path, dict[str, float]]:
    import nncf
    import onnx

    samples = list(order.feeds()) if order.case.states else order.data.calibration
    data = nncf.Dataset(samples, lambda s: s if isinstance(s, dict) else s.feeds)
    made = nncf.quantize(onnx.load(str(order.case.path)), data, subset_size=len(samples))
    out = order.folder / "int8.onnx"
    onnx.save(made, str(out))
    return out, {}


def _nncf_openvino(order: Order) -> tuple[Path, dict[str, float]]:
    import nncf
    import openvino

    samples = list(order.feeds()) if order.case.states else order.data.calibration
    data = nncf.Dataset(samples, lambda s: s if isinstance(s, dict) else s.feeds)
    model = openvino.Core().read_model(str(order.case.path))
    made = nncf.quantize(model, data, subset_size=len(samples))
    out = order.folder / "int8.xml"
    openvino.save_model(made, str(out), compress_to_fp16=False)
    return out, {}


_ORT = ("onnxruntime.quantization",)
_OURS = ("onnx_ir", "onnxruntime")
_TORCH = (*_OURS, "torch", "torch.onnx")

RIVALS: dict[str, tuple[tuple[str, ...], Rival]] = {
    "fp32": (("onnxruntime",), _fp32),
    "native": (_OURS, _native),
    "native vnni": (_OURS, _native_vnni),
    "native via torch": (_TORCH, _native_via_torch),
    "vnnify": ((), _vnnify),
    "static": (_ORT, _static),
    "static u8s8 narrow": (_ORT, _static_narrow),
    "static percentile": (_ORT, _static_percentile),
    "dynamic": (_ORT, _dynamic),
    "nncf": (("nncf", "nncf.onnx.quantization.quantize_model", "onnx"), _nncf_onnx),
    "nncf openvino": (("nncf", "openvino"), _nncf_openvino),
    "inc": ((*_TORCH, "neural_compressor.torch.quantization"), _inc),
}
