"""What OpenVINO's kernels without VNNI do, on any CPU: oneDNN is held to an older one."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.int8 import run
from tests.proof.models import adversarial

_STATIC = ("conv", "depthwise-conv", "depthwise-5x5", "depthwise-1d", "gemm", "matmul")
# One code of an output, which floats may move.
_STEP = 1.01 / 255
_SERVE = """
import sys
from pathlib import Path
import numpy as np
import openvino
precision = {"INFERENCE_PRECISION_HINT": "f32"}
for folder in map(Path, sys.argv[1:]):
    model = openvino.compile_model(folder / "model.onnx", "CPU", precision)
    np.save(folder / "y.npy", model([np.load(folder / "x.npy")])[0])
"""


@pytest.fixture(scope="module", params=["AVX2", "AVX512_CORE"])
def errors(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], float]:
    """By target and layer: largest difference to exact products, as a share of their range."""
    pytest.importorskip("openvino")
    folders, wanted = [], {}
    for target in ("vnni", "portable"):
        made = tmp_path_factory.mktemp(target)
        for case in (c for c in adversarial(made, target) if c.name in _STATIC):
            folder = made / case.name
            folder.mkdir()
            case.model.rename(folder / "model.onnx")
            np.save(folder / "x.npy", case.feeds[0]["x"])
            wanted[target, case.name] = run(folder / "model.onnx", case.feeds[0])["y"]
            folders.append(folder)
    held = {**os.environ, "ONEDNN_MAX_CPU_ISA": request.param}
    command = [sys.executable, "-c", _SERVE, *map(str, folders)]
    subprocess.run(command, env=held, check=True, timeout=120)
    return {
        key: float(np.abs(np.load(folder / "y.npy") - wanted[key]).max() / np.ptp(wanted[key]))
        for key, folder in zip(wanted, folders, strict=True)
    }


@pytest.mark.parametrize("layer", ["conv", "gemm", "matmul"])
def test_weights_for_vnni_saturate_without_it(
    errors: dict[tuple[str, str], float], layer: str
) -> None:
    assert errors["vnni", layer] > 0.1


@pytest.mark.parametrize("layer", [x for x in _STATIC if x.startswith("depthwise")])
def test_depthwise_kernels_are_exact_with_all_8_bits(
    errors: dict[tuple[str, str], float], layer: str
) -> None:
    assert errors["vnni", layer] < _STEP


@pytest.mark.parametrize("layer", _STATIC)
def test_portable_weights_are_exact(errors: dict[tuple[str, str], float], layer: str) -> None:
    assert errors["portable", layer] < _STEP
