from dataclasses import replace

import pytest

from bench.doctor import diagnosis
from bench.machine import Machine, describe
from bench.peaks import Peaks
from bench.render import render


@pytest.fixture(scope="module")
def here() -> Machine:
    return describe()


def test_measured_limits_are_part_of_the_machine(here: Machine) -> None:
    text = render(
        diagnosis(here, (Peaks(2, 1e12, 4e12, "openvino", "onnxruntime", 5e10, 2**28),)), "text"
    )
    assert "1,000 GFLOP/s FP32" in text
    assert "4,000 GOP/s INT8" in text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"governor": "powersave"}, "sudo cpupower frequency-set -g performance"),
        ({"quota_cpus": 0.5}, "docker run --cpus"),
        ({"packages": {}}, "pip install 'vnnify[openvino]'"),
        ({"canaries": {"onnxruntime": "saturating"}}, "products saturate here in onnxruntime"),
        ({"gpus": ("H100",), "no_gpu_reason": "no CUDA provider"}, "GPU: no CUDA provider"),
    ],
)
def test_what_is_missing_comes_with_what_helps(
    here: Machine, changes: dict[str, object], says: str
) -> None:
    assert says in " ".join(render(diagnosis(replace(here, **changes)), "text").split())  # type: ignore[arg-type]


def test_a_machine_with_nothing_to_mend_says_so(here: Machine) -> None:
    fine = replace(
        here,
        governor="performance",
        quota_cpus=None,
        packages={"torch": "2", "openvino": "2026"},
        canaries={"onnxruntime": "exact"},
        gpus=(),
    )
    assert render(diagnosis(fine), "text").rstrip().endswith("Nothing.")
